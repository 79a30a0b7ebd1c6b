"""Who beats whom: constraints, Pareto fronts, and how much of a figure's spread an axis explains.

Knows rows and columns, not where they come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from resv_sim.sweep.config import Constraint

Direction = Literal["minimize", "maximize"]
# What is better, for every column that figures and fronts speak of.
MORE_IS_BETTER = frozenset(
    ("accuracy", "fps", "speedup", "energy_gain", "attention_mass_kept", "topk_overlap", "tokens_per_cluster")
)


def direction(column: str) -> Direction:
    """Which way a column gets better."""
    return "maximize" if column in MORE_IS_BETTER else "minimize"


def holds(row: Mapping[str, Any], constraints: Iterable[Constraint]) -> bool:
    """Whether a row keeps every constraint."""
    return all(c.violation(row[c.column]) <= 0 for c in constraints)


def front(rows: Mapping[int, Mapping[str, Any]], objectives: Mapping[str, Direction]) -> list[int]:
    """Keys of the rows that no other row beats: at least as good in every objective and better in one."""
    known = {key: row for key, row in rows.items() if all(row[c] is not None for c in objectives)}
    if not known:
        return []
    keys = list(known)
    signs = np.array([1.0 if way == "minimize" else -1.0 for way in objectives.values()])
    costs = signs * np.array([[known[key][column] for column in objectives] for key in keys])
    out = []
    for key, cost in zip(keys, costs, strict=True):
        beaten = np.all(costs <= cost, axis=1) & np.any(costs < cost, axis=1)
        if not beaten.any():
            out.append(key)
    return out


def explained(rows: Sequence[Mapping[str, Any]], axes: Sequence[str], column: str) -> dict[str, float]:
    """Share of the column's variance that each axis explains on its own: variance of the means over its values.

    The first-order effect; on a full grid the shares and those of interactions add up to one. 0 for all where the
    column does not vary.
    """
    known = [row for row in rows if row[column] is not None]
    values = np.array([row[column] for row in known], dtype=np.float64)
    total = float(values.var()) if len(values) else 0.0
    if total <= 1e-24 * float(np.mean(values**2)) if len(values) else True:
        return dict.fromkeys(axes, 0.0)
    return {axis: _between(known, axis, values) / total for axis in axes}


def _between(rows: Sequence[Mapping[str, Any]], axis: str, values: Any) -> float:
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(repr(row[axis]), []).append(i)
    mean = values.mean()
    return float(sum(len(group) * (values[group].mean() - mean) ** 2 for group in groups.values()) / len(values))
