"""Figures of what policies keep of full attention against what that costs: bytes over the link, latency, energy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from resv_sim.plots.style import MARKERS, PALETTE, canvas, legend_below, length_name
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


def fidelity(rows: Sequence[ResultRow], stage: str) -> Any:
    """A point per run at the longest cache: a colour and mark per policy, filled for the first platform."""
    rows = [row for row in rows if row.stage == stage and row.attention_mass_kept is not None]
    longest = max(row.kv_len_tokens for row in rows)
    rows = [row for row in rows if row.kv_len_tokens == longest]
    platforms = list(dict.fromkeys(row.platform for row in rows))
    looks = _looks(list(dict.fromkeys(row.policy for row in rows)))
    figure = canvas(4.0 * len(COSTS), 3.2 * len(MEASURES))
    axes = figure.subplots(len(MEASURES), len(COSTS), sharex="col", sharey="row", squeeze=False)
    for line, (measure, _) in zip(axes, MEASURES, strict=True):
        for axis, (cost, _, unit) in zip(line, COSTS, strict=True):
            for row in rows:
                colour, marker = looks[row.policy]
                axis.plot(
                    getattr(row, cost) / unit,
                    getattr(row, measure),
                    marker,
                    color=colour,
                    markersize=8,
                    markerfacecolor=colour if row.platform == platforms[0] else "none",
                    label=row.label,
                    clip_on=False,
                )
            axis.grid(visible=True, linewidth=0.4, alpha=0.5)
    _name_axes(axes)
    figure.suptitle(f"{stage} stage, {length_name(longest)} cached tokens", fontsize=11)
    handles, labels = axes[0][0].get_legend_handles_labels()
    legend_below(figure, handles, labels, columns=4)
    return figure


def _looks(policies: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and mark per policy; no two alike among 56, since the lengths of the lists share no factor."""
    marks = MARKERS[:-1]
    return {p: (PALETTE[i % len(PALETTE)], marks[i % len(marks)]) for i, p in enumerate(policies)}


def _name_axes(axes: Any) -> None:
    for line, (_, name) in zip(axes, MEASURES, strict=True):
        line[0].set_ylabel(name)
        line[0].set_ylim(bottom=0)
    for axis, (column, name, _) in zip(axes[-1], COSTS, strict=True):
        if column == "link_bytes":  # some move nothing
            axis.set_xscale("symlog", linthresh=1.0)
            axis.set_xlim(left=-0.3)
        else:
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else "")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_xlabel(name)
