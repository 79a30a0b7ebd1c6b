"""How far uncertain prices move the energy gain: one bar per price, from its lowest to its highest value.

With many runs one bar per run, over the whole of what any single price does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from resv_sim.plots.style import GREY, PALETTE, WIDTH_IN, canvas, length_name, number
from resv_sim.results import SensitivityRange, SensitivityRow, sensitivity_ranges

MOST = 10
LABEL_X = "energy gain over the baseline (x); left of the dashed line the baseline wins"
MANY = 4  # runs, from which on each has one bar


def panels(rows: Sequence[SensitivityRow]) -> dict[tuple[str, str], list[SensitivityRange]]:
    """Per (run, stage) at the longest cache the prices that matter, most first; empty where none does."""
    longest = max((row.kv_len_tokens for row in rows), default=0)
    found: dict[tuple[str, str], list[SensitivityRange]] = {}
    for bar in sorted(sensitivity_ranges(rows), key=lambda bar: bar.span, reverse=True):
        if bar.kv_len_tokens == longest:
            found.setdefault((bar.label, bar.stage), []).append(bar)
    return {panel: bars[:MOST] for panel, bars in sorted(found.items())}


def tornado(rows: Sequence[SensitivityRow]) -> Any:
    """One panel per run at its longest cache; the prices that matter most, at most `MOST`, on top.

    `rows` of which at least one price matters (`panels`).
    """
    longest = max(row.kv_len_tokens for row in rows)
    shown = panels(rows)
    if len(shown) > MANY:
        return _overview(shown, longest)
    height = 0.34 * max(map(len, shown.values())) + 1.2
    figure = canvas(WIDTH_IN + 1.0, height * len(shown))
    axes = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for axis, ((label, stage), bars) in zip(axes, shown.items(), strict=True):
        names = [f"{b.parameter} ({_interval(b)})" for b in bars]
        low = [min(b.gains) for b in bars]
        axis.barh(names, [b.span for b in bars], left=low, color=PALETTE[0], height=0.6)
        for y, bar in enumerate(bars):
            text = f"{number(bar.gains[0])} to {number(bar.gains[-1])}"
            axis.text(max(bar.gains), y, f"  {text}", va="center", fontsize=8)
        axis.axvline(1.0, color=GREY, linestyle="--", linewidth=1.0)
        axis.set_xlim(0, 1.25 * max(max(b.gains) for b in bars))
        axis.invert_yaxis()
        axis.set_title(f"{label}, {stage} stage, {length_name(longest)} tokens")
    axes[-1].set_xlabel(LABEL_X)
    return figure


def _overview(shown: Mapping[tuple[str, str], Sequence[SensitivityRange]], longest: int) -> Any:
    """A bar per run from the lowest to the highest gain, and the price that moves it most."""
    stage = next(iter(shown))[1]
    figure = canvas(WIDTH_IN, 0.26 * len(shown) + 1.2)
    axis = figure.subplots()
    ends = [(min(min(b.gains) for b in bars), max(max(b.gains) for b in bars)) for bars in shown.values()]
    names = [label for label, _ in shown]
    axis.barh(names, [high - low for low, high in ends], left=[low for low, _ in ends], color=PALETTE[0], height=0.6)
    for y, ((low, high), bars) in enumerate(zip(ends, shown.values(), strict=True)):
        axis.text(high, y, f"  {number(low)} to {number(high)}: {bars[0].parameter}", va="center", fontsize=7)
    axis.axvline(1.0, color=GREY, linestyle="--", linewidth=1.0)
    axis.set_xlim(0, 1.4 * max(high for _, high in ends))
    axis.tick_params(axis="y", labelsize=8)
    axis.invert_yaxis()
    axis.set_xlabel(LABEL_X)
    axis.set_title(f"{stage} stage, {length_name(longest)} tokens; named: the price that matters most", fontsize=10)
    return figure


def _interval(bar: SensitivityRange) -> str:
    text = f"{bar.values[0]:.3g} to {bar.values[-1]:.3g}"
    return text if bar.unit == "1" else f"{text} {bar.unit}"
