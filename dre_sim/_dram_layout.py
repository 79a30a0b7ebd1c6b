"""Numba kernel of `dram/requests.py`: requests become transactions with a channel, a bank and a row.

Fields of an address are cut with shifts; only the number of channels may be no power of two.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dre_sim._dram_state import BANK_SIZE, BANKS, TXN_COLS, X_ARRIVAL, X_BANK, X_DONE, X_ROW, X_UNIT_END, X_WRITE

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


@njit(cache=True, nogil=True, forceinline=True)
def _place(x: int, g: Geometry) -> tuple[int, int]:
    """Channel of transaction `x` of the memory, and the transaction's byte address within the channel."""
    a = (x if x < g.n_transactions else x % g.n_transactions) << g.transaction_shift
    stripe = a >> g.interleave_shift
    row = stripe // g.n_channels
    return stripe - row * g.n_channels, (row << g.interleave_shift) + (a & ((1 << g.interleave_shift) - 1))


@njit(cache=True, nogil=True, forceinline=True)
def _bank_and_row(a: int, g: Geometry) -> tuple[int, int]:
    """Bank number, counted (pseudo-channel, bank group, bank), and row of byte address `a` of a channel."""
    rest = a >> (g.row_shift if g.page_map else 6)
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
            per_channel[_place(x, g)[0]] += 1
    return per_channel, start


@njit(cache=True, nogil=True)
def fill(
    address: Int64, write: Int64, arrival: Int64, start: Int64, begin: Int64, channels: Int64, m: Int64, g: Geometry
) -> tuple[Int64, Int64, Int64]:
    """Transactions as the kernel's `q`, each channel's together from record `begin` (k,) on and in order.

    Returns `q`, and for every transaction in the order of the source its record in `q` and its channel's record.
    X_UNIT_END is right where there is one channel, which is where it is used.
    """
    n, following = address.size, begin * TXN_COLS
    q = np.empty(start[n] * TXN_COLS, np.int64)
    place, owner = np.empty(start[n], np.int64), np.empty(start[n], np.int64)
    for i in range(n):
        first, unit_end = address[i] >> g.transaction_shift, start[i + 1] * TXN_COLS
        for k in range(start[i], start[i + 1]):
            c, a = _place(first + k - start[i], g)
            bank, row = _bank_and_row(a, g)
            x = following[c]
            following[c] += TXN_COLS
            place[k], owner[k] = x, channels[c]
            q[x + X_BANK], q[x + X_ROW] = m[channels[c] + BANKS] + bank * BANK_SIZE, row
            q[x + X_WRITE], q[x + X_ARRIVAL], q[x + X_UNIT_END] = write[i], arrival[i], unit_end
    return q, place, owner


@njit(cache=True, nogil=True)
def collect(start: Int64, place: Int64, q: Int64, tck_ps: int) -> tuple[Int64, Int64, Int64, Int64]:
    """Arrival and completion of the requests, latency and completion of their transactions, ps, as in `DramResult`."""
    n = start.size - 1
    arrival, completion = np.empty(n, np.int64), np.empty(n, np.int64)
    latency, done = np.empty(place.size, np.int64), np.empty(place.size, np.int64)
    for i in range(n):
        arrival[i], completion[i] = q[place[start[i]] + X_ARRIVAL] * tck_ps, 0
        for k in range(start[i], start[i + 1]):
            done[k] = q[place[k] + X_DONE] * tck_ps
            latency[k] = done[k] - q[place[k] + X_ARRIVAL] * tck_ps
            completion[i] = max(completion[i], done[k])
    return arrival, completion, latency, done
