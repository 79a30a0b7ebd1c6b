"""LXE: the dense engines of a V-Rex core, a dot-product engine (DPE) and a vector engine (VPE).

Exact cycles of a stated tile schedule, operations and SRAM bytes. The DPE is weight stationary: a tile of
`tree_inputs` x `mac_trees` weights sits in the MAC trees while the rows of the other operand pass, one
row a cycle, and the next tile is loaded behind it. What the paper leaves open (port width, pipeline
depth, operations per element) is a field or a constant here, marked "assumed". Knows no picosecond and
no device memory, but returns how often the weights have to stream from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from resv.trace import ModelShape

# VPE operations per element, one lane-cycle each; reductions and per-row reciprocals included. Counted
# from the formulas, not published.
VECTOR_OPS = {
    "norm": 4,  # square, accumulate, times 1/rms, times weight
    "rope": 3,  # two products, one sum
    "swiglu": 5,  # exp, add one, reciprocal, times gate, times up
    "residual": 1,
    "softmax": 5,  # maximum, subtract, exp, accumulate, scale
    "exp": 3,  # maximum, subtract, exp: the numerators that the threshold unit weighs
}
SOFTMAX_OPS = VECTOR_OPS["softmax"]
EXP_OPS = VECTOR_OPS["exp"]
# Mean over the elements of a Llama-3-8B layer (2 norms, RoPE, SwiGLU, 2 residuals: 128,000 / 35,840), up.
ELEMENTWISE_OPS = 4
VPE_LATENCY_CYCLES = 4  # assumed: read, two execution stages, write

Dealing = Literal["columns", "rows"]
Resident = Literal["activations", "partial_sums"]


class LxeConfig(BaseModel):
    """The LXE slices of a chip. Defaults: V-Rex8 (V-Rex, HPCA 2026, arXiv 2512.12284, section VI-A)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cores: int = Field(default=8, gt=0, le=4096)
    mac_trees: int = Field(default=64, gt=0, le=4096, description="output columns a core makes at once")
    tree_inputs: int = Field(default=64, gt=0, le=4096, description="products summed by one tree in a cycle")
    vpe_width: int = Field(default=64, gt=0, le=4096)
    frequency_hz: int = Field(default=800_000_000, gt=0)
    sram_bytes: int = Field(default=384 * 1024, gt=0, description="activations, weights, partial sums; a core's")
    operand_bytes: int = Field(default=2, gt=0, le=4, description="bf16")
    accumulator_bytes: int = Field(default=4, gt=0, le=8, description="fp32 partial sums")
    weight_port_bytes: int = Field(
        default=1024,
        gt=0,
        description="SRAM to MAC trees in a cycle; assumed: 118.94 mW of Table III is 149 pJ a cycle, about "
        "1 KiB of a 14 nm SRAM",
    )
    stream_bytes_per_cycle: int = Field(
        default=256,
        gt=0,
        description="weights reaching the chip in a cycle (204.8 GB/s at 800 MHz); only weighs one schedule "
        "against another",
    )
    memory_port_bytes: float | None = Field(
        default=None,
        ge=0.001,
        description="device-memory bytes that a core takes in per cycle; the cores share what streams evenly; "
        "null: as fast as memory delivers",
    )

    @property
    def tile_bytes(self) -> int:
        return self.mac_trees * self.tree_inputs * self.operand_bytes

    @property
    def tile_load_cycles(self) -> int:
        return _ceil(self.tile_bytes, self.weight_port_bytes)

    @property
    def tree_latency_cycles(self) -> int:
        """Multiply, the levels of the adder tree, accumulate."""
        return 2 + (self.tree_inputs - 1).bit_length()


@dataclass(frozen=True)
class GemmCycles:
    """A matrix product on the DPEs of all cores. Cycles are the slowest core's, the rest sums over cores.

    `weight_passes`: how often B streams from device memory because the rows do not fit in SRAM at once.
    """

    cycles: int
    macs: int
    sram_read_bytes: int
    sram_write_bytes: int
    weight_passes: int = 1
    dealing: Dealing = "columns"
    resident: Resident = "activations"


@dataclass(frozen=True)
class VectorCycles:
    """Element-wise work on the VPEs of all cores."""

    cycles: int
    ops: int


@dataclass(frozen=True)
class DenseLayerBound:
    """What one dense decoder layer must at least read, and the time that takes."""

    weight_bytes: int
    kv_bytes: int
    ps: int


def peak_flops(config: LxeConfig) -> float:
    """Products and sums of DPE and VPE, two operations each (Table I: 53.25 and 319.5 TFLOPS)."""
    lanes = config.mac_trees * config.tree_inputs + config.vpe_width
    return 2.0 * config.cores * lanes * config.frequency_hz


