"""Tables I and III and Fig. 4(a): nominal rates, area and power, and the memory that a stream fills. No simulation."""

from __future__ import annotations

from collections.abc import Mapping

from dre_sim.gpu import GpuConfig, device_bytes
from dre_sim.lowering import dense_step
from dre_sim.lxe import peak_flops
from dre_sim.platforms import VRexConfig
from energy_models.chip import area, core_area_mm2, core_power_w, dre_power_share, nameplate_power_w
from energy_models.scaling import unit_areas_mm2, unit_powers_w
from resv_sim.config import Experiment, load_experiment
from resv_sim.pipeline import parameters
from resv_sim.reproduce.items import Findings, Panel, Statement, not_run
from resv_sim.reproduce.study import Study, paper_experiment

FPS, BATCH = 10, 4  # source: V-Rex, Fig. 4(a)
FULL_GB, EDGE_GB = 100, 32
MINUTES = tuple(range(0, 61, 5))


def table1(study: Study) -> Findings:
    """What the platform files of Table I say, so that a changed file is noticed."""
    machines = _machines()
    return Findings(
        statistics={
            "peak_tflops": {name: _peak(x.platforms[name]) / 1e12 for name, x in machines.items()},
            "memory_gb_per_s": {name: _bandwidth(x.platforms[name], name) / 1e9 for name, x in machines.items()},
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
    """Memory that four streams of ten frames a second fill; the shares of a prefill need InfiniGen."""
    shape, _ = load_experiment(str(paper_experiment("fig13_edge")))
    model = shape.model
    weights = device_bytes(dense_step(model, model.tokens_per_frame, 1, BATCH))
    per_minute = 60 * FPS * model.tokens_per_frame * BATCH * model.kv_bytes_per_token
    curve = {minute: (weights + minute * per_minute) / 1e9 for minute in MINUTES}
    to_full, to_edge = ((gb * 1e9 - weights) / per_minute for gb in (FULL_GB, EDGE_GB))
    reason = not_run("infinigen")
    names = ("prefill_share", "retrieval_share_80k", "prediction_share", "fetch_share", "llm_share", "ops_share")
    return Findings(
        missing={f"infinigen_{name}": reason for name in names},
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
        panels=(
            Panel(
                "Memory of 4 streams at 10 frames per second",
                "weights and KV cache (GB)",
                {"ours": curve},
                x_label="minutes",
            ),
        ),
    )


def _machines() -> Mapping[str, Experiment]:
    edge, _ = load_experiment(str(paper_experiment("fig13_edge")))
    server, _ = load_experiment(str(paper_experiment("fig13_server")))
    return {"agx_orin_paper": edge, "vrex8": edge, "a100_paper": server, "vrex48": server}


def _peak(config: VRexConfig | GpuConfig) -> float:
    return peak_flops(config.lxe) if isinstance(config, VRexConfig) else config.peak_flops["fp16"]


def _bandwidth(config: VRexConfig | GpuConfig, name: str) -> float:
    return config.memory.peak_bytes_per_s if isinstance(config, VRexConfig) else config.dram_bytes_per_s


def _power_w(experiment: Experiment, name: str) -> float:
    units = parameters(experiment, name)
    if units is not None:
        return nameplate_power_w(experiment.energy[name], units)
    mode = experiment.platforms[name].mode
    return float(mode.power_w)
