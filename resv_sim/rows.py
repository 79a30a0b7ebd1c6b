"""One simulated and priced step -> its row, its breakdown; steps of a session -> one row per stage.

docs/metrics.md gives every column as a formula.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dre_sim.breakdown import exposed_ps, prediction_ps
from dre_sim.timeline import Timeline
from dre_sim.workload import DreJob, StepWork
from energy_models.pricing import Bill
from resv.selection import Fidelity, LayerSelection, Selection
from resv_sim.results import BreakdownRow, ResultRow

STORAGE = ("ssd", "host_dram")


@dataclass(frozen=True)
class PointContext:
    """What a row says about where it came from."""

    experiment: str
    platform: str
    policy: str
    model: str
    seed: int
    config_hash: str
    git_revision: str
    area_mm2: float | None
    memory_bytes_per_s: float


@dataclass(frozen=True)
class Point:
    """One step of one platform under one policy, simulated and priced."""

    row: ResultRow
    exposed_s: dict[str, float]
    energy_j: dict[str, float]
    timeline: Timeline
    bill: Bill
    work: StepWork


def make_point(
    context: PointContext,
    work: StepWork,
    selections: Sequence[Selection],
    timeline: Timeline,
    bill: Bill,
) -> Point:
    """The row of one step; `selections` are the batch's streams, none where the work comes from statistics."""
    latency_s = timeline.end_ps * 1e-12
    exposed = {name: ps * 1e-12 for name, ps in exposed_ps(timeline).items()}
    actions = timeline.actions
    dram_bytes = actions.get("dram_read_bytes", 0) + actions.get("dram_write_bytes", 0)
    fetches = [layer.fetch for layer in work.layers if layer.fetch is not None]
    row = ResultRow(
        experiment=context.experiment,
        platform=context.platform,
        policy=context.policy,
        model=context.model,
        kv_len_tokens=work.kv_len_tokens,
        batch=work.batch,
        stage=work.kind,
        latency_s=latency_s,
        fps=1.0 / latency_s if work.kind == "frame" else None,
        speedup=None,
        energy_j=bill.total_j,
        energy_gain=None,
        power_w=bill.average_power_w,
        area_mm2=context.area_mm2,
        dram_bytes=dram_bytes,
        link_bytes=actions.get("link_bytes", 0),
        link_transactions=sum(f.extent_bytes.size for f in fetches),
        prediction_s=prediction_ps(timeline) * 1e-12,
        exposed_fetch_s=exposed.get("fetch", 0.0),
        n_new_tokens=work.n_new,
        bound_s=dram_bytes / context.memory_bytes_per_s,
        trace_kind="trace" if selections else "statistics",
        seed=context.seed,
        config_hash=context.config_hash,
        git_revision=context.git_revision,
        fetched_tokens=sum(f.n_tokens for f in fetches),
        fetched_bytes=sum(f.useful_bytes for f in fetches),
        **_selection_columns(selections),
        **_dre_columns([layer.prediction.dre for layer in work.layers if layer.prediction is not None]),
        **_energy_columns(bill),
    )
    return Point(row, exposed, bill.by_component(), timeline, bill, work)


def retrieval_ratios(selections: Sequence[Selection]) -> NDArray[np.float64]:
    """(L, H) selected / candidate tokens, mean over streams; 0 where there was nothing to choose from."""
    per_stream = np.array([[_ratio(layer) for layer in s.layers] for s in selections], dtype=np.float64)
    return np.asarray(per_stream.mean(axis=0))


def _ratio(layer: LayerSelection) -> NDArray[np.float64]:
    candidates = layer.candidate_tokens
    return np.where(candidates > 0, layer.selected_tokens / np.maximum(candidates, 1), 0.0)


def _selection_columns(selections: Sequence[Selection]) -> dict[str, Any]:
    layers = [layer for s in selections for layer in s.layers]
    fidelities = [f for s in selections for f in s.fidelity]
    candidates = sum(int(layer.candidate_tokens.sum()) for layer in layers)
    tables = [table for layer in layers for table in layer.tables]
    clusters = float(np.mean([t.n_clusters for t in tables])) if tables else None
    tokens = sum(int(t.token_counts.sum()) for t in tables)
    return {
        "retrieval_ratio": float(np.mean(retrieval_ratios(selections))) if candidates else None,
        "attention_mass_kept": _mean(fidelities, "attention_mass_kept"),
        "topk_overlap": _mean(fidelities, "topk_overlap"),
        "output_rel_error": _mean(fidelities, "output_rel_error"),
        "clusters": clusters,
        "tokens_per_cluster": tokens / (clusters * len(tables)) if clusters else None,
        **_threshold_columns(layers),
    }


