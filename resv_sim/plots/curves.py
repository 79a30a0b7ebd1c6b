"""Figures over the cache length: latency, speedup, energy gain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from resv_sim.plots.labels import label_ends
from resv_sim.plots.style import (
    GREY,
    WIDTH_IN,
    Look,
    canvas,
    family,
    legend_below,
    length_name,
    looks,
    platform_handles,
    sample_note,
    sampled,
)
from resv_sim.results import PublishedComparison, ResultRow

STAGES = ("frame", "question", "decode")
ROOMY = 5  # panels side by side with room for a title in one line
LEAST_GAP = 0.1  # of two ticks, in lengths of the axis
PUBLISHED = {"linestyle": "none", "marker": "o", "markersize": 10, "markerfacecolor": "none", "color": GREY}


def latency(rows: Sequence[ResultRow], published: Sequence[PublishedComparison]) -> Any:
    """Latency over cache length on logarithmic axes, a panel per stage; open circles are published."""
    stages = stages_of(rows)
    look = looks((row.platform, row.policy) for row in rows)
    figure = canvas(WIDTH_IN, (2.4 + 0.1 * len(look)) * len(stages))
    axes = figure.subplots(len(stages), 1, squeeze=False)[:, 0]
    handles = platform_handles(row.platform for row in rows)
    for axis, stage in zip(axes, stages, strict=True):
        here = [row for row in rows if row.stage == stage]
        ends = _lines(axis, here, look, "latency_s")
        marks = sorted(
            (p.kv_len_tokens, p.published)
            for p in published
            if p.column == "latency_s" and p.stage == stage and p.kv_len_tokens is not None
        )
        if marks:
            (line,) = axis.plot(*zip(*marks, strict=True), label="V-Rex, published", **PUBLISHED)
            handles.append(line)
        log_length_axis(axis, lengths_of(here))
        log_values(axis)
        axis.set_ylabel("latency (s)")
        axis.set_title(f"{stage} stage")
        axis.grid(visible=True, which="both", axis="y", linewidth=0.4, alpha=0.5)
        label_ends(axis, ends)
    legend_below(figure, handles, [str(handle.get_label()) for handle in handles])
    return figure


def over_length(rows: Sequence[ResultRow], columns: Sequence[tuple[str, str]]) -> Any:
    """Columns that do not depend on the platform over the cache length: a row per stage, a column of panels each."""
    rows = [row for row in rows if all(getattr(row, column) is not None for column, _ in columns)]
    first = {row.policy: row.platform for row in reversed(rows)}
    rows = [row for row in rows if row.platform == first[row.policy]]
    look = looks(("", row.policy) for row in rows)
    stages = stages_of(rows)
    figure = canvas(WIDTH_IN, (1.6 + 0.11 * len(look)) * len(stages))
    axes = figure.subplots(len(stages), len(columns), squeeze=False, sharex=True)
    for line, stage in zip(axes, stages, strict=True):
        here = [row for row in rows if row.stage == stage]
        for axis, (column, name) in zip(line, columns, strict=True):
            ends = _lines(axis, here, look, column, one_platform=True)
            log_length_axis(axis, lengths_of(here))
            axis.set_ylim(bottom=0)
            axis.set_title(f"{name}, {stage} stage", fontsize=10)
            axis.grid(visible=True, axis="y", linewidth=0.4, alpha=0.5)
            label_ends(axis, ends, gap=0.07)
    for axis in axes[:-1].ravel():
        axis.set_xlabel("")
    return figure


def bars(rows: Sequence[ResultRow], column: str, label_x: str, baseline: str | None = None) -> Any:
    """Bars of a column, a row of panels per stage and a panel per cache length.

    With a baseline, the column is a gain over it: its own bars, all 1, become a line. Hatched: not the first platform.
    """
    stages = stages_of(rows)
    look = looks((row.platform, row.policy) for row in rows)
    drawn = [run for run in look if "+".join(run) != baseline]
    every = {stage: lengths_of([row for row in rows if row.stage == stage]) for stage in stages}
    lengths = {stage: sampled(found) for stage, found in every.items()}
    n_columns = max(len(found) for found in lengths.values())
    wide = n_columns <= ROOMY
    separator = ", " if wide else "\n"
    figure = canvas(WIDTH_IN, (0.2 * len(drawn) + (0.8 if wide else 1.0)) * len(stages))
    axes = figure.subplots(len(stages), n_columns, squeeze=False, sharex="row", sharey=True)
    for line, stage in zip(axes, stages, strict=True):
        for axis in line[len(lengths[stage]) :]:
            axis.set_visible(False)
        for axis, length in zip(line, lengths[stage], strict=False):
            here = {(r.platform, r.policy): getattr(r, column) for r in rows if _at(r, stage, length)}
            values = [here.get(run) or 0.0 for run in drawn]
            hatches = ["" if look[run].filled else "////" for run in drawn]
            style = {"color": [look[run].colour for run in drawn], "edgecolor": "white", "linewidth": 0.0}
            patches = axis.barh(range(len(drawn)), values, 0.8, hatch=hatches, **style)
            axis.bar_label(patches, [f"{v:.3g}" if v else "" for v in values], fontsize=7, padding=2)
            if baseline is not None:
                axis.axvline(1.0, color=GREY, linewidth=1.0, linestyle="--")
            axis.set_title(separator.join((stage, length_name(length))), fontsize=9 if wide else 7.5)
            axis.tick_params(labelsize=7)
            if not wide:
                axis.locator_params(axis="x", nbins=2)
        line[0].set_yticks(range(len(drawn)), ["+".join(run) for run in drawn], fontsize=7)
        line[0].set_xlim(0, 1.45 * max(axis.dataLim.x1 for axis in line))
    axes[0][0].set_ylim(len(drawn) - 0.4, -0.6)
    note = f"; dashed: {baseline} = 1" if baseline is not None else ""
    note += sample_note(n_columns, max(map(len, every.values())))
    figure.supxlabel(f"{label_x}{note}", fontsize=9)
    return figure


def leading(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Rows without those of further budgets of a policy."""
    policies = {row.policy for row in rows}
    return [row for row in rows if family(row.policy, policies) == row.policy]


