"""Which points a search tries next: Optuna's NSGA-II or TPE, fed with finished points in the order of their numbers.

The journal of points is the one truth. A resumed search asks anew from the start, with the same seed, and is told what
the journal knows, so it takes the way it would have taken; no trial of a killed run is left behind as running. A design
that the sampler proposes again is answered from what is known and costs none of the budget. The published design, where
the axes have it, is tried first.
`study.journal` is written along for Optuna's own tools and never read back.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resv_sim.sweep.config import Axis, SearchConfig, SweepConfig
from resv_sim.sweep.space import SweepPoint, point_at

STUDY = "study.journal"
_VIOLATIONS = "violations"
_HOPELESS = 1e30  # what Optuna is told where a constrained value does not exist
_PATIENCE = 20  # proposals for each new point before a search is taken to have nothing new left


class Search:
    """Asks for a population of points at a time; every one of it must be told before the next is asked for."""

    def __init__(self, config: SweepConfig, folder: Path) -> None:
        if config.search is None or config.budget is None:
            raise ValueError("this sweep is no search")
        self._config = config
        self._search: SearchConfig = config.search
        self._budget = config.budget
        self._asked: dict[str, list[Any]] = {}  # trials that wait for the design's row
        self._told: dict[str, Mapping[str, Any] | None] = {}
        self._study = _study(config, self._search, folder)
        published = _published(config)
        if published is not None:
            self._study.enqueue_trial(published)

    def ask(self) -> list[SweepPoint]:
        """The next new points, none at the end of the budget or where the sampler finds nothing new."""
        n = min(self._search.population, self._budget - len(self._told))
        new: list[SweepPoint] = []
        for _ in range(_PATIENCE * n):
            if len(new) == n:
                break
            trial = self._study.ask()
            values = {name: _suggested(trial, name, axis) for name, axis in self._config.axes.items()}
            point = point_at(self._config, len(self._told) + len(new), values)
            design = _design(point)
            if design in self._told:
                self._answer(trial, self._told[design])
            elif design in self._asked:
                self._asked[design].append(trial)
            else:
                self._asked[design] = [trial]
                new.append(point)
        return new

    def tell(self, point: SweepPoint, row: Mapping[str, Any] | None) -> None:
        """The measured row of an asked point; None where it failed."""
        design = _design(point)
        self._told[design] = row
        for trial in self._asked.pop(design):
            self._answer(trial, row)

    def _answer(self, trial: Any, row: Mapping[str, Any] | None) -> None:
        from optuna.trial import TrialState

        objectives = self._search.objectives
        values = [row[column] for column in objectives] if row is not None else [None]
        if row is None or None in values:
            self._study.tell(trial, state=TrialState.FAIL)
            return
        violations = [min(c.violation(row[c.column]), _HOPELESS) for c in self._config.limits]
        trial.set_user_attr(_VIOLATIONS, violations)
        self._study.tell(trial, values)


def best(config: SweepConfig, rows: Mapping[int, Mapping[str, Any]]) -> list[int]:
    """Numbers of the points that hold every constraint and that no other such point beats in every objective."""
    from resv_sim.sweep.fronts import front, holds

    if config.search is None:
        return []
    allowed = {index: row for index, row in rows.items() if holds(row, config.limits)}
    return front(allowed, config.search.objectives)


def _design(point: SweepPoint) -> str:
    return json.dumps(dict(point.overrides))


def _published(config: SweepConfig) -> dict[str, int | float] | None:
    """The paper's design as the sampler proposes one (`_suggested`), None where not every axis has its value."""
    out: dict[str, int | float] = {}
    for name, axis in config.axes.items():
        value = config.published.get(name)
        if axis.discrete and value in axis.names():
            out[name] = axis.names().index(value)
        elif not axis.discrete and isinstance(value, (int, float)):
            out[name] = value
        else:
            return None
    return out


def _study(config: SweepConfig, search: SearchConfig, folder: Path) -> Any:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(logging.ERROR)
    for stale in folder.glob(f"{STUDY}*"):  # with the lock of a killed run, which would be waited for
        stale.unlink()
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / STUDY))),
        sampler=_sampler(config, search),
        directions=list(search.objectives.values()),
        study_name="sweep",
    )


def _sampler(config: SweepConfig, search: SearchConfig) -> Any:
    import warnings

    import optuna

    constraints = _violations if config.limits else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some arguments are marked experimental
        if search.sampler == "tpe":
            return optuna.samplers.TPESampler(seed=config.seed, constraints_func=constraints)
        return optuna.samplers.NSGAIISampler(
            population_size=search.population, seed=config.seed, constraints_func=constraints
        )


def _violations(trial: Any) -> Sequence[float]:
    found: Sequence[float] = trial.user_attrs[_VIOLATIONS]
    return found


def _suggested(trial: Any, name: str, axis: Axis) -> int | float:
    """An index into a discrete axis, whose order means something to the samplers, or a number of a continuous one."""
    if axis.discrete:
        return int(trial.suggest_int(name, 0, len(axis.settings()) - 1))
    scale = axis.range or axis.logrange
    if scale is None:
        raise ValueError(f"axis {name} has no values")
    log = axis.logrange is not None
    if scale.integer:
        return int(trial.suggest_int(name, scale.start, scale.stop, log=log))
    return float(trial.suggest_float(name, scale.start, scale.stop, log=log))
