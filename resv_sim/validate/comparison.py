"""`Point`: one compared number. `Summary`: the points of one table and metric. `Limit`: what is asked of them.

Errors are signed, ours over the reference less one; summaries are of their absolute values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Point:
    """`role` as in the table: a `calibrate` row has set a constant, a `context` row lacks a condition that matters."""

    model: str
    table: str
    metric: str
    row: str
    ours: float
    reference: float
    unit: str
    role: str = "validate"
    source: str = ""

    @property
    def error(self) -> float:
        return self.ours / self.reference - 1.0


@dataclass(frozen=True)
class Summary:
    """The fields of `--json`, in their order; errors as fractions."""

    model: str
    table: str
    metric: str
    n_rows: int
    median_abs_error: float
    p90_abs_error: float
    worst_abs_error: float
    worst_row: str


@dataclass(frozen=True)
class Limit:
    """Largest median, 90th percentile and mean of absolute errors that is asked for; None where none is.

    row : a row with a larger error is listed
    """

    row: float
    median: float | None = None
    p90: float | None = None
    mean: float | None = None


# What the reference tables' own spread lets one ask: two trusted simulators of one DDR4 differ by 2.5 % in the
# median (12.8 % at most) in saturated bandwidth and by 1.5 % (p90 17 %) in mean latency.
LIMITS: dict[tuple[str, str], Limit] = {
    ("dram", "saturated bandwidth"): Limit(0.10, median=0.03, p90=0.10),
    ("dram", "unsaturated mean latency"): Limit(0.05, median=0.05),
    ("dram", "full-queue mean latency"): Limit(0.05, median=0.05),
    ("ssd", "bandwidth"): Limit(0.15, median=0.05, p90=0.15),
    ("ssd", "mean latency"): Limit(0.07, median=0.07),
    ("ssd", "p99 latency"): Limit(0.20, median=0.20),
    ("link", "payload rate"): Limit(0.10, median=0.10),
    ("gpu", "decode"): Limit(0.10, mean=0.10),
    ("gpu", "prefill"): Limit(0.20, mean=0.20),
    ("gpu", "vision"): Limit(0.20, mean=0.20),
    ("energy", ""): Limit(0.20),
}


def limit_of(model: str, metric: str) -> Limit | None:
    """The entry of `LIMITS` for a model and the metric's part before its first comma; None where nothing is asked."""
    found = [limit for (of, name), limit in LIMITS.items() if of == model and name in ("", metric.split(",")[0])]
    return found[0] if found else None


def group(points: Sequence[Point]) -> dict[tuple[str, str, str], list[Point]]:
    """Points by model, table and metric, in the order of their first appearance.

    Rows that are no validation rows stand apart: their role is added to the metric.
    """
    groups: dict[tuple[str, str, str], list[Point]] = {}
    for point in points:
        metric = point.metric if point.role == "validate" else f"{point.metric} ({point.role})"
        groups.setdefault((point.model, point.table, metric), []).append(point)
    return groups


def summarise(points: Sequence[Point]) -> list[Summary]:
    """One summary per group."""
    return [_summary(*key, members) for key, members in group(points).items()]


def mean_abs_error(points: Sequence[Point]) -> float:
    return float(np.mean([abs(point.error) for point in points]))


def _summary(model: str, table: str, metric: str, points: Sequence[Point]) -> Summary:
    errors = np.array([abs(point.error) for point in points])
    worst = points[int(errors.argmax())].row
    median, p90 = (float(np.percentile(errors, q)) for q in (50, 90))
    return Summary(model, table, metric, len(points), median, p90, float(errors.max()), worst)


def meets(limit: Limit, points: Sequence[Point]) -> bool:
    """Whether every bound that the limit sets on the whole group holds."""
    errors = [abs(point.error) for point in points]
    asked = ((limit.median, np.percentile(errors, 50)), (limit.p90, np.percentile(errors, 90)))
    bounds = (*asked, (limit.mean, np.mean(errors)))
    return all(bound is None or float(value) <= bound for bound, value in bounds)


def beyond(limit: Limit, points: Sequence[Point]) -> list[Point]:
    """Rows that the limit lists, worst first."""
    return sorted((p for p in points if abs(p.error) > limit.row), key=lambda p: -abs(p.error))
