"""How far a conclusion moves over what is not known: overrides, ranges, and energy gains over a range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from dre_sim.timeline import Timeline
from energy_models.pricing import price
from energy_models.scaling import UnitParameters
from energy_models.tables import PriceTable

_SECTIONS = ("actions", "static", "units", "caps")


class Range(NamedTuple):
    """A row's value and the range it may lie in."""

    low: float
    default: float
    high: float


@dataclass(frozen=True)
class Case:
    """One machine's run, ready to be priced. `params` as `price` wants them."""

    timeline: Timeline
    table: PriceTable
    params: UnitParameters | None = None

    def energy_j(self) -> float:
        return price(self.timeline, self.table, self.params).total_j


def with_overrides(table: PriceTable, values: Mapping[str, float]) -> PriceTable:
    """A table with other numbers in some rows, everything else (source, range) kept.

    Raises ValueError for a row the table does not have, one that takes its number from another row, and
    a value outside the row's range: to go beyond what sources say, write a table that says so.
    """
    rows = table.rows()
    data = table.model_dump()
    for name, value in values.items():
        row = rows.get(name)
        if row is None:
            raise ValueError(f"price table {table.name!r} has no number in row {name!r}; rows: {', '.join(rows)}")
        if name == "leakage_share":
            data[name][row.VALUE] = value
            continue
        section = next(s for s in _SECTIONS if name in data[s])
        data[section][name][row.VALUE] = value
    return PriceTable.model_validate(data)


def ranges(table: PriceTable) -> dict[str, Range]:
    """Rows that carry a range, in table order."""
    found: dict[str, Range] = {}
    for name, row in table.rows().items():
        if row.low is not None and row.high is not None and row.default is not None:
            found[name] = Range(row.low, row.default, row.high)
    return found


def sensitivity(baseline: Case, ours: Case, row: str) -> Range:
    """Energy gain (baseline / ours) with `row` at low, as it stands, and high.

    Where both tables have the row it is one unknown of the world and moves in both, each over its own
    range; where one has it, only that one moves. Raises ValueError where neither has it as a range.
    """
    if row not in ranges(baseline.table) and row not in ranges(ours.table):
        both = sorted(ranges(baseline.table).keys() | ranges(ours.table).keys())
        raise ValueError(f"no range for row {row!r} in either price table; rows with one: {', '.join(both)}")
    return Range(*(_energy_j(baseline, row, at) / _energy_j(ours, row, at) for at in Range._fields))


def _energy_j(case: Case, row: str, at: str) -> float:
    known = ranges(case.table).get(row)
    if known is None:
        return case.energy_j()
    value: float = getattr(known, at)
    return Case(case.timeline, with_overrides(case.table, {row: value}), case.params).energy_j()
