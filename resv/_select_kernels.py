"""Numba kernels that mark what rows of scores choose, without sorting: radix selection on float32 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def _ordered(bits: Any) -> Any:
    """float32 bits (int32) as an unsigned integer of the same order; -0.0 equals 0.0."""
    return np.uint32(bits ^ -0x80000000) if bits >= 0 else np.uint32(-bits)


@njit(cache=True, nogil=True)
def _kth_largest(bits: Any, k: int) -> Any:
    """The k-th largest as an ordered integer, and how many of its equals belong to the k largest."""
    prefix, known = np.uint32(0), np.uint32(0)
    counts = np.empty(2048, np.int64)
    for shift, width in ((21, 11), (10, 11), (0, 10)):
        counts[: 1 << width] = 0
        low = np.uint32((1 << width) - 1)
        for i in range(len(bits)):
            key = _ordered(bits[i])
            if (key & known) == prefix:
                counts[(key >> np.uint32(shift)) & low] += 1
        digit = (1 << width) - 1
        while counts[digit] < k:
            k -= counts[digit]
            digit -= 1
        prefix |= np.uint32(digit) << np.uint32(shift)
        known |= low << np.uint32(shift)
    return prefix, k


@njit(cache=True, nogil=True)
def raise_topk(scores: Any, bits: Any, k: Any, offset: Any, best: Any) -> None:
    """best (S,) becomes the largest of itself and score + offset of every row whose k[row] largest a column is in.

    scores (R, S) float32, bits the same as int32, ties to the lowest column.
    """
    for r in range(len(scores)):
        if k[r] < 1:
            continue
        bound, n_equal = _kth_largest(bits[r], k[r])
        for i in range(scores.shape[1]):
            key = _ordered(bits[r, i])
            if key < bound or (key == bound and n_equal == 0):
                continue
            n_equal -= key == bound
            best[i] = max(best[i], scores[r, i] + offset[r])


@njit(cache=True, nogil=True)
def count_near_maximum(scores: Any, distance: Any, peak: Any, counts: Any) -> None:
    """Per row (R,): its largest score, and how many are no further below it than `distance`."""
    for r in range(len(scores)):
        top = scores[r, 0]
        for i in range(1, scores.shape[1]):
            top = max(top, scores[r, i])
        n = 0
        for i in range(scores.shape[1]):
            n += scores[r, i] >= top - distance
        peak[r], counts[r] = top, n
