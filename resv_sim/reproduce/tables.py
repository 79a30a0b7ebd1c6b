"""Tables I and III and Fig. 4: nominal rates, area and power; the memory that a stream fills, what retrieval costs."""

from __future__ import annotations

from collections.abc import Mapping

from dre_sim.gpu import device_bytes
from dre_sim.lowering import dense_step
from dre_sim.workload import PredictionWork
from energy_models.chip import area, core_area_mm2, core_power_w, dre_power_share, nameplate_power_w
from energy_models.scaling import unit_areas_mm2, unit_powers_w
from resv_sim.config import Experiment, load_experiment
from resv_sim.hardware import memory_bytes_per_s, peak_flops_per_s
from resv_sim.pipeline import parameters
from resv_sim.reproduce.items import Findings, Panel, Statement
from resv_sim.reproduce.speed import ANSWER_TOKENS, FRAMES, session_s
from resv_sim.reproduce.study import Outcome, Study, paper_experiment, vision_s

FPS, BATCH = 10, 4  # source: V-Rex, Fig. 4(a)
FULL_GB, EDGE_GB = 100, 32
# Fig. 4(b) is a session at 80K in which InfiniGen retrieves as it does, for the answer alone; (c) a frame step at 40K
# with its speculation in it, 10K tokens kept (configs/paper/fig4.yaml).
SESSION, SESSION_LENGTH = "a100_eager+infinigen", 80_000
SPECULATING, SPECULATING_LENGTH = "a100_eager+quarter", 40_000
FIG4_SHARES = {
    "prediction": "KV prediction, share of latency at 40K, A100 + InfiniGen",
    "fetch": "KV fetch, share of latency at 40K, A100 + InfiniGen",
    "llm": "LLM, share of latency at 40K, A100 + InfiniGen",
}
SESSION_SHARES = {
    "prefill of latency": "share of prefill in a session at 80K, A100 + InfiniGen",
    "retrieval of prefill": "share of retrieval in the prefill at 80K, A100 + InfiniGen",
}
MINUTES = tuple(range(0, 61, 5))


def table1(study: Study) -> Findings:
    """What the platform files of Table I say, so that a changed file is noticed."""
    machines = _machines()
    return Findings(
        statistics={
            "peak_tflops": {name: peak_flops_per_s(x.platforms[name]) / 1e12 for name, x in machines.items()},
            "memory_gb_per_s": {name: memory_bytes_per_s(x.platforms[name]) / 1e9 for name, x in machines.items()},
            "link_gb_per_s": {name: x.platforms[name].offload.link.raw_gb_per_s for name, x in machines.items()},
            "power_w": {name: _power_w(x, name) for name, x in machines.items()},
        },
        notes=(
            "V-Rex: peaks follow from cores, widths and clock, power from Table III, 3 W per link lane and a remainder "
            "that is fitted.",
        ),
    )


def table3(study: Study) -> Findings:
    """Area and power of one core at full activity, and what the retrieval engine takes of them."""
    machines = _machines()
    edge = machines["vrex8"]
    table, units = edge.energy["vrex8"], parameters(edge, "vrex8")
    assert units is not None
    areas, powers = unit_areas_mm2(table, units), unit_powers_w(table, units)
    areas_mm2 = {**{str(u): mm2 for u, mm2 in areas.items()}, "core": core_area_mm2(table, units)}
    powers_mw = {**{str(u): 1e3 * w for u, w in powers.items()}, "core": 1e3 * core_power_w(table, units)}
    return Findings(
        statistics={
            "unit_area_mm2": areas_mm2,
            "unit_power_mw": powers_mw,
            "dre_power_share": dre_power_share(table, units),
            "dre_area_share": area(table, units).dre_share,
            "chip_area_mm2": {
                name: area(machines[name].energy[name], parameters(machines[name], name)).chip_mm2
                for name in ("vrex8", "vrex48")
            },
        },
        notes=(
            "Unit areas come from the published percentages of 1.89 mm2; the published areas are rounded to "
            "0.01 mm2, which is all that their errors show.",
        ),
        panels=(
            Panel(
                "Core of Table III, area",
                "mm2",
                {"ours": areas_mm2},
                name_marks={"ours": dict.fromkeys(areas_mm2, "unit area,")},
            ),
            Panel(
                "Core of Table III, power",
                "mW",
                {"ours": powers_mw},
                name_marks={"ours": dict.fromkeys(powers_mw, "unit power,")},
                log_y=True,
            ),
        ),
    )


