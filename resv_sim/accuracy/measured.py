"""The columns `accuracy` and `accuracy_drop` of an experiment's rows: each policy sits the exam once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from resv.policies.base import Policy
from resv.policies.full import Full
from resv_sim.accuracy.config import AccuracyConfig
from resv_sim.accuracy.outcomes import Setting, merged, parts_of, run_part
from resv_sim.accuracy.table import Answered, Bool, drop
from resv_sim.config import Experiment
from resv_sim.errors import ConfigError
from resv_sim.memo import Memo
from resv_sim.rows import Point


def with_accuracy(points: Sequence[Point], experiment: Experiment, memo: Memo) -> list[Point]:
    """The points with the accuracy of their policies. Raises WeightsError or ConfigError."""
    config = experiment.accuracy
    if config is None:
        raise ConfigError(f"experiment {experiment.name}: has no section 'accuracy'.")
    out = []
    for point in points:
        right, lost = accuracy(memo, config, experiment.policies[point.row.policy])
        out.append(replace(point, row=replace(point.row, accuracy=right, accuracy_drop=lost)))
    return out


def accuracy(memo: Memo, config: AccuracyConfig, policy: Policy) -> tuple[float, float]:
    """Share of right answers under the policy, and how much larger it is with the full cache on the same questions."""
    right, reference = (_right(memo, config, p) for p in (policy, Full()))
    return float(right.mean()), drop(reference, right)


def prepare(memo: Memo, config: AccuracyConfig, policy: Policy) -> None:
    """As `accuracy`, for what is remembered alone; what fails here fails again where a point needs it."""
    try:
        accuracy(memo, config, policy)
    except (ValueError, ArithmeticError, RuntimeError):
        return


def _right(memo: Memo, config: AccuracyConfig, policy: Policy) -> Bool:
    setting = Setting(policy.kind, policy, config)
    outcome = merged([run_part(part, memo) for part in parts_of(setting)])
    return _answered(config.model_dump_json()).mark(policy.kind, config, outcome).right


@lru_cache(maxsize=2)
def _answered(config_json: str) -> Answered:
    from resv_sim.accuracy.benchmark import answered_exam

    return answered_exam(AccuracyConfig.model_validate_json(config_json))
