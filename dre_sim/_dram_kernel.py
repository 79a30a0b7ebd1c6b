"""Numba kernel of `dram/`: FR-FCFS channels advanced from event to event in DRAM clocks.

A clock in which no command can issue is skipped, so the cost is per command. Records and queues are those of
`_dram_state.py`. Knows no byte address and no picosecond.
"""

from __future__ import annotations

from numba import njit

from dre_sim._borrow import borrow, lowest
from dre_sim._dram_state import (
    ACT2_BANK,
    ACT2_BY,
    ACT_READY,
    ACTS,
    ADMIT_AT,
    B_ACT,
    B_PRE,
    B_READY,
    BANK_SIZE,
    BANKS,
    BLOCKED,
    CLASS_SHIFT,
    COLS,
    COLUMN_BANKS,
    FAR,
    FAW,
    FAW_AT,
    FIFO_END,
    FIFO_TAIL,
    FREE_COL,
    FREE_ROW,
    GROUP,
    HEAD,
    HIT,
    HITS,
    MISS,
    MODE,
    N_QUEUED,
    NONE,
    NOW,
    NUMBER,
    OPEN_BANKS,
    OWNED_BANKS,
    OWNER,
    OWNER_AGE,
    OWNER_WRITE,
    PRE_ANY,
    RANK,
    READ,
    READY,
    REF_AT,
    REF_NEXT,
    REF_READY,
    REF_TODO,
    RING,
    ROW,
    ROW_BANKS,
    ROW_BIT,
    S_AGE,
    S_NEXT,
    S_ROW,
    S_TXN,
    SYNC_UNTIL,
    TAG_HIT,
    TAG_MISS,
    TODO,
    TXN_COLS,
    WAIT_SHIFT,
    WRITE,
    X_ARRIVAL,
    X_DONE,
    Int64,
    Timing,
    admit,
    classify,
    dequeue,
    tag_column,
)

NOTHING, COLUMN_OWNER, COLUMN_HIT, PRECHARGE, ACTIVATE, REF_PRECHARGE, REFRESH = 0, 1, 2, 3, 4, 5, 6


@njit(cache=True, nogil=True, forceinline=True)
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


@njit(cache=True, nogil=True, forceinline=True)
def _pick_column(c: int, now: int, mask: int, w: int, m: Int64) -> int:
    """Smallest priority of the column commands of type `w` over the banks in `mask`."""
    best, earliest = BLOCKED, max(now, m[c + FREE_COL])
    while mask:
        b = m[c + BANKS] + lowest(mask) * BANK_SIZE
        ready = max(max(m[b + B_READY + w], m[m[b + GROUP] + READY + w]), max(m[m[b + RANK] + READY + w], earliest))
        best = min(best, ((ready - now) << WAIT_SHIFT) + m[b + TAG_HIT + w])
        mask &= mask - 1
    return best


@njit(cache=True, nogil=True, forceinline=True)
def _pick_row(c: int, now: int, m: Int64) -> int:
    """Smallest priority of precharges and activates; no activate before a split one is whole."""
    best, w, earliest = BLOCKED, m[c + MODE], max(now, m[c + FREE_ROW])
    mask = m[c + ROW_BANKS + w] & ~(m[c + OWNED_BANKS + READ] | m[c + OWNED_BANKS + WRITE])
    if m[c + ACT2_BANK] >= 0:
        mask &= m[c + OPEN_BANKS]
    while mask:
        b = m[c + BANKS] + lowest(mask) * BANK_SIZE
        activate = max(max(m[b + B_ACT], m[m[b + GROUP] + ACT_READY]), m[m[b + RANK] + ACT_READY])
        close = max(m[b + B_PRE], m[c + PRE_ANY])
        ready = activate if m[b + ROW] == NONE else close
        best = min(best, ((max(ready, earliest) - now) << WAIT_SHIFT) + m[b + TAG_MISS + w])
        mask &= mask - 1
    return best


@njit(cache=True, nogil=True, forceinline=True)
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


@njit(cache=True, nogil=True, forceinline=True)
def _take_bus(c: int, column: bool, at: int, clocks: int, m: Int64, t: Timing) -> None:
    """Hold a command bus from `at` on. Of two buses the column bus chooses first, so `at` has passed for it too."""
    if column:
        m[c + FREE_COL] = at + clocks
    else:
        m[c + FREE_ROW] = at + clocks
        m[c + FREE_COL] = max(m[c + FREE_COL], at + 1)
    if not t.two_buses:
        m[c + FREE_COL] = m[c + FREE_ROW] = at + clocks


