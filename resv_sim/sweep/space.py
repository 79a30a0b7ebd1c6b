"""From a sweep's axes to its points, each validated as an experiment before anything runs.

Knows trees and overrides; knows nothing of running.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from resv_sim import library
from resv_sim.config import Experiment, experiment_of
from resv_sim.errors import ConfigError, hint
from resv_sim.sweep.config import Axis, LogRange, Range, Scalar, SweepConfig
from resv_sim.validation import validated
from resv_sim.yaml_source import Node


@dataclass(frozen=True)
class SweepPoint:
    """One design: what each axis is called there, and what is set.

    names : axis -> value as shown;  overrides : dotted path -> value
    """

    index: int
    names: Mapping[str, Scalar]
    overrides: Mapping[str, Scalar]

    @property
    def id(self) -> str:
        """12 hex digits over index and overrides: equal in every run of the same sweep."""
        text = json.dumps([self.index, dict(self.overrides)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def __str__(self) -> str:
        return f"point {self.index} ({', '.join(f'{name}={value}' for name, value in self.names.items())})"


@dataclass(frozen=True)
class Sweep:
    """A sweep's base experiment as a tree (references unresolved) and resolved, and its section.

    lines : axis -> where it is written
    """

    tree: Node
    base: Experiment
    config: SweepConfig
    source: str
    lines: Mapping[str, str] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """Everything that decides the points and their results."""
        return {"experiment": self.base.plain(), "sweep": self.config.model_dump(mode="json")}

    def experiment(self, point: SweepPoint) -> Experiment:
        """The point's own experiment. Raises `ConfigError` naming the point and what refused."""
        origins = {
            path: self.lines.get(name, "sweep") for name, axis in self.config.axes.items() for path in axis.paths
        }
        tree = self.tree
        for path, value in point.overrides.items():
            tree = library.with_value(tree, path, Node(value, origins[path]))
        try:
            return experiment_of(tree)
        except ConfigError as error:
            # With the line of an axis comes the value; else only the point's values tell what was refused.
            told = any(str(error).startswith(f"{origin}: {path} = ") for path, origin in origins.items())
            raise ConfigError(f"{f'point {point.index}' if told else point}: {error}") from error


def sweep_of(tree: Node, source: str) -> Sweep:
    """The sweep of a tree that has a `sweep:` section. Raises `ConfigError`."""
    section = tree.child("sweep")
    if section is None:
        raise ConfigError(f"{source}: has no section 'sweep'.")
    base_tree = Node({key: child for key, child in tree.value.items() if key != "sweep"}, tree.origin)
    config = validated(SweepConfig, section, ("sweep",))
    lines = {name: section.deepest(("axes", name)).origin for name in config.axes}
    sweep = Sweep(base_tree, experiment_of(base_tree), config, source, lines)
    _check_measure(sweep)
    plain = sweep.base.plain()
    for name, axis in config.axes.items():
        for path in axis.paths:
            _check_path(plain, path, f"sweep.axes.{name}")
    return sweep


def points(config: SweepConfig) -> tuple[SweepPoint, ...]:
    """The points of a grid, the last axis fastest, or of a random sweep. A search asks for its own."""
    if config.mode == "grid":
        choices = [list(zip(axis.names(), axis.settings(), strict=True)) for axis in config.axes.values()]
        return tuple(_point(config, index, chosen) for index, chosen in enumerate(itertools.product(*choices)))
    rng = random.Random(config.seed)
    return tuple(
        _point(config, index, [_drawn(axis, rng) for axis in config.axes.values()])
        for index in range(config.budget or 0)
    )


def point_at(config: SweepConfig, index: int, values: Mapping[str, int | float]) -> SweepPoint:
    """The point at given axis values: an index into a discrete axis, else the value itself."""
    chosen = []
    for name, axis in config.axes.items():
        if axis.discrete:
            at = int(values[name])
            chosen.append((axis.names()[at], axis.settings()[at]))
        else:
            chosen.append((values[name], {axis.paths[0]: values[name]}))
    return _point(config, index, chosen)


def validate_points(sweep: Sweep, todo: Iterable[SweepPoint]) -> Iterator[tuple[SweepPoint, Experiment]]:
    """Each point with its experiment. Raises `ConfigError` at the first that is refused."""
    for point in todo:
        yield point, sweep.experiment(point)


def _point(config: SweepConfig, index: int, chosen: Iterable[tuple[Scalar, Mapping[str, Scalar]]]) -> SweepPoint:
    names: dict[str, Scalar] = {}
    overrides: dict[str, Scalar] = {}
    for axis, (name, setting) in zip(config.axes, chosen, strict=True):
        names[axis] = name
        overrides.update(setting)
    return SweepPoint(index, names, overrides)


def _drawn(axis: Axis, rng: random.Random) -> tuple[Scalar, Mapping[str, Scalar]]:
    scale = axis.range or axis.logrange
    if axis.discrete or scale is None:
        at = rng.randrange(len(axis.settings()))
        return axis.names()[at], axis.settings()[at]
    value = _uniform(scale, rng)
    return value, {axis.paths[0]: value}


def _uniform(scale: Range | LogRange, rng: random.Random) -> int | float:
    share = rng.random()
    if isinstance(scale, LogRange):
        value = scale.start * (scale.stop / scale.start) ** share
    elif scale.integer:
        return int(rng.randint(int(scale.start), int(scale.stop)))
    else:
        value = scale.start + (scale.stop - scale.start) * share
    return round(value) if scale.integer else float(f"{value:.12g}")


def _check_path(plain: Any, path: str, where: str) -> None:
    """A path must lead to a field of the resolved experiment."""
    parts, done = path.split("."), list[str]()
    if len(parts) > 3 and (parts[0], parts[2]) == ("platforms", "energy"):
        # A platform names its price table; what is laid over it stands, resolved, beside the platforms.
        parts = ["energy", parts[1], *parts[3:]]
    for part in parts:
        inside = ".".join(done) or "an experiment"
        if isinstance(plain, dict):
            if part not in plain:
                known = ", ".join(plain)
                raise ConfigError(
                    f"{where}: '{path}' is not a field: {inside} has no '{part}'.{hint(part, plain)} "
                    f"Allowed there: {known}."
                )
            plain = plain[part]
        elif isinstance(plain, list) and part.isdigit() and int(part) < len(plain):
            plain = plain[int(part)]
        else:
            raise ConfigError(f"{where}: '{path}' is not a field: nothing lies below {inside}.")
        done.append(part)


def _check_measure(sweep: Sweep) -> None:
    measure, base = sweep.config.measure, sweep.base
    labels = [run.label for run in base.runs]
    label = f"{measure.platform}+{measure.policy}"
    if label not in labels:
        raise ConfigError(f"sweep.measure: no run '{label}' ({', '.join(labels)}).{hint(label, labels)}")
    stages = getattr(base.workload, "stages", (measure.stage,))
    if measure.stage not in stages:
        raise ConfigError(f"sweep.measure.stage: '{measure.stage}' is not in workload.stages ({', '.join(stages)}).")
    lengths = getattr(base.workload, "kv_lengths_tokens", ())
    if lengths and measure.kv_len_tokens not in (None, *lengths):
        known = ", ".join(map(str, lengths))
        raise ConfigError(
            f"sweep.measure.kv_len_tokens: {measure.kv_len_tokens} is not in workload.kv_lengths_tokens ({known})."
        )