def fig4(study: Study) -> Findings:
    """Memory that four streams of ten frames a second fill; what retrieval takes of a session and of a frame step."""
    shape, _ = load_experiment(str(paper_experiment("fig13_edge")))
    model = shape.model
    weights = device_bytes(dense_step(model, model.tokens_per_frame, 1, BATCH))
    per_minute = 60 * FPS * model.tokens_per_frame * BATCH * model.kv_bytes_per_token
    curve = {minute: (weights + minute * per_minute) / 1e9 for minute in MINUTES}
    to_full, to_edge = ((gb * 1e9 - weights) / per_minute for gb in (FULL_GB, EDGE_GB))
    shares = _retrieval_shares(study.outcome("fig4"))
    return Findings(
        statistics={f"infinigen_{name}": value for name, value in shares.items()},
        statements=(
            Statement(
                f"weights and KV cache pass {FULL_GB} GB before 40 min",
                "holds" if to_full < 40 else "does not hold",
                f"after {to_full:.1f} min at {per_minute / 1e9:.2f} GB a minute",
            ),
            Statement(
                "edge capacity is passed within minutes",
                "holds" if to_edge < 10 else "does not hold",
                f"{EDGE_GB} GB after {to_edge:.1f} min",
            ),
        ),
        notes=(
            f"Session at 80K, A100 + InfiniGen: {FRAMES} frames, a question and {ANSWER_TOKENS} answer tokens at that "
            "length (section III-A). Frames and the question attend to the whole cache; prefill is both without the "
            "vision encoder, retrieval what other work does not hide of the fetch.",
            "At 40K: InfiniGen's speculation in every frame step, 10K tokens kept, batch 1. Prediction: time in which "
            "some unit works on it; fetch: what is not hidden behind other work; LLM: the rest of the decoder. The "
            "host collects single tokens as fast as its memory allows and copies them together, as InfiniGen's code "
            "does; the paper describes neither its copies nor its host.",
        ),
        panels=(
            Panel(
                "Memory of 4 streams at 10 frames per second",
                "weights and KV cache (GB)",
                {"ours": curve},
                x_label="minutes",
            ),
            Panel(
                "Session at 80K, A100 + InfiniGen",
                "share",
                {
                    "share": dict(
                        zip(SESSION_SHARES, (shares["prefill_share"], shares["retrieval_share_80k"]), strict=True)
                    )
                },
                name_marks={"share": SESSION_SHARES},
            ),
            Panel(
                "Frame step at 40K, A100 + InfiniGen",
                "share of the latency",
                {"share": {name: shares[f"{name}_share"] for name in FIG4_SHARES}},
                name_marks={"share": FIG4_SHARES},
            ),
        ),
    )


def _retrieval_shares(outcome: Outcome) -> dict[str, float]:
    """Shares of a session at 80K, and of a frame step at 40K that speculates, of its latency and its operations."""
    near = outcome.points[SPECULATING, "frame", SPECULATING_LENGTH]
    near_s = near.row.latency_s - vision_s(near)
    prediction, fetch = near.row.prediction_s / near_s, near.row.exposed_fetch_s / near_s
    operations = sum(_prediction_flops(layer.prediction) for layer in near.work.layers)
    frame = outcome.points[SESSION, "frame", SESSION_LENGTH]
    question = outcome.points[SESSION, "question", SESSION_LENGTH]
    prefill_s = FRAMES * (frame.row.latency_s - vision_s(frame)) + question.row.latency_s
    return {
        "prefill_share": prefill_s / session_s(outcome, SESSION, SESSION_LENGTH),
        "retrieval_share_80k": (FRAMES * frame.row.exposed_fetch_s + question.row.exposed_fetch_s) / prefill_s,
        "prediction_share": prediction,
        "fetch_share": fetch,
        "llm_share": 1 - prediction - fetch,
        "ops_share": operations / near.timeline.actions["gpu_flops"],
    }


def _prediction_flops(p: PredictionWork | None) -> int:
    return 2 * p.score_macs + (p.query_gemm.flops if p.query_gemm else 0) if p else 0


def _machines() -> Mapping[str, Experiment]:
    edge, _ = load_experiment(str(paper_experiment("fig13_edge")))
    server, _ = load_experiment(str(paper_experiment("fig13_server")))
    return {"agx_orin_paper": edge, "vrex8": edge, "a100_paper": server, "vrex48": server}


def _power_w(experiment: Experiment, name: str) -> float:
    units = parameters(experiment, name)
    if units is not None:
        return nameplate_power_w(experiment.energy[name], units)
    mode = experiment.platforms[name].mode
    return float(mode.power_w)
