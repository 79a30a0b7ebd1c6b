"""Numba kernel of group-wise quantisation: rows of elements in three groups, each on its own uniform grid."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

OUTER, MIDDLE, INNER = 0, 1, 2


@njit(cache=True, nogil=True)
def _turn(row: Any, cosine: Any, sine: Any, back: bool) -> None:
    """Rotate a row of heads in place; pair i of a head is (i, i + D/2)."""
    half = len(cosine)
    for start in range(0, len(row), 2 * half):
        for i in range(start, start + half):
            c, s = cosine[i - start], -sine[i - start] if back else sine[i - start]
            x, y = row[i], row[i + half]
            row[i], row[i + half] = x * c - y * s, y * c + x * s


@njit(cache=True, nogil=True)
def _quantise_row(row: Any, edges: Any, levels: Any, group: Any, above: Any) -> None:
    """Each element less the threshold it lies beyond, so that both tails meet at 0.

    An outer element's record says which tail it is from; a middle one has 4 bits alone, whose sign is the side.
    group, above : (W,) room for each element's group and whether it lies beyond the outer high edge
    """
    zero = np.float32(0.0)
    least, most = np.full(3, np.float32(np.inf)), np.full(3, np.float32(-np.inf))
    for i in range(len(row)):
        x = row[i]
        above[i] = x > edges[3]
        if x < edges[0] or above[i]:
            g, x = OUTER, x - edges[3] if above[i] else x - edges[0]
        elif x < edges[1] or x > edges[2]:
            g, x = MIDDLE, x - edges[2] if x > edges[2] else x - edges[1]
        else:
            g = INNER
        group[i], row[i] = g, x
        least[g], most[g] = min(least[g], x), max(most[g], x)
    step, scale = np.zeros(3, np.float32), np.zeros(3, np.float32)
    for g in range(3):
        if most[g] > least[g]:
            step[g] = (most[g] - least[g]) / np.float32(levels[g] - 1)
            scale[g] = np.float32(1.0) / step[g]
    for i in range(len(row)):
        g = group[i]
        x = least[g] + np.rint((row[i] - least[g]) * scale[g]) * step[g]
        if g == OUTER:
            x += edges[3] if above[i] else edges[0]
        elif g == MIDDLE:
            x += edges[2] if x >= zero else edges[1]
        row[i] = x


@njit(cache=True, nogil=True)
def quantise(rows: Any, first: int, frequencies: Any, edges: Any, levels: Any) -> None:
    """In place: rows (n, W); edges: outer low, inner low, inner high, outer high; levels (3,) of each group.

    frequencies : radians per token of each pair, to turn row t, which is token first + t, back before and forth
        after; empty for values
    """
    half = len(frequencies)
    cosine, sine = np.empty(half, np.float32), np.empty(half, np.float32)
    group, above = np.empty(rows.shape[1], np.int8), np.empty(rows.shape[1], np.bool_)
    for t in range(rows.shape[0]):
        for i in range(half):
            angle = (first + t) * frequencies[i]
            cosine[i], sine[i] = np.cos(angle), np.sin(angle)
        if half:
            _turn(rows[t], cosine, sine, True)
        _quantise_row(rows[t], edges, levels, group, above)
        if half:
            _turn(rows[t], cosine, sine, False)
