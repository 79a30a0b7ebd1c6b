"""`run(experiment)`: streams -> functional stage -> hardware stage -> rows. The stages in order.

Layers run in parallel threads (the kernels release the interpreter); each layer's results do not depend
on how many there are, so neither does the outcome.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dre_sim.lowering import lower
from dre_sim.platforms import PLATFORMS, OutOfMemoryError, VRexConfig
from dre_sim.workload import PredictMode, StepWork
from energy_models.chip import area
from energy_models.pricing import price
from energy_models.scaling import UnitParameters, unit_powers_w
from resv.policies.base import Policy
from resv.policies.resv import ReSV
from resv.selection import Selection
from resv.trace import KVTrace, Step
from resv_sim import reporting
from resv_sim.config import Experiment, RunConfig
from resv_sim.functional import LayerOutcome, correlation_statistics, functional_layer
from resv_sim.hardware import (
    LayerOnPlatform,
    layer_on_platform,
    memory_bytes_per_s,
    merge_jobs,
    method_of,
    prices,
    unit_parameters,
)
from resv_sim.memo import Memo, cache_directory
from resv_sim.progress import Progress
from resv_sim.provenance import git_revision
from resv_sim.published import compare
from resv_sim.results import ExperimentResult, RatioKey
from resv_sim.rows import Point, PointContext, breakdown_rows, make_point, retrieval_ratios, stage_means
from resv_sim.streams import Streams, make_streams


@dataclass(frozen=True)
class Layer:
    """One layer of every stream: selections by policy, and what each run's platform makes of them."""

    outcomes: tuple[Mapping[str, LayerOutcome], ...]
    on_platform: Mapping[str, tuple[LayerOnPlatform, ...]]


def run(experiment: Experiment, progress: Progress, jobs: int = 2, *, use_cache: bool = True) -> ExperimentResult:
    """Everything the report needs. Raises ValueError (or a subclass) on what the user can mend."""
    return run_with_points(experiment, progress, jobs, use_cache=use_cache)[0]


def run_with_points(
    experiment: Experiment, progress: Progress, jobs: int = 2, *, use_cache: bool = True
) -> tuple[ExperimentResult, tuple[Point, ...]]:
    """As `run`, and the simulated steps behind its rows."""
    memo = Memo(cache_directory() if use_cache else None)
    with progress.task("video", experiment.workload.batch) as advance:
        streams = make_streams(experiment, advance)
    check_offload_capacity(experiment, streams.traces)
    layers = _layers(experiment, streams.traces, memo, progress, jobs)
    points, notes = _points(experiment, streams.traces, layers, progress)
    points = with_accuracy(points, experiment, memo)
    return _result(experiment, streams, layers, points, [*streams.notes, *notes], memo), tuple(points)


# -- layers ----------------------------------------------------------------------------------------------


def _layers(
    experiment: Experiment, traces: Sequence[KVTrace], memo: Memo, progress: Progress, jobs: int
) -> list[Layer]:
    from threadpoolctl import threadpool_limits

    used = {r.policy: experiment.policies[r.policy] for r in experiment.runs}
    topk = experiment.fidelity.topk if experiment.fidelity.enabled else None

    def one(layer: int) -> Layer:
        outcomes = tuple(functional_layer(trace, used, layer, topk, memo) for trace in traces)
        on_platform = {
            r.label: tuple(
                layer_on_platform(experiment.platforms[r.platform], used[r.policy], trace, outcome[r.policy].selections)
                for trace, outcome in zip(traces, outcomes, strict=True)
            )
            for r in experiment.runs
        }
        return Layer(outcomes, on_platform)

    n_layers = experiment.model.n_layers
    with (
        progress.task("layers", n_layers) as advance,
        threadpool_limits(1),
        ThreadPoolExecutor(jobs) as pool,
    ):
        out = []
        for layer in pool.map(one, range(n_layers)):
            out.append(layer)
            advance()
    return out


# -- points ----------------------------------------------------------------------------------------------


def _points(
    experiment: Experiment, traces: Sequence[KVTrace], layers: Sequence[Layer], progress: Progress
) -> tuple[list[Point], list[str]]:
    """Every run at every probe, simulated and priced, gains filled in."""
    revision = git_revision()
    points: list[Point] = []
    notes: list[str] = []
    for r in experiment.runs:
        mine, said = run_points(experiment, r, traces, layers, revision, progress)
        points += mine
        notes += said
    return with_gains(points, experiment.baseline.label), notes


