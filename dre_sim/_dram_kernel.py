"""Numba kernel of `dram.py`: FR-FCFS channels advanced from event to event in DRAM clocks.

All state is one flat integer table `m` of records; a record is named by the index of its first field, so a bank
`b` has its open row in `m[b + ROW]`. Transactions are the rows of `q`. A clock in which no command can issue is
skipped. Knows no byte address and no picosecond.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dre_sim._borrow import borrow

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
# Columns of `q`. X_UNIT_END: behind the last transaction of the same unit in the channel's FIFO.
X_BANK, X_ROW, X_WRITE, X_UNIT_END, X_ARRIVAL, X_DONE, TXN_COLS = 0, 1, 2, 3, 4, 5, 6

NOTHING, COLUMN_OWNER, COLUMN_HIT, PRECHARGE, ACTIVATE, REF_PRECHARGE, REFRESH = 0, 1, 2, 3, 4, 5, 6
# A command's priority, smallest first: clocks to wait, class (owner, refresh, others), age, row command, bank number.
WAIT_SHIFT, CLASS_SHIFT, AGE_SHIFT, ROW_BIT = 44, 42, 7, 64
BLOCKED = 1 << 61

# Any product of a power of two and this constant has different top six bits (Leiserson, Prokop and Randall, 1998).
DE_BRUIJN = 0x03F79D71B4CB0A89
BIT_POSITION = np.zeros(64, np.int64)
BIT_POSITION[[((DE_BRUIJN << i) >> 58) & 63 for i in range(64)]] = np.arange(64)


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


@njit(cache=True, nogil=True)
def _lowest(mask: int) -> int:
    """Position of the lowest set bit."""
    return BIT_POSITION[((mask & -mask) * DE_BRUIJN >> 58) & 63]


@njit(cache=True, nogil=True)
def _set_bit(field: int, bit: int, on: bool, m: Int64) -> None:
    m[field] = m[field] | bit if on else m[field] & ~bit


@njit(cache=True, nogil=True)
def _tag_column(c: int, b: int, w: int, m: Int64) -> None:
    """Keep the priority of bank `b`'s next column command of type `w`: its owner's, else the oldest hit's."""
    hit, bit = m[b + HIT + w], 1 << m[b + NUMBER]
    owned = m[b + OWNER] >= 0 and m[b + OWNER_WRITE] == w
    if owned:
        m[b + TAG_HIT + w] = (m[b + OWNER_AGE] << AGE_SHIFT) + m[b + NUMBER]
    elif hit >= 0:
        m[b + TAG_HIT + w] = (2 << CLASS_SHIFT) + (m[hit + S_AGE] << AGE_SHIFT) + m[b + NUMBER]
    _set_bit(c + COLUMN_BANKS + w, bit, owned or hit >= 0, m)
    _set_bit(c + OWNED_BANKS + w, bit, owned, m)


@njit(cache=True, nogil=True)
def _tag_row(c: int, b: int, w: int, m: Int64, t: Timing) -> None:
    """Keep the priority of the precharge or activate that bank `b`'s oldest other request asks for."""
    miss = m[b + MISS + w]
    if miss >= 0:
        tag = (m[miss + S_AGE] << AGE_SHIFT) + ROW_BIT + m[b + NUMBER]
        m[b + TAG_MISS + w] = ((2 + t.two_buses) << CLASS_SHIFT) + tag
    _set_bit(c + ROW_BANKS + w, 1 << m[b + NUMBER], miss >= 0, m)


@njit(cache=True, nogil=True)
def _classify(c: int, b: int, w: int, m: Int64, t: Timing) -> None:
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
    _tag_column(c, b, w, m)
    _tag_row(c, b, w, m, t)


