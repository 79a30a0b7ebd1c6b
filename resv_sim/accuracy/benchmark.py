"""The benchmark: every policy sits the same exam, is priced on every platform, and is held against the full cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

from resv.policies.base import Policy
from resv.trace import ModelShape
from resv_sim import library
from resv_sim.accuracy.config import AccuracyConfig, BenchmarkConfig, Study
from resv_sim.accuracy.exam import fit_blind
from resv_sim.accuracy.outcomes import Outcome, Setting, exam_of, model_shape, run_settings, seed_groups
from resv_sim.accuracy.platforms import mean_rows
from resv_sim.accuracy.table import AccuracyRow, Answered, PairRow, TaskRow, pair_rows
from resv_sim.config import Experiment, RunConfig, experiment_of
from resv_sim.errors import ConfigError, hint
from resv_sim.memo import Memo
from resv_sim.results import ResultRow
from resv_sim.sweep.config import Scalar
from resv_sim.validation import validated
from resv_sim.yaml_source import Node

Advance = Callable[[str], None]


@dataclass(frozen=True)
class Benchmark:
    """A comparison: an experiment (policies, platforms, exam) and what is compared of it."""

    experiment: Experiment
    config: BenchmarkConfig
    source: str

    @property
    def exam(self) -> AccuracyConfig:
        """What accuracy is measured on; `benchmark_of` has seen to it that there is something."""
        if self.experiment.accuracy is None:
            raise ConfigError(f"{self.source}: has no section 'accuracy'.")
        return self.experiment.accuracy

    @property
    def study_exam(self) -> AccuracyConfig:
        """What studies are measured on: fewer streams, in the first of the stages."""
        few = min(self.config.study_streams, self.exam.n_streams)
        return self.exam.model_copy(update={"n_streams": few, "stages": self.config.stages[0]})


class StudyPoint(NamedTuple):
    """One setting of a study: what each axis is called there."""

    study: str
    names: Mapping[str, Scalar]
    row: AccuracyRow


class PricedRow(NamedTuple):
    """A platform's row for the steps of an exam of so many frames."""

    n_frames: int
    row: ResultRow


@dataclass(frozen=True)
class BenchmarkResult:
    """rows : the first is the level of chance, then the policies in order, per length and stages"""

    rows: tuple[AccuracyRow, ...]
    tasks: tuple[TaskRow, ...]
    pairs: tuple[PairRow, ...]
    priced: tuple[PricedRow, ...]
    studies: tuple[StudyPoint, ...] = ()
    notes: tuple[str, ...] = ()


def benchmark_of(tree: Node, source: str, policies: Sequence[str] = ()) -> Benchmark:
    """The benchmark of a file that has sections `benchmark` and `accuracy`. Raises ConfigError.

    policies : labels to compare, all where none is given; others than the file's are bundled policies or files
    """
    section = tree.child("benchmark")
    if section is None or tree.child("accuracy") is None:
        raise ConfigError(f"{source}: a benchmark needs the sections 'benchmark' and 'accuracy'.")
    config = validated(BenchmarkConfig, section, ("benchmark",))
    kept = {key: child for key, child in tree.value.items() if key != "benchmark"}
    experiment = experiment_of(_with_policies(Node(kept, tree.origin), policies))
    _known(config.reference, experiment.policies, "benchmark.reference")
    for name, study in config.studies.items():
        _known(study.policy, experiment.policies, f"benchmark.studies.{name}.policy")
    if policies:
        experiment = _narrowed(experiment, [config.reference, *policies])
    return Benchmark(experiment, config, source)


def run_benchmark(
    benchmark: Benchmark, memo: Memo, jobs: int, *, studies: bool = False, advance: Advance = lambda _: None
) -> BenchmarkResult:
    """Everything that is compared. Raises WeightsError or ConfigError."""
    exam = benchmark.exam
    shown = [exam.model_copy(update={"stages": stages}) for stages in benchmark.config.stages]
    few = benchmark.study_exam
    longer = [few.model_copy(update={"n_frames": n}) for n in benchmark.config.lengths if n != exam.n_frames]
    configs = [*shown, *(longer if studies else [])]
    labels = list(dict.fromkeys(run.policy for run in benchmark.experiment.runs))
    settings = [Setting(label, benchmark.experiment.policies[label], config) for config in configs for label in labels]
    # The other stages are what-ifs; what a platform would make of them is not told.
    is_priced = [setting.config.stages == shown[0].stages for setting in settings]
    points = list(_study_settings(benchmark)) if studies else []
    studied = [_reference(benchmark, few), *(setting for _, _, setting in points)] if points else []
    outcomes = run_settings(
        [*settings, *studied],
        memo,
        jobs,
        priced={i: benchmark.experiment for i, priced in enumerate(is_priced) if priced},
        record_every=benchmark.config.every_frames,
        advance=advance,
    )
    compared = _compared(benchmark, settings, outcomes[: len(settings)])
    if not points:
        return compared
    return replace(compared, studies=tuple(_studied(benchmark, points, outcomes[len(settings) :])))


