"""From action counts to joules: `Bill`, `price`, and the check that nothing is lost or paid twice.

Energy = sum over actions of count times cost + sum over static rows of power times time. Knows how long
a step took and how often what was done, not when.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import fsum, isclose

from dre_sim.timeline import Timeline
from energy_models.chip import required
from energy_models.scaling import UnitParameters, action_costs_pj, leakage_w
from energy_models.tables import CORE_ACTIONS, PriceTable

_RELATIVE_TOLERANCE = 1e-9


class EnergyConservationError(RuntimeError):
    """A bill whose parts, total and average power disagree, or that misses an action."""


class CapError(ValueError):
    """A power mode that allows less than what is drawn all the time."""


@dataclass(frozen=True)
class ActionLine:
    """`count` actions at `unit_cost_pj`, priced with table row `row`. `scale` < 1: cut by a power mode."""

    component: str
    action: str
    count: int
    unit_cost_pj: float
    row: str
    scale: float = 1.0

    @property
    def joules(self) -> float:
        return self.count * self.unit_cost_pj * 1e-12 * self.scale


@dataclass(frozen=True)
class StaticLine:
    """`power_w` over the whole duration, priced with table row `row`."""

    component: str
    power_w: float
    seconds: float
    row: str

    @property
    def joules(self) -> float:
        return self.power_w * self.seconds


@dataclass(frozen=True)
class Bill:
    """What one timeline costs. `total_j` was summed once, when the bill was made."""

    platform: str
    table: str
    seconds: float
    actions: tuple[ActionLine, ...]
    static: tuple[StaticLine, ...]
    total_j: float

    @property
    def lines(self) -> tuple[ActionLine | StaticLine, ...]:
        """Every line, actions first."""
        return (*self.actions, *self.static)

    @property
    def dynamic_j(self) -> float:
        return fsum(line.joules for line in self.actions)

    @property
    def static_j(self) -> float:
        return fsum(line.joules for line in self.static)

    @property
    def average_power_w(self) -> float:
        return self.total_j / self.seconds

    @property
    def cap_scale(self) -> float:
        """How far a power mode cut dynamic energy, 1.0 where it did not."""
        return min((line.scale for line in self.actions), default=1.0)

    def by_component(self) -> dict[str, float]:
        """Joules of each component, dynamic and static together, in order of the bill."""
        joules: dict[str, float] = {}
        for line in self.lines:
            joules[line.component] = joules.get(line.component, 0.0) + line.joules
        return joules


def price(timeline: Timeline, table: PriceTable, params: UnitParameters | None = None) -> Bill:
    """The bill of one timeline. `params` are the core's, required for a 'vrex' table.

    A power mode (`caps`) bounds the average power of the components it covers: where static plus dynamic
    energy would exceed cap times time, dynamic energy is scaled down to the cap. The time stays: GPU
    timings come from throughput measured in that mode, whose governor has already lowered clock and voltage.

    Raises
    ------
    ValueError
        an action without a row, a negative count, a duration of zero.
    CapError
        a cap below the static power.
    EnergyConservationError
        the bill does not add up (a defect of this module, checked on every call).
    """
    if timeline.end_ps <= 0:
        raise ValueError(f"timeline of {timeline.platform!r} lasts {timeline.end_ps} ps; it must be positive")
    seconds = timeline.end_ps * 1e-12
    core = {} if table.kind == "gpu" else action_costs_pj(table, required(table, params))
    actions = tuple(_line(table, core, name, count) for name, count in timeline.actions.items())
    static = _static_lines(table, params, seconds)
    actions = _within_caps(table, actions, static, seconds)
    dynamic_j, static_j = (line.joules for line in actions), (line.joules for line in static)
    total_j = fsum((*dynamic_j, *static_j))
    bill = Bill(timeline.platform, table.name, seconds, actions, static, total_j)
    check_conservation(bill, timeline)
    return bill


def check_conservation(bill: Bill, timeline: Timeline) -> None:
    """Every action priced once, no part negative, parts = total = average power times time."""
    counts = {line.action: line.count for line in bill.actions}
    if len(counts) != len(bill.actions) or counts != dict(timeline.actions):
        wrong = sorted(set(counts.items()) ^ set(timeline.actions.items()))
        raise EnergyConservationError(f"{bill.platform}: actions counted and priced differ: {wrong}")
    negative = [line for line in bill.lines if not line.joules >= 0]
    if negative:
        raise EnergyConservationError(f"{bill.platform}: not a non-negative energy: {negative[0]}")
    parts_j = fsum(bill.by_component().values())
    power_w = fsum(joules / bill.seconds for joules in bill.by_component().values())
    for name, joules in (
        ("sum of components", parts_j),
        ("dynamic + static", bill.dynamic_j + bill.static_j),
        ("average power x time", power_w * timeline.end_ps * 1e-12),
    ):
        if not isclose(joules, bill.total_j, rel_tol=_RELATIVE_TOLERANCE):
            raise EnergyConservationError(f"{bill.platform}: {name} is {joules} J, total {bill.total_j} J")


def _line(table: PriceTable, core: dict[str, float], action: str, count: int) -> ActionLine:
    if count < 0:
        raise ValueError(f"action {action!r} has count {count}; counts are not negative")
    if action in core:
        unit = CORE_ACTIONS[action]
        return ActionLine(unit, action, count, core[action], row=unit)
    row, cost_pj = table.action_cost(action)
    return ActionLine(table.actions[action].component, action, count, cost_pj, row)


def _static_lines(table: PriceTable, params: UnitParameters | None, seconds: float) -> tuple[StaticLine, ...]:
    lines = [StaticLine(row.component, row.power_w, seconds, name) for name, row in table.static.items()]
    if table.kind == "vrex":
        p = required(table, params)
        leaks = leakage_w(table, p).items()
        lines += [StaticLine(u, p.cores * watts, seconds, "leakage_share") for u, watts in leaks]
    return tuple(lines)


def _within_caps(
    table: PriceTable, actions: tuple[ActionLine, ...], static: tuple[StaticLine, ...], seconds: float
) -> tuple[ActionLine, ...]:
    """Dynamic lines scaled so that no cap is exceeded; a line under two caps takes the smaller scale."""
    scales = [1.0] * len(actions)
    for name, cap in table.caps.items():
        static_j = fsum(line.joules for line in static if line.component in cap.covers)
        dynamic_j = fsum(line.joules for line in actions if line.component in cap.covers)
        left_j = cap.power_w * seconds - static_j
        if left_j < -_RELATIVE_TOLERANCE * static_j:
            raise CapError(
                f"price table {table.name!r}: cap {name!r} of {cap.power_w} W is below the static power "
                f"{static_j / seconds:.6g} W of {', '.join(cap.covers)}"
            )
        if dynamic_j > left_j:
            scale = max(0.0, left_j) / dynamic_j
            scales = [
                min(s, scale) if line.component in cap.covers else s for s, line in zip(scales, actions, strict=True)
            ]
    return tuple(replace(line, scale=s) for line, s in zip(actions, scales, strict=True))
