"""Price lists: what one action costs, what is drawn all the time, how large a unit is.

A table is data: every number stands beside its source, technology node, unit and confidence, and a row
without them is refused. What is not known well carries a range (`low`, `high`). Nothing here knows how
a cost grows with a unit's parameters (`scaling.py`) or what a run did (`pricing.py`).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Confidence = Literal["high", "medium", "low"]
UnitName = Literal["dpe", "vpe", "lxe_memory", "hcu", "wtu", "kvmu"]

# What a core counts, and the unit whose published power pays for it (`scaling.py` derives the cost).
CORE_ACTIONS: dict[str, UnitName] = {
    "dpe_macs": "dpe",
    "vpe_ops": "vpe",
    "lxe_sram_bytes": "lxe_memory",
    "hcu_chunks": "hcu",
    "hcu_table_bytes": "hcu",
    "hcu_updates": "hcu",
    "wtu_elements": "wtu",
    "wtu_rows": "wtu",
    "wtu_union_words": "wtu",
    "kvmu_lookups": "kvmu",
}
UNITS: tuple[UnitName, ...] = ("dpe", "vpe", "lxe_memory", "hcu", "wtu", "kvmu")
DRE_UNITS: tuple[UnitName, ...] = ("hcu", "wtu", "kvmu")

# Actions of memories, links and storage, on every platform, and those of a GPU: the unit a cost is per.
SYSTEM_ACTIONS: dict[str, str] = {
    "dram_read_bytes": "byte",
    "dram_write_bytes": "byte",
    "dram_activates": "activation",
    "link_bytes": "byte",
    "link_lane_ps": "lane-ps",
    "ssd_read_bytes": "byte",
    "ssd_write_bytes": "byte",
    "ssd_busy_ps": "ps",
    "host_dram_bytes": "byte",
}
GPU_ACTIONS: dict[str, str] = {
    "gpu_flops": "flop",
    "gpu_busy_ps": "ps",
    "kernel_launches": "launch",
    "host_copy_ps": "ps",
}


class Row(BaseModel):
    """What every number of a table says about itself. `VALUE` names the field that holds the number."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    VALUE: ClassVar[str]

    source: str = Field(min_length=1, description="where the number is from, or 'assumed: why'")
    node_nm: int | Literal["unknown"] = Field(description="technology node of the number; 'unknown' is said")
    confidence: Confidence
    low: float | None = Field(default=None, ge=0)
    high: float | None = Field(default=None, ge=0)

    @property
    def default(self) -> float | None:
        """The number itself."""
        value: float | None = getattr(self, self.VALUE)
        return value

    @model_validator(mode="after")
    def _range_holds(self) -> Row:
        if (self.low is None) != (self.high is None):
            raise ValueError("a range needs both low and high")
        value = self.default
        if value is None:
            return self
        if self.low is not None and self.high is not None and not self.low <= value <= self.high:
            raise ValueError(f"{self.VALUE} {value} is outside its range {self.low} ... {self.high}")
        if self.low is None and self.confidence == "low":
            raise ValueError("a number of low confidence needs a range: give low and high")
        return self


