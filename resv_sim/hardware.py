"""The hardware stage: one layer's selections on one platform's KV management and DRE.

Puts `dre_sim` and the policy together; what they count is theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from dre_sim.dre import simulate_dre_layer
from dre_sim.gpu import GpuConfig
from dre_sim.kvmu import FetchPlan, KvmuConfig, KvmuState, fetch_list
from dre_sim.lowering import LayerTransfers
from dre_sim.lxe import peak_flops
from dre_sim.platforms import VRexConfig
from dre_sim.workload import DreJob, Method
from energy_models.scaling import UnitParameters
from energy_models.tables import PriceTable
from resv.policies.base import Policy
from resv.policies.resv import ReSV
from resv.selection import LayerSelection
from resv.trace import KVTrace
from resv.wicsum import WicsumConfig

# A GPU has no KV management unit; its software lays clusters out as ReSV says (contiguous, paper section IV).
SOFTWARE_LAYOUT = KvmuConfig()


@dataclass(frozen=True)
class LayerOnPlatform:
    """One layer of one stream on one platform, per probe."""

    transfers: tuple[LayerTransfers, ...]
    jobs: tuple[DreJob | None, ...]
    table_bytes: tuple[int, ...]


def peak_flops_per_s(config: VRexConfig | GpuConfig) -> float:
    """Dense peak of the engines, operations per second."""
    return peak_flops(config.lxe) if isinstance(config, VRexConfig) else config.peak_flops[config.activation]


def memory_bytes_per_s(config: VRexConfig | GpuConfig) -> float:
    """Bandwidth of the device memory: the pins' of V-Rex, what is called usable of a GPU."""
    return config.memory.peak_bytes_per_s if isinstance(config, VRexConfig) else config.dram_bytes_per_s


def layer_on_platform(
    platform: Any, policy: Policy, trace: KVTrace, selections: Sequence[LayerSelection]
) -> LayerOnPlatform:
    """Fetch plans and DRE jobs of every probe, in stream order (reuse carries over from probe to probe).

    Raises DisagreementError where a unit selects something else than the policy did.
    """
    plans = fetch_plans(kvmu_of(platform), policy, trace, selections)
    return on_platform(plans, dre_jobs(platform, policy, selections))


def kvmu_of(platform: Any) -> KvmuConfig:
    """How a platform lays tokens out and what it keeps of what it fetched.

    Neighbours on a drive, tokens in order of arrival or clusters, share its sectors, and each sector is read once.
    """
    kvmu = platform.kvmu if isinstance(platform, VRexConfig) else SOFTWARE_LAYOUT
    ssd = platform.offload.ssd
    if ssd is None:
        return kvmu
    return kvmu.model_copy(update={"sector_bytes": max(kvmu.sector_bytes, ssd.sector_bytes)})


def fetch_plans(
    kvmu: KvmuConfig, policy: Policy, trace: KVTrace, selections: Sequence[LayerSelection]
) -> tuple[FetchPlan, ...]:
    """One layer's fetch plan per probe, in stream order."""
    state = KvmuState.empty()
    plans: list[FetchPlan] = []
    method, shape = method_of(policy), policy.stored_shape(trace.shape)
    for step, selection in zip(trace.probes, selections, strict=True):
        plan = fetch_list(
            kvmu,
            state,
            selection,
            shape,
            n_new=step.n_tokens,
            hash_bits=method.hash_bits,
            heads_together=method.heads_together,
        )
        state = plan.state
        plans.append(plan)
    return tuple(plans)


def dre_jobs(platform: Any, policy: Policy, selections: Sequence[LayerSelection]) -> tuple[DreJob | None, ...]:
    """One layer's DRE job per probe; None where the platform or the policy has no use for a DRE."""
    return tuple(_dre_job(platform, policy, selection) for selection in selections)


def on_platform(plans: Sequence[FetchPlan], jobs: Sequence[DreJob | None]) -> LayerOnPlatform:
    """Plans and jobs of one layer put together."""
    transfers = tuple(LayerTransfers(p.work, p.offload_write_bytes, p.reorder_bytes) for p in plans)
    return LayerOnPlatform(transfers, tuple(jobs), tuple(p.table_bytes for p in plans))


def method_of(policy: Policy) -> Method:
    """What platforms must know of a policy beside what it counted."""
    return Method(policy.cut, policy.hash_bits if isinstance(policy, ReSV) else 0, policy.heads_together)


def _dre_job(platform: Any, policy: Policy, selection: LayerSelection) -> DreJob | None:
    if not isinstance(platform, VRexConfig) or not isinstance(policy, ReSV) or not selection.rows:
        return None
    return simulate_dre_layer(platform.hcu, platform.wtu, policy, selection, platform.lxe.cores)


def merge_jobs(jobs: Sequence[DreJob | None]) -> DreJob | None:
    """Streams of a batch go through the units one after the other: cycles and counts add up."""
    known = [job for job in jobs if job is not None]
    if not known:
        return None
    return DreJob(**{f.name: sum(getattr(job, f.name) for job in known) for f in fields(DreJob)})


def prices(config: VRexConfig | GpuConfig, table: PriceTable) -> PriceTable:
    """A platform's price table; a GPU's power mode lowers what the table's caps allow."""
    if isinstance(config, VRexConfig):
        return table
    most_w = config.mode.power_w
    caps = {n: cap.model_copy(update={"power_w": min(cap.power_w, most_w)}) for n, cap in table.caps.items()}
    return table.model_copy(update={"caps": caps})


def unit_parameters(platform: VRexConfig, policies: Sequence[Policy]) -> UnitParameters:
    """What decides the chip's area and unit costs: its own fields, and the widest that its ReSV policies need."""
    resv = [p for p in policies if isinstance(p, ReSV)]
    lxe, hcu, wtu = platform.lxe, platform.hcu, platform.wtu
    widths: dict[str, int] = {}
    if resv:
        widths["hash_bits"] = max(p.hash_bits for p in resv)
        widths["score_bits"] = max(p.wicsum.score_bits for p in resv)
        widths["range_bits"] = max(_range_bits(p.wicsum) for p in resv)
    return UnitParameters(
        cores=lxe.cores,
        mac_trees=lxe.mac_trees,
        tree_inputs=lxe.tree_inputs,
        vpe_width=lxe.vpe_width,
        lxe_sram_bytes=lxe.sram_bytes,
        lxe_port_bytes=lxe.weight_port_bytes,
        bits_per_cycle=hcu.bits_per_cycle,
        xor_accumulators=hcu.xor_accumulators,
        early_exit=hcu.early_exit,
        tile_bytes=hcu.tile_bytes,
        current_bytes=hcu.current_bytes,
        wtu_lanes=wtu.lanes,
        wtu_cores=wtu.cores,
        score_bytes=wtu.score_bytes,
        count_bytes=wtu.count_bytes,
        count_bits=wtu.count_bits,
        frequency_hz=lxe.frequency_hz,
        **widths,
    )


def _range_bits(wicsum: WicsumConfig) -> int:
    """An exponent edge compares eight exponent bits and the kept mantissa, a linear one the whole score."""
    return 8 + wicsum.mantissa_bits if wicsum.edges == "exponent" else wicsum.score_bits
