"""Records of the DRAM kernel and its queues: what waits in each bank, and which request is its next candidate.

All state is one flat integer table `m` of records; a record is named by the index of its first field, so a bank
`b` has its open row in `m[b + ROW]`. Transactions are the records of `q`. `_dram_kernel.py` issues commands on it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

FAR = 1 << 60
NONE = -1
READ, WRITE = 0, 1
RING = 4096  # clocks for which completions are remembered; longer than any column command takes

# A channel. FREE_COL, FREE_ROW: from when a command bus is free (both the same where it is shared). ACT2: the
# second half of a split activate. *_BANKS are bit masks of bank numbers: with a column command to give, with a row
# command to give, owned, open. N_QUEUED, FREE_SLOT and masks but the last have an entry for reads and one for writes.
NOW, FREE_COL, FREE_ROW, MODE, N_QUEUED, FREE_SLOT, FIFO_HEAD, FIFO_TAIL, AGE, ADMIT_AT = 0, 1, 2, 3, 4, 6, 8, 9, 10, 11
ACT2_BANK, ACT2_BY, REF_NEXT, REF_TODO, REF_AT, REF_READY, SYNC_UNTIL, PRE_ANY = 12, 13, 14, 15, 16, 17, 18, 19
HITS, ACTS, COLS, FIFO_END, TODO, BANKS, COLUMN_BANKS, ROW_BANKS, OWNED_BANKS = 20, 21, 22, 23, 24, 25, 26, 28, 30
OPEN_BANKS, CHANNEL_SIZE = 32, 33
# A rank (pseudo-channel) and a bank group: READY for reads and for writes, then for activates.
READY, ACT_READY, GROUP_SIZE = 0, 2, 3
FAW_AT, FAW, RANK_SIZE = 3, 4, 8
# A bank. The request that opened its row owns it until its column command. HEAD, TAIL of its queue, and the oldest
# request for the open row (HIT) and for another (MISS), each for reads and for writes; their priorities (TAG).
ROW, B_READY, B_PRE, B_ACT, OWNER, OWNER_WRITE, OWNER_AGE, RANK, GROUP, NUMBER = 0, 1, 3, 4, 5, 6, 7, 8, 9, 10
HEAD, TAIL, HIT, MISS, TAG_HIT, TAG_MISS, BANK_SIZE = 11, 13, 15, 17, 19, 21, 23
# A slot of a read or write queue.
S_TXN, S_ROW, S_AGE, S_NEXT, S_PREV, SLOT_SIZE = 0, 1, 2, 3, 4, 5
# A transaction, in `q`. X_UNIT_END: behind the last transaction of the same unit in the channel's FIFO.
X_BANK, X_ROW, X_WRITE, X_UNIT_END, X_ARRIVAL, X_DONE, TXN_COLS = 0, 1, 2, 3, 4, 5, 6

# A command's priority, smallest first: clocks to wait, class (owner, refresh, others), age, row command, bank number.
WAIT_SHIFT, CLASS_SHIFT, AGE_SHIFT, ROW_BIT = 44, 42, 7, 64
BLOCKED = 1 << 61


class Timing(NamedTuple):
    """Clocks, and the shape that the kernel needs. `DramConfig` says what each one is."""

    cl: int
    cwl: int
    bl: int
    rcd_rd: int
    rcd_wr: int
    rp: int
    ras: int
    rc: int
    rtp: int
    write_to_pre: int
    ccd_s: int
    ccd_l: int
    rrd_s: int
    rrd_l: int
    faw: int
    read_to_write: int
    write_to_read_s: int
    write_to_read_l: int
    ppd: int
    aad: int
    act_extra: int
    sync_post: int
    rfc: int
    refi: int
    ref_to_ref: int
    ref_to_act: int
    per_bank_refresh: int
    two_buses: int
    n_ranks: int
    rank_banks: int
    all_banks: int
    write_high: int
    write_low: int
    admit_per_clock: int
    front_clocks: int


@njit(cache=True, nogil=True, forceinline=True)
def _set_bit(field: int, bit: int, on: bool, m: Int64) -> None:
    m[field] = m[field] | bit if on else m[field] & ~bit


@njit(cache=True, nogil=True, forceinline=True)
def tag_column(c: int, b: int, w: int, m: Int64) -> None:
    """Keep the priority of bank `b`'s next column command of type `w`: its owner's, else the oldest hit's."""
    hit, bit = m[b + HIT + w], 1 << m[b + NUMBER]
    owned = m[b + OWNER] >= 0 and m[b + OWNER_WRITE] == w
    if owned:
        m[b + TAG_HIT + w] = (m[b + OWNER_AGE] << AGE_SHIFT) + m[b + NUMBER]
    elif hit >= 0:
        m[b + TAG_HIT + w] = (2 << CLASS_SHIFT) + (m[hit + S_AGE] << AGE_SHIFT) + m[b + NUMBER]
    _set_bit(c + COLUMN_BANKS + w, bit, owned or hit >= 0, m)
    _set_bit(c + OWNED_BANKS + w, bit, owned, m)