def run_points(
    experiment: Experiment,
    run: RunConfig,
    traces: Sequence[KVTrace],
    layers: Sequence[Layer],
    revision: str,
    progress: Progress,
) -> tuple[list[Point], list[str]]:
    """One run at every probe, or the means of a session's stages; notes say which steps have no row and why."""
    context = point_context(experiment, run.platform, run.policy, revision)
    points: list[Point] = []
    notes: list[str] = []
    for p, step in enumerate(traces[0].probes):
        if not experiment.workload.measures(step, experiment.model.tokens_per_frame):
            continue
        try:
            points.append(_point(experiment, context, traces, layers, run.platform, run.policy, p))
        except OutOfMemoryError as error:
            notes.append(f"{run.label}, {step.kind} at {step.first_token} tokens: no row. {error}")
        progress.finished(f"{run.label}: {step.kind} at {step.first_token} tokens")
    return stage_means(points) if experiment.workload.kind == "session" else points, notes


def step_work(
    experiment: Experiment,
    traces: Sequence[KVTrace],
    layers: Sequence[Layer],
    platform: str,
    policy: str,
    probe: int,
) -> tuple[StepWork, list[Selection]]:
    """What one probe asks of one platform, and the selections (one per stream) it came from."""
    selections = [selection_of(policy, traces[b].probes[probe], layers, b, probe) for b in range(len(traces))]
    on_platform = [layer.on_platform[f"{platform}+{policy}"] for layer in layers]
    transfers = [[layer[b].transfers[probe] for layer in on_platform] for b in range(len(traces))]
    jobs = [merge_jobs([stream.jobs[probe] for stream in layer]) for layer in on_platform]
    config = experiment.policies[policy]
    predict = _predict_mode(config, selections[0])
    shape = config.stored_shape(experiment.model)
    return lower(shape, selections, transfers, predict, method_of(config), jobs), selections


def selection_of(policy: str, step: Step, layers: Sequence[Layer], stream: int, probe: int) -> Selection:
    """All layers of one probe of one stream."""
    outcomes = [layer.outcomes[stream][policy] for layer in layers]
    fidelity = tuple(o.fidelity[probe] for o in outcomes if o.fidelity)
    return Selection(policy, step, tuple(o.selections[probe] for o in outcomes), fidelity)


def _predict_mode(policy: Policy, selection: Selection) -> PredictMode:
    """A policy that scored nothing predicts nothing: its fetch list is known beforehand."""
    scored = any(layer.counts.score_macs for layer in selection.layers)
    return policy.predict if scored else "none"


def _point(
    experiment: Experiment,
    context: PointContext,
    traces: Sequence[KVTrace],
    layers: Sequence[Layer],
    platform: str,
    policy: str,
    probe: int,
) -> Point:
    work, selections = step_work(experiment, traces, layers, platform, policy, probe)
    return simulated(experiment, context, work, selections)


def simulated(
    experiment: Experiment, context: PointContext, work: StepWork, selections: Sequence[Selection] = ()
) -> Point:
    """One step on the context's platform, timed and priced. Without selections a row has no ratio of its own."""
    config = experiment.platforms[context.platform]
    _, model = PLATFORMS[config.kind]
    timeline = model(config).simulate(work)
    bill = price(
        timeline, prices(config, experiment.energy[context.platform]), parameters(experiment, context.platform)
    )
    return make_point(context, work, selections, timeline, bill)


def parameters(experiment: Experiment, platform: str) -> UnitParameters | None:
    """Unit parameters of a V-Rex chip; None for platforms that are priced as a whole."""
    config = experiment.platforms[platform]
    if not isinstance(config, VRexConfig):
        return None
    return unit_parameters(config, [experiment.policies[r.policy] for r in experiment.runs if r.platform == platform])


def point_context(experiment: Experiment, platform: str, policy: str, revision: str) -> PointContext:
    """What the rows of one run say about where they came from."""
    config = experiment.platforms[platform]
    table = experiment.energy[platform]
    has_area = isinstance(config, VRexConfig) or bool(table.areas)
    return PointContext(
        experiment=experiment.name,
        platform=platform,
        policy=policy,
        model=experiment.model.name,
        seed=experiment.trace.seed,
        config_hash=experiment.config_hash(),
        git_revision=revision,
        area_mm2=area(table, parameters(experiment, platform)).chip_mm2 if has_area else None,
        memory_bytes_per_s=memory_bytes_per_s(config),
    )


def with_gains(points: Sequence[Point], baseline: str) -> list[Point]:
    """Speedup and energy gain over the baseline at the same cache length, stage and batch."""
    reference = {(p.row.kv_len_tokens, p.row.stage, p.row.batch): p.row for p in points if p.row.label == baseline}
    out = []
    for p in points:
        base = reference.get((p.row.kv_len_tokens, p.row.stage, p.row.batch))
        if base is None:
            out.append(p)
            continue
        speedup, gain = base.latency_s / p.row.latency_s, base.energy_j / p.row.energy_j
        out.append(replace(p, row=replace(p.row, speedup=speedup, energy_gain=gain)))
    return out