@njit(cache=True, nogil=True, forceinline=True)
def _column(c: int, b: int, at: int, kind: int, m: Int64, q: Int64, t: Timing) -> None:
    if kind == COLUMN_OWNER:
        x, w = m[b + OWNER], m[b + OWNER_WRITE]
        m[b + OWNER] = NONE
    else:
        w = m[c + MODE]
        i = m[b + HIT + w]
        x = m[i + S_TXN]
        i = dequeue(c, b, i, w, m)
        while i >= 0 and m[i + S_ROW] != m[b + ROW]:
            i = m[i + S_NEXT]
        m[b + HIT + w] = i
        m[c + HITS] += 1
    tag_column(c, b, w, m)
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
    q[x + X_DONE] = done
    m[done & (RING - 1)] += 1
    m[c + SYNC_UNTIL] = max(m[c + SYNC_UNTIL], done + t.sync_post)
    m[c + COLS] += 1
    _take_bus(c, True, at, 1, m, t)


@njit(cache=True, nogil=True, forceinline=True)
def _activate(c: int, b: int, at: int, m: Int64, t: Timing) -> None:
    """Open the row of bank `b`'s oldest request, which owns the bank until its column command."""
    w = m[c + MODE]
    i = m[b + MISS + w]
    m[b + OWNER], m[b + OWNER_WRITE], m[b + OWNER_AGE] = m[i + S_TXN], w, m[i + S_AGE]
    m[b + ROW] = m[i + S_ROW]
    m[c + OPEN_BANKS] |= 1 << m[b + NUMBER]
    dequeue(c, b, i, w, m)
    classify(c, b, w, m, t)
    if m[b + HEAD + 1 - w] >= 0:
        classify(c, b, 1 - w, m, t)
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


@njit(cache=True, nogil=True, forceinline=True)
def _close(c: int, b: int, at: int, m: Int64, t: Timing) -> None:
    m[b + ROW] = NONE
    m[c + OPEN_BANKS] &= ~(1 << m[b + NUMBER])
    m[b + B_ACT] = max(m[b + B_ACT], at + t.rp - t.act_extra)
    m[c + PRE_ANY] = at + t.ppd
    for w in range(2):
        if m[b + HEAD + w] >= 0:
            classify(c, b, w, m, t)


@njit(cache=True, nogil=True, forceinline=True)
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


@njit(cache=True, nogil=True, forceinline=True)
def _set_mode(c: int, m: Int64, t: Timing) -> None:
    """Write drain with hysteresis; writes also go when no read waits."""
    reads, writes = m[c + N_QUEUED + READ], m[c + N_QUEUED + WRITE]
    if m[c + MODE] == READ:
        if writes > t.write_high or reads == 0:
            m[c + MODE] = WRITE
    elif writes < t.write_low and reads > 0:
        m[c + MODE] = READ


@njit(cache=True, nogil=True, forceinline=True)
def _advance(c: int, until: int, backlog: int, m: Int64, q: Int64, t: Timing) -> None:
    """Issue channel `c`'s commands of all clocks before `until`."""
    while m[c + NOW] < until:
        now = max(m[c + NOW], min(m[c + FREE_COL], m[c + FREE_ROW]))
        arriving = admit(c, now, backlog, m, q, t)
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
    n_units = unit_start.size - 1
    m, q, owner, unit_start = borrow(m), borrow(q), borrow(owner), borrow(unit_start)
    clock, outstanding, u = 0, 0, 0
    while u < n_units or outstanding > 0:
        for now in range(clock, clock + quantum):
            outstanding -= m[now & (RING - 1)]
            m[now & (RING - 1)] = 0
            while u < n_units and (outstanding == 0 or outstanding + unit_start[u + 1] - unit_start[u] <= window):
                for x in range(unit_start[u], unit_start[u + 1]):
                    c = owner[x]
                    q[m[c + FIFO_TAIL] + X_ARRIVAL] = now
                    m[c + FIFO_TAIL] += TXN_COLS
                outstanding += unit_start[u + 1] - unit_start[u]
                u += 1
        clock += quantum
        for c in channels:
            _advance(c, clock, 0, m, q, t)
