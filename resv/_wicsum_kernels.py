"""Numba kernels of WiCSum thresholding: exact prefixes, and a one-pass histogram of a row's buckets.

The arithmetic is fixed in words in `wicsum.py`, which also checks what comes in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from resv.wicsum import Rule


@njit(cache=True, nogil=True)
def _total(row: Any, counts: Any) -> float:
    total = 0.0
    for j in range(len(row)):
        total += np.float64(row[j]) * counts[j]
    return total


@njit(cache=True, nogil=True)
def _limit(ratio: float, total: float) -> float:
    return np.inf if ratio >= 1.0 else ratio * total


@njit(cache=True, nogil=True)
def exact_prefixes(scores: Any, counts: Any, order: Any, ratio: float, prefix: Any, no_mass: Any) -> None:
    """Length of each row's exact prefix; `order` holds the clusters in their low 32 bits, best last."""
    n = scores.shape[1]
    for r in range(len(scores)):
        total = _total(scores[r], counts)
        no_mass[r] = n > 0 and not total > 0.0
        if no_mass[r] and ratio < 1.0:
            prefix[r] = 1
            continue
        limit, running, taken = _limit(ratio, total), 0.0, 0
        while taken < n and not running > limit:
            j = 0xFFFFFFFF - (order[r, n - 1 - taken] & 0xFFFFFFFF)
            running += np.float64(scores[r, j]) * counts[j]
            taken += 1
        prefix[r] = taken


@njit(cache=True, nogil=True)
def _hold(row: Any, score_bits: int, values: Any) -> tuple[float, float]:
    """Scores as the unit holds them, in `values` (K,) float64; returns the row's range."""
    low, high = np.float64(row.min()), np.float64(row.max())
    if score_bits >= 16 or high == low:
        for j in range(len(row)):
            values[j] = row[j]
    else:
        levels = np.float64((1 << score_bits) - 1)
        for j in range(len(row)):
            q = np.rint((row[j] - low) * (levels / (high - low)))
            values[j] = low + q * (high - low) / levels
    return low, high


@njit(cache=True, nogil=True)
def _assign(row: Any, values: Any, low: float, high: float, rule: Rule, bucket: Any) -> None:
    """Bucket of every element, 0 = highest range."""
    last = np.int32(rule.buckets - 1)
    if rule.exponent:
        top = np.int32(np.float32(high).view(np.int32) >> rule.key_shift)
        bits = row.view(np.int32)
        for j in range(len(row)):
            bucket[j] = min(last, top - np.int32(bits[j] >> rule.key_shift))
    elif high == low:
        bucket[:] = 0
    else:
        scale = rule.buckets / (high - low)
        for j in range(len(row)):
            # A held value may exceed the maximum by rounding: truncation keeps it in bucket 0.
            bucket[j] = min(last, np.int32((high - values[j]) * scale))


@njit(cache=True, nogil=True)
def _exit_group(values: Any, counts: Any, in_bucket: Any, running: float, limit: float, group: int) -> int:
    """Groups read until the running sum plus the bucket's partial sum exceeds the limit."""
    partial, n = 0.0, len(values)
    for j in range(n):
        if in_bucket[j]:
            partial += values[j] * counts[j]
        if ((j + 1) % group == 0 or j + 1 == n) and running + partial > limit:
            return j // group + 1
    return 0


@njit(cache=True, nogil=True)
def _find_exit(values: Any, counts: Any, bucket: Any, sums: Any, limit: float, rule: Rule) -> tuple[int, int]:
    """Bucket in which the row ends (`buckets` = it never does), and the groups read of it (0 = all)."""
    running = 0.0
    for b in range(rule.buckets):
        if running + sums[b] > limit:
            if not rule.group:
                return b, 0
            # No earlier bucket ended inside: were a part of one above the limit and the whole not, it and all
            # after it would be negative, and the row's total below its limit.
            return b, _exit_group(values, counts, bucket == b, running, limit, rule.group)
        running += sums[b]
    return rule.buckets, 0


@njit(cache=True, nogil=True)
def scan_buckets(scores: Any, counts: Any, rule: Rule, mask: Any, visited: Any, elements: Any) -> None:
    """Selected columns (R, C) of score rows with token counts (C,); ranges and elements that each row (R,) visits."""
    n = scores.shape[1]
    values, bucket, sums = np.empty(n), np.empty(n, np.int32), np.empty(rule.buckets)
    for r in range(len(scores)):
        low, high = _hold(scores[r], rule.score_bits, values)
        total = _total(values, counts)
        if not total > 0.0 and rule.ratio < 1.0:
            mask[r, values.argmax()] = True
            continue
        _assign(scores[r], values, low, high, rule, bucket)
        sums[:] = 0.0
        for j in range(n):
            sums[bucket[j]] += values[j] * counts[j]
        end, groups = _find_exit(values, counts, bucket, sums, _limit(rule.ratio, total), rule)
        stop = groups * rule.group if groups else n
        for j in range(n):
            mask[r, j] = bucket[j] < end or (bucket[j] == end and j < stop)
        visited[r] = rule.buckets if rule.scan_all else min(rule.buckets, end + 1)
        elements[r] = (visited[r] - 1) * n + min(n, stop)
