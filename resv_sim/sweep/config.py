"""The `sweep:` section of an experiment's file: axes, how points are chosen, and what is looked at.

Knows the section's shape; which points follow from it is `space.py`, whether a path is a field too.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from resv_sim.errors import hint
from resv_sim.results import ResultRow

MOST_VALUES = 100_000  # of one range
Finite = int | Annotated[float, Field(allow_inf_nan=False)]
Scalar = bool | int | float | str | None
AxisName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
COLUMNS = tuple(field.name for field in fields(ResultRow))
NUMERIC = tuple(
    field.name
    for field in fields(ResultRow)
    if str(field.type).split(" |")[0] in ("int", "float") and field.name != "seed"
)
_CONSTRAINT = re.compile(r"^\s*(?P<column>\w+)\s*(?P<operator><=|>=)\s*(?P<limit>\S+)\s*$")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Range(_Section):
    """`start` to `stop`, both included. Integers where start, stop and step are."""

    start: Finite
    stop: Finite
    step: Finite | None = Field(default=None, description="distance of neighbours; none: continuous")

    @model_validator(mode="after")
    def _check(self) -> Range:
        if self.start > self.stop:
            raise ValueError(f"an empty range: start ({self.start}) is above stop ({self.stop})")
        if self.step is not None and self.step <= 0:
            raise ValueError(f"step is {self.step}; allowed: above 0")
        if self.step is not None and (self.stop - self.start) / self.step >= MOST_VALUES:
            raise ValueError(
                f"{self.start} to {self.stop} in steps of {self.step} are more than {MOST_VALUES} values; "
                "take a larger step"
            )
        return self

    @property
    def integer(self) -> bool:
        return all(isinstance(x, int) for x in (self.start, self.stop, self.step or 0))

    def values(self) -> tuple[Scalar, ...]:
        """The values of a grid. Raises ValueError where the range is continuous."""
        if self.step is None:
            raise ValueError("a grid needs a step in every range")
        n = math.floor((self.stop - self.start) / self.step + 1e-9) + 1
        made = [self.start + i * self.step for i in range(n)]
        return tuple(made) if self.integer else tuple(float(f"{x:.12g}") for x in made)


class LogRange(_Section):
    """`start` to `stop`, both included, even in the logarithm; whole numbers where both ends are."""

    start: Annotated[Finite, Field(gt=0)]
    stop: Annotated[Finite, Field(gt=0)]
    points: int | None = Field(default=None, ge=1, le=MOST_VALUES, description="values of a grid; none: continuous")

    @model_validator(mode="after")
    def _check(self) -> LogRange:
        if self.start > self.stop:
            raise ValueError(f"an empty range: start ({self.start}) is above stop ({self.stop})")
        return self

    @property
    def integer(self) -> bool:
        return isinstance(self.start, int) and isinstance(self.stop, int)

    def values(self) -> tuple[Scalar, ...]:
        """The values of a grid. Raises ValueError where the range is continuous."""
        if self.points is None:
            raise ValueError("a grid needs the number of points of every logrange")
        ratio, n = self.stop / self.start, max(1, self.points - 1)
        made = [self.start * ratio ** (i / n) for i in range(self.points)]
        if self.integer:
            return tuple(dict.fromkeys(round(x) for x in made))
        return tuple(float(f"{x:.12g}") for x in made)


class Axis(_Section):
    """One thing that varies: a field (`path`) over values or a range, or several fields that move together (`set`)."""

    path: str | None = Field(default=None, description="dotted path of the field")
    values: tuple[Scalar, ...] | None = Field(default=None, min_length=1)
    range: Range | None = None
    logrange: LogRange | None = None
    set: dict[str, tuple[Scalar, ...]] | None = Field(default=None, description="path -> values, equally many")
    labels: tuple[Scalar, ...] | None = Field(default=None, description="what figures call the values of a `set`")

    @model_validator(mode="after")
    def _check(self) -> Axis:
        given = [name for name in ("values", "range", "logrange", "set") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"one of values, range, logrange or set must be given, not {' and '.join(given) or 'none'}"
            )
        if (self.path is None) != (self.set is not None):
            raise ValueError("path names the field of values and ranges; set names its own")
        if self.labels is not None and self.set is None:
            raise ValueError("labels belong to set; values are their own labels")
        if self.set is not None:
            sizes = {path: len(values) for path, values in self.set.items()}
            if len(set(sizes.values())) != 1 or 0 in sizes.values():
                raise ValueError(f"set: every path needs equally many values, got {sizes}")
        names = self.names() if self.discrete else ()
        if len(set(map(repr, names))) != len(names):
            raise ValueError(f"the values {', '.join(map(str, names))} are not all different; a set can take labels")
        if self.labels is not None and len(self.labels) != len(self.settings()):
            raise ValueError(f"{len(self.labels)} labels for {len(self.settings())} values")
        return self

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(self.set) if self.set is not None else (self.path or "",)

    @property
    def discrete(self) -> bool:
        """The axis has finitely many values, in order."""
        scale = self.range or self.logrange
        return scale is None or (self.range.step if self.range else self.logrange and self.logrange.points) is not None

    def settings(self) -> tuple[dict[str, Scalar], ...]:
        """What each value sets, path -> value. Raises ValueError for a continuous axis."""
        if self.set is not None:
            columns = self.set
            n = len(next(iter(columns.values())))
            return tuple({path: values[i] for path, values in columns.items()} for i in range(n))
        scale = self.range or self.logrange
        values = scale.values() if scale is not None else self.values or ()
        return tuple({self.paths[0]: value} for value in values)

    def names(self) -> tuple[Scalar, ...]:
        """What each value is called in `results.csv`: itself, its label, or the first of what a set sets."""
        return self.labels or tuple(next(iter(setting.values())) for setting in self.settings())


@dataclass(frozen=True)
class Constraint:
    """`column operator limit` over the measured row."""

    column: str
    operator: Literal["<=", ">="]
    limit: float

    def violation(self, value: float | None) -> float:
        """At most 0 where it holds; a value that does not exist violates it."""
        if value is None:
            return math.inf
        return value - self.limit if self.operator == "<=" else self.limit - value

    def __str__(self) -> str:
        return f"{self.column} {self.operator} {self.limit:g}"


class Measure(_Section):
    """Which row of a point objectives, constraints and figures are about."""

    platform: str
    policy: str
    stage: Literal["frame", "question", "decode"] = "frame"
    kv_len_tokens: int | None = Field(default=None, ge=1, description="none: the longest")

    @property
    def label(self) -> str:
        length = "the longest cache" if self.kv_len_tokens is None else f"{self.kv_len_tokens} cached tokens"
        return f"{self.platform}+{self.policy}, {self.stage} at {length}"


class SearchConfig(_Section):
    """How Optuna looks for good points."""

    sampler: Literal["nsga2", "tpe"] = "nsga2"
    population: int = Field(default=24, ge=2, description="points asked for at a time")
    objectives: dict[str, Literal["minimize", "maximize"]] = Field(min_length=1)


class SweepConfig(_Section):
    """A whole sweep."""

    mode: Literal["grid", "random", "search"] = "grid"
    axes: dict[AxisName, Axis] = Field(min_length=1)
    measure: Measure
    seed: int = Field(default=0, ge=0, lt=2**32)
    budget: int | None = Field(default=None, ge=1, description="points of random and search")
    constraints: tuple[str, ...] = Field(default=(), description="such as 'fps >= 2'")
    search: SearchConfig | None = None
    figures: tuple[str, ...] = Field(
        default=("speedup", "energy_j", "latency_s", "attention_mass_kept"), description="columns that are drawn"
    )
    published: dict[AxisName, Scalar] = Field(default={}, description="the paper's design, by axis")

    @model_validator(mode="after")
    def _check(self) -> SweepConfig:
        if (self.mode == "search") != (self.search is not None):
            raise ValueError("mode search and the section search belong together")
        if (self.mode != "grid") != (self.budget is not None):
            raise ValueError("random and search need a budget, a grid has none")
        taken = [name for name in self.axes if name in COLUMNS or name in ("point", "id")]
        if taken:
            raise ValueError(f"axes: '{taken[0]}' is a column of results.csv; call the axis something else")
        paths = [path for axis in self.axes.values() for path in axis.paths]
        twice = [path for path in paths if paths.count(path) > 1]
        if twice:
            raise ValueError(f"axes: {twice[0]} is set by more than one axis")
        if self.mode == "grid":
            for name, axis in self.axes.items():
                if not axis.discrete:
                    raise ValueError(f"axes.{name}: a grid needs a step in a range and points in a logrange")
        for column in (*self.figures, *(self.search.objectives if self.search else ())):
            _require_numeric(column)
        for name in self.published:
            if name not in self.axes:
                raise ValueError(f"published: no axis '{name}' ({', '.join(self.axes)}).{hint(name, self.axes)}")
        _ = self.limits
        return self

    @property
    def limits(self) -> tuple[Constraint, ...]:
        """The constraints, read."""
        return tuple(_constraint(text) for text in self.constraints)


def _require_numeric(column: str) -> None:
    if column not in NUMERIC:
        raise ValueError(f"'{column}' is no number in results.csv ({', '.join(NUMERIC)}).{hint(column, NUMERIC)}")


def _constraint(text: str) -> Constraint:
    match = _CONSTRAINT.match(text)
    if match is None:
        raise ValueError(f"constraint '{text}': must be COLUMN >= NUMBER or COLUMN <= NUMBER")
    _require_numeric(match["column"])
    try:
        limit = float(match["limit"])
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit):
        raise ValueError(f"constraint '{text}': '{match['limit']}' is not a finite number")
    operator: Any = match["operator"]
    return Constraint(match["column"], operator, limit)