def stages_of(rows: Sequence[ResultRow]) -> list[str]:
    return [stage for stage in STAGES if any(row.stage == stage for row in rows)]


def lengths_of(rows: Sequence[ResultRow]) -> list[int]:
    return sorted({row.kv_len_tokens for row in rows})


def log_length_axis(axis: Any, lengths: Sequence[int]) -> None:
    axis.set_xscale("log")
    lengths = _apart_enough(lengths)
    axis.set_xticks(lengths, [length_name(length) for length in lengths])
    axis.xaxis.minorticks_off()
    axis.set_xlabel("cache length (tokens)")


def _apart_enough(lengths: Sequence[int]) -> list[int]:
    """Ticks of a logarithmic axis that do not run into each other: the last, and before it what is far enough off."""
    positive = [length for length in lengths if length > 0]
    if len(positive) < 2:
        return list(lengths)
    gap = LEAST_GAP * math.log(positive[-1] / positive[0])
    kept = positive[-1:]
    for length in reversed(positive):
        if math.log(kept[-1] / length) >= gap:
            kept.append(length)
    return kept[::-1]


def log_values(axis: Any) -> None:
    """A logarithmic vertical axis with plain numbers."""
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_formatter(two_and_five)


def two_and_five(value: float, _: int) -> str:
    """Labels of minor ticks: 2 and 5 of each decade, so that a short axis has more than one number."""
    return f"{value:g}" if f"{value:.0e}"[0] in "25" else ""


def _at(row: ResultRow, stage: str, length: int) -> bool:
    return row.stage == stage and row.kv_len_tokens == length


def _lines(
    axis: Any,
    rows: Sequence[ResultRow],
    look: Mapping[tuple[str, str], Look],
    column: str,
    *,
    one_platform: bool = False,
) -> list[tuple[float, str, str]]:
    """A line per run; returns where each ends, its name and colour."""
    ends = []
    for (platform, policy), how in look.items():
        mine = [row for row in rows if row.policy == policy and (one_platform or row.platform == platform)]
        points = sorted((row.kv_len_tokens, getattr(row, column)) for row in mine)
        points = [point for point in points if point[0] > 0] or points  # zero has no place on a logarithmic axis
        if points:
            axis.plot(*zip(*points, strict=True), markersize=4, linewidth=1.3, **how.style)
            ends.append((points[-1][1], how.name, how.colour))
    return ends
