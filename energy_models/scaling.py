"""How area and energy of a V-Rex core's units grow with their parameters.

Everything is anchored on one published core (V-Rex, HPCA 2026, Table III: 14 nm, 0.8 V, 800 MHz), whose
rows come in with the price table: at the published parameters and full activity the laws give back that
table. Between anchors stand ratios of bottom-up estimates (CACTI for SRAM, public adder and multiplier
figures for logic), so an error common to numerator and denominator cancels. What it does not know: wire
congestion, clock gating, any other voltage.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, log2

from pydantic import BaseModel, ConfigDict, Field

from energy_models.tables import CORE_ACTIONS, PriceTable, UnitName

# CACTI 7 (hwcomponents-cacti 1.0.40, rebuilt), SRAM macro, ITRS-LSTP, 22 nm, 300 K. Fitted on eight points
# from 2 KB to 2 MB: 8 KB at 64, 128, 256 bits gives the linear part, the other sizes the exponent.
_READ_FIXED_PJ, _READ_PJ_PER_BIT, _READ_EXPONENT = 1.17, 0.00656, 0.62
_WRITE_FIXED_PJ, _WRITE_PJ_PER_BIT, _WRITE_EXPONENT = 0.31, 0.02285, 0.45
_SRAM_REFERENCE_BYTES = 8192
# 22 -> 14 nm for CACTI energies: sqrt of the node ratio, as hwcomponents extrapolates below 22 nm.
_SRAM_22_TO_14 = (14 / 22) ** 0.5
# Stillmaker & Baas, Integration 2017: energy 45 -> 14 nm at 0.8 V.
_LOGIC_45_TO_14 = 0.1388
# 14LPP two-input NAND, 3 poly pitches x 9 tracks (WikiChip pitches): area of one gate equivalent.
_NAND2_UM2 = 0.135
# XOR + popcount + compare synthesised with yosys: 150, 312, 625 gate equivalents for 16, 32, 64 bits:
# 9.75 a bit within 4 %. With output registers (6 bits of partial distance) 196: 7.7 a register bit.
_GE_PER_XOR_BIT, _GE_PER_REGISTER_BIT = 9.75, 7.7
# Aladdin 40 nm cells scaled to 14 nm: a 16-bit adder, comparator and register. Square micrometres and pJ.
_ADD16_UM2, _COMPARE16_UM2, _REGISTER16_UM2 = 34.9, 8.9, 24.0
_ADD16_PJ, _COMPARE16_PJ, _REGISTER16_PJ = 0.0168, 0.00235, 0.023
# BF16 multiplier: 524 gate equivalents by yosys. FP16 multiply and add: Horowitz, ISSCC 2014, 45 nm.
_MULTIPLIER_UM2 = 524 * _NAND2_UM2
_MULTIPLY_PJ, _ACCUMULATE_PJ = 1.1 * _LOGIC_45_TO_14, 0.4 * _LOGIC_45_TO_14
# docs/dre.md, "HCU": one cycle for the table update and two of pipeline, per token.
_UPDATE_CYCLES = 3


class UnitParameters(BaseModel):
    """What decides area and energy of a V-Rex chip's cores. Defaults: the published core, at 0.8 V."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cores: int = Field(default=8, ge=1)
    mac_trees: int = Field(default=64, ge=1)
    tree_inputs: int = Field(default=64, ge=1)
    vpe_width: int = Field(default=64, ge=1)
    lxe_sram_bytes: int = Field(default=393_216, ge=1)
    lxe_port_bytes: int = Field(default=1024, ge=1, description="SRAM bytes a core can move in a cycle")
    hash_bits: int = Field(default=32, ge=1)
    bits_per_cycle: int = Field(default=16, ge=1)
    xor_accumulators: int = Field(default=1, ge=1)
    early_exit: bool = True
    tile_bytes: int = Field(default=4096, ge=1)
    current_bytes: int = Field(default=128, ge=1)
    wtu_lanes: int = Field(default=16, ge=1)
    wtu_cores: int = Field(default=1, ge=1)
    score_bits: int = Field(default=16, ge=1)
    count_bits: int = Field(default=16, ge=1)
    range_bits: int = Field(default=16, ge=1, description="bits of the WTU's range comparators")
    score_bytes: int = Field(default=8192, ge=1)
    count_bytes: int = Field(default=8192, ge=1)
    frequency_hz: float = Field(default=800e6, gt=0)


