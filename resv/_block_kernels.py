"""Numba kernels on runs of keys: sums and bounds per block of tokens. Token by token in stream order, so that
adding a run in parts gives the same bits as adding it at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def add_to_blocks(keys: Any, block: Any, sums: Any) -> None:
    """keys (n, H, D), block (n,) with -1 for none, sums (blocks, H, D)"""
    for t in range(keys.shape[0]):
        if block[t] >= 0:
            for h in range(keys.shape[1]):
                for i in range(keys.shape[2]):
                    sums[block[t], h, i] += keys[t, h, i]


@njit(cache=True, nogil=True)
def add_unrotated(keys: Any, first_position: int, frequencies: Any, block: Any, sums: Any) -> None:
    """As `add_to_blocks`, keys turned back from positions first_position + t."""
    half = keys.shape[2] // 2
    cosine, sine = np.empty(half, np.float32), np.empty(half, np.float32)
    for t in range(keys.shape[0]):
        if block[t] < 0:
            continue
        for i in range(half):
            angle = (first_position + t) * frequencies[i]
            cosine[i], sine[i] = np.cos(angle), np.sin(angle)
        for h in range(keys.shape[1]):
            for i in range(half):
                x, y = keys[t, h, i], keys[t, h, i + half]
                sums[block[t], h, i] += x * cosine[i] + y * sine[i]
                sums[block[t], h, i + half] += y * cosine[i] - x * sine[i]


@njit(cache=True, nogil=True)
def widen_bounds(keys: Any, block: Any, low: Any, high: Any) -> None:
    """keys (n, H, D); low, high (blocks, H, D) become the least and the largest of each element."""
    for t in range(keys.shape[0]):
        for h in range(keys.shape[1]):
            for i in range(keys.shape[2]):
                value = keys[t, h, i]
                low[block[t], h, i] = min(low[block[t], h, i], value)
                high[block[t], h, i] = max(high[block[t], h, i], value)
