"""DRAM model against request-level simulators, each row's address stream replayed.

A table's memory is named by its file: `dram_[system_]DEVICE[_VARIANT...]`, as in `dram_lpddr5_6400_q128` or
`dram_system_lpddr5_6400_x16ch`. DEVICE is one of `DEVICES`, a VARIANT one of `VARIANTS`, `x<N>ch` for N channels, or
a word of the author's own. Bandwidth is compared where it is bounded by the memory, latency where it is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from dre_sim.dram import DramConfig, DramRequests, DramResult, simulate
from resv_sim.errors import hint
from resv_sim.validate import replay
from resv_sim.validate.comparison import Point
from resv_sim.validate.schemas import Row
from resv_sim.validate.tables import Table, TableError, require_identity
from resv_sim.validation import load

# The bundled memory of a device, and what the tables' one channel has otherwise; the headers give both.
DEVICES: dict[str, tuple[str, dict[str, Any]]] = {
    "lpddr5_6400": ("lpddr5_6400_256bit", {}),
    "hbm2e_3024": ("hbm2e_5120bit", {"read_queue": 32, "write_queue": 32}),
    "ddr4_3200": ("ddr4_3200", {}),
    # Ramulator 2.1's HBM2_2000Mbps: the nanoseconds that hbm2e_5120bit rounds to its own clock, at 1 ns.
    "hbm2_2000": (
        "hbm2e_5120bit",
        {"read_queue": 32, "write_queue": 32, "tck_ps": 1000, "n_cl": 14, "n_rcd_rd": 14, "n_rcd_wr": 12, "n_rp": 14}
        | {"n_ras": 34, "n_rc": 48, "n_wr": 16, "n_rtp": 5, "n_cwl": 5, "n_wtr_s": 6, "n_wtr_l": 8, "n_rrd_s": 4}
        | {"n_rrd_l": 4, "n_faw": 15, "n_rfc": 350, "n_refi": 3900},
    ),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "norefresh": {"refresh": "none"},
    "perbank": {"refresh": "per_bank"},
    "q128": {"read_queue": 128, "write_queue": 128},
}
# DRAMsim3 has timings of its own for a device.
DRAMSIM3: dict[str, dict[str, Any]] = {
    "ddr4_3200": {"n_rfc": 560},
    # DRAMsim3's HBM2_8Gb_x128.ini: one 128-bit channel without pseudo-channels, two half-clock bursts of 64 B.
    "hbm2_2000": (
        {"n_pseudo_channels": 1, "row_bytes": 2048, "transaction_bytes": 64, "n_cwl": 4, "n_rcd_wr": 14, "n_rtp": 6}
        | {"n_ccd_s": 2, "n_ccd_l": 2, "n_rrd_s": 4, "n_rrd_l": 6, "n_faw": 30, "n_rfc": 260, "command_bus": "single"}
        | {"n_act": 1}
    ),
}
SIMULATORS = ("ramulator2", "dramsim3")
WARM_UP = 0.1
# The source holds this many transactions outside the controller (header of every table, "load").
BACKLOG = 64
MAPS = {"page": "page", "bgi": "bank_group"}


@cache
def memory_of(table_name: str) -> DramConfig:
    """The memory that a table's name stands for. Raises TableError where it names no known device."""
    name = table_name.removeprefix("dram_").removeprefix("system_")
    device = next((known for known in DEVICES if name == known or name.startswith(f"{known}_")), None)
    if device is None:
        raise TableError(
            f"{table_name}: the file's name must be dram_[system_]DEVICE[_VARIANT...] with DEVICE one of "
            f"{', '.join(DEVICES)}"
        )
    bundled, changes = DEVICES[device]
    fields = load(bundled, "memory", DramConfig).model_dump() | {"n_channels": 1} | changes
    for word in filter(None, name.removeprefix(device).split("_")):
        channels = re.fullmatch(r"x(\d+)ch", word)
        fields |= {"n_channels": int(channels[1])} if channels else {}
        fields |= DRAMSIM3.get(device, {}) if word == SIMULATORS[1] else VARIANTS.get(word, {})
        if word not in VARIANTS and hint(word, VARIANTS):
            raise TableError(f"{table_name}: no variant {word!r} ({', '.join(VARIANTS)}).{hint(word, VARIANTS)}")
    return DramConfig(**fields)


def cost(row: Row) -> float:
    """Transactions to simulate, for an even split over threads."""
    return row.number("n_transactions")


def check(table: Table, row: Row) -> None:
    """Raises TableError where a row's numbers cannot be of this memory, as when a unit is wrong."""
    where = f"{table.file}:{row.line}"
    try:
        memory = memory_of(table.name)
    except TableError as error:
        raise TableError(f"{table.file}:1: {error}") from None
    peak = row.number("bw_frac_of_peak") * memory.peak_bytes_per_s
    what = f"bw_bytes_per_s over bw_frac_of_peak x {memory.peak_bytes_per_s:.4g} B/s"
    require_identity(where, what, row.number("bw_bytes_per_s") / peak)
    shortest = (memory.n_cl + memory.n_bl) * memory.tck_ps / 1e3
    longest = row.number("n_transactions") * memory.transaction_bytes / row.number("bw_bytes_per_s") * 1e9
    if not shortest <= row.number("lat_mean_ns") <= longest:
        raise TableError(
            f"{where}: units do not match: lat_mean_ns is {row.number('lat_mean_ns'):g}; between {shortest:g} (column "
            f"access and burst) and {longest:.4g} (the whole run) is possible"
        )


