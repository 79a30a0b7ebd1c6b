"""Names beside the marks they belong to, in place of a legend: at the ends of lines, and around points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Box = tuple[float, float, float, float]  # left, bottom, right, top
DIRECTIONS = (
    *((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)),
    *((1, 0.5), (-1, 0.5), (1, -0.5), (-1, -0.5), (2, 1), (-2, 1), (2, -1), (-2, -1)),
)
RINGS = (9, 16, 24, 33, 43, 55, 70, 88, 110, 140)  # points
COVERED, ILLEGIBLE = 50, 1000  # what a covered mark or line costs, and a covered or crossed name, in points of distance
STEPS = tuple(i / 12 for i in range(2, 12))  # along a line from a point to its name


def label_ends(axis: Any, ends: Sequence[tuple[float, str, str]], gap: float = 0.05) -> None:
    """Names right of an axis, beside the ends of their lines: (y, name, colour) each, moved apart where they collide.

    gap : least distance of two names, in heights of the axis. Call it when the limits of the axis are final.
    """
    to_axis = axis.transData + axis.transAxes.inverted()
    ranked = sorted((float(to_axis.transform((1.0, y))[1]), name, colour) for y, name, colour in ends)
    for (y, name, colour), at in zip(ranked, _apart([y for y, _, _ in ranked], gap), strict=True):
        axis.plot([1.005, 1.045], [y, at], transform=axis.transAxes, color=colour, linewidth=0.7, clip_on=False)
        axis.text(1.055, at, name, transform=axis.transAxes, color=colour, fontsize=8, va="center")


def _apart(ascending: Sequence[float], gap: float) -> list[float]:
    """The same places, moved as little up and, from the top, down as keeps them `gap` apart and below 1."""
    placed: list[float] = []
    for y in ascending:
        placed.append(max(y, placed[-1] + gap) if placed else y)
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], placed[i + 1] - gap if i + 1 < len(placed) else 1.0)
    return placed


def label_points(
    axis: Any, points: Sequence[tuple[float, float]], names: Sequence[tuple[float, float, str, str]]
) -> None:
    """Names inside an axis, each beside its point: (x, y, name, colour); they avoid `points` and one another.

    Points too close to be told apart share a place, as "a = b".

    Call it when the layout is final (`Figure.draw_without_rendering`).
    """
    size = 7.5
    per_point = axis.figure.dpi / 72
    frame = axis.get_window_extent()
    taken = [_box(axis.transData.transform(point), (3 * per_point, 3 * per_point)) for point in points]
    written: list[Box] = []
    for x, y, name, colour in _shared(axis, names, 5 * per_point):
        half = (0.33 * size * len(name) * per_point, 0.62 * size * per_point)
        at = axis.transData.transform((x, y))
        spot = _free_spot(at, half, per_point, (taken, written), frame)
        written.append(_box(spot, half))
        taken += [written[-1], *_leader(at, spot, half, per_point)]
        offset = (spot[0] - at[0]) / per_point, (spot[1] - at[1]) / per_point
        place = {"xytext": offset, "textcoords": "offset points", "ha": "center", "va": "center"}
        arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
        axis.annotate(name, (x, y), color=colour, fontsize=size, arrowprops=arrow, **place).set_in_layout(False)


def _shared(
    axis: Any, names: Sequence[tuple[float, float, str, str]], apart: float
) -> list[tuple[float, float, str, str]]:
    """The names with those of points that lie within `apart` pixels of an earlier one joined to it."""
    out: list[tuple[float, float, str, str]] = []
    for x, y, name, colour in names:
        here = axis.transData.transform((x, y))
        for i, (x0, y0, others, shade) in enumerate(out):
            if abs(axis.transData.transform((x0, y0)) - here).max() < apart:
                out[i] = (x0, y0, f"{others} = {name}", shade)
                break
        else:
            out.append((x, y, name, colour))
    return out


def _box(centre: Sequence[float], half: tuple[float, float]) -> Box:
    return centre[0] - half[0], centre[1] - half[1], centre[0] + half[0], centre[1] + half[1]


def _leader(at: Sequence[float], spot: Sequence[float], half: tuple[float, float], per_point: float) -> list[Box]:
    """Small boxes along the line from a point to its name, as far as the name."""
    places = [(at[0] + share * (spot[0] - at[0]), at[1] + share * (spot[1] - at[1])) for share in STEPS]
    own = _box(spot, half)
    return [box for box in (_box(place, (per_point, per_point)) for place in places) if not _meet(box, own)]


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _free_spot(
    at: Any, half: tuple[float, float], per_point: float, taken: tuple[Sequence[Box], Sequence[Box]], frame: Any
) -> Any:
    """The centre of least cost around a point whose box lies in the frame: near, on nothing, its line across no name.

    taken : marks, lines and names;  the names alone
    """
    everything, written = taken
    best, least = at, math.inf
    for ring in RINGS:
        for dx, dy in DIRECTIONS:
            centre = (at[0] + dx * (half[0] + 0.7 * ring * per_point), at[1] + dy * ring * per_point)
            box = _box(centre, half)
            if box[0] < frame.x0 or box[2] > frame.x1 or box[1] < frame.y0 or box[3] > frame.y1 or ring >= least:
                continue
            cost = ring + COVERED * sum(_meet(box, other) for other in everything)
            line = _leader(at, centre, half, per_point)
            cost += ILLEGIBLE * sum(_meet(part, other) for part in (box, *line) for other in written)
            if cost < least:
                best, least = centre, cost
    return best
