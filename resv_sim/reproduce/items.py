"""What a reproduced figure is made of: numbers beside the paper's, statements beside the paper's, panels to draw.

Puts a figure's own rows and statistics beside the published facts. Computes no physics, draws nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

from resv.policies import POLICIES
from resv_sim.published import Fact, PublishedFacts, compare_fact, items_of
from resv_sim.results import ResultRow

Role = Literal["calibration", "prediction", "not_run"]
Verdict = Literal["holds", "does not hold", "open"]


@dataclass(frozen=True)
class Item:
    """One published number and ours; `error` is ours / published - 1. `reason` says why there is no `ours`."""

    figure: str
    item: str
    unit: str
    ours: float | None
    published: float
    error: float | None
    role: Role
    reason: str = ""

    def plain(self) -> dict[str, str | float | None]:
        """The seven keys of `resv-sim reproduce --json`; the reason of what was not run stands in `item`."""
        data = asdict(self)
        reason = data.pop("reason")
        return data | {"item": f"{self.item} ({reason})"} if reason else data


@dataclass(frozen=True)
class Statement:
    """What the paper says without a number: an ordering, a limit."""

    text: str
    verdict: Verdict
    detail: str = ""


@dataclass(frozen=True)
class Panel:
    """Series over a number or over names, with the published facts (by item) drawn beside them.

    marks : series over a number -> its fact;  name_marks : series over names -> name -> its fact
    steps : a value holds until the next
    """

    title: str
    y_label: str
    series: Mapping[str, Mapping[int, float] | Mapping[str, float]]
    marks: Mapping[str, str] = field(default_factory=dict)
    name_marks: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    x_label: str = "cache length (tokens)"
    log_y: bool = False
    steps: bool = False


@dataclass(frozen=True)
class Table:
    """A table of text for the report."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Bar:
    """A result with one unknown at the low and at the high end of its range."""

    name: str
    low: float
    high: float

    @property
    def span(self) -> float:
        return abs(self.high - self.low)


@dataclass(frozen=True)
class Tornado:
    """How far each unknown moves one result from its default."""

    title: str
    unit: str
    default: float
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Group:
    """Rows of one experiment and the pair (platform, policy) that their gains refer to."""

    rows: tuple[ResultRow, ...]
    baseline: tuple[str, str]


@dataclass(frozen=True)
class Findings:
    """Ours for one figure. `missing`: statistic -> why it could not be made."""

    groups: tuple[Group, ...] = ()
    statistics: Mapping[str, object] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    statements: tuple[Statement, ...] = ()
    notes: tuple[str, ...] = ()
    panels: tuple[Panel, ...] = ()
    tables: tuple[Table, ...] = ()
    tornados: tuple[Tornado, ...] = ()


def beside(name: str, titles: Sequence[str], published: PublishedFacts, findings: Findings) -> list[Item]:
    """Every published number of the figures `titles`, in the order of the facts."""
    facts = [fact for fact in published.facts if fact.figure in titles]
    return [item for fact in facts for item in _items(name, fact, published.kv_lengths_tokens, findings)]


def _items(name: str, fact: Fact, lengths: Sequence[int], findings: Findings) -> Iterator[Item]:
    groups = findings.groups or (Group((), ("", "")),)
    for group in groups:
        compared = compare_fact(fact, lengths, group.rows, group.baseline, findings.statistics)
        if compared:
            yield from (Item(name, c.item, c.unit, c.ours, c.published, c.error, c.role) for c in compared)
            return
    reason = fact.reason or findings.missing.get(fact.statistic or "") or _absent(fact)
    for item, value in items_of(fact, lengths):
        yield Item(name, item, fact.unit, None, value, None, "not_run", f"not run: {reason}")


def not_run(policy: str) -> str:
    """Why a policy has no rows."""
    return f"policy {policy} is not among the runs" if policy in POLICIES else f"no policy {policy} is built"


def _absent(fact: Fact) -> str:
    return not_run(fact.where.policy[0]) if fact.where.policy else "nothing that was run has this"
