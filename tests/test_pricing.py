"""Bills: parts = total = average power x time, every action paid once, no power mode exceeded."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dre_sim.timeline import Timeline
from energy_models.pricing import Bill, EnergyConservationError, check_conservation, price
from energy_models.scaling import PUBLISHED, UnitParameters, full_activity_per_cycle
from energy_models.sensitivity import with_overrides
from energy_models.tables import CORE_ACTIONS, GPU_ACTIONS, SYSTEM_ACTIONS
from tests.energy_tables import NAMES, bundled_table

SECOND_PS = 10**12
EDGE = bundled_table("vrex_14nm_lpddr5")


def _timeline(actions: dict[str, int], end_ps: int = SECOND_PS) -> Timeline:
    return Timeline("machine", (), actions, end_ps)


def _bill(name: str, actions: dict[str, int], end_ps: int = SECOND_PS) -> Bill:
    table = bundled_table(name)
    return price(_timeline(actions, end_ps), table, PUBLISHED if table.kind == "vrex" else None)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data(), end_ps=st.integers(1, 10**14))
def test_energy_is_conserved_whatever_a_machine_did(name: str, data: st.DataObject, end_ps: int) -> None:
    table = bundled_table(name)
    known = sorted(SYSTEM_ACTIONS | (GPU_ACTIONS if table.kind == "gpu" else CORE_ACTIONS))
    actions = data.draw(st.dictionaries(st.sampled_from(known), st.integers(0, 10**15)))
    bill = _bill(name, actions, end_ps)
    exact = sum((Fraction(line.joules) for line in bill.lines), Fraction())
    assert bill.total_j == pytest.approx(float(exact), rel=1e-12)
    assert sum(bill.by_component().values()) == pytest.approx(bill.total_j, rel=1e-9)
    assert bill.average_power_w * end_ps * 1e-12 == pytest.approx(bill.total_j, rel=1e-9)
    assert all(joules >= 0 for joules in bill.by_component().values())
    assert {line.action: line.count for line in bill.actions} == actions
    for cap in table.caps.values():
        covered = sum(joules for part, joules in bill.by_component().items() if part in cap.covers)
        assert covered <= cap.power_w * bill.seconds * (1 + 1e-9)


def test_a_second_of_full_activity_is_the_published_power() -> None:
    params = UnitParameters(cores=8)
    cycles = 8 * 800_000_000
    actions = {name: int(rate * cycles) for name, rate in full_activity_per_cycle(params).items()}
    energy = price(_timeline(actions), EDGE, params).by_component()
    for unit, row in EDGE.units.items():
        assert energy[unit] == pytest.approx(8 * row.power_w, rel=1e-9)


def test_lpddr5_at_full_bandwidth_draws_eight_pj_a_bit() -> None:
    bill = _bill("vrex_14nm_lpddr5", {"dram_read_bytes": 204_800_000_000})
    assert bill.by_component()["dram"] == pytest.approx(204.8e9 * 8 * 8e-12 + 0.5)


def test_four_busy_lanes_draw_twelve_watts_and_their_bytes_are_not_paid_again() -> None:
    bill = _bill("vrex_14nm_lpddr5", {"link_lane_ps": 4 * SECOND_PS, "link_bytes": 4 * 10**9})
    assert bill.by_component()["link"] == pytest.approx(12.0)
    assert {line.action: line.row for line in bill.actions} == dict.fromkeys(
        ("link_lane_ps", "link_bytes"), "link_lane_ps"
    )


def test_a_stressed_orin_draws_the_measured_rail_and_stays_inside_its_module() -> None:
    busy = {"gpu_busy_ps": SECOND_PS, "gpu_flops": int(33.8e12)}
    dynamic = _bill("agx_orin", busy).dynamic_j
    assert dynamic + 5.2 == pytest.approx(40.4, rel=0.01)
    capped = _bill("agx_orin", busy | {"dram_read_bytes": 200 * 10**9, "gpu_flops": 10**14})
    inside = [joules for part, joules in capped.by_component().items() if part in {"gpu", "cpu", "dram"}]
    assert sum(inside) == pytest.approx(60.0)
    assert 0 < capped.cap_scale < 1


def test_a_cap_leaves_what_it_does_not_cover() -> None:
    bill = _bill("agx_orin", {"gpu_flops": 10**15, "link_lane_ps": 4 * SECOND_PS})
    assert bill.by_component()["link"] == pytest.approx(12.0)
    scales = {line.action: line.scale for line in bill.actions}
    assert scales["link_lane_ps"] == 1.0
    assert bill.cap_scale == scales["gpu_flops"] < 1


@pytest.mark.parametrize(("name", "module_w"), [("agx_orin_nameplate", 40.3), ("a100_paper", 300.0)])
def test_a_nameplate_is_the_module_whatever_it_does_and_link_and_tier_come_on_top(name: str, module_w: float) -> None:
    assert _bill(name, {}).average_power_w == pytest.approx(module_w)
    inside = {"gpu_flops": 10**15, "dram_read_bytes": 10**12, "host_copy_ps": SECOND_PS}
    assert _bill(name, inside).average_power_w == pytest.approx(module_w)
    assert _bill(name, {"link_lane_ps": 4 * SECOND_PS}).average_power_w == pytest.approx(module_w + 12.0)
    tier = {"ssd_busy_ps": SECOND_PS} if name == "agx_orin_nameplate" else {"host_dram_bytes": 10**10}
    assert _bill(name, tier).average_power_w > module_w + 0.5


def test_doing_nothing_costs_leakage_and_standby() -> None:
    bill = _bill("vrex_14nm_lpddr5", {}, 2 * SECOND_PS)
    assert bill.dynamic_j == 0
    assert bill.average_power_w == pytest.approx(0.1 * 8 * 2.60943 + 0.5 + 0.3)


def test_every_line_names_the_row_it_was_priced_with() -> None:
    bill = _bill("vrex_14nm_lpddr5", dict.fromkeys(CORE_ACTIONS | SYSTEM_ACTIONS, 7))
    assert {line.row for line in bill.lines} <= EDGE.rows().keys()


def test_an_action_without_a_row_is_named() -> None:
    with pytest.raises(ValueError, match="no row for action 'tensor_dreams'"):
        _bill("vrex_14nm_lpddr5", {"tensor_dreams": 1})
    with pytest.raises(ValueError, match="no row for action 'dpe_macs'"):
        _bill("agx_orin", {"dpe_macs": 1})


def test_what_cannot_be_priced_is_refused() -> None:
    with pytest.raises(ValueError, match="'dram_read_bytes' has count -1"):
        _bill("agx_orin", {"dram_read_bytes": -1})
    with pytest.raises(ValueError, match="lasts 0 ps"):
        _bill("agx_orin", {}, 0)
    with pytest.raises(ValueError, match="give their UnitParameters"):
        price(_timeline({}), EDGE)


def test_a_cap_below_the_static_power_is_refused() -> None:
    table = with_overrides(bundled_table("agx_orin"), {"module_power": 5.0})
    with pytest.raises(ValueError, match=r"cap 'module_power' of 5.0 W is below the static power 8.5 W"):
        price(_timeline({}), table)


def test_a_bill_that_was_tampered_with_is_caught() -> None:
    timeline = _timeline({"dram_read_bytes": 10**9, "ssd_busy_ps": 10**9})
    bill = price(timeline, EDGE, PUBLISHED)
    first, second = bill.actions
    wrong = [
        replace(bill, total_j=bill.total_j * 1.001),
        replace(bill, actions=(first,)),
        replace(bill, actions=(first, second, second)),
        replace(bill, actions=(replace(first, count=first.count - 1), second)),
        replace(bill, actions=(replace(first, unit_cost_pj=-1.0), second)),
        replace(bill, actions=(replace(first, unit_cost_pj=float("nan")), second)),
        replace(bill, static=bill.static[1:]),
        replace(bill, seconds=2.0),
    ]
    for tampered in wrong:
        with pytest.raises(EnergyConservationError, match="machine: "):
            check_conservation(tampered, timeline)
