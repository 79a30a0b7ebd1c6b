"""Overrides and ranges: an unknown moves in every table that has it, and the conclusion moves with it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dre_sim.timeline import Timeline
from energy_models.scaling import PUBLISHED
from energy_models.sensitivity import Case, ranges, sensitivity, with_overrides
from tests.energy_tables import NAMES, bundled_table

EDGE, ORIN = bundled_table("vrex_14nm_lpddr5"), bundled_table("agx_orin")


def _vrex(dram_bytes: int, end_ps: int = 10**11) -> Case:
    return Case(Timeline("vrex8", (), {"dram_read_bytes": dram_bytes, "dpe_macs": 10**11}, end_ps), EDGE, PUBLISHED)


def _orin(dram_bytes: int, end_ps: int = 10**12) -> Case:
    actions = {"dram_read_bytes": dram_bytes, "gpu_busy_ps": end_ps // 2}
    return Case(Timeline("agx", (), actions, end_ps), ORIN)


@pytest.mark.parametrize("name", NAMES)
def test_every_range_holds_its_default_and_both_ends_are_valid_tables(name: str) -> None:
    table = bundled_table(name)
    for row, (low, default, high) in ranges(table).items():
        assert low <= default <= high
        for value in (low, high):
            assert ranges(with_overrides(table, {row: value}))[row] == (low, value, high)


def test_the_unknown_memory_energy_is_a_range_of_5_to_20_pj_a_bit() -> None:
    for table in (EDGE, ORIN):
        assert [value / 8 for value in ranges(table)["dram_read_bytes"]] == [5, 8, 20]


def test_an_override_moves_the_rows_that_follow_it_and_leaves_the_table() -> None:
    moved = with_overrides(EDGE, {"dram_read_bytes": 100.0, "leakage_share": 0.2, "ssd_idle": 0.5})
    assert moved.action_cost("dram_write_bytes") == ("dram_read_bytes", 100.0)
    assert moved.leakage_share is not None
    assert (moved.leakage_share.share, moved.static["ssd_idle"].power_w) == (0.2, 0.5)
    assert EDGE.action_cost("dram_read_bytes")[1] == 64.0
    assert with_overrides(EDGE, {}) == EDGE


@pytest.mark.parametrize(
    ("row", "value", "message"),
    [
        ("dram_bytes", 1.0, "has no number in row 'dram_bytes'"),
        ("dram_write_bytes", 1.0, "has no number in row 'dram_write_bytes'"),
        ("dram_read_bytes", 200.0, "outside its range"),
    ],
)
def test_an_override_that_cannot_be_is_refused(row: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_overrides(EDGE, {row: value})


@given(ours=st.integers(0, 10**11), theirs=st.integers(0, 10**11), row=st.sampled_from(sorted(ranges(EDGE))))
def test_the_gain_moves_one_way_over_a_range(ours: int, theirs: int, row: str) -> None:
    low, default, high = sensitivity(_orin(theirs), _vrex(ours), row)
    assert min(low, high) * (1 - 1e-9) <= default <= max(low, high) * (1 + 1e-9)


def test_a_machine_that_moves_more_bytes_gains_from_cheap_memory() -> None:
    low, default, high = sensitivity(_orin(0), _vrex(10**10), "dram_read_bytes")
    assert low > default > high
    low, default, high = sensitivity(_orin(10**11), _vrex(0), "dram_read_bytes")
    assert low < default < high


def test_the_default_is_the_ratio_of_the_two_bills() -> None:
    baseline, ours = _orin(10**9), _vrex(10**9)
    gain = baseline.energy_j() / ours.energy_j()
    assert sensitivity(baseline, ours, "dram_read_bytes").default == gain
    only_theirs = sensitivity(baseline, ours, "gpu_busy_ps")
    assert only_theirs.default == gain
    assert only_theirs.low < gain < only_theirs.high


def test_a_row_without_a_range_is_refused_with_those_that_have_one() -> None:
    with pytest.raises(ValueError, match=r"no range for row 'link_bytes'.*dram_read_bytes"):
        sensitivity(_orin(1), _vrex(1), "link_bytes")