def _threshold_columns(layers: Sequence[LayerSelection]) -> dict[str, Any]:
    """Share of the scores in visited ranges, and how many of them the exact prefix would have left out."""
    counts = [layer.counts for layer in layers if layer.counts.score_elements]
    if not counts:
        return {"elements_visited_share": None, "overshoot": None}
    elements = sum(c.score_elements for c in counts)
    exact = sum(c.exact_prefix_elements for c in counts)
    kept = sum(c.selected_prefix_elements for c in counts)
    return {"elements_visited_share": kept / elements, "overshoot": kept / exact - 1.0 if exact else None}


def _dre_columns(jobs: Sequence[DreJob | None]) -> dict[str, Any]:
    known = [job for job in jobs if job is not None]
    if not known:
        return {"hcu_cycles": None, "wtu_cycles": None}
    return {
        "hcu_cycles": sum(job.hcu_cycles for job in known),
        "wtu_cycles": sum(job.wtu_cycles for job in known),
    }


def _energy_columns(bill: Bill) -> dict[str, Any]:
    parts = {"energy_compute_j": 0.0, "energy_dram_j": 0.0, "energy_link_j": 0.0, "energy_storage_j": 0.0}
    for line in bill.actions:
        kind = "storage" if line.component in STORAGE else line.component
        name = f"energy_{kind}_j"
        parts[name if name in parts else "energy_compute_j"] += line.joules
    return {**parts, "energy_static_j": bill.static_j}


def _mean(fidelities: Sequence[Fidelity], name: str) -> float | None:
    """Mean over layers and streams; None without any, and where one is NaN: a trace without values has no error."""
    mean = float(np.mean([getattr(f, name) for f in fidelities])) if fidelities else math.nan
    return None if math.isnan(mean) else mean


def stage_means(points: Sequence[Point]) -> list[Point]:
    """Steps of a session -> one point per stage: every number is the mean over the stage's steps.

    Frames per second and power are those of the means. The cache length is the last step's, and the timeline and the
    bill kept are the last step's.
    """
    out = []
    for stage in dict.fromkeys(p.row.stage for p in points):
        mine = [p for p in points if p.row.stage == stage]
        out.append(
            replace(
                mine[-1],
                row=_mean_row([p.row for p in mine]),
                exposed_s=_mean_parts([p.exposed_s for p in mine]),
                energy_j=_mean_parts([p.energy_j for p in mine]),
            )
        )
    return out


def _mean_row(rows: Sequence[ResultRow]) -> ResultRow:
    means: dict[str, object] = {}
    for f in fields(ResultRow):
        values = [getattr(row, f.name) for row in rows]
        numbers = [v for v in values if isinstance(v, (int, float))]
        if f.name in ("kv_len_tokens", "seed", "batch") or not numbers:
            continue
        mean = sum(numbers) / len(numbers)
        means[f.name] = round(mean) if isinstance(numbers[0], int) else mean
    if rows[-1].fps is not None:
        means["fps"] = len(rows) / sum(row.latency_s for row in rows)
    means["power_w"] = sum(row.energy_j for row in rows) / sum(row.latency_s for row in rows)
    return replace(rows[-1], **means)  # type: ignore[arg-type]  # field types are kept by construction


def _mean_parts(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for p in parts for name in p)
    return {name: sum(p.get(name, 0.0) for p in parts) / len(parts) for name in names}


def breakdown_rows(point: Point) -> list[BreakdownRow]:
    """Exposed seconds by cause, then joules by component."""
    row = point.row
    times = [(name, seconds, 0.0) for name, seconds in point.exposed_s.items()]
    energies = [(name, 0.0, joules) for name, joules in point.energy_j.items()]
    return [
        BreakdownRow(row.platform, row.policy, row.kv_len_tokens, row.stage, name, seconds, joules)
        for name, seconds, joules in (*times, *energies)
    ]
