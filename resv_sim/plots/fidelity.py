"""Figures of what policies keep of full attention against what that costs: bytes over the link, latency, energy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from resv_sim.plots.curves import leading, over_length, two_and_five
from resv_sim.plots.labels import label_points
from resv_sim.plots.style import (
    WIDTH_IN,
    canvas,
    family,
    legend_below,
    length_name,
    looks,
    platform_handles,
)
from resv_sim.results import ResultRow

# Column, what its axis says, and what one unit of the axis is in the column's.
COSTS = (
    ("link_bytes", "link traffic of a step (MB)", 1e6),
    ("latency_s", "latency of a step (ms)", 1e-3),
    ("energy_j", "energy of a step (J)", 1.0),
)
MEASURES = (("attention_mass_kept", "attention mass kept"), ("output_rel_error", "output error"))
FEW = 3  # policies that need no picture of their own


def compared(rows: Sequence[ResultRow]) -> list[str]:
    """Stages in which more than a few policies were compared with full attention."""
    measured = {(row.stage, row.policy) for row in rows if row.attention_mass_kept is not None}
    stages = dict.fromkeys(row.stage for row in rows)
    return [stage for stage in stages if sum(known == stage for known, _ in measured) > FEW]


def kept_over_length(rows: Sequence[ResultRow]) -> Any:
    """What every policy keeps over the cache length, at its first budget."""
    rows = _measured(rows)
    return over_length(leading(rows), _measures(rows))


def _measured(rows: Sequence[ResultRow]) -> list[ResultRow]:
    return [row for row in rows if row.attention_mass_kept is not None]


def _measures(rows: Sequence[ResultRow]) -> list[tuple[str, str]]:
    """Those that all rows have: a trace without values has no output error."""
    return [(name, title) for name, title in MEASURES if all(getattr(row, name) is not None for row in rows)]


def fidelity(rows: Sequence[ResultRow], stage: str) -> Any:
    """A point per run at the longest cache; the budgets of a policy are joined by a line."""
    rows = _measured([row for row in rows if row.stage == stage])
    longest = max(row.kv_len_tokens for row in rows)
    rows = [row for row in rows if row.kv_len_tokens == longest]
    measures = _measures(rows)
    figure = canvas(WIDTH_IN, 3.5 * len(COSTS) + 0.6)
    axes = figure.subplots(len(COSTS), len(measures), sharex="row", sharey="col", squeeze=False)
    for line, (cost, _, unit) in zip(axes, COSTS, strict=True):
        for axis, (measure, _) in zip(line, measures, strict=True):
            _points(axis, rows, cost, unit, measure)
            axis.grid(visible=True, linewidth=0.4, alpha=0.5)
    _name_axes(axes, measures)
    figure.suptitle(f"{stage} stage, {length_name(longest)} cached tokens", fontsize=11)
    handles = platform_handles(row.platform for row in rows)
    legend_below(figure, handles, [str(handle.get_label()) for handle in handles])
    figure.draw_without_rendering()
    for line, (cost, _, unit) in zip(axes, COSTS, strict=True):
        for axis, (measure, _) in zip(line, measures, strict=True):
            _label(axis, rows, cost, unit, measure)
    return figure


def _points(axis: Any, rows: Sequence[ResultRow], cost: str, unit: float, measure: str) -> None:
    policies = {row.policy for row in rows}
    look = looks((row.platform, row.policy) for row in rows)
    for platform, name in dict.fromkeys((row.platform, family(row.policy, policies)) for row in rows):
        mine = [row for row in rows if row.platform == platform and family(row.policy, policies) == name]
        points = sorted((getattr(row, cost) / unit, getattr(row, measure)) for row in mine)
        style = {"markersize": 6, "linewidth": 1.0, "clip_on": False}
        axis.plot(*zip(*points, strict=True), **look[platform, mine[0].policy].style, **style)


def _label(axis: Any, rows: Sequence[ResultRow], cost: str, unit: float, measure: str) -> None:
    """Every policy once, on the first of its platforms: colour and mark tell the others."""
    look = looks((row.platform, row.policy) for row in rows)
    first = {row.policy: row for row in reversed(leading(rows))}
    named = [
        (getattr(row, cost) / unit, getattr(row, measure), row.policy, look[row.platform, row.policy].colour)
        for row in reversed(first.values())
    ]
    label_points(axis, [(getattr(row, cost) / unit, getattr(row, measure)) for row in rows], named)


def _name_axes(axes: Any, measures: Sequence[tuple[str, str]]) -> None:
    for axis, (_, name) in zip(axes[0], measures, strict=True):
        axis.set_title(name, fontsize=10)
        low, high = axis.dataLim.y0, axis.dataLim.y1
        axis.set_ylim(min(0.0, low) - 0.03, high + 0.08 * (high - low) + 1e-3)
    for line, (_, name, _) in zip(axes, COSTS, strict=True):
        for axis in line:
            axis.set_xlabel(name)
            if axis.dataLim.x0 <= 0:  # some move nothing
                axis.set_xscale("symlog", linthresh=1.0)
                axis.set_xlim(left=-0.3)
            else:
                axis.set_xscale("log")
                axis.xaxis.set_minor_formatter(two_and_five)
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.margins(x=0.12)