def with_accuracy(points: list[Point], experiment: Experiment, memo: Memo) -> list[Point]:
    """Accuracy of each point's policy, where the experiment asks for it."""
    if experiment.accuracy is None:
        return points
    from resv_sim.accuracy import measured

    return measured.with_accuracy(points, experiment, memo)


def check_offload_capacity(experiment: Experiment, traces: Sequence[KVTrace]) -> None:
    """Raise ValueError where an offload tier is too small for the longest cache."""
    longest = max(step.first_token + step.n_tokens for step in traces[0].probes)
    need = longest * experiment.model.kv_bytes_per_token * experiment.workload.batch
    for r in experiment.runs:
        tier = experiment.platforms[r.platform].offload
        if need > tier.capacity_bytes:
            raise ValueError(
                f"platforms.{r.platform}.offload: {longest} cached tokens of {experiment.model.name} in "
                f"{experiment.workload.batch} stream(s) take {need} bytes, the tier holds {tier.capacity_bytes}. "
                "Shorten workload.kv_lengths_tokens or enlarge offload.capacity_bytes."
            )


# -- result ----------------------------------------------------------------------------------------------


def _result(
    experiment: Experiment,
    streams: Streams,
    layers: Sequence[Layer],
    points: Sequence[Point],
    notes: Sequence[str],
    memo: Memo,
) -> ExperimentResult:
    ratios = _ratios(experiment, streams.traces, layers)
    statistics = {
        **streams.statistics,
        **reporting.ratio_statistics(
            {k: v for k, v in ratios.items() if isinstance(experiment.policies[k.policy], ReSV)}
        ),
        **_table_statistics(experiment, streams.traces, layers),
        **correlation_statistics(streams.traces[0], experiment, memo),
    }
    rows = tuple(p.row for p in points)
    baseline = experiment.baseline
    return ExperimentResult(
        rows=rows,
        breakdown=tuple(b for p in points for b in breakdown_rows(p)),
        ratios=ratios,
        timelines=reporting.shown_timelines(points),
        areas=_areas(experiment),
        dre_power=_core_power(experiment),
        trace_statistics=statistics,
        assumptions=tuple(reporting.assumptions(experiment)),
        notes=(*notes, *reporting.training_warnings(experiment), *reporting.resident_notes(experiment, points)),
        sensitivity=tuple(reporting.sensitivity_rows(experiment, points, parameters)),
        published=tuple(compare(rows, (baseline.platform, baseline.policy), statistics)),
    )


def _ratios(experiment: Experiment, traces: Sequence[KVTrace], layers: Sequence[Layer]) -> dict[RatioKey, Any]:
    """Mean over steps where several fall under one key (the steps of a session)."""
    found: dict[RatioKey, list[Any]] = {}
    session = experiment.workload.kind == "session"
    last = {step.kind: step.first_token for step in traces[0].probes}
    for policy in dict.fromkeys(r.policy for r in experiment.runs):
        for p, step in enumerate(traces[0].probes):
            if not experiment.workload.measures(step, experiment.model.tokens_per_frame):
                continue
            selections = [selection_of(policy, step, layers, b, p) for b in range(len(traces))]
            if not any(layer.counts.score_macs for layer in selections[0].layers):
                continue
            length = last[step.kind] if session else step.first_token
            found.setdefault(RatioKey(policy, length, step.kind), []).append(retrieval_ratios(selections))
    return {key: np.mean(values, axis=0) for key, values in found.items()}


def _table_statistics(experiment: Experiment, traces: Sequence[KVTrace], layers: Sequence[Layer]) -> dict[str, object]:
    """Bytes of the HC tables beside the KV cache they describe, at the longest cache."""
    step = traces[0].probes[-1]
    cache_bytes = step.first_token * experiment.model.kv_bytes_per_token
    for r in experiment.runs:
        table_bytes = sum(layer.on_platform[r.label][0].table_bytes[-1] for layer in layers)
        if table_bytes and cache_bytes:
            return {"hc_table_share": table_bytes / cache_bytes}
    return {}


def _areas(experiment: Experiment) -> dict[str, dict[str, float]]:
    out = {}
    for label, table in experiment.energy.items():
        if table.kind == "vrex" or table.areas:
            bill = area(table, parameters(experiment, label))
            out[label] = {row.component: row.chip_mm2 for row in bill.rows}
    return out


def _core_power(experiment: Experiment) -> dict[str, float]:
    """Power of one core of the first V-Rex platform at full activity, by unit."""
    for label, table in experiment.energy.items():
        units = parameters(experiment, label)
        if units is not None:
            return dict(unit_powers_w(table, units).items())
    return {}
