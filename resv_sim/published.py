"""Figures of the literature, and how ours compare: signed errors, nothing hidden, nothing tuned.

Facts are data (`data/vrex_published.yaml`), each with its role: a calibration row has set a constant, a
prediction row has not. Compares only like with like: same model, stage, batch, cache length, baseline.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from resv_sim.results import PublishedComparison, ResultRow, Role
from resv_sim.validation import validated
from resv_sim.yaml_source import read_yaml

FACTS_FILE = Path(__file__).resolve().parent / "data" / "vrex_published.yaml"


class Where(BaseModel):
    """Rows a fact speaks about; an empty list of labels means any. `kv_len_tokens` is a closed interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    platform: tuple[str, ...] = ()
    policy: tuple[str, ...] = ()
    stage: Literal["frame", "question", "decode"] | None = None
    batch: int | None = None
    kv_len_tokens: tuple[int, int] | None = None

    def holds_for(self, row: ResultRow) -> bool:
        return (
            (not self.platform or row.platform in self.platform)
            and (not self.policy or row.policy in self.policy)
            and self.stage in (None, row.stage)
            and self.batch in (None, row.batch)
            and (self.kv_len_tokens is None or self.kv_len_tokens[0] <= row.kv_len_tokens <= self.kv_len_tokens[1])
        )


class Fact(BaseModel):
    """One published figure: values over the cache lengths (or `labels`), the ends of a range, or one value.

    `reason` says why no simulation can give it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    figure: str
    item: str
    unit: str
    column: str | None = None
    statistic: str | None = None
    where: Where = Where()
    baseline: Where | None = None
    value: float | None = None
    values: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    range: tuple[float, float] | None = None
    role: Role
    calibrated_lengths_tokens: tuple[int, ...] = ()
    reason: str = ""

    @model_validator(mode="after")
    def _check(self) -> Fact:
        if [self.column is not None, self.statistic is not None, bool(self.reason)].count(True) != 1:
            raise ValueError("a fact names either a column or a statistic, or the reason why there is none")
        if self.column is not None and self.column not in ResultRow.__dataclass_fields__:
            raise ValueError(f"no column '{self.column}' in results.csv")
        if [self.value is not None, bool(self.values), self.range is not None].count(True) != 1:
            raise ValueError("a fact has either a value, values or a range")
        if self.labels and len(self.labels) != len(self.values):
            raise ValueError(f"{self.item}: {len(self.values)} values and {len(self.labels)} labels")
        return self


class Contradiction(BaseModel):
    """Where the paper disagrees with itself, and the figures that this touches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    figures: tuple[str, ...] = Field(min_length=1)
    text: str


