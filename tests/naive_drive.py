"""Slow, evident twin of the SSD kernel: dies, buses and a link as Python objects, the earliest event first."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np

from dre_sim.link import LinkConfig
from dre_sim.ssd import SsdConfig


@dataclass
class Page:
    request: int
    page: int
    plane: int
    level: int
    n_bytes: int


@dataclass
class NaiveDie:
    reads: list[Page] = field(default_factory=list)
    writes: list[Page] = field(default_factory=list)
    active: list[Page] = field(default_factory=list)
    state: str = "idle"
    at: int | None = None


@dataclass
class NaiveBus:
    dies: list[NaiveDie]
    turn: int = 0
    waiting: deque[tuple[NaiveDie, Page]] = field(default_factory=deque)
    doing: tuple[str, NaiveDie, Page | None] | None = None
    until: int | None = None
    poked: int | None = None

    def next_event(self) -> int | None:
        times = [self.until, self.poked, *(d.at for d in self.dies)]
        return min((t for t in times if t is not None), default=None)


class NaiveDrive:
    """A drive served request by request, page by page; the earliest event first, a command's before a bus's.

    A command's doorbell is heard, its entry is read, and the data of a write: three gates, each passed in order.
    """

    def __init__(
        self,
        c: SsdConfig,
        link: LinkConfig,
        address: list[int],
        size: list[int],
        write: list[bool],
        *,
        fresh: bool = False,
    ) -> None:
        self.c, self.link, self.address, self.size, self.write = c, link, address, size, write
        self.buses = [NaiveBus([NaiveDie() for _ in range(c.dies_per_channel)]) for _ in range(c.n_channels)]
        n = len(address)
        self.at_gate, self.submit, self.done, self.left, self.placed = ([0] * n for _ in range(5))
        self.up_free = self.down_free = self.submitted = self.served = self.dirty = self.page_reads = 0
        self.bells: deque[int] = deque()
        self.entries: deque[int] = deque()
        self.data: deque[int] = deque()
        self.full = False
        self.levels = self._first_touches() if fresh else None

    def wire_ps(self, n_bytes: int, command_bytes: int) -> int:
        packets = -(-n_bytes // self.link.tlp_payload_bytes)
        raw = n_bytes + packets * self.link.tlp_overhead_bytes + command_bytes
        return int(np.ceil(raw * (1e3 / (self.link.raw_gb_per_s * self.link.efficiency))))

    def _pages(self, r: int) -> range:
        return range(
            self.address[r] // self.c.page_bytes, (self.address[r] + self.size[r] - 1) // self.c.page_bytes + 1
        )

    def _first_touches(self) -> list[list[int]]:
        """Levels of each request's pages on a drive that holds nothing: every plane hands out its own one by one."""
        c, places, given, levels = self.c, {}, Counter[int](), []
        for r in range(len(self.address)):
            for page in self._pages(r):
                plane = page % (c.n_channels * c.dies_per_channel * c.planes_per_die)
                if self.write[r] or page not in places:
                    places[page] = given[plane] % c.pages_per_block
                    given[plane] += 1
            levels.append([places[page] for page in self._pages(r)])
        return levels

    def _submit(self, r: int, at: int) -> None:
        self.submit[r] = at
        self.down_free = max(self.down_free, at) + self.wire_ps(0, self.c.doorbell_bytes)
        self.at_gate[r] = self.down_free
        self.bells.append(r)
        self.submitted += 1

    def _ask(self, r: int, now: int, answer_ps: int) -> None:
        self.up_free = max(self.up_free, now) + self.wire_ps(0, self.c.read_request_bytes)
        self.down_free = max(self.down_free, self.up_free) + answer_ps
        self.at_gate[r] = self.down_free

    def _complete(self, r: int, now: int) -> None:
        self.up_free = max(self.up_free, now) + self.link.transfer_ps
        self.up_free += self.wire_ps(0 if self.write[r] else self.size[r], self.c.completion_bytes)
        self.done[r] = self.up_free + self.c.t_overhead_ps
        self.served += 1
        if self.submitted < len(self.address):
            self._submit(self.submitted, self.done[r])

    def _queue(self, r: int, now: int) -> bool:
        c = self.c
        pages, end = self._pages(r), self.address[r] + self.size[r]
        self.left[r] = len(pages)
        for page in pages[self.placed[r] :]:
            if self.write[r] and self.dirty >= c.buffer_bytes:
                return False
            stripe, channel = divmod(page, c.n_channels)
            stripe, die = divmod(stripe, c.dies_per_channel)
            level, plane = divmod(stripe, c.planes_per_die)
            level = level % c.pages_per_block if self.levels is None else self.levels[r][self.placed[r]]
            n_bytes = min((page + 1) * c.page_bytes, end) - max(page * c.page_bytes, self.address[r])
            entry = Page(r, page, plane, level, n_bytes)
            bus = self.buses[channel]
            (bus.dies[die].writes if self.write[r] else bus.dies[die].reads).append(entry)
            self.dirty += n_bytes if self.write[r] else 0
            self.placed[r] += 1
            if bus.doing is None:
                bus.poked = now
        if self.write[r]:
            self._complete(r, now)
        return True

    def _pass_gate(self, kind: str, now: int) -> None:
        if kind == "bell":
            r = self.bells.popleft()
            self._ask(r, now, self.wire_ps(0, self.c.entry_bytes))
            self.entries.append(r)
        elif kind == "entry":
            r = self.entries.popleft()
            if self.write[r]:
                self._ask(r, now, self.wire_ps(self.size[r], 0))
                self.data.append(r)
            else:
                self._queue(r, now)
        else:
            self.full = not self._queue(self.data[0], now)
            if not self.full:
                self.data.popleft()

    def run(self, queue_depth: int) -> None:
        for r in range(min(queue_depth, len(self.address))):
            self._submit(r, 0)
        while self.served < len(self.address):
            queues = {"data": deque[int]() if self.full else self.data, "entry": self.entries, "bell": self.bells}
            gates = [
                (self.at_gate[queue[0]], order, kind) for order, (kind, queue) in enumerate(queues.items()) if queue
            ]
            events = [(t, k) for k, b in enumerate(self.buses) if (t := b.next_event()) is not None]
            if gates and (not events or min(gates)[0] <= min(events)[0]):
                now, _, kind = min(gates)
                self._pass_gate(kind, now)
            else:
                now, k = min(events)
                self._channel(self.buses[k], now)
                while self.full and self._queue(self.data[0], now):
                    self.data.popleft()
                    self.full = bool(self.data) and self.at_gate[self.data[0]] <= now

    def _channel(self, bus: NaiveBus, now: int) -> None:
        bus.poked = None
        if bus.until is not None and bus.until <= now:
            self._bus_ends(bus, now)
        for die in bus.dies:
            if die.at is not None and die.at <= now:
                die.at = None
                if die.state == "reading":
                    die.state = "waiting"
                    bus.waiting.extend((die, page) for page in die.active)
                else:
                    die.state = "idle"
                    self.dirty -= sum(page.n_bytes for page in die.active)
                    die.active = []
        if bus.doing is None:
            self._use_bus(bus, now)

    def _bus_ends(self, bus: NaiveBus, now: int) -> None:
        assert bus.doing is not None
        what, die, page = bus.doing
        bus.doing = bus.until = None
        if what == "command":
            levels = self.c.t_read_ps
            die.at = now + levels[die.active[0].level % len(levels)]
        elif what == "data_in":
            die.at = now + self.c.t_program_ps
        else:
            assert page is not None
            die.active.remove(page)
            if not die.active:
                die.state = "idle"
            self.left[page.request] -= 1
            if self.left[page.request] == 0:
                self._complete(page.request, now)

    def _use_bus(self, bus: NaiveBus, now: int) -> None:
        if self.c.commands_first and self._command(bus, now):
            return
        if bus.waiting:
            die, page = bus.waiting.popleft()
            bus.doing = "data_out", die, page
            bus.until = now + self.c.t_data_setup_ps + int(page.n_bytes * (1e3 / self.c.channel_gb_per_s))
        elif not self.c.commands_first:
            self._command(bus, now)

    def _command(self, bus: NaiveBus, now: int) -> bool:
        c = self.c
        for _ in bus.dies:
            die = bus.dies[bus.turn]
            bus.turn = (bus.turn + 1) % len(bus.dies)
            if die.state != "idle" or not (die.reads or die.writes):
                continue
            queue = die.reads or die.writes
            reading = queue is die.reads
            die.active = self._together(queue, reading)
            planes = len({page.plane for page in die.active})
            for page in die.active:
                queue.remove(page)
            more = (planes - 1) * c.t_command_plane_ps
            if reading:
                self.page_reads += planes
                die.state, bus.doing, bus.until = "reading", ("command", die, None), now + c.t_command_ps + more
            else:
                data = int(sum(page.n_bytes for page in die.active) * (1e3 / c.channel_gb_per_s))
                die.state, bus.doing = "programming", ("data_in", die, None)
                bus.until = now + c.t_program_command_ps + more + data
            return True
        return False

    def _together(self, queue: list[Page], reading: bool) -> list[Page]:
        """Pages that one command serves: the first, equal levels of other planes, repeats of the first."""
        first, taken, planes = queue[0], [], set()
        for page in queue:
            repeats = self.c.merge_same_page and reading and first.n_bytes < self.c.page_bytes
            if page.level == first.level and page.plane not in planes:
                planes.add(page.plane)
                taken.append(page)
            elif repeats and page is not first and page.page == first.page:
                taken.append(page)
        return taken
