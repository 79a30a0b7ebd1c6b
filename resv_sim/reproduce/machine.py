"""Figs. 17 and 18: where the memory bandwidth of V-Rex48 goes, and how near a step comes to its roofline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dre_sim.gpu import GpuConfig
from dre_sim.platforms import VRexConfig
from dre_sim.scheduler import DRAM
from dre_sim.timeline import Span, Timeline
from resv_sim.hardware import memory_bytes_per_s, peak_flops_per_s
from resv_sim.reproduce.items import Findings, Panel
from resv_sim.reproduce.orderings import chain
from resv_sim.reproduce.speed import AGX, EDGE_BATCH, ON_AGX, OURS, SERVER
from resv_sim.reproduce.study import Outcome, Study, vision_s
from resv_sim.rows import Point

# The paper does not name the step of Fig. 17. A layer of about 400 us is a third of a frame step at 40K (48 ms / 32)
# and all of one at 10K, where the fetch is hidden.
REKV = ON_AGX["ReKV"]
SHARES = {
    AGX: "AGX Orin + FlexGen, share of attainable performance",
    REKV: "AGX Orin + ReKV, share of attainable performance",
    OURS: "V-Rex8, share of attainable performance",
}
NAMES = {AGX: "AGX + FlexGen", REKV: "AGX + ReKV", OURS: "V-Rex8"}
TABLE_I = {"agx_orin_eager": "agx_orin_paper"}  # measured rates -> the table's
PAPER_INTENSITY = 15.2  # op/B; source: V-Rex, Fig. 18
TIMELINE_LENGTH, ROOFLINE_LENGTH = 10_000, 40_000


def fig17(study: Study) -> Findings:
    """From the timeline of a frame step on V-Rex48."""
    outcome = study.outcome("fig13_server")
    timeline = outcome.points[SERVER, "frame", TIMELINE_LENGTH].timeline
    layers = outcome.experiment.model.n_layers
    peak = outcome.experiment.platforms["vrex48"].memory.peak_bytes_per_s
    start, end = decoder_span(timeline)
    fetched = sum(s.n_bytes for s in timeline.on(DRAM) if s.what == "fetch")
    return Findings(
        statistics={
            "layer_time_us": (end - start) / layers / 1e6,
            "prediction_peak_gb_per_s": max(_gb_per_s(s) for s in timeline.on(DRAM) if s.what == "prediction"),
            "retrieval_bandwidth_share": fetched / (peak * (end - start) * 1e-12),
        },
        notes=(
            f"The frame step at {TIMELINE_LENGTH} tokens: the paper does not name its step. Layer time: from the first "
            "linear layer to the last, over the layers. Retrieval's share: fetched bytes written over what the memory "
            "could have moved meanwhile.",
        ),
        panels=(
            Panel(
                "Memory bandwidth by cause, middle layer",
                "GB/s",
                _bandwidth(timeline, layers // 2),
                x_label="us",
                steps=True,
            ),
        ),
    )


def decoder_span(timeline: Timeline) -> tuple[int, int]:
    """Start of the first and end of the last linear layer, ps."""
    linear = [s for s in timeline.spans if s.what == "linear" and s.resource != DRAM]
    return min(s.start_ps for s in linear), max(s.end_ps for s in linear)


def fig18(study: Study) -> Findings:
    """Throughput of the decoder over what the memory of Table I allows at the paper's one intensity."""
    outcome = study.outcome("fig13_edge")
    points = {
        label: next(
            p for p in study.batched("fig13_edge", label, "frame", EDGE_BATCH) if p.row.kv_len_tokens == ROOFLINE_LENGTH
        )
        for label in SHARES
    }
    decoders = {label: decoder_part(p) for label, p in points.items()}
    shares = {label: attainable_share(_table_i(outcome, label), part) for label, part in decoders.items()}
    whole = operations(points[OURS])
    named = {NAMES[label]: share for label, share in shares.items()}
    return Findings(
        statistics={
            "operational_intensity": decoders[OURS].intensity,
            "attainable_agx_flexgen": shares[AGX],
            "attainable_agx_rekv": shares[REKV],
            "attainable_vrex8": shares[OURS],
        },
        statements=(chain("AGX + FlexGen is below AGX + ReKV, and that below V-Rex8", named),),
        notes=(
            "The decoder of a step, from the end of the vision encoder on; a multiply-accumulate is two operations, "
            "bytes are those of the device memory, rates those of Table I. The paper draws all systems at one "
            f"intensity ({PAPER_INTENSITY} op/B) and calls the quotient of two shares a gain in throughput "
            "(71.5 / 6.6 = 10.8): shares are throughputs under one roof, which a system of more operations a byte may "
            "pass. It does not say how it counts operations or bytes. "
            f"Each system's own: {_intensities(decoders)}. With the encoder V-Rex8 has {whole / 1e12:.1f} TFLOP "
            f"in a step instead of {decoders[OURS].operations / 1e12:.1f}; 40 rows make 40 op/B of the weights, half "
            "of that with one operation a multiply-accumulate, and one token a stream makes 4 op/B: none is 15.2.",
        ),
        panels=(
            Panel(
                "Roofline at 40K, batch 4",
                "share of attainable performance",
                {"share": named},
                name_marks={"share": {NAMES[label]: item for label, item in SHARES.items()}},
            ),
        ),
    )


