"""SSD model against MQSim on closed loops of one request size and queue depth.

The tables do not document MQSim's random numbers, so random rows are drawn anew with a fixed seed: a row's error
holds the spread between two seeds, which matters for p99 and few requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np

from dre_sim.link import LinkConfig
from dre_sim.ssd import SsdConfig, simulate
from resv_sim.validate.comparison import Point
from resv_sim.validate.schemas import Row
from resv_sim.validate.tables import Table
from resv_sim.validation import load

LINKS = {"g3": "pcie3_x4", "g4": "pcie4_x4"}
# Read times of the three page levels (headers of the tables).
READ_PS = {"u50": (50_000_000,), "tlc": (40_000_000, 55_000_000, 70_000_000)}
SEED = 1
# Statistics are over completions between these points of the run (headers of the tables).
FIRST, LAST = 0.10, 0.95


@cache
def drive_of(host: str, read_profile: str) -> tuple[SsdConfig, LinkConfig]:
    """The drive of the tables behind their host link."""
    drive = load(f"generic_{host}", "ssd", SsdConfig).model_copy(update={"t_read_ps": READ_PS[read_profile]})
    return drive, load(LINKS[host], "link", LinkConfig)


def cost(row: Row) -> float:
    """Flash pages to simulate, each as dear as ten DRAM transactions."""
    return 10 * row.number("n_requests") * max(1.0, row.number("request_bytes") / 16384)


def check(table: Table, row: Row) -> None:
    """Nothing beside the columns' own identities."""


def compare(table: Table, row: Row) -> Iterator[Point]:
    bandwidth, mean_us, p99_us = _replayed(row)
    label = (
        f"{row.text('pattern')} {row.count('request_bytes')} B depth {row.count('queue_depth')} "
        f"writes {row.count('write_pct')} %"
    )
    for metric, ours, column, unit in (
        ("bandwidth", bandwidth, "read_bw_bytes_per_s", "B/s"),
        ("mean latency", mean_us, "read_lat_mean_us", "us"),
        ("p99 latency", p99_us, "read_lat_p99_us", "us"),
    ):
        yield Point("ssd", table.name, metric, label, ours, row.number(column), unit)


def _replayed(row: Row) -> tuple[float, float, float]:
    """Read bandwidth in B/s, mean and p99 read latency in us."""
    drive, link = drive_of(row.text("host"), row.text("tR_profile"))
    n, size = row.count("n_requests"), row.count("request_bytes")
    generator = np.random.default_rng(SEED)
    places = drive.capacity_bytes // size
    sequential = row.text("pattern") == "seq"
    place = np.arange(n, dtype=np.int64) % places if sequential else generator.integers(0, places, n, dtype=np.int64)
    write = generator.random(n) < row.number("write_pct") / 100
    sizes = np.full(n, size, np.int64)
    result = simulate(drive, link, place * size, sizes, write, row.count("queue_depth"), fresh=True)
    order = np.argsort(result.completion_ps, kind="stable")
    first, last = int(FIRST * n), max(int(LAST * n), int(FIRST * n) + 2)
    counted = order[first:last]
    reads = counted[~write[counted]]
    span_ps = int(result.completion_ps[counted[-1]] - result.completion_ps[counted[0]])
    latency = (result.completion_ps - result.submit_ps)[reads] / 1e6
    return reads.size * size * 1e12 / span_ps, float(latency.mean()), float(np.percentile(latency, 99))
