"""Where the time of a step goes: every picosecond of a timeline attributed to exactly one cause."""

from __future__ import annotations

from itertools import pairwise

from dre_sim.scheduler import DRAM
from dre_sim.timeline import Timeline, covered_ps

COMPUTE = ("lxe", "gpu")
IDLE = "idle"


def exposed_ps(timeline: Timeline) -> dict[str, int]:
    """Time by cause; the values add up to the timeline's length.

    While the compute engine works, time belongs to what it does; otherwise to the unit it waits for
    (threshold, link, ...: the one that started first); otherwise it is idle. Fetch time found here is what overlap did
    not hide.
    """
    end_of_step = timeline.end_ps
    spans = [s for s in timeline.spans if s.resource != DRAM]
    rank = {id(s): (s.resource not in COMPUTE, s.start_ps) for s in spans}
    starts = sorted(spans, key=lambda s: s.start_ps)
    edges = sorted({0, end_of_step} | {min(t, end_of_step) for s in spans for t in (s.start_ps, s.end_ps)})
    out: dict[str, int] = {}
    open_: list[int] = []
    next_start = 0
    for begin, end in pairwise(edges):
        while next_start < len(starts) and starts[next_start].start_ps <= begin:
            open_.append(next_start)
            next_start += 1
        open_ = [i for i in open_ if starts[i].end_ps > begin]
        cause = min((starts[i] for i in open_), key=lambda s: rank[id(s)]).what if open_ else IDLE
        out[cause] = out.get(cause, 0) + end - begin
    return out


def prediction_ps(timeline: Timeline) -> int:
    """Time in which some unit works on a prediction, hidden or not."""
    return covered_ps((s.start_ps, s.end_ps) for s in timeline.spans if s.what == "prediction" and s.resource != DRAM)
