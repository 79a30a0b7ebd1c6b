"""The paper's experiments, each run once: figures share traces, steps and rows.

The paper's figures are means over a data set, and what an output token retrieves differs from stream to stream: rows of
ReSV are means over `STREAMS` streams, seeds apart. Budgets and full caches do not differ and are run once. Timelines
are the first stream's. Batch 1 is traced. A larger batch is made from the traced streams' steps at the same cache
length, which its streams repeat in turn; its rows are marked `statistics`. The streams share the device's capacity for
K and V: a traced one has its part of `recent_bytes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from dre_sim.breakdown import exposed_ps
from dre_sim.lowering import dense_step
from dre_sim.platforms import OutOfMemoryError
from dre_sim.workload import DreJob, FetchWork, Gemm, LayerWork, PredictionWork, StepWork
from resv.trace import ModelShape, StepKind
from resv_sim import library
from resv_sim.config import Experiment, load_experiment
from resv_sim.memo import Memo, cache_directory
from resv_sim.pipeline import point_context, run_with_points, simulated, with_gains
from resv_sim.progress import Progress
from resv_sim.results import ExperimentResult, ResultRow
from resv_sim.rows import Point

Key = tuple[str, StepKind, int]
STREAMS, AVERAGED_POLICY = 4, "resv"
_ADDED = frozenset(f.name for f in fields(PredictionWork)) - frozenset(
    ("hash_gemm", "query_gemm", "clusters", "score_depth", "dre", "cut")
)


def paper_experiment(name: str) -> Path:
    """The bundled file of one of the paper's experiments."""
    return library.bundled_root() / "paper" / f"{name}.yaml"


@dataclass(frozen=True)
class Outcome:
    """One experiment, run. `points` are keyed by platform+policy, stage and cache length; rows are means over streams.

    `streams` holds the points of every stream where there are several.
    """

    experiment: Experiment
    result: ExperimentResult
    points: Mapping[Key, Point]
    streams: Mapping[Key, Sequence[Point]] = field(default_factory=dict)

    @property
    def lengths(self) -> list[int]:
        return sorted({row.kv_len_tokens for row in self.result.rows})

    @property
    def baseline(self) -> tuple[str, str]:
        return self.experiment.baseline.platform, self.experiment.baseline.policy

    def row(self, label: str, stage: StepKind, length: int) -> ResultRow:
        return self.points[label, stage, length].row

    def latency_s(self, label: str, stage: StepKind) -> dict[int, float]:
        """Latency over the cache length."""
        return {length: self.row(label, stage, length).latency_s for length in self.lengths}

    def range_s(self, label: str, stage: StepKind, length: int) -> tuple[float, float]:
        """Shortest and longest latency of one step among the streams."""
        of_streams = [point.row.latency_s for point in self.streams[label, stage, length]]
        return min(of_streams), max(of_streams)

    def simulate(self, label: str, work: StepWork) -> Point:
        """A step that is not of the trace, on the platform of one run. Raises OutOfMemoryError."""
        platform, policy = label.split("+")
        context = point_context(self.experiment, platform, policy, self.result.rows[0].git_revision)
        return simulated(self.experiment, context, work)


