"""How sure the headline rows are: bands and a tornado over the ranges of constants that are not known well.

Frame steps of V-Rex8 and of the AGX Orin that the figures are compared with, at the shortest and the longest cache, are
simulated and priced again with every constant drawn from its range (`configs/uncertainty.yaml`). What the first stream
selected stays; so does the paper's silence on what may be wrong in the models themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from dre_sim.lowering import vision_work
from energy_models.sensitivity import ranges, with_overrides
from energy_models.tables import PriceTable
from resv_sim import library
from resv_sim.config import Experiment
from resv_sim.pipeline import point_context, simulated
from resv_sim.plots.style import length_name, number
from resv_sim.reproduce.items import Bar, Findings, Table, Tornado
from resv_sim.reproduce.speed import AGX, OURS
from resv_sim.reproduce.study import Outcome, Study
from resv_sim.results import ResultRow
from resv_sim.validation import validated
from resv_sim.yaml_source import read_yaml

QUANTILES = (0.05, 0.5, 0.95)
MODEL = "model"
_FROZEN = ConfigDict(frozen=True, extra="forbid")


class _Range(BaseModel):
    model_config = _FROZEN

    name: str
    low: float
    high: float
    scale: Literal["linear", "log"] = "linear"
    unit: str = ""
    source: str

    @model_validator(mode="after")
    def _check(self) -> _Range:
        if not self.low < self.high or (self.scale == "log" and self.low <= 0):
            raise ValueError(f"{self.name}: {self.low} to {self.high} is no range on a {self.scale} scale")
        return self

    def at(self, quantile: float) -> float:
        """The value below which this part of the range lies."""
        if self.scale == "log":
            return float(self.low * (self.high / self.low) ** quantile)
        return self.low + quantile * (self.high - self.low)


class Parameter(_Range):
    """A field of one or more platforms, `platform.path.to.field` each, or of the model, `model.path.to.field`."""

    targets: tuple[str, ...] = Field(min_length=1)


class Uncertainty(BaseModel):
    """The file of ranges."""

    model_config = _FROZEN

    seed: int = Field(ge=0)
    samples_log2: int = Field(ge=2, le=12)
    parameters: tuple[Parameter, ...] = Field(min_length=1)
    prices: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Every unknown, in the order of a sample's columns."""
        return [*(p.name for p in self.parameters), *self.prices]


@dataclass(frozen=True)
class Band:
    """One headline row: at the defaults, and its 5, 50 and 95 % quantiles. `bars`: each unknown at both ends."""

    name: str
    unit: str
    default: float
    quantiles: tuple[float, ...]
    bars: tuple[Bar, ...]


def load_ranges() -> Uncertainty:
    """The ranges. Raises ConfigError."""
    return validated(Uncertainty, read_yaml(library.bundled_root() / "uncertainty.yaml"))


def headlines(study: Study) -> Findings:
    """Bands and tornadoes of speed-up, energy gain and frames per second at the shortest and the longest cache."""
    known = load_ranges()
    bands = headline_bands(study.outcome("fig13_edge"), known)
    low, middle, high = (f"{100 * q:.0f} %" for q in QUANTILES)
    rows = tuple((b.name, b.unit, number(b.default), *map(number, b.quantiles)) for b in bands)
    return Findings(
        tables=(Table(("frame stage, batch 1", "unit", "default", low, middle, high), rows),),
        tornados=tuple(Tornado(b.name, b.unit, b.default, b.bars) for b in bands),
        notes=(
            f"{2**known.samples_log2} Sobol samples (seed {known.seed}) over {len(known.names)} unknowns, drawn evenly "
            "or log-evenly between the ends that configs/uncertainty.yaml and the price tables give; a default may lie "
            "at an end. The retrieval ratio is the trace's and is not varied.",
        ),
    )