def operations(point: Point) -> int:
    """Operations of the step's products."""
    actions = point.timeline.actions
    return 2 * actions["dpe_macs"] if "dpe_macs" in actions else actions["gpu_flops"]


@dataclass(frozen=True)
class DecoderPart:
    """A step from the end of the vision encoder on. Operations, device-memory bytes, seconds."""

    operations: int
    dram_bytes: int
    seconds: float

    @property
    def intensity(self) -> float:
        return self.operations / self.dram_bytes


def decoder_part(point: Point) -> DecoderPart:
    """The step less what the vision encoder did."""
    return DecoderPart(
        operations=operations(point) - 2 * sum(g.macs for g in point.work.vision),
        dram_bytes=point.row.dram_bytes - sum(s.n_bytes for s in point.timeline.on(DRAM) if s.what == "vision"),
        seconds=point.row.latency_s - vision_s(point),
    )


def attainable_share(config: VRexConfig | GpuConfig, part: DecoderPart) -> float:
    """Performance over min(peak, intensity x bandwidth), at the intensity of Fig. 18."""
    roof = min(peak_flops_per_s(config), PAPER_INTENSITY * memory_bytes_per_s(config))
    return part.operations / part.seconds / roof


def _intensities(decoders: Mapping[str, DecoderPart]) -> str:
    return ", ".join(f"{NAMES[label]} {part.intensity:.1f}" for label, part in decoders.items())


def _table_i(outcome: Outcome, label: str) -> VRexConfig | GpuConfig:
    """The machine of a run with the rates that Table I gives it."""
    name = label.partition("+")[0]
    config: VRexConfig | GpuConfig = outcome.experiment.platforms[TABLE_I.get(name, name)]
    return config


def _gb_per_s(span: Span) -> float:
    return span.n_bytes / (span.duration_ps * 1e-12) / 1e9


def _bandwidth(timeline: Timeline, layer: int) -> Mapping[str, Mapping[int, float]]:
    """Cause -> time in the layer (us) -> GB/s; a step begins where a span does."""
    own = [s for s in timeline.spans if s.what == "linear" and s.layer == layer and s.resource != DRAM]
    start, end = min(s.start_ps for s in own), max(s.end_ps for s in own)
    inside = [s for s in timeline.on(DRAM) if s.end_ps > start and s.start_ps < end]
    edges = sorted({t for s in inside for t in (max(s.start_ps, start), min(s.end_ps, end))})
    return {
        what: {
            (t - start) // 1_000_000: sum(_gb_per_s(s) for s in inside if s.what == what and s.start_ps <= t < s.end_ps)
            for t in edges
        }
        for what in dict.fromkeys(s.what for s in inside)
    }
