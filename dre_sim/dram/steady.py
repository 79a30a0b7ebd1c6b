"""`steady_state`: bandwidth of an access pattern that goes on, from a window long enough for whole refresh intervals.

Patterns are rounded to a grid. The grid of the bundled memories is answered from `data/dram_steady_state.json`
(written by `scripts/make_dram_table.py` with this model), anything else is simulated once per process.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files

import numpy as np

from dre_sim.dram.config import DramConfig
from dre_sim.dram.requests import DramRequests, simulate

SMALLEST_CHUNK, LARGEST_CHUNK = 64, 1 << 20
# Refresh intervals that are measured after one of warm-up; twice as many change no entry by 1 %.
MEASURED_INTERVALS = 8
NO_REFRESH_INTERVAL_PS = 4_000_000


@dataclass(frozen=True)
class AccessPattern:
    """chunk_bytes : size of chunks at random places, each contiguous; 0 is one sequential stream
    write_share : share of chunks that are written, 0 to 1
    """

    chunk_bytes: int = 0
    write_share: float = 0.0


@dataclass(frozen=True)
class SteadyState:
    """efficiency : of the peak;  mean_latency_ps : of a transaction under this load, in the source's window."""

    bandwidth_bytes_per_s: float
    efficiency: float
    activates_per_byte: float
    mean_latency_ps: float


def grid_pattern(access: AccessPattern) -> AccessPattern:
    """The pattern that answers for `access`: chunk sizes round down to a power of two of 64 B to 1 MiB.

    Raises ValueError for a negative chunk size or a write share outside 0 to 1.
    """
    if access.chunk_bytes < 0:
        raise ValueError(f"chunk_bytes {access.chunk_bytes}; a size or 0 for a sequential stream")
    if not 0 <= access.write_share <= 1:
        raise ValueError(f"write_share {access.write_share}; it lies between 0 and 1")
    if access.chunk_bytes == 0:
        return access
    chunk = min(max(access.chunk_bytes, SMALLEST_CHUNK), LARGEST_CHUNK)
    return AccessPattern(1 << (chunk.bit_length() - 1), access.write_share)


@lru_cache(maxsize=1024)
def steady_state(config: DramConfig, access: AccessPattern) -> SteadyState:
    """What a source with `config.outstanding_bytes` in flight gets, in the long run."""
    on_grid = grid_pattern(access)
    row = _table().get(table_key(config, on_grid))
    return SteadyState(*row) if row is not None else measure(config, on_grid)


def table_key(config: DramConfig, access: AccessPattern) -> str:
    """Names an entry by all that decides it: every field of the memory but its name, and the pattern."""
    fields = json.dumps(config.model_dump(mode="json", exclude={"name"}), sort_keys=True)
    return hashlib.sha256(f"{fields}|{access.chunk_bytes}|{access.write_share}".encode()).hexdigest()[:24]


@cache
def _table() -> dict[str, list[float]]:
    text = files("dre_sim").joinpath("data/dram_steady_state.json").read_text(encoding="utf-8")
    table: dict[str, list[float]] = json.loads(text)["entries"]
    return table


@lru_cache(maxsize=256)
def measure(config: DramConfig, access: AccessPattern) -> SteadyState:
    """Simulate a window of the pattern and count the bytes of whole refresh intervals after the first."""
    interval = NO_REFRESH_INTERVAL_PS
    if config.refresh != "none":
        clocks = config.n_refi if config.refresh == "all_bank" else config.n_refi_pb * config.n_banks
        interval = clocks * config.tck_ps
    n_bytes = int((MEASURED_INTERVALS + 1) * interval * config.peak_bytes_per_s * 1e-12)
    requests = _requests(config, access, n_bytes)
    result = simulate(config, requests, window_bytes=config.outstanding_bytes)
    done = result.transaction_done_ps
    # The last transactions leave the window emptier: they are not the steady state.
    end = int(np.sort(done)[int(0.97 * done.size)])
    intervals = max(1, end // interval - 1)
    first = interval if end >= 2 * interval else end // 2
    span = intervals * interval if end >= 2 * interval else end - first
    counted = (done > first) & (done <= first + span)
    rate = float(counted.sum()) * config.transaction_bytes * 1e12 / span
    return SteadyState(
        bandwidth_bytes_per_s=rate,
        efficiency=rate / config.peak_bytes_per_s,
        activates_per_byte=result.activates / result.n_bytes,
        mean_latency_ps=float(result.transaction_latency_ps[counted].mean()),
    )


def _requests(config: DramConfig, access: AccessPattern, n_bytes: int) -> DramRequests:
    """A seeded sample of the pattern. Sequential reads walk the lower half of the memory, writes the upper."""
    size = access.chunk_bytes or 4096
    n = max(1, n_bytes // size)
    generator = np.random.default_rng(0)
    write = generator.random(n) < access.write_share
    if access.chunk_bytes:
        address = generator.integers(0, config.capacity_bytes // size, n, dtype=np.int64) * size
    else:
        half = config.capacity_bytes // 2 // size * size
        address = np.where(write, half + (np.cumsum(write) - 1) * size, (np.cumsum(~write) - 1) * size)
    return DramRequests(address, np.full(n, size, np.int64), write, np.zeros(n, np.int64))
