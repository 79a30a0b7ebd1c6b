"""Figures over the cache length: latency, speedup, energy gain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from resv_sim.plots.style import GREY, MARKERS, canvas, colours, legend_below, length_name
from resv_sim.results import PublishedComparison, ResultRow

STAGES = ("frame", "question", "decode")


def latency(rows: Sequence[ResultRow], published: Sequence[PublishedComparison]) -> Any:
    """Latency over cache length on logarithmic axes, a panel per stage; open marks are published."""
    stages = _stages(rows)
    labels = list(dict.fromkeys(row.label for row in rows))
    colour = colours(labels)
    figure = canvas(4.6 * len(stages), 4.0)
    axes = figure.subplots(1, len(stages), squeeze=False)[0]
    for axis, stage in zip(axes, stages, strict=True):
        for label, marker in zip(labels, MARKERS * len(labels), strict=False):
            points = sorted((r.kv_len_tokens, r.latency_s) for r in rows if r.label == label and r.stage == stage)
            axis.plot(*zip(*points, strict=True), marker=marker, color=colour[label], label=label)
        marks = sorted(
            (p.kv_len_tokens, p.published)
            for p in published
            if p.column == "latency_s" and p.stage == stage and p.kv_len_tokens is not None
        )
        if marks:
            style = {"linestyle": "none", "marker": "o", "markersize": 10, "markerfacecolor": "none"}
            axis.plot(*zip(*marks, strict=True), color=GREY, label="V-Rex, published", **style)
        _log_length_axis(axis, _lengths([row for row in rows if row.stage == stage]))
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.yaxis.set_minor_formatter(_two_and_five)
        axis.set_ylabel("latency (s)")
        axis.set_title(f"{stage} stage")
        axis.grid(visible=True, which="both", axis="y", linewidth=0.4, alpha=0.5)
    _shared_legend(figure, axes)
    return figure


def bars(rows: Sequence[ResultRow], column: str, label_y: str, baseline: str | None = None) -> Any:
    """Bars of a column, grouped by cache length, one panel per stage.

    With a baseline, the column is a gain over it: its own bars, all 1, become a line.
    """
    stages = _stages(rows)
    labels = list(dict.fromkeys(row.label for row in rows))
    colour = colours(labels)
    drawn = [label for label in labels if label != baseline]
    figure = canvas(max(4.6, 1.1 * len(_lengths(rows))) * len(stages), 3.8)
    axes = figure.subplots(1, len(stages), squeeze=False)[0]
    for axis, stage in zip(axes, stages, strict=True):
        here = [row for row in rows if row.stage == stage]
        lengths = _lengths(here)
        width = 0.8 / max(1, len(drawn))
        for i, label in enumerate(drawn):
            values = {row.kv_len_tokens: getattr(row, column) for row in here if row.label == label}
            at = [n for n, length in enumerate(lengths) if values.get(length) is not None]
            x = [n + (i - (len(drawn) - 1) / 2) * width for n in at]
            heights = [values[lengths[n]] for n in at]
            patches = axis.bar(x, heights, width * 0.92, color=colour[label], label=label)
            axis.bar_label(patches, fmt="%.3g", fontsize=8, padding=1)
        if baseline is not None:
            axis.axhline(1.0, color=GREY, linewidth=1.0, linestyle="--", label=f"{baseline} = 1")
        axis.set_xticks(range(len(lengths)), [length_name(length) for length in lengths])
        axis.set_xlabel("cache length (tokens)")
        axis.set_ylabel(label_y)
        axis.set_title(f"{stage} stage")
        axis.margins(y=0.12)
    _shared_legend(figure, axes)
    return figure


def _stages(rows: Sequence[ResultRow]) -> list[str]:
    return [stage for stage in STAGES if any(row.stage == stage for row in rows)]


def _lengths(rows: Sequence[ResultRow]) -> list[int]:
    return sorted({row.kv_len_tokens for row in rows})


def _log_length_axis(axis: Any, lengths: Sequence[int]) -> None:
    axis.set_xscale("log")
    axis.set_xticks(lengths, [length_name(length) for length in lengths])
    axis.xaxis.minorticks_off()
    axis.set_xlabel("cache length (tokens)")


def _two_and_five(value: float, _: int) -> str:
    """Labels of minor ticks: 2 and 5 of each decade, so that a short axis has more than one number."""
    return f"{value:g}" if f"{value:.0e}"[0] in "25" else ""


def _shared_legend(figure: Any, axes: Sequence[Any]) -> None:
    entries: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    legend_below(figure, list(entries.values()), list(entries), columns=4)
