"""What the shell tells platforms: one sector for everybody, power modes, the widest of several policies."""

from __future__ import annotations

import pytest

from dre_sim.gpu import GpuConfig
from dre_sim.workload import DreJob
from energy_models.scaling import PUBLISHED
from resv.policies.resv import ReSV
from resv_sim.hardware import fetch_plans, kvmu_of, merge_jobs, prices, unit_parameters
from tests.bundled import platform, price_table
from tests.test_policy_conformance import run
from tests.tiny_trace import TinyTrace


@pytest.mark.parametrize("mapping", ["cluster", "arrival"])
def test_neighbours_on_a_drive_share_its_sectors_and_each_is_read_once(mapping: str) -> None:
    """However small the runs of a selection are, a step fetches no more than the sectors that its tokens lie in."""
    chip = platform("vrex8")
    chip = chip.model_copy(update={"kvmu": chip.kvmu.model_copy(update={"mapping": mapping})})
    kvmu = kvmu_of(chip)
    assert kvmu.sector_bytes == chip.offload.ssd.sector_bytes == 4096
    policy = ReSV(recent_bytes=0)
    trace = TinyTrace()
    plans = fetch_plans(kvmu, policy, trace, run(policy, trace))
    row_bytes = trace.shape.kv_bytes(1) // 2
    for plan, step in zip(plans, trace.probes, strict=True):
        sectors = -(-step.first_token * row_bytes // 4096)
        assert not (plan.extent_bytes % 4096).any()
        assert plan.fetched_bytes <= 2 * trace.shape.n_kv_heads * sectors * 4096


def test_no_platform_with_a_drive_has_smaller_sectors_than_another() -> None:
    assert {kvmu_of(platform(name)).sector_bytes for name in ("vrex8", "agx_orin")} == {4096}
    assert kvmu_of(platform("vrex48")).sector_bytes == 512  # host memory has none


def test_a_power_mode_lowers_the_cap_of_its_module() -> None:
    orin, table = platform("agx_orin"), price_table("agx_orin")
    assert isinstance(orin, GpuConfig)
    for mode, most_w in (("maxn", 60.0), ("30w", 30.0), ("15w", 15.0)):
        (cap,) = prices(orin.model_copy(update={"power_mode": mode}), table).caps.values()
        assert cap.power_w == most_w
    assert prices(platform("vrex8"), price_table("vrex8")) == price_table("vrex8")


def test_the_bundled_chip_under_resv_is_the_one_that_was_published() -> None:
    assert unit_parameters(platform("vrex8"), [ReSV()]) == PUBLISHED


def test_a_chip_is_as_wide_as_the_widest_of_its_policies_in_any_order() -> None:
    wide = ReSV()
    few_bits = wide.wicsum.model_copy(update={"score_bits": 4})
    narrow = wide.model_copy(update={"hash_bits": 16, "wicsum": few_bits})
    chip = platform("vrex8")
    both = unit_parameters(chip, [wide, narrow])
    assert both == unit_parameters(chip, [narrow, wide]) == unit_parameters(chip, [wide])
    assert both.hash_bits == 32
    alone = unit_parameters(chip, [narrow])
    assert (alone.hash_bits, alone.score_bits) == (16, 4)
    for edges, bits in (("exponent", 8 + wide.wicsum.mantissa_bits), ("linear", wide.wicsum.score_bits)):
        policy = wide.model_copy(update={"wicsum": wide.wicsum.model_copy(update={"edges": edges})})
        assert unit_parameters(chip, [policy]).range_bits == bits


def test_streams_of_a_batch_take_the_units_one_after_the_other() -> None:
    one, two = DreJob(*range(10)), DreJob(*range(10, 20), wtu_spill_bytes=7)
    assert merge_jobs([one, None, two]) == DreJob(*range(10, 30, 2), wtu_spill_bytes=7)
    assert merge_jobs([None, None]) is None
