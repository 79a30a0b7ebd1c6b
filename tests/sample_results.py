"""A made-up experiment result with everything in it, for tests of what is written and drawn."""

from __future__ import annotations

import numpy as np

from dre_sim.timeline import Span, Timeline
from resv_sim.config import Experiment, load_experiment
from resv_sim.published import compare
from resv_sim.results import BreakdownRow, ExperimentResult, RatioKey, ResultRow, SensitivityRow

LENGTHS = (1_000, 5_000, 10_000, 20_000, 40_000)
RUNS = (("agx_orin", "flexgen_stream"), ("agx_orin", "resv"), ("vrex8", "resv"))


def sample_rows(lengths: tuple[int, ...] = LENGTHS) -> tuple[ResultRow, ...]:
    return tuple(
        sample_row(platform, policy, length, stage)
        for platform, policy in RUNS
        for stage in ("frame", "decode")
        for length in lengths
    )


def sample_row(platform: str, policy: str, length: int, stage: str) -> ResultRow:
    """Latency and energy grow with the cache; the baseline moves all of it, the others a part."""
    moved_share = 1.0 if policy == "flexgen_stream" else 0.2
    base_s, base_w = (0.2, 30.0) if platform == "agx_orin" else (0.1, 20.0)
    baseline_s = 0.2 + length * 4e-5
    latency_s = base_s + length * 4e-5 * moved_share
    energy_j = latency_s * base_w
    return ResultRow(
        experiment="sample",
        platform=platform,
        policy=policy,
        model="llama3_8b",
        kv_len_tokens=length,
        batch=1,
        stage=stage,
        latency_s=latency_s,
        fps=1 / latency_s if stage == "frame" else None,
        speedup=baseline_s / latency_s,
        energy_j=energy_j,
        energy_gain=baseline_s * 30.0 / energy_j,
        power_w=base_w,
        area_mm2=15.12 if platform == "vrex8" else 200.0,
        retrieval_ratio=moved_share,
        attention_mass_kept=0.97,
        output_rel_error=None if policy == "flexgen_stream" else 0.08,
        dram_bytes=16_000_000_000,
        link_bytes=131_072 * length,
        link_transactions=32 * length,
        prediction_s=0.0 if policy == "flexgen_stream" else 0.004,
        exposed_fetch_s=length * 3e-5 * moved_share,
        n_new_tokens=10 if stage == "frame" else 1,
        bound_s=0.08,
        trace_kind="trace",
        tokens_per_cluster=None if policy == "flexgen_stream" else 30.5,
        seed=7,
        config_hash="0123456789abcdef",
    )


def sample_breakdown(rows: tuple[ResultRow, ...]) -> tuple[BreakdownRow, ...]:
    """Every row's latency and energy split into four parts."""
    parts = {"vision": 0.1, "linear": 0.4, "attention": 0.1, "exposed fetch": 0.4}
    return tuple(
        BreakdownRow(r.platform, r.policy, r.kv_len_tokens, r.stage, name, share * r.latency_s, share * r.energy_j)
        for r in rows
        for name, share in parts.items()
    )


def sample_timeline(platform: str) -> Timeline:
    """Four layers: fetch and prediction run under the linear layers; the link overlaps itself."""
    spans = []
    for layer in range(4):
        start = layer * 2_500_000_000
        spans += [
            Span("lxe", start, start + 1_500_000_000, "linear", layer),
            Span("lxe", start + 1_500_000_000, start + 2_500_000_000, "attention", layer),
            Span("hcu", start + 200_000_000, start + 260_000_000, "prediction", layer),
            Span("link", start + 300_000_000, start + 2_900_000_000, "fetch", layer + 1, 4096, 0.5),
            Span("dram", start, start + 2_400_000_000, "linear", layer, 10_000, 0.7),
            Span("dram", start + 300_000_000, start + 2_900_000_000, "fetch", layer, 4096, 0.2),
        ]
    return Timeline(platform, tuple(spans), {"dpe_macs": 1}, 10_400_000_000)


def sample_result(lengths: tuple[int, ...] = LENGTHS) -> ExperimentResult:
    rows = sample_rows(lengths)
    ratios = np.random.default_rng(0).uniform(0.04, 0.44, (32, 8))
    return ExperimentResult(
        rows=rows,
        breakdown=sample_breakdown(rows),
        ratios={RatioKey("resv", max(lengths), stage): ratios for stage in ("frame", "decode")},
        timelines={"vrex8+resv": sample_timeline("vrex8")},
        areas={
            "vrex8": {"dpe": 10.96, "vpe": 1.12, "lxe_memory": 2.72, "hcu": 0.04, "wtu": 0.186, "kvmu": 0.08},
            "agx_orin": {"die": 200.0},
        },
        dre_power={"dpe": 18.49, "vpe": 0.98, "lxe_memory": 0.95, "hcu": 0.024, "wtu": 0.31, "kvmu": 0.12},
        trace_statistics={"hc_table_share": 0.0167, "layer_ratio_min": 0.05, "n_frames": np.int64(4000)},
        assumptions=("Batch 1; fetches are laid out by cluster.",),
        notes=("agx_orin uses the measured table (152.8 GB/s usable).",),
        sensitivity=tuple(
            SensitivityRow(price, "pJ per byte", pj, "vrex8", "resv", length, "frame", 8.0 + slope * pj)
            for length in (min(lengths), max(lengths))
            for price, slope in (("dram_read_bytes", -0.05), ("link_bytes", 0.02))
            for pj in (20.0, 40.0, 60.0)
        ),
        published=tuple(compare(rows, ("agx_orin", "flexgen_stream"), {"hc_table_share": 0.0168})),
    )


def sample_experiment(*settings: str) -> Experiment:
    """The main experiment, loaded."""
    return load_experiment("orin_vs_dre", settings)[0]
