"""Timelines as Chrome trace events, which Perfetto and chrome://tracing open. Times in microseconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dre_sim.timeline import Span, Timeline

Event = dict[str, object]
PS_PER_US = 1_000_000


def trace_events(timelines: Mapping[str, Timeline]) -> dict[str, object]:
    """One process per timeline, one track per resource.

    Spans that overlap on a resource are put on further tracks of it.
    """
    events: list[Event] = []
    for process, (label, timeline) in enumerate(timelines.items(), start=1):
        events.append(_named("process_name", process, 0, label))
        track = 0
        for resource in timeline.resources():
            for number, lane in enumerate(lanes(timeline.on(resource)), start=1):
                track += 1
                name = resource if number == 1 else f"{resource} ({number})"
                events.append(_named("thread_name", process, track, name))
                sort = {"name": "thread_sort_index", "ph": "M", "pid": process, "tid": track}
                events.append({**sort, "args": {"sort_index": track}})
                events.extend(_span(span, process, track) for span in lane)
    return {"displayTimeUnit": "ms", "traceEvents": events}


def lanes(spans: Iterable[Span]) -> list[list[Span]]:
    """Spans dealt to as few lanes as needed for none to overlap another; in order of start."""
    result: list[list[Span]] = []
    for span in sorted(spans, key=lambda s: (s.start_ps, s.end_ps)):
        for lane in result:
            if lane[-1].end_ps <= span.start_ps:
                lane.append(span)
                break
        else:
            result.append([span])
    return result


def _named(kind: str, process: int, track: int, name: str) -> Event:
    return {"name": kind, "ph": "M", "pid": process, "tid": track, "args": {"name": name}}


def _span(span: Span, process: int, track: int) -> Event:
    return {
        "name": span.what,
        "cat": span.resource,
        "ph": "X",
        "ts": span.start_ps / PS_PER_US,
        "dur": span.duration_ps / PS_PER_US,
        "pid": process,
        "tid": track,
        "args": {"layer": span.layer, "bytes": span.n_bytes, "share": span.share},
    }
