"""Numba kernel of `ssd.py`: dies, flash channels, write buffer and both directions of the link, event by event.

Between events nothing changes: a channel's next event is the end of what its bus carries or of what one of its
dies does, and host commands pass their gates in order, so no heap is needed. An end that nothing waits for is no event:
a bus is simply free again, and a page that was read is found when the bus is. State is one flat table `m` of records,
named by the index of their first field; `op` has a record for each page of a request, `req` one for each request. Times
are integer picoseconds.

The gates of a command: the drive hears the doorbell and asks for the entry; it has the entry, and asks for the data of
a write; it has the data. To ask goes up the link, behind data on its way to the host, and the answer comes down.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dre_sim._borrow import borrow

Int64 = NDArray[np.int64]

FAR = 1 << 54  # 5 hours
CHANNEL_BITS = 8
NONE = -1
IDLE, READING, WAITING, PROGRAMMING = 0, 1, 2, 3

# The host and the link stand at the table's begin.
UP_FREE, DOWN_FREE, SUBMITTED, SERVED, N_OPS, UNUSED, DIRTY, PAGE_READS, PROGRAMS, UP_BUSY, END, HOST_SIZE = range(12)
# A channel's bus: from when it is free, the page that it moves out, whose turn is next, pages read but not moved,
# when the first of its dies ends, next event.
FREE, MOVES, TURN, OUT_HEAD, OUT_TAIL, DIE_ENDS, NEXT, BUS_SIZE = range(8)
# A die: state and when it ends, its running pages, its queues of reads and of writes.
STATE, AT, ACTIVE, N_ACTIVE, R_HEAD, R_TAIL, W_HEAD, W_TAIL, DIE_SIZE = range(9)
# A page, in `op`: request, its die, global page, plane and level of the page, bytes of it, next in the same queue.
REQUEST, DIE, PAGE, PLANE, LEVEL, N_BYTES, FOLLOW, OP_COLS = range(8)
# A request, in `req`. PLACED, LEFT: pages queued so far, and not yet served. AT_GATE: when it passes the next one.
# DOWN_PS: data that comes down;  UP_PS: data and completion that go up;  PAGES_BEFORE: of the requests before it.
ADDRESS, SIZE, WRITES, PLACED, LEFT, AT_GATE, SUBMIT, DONE, DOWN_PS, UP_PS, PAGES_BEFORE, REQ_COLS = range(12)


class Device(NamedTuple):
    """Shape in counts, durations in ps, and where in the table buses, dies and page read times begin."""

    n_channels: int
    dies: int
    planes: int
    levels: int
    page_bytes: int
    bus_ps_per_byte: float
    command: int
    command_plane: int
    program_command: int
    setup: int
    program: int
    buffer_bytes: int
    merge: int
    commands_first: int
    fresh: int
    doorbell: int
    ask: int
    entry: int
    overhead: int
    buses: int
    all_dies: int
    read_times: int


@njit(cache=True, nogil=True, forceinline=True)
def _submit(r: int, at: int, m: Int64, req: Int64, d: Device) -> None:
    """The host rings the doorbell."""
    req[r + SUBMIT] = at
    m[DOWN_FREE] = max(at, m[DOWN_FREE]) + d.doorbell
    req[r + AT_GATE] = m[DOWN_FREE]


@njit(cache=True, nogil=True, forceinline=True)
def _ask(r: int, at: int, answer: int, m: Int64, req: Int64, d: Device) -> None:
    """The drive asks the host for the entry or the data of a command, which then comes down."""
    m[UP_FREE] = max(at, m[UP_FREE]) + d.ask
    m[UP_BUSY] += d.ask
    m[DOWN_FREE] = max(m[UP_FREE], m[DOWN_FREE]) + answer
    req[r + AT_GATE] = m[DOWN_FREE]


@njit(cache=True, nogil=True, forceinline=True)
def _complete(r: int, at: int, m: Int64, req: Int64, d: Device) -> None:
    """Data (of a read) and completion entry go up in order; then the host submits its next request."""
    m[UP_FREE] = max(at, m[UP_FREE]) + req[r + UP_PS]
    m[UP_BUSY] += req[r + UP_PS]
    req[r + DONE] = m[UP_FREE] + d.overhead
    m[SERVED] += 1
    if m[SUBMITTED] < m[END]:
        _submit(m[SUBMITTED], req[r + DONE], m, req, d)
        m[SUBMITTED] += REQ_COLS


@njit(cache=True, nogil=True, forceinline=True)
def _append(i: int, head: int, tail: int, m: Int64, op: Int64) -> None:
    """Put page `i` behind the queue whose ends stand in m[head], m[tail]."""
    op[i + FOLLOW] = NONE
    if m[head] < 0:
        m[head] = i
    else:
        op[m[tail] + FOLLOW] = i
    m[tail] = i


@njit(cache=True, nogil=True, forceinline=True)
def _take_record(m: Int64, op: Int64) -> int:
    """A record for a page: one that is over, so that few stay in use, or a fresh one."""
    i = int(m[UNUSED])
    if i >= 0:
        m[UNUSED] = op[i + FOLLOW]
    else:
        i = int(m[N_OPS])
        m[N_OPS] += OP_COLS
    return i


@njit(cache=True, nogil=True, forceinline=True)
def _drop_record(i: int, m: Int64, op: Int64) -> None:
    op[i + FOLLOW] = m[UNUSED]
    m[UNUSED] = i


@njit(cache=True, nogil=True, forceinline=True)
def _queue_pages(r: int, now: int, levels: Int64, m: Int64, op: Int64, req: Int64, d: Device) -> bool:
    """Queue the pages of request `r` at their dies, striped over channel, die, plane; wake the buses of idle dies.

    A page's level follows from its address, or is given. False where a write finds the buffer full; it goes on from
    there.
    """
    page, end = req[r + ADDRESS] // d.page_bytes, req[r + ADDRESS] + req[r + SIZE]
    n_pages = (end - 1) // d.page_bytes + 1 - page
    if req[r + PLACED] == 0:
        req[r + LEFT] = n_pages
    page += req[r + PLACED]
    stripe, channel = page // d.n_channels, page % d.n_channels
    row, die = stripe // d.dies, stripe % d.dies
    level, plane = row // d.planes % d.levels, row % d.planes
    for _ in range(req[r + PLACED], n_pages):
        if req[r + WRITES] and m[DIRTY] >= d.buffer_bytes:
            return False
        i, k = _take_record(m, op), d.all_dies + (channel * d.dies + die) * DIE_SIZE
        op[i + REQUEST], op[i + DIE], op[i + PAGE], op[i + PLANE], op[i + LEVEL] = r, k, page, plane, level
        if d.fresh:
            op[i + LEVEL] = levels[req[r + PAGES_BEFORE] + req[r + PLACED]]
        op[i + N_BYTES] = min((page + 1) * d.page_bytes, end) - max(page * d.page_bytes, req[r + ADDRESS])
        queue = W_HEAD if req[r + WRITES] else R_HEAD
        _append(i, k + queue, k + queue + 1, m, op)
        m[DIRTY] += op[i + N_BYTES] * req[r + WRITES]
        req[r + PLACED] += 1
        bus = d.buses + channel * BUS_SIZE
        if m[k + STATE] == IDLE:
            m[bus + NEXT] = min(m[bus + NEXT], max(now, m[bus + FREE]))
        channel += 1
        if channel == d.n_channels:
            channel, die = 0, die + 1
        if die == d.dies:
            die, plane = 0, plane + 1
        if plane == d.planes:
            plane, level = 0, level + 1 if level + 1 < d.levels else 0
        page += 1
    return True


@njit(cache=True, nogil=True, forceinline=True)
def _take_pages(k: int, head: int, m: Int64, op: Int64, d: Device) -> int:
    """Move the first page of a die's queue, and those that one command serves with it, to its active pages.

    One command serves equal page levels of different planes; with `merge` also repeats of its first page.
    Returns the number of planes.
    """
    first, planes, seen, last, before, i = m[k + head], 0, 0, NONE, NONE, m[k + head]
    m[k + ACTIVE], m[k + N_ACTIVE] = first, 0
    # Who reads all of a page leaves nothing of it to its neighbours.
    merge = d.merge and head == R_HEAD and op[first + N_BYTES] < d.page_bytes
    while i >= 0 and (planes < d.planes or merge):
        after, bit = op[i + FOLLOW], 1 << op[i + PLANE]
        joins = op[i + LEVEL] == op[first + LEVEL] and not seen & bit
        if joins or (merge and i != first and op[i + PAGE] == op[first + PAGE]):
            planes += joins
            seen |= bit
            if before >= 0:
                op[before + FOLLOW] = after
            else:
                m[k + head] = after
            if after < 0:
                m[k + head + 1] = before
            if last >= 0:
                op[last + FOLLOW] = i
            op[i + FOLLOW] = NONE
            last = i
            m[k + N_ACTIVE] += 1
        else:
            before = i
        i = after
    return planes


@njit(cache=True, nogil=True, forceinline=True)
def _start_die(k: int, c: int, now: int, m: Int64, op: Int64, d: Device) -> bool:
    """Send an idle die its next command over the free bus: reads first. It works when all has come over the bus."""
    if m[k + STATE] != IDLE or (m[k + R_HEAD] < 0 and m[k + W_HEAD] < 0):
        return False
    if m[k + R_HEAD] >= 0:
        planes = _take_pages(k, R_HEAD, m, op, d)
        m[PAGE_READS] += planes
        m[k + STATE], busy = READING, m[d.read_times + op[m[k + ACTIVE] + LEVEL]]
        m[c + FREE] = now + d.command + (planes - 1) * d.command_plane
    else:
        planes = _take_pages(k, W_HEAD, m, op, d)
        m[PROGRAMS] += planes
        m[k + STATE], busy = PROGRAMMING, d.program
        n_bytes, i = 0, m[k + ACTIVE]
        while i >= 0:
            n_bytes += op[i + N_BYTES]
            i = op[i + FOLLOW]
        m[c + FREE] = now + d.program_command + (planes - 1) * d.command_plane
        m[c + FREE] += int(n_bytes * d.bus_ps_per_byte)
    m[k + AT] = m[c + FREE] + busy
    m[c + DIE_ENDS] = min(m[c + DIE_ENDS], m[k + AT])
    return True


@njit(cache=True, nogil=True, forceinline=True)
def _start_any_die(c: int, dies: int, now: int, m: Int64, op: Int64, d: Device) -> bool:
    """Dies take turns with commands."""
    turn = m[c + TURN]
    for _ in range(d.dies):
        k = dies + turn * DIE_SIZE
        turn = turn + 1 if turn + 1 < d.dies else 0
        if _start_die(k, c, now, m, op, d):
            m[c + TURN] = turn
            return True
    return False


@njit(cache=True, nogil=True, forceinline=True)
def _use_bus(c: int, dies: int, now: int, m: Int64, op: Int64, d: Device) -> None:
    """A free bus moves the page that waits longest, before or after it gives the dies commands."""
    i = m[c + OUT_HEAD]
    if d.commands_first and _start_any_die(c, dies, now, m, op, d):
        return
    if i >= 0:
        m[c + OUT_HEAD] = op[i + FOLLOW]
        m[c + MOVES], m[c + FREE] = i, now + d.setup + int(op[i + N_BYTES] * d.bus_ps_per_byte)
    elif not d.commands_first:
        _start_any_die(c, dies, now, m, op, d)


@njit(cache=True, nogil=True, forceinline=True)
def _page_moved(c: int, now: int, m: Int64, op: Int64, req: Int64, d: Device) -> None:
    """A page has left its die, which is free after the last one."""
    i = m[c + MOVES]
    k, r = op[i + DIE], op[i + REQUEST]
    m[c + MOVES] = NONE
    _drop_record(i, m, op)
    m[k + N_ACTIVE] -= 1
    if m[k + N_ACTIVE] == 0:
        m[k + STATE] = IDLE
    req[r + LEFT] -= 1
    if req[r + LEFT] == 0:
        _complete(r, now, m, req, d)


@njit(cache=True, nogil=True, forceinline=True)
def _die_ends(k: int, c: int, m: Int64, op: Int64) -> None:
    """Pages that were read queue for the bus; pages that were programmed leave the buffer."""
    m[k + AT] = FAR
    i = m[k + ACTIVE]
    if m[k + STATE] == READING:
        m[k + STATE] = WAITING
        while i >= 0:
            after = op[i + FOLLOW]
            _append(i, c + OUT_HEAD, c + OUT_TAIL, m, op)
            i = after
    else:
        m[k + STATE] = IDLE
        while i >= 0:
            m[DIRTY] -= op[i + N_BYTES]
            after = op[i + FOLLOW]
            _drop_record(i, m, op)
            i = after


@njit(cache=True, nogil=True, forceinline=True)
def _write(r: int, now: int, levels: Int64, m: Int64, op: Int64, req: Int64, d: Device) -> bool:
    """A write is complete when all of it is in the buffer, else False."""
    if not _queue_pages(r, now, levels, m, op, req, d):
        return False
    _complete(r, now, m, req, d)
    return True


@njit(cache=True, nogil=True, forceinline=True)
def _first_die(dies: int, m: Int64, d: Device) -> int:
    """The die of a channel whose work ends first."""
    first = dies
    for k in range(dies, dies + d.dies * DIE_SIZE, DIE_SIZE):
        if m[k + AT] < m[first + AT]:
            first = k
    return first


@njit(cache=True, nogil=True, forceinline=True)
def _next_event(c: int, dies: int, m: Int64, d: Device) -> int:
    """When the bus can do something, or buffer becomes free."""
    free, following = int(m[c + FREE]), FAR
    if m[c + MOVES] >= 0 or m[c + OUT_HEAD] >= 0:
        following = free
        # Only the end of a program can come before.
        if m[DIRTY] == 0:
            return following
    for k in range(dies, dies + d.dies * DIE_SIZE, DIE_SIZE):
        if m[k + STATE] == IDLE:
            at = free if m[k + R_HEAD] >= 0 or m[k + W_HEAD] >= 0 else FAR
        else:
            at = m[k + AT] if m[k + STATE] == PROGRAMMING else max(m[k + AT], free)
        following = min(following, at)
    return following


@njit(cache=True, nogil=True, forceinline=True)
def _channel(number: int, now: int, m: Int64, op: Int64, req: Int64, d: Device) -> None:
    """Everything that happens on one channel at `now`, then when something happens there next."""
    c = d.buses + number * BUS_SIZE
    dies = d.all_dies + number * d.dies * DIE_SIZE
    free = m[c + FREE] <= now
    if free and m[c + MOVES] >= 0:
        _page_moved(c, now, m, op, req, d)
    while m[c + DIE_ENDS] <= now:
        _die_ends(_first_die(dies, m, d), c, m, op)
        m[c + DIE_ENDS] = m[_first_die(dies, m, d) + AT]
    if free:
        _use_bus(c, dies, now, m, op, d)
    m[c + NEXT] = _next_event(c, dies, m, d)


@njit(cache=True, nogil=True)
def run(queue_depth: int, waiting: Int64, levels: Int64, m: Int64, op: Int64, req: Int64, d: Device) -> None:
    """Serve all requests in order with `queue_depth` outstanding.

    levels : of the pages of all requests in order, on a fresh drive
    waiting : (n,) scratch for writes whose data comes or that found the buffer full, in order
    """
    n = req.shape[0]
    m, op, req, waiting, levels = borrow(m), borrow(op), borrow(req), borrow(waiting), borrow(levels)
    m[END] = n * REQ_COLS
    m[SUBMITTED] = min(queue_depth, n) * REQ_COLS
    for r in range(0, m[SUBMITTED], REQ_COLS):
        _submit(r, 0, m, req, d)
    # The next request whose doorbell is heard, and whose entry arrives; the first and last of `waiting`.
    heard = arrived = head = tail = 0
    full = False
    while m[SERVED] < n:
        # The earliest channel, then its number, in one integer: no branch to mispredict. Of two halves apart, so that
        # one comparison need not wait for the other; there is an idle bus beyond an odd number.
        first = second = FAR << CHANNEL_BITS
        for k in range(0, d.n_channels, 2):
            bus = d.buses + k * BUS_SIZE
            first = min(first, (m[bus + NEXT] << CHANNEL_BITS) + k)
            second = min(second, (m[bus + BUS_SIZE + NEXT] << CHANNEL_BITS) + k + 1)
        first = min(first, second)
        now = first >> CHANNEL_BITS
        bell = req[heard + AT_GATE] if heard < m[SUBMITTED] else FAR
        entry = req[arrived + AT_GATE] if arrived < heard else FAR
        data = req[waiting[head] + AT_GATE] if head < tail and not full else FAR
        gate = min(bell, entry, data)
        if now < gate:
            _channel(first & ((1 << CHANNEL_BITS) - 1), now, m, op, req, d)
            while full and _write(waiting[head], now, levels, m, op, req, d):
                head += 1
                full = head < tail and req[waiting[head] + AT_GATE] <= now
        elif data == gate:
            full = not _write(waiting[head], gate, levels, m, op, req, d)
            head += not full
        elif entry == gate:
            if req[arrived + WRITES]:
                _ask(arrived, gate, req[arrived + DOWN_PS], m, req, d)
                waiting[tail] = arrived
                tail += 1
            else:
                _queue_pages(arrived, gate, levels, m, op, req, d)
            arrived += REQ_COLS
        else:
            _ask(heard, gate, d.entry, m, req, d)
            heard += REQ_COLS