def _compared(benchmark: Benchmark, settings: Sequence[Setting], outcomes: Sequence[Outcome]) -> BenchmarkResult:
    rows: list[AccuracyRow] = []
    tasks: list[TaskRow] = []
    pairs: list[PairRow] = []
    priced: list[PricedRow] = []
    with_blind: set[int] = set()
    for config in dict.fromkeys(setting.config for setting in settings):
        answered = answered_exam(config)
        mine = [(s, o) for s, o in zip(settings, outcomes, strict=True) if s.config == config]
        marked = [answered.mark(s.label, config, o) for s, o in mine]
        reference = next(one for one in marked if one.label == benchmark.config.reference)
        if config.n_frames not in with_blind:
            with_blind.add(config.n_frames)
            marked.insert(0, answered.blind(config, fit_blind(config)))
        for one in marked:
            rows.append(answered.row(one, reference, _stored(benchmark, one.label, config)))
            tasks += answered.task_rows(one)
        pairs += pair_rows(marked)
        priced += [PricedRow(config.n_frames, row) for row in mean_rows([p for _, o in mine for p in o.points])]
    return BenchmarkResult(tuple(rows), tuple(tasks), tuple(pairs), tuple(priced), notes=tuple(_notes(benchmark)))


def answered_exam(config: AccuracyConfig) -> Answered:
    """The right answers of all of a configuration's streams."""
    return Answered([exam_of(config, seeds) for seeds in seed_groups(config)])


def _stored(benchmark: Benchmark, label: str, config: AccuracyConfig) -> ModelShape:
    """The model's shape with keys and values as a policy stores them."""
    shape = model_shape(config)
    policy: Policy | None = benchmark.experiment.policies.get(label)
    return shape if policy is None else policy.stored_shape(shape)


def _study_settings(benchmark: Benchmark) -> Iterable[tuple[str, dict[str, Scalar], Setting]]:
    """Study, what its axes are called, and the setting, for every point of every study."""
    for name, study in benchmark.config.studies.items():
        columns = [zip(axis.names(), axis.settings(), strict=True) for axis in study.axes.values()]
        for chosen in product(*columns):
            names = dict(zip(study.axes, (called for called, _ in chosen), strict=True))
            changes = {path: value for _, setting in chosen for path, value in setting.items()}
            yield name, names, Setting(name, _changed(benchmark, name, study, changes), benchmark.study_exam)


def _changed(benchmark: Benchmark, name: str, study: Study, changes: Mapping[str, Scalar]) -> Policy:
    """The study's policy with fields changed. Raises ConfigError where a field or its value is refused."""
    policy: Policy = benchmark.experiment.policies[study.policy]
    tree = _as_tree(policy.model_dump(mode="json"), benchmark.source)
    for path, value in changes.items():
        tree = library.with_value(tree, path, Node(value, f"benchmark.studies.{name}, {path}"))
    return validated(type(policy), tree, ("benchmark", "studies", name))


def _as_tree(value: Any, origin: str) -> Node:
    if isinstance(value, dict):
        return Node({key: _as_tree(child, origin) for key, child in value.items()}, origin)
    return Node(value, origin)


def _reference(benchmark: Benchmark, config: AccuracyConfig) -> Setting:
    label = benchmark.config.reference
    return Setting(label, benchmark.experiment.policies[label], config)


def _studied(
    benchmark: Benchmark, points: Sequence[tuple[str, dict[str, Scalar], Setting]], outcomes: Sequence[Outcome]
) -> Iterable[StudyPoint]:
    """`outcomes` : of the reference, then of the points."""
    exam = benchmark.study_exam
    answered, shape = answered_exam(exam), model_shape(exam)
    reference = answered.mark(benchmark.config.reference, exam, outcomes[0])
    for (name, names, setting), outcome in zip(points, outcomes[1:], strict=True):
        yield StudyPoint(name, names, answered.row(answered.mark(setting.label, exam, outcome), reference, shape))


def _notes(benchmark: Benchmark) -> Iterable[str]:
    """What a reader of the table must know about a policy in this model."""
    from resv_sim.accuracy.outcomes import attachment_notes

    for label in dict.fromkeys(run.policy for run in benchmark.experiment.runs):
        for note in attachment_notes(benchmark.exam, benchmark.experiment.policies[label]):
            yield f"{label}: {note}"


def _with_policies(tree: Node, policies: Sequence[str]) -> Node:
    """The tree with those of `policies` that it lacks, and runs of them on its platforms."""
    known, platforms, runs = (tree.child(key) for key in ("policies", "platforms", "runs"))
    if known is None or platforms is None or runs is None:
        return tree  # which is refused as an experiment
    added = [name for name in policies if name not in known.value]
    origin = "--policy"
    more = [
        Node({"platform": Node(platform, origin), "policy": Node(name, origin)}, origin)
        for name in added
        for platform in platforms.value
    ]
    merged = Node({**known.value, **{name: Node(name, origin) for name in added}}, known.origin)
    return Node({**tree.value, "policies": merged, "runs": Node([*runs.value, *more], runs.origin)}, tree.origin)


def _narrowed(experiment: Experiment, labels: Sequence[str]) -> Experiment:
    """The experiment with runs of these policies alone."""
    runs = tuple(run for run in experiment.runs if run.policy in labels)
    baseline = experiment.baseline
    kept: RunConfig = baseline if baseline in runs else runs[0]
    return experiment.model_copy(update={"runs": runs, "baseline": kept})


def _known(name: str, policies: Iterable[str], where: str) -> None:
    known = list(policies)
    if name not in known:
        raise ConfigError(f"{where}: no policy '{name}' ({', '.join(known)}).{hint(name, known)}")