@njit(cache=True, nogil=True)
def _enqueue(c: int, x: int, m: Int64, q: Int64, t: Timing) -> None:
    w, b = q[x, X_WRITE], q[x, X_BANK]
    i = m[c + FREE_SLOT + w]
    m[c + FREE_SLOT + w] = m[i + S_NEXT]
    m[c + N_QUEUED + w] += 1
    m[i + S_TXN], m[i + S_ROW], m[i + S_AGE] = x, q[x, X_ROW], m[c + AGE]
    m[c + AGE] += 1
    tail = m[b + TAIL + w]
    m[i + S_NEXT], m[i + S_PREV] = -1, tail
    if tail >= 0:
        m[tail + S_NEXT] = i
    else:
        m[b + HEAD + w] = i
    m[b + TAIL + w] = i
    if q[x, X_ROW] == m[b + ROW]:
        if m[b + HIT + w] < 0:
            m[b + HIT + w] = i
            _tag_column(c, b, w, m)
    elif m[b + MISS + w] < 0:
        m[b + MISS + w] = i
        _tag_row(c, b, w, m, t)


@njit(cache=True, nogil=True)
def _dequeue(c: int, b: int, i: int, w: int, m: Int64) -> int:
    """Take slot `i` out of its bank's queue; return the one behind it."""
    before, after = m[i + S_PREV], m[i + S_NEXT]
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


@njit(cache=True, nogil=True)
def _admit(c: int, now: int, backlog: int, m: Int64, q: Int64, t: Timing) -> int:
    """Move waiting transactions into the queues, in order; return the clock of the next chance."""
    if m[c + ADMIT_AT] <= now:
        head, moved = m[c + FIFO_HEAD], 0
        while moved < t.admit_per_clock and head < m[c + FIFO_TAIL]:
            if q[head, X_ARRIVAL] + t.front_clocks > now or m[c + FREE_SLOT + q[head, X_WRITE]] < 0:
                break
            _enqueue(c, head, m, q, t)
            head += 1
            moved += 1
        m[c + FIFO_HEAD], m[c + ADMIT_AT] = head, now + 1
        if backlog:
            tail = m[c + FIFO_TAIL]
            while tail - head < backlog and tail < m[c + FIFO_END]:
                end = q[tail, X_UNIT_END]
                for x in range(tail, end):
                    q[x, X_ARRIVAL] = now
                tail = end
            m[c + FIFO_TAIL] = tail
    head = m[c + FIFO_HEAD]
    if head == m[c + FIFO_TAIL] or m[c + FREE_SLOT + q[head, X_WRITE]] < 0:
        return FAR
    return max(m[c + ADMIT_AT], q[head, X_ARRIVAL] + t.front_clocks)


@njit(cache=True, nogil=True)
def _refresh_candidate(c: int, m: Int64, t: Timing) -> tuple[int, int, int]:
    """The pending refresh's next command: precharge what is open in its scope, then refresh."""
    first = m[c + BANKS] + m[c + REF_AT]
    end = first + (BANK_SIZE if t.per_bank_refresh else t.rank_banks)
    kind = REFRESH
    for b in range(first, end, BANK_SIZE):
        if m[b + OWNER] >= 0:
            return FAR, NOTHING, first
        if m[b + ROW] != NONE:
            kind = REF_PRECHARGE
    ready = m[c + REF_READY] if kind == REFRESH else 0
    for b in range(first, end, BANK_SIZE):
        if kind == REFRESH:
            ready = max(ready, m[b + B_ACT] + t.act_extra)
        elif m[b + ROW] != NONE:
            ready = max(ready, m[b + B_PRE])
    return ready, kind, first


@njit(cache=True, nogil=True)
def _pick_column(c: int, now: int, mask: int, w: int, m: Int64) -> int:
    """Smallest priority of the column commands of type `w` over the banks in `mask`."""
    best, earliest = BLOCKED, max(now, m[c + FREE_COL])
    while mask:
        b = m[c + BANKS] + _lowest(mask) * BANK_SIZE
        ready = max(max(m[b + B_READY + w], m[m[b + GROUP] + READY + w]), max(m[m[b + RANK] + READY + w], earliest))
        best = min(best, ((ready - now) << WAIT_SHIFT) + m[b + TAG_HIT + w])
        mask &= mask - 1
    return best


