"""Numba kernel of a bounded memory of frames: weighted k-means of one point more than there are centroids."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

# The middle of two single frames is equally near to both; the earlier one stays, whatever rounding says.
TIE = 1e-4


@njit(cache=True, nogil=True)
def _distance2(a: Any, b: Any) -> Any:
    total = np.float32(0.0)
    for i in range(len(a)):
        total += (a[i] - b[i]) * (a[i] - b[i])
    return total


@njit(cache=True, nogil=True)
def _update_costs(centroids: Any, weights: Any, slot: int, n: int, costs: Any) -> None:
    for other in range(n):
        if other != slot:
            share = weights[slot] * weights[other] / (weights[slot] + weights[other])
            cost = share * _distance2(centroids[slot], centroids[other])
            costs[slot, other] = costs[other, slot] = cost


@njit(cache=True, nogil=True)
def absorb(features: Any, first: int, centroids: Any, weights: Any, frames: Any, stand_ins: Any, costs: Any) -> None:
    """Take frames `first`, first + 1, ... with `features` (n, F) into a memory of M centroids.

    centroids, stand_ins (M + 1, F), weights, frames (M + 1), costs (M + 1, M + 1); slots of weight 0 are free, the
    last one always is after a call. The cheapest pair to join is the optimum of k-means for one centroid less.
    """
    last = len(weights) - 1
    for t in range(len(features)):
        slot = 0
        while weights[slot] > 0.0:
            slot += 1
        centroids[slot], stand_ins[slot] = features[t], features[t]
        weights[slot], frames[slot] = 1.0, first + t
        _update_costs(centroids, weights, slot, slot, costs)
        if slot < last:
            continue
        a, b = 0, 1
        for i in range(last + 1):
            for j in range(i + 1, last + 1):
                if costs[i, j] < costs[a, b]:
                    a, b = i, j
        total = weights[a] + weights[b]
        for i in range(centroids.shape[1]):
            centroids[a, i] = (weights[a] * centroids[a, i] + weights[b] * centroids[b, i]) / total
        weights[a] = total
        near_a, near_b = _distance2(stand_ins[a], centroids[a]), _distance2(stand_ins[b], centroids[a])
        clearly = abs(near_b - near_a) > TIE * max(near_a, near_b)
        if near_b < near_a if clearly else frames[b] < frames[a]:
            stand_ins[a], frames[a] = stand_ins[b], frames[b]
        if b != last:
            centroids[b], stand_ins[b] = centroids[last], stand_ins[last]
            weights[b], frames[b] = weights[last], frames[last]
        weights[last] = 0.0
        for slot in (a, b) if b != last else (a, a):
            _update_costs(centroids, weights, slot, last, costs)