class PublishedFacts(BaseModel):
    """The file of facts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    paper: str
    model: str
    kv_lengths_tokens: tuple[int, ...]
    known_contradictions: tuple[Contradiction, ...] = ()
    calibration_rows: tuple[str, ...] = ()
    facts: tuple[Fact, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> PublishedFacts:
        for fact in self.facts:
            if fact.values and not fact.labels and len(fact.values) != len(self.kv_lengths_tokens):
                raise ValueError(f"{fact.item}: {len(self.kv_lengths_tokens)} values are needed, one per length")
        return self


def published_facts() -> PublishedFacts:
    """The packaged facts, validated."""
    return validated(PublishedFacts, read_yaml(FACTS_FILE))


def compare(
    rows: Sequence[ResultRow], baseline: tuple[str, str], statistics: Mapping[str, object] | None = None
) -> list[PublishedComparison]:
    """Every published figure for which these rows have a counterpart.

    `baseline` is the pair (platform, policy) that speedup and energy_gain refer to; `statistics` are the
    trace's, by the names the facts use.
    """
    published = published_facts()
    same_model = [row for row in rows if _plain(row.model) == _plain(published.model)]
    if not same_model:
        return []
    result: list[PublishedComparison] = []
    for fact in published.facts:
        result += compare_fact(fact, published.kv_lengths_tokens, same_model, baseline, statistics)
    return result


def compare_fact(
    fact: Fact,
    lengths: Sequence[int],
    rows: Sequence[ResultRow],
    baseline: tuple[str, str],
    statistics: Mapping[str, object] | None = None,
) -> list[PublishedComparison]:
    """One published figure beside rows of the published model; empty where they have no counterpart of it.

    A statistic is a number; for a range, a mapping whose smallest and largest value are compared; for values, a
    mapping from cache length or label.
    """
    if fact.baseline and not _is_baseline(fact.baseline, baseline):
        return []
    matching = [row for row in rows if fact.where.holds_for(row)]
    if fact.column is not None:
        return list(_over_rows(fact, lengths, matching))
    if not matching and fact.where != Where():
        return []
    return list(_of_statistic(fact, lengths, (statistics or {}).get(fact.statistic or "")))


def items_of(fact: Fact, lengths: Sequence[int]) -> list[tuple[str, float]]:
    """Every single number of a fact: what it is and what was published."""
    if fact.values:
        names = fact.labels or [_at(length) for length in lengths]
        return [(f"{fact.item} {name}", value) for name, value in zip(names, fact.values, strict=True)]
    if fact.range is not None:
        return [(f"{fact.item}, lowest", fact.range[0]), (f"{fact.item}, highest", fact.range[1])]
    return [(fact.item, fact.value)] if fact.value is not None else []


def _over_rows(fact: Fact, lengths: Sequence[int], rows: Sequence[ResultRow]) -> Iterator[PublishedComparison]:
    """One comparison per platform where the fact is about platforms (both Orin tables, say), else one."""
    platforms = list(dict.fromkeys(row.platform for row in rows))
    for platform in platforms if fact.where.platform else platforms[:1]:
        mine = [row for row in rows if row.platform == platform]
        values = {row.kv_len_tokens: _number(getattr(row, fact.column or "")) for row in mine}
        ours = {length: value for length, value in values.items() if value is not None}
        note = f" ({platform})" if len(platforms) > 1 and fact.where.platform else ""
        if fact.values:
            yield from _per_length(fact, note, lengths, ours)
        elif fact.range is not None and {lengths[0], lengths[-1]} <= ours.keys():
            yield from _both_ends(fact, note, ours)
        elif fact.value is not None and ours:
            yield from _one(fact, fact.item + note, sum(ours.values()) / len(ours))


def _of_statistic(fact: Fact, lengths: Sequence[int], ours: object) -> Iterator[PublishedComparison]:
    if not isinstance(ours, Mapping):
        yield from _one(fact, fact.item, _number(ours))
    elif fact.range is not None:
        yield from _both_ends(fact, "", ours)
    elif fact.labels:
        for label, (item, published) in zip(fact.labels, items_of(fact, lengths), strict=True):
            if label in ours:
                yield _comparison(fact, item, ours[label], published)
    else:
        yield from _per_length(fact, "", lengths, ours)


def _both_ends(fact: Fact, note: str, ours: Mapping[int, float]) -> Iterator[PublishedComparison]:
    assert fact.range is not None
    yield _comparison(fact, f"{fact.item}, lowest{note}", min(ours.values()), fact.range[0])
    yield _comparison(fact, f"{fact.item}, highest{note}", max(ours.values()), fact.range[1])


def _at(length: int) -> str:
    return f"at {length // 1000}K"


def _per_length(
    fact: Fact, note: str, lengths: Sequence[int], ours: Mapping[int, float]
) -> Iterator[PublishedComparison]:
    for length, published in zip(lengths, fact.values, strict=True):
        if length in ours:
            item = f"{fact.item} {_at(length)}{note}"
            role: Role = "calibration" if length in fact.calibrated_lengths_tokens else fact.role
            compared = _comparison(fact, item, ours[length], published)
            yield replace(compared, role=role, kv_len_tokens=length)


def _one(fact: Fact, item: str, ours: float | None) -> Iterator[PublishedComparison]:
    if ours is not None and fact.value is not None:
        yield _comparison(fact, item, ours, fact.value)


def _comparison(fact: Fact, item: str, ours: float, published: float) -> PublishedComparison:
    return PublishedComparison(
        fact.figure,
        item,
        fact.unit,
        ours,
        published,
        error=ours / published - 1.0,
        role=fact.role,
        column=fact.column,
        stage=fact.where.stage,
    )


def _is_baseline(wanted: Where, baseline: tuple[str, str]) -> bool:
    return baseline[0] in wanted.platform and baseline[1] in wanted.policy


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
