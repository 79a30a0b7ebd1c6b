"""Numba kernel of the threshold unit: a one-pass histogram that finds the exit the hardware finds.

The unit rescans a row once per bucket; the kernel adds each element to its bucket in cluster order, so
every float64 sum is the one the rescan gives, bit for bit (docs/dre.md, WTU). Cycles are not its business.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

_MAGNITUDE = np.int32(0x7FFFFFFF)  # the key of -0.0 is that of 0.0


class WtuParams(NamedTuple):
    """Scalars of one unit and of the algorithm. `group` is 0 unless a row may end within a bucket."""

    ratio: float
    n_buckets: int
    exponent: bool
    key_shift: int
    score_bits: int
    group: int


@njit(cache=True, nogil=True)
def _hold(scores: Any, low: Any, high: Any, score_bits: int) -> NDArray[np.float64]:
    """Scores as the unit holds them: bf16 as they came, or fixed point over the row's range."""
    values = np.empty(scores.shape)
    levels = float((1 << score_bits) - 1)
    for r in range(len(scores)):
        if score_bits >= 16 or high[r] == low[r]:
            for i in range(scores.shape[1]):
                values[r, i] = scores[r, i]
        else:
            span = high[r] - low[r]
            for i in range(scores.shape[1]):
                values[r, i] = low[r] + np.rint((scores[r, i] - low[r]) * (levels / span)) * span / levels
    return values


@njit(cache=True, nogil=True)
def _bucket(scores: Any, values: Any, low: Any, high: Any, p: WtuParams) -> NDArray[np.int32]:
    """Bucket of every element, highest range first."""
    bucket = np.zeros(scores.shape, np.int32)
    bits, tops = scores.view(np.int32), high.astype(np.float32).view(np.int32)
    last = np.int32(p.n_buckets - 1)
    for r in range(len(scores)):
        if p.exponent:
            top = (tops[r] & _MAGNITUDE) >> p.key_shift
            for i in range(scores.shape[1]):
                bucket[r, i] = min(last, top - ((bits[r, i] & _MAGNITUDE) >> p.key_shift))
        elif high[r] != low[r]:
            # A held score may lie above the row's maximum by rounding: truncation keeps it in bucket 0.
            scale = p.n_buckets / (high[r] - low[r])
            for i in range(scores.shape[1]):
                bucket[r, i] = min(last, np.int32((high[r] - values[r, i]) * scale))
    return bucket


@njit(cache=True, nogil=True)
def _sum(values: Any, counts: Any, bucket: Any, totals: Any, sums: Any) -> None:
    """Weighted sums of each row and of each of its buckets, in cluster order.

    Columns go outside, rows inside: a row's additions depend on each other, those of different rows do not.
    """
    for i in range(values.shape[1]):
        count = np.float64(counts[i])
        for r in range(len(values)):
            weighted = values[r, i] * count
            totals[r] += weighted
            sums[r, bucket[r, i]] += weighted


@njit(cache=True, nogil=True)
def _exit_group(values: Any, counts: Any, bucket: Any, b: int, running: float, threshold: float, group: int) -> int:
    """Groups of bucket `b`, whose sum exceeds the threshold, read until its partial sum does."""
    partial = 0.0
    for i in range(len(values)):
        if bucket[i] == b:
            partial += values[i] * counts[i]
        if (i + 1) % group == 0 and running + partial > threshold:
            return i // group + 1
    return (len(values) - 1) // group + 1


@njit(cache=True, nogil=True)
def _prefix_in(values: Any, counts: Any, bucket: Any, b: int, running: float, threshold: float, scratch: Any) -> int:
    """Elements of bucket `b`, highest first, until the running sum exceeds the threshold."""
    n = 0
    for i in range(len(values)):
        if bucket[i] == b:
            scratch[n] = i
            n += 1
    members = scratch[:n]
    order = np.argsort(-values[members], kind="mergesort")
    for taken in range(n):
        i = members[order[taken]]
        running += values[i] * counts[i]
        if running > threshold:
            return taken + 1
    return n


@njit(cache=True, nogil=True)
def _exit(
    values: Any, counts: Any, bucket: Any, sums: Any, threshold: float, p: WtuParams, scratch: Any
) -> tuple[int, int, int]:
    """Buckets one row visits, groups read of the last (0 = all), elements the exact prefix takes of it.

    The third is -1 where nothing exceeds the threshold.
    """
    running = 0.0
    for b in range(p.n_buckets):
        if running + sums[b] > threshold:
            # Only here can a part of the bucket exceed: below a bucket with negative scores all are negative,
            # so that the running sum after it is at least the row's total.
            groups = _exit_group(values, counts, bucket, b, running, threshold, p.group) if p.group else 0
            prefix = _prefix_in(values, counts, bucket, b, running, threshold, scratch)
            return b + 1, groups, prefix
        running += sums[b]
    return p.n_buckets, 0, -1


@njit(cache=True, nogil=True)
def _select(bucket: Any, last: int, end: int, union: Any) -> tuple[int, int]:
    """Add one row to the union; how many it selected, and how many of them in buckets before `last`."""
    n_above, n_last = 0, 0
    for i in range(len(bucket)):
        above = bucket[i] < last
        inside = (bucket[i] == last) & (i < end)
        n_above += above
        n_last += inside
        union[i] |= above | inside
    return n_above + n_last, n_above


@njit(cache=True, nogil=True)
def run(scores: Any, counts: Any, low: Any, high: Any, p: WtuParams) -> tuple[Any, Any, Any, Any, Any]:
    """Scan all rows of one KV head, whose ranges are `low` and `high` (R,) float64.

    Returns buckets visited, groups read of the last of them (0 = all), clusters selected, clusters in the
    exact prefix, each (R,) int32, and the union over the rows (K,) bool.
    """
    n_rows, n = scores.shape
    buckets, last_groups = np.zeros(n_rows, np.int32), np.zeros(n_rows, np.int32)
    n_selected, n_prefix = np.ones(n_rows, np.int32), np.ones(n_rows, np.int32)
    union, scratch = np.zeros(n, np.bool_), np.empty(n, np.int64)
    totals, sums = np.zeros(n_rows), np.zeros((n_rows, p.n_buckets))
    values = _hold(scores, low, high, p.score_bits)
    bucket = _bucket(scores, values, low, high, p)
    _sum(values, counts, bucket, totals, sums)
    for r in range(n_rows):
        if not totals[r] > 0.0 and p.ratio < 1.0:
            union[values[r].argmax()] = True
            continue
        # All means all: rounding must not end a row early at ratio 1.
        threshold = np.inf if p.ratio >= 1.0 else p.ratio * totals[r]
        b, groups, prefix = _exit(values[r], counts, bucket[r], sums[r], threshold, p, scratch)
        buckets[r], last_groups[r] = b, groups
        n_selected[r], above = _select(bucket[r], b - 1, groups * p.group if groups else n, union)
        n_prefix[r] = n if prefix < 0 else above + prefix
    return buckets, last_groups, n_selected, n_prefix, union
