"""The nouns of a finished experiment. `writing.py` turns them into files.

`ResultRow`'s fields are the columns of `results.csv`; docs/metrics.md gives each as a formula. None means
that the quantity does not exist for that row (no selection was made, no fidelity asked for).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dre_sim.timeline import Timeline

TraceKind = Literal["trace", "statistics"]
Role = Literal["calibration", "prediction"]
MATTERS = 0.01


@dataclass(frozen=True)
class ResultRow:
    """One platform running one policy at one cache length and stage. Column = field."""

    experiment: str
    platform: str
    policy: str
    model: str
    kv_len_tokens: int
    batch: int
    stage: str
    latency_s: float
    fps: float | None
    speedup: float | None
    energy_j: float
    energy_gain: float | None
    power_w: float
    area_mm2: float | None
    retrieval_ratio: float | None
    attention_mass_kept: float | None
    output_rel_error: float | None
    dram_bytes: int
    link_bytes: int
    link_transactions: int
    prediction_s: float
    exposed_fetch_s: float
    n_new_tokens: int
    bound_s: float
    trace_kind: TraceKind
    fetched_tokens: int = 0
    fetched_bytes: int = 0
    topk_overlap: float | None = None
    clusters: float | None = None
    tokens_per_cluster: float | None = None
    hcu_cycles: int | None = None
    wtu_cycles: int | None = None
    elements_visited_share: float | None = None
    overshoot: float | None = None
    accuracy: float | None = None
    accuracy_drop: float | None = None
    energy_compute_j: float = 0.0
    energy_dram_j: float = 0.0
    energy_link_j: float = 0.0
    energy_storage_j: float = 0.0
    energy_static_j: float = 0.0
    seed: int = 0
    config_hash: str = ""
    git_revision: str = ""

    @property
    def label(self) -> str:
        return f"{self.platform}+{self.policy}"


@dataclass(frozen=True)
class BreakdownRow:
    """Part of one row's latency and energy.

    Over its components a row's exposed seconds add up to its latency, and the joules to its energy.
    """

    platform: str
    policy: str
    kv_len_tokens: int
    stage: str
    component: str
    exposed_s: float
    energy_j: float


@dataclass(frozen=True)
class RatioKey:
    """Which retrieval ratios: one probed step of one policy."""

    policy: str
    kv_len_tokens: int
    stage: str


@dataclass(frozen=True)
class SensitivityRow:
    """The energy gain of one pair over the baseline with one uncertain price changed."""

    parameter: str
    unit: str
    value: float
    platform: str
    policy: str
    kv_len_tokens: int
    stage: str
    energy_gain: float


@dataclass(frozen=True)
class SensitivityRange:
    """One price's rows for one run, by ascending price: `gains[i]` is the energy gain at `values[i]`."""

    parameter: str
    unit: str
    label: str
    kv_len_tokens: int
    stage: str
    values: tuple[float, ...]
    gains: tuple[float, ...]

    @property
    def span(self) -> float:
        """How far the gain moves."""
        return max(self.gains) - min(self.gains)


def sensitivity_ranges(rows: Sequence[SensitivityRow]) -> list[SensitivityRange]:
    """Rows that differ in the price's value alone, put together; in order of first appearance.

    Prices that move the gain by less than `MATTERS` of it are left out.
    """
    found: dict[tuple[str, str, str, int, str], list[tuple[float, float]]] = {}
    for r in rows:
        key = (r.parameter, r.unit, f"{r.platform}+{r.policy}", r.kv_len_tokens, r.stage)
        found.setdefault(key, []).append((r.value, r.energy_gain))
    ranges = [
        SensitivityRange(*key, *(tuple(column) for column in zip(*sorted(points), strict=True)))
        for key, points in found.items()
    ]
    return [r for r in ranges if r.span >= MATTERS * max(r.gains)]


@dataclass(frozen=True)
class PublishedComparison:
    """A figure of the paper beside ours. `error` is ours / published - 1.

    `column`, `stage` and `kv_len_tokens` say which cell of `results.csv` it is about, None where it is
    about several or none.
    """

    figure: str
    item: str
    unit: str
    ours: float
    published: float
    error: float
    role: Role
    column: str | None = None
    stage: str | None = None
    kv_len_tokens: int | None = None


@dataclass(frozen=True)
class ExperimentResult:
    """What a pipeline run yields.

    ratios : (L, H) retrieval ratio of every layer and KV head
    timelines : label -> one step, drawn and exported;  areas : platform -> component -> mm2
    dre_power : component of one V-Rex core -> W at full activity
    trace_statistics : what the stream is like (name -> number or text)
    assumptions : what the numbers rest on;  notes : what happened (skipped lengths, tables used)
    """

    rows: tuple[ResultRow, ...]
    breakdown: tuple[BreakdownRow, ...] = ()
    ratios: Mapping[RatioKey, NDArray[np.float64]] = field(default_factory=dict)
    timelines: Mapping[str, Timeline] = field(default_factory=dict)
    areas: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    dre_power: Mapping[str, float] = field(default_factory=dict)
    trace_statistics: Mapping[str, object] = field(default_factory=dict)
    assumptions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    sensitivity: tuple[SensitivityRow, ...] = ()
    published: tuple[PublishedComparison, ...] = ()
