"""Numba kernel of `ssd.py`: where the pages of a fresh drive lie, before anything is timed."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

UNTOUCHED = -1


@njit(cache=True, nogil=True)
def touch(page: Int64, write: Int64, n_pages: int, n_planes: int, n_levels: int, plane: Int64) -> Int64:
    """Levels of pages (n,) on a fresh drive: each plane hands out its own in order.

    page : (n,) as numbered among `n_pages` different ones, in the order of their requests
    A page that is read has the level of its first touch or last write; every write takes a new one.
    """
    mapped, given = np.full(n_pages, UNTOUCHED, np.int64), np.zeros(n_planes, np.int64)
    level = np.empty(page.size, np.int64)
    for i in range(page.size):
        if write[i] or mapped[page[i]] == UNTOUCHED:
            mapped[page[i]] = given[plane[i]] % n_levels
            given[plane[i]] += 1
        level[i] = mapped[page[i]]
    return level
