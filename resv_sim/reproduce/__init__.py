"""The paper's figures and tables beside ours: every published number with a signed error and its role.

A figure turns the paper's experiments (`configs/paper`, run once in a `Study`) into findings; `items.py` puts the
published facts beside them. Nothing here changes a model: what was fitted stands in `configs/calibration.yaml`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from resv_sim.errors import ConfigError, hint
from resv_sim.published import Contradiction, PublishedFacts, published_facts
from resv_sim.reproduce.ablation import fig16, fig19
from resv_sim.reproduce.baselines import readings
from resv_sim.reproduce.calibration import fitted
from resv_sim.reproduce.items import Findings, Item, beside
from resv_sim.reproduce.machine import fig17, fig18
from resv_sim.reproduce.retrieval import fig7, fig20, table2
from resv_sim.reproduce.speed import fig13, fig14, fig15
from resv_sim.reproduce.study import Study
from resv_sim.reproduce.tables import fig4, table1, table3
from resv_sim.reproduce.uncertainty import headlines


@dataclass(frozen=True)
class Figure:
    """What a name on the command line means: `published` are the figures of the facts."""

    title: str
    published: tuple[str, ...]
    find: Callable[[Study], Findings]


@dataclass(frozen=True)
class Reproduction:
    """One figure, reproduced."""

    name: str
    figure: Figure
    items: tuple[Item, ...]
    findings: Findings
    contradictions: tuple[Contradiction, ...]


def chosen(names: Sequence[str]) -> list[str]:
    """The figures meant by `names`; `all`, or nothing, means all. Raises `ConfigError` for an unknown one."""
    for name in names:
        if name != ALL and name not in FIGURES:
            known = ", ".join([*FIGURES, ALL])
            raise ConfigError(f"no figure '{name}' ({known}).{hint(name, [*FIGURES, ALL])}")
    return list(FIGURES) if not names or ALL in names else list(dict.fromkeys(names))


def reproduce(names: Sequence[str], study: Study) -> list[Reproduction]:
    """Run and compare the figures `names`, in order. Raises what the experiments raise."""
    published = published_facts()
    return [_one(name, study, published) for name in names]


def _one(name: str, study: Study, published: PublishedFacts) -> Reproduction:
    figure = FIGURES[name]
    findings = figure.find(study)
    items = tuple(beside(name, figure.published, published, findings))
    touching = tuple(c for c in published.known_contradictions if name in c.figures)
    return Reproduction(name, figure, items, findings, touching)


ALL = "all"
FIGURES: dict[str, Figure] = {
    "fig4": Figure("Why retrieval has to be fast", ("Fig. 4",), fig4),
    "fig7": Figure("Like keys hash alike", ("Fig. 7",), fig7),
    "fig13": Figure("Latency and energy", ("Fig. 13", "Chip area"), fig13),
    "fig14": Figure("End to end", ("Fig. 14",), fig14),
    "fig15": Figure("Throughput", ("Fig. 15",), fig15),
    "fig16": Figure("What each part adds", ("Fig. 16",), fig16),
    "fig17": Figure("Memory bandwidth of V-Rex48", ("Fig. 17",), fig17),
    "fig18": Figure("Roofline", ("Fig. 18",), fig18),
    "fig19": Figure("Clustering", ("Fig. 19",), fig19),
    "fig20": Figure("Spread of the retrieval ratio", ("Fig. 20", "Section VI"), fig20),
    "table1": Figure("Platforms", ("Table I",), table1),
    "table2": Figure("COIN", ("Table II",), table2),
    "table3": Figure("Area and power of a core", ("Table III",), table3),
    "baselines": Figure("What the baselines' figures decide", (), readings),
    "calibration": Figure("What was fitted", (), fitted),
    "uncertainty": Figure("How sure the headline rows are", (), headlines),
}
