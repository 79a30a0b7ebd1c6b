"""A whole chip: its area by component, the DRE's share, and the power its data sheet would print."""

from __future__ import annotations

from dataclasses import dataclass

from energy_models.scaling import UnitParameters, unit_areas_mm2, unit_powers_w
from energy_models.tables import DRE_UNITS, PriceTable


@dataclass(frozen=True)
class AreaLine:
    """One component: area in one core and in the whole chip, and the table row it was scaled from."""

    component: str
    core_mm2: float
    chip_mm2: float
    row: str


@dataclass(frozen=True)
class AreaBill:
    """Silicon of one chip. A GPU is one component without cores."""

    table: str
    cores: int
    rows: tuple[AreaLine, ...]

    @property
    def core_mm2(self) -> float:
        return sum(row.core_mm2 for row in self.rows)

    @property
    def chip_mm2(self) -> float:
        return sum(row.chip_mm2 for row in self.rows)

    @property
    def dre_share(self) -> float:
        """Part of the chip that predicts and manages retrieval (HCU, WTU, KVMU); 0 for a GPU."""
        return sum(row.chip_mm2 for row in self.rows if row.component in DRE_UNITS) / self.chip_mm2


def area(table: PriceTable, params: UnitParameters | None = None) -> AreaBill:
    """Area by component. A 'vrex' table needs `params`; a 'gpu' table lists its die under `areas`."""
    if table.kind == "vrex":
        p = required(table, params)
        units = unit_areas_mm2(table, p)
        return AreaBill(table.name, p.cores, tuple(AreaLine(u, mm2, p.cores * mm2, u) for u, mm2 in units.items()))
    if not table.areas:
        raise ValueError(f"price table {table.name!r} gives no area: add the die under areas")
    rows = tuple(AreaLine(name, row.area_mm2, row.area_mm2, name) for name, row in table.areas.items())
    return AreaBill(table.name, 1, rows)


def core_area_mm2(table: PriceTable, params: UnitParameters) -> float:
    """Area of one core; 1.89 mm2 at the published parameters (Table III)."""
    return sum(unit_areas_mm2(table, params).values())


def core_power_w(table: PriceTable, params: UnitParameters) -> float:
    """Power of one core with every unit busy; 2.61 W at the published parameters (Table III)."""
    return sum(unit_powers_w(table, params).values())


def dre_power_share(table: PriceTable, params: UnitParameters) -> float:
    """Part of a core's power at full activity that HCU, WTU and KVMU draw; 2.19 % in Table III."""
    powers = unit_powers_w(table, params)
    return sum(powers[unit] for unit in DRE_UNITS) / sum(powers.values())


def nameplate_power_w(table: PriceTable, params: UnitParameters) -> float:
    """Cores at full activity + link lanes at full load + a remainder for memory and storage.

    The remainder is what Table I leaves after the cores of Table III and 3 W per PCIe lane, so at the
    published parameters Table I is met by construction. It is not what the memory draws: the 2.12 W of
    V-Rex8 would be 1.3 pJ/bit at 204.8 GB/s with nothing left for the SSD, a quarter of the lowest
    figure in the literature. `price` therefore never uses it.
    """
    if table.nameplate is None:
        raise ValueError(f"price table {table.name!r} has no nameplate row")
    plate = table.nameplate
    return params.cores * core_power_w(table, params) + plate.link_lanes * plate.lane_w + plate.remainder_w


def required(table: PriceTable, params: UnitParameters | None) -> UnitParameters:
    """`params`, or a ValueError where a 'vrex' table came without them."""
    if params is None:
        raise ValueError(f"price table {table.name!r} prices core units: give their UnitParameters")
    return params