PUBLISHED = UnitParameters()


def sram_read_pj(capacity_bytes: int, width_bits: float) -> float:
    """Energy of one read at 22 nm: decoding and wires grow with capacity^0.62, sensing with the width.

    Within 20 % of eight CACTI points, 2 KB to 2 MB (test_scaling.py has them).
    """
    size: float = (capacity_bytes / _SRAM_REFERENCE_BYTES) ** _READ_EXPONENT
    return size * (_READ_FIXED_PJ + _READ_PJ_PER_BIT * width_bits)


def sram_write_pj(capacity_bytes: int, width_bits: float) -> float:
    """Energy of one write at 22 nm: driving the bit lines makes width count for more than in a read.

    Within 10 % of the same eight CACTI points.
    """
    size: float = (capacity_bytes / _SRAM_REFERENCE_BYTES) ** _WRITE_EXPONENT
    return size * (_WRITE_FIXED_PJ + _WRITE_PJ_PER_BIT * width_bits)


def full_activity_per_cycle(p: UnitParameters) -> dict[str, float]:
    """Actions of one core in a cycle in which every unit is busy: what Table III's power is taken to be at.

    dpe_macs, vpe_ops, wtu_elements, kvmu_lookups: one per multiplier, lane, lane, table port.
    lxe_sram_bytes: the port's width (`dre_sim/lxe.py` assumes 1 KiB), which makes a byte 0.13 pJ; CACTI
    gives 0.17 for 32 KB banks read 32 B at a time and 0.59 for 128 KB banks read 16 B at a time (14 nm).
    hcu: every lane compares, and codes are loaded as fast as they are compared (one new token).
    """
    return {
        "dpe_macs": p.mac_trees * p.tree_inputs,
        "vpe_ops": p.vpe_width,
        "lxe_sram_bytes": p.lxe_port_bytes,
        "hcu_chunks": p.xor_accumulators,
        "hcu_table_bytes": p.xor_accumulators * p.bits_per_cycle / 8,
        "wtu_elements": p.wtu_lanes * p.wtu_cores,
        "kvmu_lookups": 1,
    }


def action_costs_pj(table: PriceTable, p: UnitParameters) -> dict[str, float]:
    """Dynamic energy of one core action in pJ, for the table's anchors at parameters `p`.

    Law, for all: published dynamic energy of the unit's action times (bottom-up estimate at `p` /
    bottom-up estimate at the published parameters). A DPE multiply-accumulate, a VPE operation and a KVMU
    lookup cost the same in an array of any size. SRAM of the LXE costs capacity^0.62 per byte. HCU and WTU:
    see `hcu_bottom_up_pj`, `wtu_bottom_up_pj`; their published energy is 3.4 and 5.3 times the bare datapath.
    """
    rate = full_activity_per_cycle(PUBLISHED)
    lxe = (p.lxe_sram_bytes / PUBLISHED.lxe_sram_bytes) ** _READ_EXPONENT
    costs = {
        "dpe_macs": _dynamic_pj_per_cycle(table, "dpe") / rate["dpe_macs"],
        "vpe_ops": _dynamic_pj_per_cycle(table, "vpe") / rate["vpe_ops"],
        "lxe_sram_bytes": _dynamic_pj_per_cycle(table, "lxe_memory") / rate["lxe_sram_bytes"] * lxe,
        "kvmu_lookups": _dynamic_pj_per_cycle(table, "kvmu") / rate["kvmu_lookups"],
    }
    for unit, bottom_up in _BOTTOM_UP.items():
        published = sum(cost * rate.get(action, 0.0) for action, cost in bottom_up(PUBLISHED).items())
        overhead = _dynamic_pj_per_cycle(table, unit) / published
        costs |= {action: overhead * cost for action, cost in bottom_up(p).items()}
    return costs


