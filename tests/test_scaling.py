"""Scaling laws: anchored on Table III, never cheaper when larger, in line with CACTI and synthesis."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_models import scaling
from energy_models.scaling import PUBLISHED, UnitParameters
from energy_models.sensitivity import with_overrides
from energy_models.tables import UNITS
from tests.energy_tables import bundled_table

TABLE = bundled_table("vrex_14nm_lpddr5")

# V-Rex (HPCA 2026), Table III: mW, and percent of 1.89 mm2.
POWER_MW = {"dpe": 2311.39, "vpe": 122.06, "lxe_memory": 118.94, "hcu": 2.99, "wtu": 39.04, "kvmu": 15.01}
AREA_PCT = {"dpe": 72.79, "vpe": 7.18, "lxe_memory": 17.98, "hcu": 0.28, "wtu": 1.23, "kvmu": 0.53}

# CACTI through hwcomponents-cacti 1.0.40, 22 nm: bytes, bits, read pJ, write pJ.
CACTI = [
    (2048, 128, 0.89, 1.70),
    (8192, 64, 1.59, 1.77),
    (8192, 128, 2.01, 3.24),
    (8192, 256, 2.85, 6.16),
    (32768, 128, 5.24, 5.60),
    (131072, 128, 11.85, 10.48),
    (524288, 512, 72.9, 76.1),
    (2097152, 512, 155.5, 145.0),
]
SIZES = {
    "mac_trees": 256,
    "tree_inputs": 256,
    "vpe_width": 256,
    "lxe_sram_bytes": 1 << 22,
    "hash_bits": 256,
    "bits_per_cycle": 128,
    "xor_accumulators": 64,
    "tile_bytes": 1 << 16,
    "current_bytes": 4096,
    "wtu_lanes": 128,
    "wtu_cores": 8,
    "score_bits": 32,
    "count_bits": 32,
    "range_bits": 32,
    "score_bytes": 1 << 16,
    "count_bytes": 1 << 16,
}


def _with(**changes: Any) -> UnitParameters:
    return UnitParameters(**(PUBLISHED.model_dump() | changes))


@pytest.mark.parametrize("share", [0.03, 0.10, 0.30])
def test_a_core_at_full_activity_draws_what_table_iii_says_for_any_leakage_share(share: float) -> None:
    powers = scaling.unit_powers_w(with_overrides(TABLE, {"leakage_share": share}), PUBLISHED)
    for unit in UNITS:
        assert powers[unit] * 1e3 == pytest.approx(POWER_MW[unit], rel=1e-9)


def test_a_published_core_has_the_areas_of_table_iii() -> None:
    areas = scaling.unit_areas_mm2(TABLE, PUBLISHED)
    for unit in UNITS:
        assert areas[unit] == pytest.approx(1.89 * AREA_PCT[unit] / 100, rel=1e-4)


@pytest.mark.parametrize(("capacity", "bits", "read_pj", "write_pj"), CACTI)
def test_sram_laws_follow_cacti(capacity: int, bits: int, read_pj: float, write_pj: float) -> None:
    assert scaling.sram_read_pj(capacity, bits) == pytest.approx(read_pj, rel=0.20)
    assert scaling.sram_write_pj(capacity, bits) == pytest.approx(write_pj, rel=0.10)


@pytest.mark.parametrize(("width", "gates"), [(16, 196), (32, 312 + 46), (64, 625 + 46)])
def test_a_lane_grows_as_synthesis_says(width: int, gates: int) -> None:
    params = _with(bits_per_cycle=width, early_exit=False)
    rest = scaling.unit_areas_mm2(TABLE, _with(early_exit=False))["hcu"]
    grown = scaling.unit_areas_mm2(TABLE, params)["hcu"] - rest
    lane = scaling.unit_areas_mm2(TABLE, _with(xor_accumulators=2, early_exit=False))["hcu"] - rest
    assert (grown + lane) / lane == pytest.approx(gates / 196, rel=0.05)


@given(
    field=st.sampled_from(sorted(SIZES)),
    sizes=st.data(),
)
def test_more_of_anything_is_never_smaller_nor_draws_less(field: str, sizes: st.DataObject) -> None:
    low, high = sorted(sizes.draw(st.tuples(*[st.integers(1, SIZES[field])] * 2)))
    for law in (scaling.unit_areas_mm2, scaling.unit_powers_w, scaling.leakage_w):
        small, large = law(TABLE, _with(**{field: low})), law(TABLE, _with(**{field: high}))
        assert all(large[unit] >= small[unit] * (1 - 1e-12) for unit in UNITS), field


@pytest.mark.parametrize(
    ("field", "value", "unit"),
    [
        ("mac_trees", 128, "dpe"),
        ("vpe_width", 128, "vpe"),
        ("lxe_sram_bytes", 800_000, "lxe_memory"),
        ("hash_bits", 64, "hcu"),
        ("bits_per_cycle", 32, "hcu"),
        ("xor_accumulators", 4, "hcu"),
        ("tile_bytes", 8192, "hcu"),
        ("current_bytes", 256, "hcu"),
        ("wtu_lanes", 32, "wtu"),
        ("wtu_cores", 2, "wtu"),
        ("score_bits", 32, "wtu"),
        ("count_bits", 24, "wtu"),
        ("range_bits", 24, "wtu"),
        ("score_bytes", 16384, "wtu"),
        ("count_bytes", 16384, "wtu"),
    ],
)
def test_a_parameter_costs_area_and_power_in_its_own_unit_only(field: str, value: int, unit: str) -> None:
    for law in (scaling.unit_areas_mm2, scaling.unit_powers_w):
        before, after = law(TABLE, PUBLISHED), law(TABLE, _with(**{field: value}))
        assert [u for u in UNITS if after[u] > before[u] * (1 + 1e-12)] == [unit]


@pytest.mark.parametrize(
    ("action", "field", "smaller", "larger"),
    [
        ("hcu_chunks", "bits_per_cycle", 16, 32),
        ("hcu_chunks", "hash_bits", 32, 64),
        ("hcu_chunks", "tile_bytes", 4096, 8192),
        ("hcu_table_bytes", "tile_bytes", 4096, 8192),
        ("hcu_updates", "bits_per_cycle", 16, 32),
        ("wtu_elements", "score_bits", 8, 16),
        ("wtu_elements", "range_bits", 9, 16),
        ("wtu_elements", "count_bytes", 8192, 16384),
        ("wtu_rows", "wtu_lanes", 16, 32),
        ("wtu_union_words", "score_bytes", 8192, 16384),
        ("lxe_sram_bytes", "lxe_sram_bytes", 393_216, 786_432),
    ],
)
def test_an_action_costs_more_in_a_larger_unit(action: str, field: str, smaller: int, larger: int) -> None:
    costs = [scaling.action_costs_pj(TABLE, _with(**{field: size}))[action] for size in (smaller, larger)]
    assert costs[0] < costs[1]


def test_comparing_a_whole_code_at_once_saves_an_access_over_two_halves() -> None:
    half, whole = (scaling.action_costs_pj(TABLE, _with(bits_per_cycle=w))["hcu_chunks"] for w in (16, 32))
    assert half < whole < 2 * half


def test_dense_work_costs_the_same_in_an_array_of_any_size() -> None:
    small, large = (scaling.action_costs_pj(TABLE, _with(mac_trees=n, vpe_width=n)) for n in (32, 128))
    assert small["dpe_macs"] == large["dpe_macs"] == pytest.approx(0.9 * 2.31139e12 / (4096 * 0.8e9), rel=1e-9)
    assert small["vpe_ops"] == large["vpe_ops"]


def test_published_energy_and_area_are_a_few_times_those_of_the_bare_datapath() -> None:
    """The factors that the documentation of the laws gives; each is the same for all sizes."""
    costs, rate = scaling.action_costs_pj(TABLE, PUBLISHED), scaling.full_activity_per_cycle(PUBLISHED)
    for unit, bottom_up, factor in (("hcu", scaling.hcu_bottom_up_pj, 3.43), ("wtu", scaling.wtu_bottom_up_pj, 5.28)):
        bare = bottom_up(PUBLISHED)
        per_cycle_pj = sum(cost * rate.get(action, 0.0) for action, cost in bare.items())
        assert 0.9 * POWER_MW[unit] * 1e9 / 800e6 / per_cycle_pj == pytest.approx(factor, abs=0.005)
        assert [costs[action] / cost for action, cost in bare.items()] == pytest.approx([factor] * 3, abs=0.005)
    lane_um2 = 524 * 0.135 + 24.0 + 2 * 8.9 + 34.9
    areas = [scaling.unit_areas_mm2(TABLE, _with(wtu_lanes=n))["wtu"] for n in (16, 17)]
    assert 1e6 * (areas[1] - areas[0]) / lane_um2 == pytest.approx(3.85, abs=0.005)


def test_the_logic_of_an_element_is_a_product_a_register_two_comparisons_and_a_sum() -> None:
    def logic_pj(score_bits: int, count_bits: int, range_bits: int) -> float:
        p = _with(score_bits=score_bits, count_bits=count_bits, range_bits=range_bits, wtu_lanes=4, score_bytes=2048)
        reads = scaling.sram_read_pj(2048, 4 * score_bits) + scaling.sram_read_pj(8192, 4 * count_bits)
        return scaling.wtu_bottom_up_pj(p)["wtu_elements"] - reads * (14 / 22) ** 0.5 / 4

    multiply, register, compare, accumulate = 1.1 * 0.1388, 0.023, 0.00235, 0.4 * 0.1388
    assert logic_pj(16, 16, 16) == pytest.approx(multiply + register + 2 * compare + accumulate)
    assert logic_pj(8, 32, 8) == pytest.approx(multiply + register / 2 + compare + accumulate)
    assert logic_pj(8, 8, 16) == pytest.approx(multiply / 4 + register / 2 + 2 * compare + accumulate)


def test_an_update_is_three_cycles_in_which_every_lane_compares() -> None:
    for lanes in (1, 4):
        bare = scaling.hcu_bottom_up_pj(_with(xor_accumulators=lanes))
        assert bare["hcu_updates"] == pytest.approx(3 * lanes * bare["hcu_chunks"])


def test_power_at_half_the_clock_keeps_all_leakage_and_half_the_rest() -> None:
    full, half = (sum(scaling.unit_powers_w(TABLE, _with(frequency_hz=f)).values()) for f in (800e6, 400e6))
    leak = sum(scaling.leakage_w(TABLE, PUBLISHED).values())
    assert half == pytest.approx(leak + (full - leak) / 2)


def test_twice_the_memory_leaks_twice() -> None:
    once, twice = (scaling.leakage_w(TABLE, _with(lxe_sram_bytes=n))["lxe_memory"] for n in (393_216, 786_432))
    assert twice == pytest.approx(2 * once) == pytest.approx(2 * 0.1 * 0.11894)


def test_early_exit_pays_for_the_register_that_holds_its_bound() -> None:
    with_exit, without = (scaling.unit_areas_mm2(TABLE, _with(early_exit=e))["hcu"] for e in (True, False))
    assert without < with_exit < 1.01 * without


def test_anchors_that_leave_no_room_for_logic_are_refused() -> None:
    units = TABLE.units | {"wtu": TABLE.units["wtu"].model_copy(update={"area_mm2": 0.01})}
    with pytest.raises(ValueError, match="SRAM alone of hcu or wtu is larger"):
        scaling.unit_areas_mm2(TABLE.model_copy(update={"units": units}), PUBLISHED)


def test_a_gpu_table_prices_no_core_units() -> None:
    with pytest.raises(ValueError, match="'a100' is no 'vrex' table"):
        scaling.action_costs_pj(bundled_table("a100"), PUBLISHED)
