"""Figures of parts of a whole: latency by component, area and power by unit, retrieval by layer and head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resv_sim.plots.style import PALETTE, WIDTH_IN, canvas, kind_colours, legend_below, length_name, number, sampled
from resv_sim.results import BreakdownRow, RatioKey

DRE_UNITS = ("hcu", "wtu", "kvmu")
LABELLED = 5  # bars of a panel
COLUMNS = 3  # panels side by side


def breakdown(rows: Sequence[BreakdownRow], stage: str) -> Any:
    """A panel per run of stacked bars: what part of each latency is exposed where; the latency stands on each bar."""
    from matplotlib.patches import Patch

    rows = [row for row in rows if row.stage == stage and row.exposed_s > 0]
    pairs = list(dict.fromkeys((row.platform, row.policy) for row in rows))
    colour = kind_colours(row.component for row in rows)
    every = sorted({row.kv_len_tokens for row in rows})
    lengths = sampled(every)
    n_rows = -(-len(pairs) // COLUMNS)
    figure = canvas(WIDTH_IN, 1.9 * n_rows + 0.8)
    axes = figure.subplots(n_rows, min(COLUMNS, len(pairs)), sharey=True, squeeze=False)
    for axis in axes.ravel()[len(pairs) :]:
        axis.set_visible(False)
    for axis, (platform, policy) in zip(axes.ravel(), pairs, strict=False):
        _stacked(axis, [row for row in rows if (row.platform, row.policy) == (platform, policy)], lengths, colour)
        axis.set_title(f"{platform}+{policy}", pad=13, fontsize=9)
        axis.set_ylim(0, 100)
    figure.supylabel(f"share of {stage} latency (%)", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("cache length (tokens)", fontsize=8)
    if len(lengths) < len(every):
        figure.suptitle(f"{len(lengths)} of {len(every)} cache lengths", fontsize=9)
    legend_below(figure, [Patch(color=shade) for shade in colour.values()], list(colour), columns=5)
    return figure


def _stacked(axis: Any, rows: Sequence[BreakdownRow], lengths: Sequence[int], colour: Mapping[str, str]) -> None:
    seconds = {(row.kv_len_tokens, row.component): row.exposed_s for row in rows}
    totals = np.array([sum(seconds.get((length, part), 0.0) for part in colour) for length in lengths])
    bottom = np.zeros(len(lengths))
    for part, shade in colour.items():
        share = 100 * np.array([seconds.get((length, part), 0.0) for length in lengths]) / np.where(totals, totals, 1)
        axis.bar(range(len(lengths)), share, 0.8, bottom, color=shade)
        bottom += share
    # What stands on bars and under them fits on so many; of more every second has it, the last among them.
    every = 1 if len(lengths) <= LABELLED else 2
    named = range(len(lengths))[(len(lengths) - 1) % every :: every]
    for x in named:
        axis.text(x, 102, _seconds(totals[x]) if totals[x] else "", ha="center", va="bottom", fontsize=6.5)
    axis.set_xticks(named, [length_name(lengths[x]) for x in named], fontsize=8)


def area_and_power(area_mm2: Mapping[str, float], power_w: Mapping[str, float]) -> Any:
    """Area and power by unit, logarithmic so that the small DRE units are seen, each with its share."""
    figure = canvas(9.0, 0.36 * max(len(area_mm2), len(power_w)) + 1.8)
    panels = [(area_mm2, "area of the chip", "mm²"), (power_w, "power of one core, fully active", "W")]
    panels = [panel for panel in panels if panel[0]]
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (parts, name, unit_name) in zip(axes, panels, strict=True):
        total = sum(parts.values())
        units = [unit for unit in parts if parts[unit] > 0]
        dre = sum(parts[unit] for unit in units if unit in DRE_UNITS)
        shade = [PALETTE[3] if unit in DRE_UNITS else PALETTE[0] for unit in units]
        bars = axis.barh(units, [parts[unit] for unit in units], color=shade)
        texts = [f"{number(parts[unit])} ({100 * parts[unit] / total:.2f} %)" for unit in units]
        axis.bar_label(bars, texts, padding=3, fontsize=9)
        axis.set_xscale("log")
        axis.set_xlim(min(parts[unit] for unit in units) / 3, max(parts.values()) * 40)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.invert_yaxis()
        axis.set_xlabel(f"{name} ({unit_name})")
        axis.set_title(f"DRE (red): {100 * dre / total:.2f} % of {number(total)} {unit_name}")
    return figure


def retrieval_ratios(ratios: Mapping[RatioKey, NDArray[np.float64]]) -> Any:
    """Heat maps, KV head over layer, a row per policy and a column per stage, all on one scale.

    The colour follows the square root of the ratio, so that a few per cent are seen beside all.
    """
    from matplotlib.colors import PowerNorm

    policies = list(dict.fromkeys(key.policy for key in ratios))
    stages = [stage for stage in ("frame", "question", "decode") if any(key.stage == stage for key in ratios)]
    figure = canvas(WIDTH_IN, 1.05 * len(policies) + 1.0)
    axes = figure.subplots(len(policies), len(stages), squeeze=False)
    for axis in axes.ravel():
        axis.set_visible(False)
    for key, values in ratios.items():
        axis = axes[policies.index(key.policy)][stages.index(key.stage)]
        axis.set_visible(True)
        shown = 100 * values.T
        image = axis.imshow(shown, aspect="auto", origin="lower", cmap="viridis", norm=PowerNorm(0.5, 0, 100))
        heads, layers = shown.shape
        axis.set_xticks(range(0, layers, max(1, layers // 8)))
        axis.set_yticks(range(0, heads, max(1, heads // 2)))
        axis.tick_params(labelsize=7)
        length = length_name(key.kv_len_tokens)
        axis.set_title(f"{key.policy}, {key.stage}, {length}: {np.mean(shown):.1f} %", fontsize=8)
    figure.colorbar(image, ax=axes, location="bottom", label="retrieval ratio (%)", ticks=(0, 1, 5, 10, 25, 50, 100),
                    aspect=40, shrink=0.7)  # fmt: skip
    for axis in axes[-1]:
        axis.set_xlabel("layer", fontsize=8)
    figure.supylabel("KV head", fontsize=9)
    return figure


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"