def gemm(config: LxeConfig, m: int, k: int, n: int) -> GemmCycles:
    """C[m, n] = A[m, k] · B[k, n], B streaming from device memory.

    Four schedules are compared, the one with the least max(cycles, weight stream) wins, then fewer
    cycles, then fewer SRAM bytes:

    - columns: blocks of `mac_trees` columns are dealt to the cores round robin, every core sees all rows;
      rows: every core sees all columns and ceil(m / cores) rows, weights are broadcast.
    - activations resident: the row block stays in SRAM while column blocks pass (K inside);
      partial sums resident: the outputs stay while K passes (columns inside).

    A row block is what fits beside two weight tiles; every block streams all weights again. Blocks are
    of equal size to one row. Raises ValueError where a dimension is not positive or no row fits.
    """
    if min(m, k, n) < 1:
        raise ValueError(f"a matrix product needs positive dimensions, got m={m}, k={k}, n={n}")
    return min(_schedules(config, m, k, n), key=lambda s: _cost(config, s, k, n))


def attention(config: LxeConfig, rows: int, group: int, head_dim: int, cached_tokens: NDArray[np.int64]) -> GemmCycles:
    """QK^T and PV of one layer, `rows * group` query rows per KV head over its cached and the new tokens.

    cached_tokens : (batch, H), attended cached tokens of each KV head
    KV heads go to the cores round robin and a core works them off one after the other. With more cores
    than heads a head's tokens are dealt in blocks of `mac_trees` to its cores, whose partial outputs are
    merged pairwise on the VPE; a core without a block has nothing to merge. Masked products of the new tokens are
    executed, so `macs` counts them.
    """
    tokens = [int(t) + rows for t in np.asarray(cached_tokens).ravel()]
    query_rows, heads = rows * group, len(tokens)
    passes = _attention_passes(config, query_rows, head_dim)
    sharers = _sharers(config, heads, max(tokens))
    tiles = [_attention_tiles(config, _largest_share(config, t, sharers), head_dim) for t in tokens]
    loads = [sum(tiles[core :: config.cores]) for core in range(min(config.cores, heads))]
    cycles = _stream_cycles(config, max(loads), query_rows, passes)
    products = [shape for t in tokens for shape in ((head_dim, t), (t, head_dim))]
    traffic = [_traffic(config, query_rows, k, n, passes) for k, n in products]
    query_bytes = heads * query_rows * head_dim * config.operand_bytes
    cycles += (sharers - 1).bit_length() * _vpe_cycles(config, query_rows * head_dim, 1)
    return GemmCycles(
        cycles=cycles,
        macs=2 * query_rows * head_dim * sum(tokens),
        sram_read_bytes=sum(read for read, _ in traffic),
        sram_write_bytes=sum(write for _, write in traffic) + query_bytes,
        weight_passes=passes,
    )


def attention_scores_cycles(config: LxeConfig, rows: int, depth: int, columns: int, heads: int) -> int:
    """Cycles of `heads` products [rows, depth] · [depth, columns]: queries times representative keys.

    Heads are dealt as in `attention`; nothing to score costs nothing.
    """
    if min(rows, depth, columns, heads) < 1:
        return 0
    blocks = _ceil(_ceil(columns, config.mac_trees), _sharers(config, heads, columns))
    tiles = _ceil(heads, config.cores) * blocks * _ceil(depth, config.tree_inputs)
    return _stream_cycles(config, tiles, rows, 1)


def port_cycles(config: LxeConfig, n_bytes: int) -> int:
    """Cycles in which the memory ports of all cores together take in `n_bytes`."""
    return math.ceil(n_bytes / (config.cores * config.memory_port_bytes)) if config.memory_port_bytes else 0


def vector(config: LxeConfig, elements: int, ops_per_element: int) -> VectorCycles:
    """Element-wise work dealt evenly to the VPEs, `vpe_width` elements and one operation a cycle."""
    if min(elements, ops_per_element) < 0:
        raise ValueError(f"vector work must not be negative, got {elements} elements x {ops_per_element}")
    cycles = _vpe_cycles(config, _ceil(elements, config.cores), ops_per_element)
    return VectorCycles(cycles, elements * ops_per_element)


def dense_layer_bound(
    shape: ModelShape, n_new: int, kv_len: int, dram_bytes_per_s: float, batch: int = 1
) -> DenseLayerBound:
    """Bandwidth bound of one decoder layer: its weights once, keys and values of all tokens once."""
    attention_elements = 2 * shape.hidden * (shape.n_query_heads + shape.n_kv_heads) * shape.head_dim
    weight_bytes = (attention_elements + 3 * shape.hidden * shape.ffn) * shape.weight_bits // 8
    kv_bytes = batch * (kv_len + n_new) * shape.kv_bytes_per_token_layer
    return DenseLayerBound(weight_bytes, kv_bytes, round((weight_bytes + kv_bytes) / dram_bytes_per_s * 1e12))


def _schedules(config: LxeConfig, m: int, k: int, n: int) -> list[GemmCycles]:
    """Every schedule of which at least one row fits beside two weight tiles."""
    by_columns, by_rows = _ceil(_ceil(n, config.mac_trees), config.cores), _ceil(n, config.mac_trees)
    found = [
        *_of_dealing(config, "columns", m, k, n, rows=m, blocks=by_columns),
        *_of_dealing(config, "rows", m, k, n, rows=_ceil(m, config.cores), blocks=by_rows),
    ]
    if not found:
        raise ValueError(
            f"sram_bytes ({config.sram_bytes}) holds no row of a product with k={k}, n={n} beside two "
            f"weight tiles of {config.tile_bytes} bytes"
        )
    return found


