"""Why a point is as it is: where its time and energy go, and what changed against another, largest first.

Reads a sweep's folder; simulates nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resv_sim.errors import ConfigError
from resv_sim.plots.style import number
from resv_sim.sweep.config import Measure
from resv_sim.sweep.job import measured_row
from resv_sim.sweep.store import read_records, read_state

HEADLINE = (
    ("latency_s", "latency", "ms", 1e3),
    ("energy_j", "energy", "J", 1.0),
    ("speedup", "speedup", "x", 1.0),
    ("energy_gain", "energy gain", "x", 1.0),
    ("area_mm2", "area", "mm2", 1.0),
    ("attention_mass_kept", "attention mass kept", "%", 100.0),
    ("retrieval_ratio", "retrieved", "%", 100.0),
    ("link_bytes", "bytes on the link", "MB", 1e-6),
)
_ID_LETTERS = 4  # of an id that name a point
_MATTERS = 1e-4  # parts that change the whole by less are left out


@dataclass(frozen=True)
class _Side:
    """One side of an explanation: a point's measured row, or its baseline's."""

    title: str
    names: Mapping[str, Any]
    row: Mapping[str, Any]
    exposed_s: Mapping[str, float]
    energy_j: Mapping[str, float]


def explanation(results: Path, point: str, other: str | None = None) -> str:
    """The whole text. Raises ValueError where folder or point are not there or the point failed."""
    folder = results.parent if results.is_file() else results
    records = read_records(folder)
    identity = read_state(folder)["identity"]
    measure = Measure.model_validate(identity["sweep"]["measure"])
    this = _side(_record(records, point), measure)
    if other is None:
        return "\n".join(_alone(this))
    if other == "baseline":
        label = identity["experiment"]["baseline"]
        base = measure.model_copy(update=label)
        return "\n".join(_against(this, _side(_record(records, point), base)))
    return "\n".join(_against(this, _side(_record(records, other), measure)))


def _record(records: list[dict[str, Any]], point: str) -> dict[str, Any]:
    by_number = [r for r in records if str(r["point"]) == point]
    found = by_number or [r for r in records if len(point) >= _ID_LETTERS and r["id"].startswith(point)]
    if len(found) != 1:
        last = records[-1]["point"] if records else "none"
        raise ConfigError(
            f"no point '{point}': give a number (the last finished one is {last}) or at least {_ID_LETTERS} "
            "characters of an id's start."
        )
    if "error" in found[0]:
        raise ConfigError(f"point {found[0]['point']} failed: {found[0]['error']}")
    return found[0]


def _side(record: Mapping[str, Any], measure: Measure) -> _Side:
    row = measured_row(record, measure)
    if row is None:
        raise ConfigError(f"point {record['point']} has no row for {measure.label}.")
    at = record["rows"].index(row)
    title = f"point {record['point']} ({record['id']}), {measure.label}"
    return _Side(title, record["names"], row, record["exposed_s"][at], record["energy_j"][at])


def _alone(side: _Side) -> Iterator[str]:
    yield side.title
    yield "  " + ", ".join(f"{axis} = {value}" for axis, value in side.names.items())
    for column, name, unit, scale in HEADLINE:
        value = side.row[column]
        if value is not None:
            yield f"  {name:<20} {number(scale * value):>9} {unit}"
    yield from _parts("time", side.exposed_s, "ms", 1e3)
    yield from _parts("energy", side.energy_j, "mJ", 1e3)


def _parts(title: str, parts: Mapping[str, float], unit: str, scale: float) -> Iterator[str]:
    total = sum(parts.values())
    yield ""
    yield f"{title}: {number(scale * total)} {unit}"
    for name, value in sorted(parts.items(), key=lambda item: -item[1]):
        if value > _MATTERS * total:
            yield f"  {name:<20} {number(scale * value):>9} {unit}  {100 * value / total:5.1f} %"


def _against(this: _Side, other: _Side) -> Iterator[str]:
    yield f"{this.title}"
    yield f"against {other.title}"
    changed = {axis: value for axis, value in this.names.items() if other.names.get(axis) != value}
    for axis, value in changed.items():
        yield f"  {axis}: {other.names.get(axis)} -> {value}"
    for column, name, unit, scale in HEADLINE:
        before, after = other.row[column], this.row[column]
        if before is not None and after is not None and before != after:
            ends = f"{number(scale * before):>9} -> {number(scale * after):>9}"
            yield f"  {name:<20} {ends} {unit}{_percent(before, after)}"
    yield from _changes("time", this.exposed_s, other.exposed_s, "ms", 1e3)
    yield from _changes("energy", this.energy_j, other.energy_j, "mJ", 1e3)


def _percent(before: float, after: float) -> str:
    return f"  {100 * (after / before - 1):+.1f} %" if before else ""


def _changes(
    title: str, this: Mapping[str, float], other: Mapping[str, float], unit: str, scale: float
) -> Iterator[str]:
    names = dict.fromkeys([*other, *this])
    changes = {name: this.get(name, 0.0) - other.get(name, 0.0) for name in names}
    total = sum(changes.values())
    yield ""
    yield f"change of {title}: {_signed(scale * total)} {unit}, largest first"
    whole = sum(other.values())
    for name, change in sorted(changes.items(), key=lambda item: -abs(item[1])):
        if abs(change) > _MATTERS * whole:
            ends = f"{number(scale * other.get(name, 0.0))} -> {number(scale * this.get(name, 0.0))}"
            yield f"  {name:<20} {_signed(scale * change):>9} {unit}  ({ends})"


def _signed(value: float) -> str:
    return f"{'+' if value >= 0 else '-'}{number(abs(value))}"
