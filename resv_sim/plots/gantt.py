"""A few layers of one step as a Gantt chart: one row per resource, one colour per kind of work.

Spans that share a resource at the same time share its row.
"""

from __future__ import annotations

from typing import Any

from dre_sim.breakdown import COMPUTE
from dre_sim.timeline import Span, Timeline
from resv_sim.chrome_trace import lanes
from resv_sim.plots.style import canvas, kind_colours, legend_below

PS_PER_MS = 1_000_000_000
ORDER = ("gpu", "host", "lxe", "hcu", "wtu", "kvmu", "dram", "link", "ssd", "host_dram", "link_up")


def gantt(timeline: Timeline, label: str, n_layers: int) -> Any:
    """`n_layers` layers from the middle of the step, with everything else that runs meanwhile."""
    start, end, layers = window(timeline, n_layers)
    shown = [s for s in timeline.spans if s.end_ps > start and s.start_ps < end and s.duration_ps]
    resources = sorted(dict.fromkeys(s.resource for s in shown), key=_place)
    colour = kind_colours(s.what for s in shown)
    figure = canvas(9.5, 0.42 * len(resources) + 1.6)
    axis = figure.subplots()
    handles: dict[str, Any] = {}
    for row, resource in enumerate(resources):
        dealt = lanes(span for span in shown if span.resource == resource)
        height = 0.8 / len(dealt)
        for number, lane in enumerate(dealt):
            y = row - 0.4 + (number + 0.5) * height
            for span in lane:
                left, right = max(span.start_ps, start), min(span.end_ps, end)
                edge = "white" if (right - left) > 0.005 * (end - start) else colour[span.what]
                style = {"color": colour[span.what], "edgecolor": edge, "linewidth": 0.4}
                handles[span.what] = axis.barh(y, _ms(right - left), height, left=_ms(left - start), **style)
    axis.set_yticks(range(len(resources)), resources)
    axis.invert_yaxis()
    axis.set_xlim(0, _ms(end - start))
    axis.set_xlabel("time (ms)")
    axis.set_title(f"{label}: layers {layers[0]} to {layers[-1]}")
    legend_below(figure, [handles[kind] for kind in colour], list(colour), columns=6)
    return figure


def window(timeline: Timeline, n_layers: int) -> tuple[int, int, list[int]]:
    """Start, end and layers of the picture: where the middle layers compute, else the whole step."""
    compute = _compute_spans(timeline)
    layers = sorted({span.layer for span in compute})
    first = max(0, (len(layers) - n_layers) // 2)
    chosen = layers[first : first + n_layers]
    inside = [span for span in compute if span.layer in chosen]
    return min(s.start_ps for s in inside), max(s.end_ps for s in inside), chosen


def _compute_spans(timeline: Timeline) -> list[Span]:
    """The layers' own work on the compute engine; where there is none, whatever there is."""
    layers = [span for span in timeline.spans if span.layer >= 0]
    own = [span for span in layers if span.what in ("linear", "attention") and span.resource in COMPUTE]
    return own or layers or list(timeline.spans)


def _place(resource: str) -> tuple[int, str]:
    """Compute on top, then prediction, memory, link and tier."""
    return (ORDER.index(resource) if resource in ORDER else len(ORDER), resource)


def _ms(time_ps: int) -> float:
    return time_ps / PS_PER_MS
