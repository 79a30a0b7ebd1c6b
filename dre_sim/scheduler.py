"""A task graph on exclusive resources that share the bandwidth of one device memory.

A task holds its own resource (LXE, HCU, link, ...) exclusively and, while it runs, streams over the
shared memory. Ready tasks are started in program order; memory bandwidth is divided max-min fairly
among the running tasks, so a slow fetch is not starved by a weight stream and takes no more than it
can use. Times are integer picoseconds: every event falls on one, rounded up.

Knows nothing of layers, models or bytes per second; memory demand comes as `dram_ps`, the time the
task's traffic would take with the memory to itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dre_sim.timeline import Span

DRAM = "dram"


@dataclass(frozen=True)
class Task:
    """`duration_ps` is the time on `resource` at full speed; `dram_ps` the memory occupancy it streams."""

    resource: str
    what: str
    layer: int
    duration_ps: int
    after: tuple[int, ...]
    dram_ps: int
    n_bytes: int
    dram_bytes: int


@dataclass
class _Running:
    task: int
    start_ps: int
    nominal_ps: int
    demand: float
    done: float = 0.0
    segment_start_ps: int = 0
    segment_share: float = 0.0
    segment_done: float = 0.0


class TaskGraph:
    """Tasks in program order; dependencies point backwards, so a graph cannot deadlock."""

    def __init__(self) -> None:
        self._tasks: list[Task] = []

    def add(
        self,
        resource: str,
        what: str,
        layer: int = -1,
        duration_ps: int = 0,
        after: Sequence[int] = (),
        *,
        dram_ps: int = 0,
        n_bytes: int = 0,
        dram_bytes: int = 0,
    ) -> int:
        """Append a task and return its index. Raises ValueError on negative work or a forward dependency."""
        index = len(self._tasks)
        if min(duration_ps, dram_ps, n_bytes, dram_bytes) < 0:
            raise ValueError(f"task {index} ({what}, layer {layer}): negative work")
        if any(not 0 <= a < index for a in after):
            raise ValueError(f"task {index} ({what}): depends on {list(after)}, allowed are 0..{index - 1}")
        if resource == DRAM:
            raise ValueError("the memory is shared, not held: give dram_ps to a task on another resource")
        self._tasks.append(
            Task(resource, what, layer, int(duration_ps), tuple(after), int(dram_ps), n_bytes, dram_bytes)
        )
        return index

    def __len__(self) -> int:
        return len(self._tasks)

    def run(self) -> tuple[tuple[Span, ...], int]:
        """Schedule all tasks; returns spans ordered by start, and the end of the last one in ps."""
        return _Run(self._tasks).spans()


class _Run:
    """One pass of the event loop over a fixed task list."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tasks
        self.waiting_for = [len(set(t.after)) for t in tasks]
        self.successors: list[list[int]] = [[] for _ in tasks]
        for i, task in enumerate(tasks):
            for before in set(task.after):
                self.successors[before].append(i)
        self.ready: dict[str, list[int]] = {}
        self.running: dict[str, _Running] = {}
        self.now_ps = 0
        self.out: list[Span] = []

    def spans(self) -> tuple[tuple[Span, ...], int]:
        """Run all tasks; what they and their memory traffic took, and the end of the last in ps."""
        for i, n in enumerate(self.waiting_for):
            if n == 0:
                self._make_ready(i)
        self._start()
        while self.running:
            self._advance()
            self._start()
        self.out.sort(key=lambda s: (s.start_ps, s.resource, s.end_ps))
        return tuple(self.out), self.now_ps

    def _make_ready(self, index: int) -> None:
        queue = self.ready.setdefault(self.tasks[index].resource, [])
        queue.append(index)
        queue.sort()

    def _start(self) -> None:
        """Give every idle resource its first ready task; tasks without work end at once."""
        progress = True
        while progress:
            progress = False
            for resource, queue in self.ready.items():
                if not queue or resource in self.running:
                    continue
                index = queue.pop(0)
                task = self.tasks[index]
                nominal = max(task.duration_ps, task.dram_ps)
                if nominal == 0:
                    self._finish(index)
                else:
                    self.running[resource] = _Running(
                        index, self.now_ps, nominal, task.dram_ps / nominal, segment_start_ps=self.now_ps
                    )
                progress = True
                break  # `ready` may have grown: look again from the start

    def _advance(self) -> None:
        """Run until the next task ends."""
        active = list(self.running.values())
        shares = max_min_shares([r.demand for r in active])
        speeds = [s / r.demand if r.demand > 0 else 1.0 for s, r in zip(shares, active, strict=True)]
        step_ps = min(
            max(1, math.ceil((1.0 - r.done) * r.nominal_ps / v - 1e-6)) for r, v in zip(active, speeds, strict=True)
        )
        for r, share in zip(active, shares, strict=True):
            if share != r.segment_share:
                self._close_segment(r)
                r.segment_share = share
        self.now_ps += step_ps
        for r, v in zip(active, speeds, strict=True):
            r.done += v * step_ps / r.nominal_ps
            # Half a picosecond of work is below the clock of the simulation.
            if (1.0 - r.done) * r.nominal_ps <= 0.5:
                r.done = 1.0
                self._end(r)

    def _close_segment(self, r: _Running) -> None:
        task = self.tasks[r.task]
        if r.segment_share > 0 and self.now_ps > r.segment_start_ps:
            n_bytes = round(task.dram_bytes * r.done) - round(task.dram_bytes * r.segment_done)
            self.out.append(
                Span(DRAM, r.segment_start_ps, self.now_ps, task.what, task.layer, n_bytes, r.segment_share)
            )
        r.segment_start_ps = self.now_ps
        r.segment_done = r.done

    def _end(self, r: _Running) -> None:
        task = self.tasks[r.task]
        self._close_segment(r)
        self.out.append(Span(task.resource, r.start_ps, self.now_ps, task.what, task.layer, task.n_bytes))
        del self.running[task.resource]
        self._finish(r.task)

    def _finish(self, index: int) -> None:
        for after in self.successors[index]:
            self.waiting_for[after] -= 1
            if self.waiting_for[after] == 0:
                self._make_ready(after)


def max_min_shares(demands: Sequence[float]) -> list[float]:
    """Divide a capacity of 1.0 max-min fairly: nobody gets more than it asks, the rest is split evenly."""
    shares = [0.0] * len(demands)
    left, open_ = 1.0, sorted(range(len(demands)), key=lambda i: demands[i])
    while open_:
        fair = left / len(open_)
        i = open_.pop(0)
        shares[i] = min(demands[i], fair)
        left -= shares[i]
    return shares
