"""What an experiment is, and how it is loaded: the only module that knows the shape of the YAML.

An experiment names a model, a video, a workload, policies and platforms, and says which pairs to run.
Submodels live beside the code they parametrise; files, references and overrides are `library.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dre_sim.platforms import PLATFORMS
from energy_models.tables import PriceTable
from resv.policies import POLICIES
from resv.synthetic import GeneratorConfig
from resv.trace import ModelShape, StepKind
from resv.video import VideoConfig
from resv.workload_plan import ProbeWorkload, SessionWorkload, Workload
from resv_sim import library
from resv_sim.accuracy.config import AccuracyConfig
from resv_sim.errors import ConfigError, FieldError, hint
from resv_sim.validation import ByKind, validated
from resv_sim.yaml_source import Node, read_yaml, shown, write_yaml

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9_+-]+$")]
PolicyField = Annotated[Any, ByKind("policy", lambda: POLICIES)]
PlatformField = Annotated[Any, ByKind("platform", lambda: {kind: config for kind, (config, _) in PLATFORMS.items()})]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TraceConfig(_Section):
    """Where keys, queries and values come from."""

    recorded: Path | None = Field(
        default=None, description="a recorded trace file instead of a video and the generator"
    )
    generator: GeneratorConfig = GeneratorConfig()
    seed: int = Field(default=0, ge=0, lt=2**32)


Batch = Annotated[int, Field(ge=1, le=64, description="independent streams sharing the weights")]


class Probes(ProbeWorkload):
    """Each stage at each cache length of one long stream, for `batch` streams."""

    kind: Literal["probes"] = "probes"
    batch: Batch = 1
    stages: tuple[StepKind, ...] = Field(default=("frame", "decode"), min_length=1)

    def plan(self) -> Workload:
        """What one stream is probed for."""
        return ProbeWorkload(**self.model_dump(include=set(ProbeWorkload.model_fields)))


class Session(SessionWorkload):
    """Frames, a question and an answer, every step probed, for `batch` streams."""

    kind: Literal["session"] = "session"
    batch: Batch = 1

    def plan(self) -> Workload:
        """What one stream is probed for."""
        return SessionWorkload(**self.model_dump(include=set(SessionWorkload.model_fields)))


WORKLOADS: dict[str, type[BaseModel]] = {"probes": Probes, "session": Session}
WorkloadField = Annotated[Any, ByKind("workload", lambda: WORKLOADS)]


class RunConfig(_Section):
    """One platform running one policy."""

    platform: Label
    policy: Label

    @property
    def label(self) -> str:
        return f"{self.platform}+{self.policy}"


class FidelityConfig(_Section):
    """Comparison of each selection with full attention."""

    enabled: bool = True
    topk: int = Field(default=64, ge=1, description="heaviest cached tokens of a row that should be attended")


class ReportConfig(_Section):
    """What the report shows."""

    figure_dpi: int = Field(default=150, ge=50, le=600)
    timeline_layers: int = Field(default=2, ge=1, description="layers drawn in the timeline picture")


class Experiment(_Section):
    """Everything that decides the results."""

    BESIDE: ClassVar = ("sweep", "benchmark")  # sections of an experiment's file that others read

    name: Label
    description: str = ""
    model: ModelShape
    video: VideoConfig = VideoConfig()
    trace: TraceConfig = TraceConfig()
    workload: WorkloadField = Probes()
    policies: dict[Label, PolicyField] = Field(min_length=1)
    platforms: dict[Label, PlatformField] = Field(min_length=1)
    energy: dict[Label, PriceTable] = Field(description="price table of each platform")
    runs: tuple[RunConfig, ...] = Field(min_length=1)
    baseline: RunConfig
    fidelity: FidelityConfig = FidelityConfig()
    accuracy: AccuracyConfig | None = Field(
        default=None, description="how accuracy is measured, on the embedded model; none: it is not"
    )
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _check(self) -> Experiment:
        places: list[tuple[RunConfig, tuple[str | int, ...]]] = [(run, ("runs", i)) for i, run in enumerate(self.runs)]
        for run, place in (*places, (self.baseline, ("baseline",))):
            _require(run.platform, self.platforms, "platform", *place, "platform")
            _require(run.policy, self.policies, "policy", *place, "policy")
        labels = [run.label for run in self.runs]
        for i, label in enumerate(labels):
            if label in labels[:i]:
                raise FieldError(
                    f"each pair of platform and policy may stand there once, {label} is there twice", "runs", i
                )
        _require(self.baseline.label, labels, "baseline among the runs", "baseline")
        for platform in self.platforms:
            _require(platform, self.energy, "price table for platform", "platforms", platform)
        for platform in self.energy:
            _require(platform, self.platforms, "platform for the price table", "energy", platform)
        if self.trace.recorded is None and isinstance(self.workload, ProbeWorkload):
            try:
                self.workload.frames_before(self.model.tokens_per_frame)
            except ValueError as error:
                raise FieldError(str(error), "workload", "kv_lengths_tokens") from error
        return self

    def plain(self) -> dict[str, Any]:
        """The experiment as plain data, every default filled in; loads back to the same experiment."""
        without = {"accuracy"} if self.accuracy is None else set()
        return self.model_dump(mode="json", exclude=without)

    def config_hash(self) -> str:
        """16 hex digits over everything that decides the results."""
        text = json.dumps(self.plain(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def as_yaml(self) -> str:
        return write_yaml(self.plain())


def _require(name: str, known: Mapping[str, object] | Sequence[str], what: str, *path: str | int) -> None:
    if name not in known:
        raise FieldError(f"no {what} '{name}' ({', '.join(known)}).{hint(name, known)}", *path)


def load_experiment(name_or_path: str, settings: Sequence[str] = ()) -> tuple[Experiment, str]:
    """The experiment and the file it came from. Raises `ConfigError`.

    `settings` are `a.b=value` overrides, applied in order before anything is validated. Of a sweep's file it
    is the experiment that the sweep varies, of a benchmark's the one whose policies are compared.
    """
    tree, source = load_tree(name_or_path, settings)
    alone = {key: child for key, child in tree.value.items() if key not in Experiment.BESIDE}
    return experiment_of(Node(alone, tree.origin)), source


def load_tree(name_or_path: str, settings: Sequence[str] = ()) -> tuple[Node, str]:
    """An experiment's file as written, `settings` applied, and its name. Raises `ConfigError`."""
    path = library.find(name_or_path)
    tree = read_yaml(path)
    for setting in settings:
        tree = library.with_override(tree, setting)
    return tree, shown(path)


