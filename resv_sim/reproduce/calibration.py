"""The constants fitted on the paper: at most ten, all in `configs/calibration.yaml`, each on an allowed row."""

from __future__ import annotations

from functools import reduce
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from resv.synthetic import GeneratorConfig
from resv_sim import library
from resv_sim.plots.style import number
from resv_sim.published import published_facts
from resv_sim.reproduce.items import Findings, Table
from resv_sim.reproduce.study import Study, paper_experiment
from resv_sim.validation import validated
from resv_sim.yaml_source import read_yaml

MOST = 10
GENERATOR, PAPER = "generator", "paper"
MOST_OF_GENERATOR = 2
FILE = "calibration"


class Constant(BaseModel):
    """One fitted constant. `used_in`: files (family/name, paper/name, or `generator`) that hold it under `path`.

    `value` None: not fitted yet, the model runs with its uncalibrated default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    used_in: tuple[str, ...] = Field(min_length=1)
    path: str
    value: float | None
    row: str
    mechanism: str = Field(min_length=1)


class Calibration(BaseModel):
    """The file of constants."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    constants: tuple[Constant, ...] = Field(max_length=MOST)


def load_calibration() -> Calibration:
    """The constants, read and checked against the law. Raises ConfigError or ValueError."""
    found = validated(Calibration, read_yaml(library.bundled_root() / f"{FILE}.yaml"))
    check(found)
    return found


def check(calibration: Calibration) -> None:
    """Raises ValueError where a row must not be fitted on, or a file holds another value than is listed."""
    allowed = published_facts().calibration_rows
    for constant in calibration.constants:
        if constant.row not in allowed:
            raise ValueError(
                f"{FILE}.yaml: {constant.name} is fitted on '{constant.row}'; allowed rows: {', '.join(allowed)}"
            )
        for place in constant.used_in:
            held = value_in(place, constant.path)
            if constant.value is not None and held != constant.value:
                raise ValueError(
                    f"{FILE}.yaml: {constant.name} is {constant.value}, but {place} holds {held} at {constant.path}"
                )
    shaping = [c.name for c in calibration.constants if GENERATOR in c.used_in]
    if len(shaping) > MOST_OF_GENERATOR:
        raise ValueError(
            f"{FILE}.yaml: {', '.join(shaping)} shape the retrieval ratio; at most {MOST_OF_GENERATOR} may"
        )


def value_in(place: str, path: str) -> Any:
    """What a configuration file, or the trace generator, holds at a dotted path. Raises ValueError."""
    if place == GENERATOR:
        tree: Any = GeneratorConfig().model_dump()
    else:
        family, _, name = place.partition("/")
        paper = family == PAPER
        tree = (read_yaml(paper_experiment(name)) if paper else library.resolved(name, family)).plain()
    try:
        return reduce(lambda node, key: node[key], path.split("."), tree)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{FILE}.yaml: {place} has nothing at {path}") from error


def fitted(study: Study) -> Findings:
    """The file as a table. Needs no run."""
    rows = tuple(
        (c.name, ", ".join(c.used_in), "not fitted" if c.value is None else number(c.value), c.row, c.mechanism)
        for c in load_calibration().constants
    )
    note = (
        f"{len(rows)} of at most {MOST} constants. Everything else comes from a data sheet, a measurement or Table I."
    )
    return Findings(tables=(Table(("constant", "used in", "value", "fitted on", "mechanism"), rows),), notes=(note,))