class Study:
    """Runs what is asked for, once."""

    def __init__(self, progress: Progress, jobs: int = 2, *, use_cache: bool = True) -> None:
        self.progress, self.jobs, self.use_cache = progress, jobs, use_cache
        self._of_runs = progress.of_parts()
        self.memo = Memo(cache_directory() if use_cache else None)
        self._outcomes: dict[str, Outcome] = {}
        self._batched: dict[tuple[str, str, StepKind, int], list[Point]] = {}

    def outcome(self, name: str) -> Outcome:
        """The experiment `configs/paper/<name>.yaml`, run."""
        if name not in self._outcomes:
            experiment, _ = load_experiment(str(paper_experiment(name)))
            self._outcomes[name] = self._averaged(experiment)
        return self._outcomes[name]

    def _averaged(self, experiment: Experiment) -> Outcome:
        """An experiment run on all its streams."""
        result, points = self._ran(experiment)
        others = [_keyed(self._ran(e)[1]) for e in other_streams(experiment)]
        streams = {key: [p, *(o[key] for o in others if key in o)] for key, p in _keyed(points).items()}
        means = with_gains([mean_point(s) for s in streams.values()], experiment.baseline.label)
        result = replace(result, rows=tuple(p.row for p in means))
        return Outcome(experiment, result, _keyed(means), streams)

    def _ran(self, experiment: Experiment) -> tuple[ExperimentResult, tuple[Point, ...]]:
        done = run_with_points(experiment, self._of_runs, self.jobs, use_cache=self.use_cache)
        labels = ", ".join(run.label for run in experiment.runs)
        self.progress.finished(f"{experiment.name}, seed {experiment.trace.seed}: {labels}")
        return done

    def batched(self, name: str, label: str, stage: StepKind, batch: int) -> list[Point]:
        """A run's steps of one stage with `batch` streams, at every length where they fit."""
        key = (name, label, stage, batch)
        if key not in self._batched:
            outcome = self.outcome(name)
            if outcome.experiment.policies[label.partition("+")[2]].recent_bytes:
                outcome = self._averaged(with_share(outcome.experiment, label, stage, batch))
            self._batched[key] = list(_batched(outcome, label, stage, batch))
        return self._batched[key]

    def batched_gains(self, name: str, labels: Sequence[str], stage: StepKind, batch: int) -> list[Point]:
        """`batched` for several runs, gains over the experiment's baseline filled in."""
        points = [p for label in labels for p in self.batched(name, label, stage, batch)]
        return with_gains(points, self.outcome(name).experiment.baseline.label)


def other_streams(experiment: Experiment) -> list[Experiment]:
    """The runs that are averaged, with the seeds of the other streams; none for a session."""
    runs = tuple(run for run in experiment.runs if run.policy == AVERAGED_POLICY)
    if not runs or experiment.workload.kind != "probes":
        return []
    first = experiment.trace.seed
    traces = [experiment.trace.model_copy(update={"seed": first + i}) for i in range(1, STREAMS)]
    return [experiment.model_copy(update={"runs": runs, "baseline": runs[0], "trace": trace}) for trace in traces]


def vision_s(point: Point) -> float:
    """When the vision encoder of a frame step is done, seconds from its start."""
    return 1e-12 * max(s.end_ps for s in point.timeline.spans if s.what == "vision")


def exposed_share(streams: Sequence[Point], what: str) -> float:
    """Share of a step that `what` takes and nothing else hides, its time over the steps' time of all streams."""
    exposed = sum(exposed_ps(point.timeline).get(what, 0) for point in streams)
    return exposed / sum(point.timeline.end_ps for point in streams)


def mean_point(points: Sequence[Point]) -> Point:
    """The first stream's step with the mean of all streams' rows."""
    return replace(points[0], row=mean_row([p.row for p in points]))


def mean_row(rows: Sequence[ResultRow]) -> ResultRow:
    """Mean of every number that all rows have; rates are those of the means. Counts stay whole."""
    first = rows[0]
    if len(rows) == 1:
        return first
    means: dict[str, float] = {}
    for f in fields(ResultRow):
        values = [getattr(row, f.name) for row in rows]
        if f.name != "seed" and all(isinstance(v, (int, float)) for v in values):
            mean = float(np.mean(values))
            means[f.name] = round(mean) if isinstance(values[0], int) else mean
    row = replace(first, **means)  # type: ignore[arg-type]
    return replace(row, power_w=row.energy_j / row.latency_s, fps=first.fps and 1.0 / row.latency_s)


def _keyed(points: Sequence[Point]) -> dict[Key, Point]:
    return {(p.row.label, p.work.kind, p.row.kv_len_tokens): p for p in points}


