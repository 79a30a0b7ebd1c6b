"""The address and arrival streams that the DRAM tables document, replayed number by number.

Every table's header gives them: splitmix64 streams from seed, seed + 1000 and seed + 2000 for addresses, arrivals
and reads or writes; units of 64 B or of one chunk; constant or exponential spacing. The header says "uniform": a unit
is taken as the number modulo the count of places, which is a power of two. Knows no memory but its size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

SEED = 1
ARRIVAL_STREAM, WRITE_STREAM = 1000, 2000
UNIT_BYTES = 64
WRITE_SHARE = {"mix90seq": 0.1, "mix90chunk": 0.1, "mix70chunk": 0.3}
CHUNKED = ("chunk", "mix90chunk", "mix70chunk")


@dataclass(frozen=True)
class Units:
    """address, is_write (n,) of units of `n_bytes`, in the order of the source."""

    address: Int64
    is_write: NDArray[np.bool_]
    n_bytes: int


def splitmix64(seed: int, n: int) -> NDArray[np.uint64]:
    """The first n numbers of the stream whose state starts at `seed` (Steele, Lea, Flood, OOPSLA 2014)."""
    z = np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15) * np.arange(1, n + 1, dtype=np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniform(seed: int, n: int) -> NDArray[np.float64]:
    """Numbers in (0, 1]: ((x >> 11) + 1) / 2^53."""
    return ((splitmix64(seed, n) >> np.uint64(11)).astype(np.float64) + 1.0) / 2.0**53


def unit_bytes(pattern: str, arg_bytes: int) -> int:
    """Bytes that arrive together: one chunk, else 64 B."""
    return arg_bytes if pattern in CHUNKED else UNIT_BYTES


def units(pattern: str, arg_bytes: int, n: int, space_bytes: int, seed: int = SEED) -> Units:
    """The first n units of a pattern over `space_bytes` of memory.

    seq : increasing;  rand64, chunk : uniform;  stride : 64 B every `arg_bytes`, the next 64 B column after a round
    mix90seq : sequential reads in the lower half, sequential writes in the upper;  mix90chunk, mix70chunk : chunks,
        each written with probability 0.1 or 0.3
    """
    index = np.arange(n, dtype=np.int64)
    write = uniform(seed + WRITE_STREAM, n) <= WRITE_SHARE.get(pattern, 0.0)
    size = unit_bytes(pattern, arg_bytes)
    if pattern == "seq":
        address = index * UNIT_BYTES % space_bytes
    elif pattern == "stride":
        per_round = space_bytes // arg_bytes
        address = index % per_round * arg_bytes + index // per_round * UNIT_BYTES % arg_bytes
    elif pattern == "mix90seq":
        half = space_bytes // 2
        reads, writes = np.cumsum(~write) - 1, np.cumsum(write) - 1
        address = np.where(write, half + writes * UNIT_BYTES % half, reads * UNIT_BYTES % half)
    else:
        address = (splitmix64(seed, n) % np.uint64(space_bytes // size)).astype(np.int64) * size
    return Units(address, write, size)


def arrivals_ps(n: int, gap_ps: float, *, poisson: bool, seed: int = SEED) -> Int64:
    """Instants at which n units arrive: every `gap_ps`, or with exponential gaps of that mean."""
    if not poisson:
        return (np.arange(n) * gap_ps).astype(np.int64)
    return np.cumsum(-np.log(uniform(seed + ARRIVAL_STREAM, n)) * gap_ps).astype(np.int64)
