"""Price tables: every number says where it is from, and a table that does not hold together is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from energy_models.tables import GPU_ACTIONS, SYSTEM_ACTIONS, PriceTable
from tests.energy_tables import NAMES, bundled_table, table_data


@pytest.mark.parametrize("name", NAMES)
def test_every_bundled_table_loads_under_its_own_name_and_prices_every_action(name: str) -> None:
    table = bundled_table(name)
    assert table.name == name
    for action in SYSTEM_ACTIONS | (GPU_ACTIONS if table.kind == "gpu" else {}):
        row, cost_pj = table.action_cost(action)
        assert cost_pj >= 0
        assert row in table.rows()


def test_the_five_machines_are_bundled() -> None:
    assert set(NAMES) >= {"vrex_14nm_lpddr5", "vrex_14nm_hbm2e", "agx_orin", "agx_orin_nameplate", "a100"}


def test_a_table_survives_being_written_and_read_again() -> None:
    table = bundled_table("vrex_14nm_lpddr5")
    assert PriceTable.model_validate(table.model_dump(mode="json")) == table


@pytest.mark.parametrize("field", ["source", "node_nm", "confidence", "unit", "component"])
def test_an_action_row_without_what_it_must_say_is_refused_by_name(field: str) -> None:
    data = table_data("agx_orin")
    del data["actions"]["dram_activates"][field]
    with pytest.raises(ValidationError, match=rf"actions\.dram_activates\.{field}"):
        PriceTable.model_validate(data)


@pytest.mark.parametrize(("section", "row"), [("static", "dram_background"), ("units", "wtu"), ("nameplate", None)])
@pytest.mark.parametrize("field", ["source", "node_nm", "confidence"])
def test_other_rows_without_a_source_are_refused_by_name(section: str, row: str | None, field: str) -> None:
    data = table_data("vrex_14nm_lpddr5")
    del (data[section][row] if row else data[section])[field]
    path = f"{section}.{row}.{field}" if row else f"{section}.{field}"
    with pytest.raises(ValidationError, match=path.replace(".", r"\.")):
        PriceTable.model_validate(data)


def _changed(name: str, path: str, value: Any) -> dict[str, Any]:
    data = table_data(name)
    *parents, last = path.split(".")
    node = data
    for key in parents:
        node = node[key]
    node[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("actions.dram_read_bytes.low", None, "both low and high"),
        ("actions.dram_read_bytes.cost_pj", 1000.0, "outside its range 40.0 ... 160.0"),
        ("actions.dram_read_bytes.cost_pj", -1.0, "greater than or equal to 0"),
        ("actions.dram_read_bytes.unit", "per bit", "must be 'per byte'"),
        ("actions.dram_read_bytes.same_as", "ssd_busy_ps", "exactly one of"),
        ("actions.dram_write_bytes.same_as", "link_bytes", "no action row with a cost_pj"),
        ("actions.link_bytes.included_in", "links", "'link_bytes': included_in 'links'"),
        ("actions.ssd_busy_ps.high", None, "both low and high"),
        ("static.ssd_idle.low", 0.5, "outside its range"),
        ("leakage_share.share", 1.0, "less than 1"),
        ("leakage_share", None, "needs a leakage_share row"),
        ("units.dpe.power_w", 0.0, "greater than 0"),
    ],
)
def test_a_number_that_cannot_be_is_refused(path: str, value: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PriceTable.model_validate(_changed("vrex_14nm_lpddr5", path, value))


def test_a_number_of_low_confidence_needs_a_range() -> None:
    data = table_data("vrex_14nm_lpddr5")
    del data["static"]["ssd_idle"]["low"], data["static"]["ssd_idle"]["high"]
    with pytest.raises(ValidationError, match="low confidence needs a range"):
        PriceTable.model_validate(data)


@pytest.mark.parametrize(
    ("name", "action", "message"),
    [
        ("agx_orin", "gpu_flop", "row 'gpu_flop': no such action"),
        ("vrex_14nm_lpddr5", "dpe_macs", "row 'dpe_macs': core actions are priced from units"),
        ("vrex_14nm_lpddr5", "gpu_flops", "row 'gpu_flops': no such action"),
    ],
)
def test_a_row_whose_action_never_happens_is_refused_by_name(name: str, action: str, message: str) -> None:
    data = table_data(name)
    data["actions"][action] = dict(data["actions"]["dram_read_bytes"])
    with pytest.raises(ValidationError, match=message):
        PriceTable.model_validate(data)


def test_actions_and_units_without_a_row_are_named() -> None:
    data = table_data("agx_orin")
    del data["actions"]["gpu_flops"]
    with pytest.raises(ValidationError, match="actions without a row: gpu_flops"):
        PriceTable.model_validate(data)
    data = table_data("vrex_14nm_lpddr5")
    del data["units"]["hcu"]
    with pytest.raises(ValidationError, match="units without a row: hcu"):
        PriceTable.model_validate(data)


def test_a_cap_over_nothing_and_a_name_used_twice_are_refused() -> None:
    with pytest.raises(ValidationError, match="cap 'module_power' covers gpus; components of this table: cpu"):
        PriceTable.model_validate(_changed("agx_orin", "caps.module_power.covers", ["gpus"]))
    data = table_data("agx_orin")
    data["static"]["gpu_flops"] = data["static"].pop("soc_idle")
    with pytest.raises(ValidationError, match="row names used twice: gpu_flops"):
        PriceTable.model_validate(data)


def test_a_cap_may_cover_what_is_drawn_all_the_time_alone() -> None:
    data = _changed("agx_orin", "static.soc_idle.component", "board")
    data["caps"]["module_power"]["covers"].append("board")
    assert PriceTable.model_validate(data).caps["module_power"].covers[-1] == "board"


@pytest.mark.parametrize("section", ["units", "leakage_share", "nameplate"])
def test_a_gpu_is_not_priced_by_units(section: str) -> None:
    data = table_data("agx_orin") | {section: table_data("vrex_14nm_lpddr5")[section]}
    with pytest.raises(ValidationError, match="a 'gpu' table has no units, leakage_share or nameplate"):
        PriceTable.model_validate(data)


def test_nothing_is_included_in_what_has_no_number_itself() -> None:
    data = _changed("vrex_14nm_lpddr5", "actions.link_bytes.included_in", "dram_write_bytes")
    with pytest.raises(ValidationError, match="included_in 'dram_write_bytes' is no row with a number"):
        PriceTable.model_validate(data)


def test_an_unknown_action_is_named_with_what_there_is() -> None:
    with pytest.raises(ValueError, match="'agx_orin' has no row for action 'warp_votes'; rows: gpu_busy_ps"):
        bundled_table("agx_orin").action_cost("warp_votes")


def test_written_bytes_cost_what_read_bytes_cost_and_say_so() -> None:
    table = bundled_table("agx_orin")
    assert table.action_cost("dram_write_bytes") == table.action_cost("dram_read_bytes")
    assert table.action_cost("link_bytes") == ("link_lane_ps", 0.0)


def test_shared_parts_cost_the_same_in_the_machines_that_are_compared() -> None:
    for ours, baseline in (("vrex_14nm_lpddr5", "agx_orin"), ("vrex_14nm_hbm2e", "a100")):
        for action in SYSTEM_ACTIONS:
            if (ours, action) == ("vrex_14nm_lpddr5", "host_dram_bytes"):
                continue  # the Orin's host memory is its device memory
            mine, theirs = bundled_table(ours).actions[action], bundled_table(baseline).actions[action]
            assert (mine.cost_pj, mine.low, mine.high) == (theirs.cost_pj, theirs.low, theirs.high), action
