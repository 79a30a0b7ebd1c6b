"""Whole chips against Table I and Table III, within 2 %."""

from __future__ import annotations

import pytest

from energy_models.chip import area, core_area_mm2, core_power_w, dre_power_share, nameplate_power_w
from energy_models.scaling import PUBLISHED, UnitParameters
from tests.energy_tables import bundled_table

EDGE, SERVER = bundled_table("vrex_14nm_lpddr5"), bundled_table("vrex_14nm_hbm2e")
V_REX_48 = UnitParameters(cores=48)


def test_a_core_has_area_and_power_of_table_iii() -> None:
    assert core_area_mm2(EDGE, PUBLISHED) == pytest.approx(1.89, rel=0.02)
    assert core_power_w(EDGE, PUBLISHED) == pytest.approx(2.60943, rel=0.02)


def test_chips_of_8_and_48_cores_have_the_published_area() -> None:
    assert area(EDGE, PUBLISHED).chip_mm2 == pytest.approx(15.12, rel=0.02)
    assert area(SERVER, V_REX_48).chip_mm2 == pytest.approx(90.57, rel=0.02)


def test_the_dre_is_two_percent_of_area_and_power() -> None:
    assert 100 * area(EDGE, PUBLISHED).dre_share == pytest.approx(2.04, abs=0.01)
    assert 100 * dre_power_share(EDGE, PUBLISHED) == pytest.approx(2.19, abs=0.01)


def test_nameplates_are_those_of_table_i() -> None:
    assert nameplate_power_w(EDGE, PUBLISHED) == pytest.approx(35, rel=0.02)
    assert nameplate_power_w(SERVER, V_REX_48) == pytest.approx(203.68, rel=0.02)


def test_an_area_bill_adds_up_and_names_its_rows() -> None:
    bill = area(SERVER, V_REX_48)
    assert bill.chip_mm2 == pytest.approx(48 * bill.core_mm2)
    assert all(line.row in SERVER.units for line in bill.rows)


@pytest.mark.parametrize(("name", "mm2"), [("agx_orin", 200), ("agx_orin_nameplate", 200), ("a100", 826)])
def test_a_gpu_is_its_die(name: str, mm2: float) -> None:
    bill = area(bundled_table(name))
    assert bill.chip_mm2 == mm2
    assert bill.dre_share == 0


def test_what_is_missing_is_said() -> None:
    with pytest.raises(ValueError, match="give their UnitParameters"):
        area(EDGE)
    with pytest.raises(ValueError, match="'agx_orin' gives no area"):
        area(bundled_table("agx_orin").model_copy(update={"areas": {}}))
    with pytest.raises(ValueError, match="'a100' has no nameplate"):
        nameplate_power_w(bundled_table("a100"), PUBLISHED)
