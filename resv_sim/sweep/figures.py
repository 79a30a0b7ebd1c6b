"""Figures of a sweep: columns over each axis, heat maps of pairs, fronts, parallel coordinates, sensitivity.

Draws measured rows; a figure is left out where the sweep holds nothing for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from resv_sim.plots.style import GREY, INKS, PALETTE, RC, FigureFile, canvas, legend_below, save
from resv_sim.sweep import fronts
from resv_sim.sweep.config import Constraint
from resv_sim.sweep.space import Sweep

Row = dict[str, Any]
Drawing = tuple[FigureFile, Callable[[], Any]]
FRONTS = (
    ("latency_s", "energy_j"),
    ("latency_s", "attention_mass_kept"),
    ("energy_j", "attention_mass_kept"),
    ("energy_j", "accuracy"),
    ("latency_s", "area_mm2"),
)
OWN = tuple(ink for ink in INKS if ink not in PALETTE)
_STAR = {"marker": "*", "s": 190, "color": "#D55E00", "edgecolor": "black", "zorder": 5, "label": "V-Rex as published"}


def draw_figures(sweep: Sweep, rows: Sequence[Row], published: int | None, folder: Path) -> list[FigureFile]:
    """Draw all that the rows hold into `folder`, as PNG and SVG."""
    import matplotlib

    drawings = list(_drawings(sweep, rows, published)) if rows else []
    with matplotlib.rc_context(RC):
        for file, draw in drawings:
            save(draw(), folder, file.name, 110)
    return [file for file, _ in drawings]


def _drawings(sweep: Sweep, rows: Sequence[Row], published: int | None) -> Iterator[Drawing]:
    axes = [axis for axis in sweep.config.axes if len({repr(row[axis]) for row in rows}) > 1]
    columns = [c for c in sweep.config.figures if len({row[c] for row in rows if row[c] is not None}) > 1]
    full = sweep.config.mode == "grid"
    for column in columns:
        text = (
            "Lines are means over the other axes, one line per value of the axis that matters most beside it; bands "
            "reach from the lowest to the highest."
            if full
            else "One dot is one point."
        )
        yield (
            FigureFile(f"over_{column}", f"{column} over each axis", text),
            partial(over_axes, rows, axes, column, full),
        )
    if full and len(axes) > 1:
        for column in columns[:2]:
            file = FigureFile(f"pairs_{column}", f"{column} by pairs of axes", "Mean over all other axes.")
            yield file, partial(pairs, rows, axes, column)
    shown = [pair for pair in FRONTS if all(_varies(rows, c) for c in pair)]
    if shown:
        text = "The line joins the points that no other beats in both."
        if published is not None:
            text += " The star is the published design."
        if sweep.config.limits:
            text += f" Hollow points do not keep {', '.join(map(str, sweep.config.limits))} and do not count."
        file = FigureFile("fronts", "Pareto fronts", text)
        yield file, partial(front_panels, rows, shown, sweep.config.limits, published)
    if axes and columns:
        text = f"One line per point, coloured by {columns[0]}; the published design, if it is among them, in black."
        file = FigureFile("parallel", "Parallel coordinates", text)
        yield file, partial(parallel, rows, [*axes, *columns], columns[0], published)
    if axes and columns and sweep.config.search is None:
        text = "Share of a column's variance that one axis explains alone; what is missing to 100 % is interaction."
        yield FigureFile("explained", "Which axis decides", text), partial(explained, rows, axes, columns)


def _varies(rows: Sequence[Row], column: str) -> bool:
    """By a hundredth of its size at least: less is no choice."""
    values = [row[column] for row in rows if row[column] is not None]
    return bool(values) and max(values) - min(values) >= 0.01 * max(map(abs, values)) > 0


def over_axes(rows: Sequence[Row], axes: Sequence[str], column: str, full: bool) -> Any:
    """Small multiples: one panel per axis. The legend below is that of all panels without their own."""
    figure, panels = _panels(len(axes), 3.6, 2.9, sharey=True)
    shares = fronts.explained(rows, axes, column)
    ranked = sorted(axes, key=lambda a: -shares[a])
    handles: list[Any] = []
    for panel, axis in zip(panels, axes, strict=True):
        panel.set_xlabel(axis)
        if panel.get_subplotspec().is_first_col():
            panel.set_ylabel(column)
        if not full:
            panel.scatter(*_xy(rows, axis, column), s=12, color=PALETTE[0], alpha=0.6)
            continue
        other = next((a for a in ranked if a != axis), None)
        # The panel with a legend of its own has colours of its own: those below mean the values of another axis.
        _lines(panel, rows, axis, other, column, PALETTE if other == ranked[0] else OWN)
        panel.set_title(f"explains {100 * shares[axis]:.0f} %", fontsize=9, color=GREY)
        if other == ranked[0]:
            handles = panel.get_lines()
        elif other is not None:
            panel.legend(fontsize=7, frameon=True, framealpha=0.8, edgecolor="none")
    if handles:
        lines = -(-len(handles) // (2 * panels[0].get_gridspec().ncols))
        names = [handle.get_label() for handle in handles]
        legend_below(figure, handles, names, columns=-(-len(handles) // lines))
    return figure


def _panels(n: int, width_in: float, height_in: float, most: int = 3, **options: Any) -> tuple[Any, list[Any]]:
    """A figure of n panels, at most so many in a row, with the fewest gaps; and the panels."""
    columns = min(range(min(2, n), min(most, n) + 1), key=lambda c: (-n % c, -c))
    rows = -(-n // columns)
    figure = canvas(width_in * columns, height_in * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False, **options).ravel())
    for panel in panels[n:]:
        panel.set_visible(False)
    return figure, panels[:n]


def _lines(
    panel: Any, rows: Sequence[Row], axis: str, other: str | None, column: str, palette: tuple[str, ...]
) -> None:
    names = _values(rows, axis)
    for colour, value in zip(palette * 4, _values(rows, other) if other else [None], strict=False):
        mine = [row for row in rows if other is None or row[other] == value]
        groups = [[r[column] for r in mine if r[axis] == name and r[column] is not None] for name in names]
        x = [i for i, group in enumerate(groups) if group]
        kept = [group for group in groups if group]
        panel.fill_between(x, [min(g) for g in kept], [max(g) for g in kept], color=colour, alpha=0.12, linewidth=0)
        label = None if other is None else f"{other} {_short(value)}"
        panel.plot(x, [np.mean(g) for g in kept], color=colour, marker="o", markersize=4, label=label)
    _name_ticks(panel, names)


def _name_ticks(panel: Any, names: Sequence[Any], size: float = 10, letters: int = 28) -> None:
    """Ticks at 0, 1, ...; slanted where there are more letters than stand side by side below the panel."""
    labels = [_short(name) for name in names]
    crowded = sum(map(len, labels)) > letters
    slant = {"rotation": 20, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
    panel.set_xticks(range(len(names)), labels, fontsize=size, **slant)


def pairs(rows: Sequence[Row], axes: Sequence[str], column: str) -> Any:
    """Heat maps of every pair, one colour scale."""
    chosen = list(combinations(axes, 2))
    figure, panels = _panels(len(chosen), 2.6, 2.4, most=5)
    maps = [_means(rows, a, b, column) for a, b in chosen]
    low, high = min(np.nanmin(m) for m in maps), max(np.nanmax(m) for m in maps)
    image = None
    for panel, (a, b), means in zip(panels, chosen, maps, strict=True):
        image = panel.imshow(means, origin="lower", aspect="auto", cmap="viridis", vmin=low, vmax=high)
        _name_ticks(panel, _values(rows, a), size=7, letters=20)
        panel.set_yticks(range(means.shape[0]), [_short(v) for v in _values(rows, b)], fontsize=7)
        panel.set_xlabel(a, fontsize=8)
        panel.set_ylabel(b, fontsize=8)
    figure.colorbar(image, ax=panels, label=f"mean {column}", shrink=0.8)
    return figure


def _means(rows: Sequence[Row], a: str, b: str, column: str) -> Any:
    cells: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row[column] is not None:
            cells.setdefault((repr(row[a]), repr(row[b])), []).append(row[column])
    return np.array(
        [[np.mean(cells.get((repr(x), repr(y)), [np.nan])) for x in _values(rows, a)] for y in _values(rows, b)]
    )


def front_panels(
    rows: Sequence[Row], shown: Sequence[tuple[str, str]], limits: Sequence[Constraint], published: int | None
) -> Any:
    """One panel per pair of columns; points that break a constraint are hollow."""
    figure, panels = _panels(len(shown), 4.4, 3.5)
    star = None
    for panel, (x, y) in zip(panels, shown, strict=True):
        known = {row["point"]: row for row in rows if row[x] is not None and row[y] is not None}
        kept = {key: row for key, row in known.items() if fronts.holds(row, limits)}
        faces = ["#BBBBBB" if key in kept else "none" for key in known]
        panel.scatter(*_columns(known, x, y), s=10, facecolors=faces, edgecolors="#BBBBBB", linewidths=0.7)
        best = fronts.front(kept, {x: fronts.direction(x), y: fronts.direction(y)})
        line = sorted(zip(*_columns({key: kept[key] for key in best}, x, y), strict=True))
        if line:
            panel.plot(*zip(*line, strict=True), color=PALETTE[0], marker="o", markersize=4)
        if published in known:
            star = panel.scatter([known[published][x]], [known[published][y]], **_STAR)
        panel.set_xlabel(x)
        panel.set_ylabel(y)
        panel.ticklabel_format(useOffset=False)
        panel.locator_params(axis="x", nbins=5)
    if star is not None:
        legend_below(figure, [star], ["V-Rex as published"])
    return figure


def _columns(rows: Mapping[int, Row], x: str, y: str) -> tuple[list[Any], list[Any]]:
    return [row[x] for row in rows.values()], [row[y] for row in rows.values()]


def parallel(rows: Sequence[Row], names: Sequence[str], coloured_by: str, published: int | None) -> Any:
    """One vertical scale per axis and column, one line per point."""
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection

    known = [row for row in rows if all(row[name] is not None for name in names)]
    figure = canvas(max(7.0, 1.25 * len(names)), 4.2)
    panel = figure.subplots()
    scaled = np.array([_scaled(known, name) for name in names]).T
    x = np.arange(len(names))
    shade = _scaled(known, coloured_by)
    lines = [np.column_stack([x, line]) for line in scaled]
    panel.add_collection(
        LineCollection(
            lines, colors=colormaps["viridis"](shade), linewidths=0.8, alpha=max(0.08, min(0.7, 60 / len(lines)))
        )
    )
    for line, row in zip(scaled, known, strict=True):
        if row["point"] == published:
            panel.plot(x, line, color="black", linewidth=2)
    for i, name in enumerate(names):
        panel.axvline(i, color=GREY, linewidth=0.6)
        ends = _values(known, name)
        if all(isinstance(v, (int, float)) for v in ends):
            ends = sorted(ends)
        panel.text(i, 1.03, _short(ends[-1]), ha="center", fontsize=8)
        panel.text(i, -0.07, _short(ends[0]), ha="center", fontsize=8)
    panel.set_xticks(x, names, rotation=25, ha="right")
    panel.tick_params(axis="x", pad=14)
    panel.set_ylim(-0.02, 1.02)
    panel.set_yticks([])
    panel.spines[["left", "bottom"]].set_visible(False)
    return figure


def explained(rows: Sequence[Row], axes: Sequence[str], columns: Sequence[str]) -> Any:
    """Stacked bars: one bar per column, one part per axis."""
    figure = canvas(7.5, 0.5 * len(columns) + 1.6)
    panel = figure.subplots()
    left = np.zeros(len(columns))
    handles = []
    for colour, axis in zip(PALETTE * 3, axes, strict=False):
        widths = np.array([100 * fronts.explained(rows, axes, column)[axis] for column in columns])
        handles.append(panel.barh(range(len(columns)), widths, left=left, color=colour))
        left += widths
    panel.set_yticks(range(len(columns)), columns)
    panel.invert_yaxis()
    panel.set_xlim(0, max(100.0, float(left.max())))
    panel.set_xlabel("variance explained (%)")
    legend_below(figure, handles, axes, columns=6)
    return figure


def _values(rows: Sequence[Row], name: str) -> list[Any]:
    """Distinct values: numbers ascending, anything else in order of first appearance."""
    found = list({repr(row[name]): row[name] for row in rows}.values())
    return sorted(found) if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in found) else found


def _xy(rows: Sequence[Row], axis: str, column: str) -> tuple[list[Any], list[Any]]:
    known = [row for row in rows if row[column] is not None]
    values = _values(known, axis)
    if all(isinstance(v, (int, float)) for v in values):
        return [row[axis] for row in known], [row[column] for row in known]
    return [_short(row[axis]) for row in known], [row[column] for row in known]


def _scaled(rows: Sequence[Row], name: str) -> Any:
    """Each row's place between the lowest and the highest, 0 to 1; by rank where values are no numbers."""
    values = _values(rows, name)
    if all(isinstance(v, (int, float)) for v in values):
        x = np.array([float(row[name]) for row in rows])
    else:
        rank = {repr(v): i for i, v in enumerate(values)}
        x = np.array([float(rank[repr(row[name])]) for row in rows])
    span = x.max() - x.min()
    return (x - x.min()) / span if span else np.full(len(x), 0.5)


def _short(value: Any) -> str:
    """As little text as tells values apart: three digits of an integer of millions, all of 0.2."""
    return (
        f"{value:.3g}" if isinstance(value, float) or (isinstance(value, int) and abs(value) >= 10**5) else str(value)
    )
