"""Numba kernel of the hash-bit cluster unit: which chunk is examined when (docs/dre.md, HCU).

Knows tokens, codes and cycles; ranges and units are checked in `hcu.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray


class HcuParams(NamedTuple):
    """Scalars of one unit, derived from `HcuConfig` and the algorithm's fields."""

    chunk_bits: int
    n_chunks: int
    lanes: int
    threshold: int
    early_exit: bool
    first_match: bool
    tile_codes: int
    batch_codes: int
    code_bytes: int
    table_bytes_per_cycle: int
    n_cores: int


class HcuCounts(NamedTuple):
    """What the kernel counts. `compare_cycles` and `chunks_examined` are sums over the cores."""

    cycles: int
    compare_cycles: int
    chunks_examined: int
    pairs: int
    tile_bytes_read: int
    founded: int


@njit(cache=True, nogil=True)
def _lane(difference: Any, bound: int, p: HcuParams) -> tuple[int, int]:
    """Distance as far as it was counted, and chunks examined; low bits come first."""
    mask = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - p.chunk_bits)
    distance = 0
    for chunk in range(p.n_chunks):
        part = (difference >> np.uint64(chunk * p.chunk_bits)) & mask
        while part:
            part &= part - np.uint64(1)
            distance += 1
        if p.early_exit and distance >= bound:
            return distance, chunk + 1
    return distance, p.n_chunks


@njit(cache=True, nogil=True)
def _compare(
    token: Any, codes: Any, start: int, stop: int, best: int, index: int, p: HcuParams
) -> tuple[int, int, int, int]:
    """One token against codes[start:stop:n_cores] of one core: cycles, chunks, best distance, its index."""
    cycles, chunks = 0, 0
    stride = p.n_cores
    for first in range(start, stop, stride * p.lanes):
        if p.first_match and index >= 0:
            break
        bound, slowest = best, 0
        for i in range(first, min(stop, first + stride * p.lanes), stride):
            distance, examined = _lane(token ^ codes[i], bound, p)
            chunks += examined
            slowest = max(slowest, examined)
            if distance < best and not (p.first_match and index >= 0):
                best, index = distance, i
        cycles += slowest
    return cycles, chunks, best, index


@njit(cache=True, nogil=True)
def _table_pass(
    tokens: Any, codes: Any, n_table: int, core: int, best: Any, index: Any, p: HcuParams
) -> tuple[int, int, int]:
    """One core streams its share of the table past a batch of tokens: cycles, compare cycles, chunks."""
    own = (n_table - core + p.n_cores - 1) // p.n_cores
    cycles, compare_cycles, chunks = 0, 0, 0
    step = p.tile_codes * p.n_cores
    for tile in range((own + p.tile_codes - 1) // p.tile_codes):
        if tile == 0:
            cycles += _load_cycles(min(p.tile_codes, own), p)
        tile_cycles = 0
        start = core + tile * step
        for t in range(len(tokens)):
            spent, examined, best[t], index[t] = _compare(
                tokens[t], codes, start, min(n_table, start + step), best[t], index[t], p
            )
            tile_cycles += spent
            chunks += examined
        left = own - (tile + 1) * p.tile_codes
        cycles += max(tile_cycles, _load_cycles(max(0, min(p.tile_codes, left)), p))
        compare_cycles += tile_cycles
    return cycles, compare_cycles, chunks


@njit(cache=True, nogil=True)
def _load_cycles(n_codes: int, p: HcuParams) -> int:
    return (n_codes * p.code_bytes + p.table_bytes_per_cycle - 1) // p.table_bytes_per_cycle


@njit(cache=True, nogil=True)
def _winner(best: Any, index: Any, first_match: bool) -> int:
    """Reduce one token's bests over the cores; -1 where no core has a match."""
    winner, distance = -1, 0
    for core in range(len(best)):
        i, d = index[core], best[core]
        if i < 0:
            continue
        nearer = winner < 0 or (not first_match and d < distance)
        if nearer or (i < winner and (first_match or d == distance)):
            winner, distance = i, d
    return winner


@njit(cache=True, nogil=True)
def run(new_codes: Any, cluster_codes: Any, p: HcuParams) -> tuple[HcuCounts, NDArray[np.int32]]:
    """Assign every new code and count; see `hcu.simulate_hcu`."""
    n_new, n_table = len(new_codes), len(cluster_codes)
    codes = np.empty(n_table + n_new, np.uint64)
    codes[:n_table] = cluster_codes
    assignment = np.empty(n_new, np.int32)
    best = np.full((p.n_cores, n_new), p.threshold, np.int64)
    index = np.full((p.n_cores, n_new), -1, np.int64)
    reduction = 0
    while (1 << reduction) < p.n_cores:
        reduction += 1
    cycles, compare_cycles, chunks, tile_bytes = 0, 0, 0, 0
    n_codes, pairs = n_table, n_new * n_table
    for lo in range(0, n_new, p.batch_codes):
        hi = min(n_new, lo + p.batch_codes)
        slowest = 0
        for core in range(p.n_cores):
            spent, compared, examined = _table_pass(
                new_codes[lo:hi], codes, n_table, core, best[core, lo:hi], index[core, lo:hi], p
            )
            slowest = max(slowest, spent)
            compare_cycles += compared
            chunks += examined
        tile_bytes += n_table * p.code_bytes
        cycles += slowest
        for t in range(lo, hi):
            slowest = 0
            pairs += n_codes - n_table
            for core in range(p.n_cores):
                start = n_table + (core - n_table) % p.n_cores
                spent, examined, best[core, t], index[core, t] = _compare(
                    new_codes[t], codes, start, n_codes, best[core, t], index[core, t], p
                )
                slowest = max(slowest, spent)
                compare_cycles += spent
                chunks += examined
            winner = _winner(best[:, t], index[:, t], p.first_match)
            if winner < 0:
                winner = n_codes
                codes[n_codes] = new_codes[t]
                n_codes += 1
            assignment[t] = winner
            cycles += slowest + reduction + 3  # one cycle of update, two of pipeline
    counts = HcuCounts(cycles, compare_cycles, chunks, pairs, tile_bytes, n_codes - n_table)
    return counts, assignment