def headline_bands(outcome: Outcome, known: Uncertainty) -> list[Band]:
    """Sampled and one-at-a-time results of every headline row. The same seed gives the same numbers."""
    default = _headlines(outcome, outcome.experiment)
    sampled = np.array([_headlines(outcome, moved(outcome.experiment, known, q)) for q in samples(known)])
    ends = {
        name: [_headlines(outcome, moved(outcome.experiment, known, {name: q})) for q in (0.0, 1.0)]
        for name in known.names
    }
    quantiles = np.quantile(sampled, QUANTILES, axis=0)
    return [
        Band(
            name,
            unit,
            float(default[i]),
            tuple(float(q) for q in quantiles[:, i]),
            tuple(Bar(n, float(low[i]), float(high[i])) for n, (low, high) in ends.items()),
        )
        for i, (name, unit) in enumerate(_names(outcome))
    ]


def samples(known: Uncertainty) -> Iterator[Mapping[str, float]]:
    """Quantiles of every unknown, low-discrepancy and seeded."""
    from scipy.stats import qmc

    points = qmc.Sobol(len(known.names), rng=known.seed).random_base2(known.samples_log2)
    return (dict(zip(known.names, map(float, row), strict=True)) for row in points)


def moved(experiment: Experiment, known: Uncertainty, quantiles: Mapping[str, float]) -> Experiment:
    """The experiment with the named unknowns at these quantiles of their ranges, the rest as it was."""
    platforms, model = dict(experiment.platforms), experiment.model
    for parameter in known.parameters:
        if parameter.name in quantiles:
            value = parameter.at(quantiles[parameter.name])
            for target in parameter.targets:
                label, _, path = target.partition(".")
                if label != MODEL:
                    platforms[label] = with_value(platforms[label], path.split("."), value)
                elif model.vision is not None:
                    model = with_value(model, path.split("."), value)
    energy = {label: _repriced(table, known, quantiles) for label, table in experiment.energy.items()}
    return experiment.model_copy(update={"model": model, "platforms": platforms, "energy": energy})


def with_value(node: Any, path: Sequence[str], value: float) -> Any:
    """A copy of nested models, mappings and tuples with one number changed. Raises ValueError for an unknown path."""
    if not path:
        return round(value) if isinstance(node, int) else value
    key, rest = path[0], path[1:]
    try:
        if isinstance(node, BaseModel):
            return node.model_copy(update={key: with_value(getattr(node, key), rest, value)})
        if isinstance(node, tuple):
            at = int(key)
            return (*node[:at], with_value(node[at], rest, value), *node[at + 1 :])
        return {**node, key: with_value(node[key], rest, value)}
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"uncertainty.yaml: nothing lies at '{key}' of {type(node).__name__}") from error


def _repriced(table: PriceTable, known: Uncertainty, quantiles: Mapping[str, float]) -> PriceTable:
    own = ranges(table)
    values = {
        row: own[row].low * (own[row].high / own[row].low) ** quantiles[row]
        for row in known.prices
        if row in quantiles and row in own
    }
    return with_overrides(table, values) if values else table


def _names(outcome: Outcome) -> list[tuple[str, str]]:
    ends = [length_name(length) for length in _ends(outcome)]
    kinds = (("speedup", "x"), ("energy gain", "x"), ("frames per second", "1/s"))
    return [(f"{kind} at {end}", unit) for kind, unit in kinds for end in ends]


def _headlines(outcome: Outcome, experiment: Experiment) -> list[float]:
    """In the order of `_names`: speed-up, energy gain and frames per second, each at both lengths."""
    pairs = [[_again(outcome, experiment, label, length) for label in (AGX, OURS)] for length in _ends(outcome)]
    return [
        *(base.latency_s / ours.latency_s for base, ours in pairs),
        *(base.energy_j / ours.energy_j for base, ours in pairs),
        *(1 / ours.latency_s for _, ours in pairs),
    ]


def _again(outcome: Outcome, experiment: Experiment, label: str, length: int) -> ResultRow:
    platform, policy = label.split("+")
    context = point_context(experiment, platform, policy, "")
    work = outcome.points[label, "frame", length].work
    if experiment.model.vision != outcome.experiment.model.vision:
        gemms, elements = vision_work(experiment.model, work.batch)
        work = replace(work, vision=gemms, vision_vector_elements=elements)
    return simulated(experiment, context, work).row


def _ends(outcome: Outcome) -> tuple[int, int]:
    return min(outcome.lengths), max(outcome.lengths)
