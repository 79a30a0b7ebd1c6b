"""Numba kernel of `dram/requests.py`: requests become transactions with a channel, a bank and a row.

Fields of an address are cut with shifts; only the number of channels may be no power of two.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dre_sim._borrow import borrow
from dre_sim._dram_state import BANK_SIZE, BANKS, TXN_COLS, X_ARRIVAL, X_BANK, X_ROW, X_UNIT_END, X_WRITE

Int64 = NDArray[np.int64]


class Geometry(NamedTuple):
    """Shifts are binary logarithms. With `page_map` a row's columns lie below the bank group, else 64 B of them do."""

    transaction_shift: int
    interleave_shift: int
    n_channels: int
    page_map: int
    row_shift: int
    pseudo_shift: int
    group_shift: int
    bank_shift: int
    row_mask: int
    n_transactions: int


@njit(cache=True, nogil=True)
def _channel(a: int, g: Geometry) -> int:
    return (a >> g.interleave_shift) % g.n_channels


@njit(cache=True, nogil=True)
def _bank_and_row(a: int, g: Geometry) -> tuple[int, int]:
    """Bank number within the channel, counted (pseudo-channel, bank group, bank), and row of byte address `a`."""
    rest = ((a >> g.interleave_shift) // g.n_channels << g.interleave_shift) + (a & ((1 << g.interleave_shift) - 1))
    rest >>= g.row_shift if g.page_map else 6
    pseudo = rest & ((1 << g.pseudo_shift) - 1)
    rest >>= g.pseudo_shift
    group = rest & ((1 << g.group_shift) - 1)
    rest >>= g.group_shift + (0 if g.page_map else g.row_shift - 6)
    bank = rest & ((1 << g.bank_shift) - 1)
    return (((pseudo << g.group_shift) + group) << g.bank_shift) + bank, (rest >> g.bank_shift) & g.row_mask


@njit(cache=True, nogil=True)
def count(address: Int64, n_bytes: Int64, g: Geometry) -> tuple[Int64, Int64]:
    """Transactions of each channel; and where in the order of the source each request's begin (n + 1,)."""
    per_channel, start = np.zeros(g.n_channels, np.int64), np.zeros(address.size + 1, np.int64)
    for i in range(address.size):
        first = address[i] >> g.transaction_shift
        n = ((address[i] + n_bytes[i] - 1) >> g.transaction_shift) - first + 1
        start[i + 1] = start[i] + n
        for x in range(first, first + n):
            per_channel[_channel(x % g.n_transactions << g.transaction_shift, g)] += 1
    return per_channel, start


@njit(cache=True, nogil=True)
def fill(
    address: Int64, write: Int64, arrival: Int64, start: Int64, begin: Int64, channels: Int64, m: Int64, g: Geometry
) -> tuple[Int64, Int64, Int64]:
    """Transactions as rows of the kernel's `q`, each channel's together from row `begin` (k,) on and in order.

    Returns `q`, and for every transaction in the order of the source its row of `q` and its channel record.
    X_UNIT_END is right where there is one channel, which is where it is used.
    """
    m, nxt = borrow(m), begin.copy()
    q = np.empty((start[-1], TXN_COLS), np.int64)
    place, owner = np.empty(start[-1], np.int64), np.empty(start[-1], np.int64)
    for i in range(address.size):
        first = address[i] >> g.transaction_shift
        for k in range(start[i], start[i + 1]):
            a = (first + k - start[i]) % g.n_transactions << g.transaction_shift
            c = _channel(a, g)
            bank, row = _bank_and_row(a, g)
            x = nxt[c]
            nxt[c] += 1
            place[k], owner[k] = x, channels[c]
            q[x, X_BANK], q[x, X_ROW] = m[channels[c] + BANKS] + bank * BANK_SIZE, row
            q[x, X_WRITE], q[x, X_ARRIVAL], q[x, X_UNIT_END] = write[i], arrival[i], start[i + 1]
    return q, place, owner
