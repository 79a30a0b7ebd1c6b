"""Panels of a reproduced figure: curves over a number, bars over names, the published points marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from resv_sim.plots.curves import log_values
from resv_sim.plots.style import GREY, MARKERS, PALETTE, canvas, colours, length_name
from resv_sim.published import Fact, items_of
from resv_sim.reproduce.items import Item, Panel, Tornado

MOST_COLUMNS = 3
MOST_BARS = 6
LEAST_SPAN = 0.001  # of the default: bars that could not be seen


def panels(shown: Sequence[Panel], facts: Sequence[Fact], lengths: Sequence[int]) -> Any:
    """One figure of all panels. Open marks and dashed lines (ends of a range, single values) are published."""
    columns = min(MOST_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure = canvas(4.4 * columns + 0.4, 3.4 * rows + 0.5)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes, shown, strict=False):
        over_names = all(isinstance(x, str) for points in panel.series.values() for x in points)
        if over_names:
            _bars(axis, panel, {fact.item: fact for fact in facts})
        else:
            _curves(axis, panel)
            _published(axis, panel, facts, lengths)
        axis.set_title(panel.title)
        axis.set_ylabel(panel.y_label)
        if panel.log_y:
            log_values(axis)
        if len(panel.series) > 1 or panel.marks or panel.name_marks:
            axis.legend(fontsize=7)
    return figure


def comparison(items: Sequence[Item], title: str) -> Any:
    """Signed error of every number that was run: filled predictions, open calibration rows."""
    run = [item for item in items if item.error is not None]
    figure = canvas(9.5, 0.24 * len(run) + 1.4)
    axis = figure.subplots()
    for y, item in enumerate(run):
        error = 100 * (item.error or 0.0)
        calibration = item.role == "calibration"
        colour = colours(["calibration", "prediction"])[item.role]
        axis.plot([0, error], [y, y], color=colour, linewidth=1.2)
        axis.plot([error], [y], "o", color=colour, markerfacecolor="white" if calibration else colour)
    axis.set_yticks(range(len(run)), [item.item for item in run], fontsize=7)
    axis.axvline(0.0, color=GREY, linewidth=1.0)
    axis.margins(y=0.5 / max(1, len(run)))
    axis.axvspan(-15, 15, color=GREY, alpha=0.12, linewidth=0)
    axis.invert_yaxis()
    axis.set_xlabel("ours / published - 1 (%); filled: prediction, open: calibration row; grey: 15 %")
    axis.set_title(title)
    return figure


def tornados(shown: Sequence[Tornado]) -> Any:
    """A panel per result: unknowns by how far they move it, the one that matters most on top."""
    columns = 2
    rows = -(-len(shown) // columns)
    figure = canvas(6.4 * columns, 2.4 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    for axis, result in zip(axes, shown, strict=False):
        ranked = sorted(result.bars, key=lambda bar: bar.span, reverse=True)
        bars = [bar for bar in ranked[:MOST_BARS] if bar.span > LEAST_SPAN * abs(result.default)]
        for y, bar in enumerate(bars):
            for value, colour in ((bar.low, PALETTE[0]), (bar.high, PALETTE[3])):
                axis.barh(y, value - result.default, left=result.default, color=colour, height=0.6)
        axis.axvline(result.default, color=GREY, linewidth=1.0, linestyle="--")
        axis.set_yticks(range(len(bars)), [bar.name for bar in bars], fontsize=8)
        axis.set_ylim(max(2.5, len(bars) - 0.5), -0.5)
        axis.set_title(result.title)
        axis.set_xlabel(f"{result.unit}; blue: unknown at its low end, red: at its high end", fontsize=8)
    return figure


def _curves(axis: Any, panel: Panel) -> None:
    colour = colours(panel.series)
    for (name, points), marker in zip(panel.series.items(), MARKERS * len(panel.series), strict=False):
        x, y = zip(*sorted(points.items()), strict=True)
        style = {"drawstyle": "steps-post"} if panel.steps else {"marker": marker, "markersize": 4}
        axis.plot(x, y, color=colour[name], label=name, **style)
    axis.set_xlabel(panel.x_label)
    if panel.x_label.startswith("cache length"):
        ticks = sorted({x for points in panel.series.values() for x in points})
        axis.set_xscale("log")
        axis.set_xticks(ticks, [length_name(int(x)) for x in ticks])
        axis.minorticks_off()


def _bars(axis: Any, panel: Panel, facts: Mapping[str, Fact]) -> None:
    names = list(dict.fromkeys(name for points in panel.series.values() for name in points))
    width = 0.8 / len(panel.series)
    colour = colours(panel.series)
    highest = max(value for points in panel.series.values() for value in points.values())
    for i, (series, points) in enumerate(panel.series.items()):
        x = [names.index(str(name)) + (i - (len(panel.series) - 1) / 2) * width for name in points]
        axis.bar(x, list(points.values()), 0.92 * width, color=colour[series], label=series)
        marks = panel.name_marks.get(series, {})
        found = {at: _value(facts[marks[str(n)]], str(n)) for at, n in zip(x, points, strict=True) if n in marks}
        if found:
            style = {"linestyle": "none", "marker": "o", "markersize": 8, "markerfacecolor": "none"}
            axis.plot(found.keys(), found.values(), color="black", label="published" if i == 0 else None, **style)
        for at, value in zip(x, points.values(), strict=True):
            _number_above(axis, at, value, found.get(at), highest)
    axis.set_xticks(range(len(names)), names, rotation=20, ha="right", fontsize=8)
    axis.margins(y=0.15)


def _number_above(axis: Any, x: float, value: float, mark: float | None, highest: float) -> None:
    """A bar's number above it, and above a mark that would cover it, on a linear axis or a logarithmic one."""
    covered = mark is not None and (abs(value - mark) < 0.06 * highest or mark / 1.3 < value < mark * 1.3)
    place = (x, max(value, mark or 0.0) if covered else value)
    offset = {"xytext": (0, 5 if covered else 1), "textcoords": "offset points"}
    axis.annotate(f"{value:.3g}", place, ha="center", va="bottom", fontsize=7, **offset)


def _value(fact: Fact, name: str) -> float | None:
    """The number of a fact that stands for `name`."""
    return fact.values[fact.labels.index(name)] if fact.labels else fact.value


def _published(axis: Any, panel: Panel, facts: Sequence[Fact], lengths: Sequence[int]) -> None:
    colour = colours(panel.series)
    found: Mapping[str, Fact] = {fact.item: fact for fact in facts}
    for series, item in panel.marks.items():
        fact = found.get(item)
        if fact is None:
            continue
        values = [value for _, value in items_of(fact, lengths)]
        if fact.values:
            style = {"linestyle": "none", "marker": "o", "markersize": 10, "markerfacecolor": "none"}
            axis.plot(lengths, values, color=colour[series], label=f"{series}, published", **style)
        for i, value in enumerate([] if fact.values else values):
            label = {} if i else {"label": f"{series}, published"}
            axis.axhline(value, color=colour[series], linestyle="--", linewidth=1.0, **label)