def hcu_bottom_up_pj(p: UnitParameters) -> dict[str, float]:
    """Bare datapath and SRAM energy of the HCU's actions at 14 nm.

    A chunk is `bits_per_cycle` bits of a cluster code read from the tile (h lanes share one access of
    h·w bits), the token's bits read from the current memory, XOR, popcount tree and accumulator:
    linear in the width, plus a fixed access. A table byte is written into the tile memory in 32 B
    words. An update is priced as three cycles of comparing (its pipeline), an upper bound.
    """
    h, w = p.xor_accumulators, p.bits_per_cycle
    sram = sram_read_pj(p.tile_bytes, h * w) + sram_read_pj(p.current_bytes, w)
    # A gate equivalent switches what it switches in a 16-bit adder of the same area.
    logic = _hcu_lane_ge(p) * _NAND2_UM2 * _ADD16_PJ / _ADD16_UM2
    chunk = sram * _SRAM_22_TO_14 / h + logic
    return {
        "hcu_chunks": chunk,
        "hcu_table_bytes": sram_write_pj(p.tile_bytes, 256) * _SRAM_22_TO_14 / 32,
        "hcu_updates": _UPDATE_CYCLES * h * chunk,
    }


def wtu_bottom_up_pj(p: UnitParameters) -> dict[str, float]:
    """Bare datapath and SRAM energy of the WTU's actions at 14 nm.

    An element is one score and one count read (a row of W of each per cycle), two range comparisons, a
    multiplication and an accumulation. The multiplier grows with `score_bits` times `count_bits`,
    registers with `score_bits`, comparators with `range_bits`; the accumulator is as wide as ever. A row
    adds its reduction tree (W additions, minima, maxima). A union word is 64 mask bits read, OR-ed and
    written back.
    """
    lanes = p.wtu_lanes
    score = sram_read_pj(p.score_bytes, lanes * p.score_bits)
    count = sram_read_pj(p.count_bytes, lanes * p.count_bits)
    narrow, compare = p.score_bits / 16, 2 * _COMPARE16_PJ * p.range_bits / 16
    multiply = narrow * p.count_bits / 16 * _MULTIPLY_PJ
    logic = multiply + narrow * _REGISTER16_PJ + compare + _ACCUMULATE_PJ
    word = sram_read_pj(p.score_bytes, 64) + sram_write_pj(p.score_bytes, 64)
    return {
        "wtu_elements": (score + count) * _SRAM_22_TO_14 / lanes + logic,
        "wtu_rows": lanes * (_ACCUMULATE_PJ + compare),
        "wtu_union_words": word * _SRAM_22_TO_14,
    }


_BOTTOM_UP: dict[UnitName, Callable[[UnitParameters], dict[str, float]]] = {
    "hcu": hcu_bottom_up_pj,
    "wtu": wtu_bottom_up_pj,
}


