"""Hash-bit cluster unit (HCU): clusters a frame's tokens by their hash codes, counting every cycle.

Functional and cycle-counting on real codes, as docs/dre.md defines the unit. Knows no key, no second
and no joule; where codes come from and which clusters may take members is decided by the policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

UInt64 = NDArray[np.uint64]
Match = Literal["nearest", "first"]

MAX_HASH_BITS = 64


class HcuConfig(BaseModel):
    """Widths and depths of one HCU. Defaults: V-Rex (HPCA 2026, arXiv 2512.12284), core configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bits_per_cycle: int = Field(default=16, ge=1, le=64, description="hash bits one lane compares a cycle")
    xor_accumulators: int = Field(default=1, ge=1, le=1024, description="clusters compared at once, h")
    early_exit: bool = Field(default=True, description="a lane ends once it can no longer win")
    tile_bytes: int = Field(default=4096, ge=16, description="memory of cluster codes, in two buffers")
    current_bytes: int = Field(default=128, ge=8, description="memory of the current tokens' codes")
    # assumed: not in the paper; one 256-bit read a cycle
    table_bytes_per_cycle: int = Field(default=32, ge=1, description="rate at which tiles are loaded")


@dataclass(frozen=True)
class HcuResult:
    """One table's clustering of N tokens. Cycles are of the slowest core, counts are sums over the cores.

    compare_cycles : cycles in which comparators worked
    chunks_examined, chunks_skipped : add up to the chunks of every (token, cluster) pair there was
    updates : table updates, one per token;  founded : clusters founded
    assignment : (N,) int32, position in `cluster_codes`, or C + k for the k-th founded cluster
    """

    cycles: int
    compare_cycles: int
    chunks_examined: int
    chunks_skipped: int
    tile_bytes_read: int
    updates: int
    founded: int
    assignment: NDArray[np.int32]


def code_bytes(hash_bits: int) -> int:
    """Bytes in which one code is stored."""
    return -(-hash_bits // 8)


def simulate_hcu(
    config: HcuConfig,
    hash_bits: int,
    hamming_threshold: int,
    match: Match,
    new_codes: UInt64,
    cluster_codes: UInt64,
    n_cores: int = 1,
) -> HcuResult:
    """Cluster `new_codes` (N,) in stream order against `cluster_codes` (C,), low `hash_bits` bits used.

    `n_cores` is the number of cores the table is dealt to: all of the chip's for a table shared by the KV
    heads, one for a table of one KV head. Source: docs/dre.md, HCU.

    Raises
    ------
    ValueError
        hash_bits outside 1..64, threshold outside 1..hash_bits, n_cores < 1, codes that are not
        one-dimensional uint64 or have bits above `hash_bits`.
    """
    from dre_sim._hcu_kernels import HcuParams, run

    if not 1 <= hash_bits <= MAX_HASH_BITS:
        raise ValueError(f"hash_bits is {hash_bits}; allowed: 1 to {MAX_HASH_BITS}")
    if not 1 <= hamming_threshold <= hash_bits:
        raise ValueError(f"hamming_threshold is {hamming_threshold}; allowed: 1 to hash_bits ({hash_bits})")
    if match not in ("nearest", "first"):
        raise ValueError(f"match is {match!r}; allowed: 'nearest', 'first'")
    if n_cores < 1:
        raise ValueError(f"n_cores is {n_cores}; allowed: 1 or more")
    n_bytes = code_bytes(hash_bits)
    n_chunks = -(-hash_bits // config.bits_per_cycle)
    params = HcuParams(
        chunk_bits=config.bits_per_cycle,
        n_chunks=n_chunks,
        lanes=config.xor_accumulators,
        threshold=hamming_threshold,
        early_exit=config.early_exit,
        first_match=match == "first",
        tile_codes=config.tile_bytes // 2 // n_bytes,
        batch_codes=config.current_bytes // n_bytes,
        code_bytes=n_bytes,
        table_bytes_per_cycle=config.table_bytes_per_cycle,
        n_cores=n_cores,
    )
    counts, assignment = run(
        _checked_codes(new_codes, "new_codes", hash_bits),
        _checked_codes(cluster_codes, "cluster_codes", hash_bits),
        params,
    )
    return HcuResult(
        cycles=counts.cycles,
        compare_cycles=counts.compare_cycles,
        chunks_examined=counts.chunks_examined,
        chunks_skipped=counts.pairs * n_chunks - counts.chunks_examined,
        tile_bytes_read=counts.tile_bytes_read,
        updates=len(assignment),
        founded=counts.founded,
        assignment=assignment,
    )


def _checked_codes(codes: UInt64, name: str, hash_bits: int) -> UInt64:
    if codes.ndim != 1 or codes.dtype != np.uint64:
        raise ValueError(f"{name} must be (n,) uint64, got {codes.shape} {codes.dtype}")
    if hash_bits < MAX_HASH_BITS and codes.size and int(codes.max()) >> hash_bits:
        raise ValueError(f"{name}: a code has bits above hash_bits ({hash_bits}): {int(codes.max()):#x}")
    return np.ascontiguousarray(codes)