class ActionRow(Row):
    """Cost of one action: a number, or `same_as` another row, or 0 because `included_in` another row."""

    VALUE: ClassVar[str] = "cost_pj"

    component: str = Field(min_length=1)
    unit: str = Field(description="'per MAC', 'per byte', ...: what the cost is for")
    cost_pj: float | None = Field(default=None, ge=0)
    same_as: str | None = None
    included_in: str | None = None

    @model_validator(mode="after")
    def _one_price(self) -> ActionRow:
        given = [f for f in ("cost_pj", "same_as", "included_in") if getattr(self, f) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of cost_pj, same_as, included_in; got {given or 'none'}")
        return self


class StaticRow(Row):
    """Power drawn all the time, whatever the machine does."""

    VALUE: ClassVar[str] = "power_w"

    component: str = Field(min_length=1)
    power_w: float = Field(ge=0)


class UnitRow(Row):
    """One unit of one core at the published parameters and full activity: dynamic power plus leakage."""

    VALUE: ClassVar[str] = "power_w"

    power_w: float = Field(gt=0)
    area_mm2: float = Field(gt=0)


class ShareRow(Row):
    """A share in [0, 1)."""

    VALUE: ClassVar[str] = "share"

    share: float = Field(ge=0, lt=1)


class AreaRow(Row):
    """Silicon area of something that is priced as a whole."""

    VALUE: ClassVar[str] = "area_mm2"

    area_mm2: float = Field(gt=0)


class CapRow(Row):
    """A power mode: the components it `covers` never average more than `power_w` together."""

    VALUE: ClassVar[str] = "power_w"

    power_w: float = Field(gt=0)
    covers: tuple[str, ...] = Field(min_length=1)


class NameplateRow(Row):
    """What a chip's published power holds besides its cores."""

    VALUE: ClassVar[str] = "remainder_w"

    link_lanes: int = Field(ge=0)
    lane_w: float = Field(ge=0, description="per lane at full load")
    remainder_w: float = Field(ge=0, description="memory and storage: what is left of the published power")


class PriceTable(BaseModel):
    """The price list of one machine.

    kind : 'vrex' prices core actions from `units` through `scaling.py`; 'gpu' from `actions` alone
    leakage_share : part of a unit's published power that flows whether it works or not (vrex)
    areas : parts with a published area of their own (gpu die);  caps : power modes
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Literal["vrex", "gpu"]
    actions: dict[str, ActionRow]
    static: dict[str, StaticRow] = {}
    units: dict[UnitName, UnitRow] = {}
    leakage_share: ShareRow | None = None
    areas: dict[str, AreaRow] = {}
    caps: dict[str, CapRow] = {}
    nameplate: NameplateRow | None = None

    @field_validator("actions")
    @classmethod
    def _actions_are_known(cls, actions: dict[str, ActionRow], info: ValidationInfo) -> dict[str, ActionRow]:
        gpu = info.data.get("kind") == "gpu"
        allowed = SYSTEM_ACTIONS | (GPU_ACTIONS if gpu else {})
        for name, row in actions.items():
            if name not in allowed:
                reason = "core actions are priced from units" if name in CORE_ACTIONS else "no such action"
                raise ValueError(f"row {name!r}: {reason}; allowed: {', '.join(allowed)}")
            if row.unit != f"per {allowed[name]}":
                raise ValueError(f"row {name!r}: unit is {row.unit!r}, must be 'per {allowed[name]}'")
        missing = [name for name in allowed if name not in actions]
        if missing:
            raise ValueError(f"actions without a row: {', '.join(missing)}")
        return actions

    @model_validator(mode="after")
    def _references_hold(self) -> PriceTable:
        for name, row in self.actions.items():
            if row.same_as is not None:
                target = self.actions.get(row.same_as)
                if target is None or target.cost_pj is None:
                    raise ValueError(f"row {name!r}: same_as {row.same_as!r} is no action row with a cost_pj")
            if row.included_in is not None:
                target = self.actions.get(row.included_in)
                priced = row.included_in in self.static or (target is not None and target.cost_pj is not None)
                if not priced:
                    raise ValueError(f"row {name!r}: included_in {row.included_in!r} is no row with a number")
        return self

    @model_validator(mode="after")
    def _kind_is_complete(self) -> PriceTable:
        missing = [unit for unit in UNITS if unit not in self.units] if self.kind == "vrex" else []
        if missing:
            raise ValueError(f"units without a row: {', '.join(missing)}")
        if self.kind == "vrex" and self.leakage_share is None:
            raise ValueError("a 'vrex' table needs a leakage_share row")
        if self.kind == "gpu" and (self.units or self.leakage_share or self.nameplate):
            raise ValueError("a 'gpu' table has no units, leakage_share or nameplate")
        return self

    @model_validator(mode="after")
    def _caps_cover_components(self) -> PriceTable:
        known: set[str] = {row.component for row in self.actions.values()} | set(self.units)
        known |= {row.component for row in self.static.values()}
        for name, cap in self.caps.items():
            unknown = [component for component in cap.covers if component not in known]
            if unknown:
                raise ValueError(
                    f"cap {name!r} covers {', '.join(unknown)}; components of this table: {', '.join(sorted(known))}"
                )
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> PriceTable:
        names = [name for section in (self.actions, self.static, self.units, self.caps) for name in section]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"row names used twice: {', '.join(twice)}")
        return self

    def action_cost(self, action: str) -> tuple[str, float]:
        """(name of the row that sets the price, pJ). Raises ValueError for an action without a row."""
        row = self.actions.get(action)
        if row is None:
            raise ValueError(
                f"price table {self.name!r} has no row for action {action!r}; rows: {', '.join(self.actions)}"
            )
        if row.same_as is not None:
            return row.same_as, self.actions[row.same_as].cost_pj or 0.0
        if row.included_in is not None:
            return row.included_in, 0.0
        return action, row.cost_pj or 0.0

    def rows(self) -> dict[str, Row]:
        """Every row that holds a number, by the name overrides use."""
        named: dict[str, Row] = {**self.actions, **self.static, **self.caps}
        named |= {str(unit): row for unit, row in self.units.items()}
        if self.leakage_share is not None:
            named["leakage_share"] = self.leakage_share
        return {name: row for name, row in named.items() if row.default is not None}