def with_share(experiment: Experiment, label: str, stage: StepKind, share: int) -> Experiment:
    """One stage of one run of the experiment, its policy given a `share`-th of its room on the device."""
    run = next(run for run in experiment.runs if run.label == label)
    policy = experiment.policies[run.policy]
    smaller = policy.model_copy(update={"recent_bytes": (policy.recent_bytes or 0) // share})
    policies = {**experiment.policies, run.policy: smaller}
    workload = experiment.workload.model_copy(update={"stages": (stage,)})
    return experiment.model_copy(update={"policies": policies, "runs": (run,), "baseline": run, "workload": workload})


def _batched(outcome: Outcome, label: str, stage: StepKind, batch: int) -> list[Point]:
    shape, points = outcome.experiment.model, []
    for length in outcome.lengths:
        work = batched_work(shape, [point.work for point in outcome.streams[label, stage, length]], batch)
        try:
            points.append(outcome.simulate(label, work))
        except OutOfMemoryError:
            continue
    return points


def batched_work(shape: ModelShape, traced: Sequence[StepWork], batch: int) -> StepWork:
    """`batch` streams that do in turn what the traced ones do: products see more rows, everything else adds up."""
    first = traced[0]
    members = list(islice(cycle(traced), batch))
    work = dense_step(shape, first.n_new, first.kv_len_tokens, batch, first.kind)
    layers = tuple(map(_together, work.layers, zip(*(member.layers for member in members), strict=True)))
    return replace(work, layers=layers, predict=first.predict, policy=first.policy)


def _together(dense: LayerWork, streams: Sequence[LayerWork]) -> LayerWork:
    attention = [one.attention for one in streams]
    fetches = [one.fetch for one in streams if one.fetch]
    predictions = [one.prediction for one in streams if one.prediction]
    return replace(
        dense,
        attention=replace(
            attention[0],
            cached_tokens=np.concatenate([a.cached_tokens for a in attention]),
            kv_read_bytes=sum(a.kv_read_bytes for a in attention),
            chunk_bytes=_mean([a.chunk_bytes for a in attention]),
        ),
        vector_elements=sum(one.vector_elements for one in streams),
        softmax_elements=sum(one.softmax_elements for one in streams),
        fetch=_one_fetch(fetches) if fetches else None,
        offload_write_bytes=sum(one.offload_write_bytes for one in streams),
        reorder_bytes=sum(one.reorder_bytes for one in streams),
        prediction=_one_prediction(predictions) if predictions else None,
    )


def _one_fetch(streams: Sequence[FetchWork]) -> FetchWork:
    return FetchWork(
        np.concatenate([one.extent_bytes for one in streams]),
        sum(one.useful_bytes for one in streams),
        sum(one.n_tokens for one in streams),
    )


def _one_prediction(streams: Sequence[PredictionWork]) -> PredictionWork:
    """All streams' tables, rows and heads, clusters as on average; the DRE takes one stream after another."""
    jobs = [one.dre for one in streams if one.dre]
    added = {f.name: sum(getattr(one, f.name) for one in streams) for f in fields(PredictionWork) if f.name in _ADDED}
    return replace(
        streams[0],
        **added,
        clusters=_mean([one.clusters for one in streams]),
        hash_gemm=_more_rows([one.hash_gemm for one in streams]),
        query_gemm=_more_rows([one.query_gemm for one in streams]),
        dre=DreJob(**{f.name: sum(getattr(job, f.name) for job in jobs) for f in fields(DreJob)}) if jobs else None,
    )


def _more_rows(streams: Sequence[Gemm | None]) -> Gemm | None:
    """One product of all streams' rows, whose weights stream once."""
    products = [one for one in streams if one]
    return replace(products[0], m=sum(one.m for one in products)) if products else None


def _mean(counts: Sequence[int]) -> int:
    return round(sum(counts) / len(counts))