def _of_dealing(
    config: LxeConfig, dealing: Dealing, m: int, k: int, n: int, *, rows: int, blocks: int
) -> Iterator[GemmCycles]:
    """`rows` and column `blocks` are those of the slowest core, which sets cycles and passes."""
    free = config.sram_bytes - 2 * config.tile_bytes
    sums = config.mac_trees * config.accumulator_bytes
    row_bytes: dict[Resident, int] = {
        "activations": k * config.operand_bytes + sums,
        "partial_sums": config.tree_inputs * config.operand_bytes + blocks * sums,
    }
    # columns: every core with a block holds all rows; rows: every core with a row sees all weights.
    holders = min(config.cores, _ceil(n, config.mac_trees)) if dealing == "columns" else 1
    extra_weights = (min(config.cores, m) - 1) * k * n * config.operand_bytes if dealing == "rows" else 0
    for resident, needed in row_bytes.items():
        if needed > free:
            continue
        passes = _ceil(rows, free // needed)
        read, write = _traffic(config, m, k, n, passes)
        yield GemmCycles(
            cycles=_stream_cycles(config, blocks * _ceil(k, config.tree_inputs), rows, passes),
            macs=m * k * n,
            sram_read_bytes=read + passes * extra_weights,
            sram_write_bytes=write + passes * extra_weights + holders * m * k * config.operand_bytes,
            weight_passes=passes,
            dealing=dealing,
            resident=resident,
        )


def _cost(config: LxeConfig, schedule: GemmCycles, k: int, n: int) -> tuple[int, int, int]:
    weight_bytes = schedule.weight_passes * k * n * config.operand_bytes
    stream = max(_ceil(weight_bytes, config.stream_bytes_per_cycle), port_cycles(config, weight_bytes))
    sram_bytes = schedule.sram_read_bytes + schedule.sram_write_bytes
    return max(schedule.cycles, stream), schedule.cycles, sram_bytes


def _stream_cycles(config: LxeConfig, tiles: int, rows: int, passes: int) -> int:
    """First load exposed; each tile costs its rows or the load of the next tile; the last one drains."""
    load = config.tile_load_cycles
    base, extra = divmod(rows, passes)
    per_tile = extra * max(base + 1, load) + (passes - extra) * max(base, load)
    return load + tiles * per_tile - max(base, load) + base + config.tree_latency_cycles


def _traffic(config: LxeConfig, m: int, k: int, n: int, passes: int) -> tuple[int, int]:
    """SRAM bytes read and written by one core's product whose A is already there.

    Weights are staged and read once a pass, a row of A is read per column block, partial sums go out and
    back between K chunks, results are written once.
    """
    weights = k * n * config.operand_bytes * passes
    activations = m * k * config.operand_bytes * _ceil(n, config.mac_trees)
    sums = m * n * config.accumulator_bytes * (_ceil(k, config.tree_inputs) - 1)
    return weights + activations + sums, weights + sums + m * n * config.operand_bytes


def _ceil(amount: int, per: int) -> int:
    return -(-amount // per)


def _vpe_cycles(config: LxeConfig, elements: int, ops: int) -> int:
    return _ceil(elements, config.vpe_width) * ops + VPE_LATENCY_CYCLES if elements and ops else 0


def _attention_passes(config: LxeConfig, query_rows: int, head_dim: int) -> int:
    """Query, output sums and one block of scores per row have to fit; otherwise K and V stream again."""
    sums = (head_dim + config.mac_trees) * config.accumulator_bytes
    fit = (config.sram_bytes - 2 * config.tile_bytes) // (head_dim * config.operand_bytes + sums)
    if fit < 1:
        raise ValueError(f"sram_bytes ({config.sram_bytes}) holds no query row of head_dim {head_dim}")
    return _ceil(query_rows, fit)


def _sharers(config: LxeConfig, heads: int, columns: int) -> int:
    """Cores that work on one head: no more than it has blocks of columns."""
    return max(1, min(config.cores // heads, _ceil(columns, config.mac_trees)))


def _largest_share(config: LxeConfig, tokens: int, sharers: int) -> int:
    """Tokens of the core that gets the first block; the last block may be short and its own."""
    rounds, last = divmod(_ceil(tokens, config.mac_trees) - 1, sharers)
    full = rounds * config.mac_trees
    return full + config.mac_trees if last else full + (tokens - 1) % config.mac_trees + 1


def _attention_tiles(config: LxeConfig, tokens: int, head_dim: int) -> int:
    """Weight tiles of K^T (head_dim x tokens) and V (tokens x head_dim)."""
    scores = _ceil(head_dim, config.tree_inputs) * _ceil(tokens, config.mac_trees)
    context = _ceil(tokens, config.tree_inputs) * _ceil(head_dim, config.mac_trees)
    return scores + context
