"""What a worker does: the functional stage of one layer for many settings, and whole points from what is stored.

The disk memo carries outcomes from the one to the other. A process also keeps what points next to each other
share: streams, unpacked outcomes, fetch plans, DRE jobs and whole runs (a baseline is the same at most points).
Knows no scheduler.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel

from dre_sim.platforms import VRexConfig
from resv.policies.base import Policy
from resv.trace import KVTrace
from resv_sim import pipeline
from resv_sim.config import Experiment, RunConfig
from resv_sim.functional import LayerOutcome, functional_key, functional_layer
from resv_sim.hardware import LayerOnPlatform, dre_jobs, fetch_plans, kvmu_of, on_platform
from resv_sim.memo import Memo, key_of
from resv_sim.progress import Progress
from resv_sim.provenance import git_revision
from resv_sim.rows import Point
from resv_sim.streams import Streams, make_streams

T = TypeVar("T")


@dataclass(frozen=True)
class Evaluated:
    """What a point gave: rows (column -> value) with their parts, or the error that stopped it.

    exposed_s, energy_j : per row, component -> seconds and joules
    """

    index: int
    rows: tuple[dict[str, Any], ...] = ()
    exposed_s: tuple[dict[str, float], ...] = ()
    energy_j: tuple[dict[str, float], ...] = ()
    notes: tuple[str, ...] = ()
    error: str | None = None


class _Recent:
    """The last few values made, by key."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._known: OrderedDict[str, Any] = OrderedDict()

    def get(self, key: str, make: Callable[[], T]) -> T:
        if key not in self._known:
            made = make()
            self._known[key] = made
            while len(self._known) > self._size:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        known: T = self._known[key]
        return known


@dataclass
class _Kept:
    """Sized for one full-size setting or a few: an unpacked outcome of 10,000 tokens and 32 layers is 25 MB."""

    streams: _Recent = field(default_factory=lambda: _Recent(2))
    outcomes: _Recent = field(default_factory=lambda: _Recent(3))
    plans: _Recent = field(default_factory=lambda: _Recent(6))
    jobs: _Recent = field(default_factory=lambda: _Recent(6))
    runs: _Recent = field(default_factory=lambda: _Recent(16))


@cache
def _kept() -> _Kept:
    """One per process."""
    return _Kept()


# -- keys -------------------------------------------------------------------------------------------------


def stream_key(experiment: Experiment) -> str:
    """What the traces follow from."""
    workload = experiment.workload.model_dump(mode="json")
    return key_of("streams", *_plain(experiment.model, experiment.video, experiment.trace), workload)


def algorithm_key(experiment: Experiment) -> str:
    """What the functional stage follows from: points that share it share every outcome."""
    used = dict.fromkeys(run.policy for run in experiment.runs)
    policies = _plain(*(experiment.policies[label] for label in used))
    return key_of("algorithm", stream_key(experiment), _topk(experiment), policies)


def used_policies(experiment: Experiment) -> list[Policy]:
    """Policies that some run uses."""
    return [experiment.policies[label] for label in dict.fromkeys(run.policy for run in experiment.runs)]


def _topk(experiment: Experiment) -> int | None:
    return experiment.fidelity.topk if experiment.fidelity.enabled else None


def _plain(*models: BaseModel) -> list[dict[str, Any]]:
    return [model.model_dump(mode="json") for model in models]


def _outcome_key(experiment: Experiment, policy: Policy) -> str:
    return key_of("outcome", stream_key(experiment), _topk(experiment), _plain(policy))


def _run_key(experiment: Experiment, run: RunConfig) -> str:
    """Everything that the run's rows follow from, but for what `_renamed` fills in."""
    units = pipeline.parameters(experiment, run.platform)
    return key_of(
        "run",
        _outcome_key(experiment, experiment.policies[run.policy]),
        _plain(experiment.platforms[run.platform], experiment.energy[run.platform]),
        None if units is None else _plain(units),
        run.label,
    )


# -- tasks ------------------------------------------------------------------------------------------------


def prepare(memo: Memo, experiment: Experiment, policies: Sequence[Policy], layer: int) -> None:
    """Store what the policies select in one layer of the experiment's streams; made once for all of them.

    What fails here fails again, and is reported, where a point needs it.
    """
    from threadpoolctl import threadpool_limits

    topk = _topk(experiment)
    try:
        with threadpool_limits(1):
            for trace in _streams(experiment).traces:
                missing = {
                    str(number): policy
                    for number, policy in enumerate(policies)
                    if not memo.holds(functional_key(trace, policy, layer, topk))
                }
                if missing:
                    functional_layer(trace, missing, layer, topk, memo)
    except (ValueError, ArithmeticError, RuntimeError):
        return


