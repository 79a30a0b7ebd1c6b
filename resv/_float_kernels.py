"""Numba kernels on the bits of float32 rows: rounding to bf16, and the largest elements of a row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def round_to_bf16(bits: Any, out: Any) -> None:
    for i in range(len(bits)):
        b = bits[i]
        even = (b >> np.uint32(16)) & np.uint32(1)
        out[i] = np.uint32(b + np.uint32(0x7FFF) + even) & np.uint32(0xFFFF0000)


@njit(cache=True, nogil=True)
def _topk_row(keys: Any, k: int, block: int, maxima: Any, out: Any) -> None:
    """Indices of the k largest of `keys` (S,) int32, ties to the lowest index, in no particular order.

    The k-th largest block maximum bounds the k-th largest element from below: few blocks are looked into.
    """
    n = len(keys)
    for b in range(len(maxima)):
        best = keys[b * block]
        for i in range(b * block + 1, min(n, (b + 1) * block)):
            best = max(best, keys[i])
        maxima[b] = best
    bound = np.partition(maxima, len(maxima) - k)[len(maxima) - k]
    n_found = 0
    for b in range(len(maxima)):
        if maxima[b] >= bound:
            for i in range(b * block, min(n, (b + 1) * block)):
                n_found += keys[i] >= bound
    found = np.empty(n_found, np.int64)
    n_found = 0
    for b in range(len(maxima)):
        if maxima[b] >= bound:
            for i in range(b * block, min(n, (b + 1) * block)):
                if keys[i] >= bound:
                    found[n_found] = (np.int64(keys[i]) << 32) | (0xFFFFFFFF - i)
                    n_found += 1
    found.sort()
    for i in range(k):
        out[i] = 0xFFFFFFFF - (found[n_found - 1 - i] & 0xFFFFFFFF)


@njit(cache=True, nogil=True)
def topk(bits: Any, k: int, block: int, out: Any) -> None:
    """Columns of the k largest of each row into `out` (rows, k), largest first, ties to the lowest column.

    bits : (rows, n) int32, float32 values reinterpreted;  block : columns of which a maximum is kept
    """
    n = bits.shape[1]
    keys, maxima = np.empty(n, np.int32), np.empty(-(-n // block), np.int32)
    for r in range(len(bits)):
        for i in range(n):  # float32 bits as integers of the same order: the magnitude with its sign, so -0.0 is 0.0
            keys[i] = bits[r, i] if bits[r, i] >= 0 else -0x80000000 - bits[r, i]
        _topk_row(keys, k, block, maxima, out[r])
