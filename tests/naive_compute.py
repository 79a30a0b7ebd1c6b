"""Slow evident twins of `dre_sim.lxe` and of the GPU's tile model: tiles walked one by one and clocked."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from dre_sim.gpu_kernels import PIPELINE_FILL_K, SPLIT_K, TILES, GpuConfig
from dre_sim.lxe import LxeConfig
from dre_sim.workload import Gemm


@dataclass(frozen=True)
class Tile:
    """One weight tile in one core: `k` inputs by `n` columns, for `rows` rows; first, last of its K chain."""

    rows: int
    k: int
    n: int
    first_k: bool
    last_k: bool


def chunks(length: int, size: int) -> list[int]:
    """Lengths of the pieces of at most `size`."""
    return [min(size, length - start) for start in range(0, length, size)]


def core_cycles(rows_of_tiles: list[int], load_cycles: int, latency_cycles: int) -> int:
    """Clock a core: the loader stays at most one tile ahead of the trees; tiles swap between cycles."""
    cycle, current, rows_left = 0, -1, 0
    loaded, load_left = 0, load_cycles
    while current < len(rows_of_tiles) - 1 or rows_left:
        if rows_left == 0 and loaded > current + 1:
            current += 1
            rows_left = rows_of_tiles[current]
        if loaded < len(rows_of_tiles) and loaded <= current + 1:
            load_left -= 1
            if load_left == 0:
                loaded, load_left = loaded + 1, load_cycles
        if rows_left:
            rows_left -= 1
        cycle += 1
    return cycle + latency_cycles


def tree_latency(config: LxeConfig) -> int:
    return 1 + math.ceil(math.log2(config.tree_inputs)) + 1


def load_cycles(config: LxeConfig) -> int:
    return math.ceil(config.mac_trees * config.tree_inputs * config.operand_bytes / config.weight_port_bytes)


def rows_that_fit(config: LxeConfig, resident: str, k: int, column_blocks: int) -> int:
    """Grow a row block until the SRAM is full."""
    tile_bytes = config.mac_trees * config.tree_inputs * config.operand_bytes
    block_sums = config.mac_trees * config.accumulator_bytes
    rows = 0
    while True:
        n = rows + 1
        if resident == "activations":
            used = n * k * config.operand_bytes + n * block_sums
        else:
            used = n * config.tree_inputs * config.operand_bytes + n * column_blocks * block_sums
        if used + 2 * tile_bytes > config.sram_bytes:
            return rows
        rows = n


def row_blocks(rows: int, passes: int) -> list[int]:
    return [len(part) for part in np.array_split(np.arange(rows), passes)]


def dealt(m: int, n: int, config: LxeConfig, dealing: str) -> list[tuple[int, list[int]]]:
    """Per core: its rows and the widths of its column blocks."""
    blocks = chunks(n, config.mac_trees)
    if dealing == "columns":
        return [(m, blocks[core :: config.cores]) for core in range(config.cores)]
    return [(len(range(core, m, config.cores)), blocks) for core in range(config.cores)]


def tiles_of(blocks: list[int], row_block: int, k: int, config: LxeConfig, resident: str) -> list[Tile]:
    """Weight tiles of one pass in the order of the schedule."""
    k_chunks = chunks(k, config.tree_inputs)
    pairs = list(itertools.product(range(len(blocks)), range(len(k_chunks))))
    if resident == "partial_sums":
        pairs.sort(key=lambda pair: (pair[1], pair[0]))
    return [Tile(row_block, k_chunks[c], blocks[b], c == 0, c == len(k_chunks) - 1) for b, c in pairs]


def tile_traffic(tiles: list[Tile], config: LxeConfig) -> tuple[int, int]:
    """SRAM bytes read and written while the tiles pass."""
    read = write = 0
    for t in tiles:
        weights = t.k * t.n * config.operand_bytes
        read, write = read + weights, write + weights
        for _ in range(t.rows):
            read += t.k * config.operand_bytes
            if not t.first_k:
                read += t.n * config.accumulator_bytes
            write += t.n * (config.operand_bytes if t.last_k else config.accumulator_bytes)
    return read, write


@dataclass(frozen=True)
class NaiveGemm:
    cycles: int
    sram_read_bytes: int
    sram_write_bytes: int
    weight_passes: int
    dealing: str
    resident: str


def gemm_schedule(
    config: LxeConfig, m: int, k: int, n: int, dealing: str, resident: str, *, count_cycles: bool = True
) -> NaiveGemm | None:
    """One schedule, every core, every tile; None where no row fits."""
    cores = dealt(m, n, config, dealing)
    slowest_rows = max(rows for rows, blocks in cores if blocks)
    fit = rows_that_fit(config, resident, k, max(len(blocks) for _, blocks in cores))
    if fit == 0:
        return None
    passes = math.ceil(slowest_rows / fit)
    cycles = read = write = 0
    for rows, blocks in cores:
        if rows == 0 or not blocks:
            continue
        tiles = [t for r in row_blocks(rows, passes) for t in tiles_of(blocks, r, k, config, resident)]
        if count_cycles and rows == slowest_rows:
            clocked = core_cycles([t.rows for t in tiles], load_cycles(config), tree_latency(config))
            cycles = max(cycles, clocked)
        r, w = tile_traffic(tiles, config)
        read, write = read + r, write + w + rows * k * config.operand_bytes
    return NaiveGemm(cycles, read, write, passes, dealing, resident)


def attention_cycles(config: LxeConfig, query_rows: int, head_dim: int, tokens: list[int], passes: int) -> int:
    """Deal heads (or a head's token blocks) to cores, clock each core, merge what cores share."""
    blocks_of_longest = len(chunks(max(tokens), config.mac_trees))
    sharers = max(1, min(config.cores // len(tokens), blocks_of_longest))
    work: dict[int, list[int]] = {}
    for head, t in enumerate(tokens):
        blocks = chunks(t, config.mac_trees)
        for part in range(sharers):
            core = (head + part * len(tokens)) % config.cores
            mine = sum(blocks[part::sharers])
            work.setdefault(core, []).append(mine)
    slowest = 0
    for heads in work.values():
        rows: list[int] = []
        for block in row_blocks(query_rows, passes):
            for t in heads:
                for k, n in ((head_dim, t), (t, head_dim)):
                    rows += [block] * (len(chunks(k, config.tree_inputs)) * len(chunks(n, config.mac_trees)))
        slowest = max(slowest, core_cycles(rows, load_cycles(config), tree_latency(config)))
    while sharers > 1:
        slowest += math.ceil(query_rows * head_dim / config.vpe_width) + 4
        sharers = math.ceil(sharers / 2)
    return slowest


def gpu_gemm_ps(config: GpuConfig, g: Gemm) -> float:
    """Fastest of every tile and split, and of the CUDA cores: thread blocks handed to SMs one by one."""
    bits = 8 * g.weight_bytes / (g.k * g.n)
    unpack = 0 if bits >= 16 else (2 if bits <= 4 else 1)
    sm_flops = config.peak_flops["fp16"] * config.gemm_share / config.sms
    found = [(g.flops + 2 * unpack * g.k * g.n) / config.fp32_flops]
    awq = (16, 128) if g.m <= 64 else (32, 128) if g.m <= 128 else (64, 128)
    for (rows, columns), split in itertools.product([awq] if bits <= 4 else TILES, SPLIT_K):
        mac_s = 2 * rows * columns / sm_flops
        load_s = 2 * (rows + columns) / (config.l2_bytes_per_s / config.sms)
        unpack_s = columns * unpack / (config.fp32_flops / 2 / config.sms)
        block_s = (g.k / split + PIPELINE_FILL_K) * (max(mac_s, load_s) + unpack_s)
        waves, busy = 0, config.sms
        for _ in itertools.product(range(0, g.m, rows), range(0, g.n, columns), range(split)):
            if busy == config.sms:
                waves, busy = waves + 1, 0
            busy += 1
        found.append(waves * block_s)
    return min(found) * 1e12
