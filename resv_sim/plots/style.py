"""One look for all figures: sizes, a palette that colour-blind readers can tell apart, and saving.

A policy has a colour, a platform a mark and a line. Colours are Okabe and Ito's (2008), after them Tol's muted ones
(2021). Saved files hold no date and no random identifier.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#999999")
# Fourteen that text can be written in: without the light yellow and the grey.
INKS = (*PALETTE[:6], "#332288", "#882255", "#117733", "#AA4499", "#661100", "#8A8F00", "#44AA99", "#555555")
WIDTH_IN = 7.4  # of a figure: readable in a text column, and on a phone
MOST_LENGTHS = 8  # panels or bars of a figure, one per cache length: more are a sample
# What a span or a part of a latency is about, the same colour in every figure.
KIND_COLOURS = {
    "linear": "#0072B2",
    "attention": "#56B4E9",
    "vision": "#CC79A7",
    "vector": "#009E73",
    "lm_head": "#F0E442",
    "prediction": "#D55E00",
    "fetch": "#E69F00",
    "offload": "#999999",
    "idle": "#DDDDDD",
}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", ":", "-.")
GREY = "#666666"

RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.hashsalt": "resv-sim",
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class FigureFile:
    """A drawn figure: `name`.png and `name`.svg in the figures folder, and what it says in words."""

    name: str
    title: str
    caption: str


def canvas(width_in: float, height_in: float) -> Any:
    """An empty figure that draws with Agg and belongs to no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in))
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, folder: Path, name: str, dpi: int) -> None:
    """Write PNG and SVG, cut to what is drawn so that nothing is clipped."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=dpi, bbox_inches="tight", metadata={"Software": None})
    figure.savefig(folder / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})


def colours(labels: Iterable[str]) -> dict[str, str]:
    """A colour per label, in order of first appearance; no two alike among 14."""
    return {label: INKS[i % len(INKS)] for i, label in enumerate(dict.fromkeys(labels))}


@dataclass(frozen=True)
class Look:
    """How one run is drawn: its policy's colour, its platform's mark and line; filled on the first platform."""

    name: str
    colour: str
    marker: str
    line: str
    filled: bool

    @property
    def style(self) -> dict[str, Any]:
        """Arguments of `Axes.plot`."""
        face = self.colour if self.filled else "white"
        return {"color": self.colour, "marker": self.marker, "linestyle": self.line, "markerfacecolor": face}


def looks(runs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Look]:
    """A look per (platform, policy); the budgets of a policy share one. The first platform goes without saying."""
    runs = list(dict.fromkeys(runs))
    policies = {policy for _, policy in runs}
    platforms = list(dict.fromkeys(platform for platform, _ in runs))
    colour = colours(family(policy, policies) for _, policy in runs)
    out = {}
    for platform, policy in runs:
        i = platforms.index(platform)
        name = policy if i == 0 else f"{policy}, {platform}"
        line, marker = LINES[i % len(LINES)], MARKERS[i % len(MARKERS)]
        out[platform, policy] = Look(name, colour[family(policy, policies)], marker, line, filled=i == 0)
    return out


def family(policy: str, policies: Collection[str]) -> str:
    """The policy that a label is another budget of: 'resv' for 'resv-60' where there is a 'resv', else itself."""
    base, dash, _ = policy.rpartition("-")
    return base if dash and base in policies else policy


def platform_handles(platforms: Iterable[str]) -> list[Any]:
    """Legend entries that say which mark and line is which platform."""
    from matplotlib.lines import Line2D

    shown = looks((platform, "") for platform in platforms)
    grey = [replace(look, colour=GREY) for look in shown.values()]
    return [Line2D([], [], **look.style, label=platform) for (platform, _), look in zip(shown, grey, strict=True)]


def kind_colours(kinds: Iterable[str]) -> dict[str, str]:
    """The colour of each kind of work, in the fixed order of `KIND_COLOURS`; black for a kind it does not know."""
    present = dict.fromkeys(kinds)
    ordered = [kind for kind in KIND_COLOURS if kind in present] + [k for k in present if k not in KIND_COLOURS]
    return {kind: KIND_COLOURS.get(kind, "#000000") for kind in ordered}


def sampled(lengths: Sequence[int], most: int = MOST_LENGTHS) -> list[int]:
    """At most so many of the lengths, evenly spaced in their order, the first and the last among them."""
    if len(lengths) <= most:
        return list(lengths)
    return [lengths[round(i * (len(lengths) - 1) / (most - 1))] for i in range(most)]


def sample_note(shown: int, of: int) -> str:
    """What a figure says that shows a sample of the lengths."""
    return f"; {shown} of {of} cache lengths" if shown < of else ""


def length_name(tokens: int) -> str:
    """1000 -> '1K', 350 -> '350', 0 -> '0'."""
    return f"{tokens // 1000}K" if tokens and tokens % 1000 == 0 else str(tokens)


def number(value: float) -> str:
    """Three significant digits, without an exponent where a plain number is as short."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        magnitude = int(f"{abs(value):.2e}".partition("e")[2])
        return f"{value:.{max(0, 2 - magnitude)}f}"
    return f"{value:.3g}"


def legend_below(figure: Any, handles: Sequence[Any], labels: Sequence[str], columns: int = 4) -> None:
    """One legend for the whole figure, under it."""
    figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, max(1, len(labels))))