def prepare_accuracy(memo: Memo, experiment: Experiment, policy: Policy) -> None:
    """Store how accurate the embedded model is under a policy; nothing where the experiment does not ask for it."""
    if experiment.accuracy is not None:
        from resv_sim.accuracy import measured

        measured.prepare(memo, experiment.accuracy, policy)


def evaluate(memo: Memo, points: Sequence[tuple[int, Experiment]], after: object = None) -> list[Evaluated]:
    """Every point's rows or error, in the order given. `after` is what a scheduler waits for."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        return [_evaluated(memo, index, experiment) for index, experiment in points]


def _evaluated(memo: Memo, index: int, experiment: Experiment) -> Evaluated:
    try:
        found, notes = _points(memo, experiment)
        rows = tuple(asdict(p.row) for p in found)
        _check_finite(rows)
    except Exception as error:  # one point's error is that point's result, whatever it is
        return Evaluated(index, error=f"{type(error).__name__}: {' '.join(str(error).split())}")
    return Evaluated(index, rows, tuple(p.exposed_s for p in found), tuple(p.energy_j for p in found), tuple(notes))


def _check_finite(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        for column, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ArithmeticError(f"{column} is {value} for {row['platform']}+{row['policy']}")


# -- points -----------------------------------------------------------------------------------------------


def _points(memo: Memo, experiment: Experiment) -> tuple[list[Point], list[str]]:
    streams = _streams(experiment)
    pipeline.check_offload_capacity(experiment, streams.traces)
    points: list[Point] = []
    notes = list(streams.notes)
    for run in experiment.runs:
        mine, said = _run(memo, experiment, run, streams.traces)
        points += mine
        notes += said
    renamed = [_renamed(point, experiment) for point in points]
    return pipeline.with_accuracy(pipeline.with_gains(renamed, experiment.baseline.label), experiment, memo), notes


def _renamed(point: Point, experiment: Experiment) -> Point:
    """The same point with the experiment's own name and hash: a run may have been computed for another."""
    named = {"experiment": experiment.name, "config_hash": experiment.config_hash(), "seed": experiment.trace.seed}
    return replace(point, row=replace(point.row, **named))  # type: ignore[arg-type]


def _streams(experiment: Experiment) -> Streams:
    return _kept().streams.get(stream_key(experiment), lambda: make_streams(experiment, lambda: None))


def _run(
    memo: Memo, experiment: Experiment, run: RunConfig, traces: Sequence[KVTrace]
) -> tuple[list[Point], list[str]]:
    def make() -> tuple[list[Point], list[str]]:
        layers = _layers(memo, experiment, run, traces)
        return pipeline.run_points(experiment, run, traces, layers, _revision(), Progress(quiet=True))

    return _kept().runs.get(_run_key(experiment, run), make)


@cache
def _revision() -> str:
    return git_revision()


def _layers(memo: Memo, experiment: Experiment, run: RunConfig, traces: Sequence[KVTrace]) -> list[pipeline.Layer]:
    """All layers of one run, each part as it was where an earlier point had the same."""
    platform, policy = experiment.platforms[run.platform], experiment.policies[run.policy]
    kept, key, topk = _kept(), _outcome_key(experiment, policy), _topk(experiment)
    n_layers = experiment.model.n_layers
    outcomes = kept.outcomes.get(
        key, lambda: [[_outcome(memo, trace, policy, i, topk) for trace in traces] for i in range(n_layers)]
    )
    kvmu = kvmu_of(platform)
    plans = kept.plans.get(
        key_of(key, _plain(kvmu)),
        lambda: [
            [fetch_plans(kvmu, policy, t, o.selections) for t, o in zip(traces, layer, strict=True)]
            for layer in outcomes
        ],
    )
    jobs = kept.jobs.get(
        key_of(key, _dre_fields(platform)),
        lambda: [[dre_jobs(platform, policy, outcome.selections) for outcome in layer] for layer in outcomes],
    )
    return [_layer(run, *parts) for parts in zip(outcomes, plans, jobs, strict=True)]


def _outcome(memo: Memo, trace: KVTrace, policy: Policy, layer: int, topk: int | None) -> LayerOutcome:
    return functional_layer(trace, {"": policy}, layer, topk, memo)[""]


def _dre_fields(platform: Any) -> str:
    if not isinstance(platform, VRexConfig):
        return ""
    return json.dumps([*_plain(platform.hcu, platform.wtu), platform.lxe.cores])


def _layer(run: RunConfig, outcomes: Sequence[LayerOutcome], plans: Any, jobs: Any) -> pipeline.Layer:
    placed: tuple[LayerOnPlatform, ...] = tuple(on_platform(p, j) for p, j in zip(plans, jobs, strict=True))
    return pipeline.Layer(tuple({run.policy: outcome} for outcome in outcomes), {run.label: placed})