def compare(table: Table, row: Row) -> Iterator[Point]:
    """The points of one row. A row is bounded by the memory where its source is never empty or it is saturated."""
    full, saturated = row.text("load") == "sat", row.text("saturated") == "1"
    bandwidth, mean_ns, p99_ns = _replayed(memory_of(table.name), row, system=table.kind == "dram_system")
    label = _label(row)
    if full or saturated:
        metric = "saturated bandwidth"
        yield Point("dram", table.name, metric, label, bandwidth, row.number("bw_bytes_per_s"), "B/s")
    if not saturated:
        metric = f"{'full-queue' if full else 'unsaturated'} mean latency"
        yield Point("dram", table.name, metric, label, mean_ns, row.number("lat_mean_ns"), "ns")
        yield Point("dram", table.name, "p99 latency", label, p99_ns, row.number("lat_p99_ns"), "ns")


def _replayed(memory: DramConfig, row: Row, *, system: bool) -> tuple[float, float, float]:
    """Bandwidth in B/s, mean and p99 read latency in ns of the row's stream on our memory."""
    pattern, arg = row.text("pattern"), row.count("arg_bytes")
    changes: dict[str, Any] = {"address_map": MAPS[row.text("map")]}
    if system:
        changes["interleave_bytes"] = row.count("interleave_bytes")
    memory = memory.model_copy(update=changes)
    size = replay.unit_bytes(pattern, arg)
    n = max(1, row.count("n_transactions") * memory.transaction_bytes // size)
    stream = replay.units(pattern, arg, n, memory.capacity_bytes)
    full = row.text("load") == "sat"
    if full:
        arrival = np.zeros(n, np.int64)
    else:
        gap_ps = size / (row.number("load") * memory.peak_bytes_per_s) * 1e12
        arrival = replay.arrivals_ps(n, gap_ps, poisson=system or row.text("arrival") == "poisson")
    requests = DramRequests(stream.address, np.full(n, size, np.int64), stream.is_write, arrival)
    if system:
        return _measured(memory, simulate(memory, requests, window_bytes=row.count("window_bytes") if full else 0))
    return _measured(memory, simulate(memory, requests, backlog=BACKLOG if full else 0))


def _measured(memory: DramConfig, result: DramResult) -> tuple[float, float, float]:
    """As the tables measure: in order of completion, the first tenth dropped, latencies of reads."""
    order = np.argsort(result.transaction_done_ps, kind="stable")
    done = result.transaction_done_ps[order]
    first = int(done.size * WARM_UP)
    span_ps = int(done[-1] - done[max(0, first - 1)])
    bandwidth = (done.size - first) * memory.transaction_bytes * 1e12 / span_ps
    kept = order[first:]
    latency = result.transaction_latency_ps[kept[~result.transaction_write[kept]]] / 1e3
    return bandwidth, float(latency.mean()), float(np.percentile(latency, 99))


def between_simulators(tables: Sequence[Table]) -> list[Point]:
    """How far two simulators of one device are from each other: the second one's rows against the first's."""
    points: list[Point] = []
    for table in tables:
        stem, _, simulator = table.name.rpartition("_")
        other = next((t for t in tables if t.name == f"{stem}_{SIMULATORS[0]}"), None)
        if simulator != SIMULATORS[1] or other is None:
            continue
        rows = {_label(row): row for row in other.rows}
        for row in table.rows:
            if _label(row) in rows:
                points += _difference(f"{stem}: {SIMULATORS[1]} over {SIMULATORS[0]}", row, rows[_label(row)])
    return points


def _difference(name: str, row: Row, against: Row) -> Iterator[Point]:
    def point(metric: str, column: str, unit: str) -> Point:
        return Point("dram", name, metric, _label(row), row.number(column), against.number(column), unit)

    if row.text("load") == "sat":
        yield point("saturated bandwidth", "bw_bytes_per_s", "B/s")
    elif row.text("saturated") == against.text("saturated") == "0":
        yield point("unsaturated mean latency", "lat_mean_ns", "ns")
        yield point("p99 latency", "lat_p99_ns", "ns")


def _label(row: Row) -> str:
    v: Mapping[str, str | float] = row.values
    load_text = "full" if v["load"] == "sat" else f"load {v['load']:g}"
    parts = [f"{v['pattern']}", f"{v['map']}", f"{v['arg_bytes']:.0f} B", load_text]
    if "arrival" in v and v["arrival"] != "backlog":
        parts.append(str(v["arrival"]))
    if "interleave_bytes" in v:
        parts.append(f"interleave {v['interleave_bytes']:.0f} B")
        parts += [f"window {v['window_bytes']:.0f} B"] if v["window_bytes"] else []
    return " ".join(parts)