@njit(cache=True, nogil=True)
def _pick_row(c: int, now: int, m: Int64) -> int:
    """Smallest priority of precharges and activates; no activate before a split one is whole."""
    best, w, earliest = BLOCKED, m[c + MODE], max(now, m[c + FREE_ROW])
    mask = m[c + ROW_BANKS + w] & ~(m[c + OWNED_BANKS + READ] | m[c + OWNED_BANKS + WRITE])
    if m[c + ACT2_BANK] >= 0:
        mask &= m[c + OPEN_BANKS]
    while mask:
        b = m[c + BANKS] + _lowest(mask) * BANK_SIZE
        activate = max(max(m[b + B_ACT], m[m[b + GROUP] + ACT_READY]), m[m[b + RANK] + ACT_READY])
        close = max(m[b + B_PRE], m[c + PRE_ANY])
        ready = activate if m[b + ROW] == NONE else close
        best = min(best, ((max(ready, earliest) - now) << WAIT_SHIFT) + m[b + TAG_MISS + w])
        mask &= mask - 1
    return best


@njit(cache=True, nogil=True)
def _pick(c: int, now: int, m: Int64, t: Timing) -> tuple[int, int, int]:
    """The next command: (clock, kind, bank). Earliest first; then owners, refresh, the oldest request."""
    ready, kind, bank, w = FAR, NOTHING, NONE, m[c + MODE]
    if m[c + REF_TODO] > 0:
        best = _pick_column(c, now, m[c + OWNED_BANKS + w], w, m)
        ready, kind, bank = _refresh_candidate(c, m, t)
        ready = max(max(ready, now), m[c + FREE_ROW])
    else:
        best = _pick_column(c, now, m[c + COLUMN_BANKS + w], w, m)
        # No row command beats an owner that can go at once, and none any such column where rows have their own bus.
        if best >= (1 + 2 * t.two_buses) << CLASS_SHIFT:
            best = min(best, _pick_row(c, now, m))
    best = min(best, _pick_column(c, now, m[c + OWNED_BANKS + 1 - w], 1 - w, m))
    at = now + (best >> WAIT_SHIFT)
    if best < BLOCKED and at <= ready:
        kind = COLUMN_HIT if best & (3 << CLASS_SHIFT) else COLUMN_OWNER
        ready, bank = at, m[c + BANKS] + (best & (ROW_BIT - 1)) * BANK_SIZE
        if best & ROW_BIT:
            kind = ACTIVATE if m[bank + ROW] == NONE else PRECHARGE
    if kind == NOTHING:
        ready = FAR
    return ready, kind, bank


@njit(cache=True, nogil=True)
def _take_bus(c: int, column: bool, at: int, clocks: int, m: Int64, t: Timing) -> None:
    """Hold a command bus from `at` on. Of two buses the column bus chooses first, so `at` has passed for it too."""
    if column:
        m[c + FREE_COL] = at + clocks
    else:
        m[c + FREE_ROW] = at + clocks
        m[c + FREE_COL] = max(m[c + FREE_COL], at + 1)
    if not t.two_buses:
        m[c + FREE_COL] = m[c + FREE_ROW] = at + clocks


@njit(cache=True, nogil=True)
def _column(c: int, b: int, at: int, kind: int, m: Int64, q: Int64, t: Timing) -> None:
    if kind == COLUMN_OWNER:
        x, w = m[b + OWNER], m[b + OWNER_WRITE]
        m[b + OWNER] = NONE
    else:
        w = m[c + MODE]
        i = m[b + HIT + w]
        x = m[i + S_TXN]
        i = _dequeue(c, b, i, w, m)
        while i >= 0 and m[i + S_ROW] != m[b + ROW]:
            i = m[i + S_NEXT]
        m[b + HIT + w] = i
        m[c + HITS] += 1
    _tag_column(c, b, w, m)
    if t.sync_post >= 0 and at >= m[c + SYNC_UNTIL]:
        at += 1  # the clock-synchronising command took the slot
    r, g = m[b + RANK], m[b + GROUP]
    latency = t.cwl if w else t.cl
    m[r + READY + w] = at + t.ccd_s
    m[g + READY + w] = at + t.ccd_l
    if w:
        m[r + READY + READ] = max(m[r + READY + READ], at + t.write_to_read_s)
        m[g + READY + READ] = max(m[g + READY + READ], at + t.write_to_read_l)
        m[b + B_PRE] = max(m[b + B_PRE], at + t.write_to_pre)
    else:
        m[r + READY + WRITE] = max(m[r + READY + WRITE], at + t.read_to_write)
        m[b + B_PRE] = max(m[b + B_PRE], at + t.rtp)
    done = at + latency + t.bl
    q[x, X_DONE] = done
    m[done % RING] += 1
    m[c + SYNC_UNTIL] = max(m[c + SYNC_UNTIL], done + t.sync_post)
    m[c + COLS] += 1
    _take_bus(c, True, at, 1, m, t)


