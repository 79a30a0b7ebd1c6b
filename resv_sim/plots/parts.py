"""Figures of parts of a whole: latency by component, area and power by unit, retrieval by layer and head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resv_sim.plots.style import GREY, PALETTE, canvas, kind_colours, legend_below, length_name, number
from resv_sim.results import BreakdownRow, RatioKey

DRE_UNITS = ("hcu", "wtu", "kvmu")


def breakdown(rows: Sequence[BreakdownRow], stage: str) -> Any:
    """Stacked bars: what part of each latency is exposed where; the latency itself stands on each bar."""
    rows = [row for row in rows if row.stage == stage and row.exposed_s > 0]
    pairs = list(dict.fromkeys((row.platform, row.policy) for row in rows))
    colour = kind_colours(row.component for row in rows)
    lengths = sorted({row.kv_len_tokens for row in rows})
    figure = canvas(1.0 + max(2.0, 0.62 * len(lengths)) * len(pairs), 4.2)
    axes = figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
    for axis, (platform, policy) in zip(axes, pairs, strict=True):
        mine = [row for row in rows if (row.platform, row.policy) == (platform, policy)]
        bottom = np.zeros(len(lengths))
        totals = np.array([sum(r.exposed_s for r in mine if r.kv_len_tokens == length) for length in lengths])
        for component in colour:
            seconds = np.array(
                [
                    sum(r.exposed_s for r in mine if r.kv_len_tokens == length and r.component == component)
                    for length in lengths
                ]
            )
            share = 100 * seconds / np.where(totals > 0, totals, 1)
            axis.bar(range(len(lengths)), share, 0.8, bottom, color=colour[component], label=component)
            bottom += share
        for x, total in enumerate(totals):
            axis.text(x, 101, _seconds(total), ha="center", va="bottom", fontsize=8)
        axis.set_xticks(range(len(lengths)), [length_name(length) for length in lengths])
        axis.set_title(f"{platform}+{policy}", pad=16)
        axis.set_ylim(0, 100)
    axes[0].set_ylabel(f"share of {stage} latency (%)")
    axes[len(axes) // 2].set_xlabel("cache length (tokens)")
    handles, labels = axes[0].get_legend_handles_labels()
    legend_below(figure, handles, labels, columns=5)
    return figure


def area_and_power(area_mm2: Mapping[str, float], power_w: Mapping[str, float]) -> Any:
    """Area and power by unit, logarithmic so that the small DRE units are seen, each with its share."""
    figure = canvas(9.0, 0.36 * max(len(area_mm2), len(power_w)) + 1.8)
    panels = [(area_mm2, "area of the chip (mm²)"), (power_w, "power of one core, fully active (W)")]
    panels = [(parts, name) for parts, name in panels if parts]
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (parts, name) in zip(axes, panels, strict=True):
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
        axis.set_xlabel(name)
        axis.set_title(f"DRE (red): {100 * dre / total:.2f} % of {number(total)}")
    return figure


def retrieval_ratios(ratios: Mapping[RatioKey, NDArray[np.float64]]) -> Any:
    """Heat maps, layer by KV head, one panel per step, each on its own colour scale from 0."""
    figure = canvas(3.9 * len(ratios), 5.2)
    axes = figure.subplots(1, len(ratios), squeeze=False)[0]
    for axis, (key, values) in zip(axes, ratios.items(), strict=True):
        layers, heads = values.shape
        image = axis.imshow(100 * values, aspect="auto", origin="lower", cmap="viridis", vmin=0)
        figure.colorbar(image, ax=axis, label="retrieval ratio (%)")
        axis.set_xticks(range(0, heads, max(1, heads // 8)))
        axis.set_yticks(range(0, layers, max(1, layers // 8)))
        axis.set_xlabel("KV head")
        axis.set_ylabel("layer")
        length, mean = length_name(key.kv_len_tokens), 100 * np.mean(values)
        axis.set_title(f"{key.policy}, {key.stage} stage\n{length} tokens, mean {mean:.1f} %", fontsize=10)
        for spine in axis.spines.values():
            spine.set_visible(True)
            spine.set_color(GREY)
    return figure


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"