@njit(cache=True, nogil=True, forceinline=True)
def _tag_row(c: int, b: int, w: int, m: Int64, t: Timing) -> None:
    """Keep the priority of the precharge or activate that bank `b`'s oldest other request asks for."""
    miss = m[b + MISS + w]
    if miss >= 0:
        tag = (m[miss + S_AGE] << AGE_SHIFT) + ROW_BIT + m[b + NUMBER]
        m[b + TAG_MISS + w] = ((2 + t.two_buses) << CLASS_SHIFT) + tag
    _set_bit(c + ROW_BANKS + w, 1 << m[b + NUMBER], miss >= 0, m)


@njit(cache=True, nogil=True, forceinline=True)
def classify(c: int, b: int, w: int, m: Int64, t: Timing) -> None:
    """Find the oldest hit and the oldest other request of type `w` after bank `b`'s row changed."""
    hit = miss = NONE
    i = m[b + HEAD + w]
    while i >= 0 and (hit < 0 or miss < 0):
        if m[i + S_ROW] != m[b + ROW]:
            miss = i if miss < 0 else miss
        elif hit < 0:
            hit = i
        i = m[i + S_NEXT]
    m[b + HIT + w], m[b + MISS + w] = hit, miss
    tag_column(c, b, w, m)
    _tag_row(c, b, w, m, t)


@njit(cache=True, nogil=True, forceinline=True)
def _enqueue(c: int, x: int, m: Int64, q: Int64, t: Timing) -> None:
    w, b = q[x + X_WRITE], q[x + X_BANK]
    i = m[c + FREE_SLOT + w]
    m[c + FREE_SLOT + w] = m[i + S_NEXT]
    m[c + N_QUEUED + w] += 1
    m[i + S_TXN], m[i + S_ROW], m[i + S_AGE] = x, q[x + X_ROW], m[c + AGE]
    m[c + AGE] += 1
    tail = m[b + TAIL + w]
    m[i + S_NEXT], m[i + S_PREV] = -1, tail
    if tail >= 0:
        m[tail + S_NEXT] = i
    else:
        m[b + HEAD + w] = i
    m[b + TAIL + w] = i
    if q[x + X_ROW] == m[b + ROW]:
        if m[b + HIT + w] < 0:
            m[b + HIT + w] = i
            tag_column(c, b, w, m)
    elif m[b + MISS + w] < 0:
        m[b + MISS + w] = i
        _tag_row(c, b, w, m, t)


@njit(cache=True, nogil=True, forceinline=True)
def dequeue(c: int, b: int, i: int, w: int, m: Int64) -> int:
    """Take slot `i` out of its bank's queue; return the one behind it."""
    before: int = m[i + S_PREV]
    after: int = m[i + S_NEXT]
    if before >= 0:
        m[before + S_NEXT] = after
    else:
        m[b + HEAD + w] = after
    if after >= 0:
        m[after + S_PREV] = before
    else:
        m[b + TAIL + w] = before
    m[i + S_NEXT] = m[c + FREE_SLOT + w]
    m[c + FREE_SLOT + w] = i
    m[c + N_QUEUED + w] -= 1
    return after


@njit(cache=True, nogil=True, forceinline=True)
def admit(c: int, now: int, backlog: int, m: Int64, q: Int64, t: Timing) -> int:
    """Move waiting transactions into the queues, in order; return the clock of the next chance."""
    if m[c + ADMIT_AT] <= now:
        head, moved = m[c + FIFO_HEAD], 0
        while moved < t.admit_per_clock and head < m[c + FIFO_TAIL]:
            if q[head + X_ARRIVAL] + t.front_clocks > now or m[c + FREE_SLOT + q[head + X_WRITE]] < 0:
                break
            _enqueue(c, head, m, q, t)
            head += TXN_COLS
            moved += 1
        m[c + FIFO_HEAD], m[c + ADMIT_AT] = head, now + 1
        if backlog:
            tail = m[c + FIFO_TAIL]
            while tail - head < backlog * TXN_COLS and tail < m[c + FIFO_END]:
                end = q[tail + X_UNIT_END]
                for x in range(tail, end, TXN_COLS):
                    q[x + X_ARRIVAL] = now
                tail = end
            m[c + FIFO_TAIL] = tail
    head = m[c + FIFO_HEAD]
    if head == m[c + FIFO_TAIL] or m[c + FREE_SLOT + q[head + X_WRITE]] < 0:
        return FAR
    chance: int = max(m[c + ADMIT_AT], q[head + X_ARRIVAL] + t.front_clocks)
    return chance
