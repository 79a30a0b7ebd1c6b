"""Area and energy models against published figures and other estimators.

Much of Table III and Table I holds by construction; those rows are marked `calibrate` and only show that it does.
Energies of whole runs against the published gains are not here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

from dre_sim.platforms import VRexConfig
from energy_models import chip, scaling
from energy_models.scaling import PUBLISHED, UnitParameters
from energy_models.tables import PriceTable, UnitName
from resv_sim import library
from resv_sim.validate import gpu
from resv_sim.validate.comparison import Point
from resv_sim.validate.schemas import Row
from resv_sim.validate.tables import Table, TableError
from resv_sim.validation import load

CORE_TABLE = "vrex_14nm_lpddr5"


def cost(row: Row) -> float:
    return 1.0


def check(table: Table, row: Row) -> None:
    """Raises TableError for a quantity or unit that the model does not know."""
    where, quantity = f"{table.file}:{row.line}", row.text("quantity")
    if quantity not in QUANTITIES:
        raise TableError(f"{where}: no quantity {quantity!r}; known are {', '.join(QUANTITIES)}")
    unit, _ = QUANTITIES[quantity]
    if row.text("unit") != unit:
        raise TableError(f"{where}: units do not match: {quantity} is in {unit}, not {row.text('unit')!r}")


def compare(table: Table, row: Row) -> Iterator[Point]:
    quantity = row.text("quantity")
    unit, ours = QUANTITIES[quantity]
    try:
        value = ours(row)
    except KeyError as error:
        raise TableError(f"{table.file}:{row.line}: {quantity} knows no component {error}") from None
    role, source = row.text("role"), row.text("source")
    metric = quantity.replace("_", " ")
    yield Point("energy", table.name, metric, row.text("item"), value, row.number("value"), unit, role, source)


@cache
def _prices(name: str) -> PriceTable:
    return load(name, "energy", PriceTable)


@cache
def _chip(name: str) -> tuple[PriceTable, UnitParameters]:
    """Price table and core parameters of a bundled V-Rex chip, at the published core."""
    platform = load(name, "platforms", VRexConfig)
    return _prices(platform.energy), UnitParameters(cores=platform.lxe.cores)


def _named_chip(row: Row) -> tuple[PriceTable, UnitParameters]:
    name = row.text("component")
    if name not in library.bundled("platforms"):
        raise KeyError(name)
    return _chip(name)


def _unit(row: Row, law: Callable[[PriceTable, UnitParameters], dict[UnitName, float]]) -> float:
    values: dict[str, float] = {str(unit): value for unit, value in law(_prices(CORE_TABLE), PUBLISHED).items()}
    return values[row.text("component")]


def _sram_area_mm2(row: Row) -> float:
    """At the density of the LXE memory of Table III."""
    areas = scaling.unit_areas_mm2(_prices(CORE_TABLE), PUBLISHED)
    return areas["lxe_memory"] / PUBLISHED.lxe_sram_bytes * row.number("capacity_bytes")


def _stress_power_w(row: Row) -> float:
    """The `gpu` component of the Orin's bill while it runs products at the achieved rate without a pause."""
    prices, config = _prices("agx_orin"), gpu.platform("agx_orin")
    mode = config.model_copy(update={"power_mode": row.text("component")})
    if mode.power_mode not in config.power_modes:
        raise KeyError(mode.power_mode)
    static = sum(s.power_w for s in prices.static.values() if s.component == "gpu")
    busy, flop = prices.action_cost("gpu_busy_ps")[1], prices.action_cost("gpu_flops")[1]
    return static + busy * mode.mode.gpu_scale + flop * 1e-12 * mode.flops_per_s(mode.gemm_share)


QUANTITIES: dict[str, tuple[str, Callable[[Row], float]]] = {
    "unit_area": ("mm2", lambda row: _unit(row, scaling.unit_areas_mm2)),
    "unit_power": ("W", lambda row: _unit(row, scaling.unit_powers_w)),
    "core_area": ("mm2", lambda _: chip.core_area_mm2(_prices(CORE_TABLE), PUBLISHED)),
    "core_power": ("W", lambda _: chip.core_power_w(_prices(CORE_TABLE), PUBLISHED)),
    "chip_area": ("mm2", lambda row: chip.area(*_named_chip(row)).chip_mm2),
    "nameplate": ("W", lambda row: chip.nameplate_power_w(*_named_chip(row))),
    "dre_power_share": ("1", lambda row: chip.dre_power_share(*_named_chip(row))),
    "dre_area_share": ("1", lambda row: chip.area(*_named_chip(row)).dre_share),
    "sram_read": ("pJ", lambda row: scaling.sram_read_pj(row.count("capacity_bytes"), row.number("width_bits"))),
    "sram_write": ("pJ", lambda row: scaling.sram_write_pj(row.count("capacity_bytes"), row.number("width_bits"))),
    "sram_area": ("mm2", _sram_area_mm2),
    "xor_popcount_area": ("um2", lambda row: scaling.xor_popcount_um2(row.count("width_bits"))),
    "gpu_stress_power": ("W", _stress_power_w),
}