def unit_areas_mm2(table: PriceTable, p: UnitParameters) -> dict[UnitName, float]:
    """Area of each unit of one core.

    DPE with its multipliers, VPE with its width, SRAM with its bits at the density of the published LXE
    memory (0.108 um2 a bit, which CACTI and 14LPP bit cells with periphery confirm). WTU: what its SRAM
    leaves is lanes, linear in lanes times the bare lane's growth with score and range bits. HCU: its SRAM,
    lanes at the WTU's ratio of real to bare lane area (3.9), and a constant rest (control, addressing).
    KVMU: constant, it has no SRAM of its own (Table III's DRE memory is HCU's and WTU's).
    """
    area = {unit: row.area_mm2 for unit, row in table.units.items()}
    per_byte = area["lxe_memory"] / PUBLISHED.lxe_sram_bytes
    wtu_logic = area["wtu"] - _wtu_sram_bytes(PUBLISHED) * per_byte
    spread = wtu_logic / (PUBLISHED.wtu_lanes * _wtu_lane_mm2(PUBLISHED))
    hcu_rest = area["hcu"] - _hcu_sram_bytes(PUBLISHED) * per_byte - spread * _hcu_lanes_mm2(PUBLISHED)
    if wtu_logic <= 0 or hcu_rest <= 0:
        raise ValueError(
            f"price table {table.name!r}: at the LXE memory's density the SRAM alone of hcu or wtu is larger "
            f"than its area ({area['hcu']}, {area['wtu']} mm2); check area_mm2 of lxe_memory, hcu and wtu"
        )
    macs = p.mac_trees * p.tree_inputs / (PUBLISHED.mac_trees * PUBLISHED.tree_inputs)
    wtu = _wtu_sram_bytes(p) * per_byte + spread * p.wtu_lanes * _wtu_lane_mm2(p)
    return {
        "dpe": area["dpe"] * macs,
        "vpe": area["vpe"] * p.vpe_width / PUBLISHED.vpe_width,
        "lxe_memory": p.lxe_sram_bytes * per_byte,
        "hcu": _hcu_sram_bytes(p) * per_byte + spread * _hcu_lanes_mm2(p) + hcu_rest,
        "wtu": p.wtu_cores * wtu,
        "kvmu": area["kvmu"],
    }


def leakage_w(table: PriceTable, p: UnitParameters) -> dict[UnitName, float]:
    """Power of each unit of one core that flows whether it works or not: with the unit's area."""
    areas, share = unit_areas_mm2(table, p), _leakage_share(table)
    return {u: row.power_w * share * areas[u] / row.area_mm2 for u, row in table.units.items()}


def unit_powers_w(table: PriceTable, p: UnitParameters) -> dict[UnitName, float]:
    """Power of each unit of one core at full activity (`full_activity_per_cycle`): dynamic plus leakage."""
    costs, powers = action_costs_pj(table, p), leakage_w(table, p)
    for action, per_cycle in full_activity_per_cycle(p).items():
        powers[CORE_ACTIONS[action]] += costs[action] * 1e-12 * per_cycle * p.frequency_hz
    return powers


def _dynamic_pj_per_cycle(table: PriceTable, unit: UnitName) -> float:
    share = _leakage_share(table)
    return table.units[unit].power_w * (1 - share) / PUBLISHED.frequency_hz * 1e12


def _leakage_share(table: PriceTable) -> float:
    if table.leakage_share is None:
        raise ValueError(f"price table {table.name!r} is no 'vrex' table: it prices no core units")
    return table.leakage_share.share


def xor_popcount_um2(width_bits: int) -> float:
    """Bare area at 14 nm of XOR, popcount tree and compare over `width_bits`, without registers."""
    return _GE_PER_XOR_BIT * width_bits * _NAND2_UM2


def _hcu_lane_ge(p: UnitParameters) -> float:
    """XOR, popcount and compare over the width, the partial distance, and the bound early exit ends at."""
    registers = 2 if p.early_exit else 1
    distance_bits = ceil(log2(p.hash_bits + 1))
    return _GE_PER_XOR_BIT * p.bits_per_cycle + registers * _GE_PER_REGISTER_BIT * distance_bits


def _hcu_lanes_mm2(p: UnitParameters) -> float:
    return p.xor_accumulators * _hcu_lane_ge(p) * _NAND2_UM2 * 1e-6


def _hcu_sram_bytes(p: UnitParameters) -> int:
    return p.tile_bytes + p.current_bytes


def _wtu_lane_mm2(p: UnitParameters) -> float:
    narrow = p.score_bits / 16 * (p.count_bits / 16 * _MULTIPLIER_UM2 + _REGISTER16_UM2)
    return (narrow + 2 * _COMPARE16_UM2 * p.range_bits / 16 + _ADD16_UM2) * 1e-6


def _wtu_sram_bytes(p: UnitParameters) -> int:
    return p.score_bytes + p.count_bytes