@njit(cache=True, nogil=True)
def _activate(c: int, b: int, at: int, m: Int64, t: Timing) -> None:
    """Open the row of bank `b`'s oldest request, which owns the bank until its column command."""
    w = m[c + MODE]
    i = m[b + MISS + w]
    m[b + OWNER], m[b + OWNER_WRITE], m[b + OWNER_AGE] = m[i + S_TXN], w, m[i + S_AGE]
    m[b + ROW] = m[i + S_ROW]
    m[c + OPEN_BANKS] |= 1 << m[b + NUMBER]
    _dequeue(c, b, i, w, m)
    _classify(c, b, w, m, t)
    if m[b + HEAD + 1 - w] >= 0:
        _classify(c, b, 1 - w, m, t)
    _take_bus(c, False, at, 1 + t.act_extra, m, t)
    if t.aad > 0:
        m[c + ACT2_BANK], m[c + ACT2_BY] = b, at + t.aad
    r, g, whole = m[b + RANK], m[b + GROUP], at + t.act_extra
    m[b + B_READY + READ], m[b + B_READY + WRITE] = whole + t.rcd_rd, whole + t.rcd_wr
    m[b + B_PRE], m[b + B_ACT] = whole + t.ras, at + t.rc
    m[g + ACT_READY] = at + t.rrd_l
    m[r + FAW + m[r + FAW_AT]] = at + t.faw
    m[r + FAW_AT] = (m[r + FAW_AT] + 1) % 4
    m[r + ACT_READY] = max(max(m[r + ACT_READY], at + t.rrd_s), m[r + FAW + m[r + FAW_AT]])
    m[c + ACTS] += 1


@njit(cache=True, nogil=True)
def _close(c: int, b: int, at: int, m: Int64, t: Timing) -> None:
    m[b + ROW] = NONE
    m[c + OPEN_BANKS] &= ~(1 << m[b + NUMBER])
    m[b + B_ACT] = max(m[b + B_ACT], at + t.rp - t.act_extra)
    m[c + PRE_ANY] = at + t.ppd
    for w in range(2):
        if m[b + HEAD + w] >= 0:
            _classify(c, b, w, m, t)


@njit(cache=True, nogil=True)
def _refresh(c: int, first: int, at: int, kind: int, m: Int64, t: Timing) -> None:
    _take_bus(c, False, at, 1, m, t)
    end = first + (BANK_SIZE if t.per_bank_refresh else t.rank_banks)
    if kind == REF_PRECHARGE:
        for b in range(first, end, BANK_SIZE):
            if m[b + ROW] != NONE:
                _close(c, b, at, m, t)
        return
    r = m[first + RANK]
    m[r + ACT_READY] = max(m[r + ACT_READY], at + t.ref_to_act - t.act_extra)
    for b in range(first, end, BANK_SIZE):
        m[b + B_ACT] = max(m[b + B_ACT], at + t.rfc - t.act_extra)
    m[c + REF_READY] = at + t.ref_to_ref
    m[c + REF_AT] = (m[c + REF_AT] + end - first) % t.all_banks
    m[c + REF_TODO] -= 1