def experiment_of(tree: Node) -> Experiment:
    """The experiment of a tree, references followed. Raises `ConfigError`."""
    unpriced = library.expand(tree, [family for family in library.FAMILIES if family != "energy"])
    return validated(Experiment, _priced(unpriced))


def descriptions(family: str) -> dict[str, str]:
    """Bundled names of a family (experiments: the empty family) with the first sentence about each.

    It is the description's, or where there is none that of the comment at the head of the file.
    """
    found = {}
    for name in library.bundled(family):
        file = library.find(name, family)
        text = str(read_yaml(file).plain().get("description") or _head_comment(file))
        found[name] = " ".join(text.split()).partition(". ")[0].rstrip(".")
    return found


def _head_comment(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    return " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))


def _priced(tree: Node) -> Node:
    """Every platform's `energy` also under the experiment's `energy`, where the price table is loaded.

    A platform names its table; an overlay of the table (`{base: NAME, ...}`) leaves the name in the platform. What
    stands under `energy` without a base and a name of its own is laid over the platform's table.
    """
    platforms = tree.child("platforms")
    given = tree.child("energy") or Node({}, tree.origin)
    if platforms is None or not isinstance(platforms.value, dict) or not isinstance(given.value, dict):
        return tree
    named, tables = {}, dict(given.value)
    for label, platform in platforms.value.items():
        table = platform.child("energy")
        named[label] = platform
        if table is None:
            continue
        mine = tables.get(label, table)
        if isinstance(mine.value, dict) and not {"base", "name"} & set(mine.value):
            mine = library.overlaid(table, mine, ("energy", label))
        tables[label] = mine
        name = table.child("base") or table
        if isinstance(table.value, dict):
            named[label] = Node({**platform.value, "energy": name}, platform.origin)
    return Node(
        {
            **tree.value,
            "platforms": Node(named, platforms.origin),
            "energy": library.expand(Node(tables, given.origin), ("energy",), ("energy",)),
        },
        tree.origin,
    )


__all__ = ["ConfigError", "Experiment", "descriptions", "load_experiment"]
