"""Figures of a benchmark: accuracy against what is kept and what it costs, by length, and effects of single fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from resv_sim.accuracy.benchmark import Benchmark, BenchmarkResult, StudyPoint
from resv_sim.accuracy.report import priced_row
from resv_sim.accuracy.table import BLIND, AccuracyRow
from resv_sim.plots.curves import two_and_five
from resv_sim.plots.labels import label_ends
from resv_sim.plots.style import (
    GREY,
    MARKERS,
    PALETTE,
    RC,
    WIDTH_IN,
    FigureFile,
    canvas,
    colours,
    family,
    legend_below,
    save,
)

Drawing = tuple[FigureFile, Callable[[], Any]]
Cost = Callable[[AccuracyRow], float | None]
_DPI = 130


def draw_benchmark(result: BenchmarkResult, benchmark: Benchmark, folder: Path) -> list[FigureFile]:
    """Draw all that was measured into `folder`, as PNG and SVG."""
    import matplotlib

    drawings = list(_drawings(result, benchmark))
    with matplotlib.rc_context(RC):
        for file, draw in drawings:
            save(draw(), folder, file.name, _DPI)
    return [file for file, _ in drawings]


def _drawings(result: BenchmarkResult, benchmark: Benchmark) -> Iterator[Drawing]:
    first = benchmark.config.stages[0]
    rows = [row for row in result.rows if row.stages == first]
    yield (
        FigureFile("accuracy_kept", "Accuracy against tokens kept", "A point per policy; bars are 95 % intervals."),
        partial(against_kept, rows),
    )
    if result.priced:
        caption = "A point per policy and platform: mean frame step of the same run."
        yield (
            FigureFile("accuracy_energy", "Accuracy against energy per frame", caption),
            partial(against_energy, result, rows),
        )
    if len({row.n_frames for row in rows}) > 1:
        caption = "The grey line is the level of chance."
        yield FigureFile("accuracy_length", "Accuracy over stream length", caption), partial(over_length, rows)
    for name, study in benchmark.config.studies.items():
        points = [point for point in result.studies if point.study == name]
        if points and len(study.axes) == 2:
            caption = f"Two fields of {study.policy}; tokens kept in frame steps and questions."
            yield FigureFile(f"study_{name}", f"{study.policy}: {name}", caption), partial(heat_map, points)
    single = [n for n, s in benchmark.config.studies.items() if len(s.axes) == 1]
    shown = {n: [p for p in result.studies if p.study == n] for n in single}
    shown = {n: points for n, points in shown.items() if points}
    if shown:
        caption = "Above accuracy with 95 % intervals, the reference dashed; below tokens kept."
        yield FigureFile("study_fields", "Effects of single fields", caption), partial(effects, shown)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _lengths(rows: Sequence[AccuracyRow]) -> list[int]:
    return sorted({row.n_frames for row in rows})


def against_kept(rows: Sequence[AccuracyRow]) -> Any:
    """A row of panels per stream length: frame steps, questions."""
    columns: dict[str, Cost] = {
        "frame steps: tokens attended to (% of the cache)": lambda row: _percent(row.frame_kept),
        "questions: tokens attended to (% of the cache)": lambda row: _percent(row.text_kept),
    }
    return _against(rows, columns)


def against_energy(result: BenchmarkResult, rows: Sequence[AccuracyRow]) -> Any:
    """A row of panels per stream length: platforms."""

    def energy_mj(row: AccuracyRow, platform: str) -> float | None:
        at = priced_row(result, row, platform)
        return None if at is None else 1e3 * at.energy_j

    platforms = dict.fromkeys(priced.row.platform for priced in result.priced)
    columns = {f"{p}: energy of a frame step (mJ)": partial(energy_mj, platform=p) for p in platforms}
    return _against(rows, columns)


def _against(rows: Sequence[AccuracyRow], columns: Mapping[str, Cost]) -> Any:
    """Accuracy over what it costs; a policy has a colour and a mark."""
    lengths = _lengths(rows)
    figure = canvas(1.35 * WIDTH_IN, 3.1 * len(lengths) + 1.3)
    axes = figure.subplots(len(lengths), len(columns), squeeze=False, sharex="col", sharey="row")
    handles: dict[str, Any] = {}
    for line, n in zip(axes, lengths, strict=True):
        for axis, cost in zip(line, columns.values(), strict=True):
            for row in (r for r in rows if r.n_frames == n and r.policy != BLIND):
                at = cost(row)
                if at is not None:
                    handles[row.policy] = _bar(axis, at, row, **_looks(rows)[row.policy])
            axis.set_title(f"{n} frames", fontsize=10)
            _logarithmic(axis)
            axis.grid(visible=True, linewidth=0.4, alpha=0.5)
        line[0].set_ylabel("accuracy (%)")
    for axis, name in zip(axes[-1], columns, strict=True):
        axis.set_xlabel(name)
    legend_below(figure, list(handles.values()), list(handles), columns=5)
    return figure


def _logarithmic(axis: Any) -> None:
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    low, high = axis.get_xlim()
    if high / low < 30:  # decades alone would be one or two
        axis.xaxis.set_minor_formatter(two_and_five)
    else:
        axis.xaxis.set_minor_formatter(lambda value, position: "")


def over_length(rows: Sequence[AccuracyRow]) -> Any:
    """Accuracy over the stream length, a line per policy."""
    figure = canvas(WIDTH_IN, 5.2)
    axis = figure.subplots()
    policies = [p for p in dict.fromkeys(row.policy for row in rows) if p != BLIND]
    look = _looks(rows)
    ends = []
    for policy in policies:
        mine = sorted((row.n_frames, 100 * row.accuracy) for row in rows if row.policy == policy)
        axis.plot(*zip(*mine, strict=True), markersize=4, linewidth=1.2, **look[policy])
        ends.append((mine[-1][1], policy, look[policy]["color"]))
    blind = sorted((row.n_frames, 100 * row.accuracy) for row in rows if row.policy == BLIND)
    axis.plot(*zip(*blind, strict=True), color=GREY, linestyle="--")
    ends.append((blind[-1][1], BLIND, GREY))
    axis.set_xscale("log")
    axis.set_xticks(_lengths(rows), [str(n) for n in _lengths(rows)])
    axis.minorticks_off()
    axis.set_xlabel("stream length (frames)")
    axis.set_ylabel("accuracy (%)")
    axis.grid(visible=True, axis="y", linewidth=0.4, alpha=0.5)
    label_ends(axis, ends, gap=0.037)
    return figure


def heat_map(points: Sequence[StudyPoint]) -> Any:
    """Accuracy and tokens kept over two fields."""
    x, y = points[0].names
    xs, ys = (list(dict.fromkeys(point.names[axis] for point in points)) for axis in (x, y))
    panels: tuple[tuple[str, str, Cost], ...] = (
        ("accuracy (%)", "viridis", lambda row: 100 * row.accuracy),
        ("kept in frames (%)", "magma_r", lambda row: _percent(row.frame_kept)),
        ("kept in questions (%)", "magma_r", lambda row: _percent(row.text_kept)),
    )
    figure = canvas(4.0 * len(panels), 1.3 + 0.55 * len(ys))
    for axis, (title, colours_of, value) in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
        grid = np.full((len(ys), len(xs)), np.nan)
        for point in points:
            grid[ys.index(point.names[y]), xs.index(point.names[x])] = value(point.row)
        image = axis.imshow(grid, origin="lower", aspect="auto", cmap=colours_of)
        _numbers(axis, image, grid)
        axis.set_xticks(range(len(xs)), xs)
        axis.set_yticks(range(len(ys)), ys)
        axis.set_xlabel(x.replace("_", " "))
        axis.set_title(title, fontsize=10)
    figure.axes[0].set_ylabel(y.replace("_", " "))
    return figure


def effects(shown: Mapping[str, Sequence[StudyPoint]]) -> Any:
    """A column of two panels per study."""
    some = next(iter(shown.values()))[0].row
    reference = some.accuracy + some.accuracy_drop
    figure = canvas(2.7 * len(shown) + 0.6, 4.8)
    axes = figure.subplots(2, len(shown), squeeze=False, sharey="row", sharex="col")
    for column, (name, points) in zip(axes.T, shown.items(), strict=True):
        at = range(len(points))
        for i, point in zip(at, points, strict=True):
            _bar(column[0], i, point.row, color=PALETTE[0], marker="o")
        column[0].plot(at, [100 * point.row.accuracy for point in points], color=PALETTE[0], linewidth=0.8)
        column[0].axhline(100 * reference, color=GREY, linestyle="--", linewidth=1)
        for stage, shade, mark in (("frame", PALETTE[1], "s"), ("text", PALETTE[2], "^")):
            shares = [_percent(getattr(point.row, f"{stage}_kept")) for point in points]
            column[1].plot(at, shares, color=shade, marker=mark, label=f"{stage} steps")
        column[1].set_xticks(at, [str(next(iter(point.names.values()))) for point in points])
        column[1].set_xlabel(name.replace("_", " "))
        column[1].margins(x=0.2)
        for axis in column:
            axis.grid(visible=True, axis="y", linewidth=0.4, alpha=0.5)
    axes[0, 0].set_ylabel("accuracy (%)")
    axes[1, 0].set_ylabel("tokens kept (%)")
    axes[1, 0].set_ylim(bottom=0)
    handles, labels = axes[1, 0].get_legend_handles_labels()
    legend_below(figure, handles, labels)
    return figure


def _bar(axis: Any, x: float, row: AccuracyRow, **look: str) -> Any:
    """A point with its interval."""
    below, above = row.accuracy - row.accuracy_low, row.accuracy_high - row.accuracy
    spans = [[100 * below], [100 * above]]
    return axis.errorbar([x], [100 * row.accuracy], spans, linestyle="none", markersize=6, elinewidth=0.7, **look)


def _looks(rows: Sequence[AccuracyRow]) -> dict[str, dict[str, str]]:
    """Colour and mark of every policy; settings of a policy share its colour, and differ in their mark."""
    policies = list(dict.fromkeys(row.policy for row in rows if row.policy != BLIND))
    families = [family(policy, policies) for policy in policies]
    shade = colours(families)
    marks = [MARKERS[families[:i].count(name) % len(MARKERS)] for i, name in enumerate(families)]
    return {
        policy: {"color": shade[name], "marker": mark}
        for policy, name, mark in zip(policies, families, marks, strict=True)
    }


def _numbers(axis: Any, image: Any, grid: Any) -> None:
    """The value in every cell, in what can be read on it."""
    for (i, j), value in np.ndenumerate(grid):
        red, green, blue, _ = image.cmap(image.norm(value))
        light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
        axis.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=8, color="black" if light else "white")