@njit(cache=True, nogil=True)
def _set_mode(c: int, m: Int64, t: Timing) -> None:
    """Write drain with hysteresis; writes also go when no read waits."""
    reads, writes = m[c + N_QUEUED + READ], m[c + N_QUEUED + WRITE]
    if m[c + MODE] == READ:
        if writes > t.write_high or reads == 0:
            m[c + MODE] = WRITE
    elif writes < t.write_low and reads > 0:
        m[c + MODE] = READ


@njit(cache=True, nogil=True)
def _advance(c: int, until: int, backlog: int, m: Int64, q: Int64, t: Timing) -> None:
    """Issue channel `c`'s commands of all clocks before `until`."""
    while m[c + NOW] < until:
        now = max(m[c + NOW], min(m[c + FREE_COL], m[c + FREE_ROW]))
        arriving = _admit(c, now, backlog, m, q, t)
        while m[c + REF_NEXT] <= now:
            m[c + REF_TODO] += 1 if t.per_bank_refresh else t.n_ranks
            m[c + REF_NEXT] += t.refi
        _set_mode(c, m, t)
        at, kind, b = _pick(c, now, m, t)
        slot = max(now, m[c + FREE_ROW])
        late = slot >= m[c + ACT2_BY]
        syncs = NOTHING < kind <= COLUMN_HIT and t.sync_post >= 0 and at >= m[c + SYNC_UNTIL]
        if m[c + ACT2_BANK] >= 0 and (at > slot or late or (syncs and at + 1 >= m[c + ACT2_BY])):
            if slot >= until:
                m[c + NOW] = until
                return
            m[c + ACT2_BANK] = -1
            _take_bus(c, False, slot, 1, m, t)
            continue
        event = min(arriving, m[c + REF_NEXT])
        if now < event <= at or at >= until:
            m[c + NOW] = min(min(event, at), until)
            continue
        if kind <= COLUMN_HIT:
            _column(c, b, at, kind, m, q, t)
        elif kind == PRECHARGE:
            _close(c, b, at, m, t)
            _take_bus(c, False, at, 1, m, t)
        elif kind == ACTIVATE:
            _activate(c, b, at, m, t)
        else:
            _refresh(c, b, at, kind, m, t)
        m[c + NOW], m[c + ADMIT_AT] = at, max(m[c + ADMIT_AT], at + 1)  # what it freed is seen a clock later


@njit(cache=True, nogil=True)
def run_open(channels: Int64, backlog: int, m: Int64, q: Int64, t: Timing) -> None:
    """Channels independently, each transaction at its arrival clock; or, with `backlog`, a source that adds
    a unit to a channel's FIFO whenever fewer than that many transactions wait in it."""
    m, q = borrow(m), borrow(q)
    for c in channels:
        if not backlog:
            m[c + FIFO_TAIL] = m[c + FIFO_END]
        until = 0
        while m[c + COLS] < m[c + TODO]:
            until += 1 << 20
            _advance(c, until, backlog, m, q, t)


@njit(cache=True, nogil=True)
def run_window(
    channels: Int64, window: int, quantum: int, unit_start: Int64, owner: Int64, m: Int64, q: Int64, t: Timing
) -> None:
    """All channels behind one source with at most `window` transactions outstanding, units in order.

    owner : channel record of each transaction, in the order of the source
    quantum : clocks that the channels advance apart; exact while no transaction takes fewer from its column
        command to its completion, because what the source will see is then already known
    """
    m, q = borrow(m), borrow(q)
    clock, outstanding, u, n_units = 0, 0, 0, unit_start.size - 1
    while u < n_units or outstanding > 0:
        for now in range(clock, clock + quantum):
            outstanding -= m[now % RING]
            m[now % RING] = 0
            while u < n_units and (outstanding == 0 or outstanding + unit_start[u + 1] - unit_start[u] <= window):
                for c in owner[unit_start[u] : unit_start[u + 1]]:
                    q[m[c + FIFO_TAIL], X_ARRIVAL] = now
                    m[c + FIFO_TAIL] += 1
                outstanding += unit_start[u + 1] - unit_start[u]
                u += 1
        clock += quantum
        for c in channels:
            _advance(c, clock, 0, m, q, t)
