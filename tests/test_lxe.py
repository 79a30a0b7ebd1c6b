"""LXE: closed forms, the cycle-by-cycle twin, laws of the schedule, the dense-layer bound."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dre_sim import lxe
from dre_sim.lxe import LxeConfig
from tests import naive_compute as naive
from tests.shapes import LLAMA3_8B

# Small enough for the twin to clock, uneven enough to reach every edge.
SMALL = st.builds(
    LxeConfig,
    cores=st.integers(1, 5),
    mac_trees=st.sampled_from([2, 4, 8]),
    tree_inputs=st.sampled_from([2, 4, 6, 8]),
    vpe_width=st.integers(1, 8),
    sram_bytes=st.integers(600, 4000),
    weight_port_bytes=st.integers(4, 64),
    stream_bytes_per_cycle=st.integers(1, 64),
    memory_port_bytes=st.sampled_from([None, 0.5, 2.0, 26.6]),
)
SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))


@pytest.mark.parametrize(("cores", "tflops"), [(8, 53.25), (48, 319.5)])
def test_peak_is_the_published_one(cores: int, tflops: float) -> None:
    assert lxe.peak_flops(LxeConfig(cores=cores)) / 1e12 == pytest.approx(tflops, rel=1e-3)


@settings(max_examples=150, deadline=None)
@given(config=SMALL, sizes=SIZES)
def test_gemm_is_the_best_schedule_of_the_twin(config: LxeConfig, sizes: tuple[int, int, int]) -> None:
    m, k, n = sizes
    schedules = [
        naive.gemm_schedule(config, m, k, n, dealing, resident)
        for dealing in ("columns", "rows")
        for resident in ("activations", "partial_sums")
    ]

    def cost(s: naive.NaiveGemm) -> tuple[int, int, int]:
        weights = s.weight_passes * k * n * config.operand_bytes
        stream = int(np.ceil(weights / config.stream_bytes_per_cycle))
        if config.memory_port_bytes is not None:
            stream = max(stream, int(np.ceil(weights / (config.cores * config.memory_port_bytes))))
        return max(s.cycles, stream), s.cycles, s.sram_read_bytes + s.sram_write_bytes

    possible = [s for s in schedules if s is not None]
    if not possible:
        with pytest.raises(ValueError, match="holds no row"):
            lxe.gemm(config, m, k, n)
        return
    got = lxe.gemm(config, m, k, n)
    best = min(possible, key=cost)
    assert (got.cycles, got.sram_read_bytes, got.sram_write_bytes, got.weight_passes, got.dealing) == (
        best.cycles,
        best.sram_read_bytes,
        best.sram_write_bytes,
        best.weight_passes,
        best.dealing,
    )
    assert got.macs == m * k * n


@settings(max_examples=60, deadline=None)
@given(
    config=SMALL,
    rows=st.integers(1, 6),
    group=st.integers(1, 3),
    head_dim=st.integers(1, 10),
    cached=st.lists(st.integers(0, 60), min_size=1, max_size=8),
)
def test_attention_agrees_with_the_twin(
    config: LxeConfig, rows: int, group: int, head_dim: int, cached: list[int]
) -> None:
    got = lxe.attention(config, rows, group, head_dim, np.array([cached], dtype=np.int64))
    tokens = [c + rows for c in cached]
    cycles = naive.attention_cycles(config, rows * group, head_dim, tokens, got.weight_passes)
    assert got.cycles == cycles
    assert got.macs == 2 * rows * group * head_dim * sum(tokens)
    read, write = 0, 0
    for t in tokens:
        for k, n in ((head_dim, t), (t, head_dim)):
            for block in naive.row_blocks(rows * group, got.weight_passes):
                blocks = naive.chunks(n, config.mac_trees)
                tiles = naive.tiles_of(blocks, block, k, config, "activations")
                r, w = naive.tile_traffic(tiles, config)
                read, write = read + r, write + w
    query_bytes = len(cached) * rows * group * head_dim * config.operand_bytes
    assert (got.sram_read_bytes, got.sram_write_bytes) == (read, write + query_bytes)


def test_keys_and_values_stream_again_for_query_rows_beyond_the_sram() -> None:
    """A row of 128: query 256 B, sums and 64 scores 768 B; 368 rows beside two tiles in 384 KiB."""
    cached = np.full((1, 8), 1000, dtype=np.int64)
    passes = [lxe.attention(LxeConfig(), rows, 2, 128, cached).weight_passes for rows in (184, 185, 368, 369)]
    assert passes == [1, 2, 2, 3]


def test_closed_form_of_a_frame_step_projection() -> None:
    """8 cores x 64 columns: 4,096 columns are 8 blocks a core, 64 K chunks, 10 rows each, 8 load, 8 drain."""
    got = lxe.gemm(LxeConfig(), 10, 4096, 4096)
    assert got.cycles == 8 + 8 * 64 * 10 + 8
    assert (got.weight_passes, got.dealing) == (1, "columns")


def test_one_row_waits_for_the_weight_port() -> None:
    """Decode: a tile of 8 KiB takes 8 cycles through a 1 KiB port, the row one."""
    assert lxe.gemm(LxeConfig(), 1, 4096, 4096).cycles == 8 + 8 * 64 * 8 - 8 + 1 + 8


def test_rows_beyond_the_sram_stream_the_weights_again() -> None:
    few, many = lxe.gemm(LxeConfig(), 10, 4096, 28672), lxe.gemm(LxeConfig(), 1000, 4096, 28672)
    assert few.weight_passes == 1
    assert many.weight_passes > 1
    smaller = lxe.gemm(LxeConfig(sram_bytes=64 * 1024), 1000, 4096, 28672)
    assert smaller.weight_passes > many.weight_passes


def test_a_vision_block_is_dealt_by_rows_so_that_weights_stream_once() -> None:
    got = lxe.gemm(LxeConfig(), 576, 1024, 4096)
    assert (got.weight_passes, got.dealing) == (1, "rows")


def test_ports_of_all_cores_together_take_in_what_streams() -> None:
    config = LxeConfig(cores=8, memory_port_bytes=26.6)
    assert lxe.port_cycles(config, 0) == 0
    assert lxe.port_cycles(config, 2128) == 10  # 8 x 26.6 = 212.8 B a cycle
    assert lxe.port_cycles(config, 2129) == 11
    assert lxe.port_cycles(LxeConfig(cores=8), 10**12) == 0


def test_a_narrow_port_favours_the_schedule_that_streams_weights_less_often() -> None:
    """Two passes by columns take fewer cycles until every pass has to come through the ports."""
    free, narrow = (LxeConfig(memory_port_bytes=port) for port in (None, 2.0))
    chosen = [lxe.gemm(config, 576, 512, 2048) for config in (free, narrow)]
    assert [(c.weight_passes, c.dealing) for c in chosen] == [(2, "columns"), (1, "rows")]


def _stream_or_cycles(config: LxeConfig, sizes: tuple[int, int, int]) -> int:
    got = lxe.gemm(config, *sizes)
    weights = got.weight_passes * sizes[1] * sizes[2] * config.operand_bytes
    return max(got.cycles, -(-weights // config.stream_bytes_per_cycle))


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 2000), st.integers(1, 5000), st.integers(1, 9000)),
    cores=st.integers(1, 64),
    field=st.sampled_from(["cores", "sram_bytes", "weight_port_bytes", "stream_bytes_per_cycle"]),
    factor=st.integers(2, 5),
)
def test_more_hardware_is_never_slower(sizes: tuple[int, int, int], cores: int, field: str, factor: int) -> None:
    config = LxeConfig(cores=cores)
    more = LxeConfig(**{**config.model_dump(), field: getattr(config, field) * factor})
    assert _stream_or_cycles(more, sizes) <= _stream_or_cycles(config, sizes)


@settings(max_examples=100, deadline=None)
@given(sizes=st.tuples(st.integers(1, 600), st.integers(1, 3000), st.integers(1, 3000)), grown=st.integers(0, 2))
def test_more_work_is_never_faster_and_never_beats_the_peak(sizes: tuple[int, int, int], grown: int) -> None:
    config = LxeConfig()
    m, k, n = (size + (i == grown) * 37 for i, size in enumerate(sizes))
    assert _stream_or_cycles(config, (m, k, n)) >= _stream_or_cycles(config, sizes)
    per_cycle = config.cores * config.mac_trees * config.tree_inputs
    assert lxe.gemm(config, *sizes).cycles * per_cycle >= sizes[0] * sizes[1] * sizes[2]


@settings(max_examples=100, deadline=None)
@given(
    cores=st.integers(1, 32),
    tokens=st.integers(0, 5000),
    rows=st.integers(1, 25),
    width=st.sampled_from([16, 64]),
)
def test_attention_and_vector_laws(cores: int, tokens: int, rows: int, width: int) -> None:
    cached = np.full((1, 8), tokens, dtype=np.int64)
    config = LxeConfig(cores=cores, vpe_width=width)
    base = lxe.attention(config, rows, 4, 128, cached).cycles
    assert lxe.attention(config, rows, 4, 128, cached + 64).cycles >= base
    assert lxe.attention(config, rows + 1, 4, 128, cached).cycles >= base
    ops = lxe.vector(config, tokens, 3)
    assert ops.ops == 3 * tokens
    wider = LxeConfig(cores=cores + 1, vpe_width=2 * width)
    assert lxe.vector(wider, tokens, 3).cycles <= ops.cycles
    assert ops.cycles * width * cores >= ops.ops


@pytest.mark.parametrize("cached", [0, 10, 50, 100, 1000])
def test_more_cores_are_never_slower_at_a_short_cache(cached: int) -> None:
    """Cores without a block of tokens have no partial output to merge."""
    tokens = np.full((1, 8), cached, dtype=np.int64)
    cycles = [lxe.attention(LxeConfig(cores=n), 10, 4, 128, tokens).cycles for n in (1, 8, 16, 24, 48)]
    assert cycles == sorted(cycles, reverse=True)


def test_scores_are_the_first_half_of_attention() -> None:
    """Queries times representative keys cost what QK^T over as many tokens costs."""
    assert lxe.attention_scores_cycles(LxeConfig(), 40, 128, 1250, 8) == 8 + 2 * 20 * 40 + 8
    assert lxe.attention_scores_cycles(LxeConfig(cores=4), 40, 128, 1250, 8) == 8 + 2 * 2 * 20 * 40 + 8
    assert lxe.attention_scores_cycles(LxeConfig(), 40, 128, 0, 8) == 0


def test_nothing_to_do_costs_no_vector_cycle() -> None:
    assert lxe.vector(LxeConfig(), 0, 4) == lxe.VectorCycles(0, 0)


def test_mean_elementwise_operations_follow_from_the_table() -> None:
    hidden, ffn, rope = 4096, 14336, (32 + 8) * 128
    ops = lxe.VECTOR_OPS
    total = 2 * hidden * (ops["norm"] + ops["residual"]) + rope * ops["rope"] + ffn * ops["swiglu"]
    elements = 4 * hidden + rope + ffn
    assert (total, elements) == (128_000, 35_840)
    assert -(-total // elements) == lxe.ELEMENTWISE_OPS


@pytest.mark.parametrize(("cached", "milliseconds", "kv_mb"), [(1024, 2.151, 4.24), (40_960, 2.949, 167.8)])
def test_dense_layer_bound_of_llama3_8b(cached: int, milliseconds: float, kv_mb: float) -> None:
    bound = lxe.dense_layer_bound(LLAMA3_8B, 10, cached, 204.8e9)
    assert bound.weight_bytes == 436_207_616
    assert bound.kv_bytes / 1e6 == pytest.approx(kv_mb, rel=2e-3)
    assert bound.ps / 1e9 == pytest.approx(milliseconds, abs=5e-4)


def test_dense_layer_is_bound_by_memory_not_by_the_trees() -> None:
    """At 10 rows the trees need a small part of the time that the weights need to arrive."""
    gemms = ((4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096))
    cycles = sum(lxe.gemm(LxeConfig(), 10, k, n).cycles for k, n in gemms)
    assert cycles / 0.8e9 < 0.05 * lxe.dense_layer_bound(LLAMA3_8B, 10, 1024, 204.8e9).ps / 1e12


@pytest.mark.parametrize("bad", [{"cores": 0}, {"mac_trees": -1}, {"sram_bytes": 0}, {"colour": 1}])
def test_bad_fields_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        LxeConfig(**bad)


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="positive dimensions, got m=0"):
        lxe.gemm(LxeConfig(), 0, 4, 4)
    with pytest.raises(ValueError, match="must not be negative"):
        lxe.vector(LxeConfig(), -1, 4)
    with pytest.raises(ValueError, match="holds no query row"):
        lxe.attention(LxeConfig(sram_bytes=17_000), 1, 4, 128, np.zeros((1, 8), dtype=np.int64))


def test_import_stays_light() -> None:
    code = "import sys, dre_sim.lxe; print([m for m in ('numba', 'torch', 'yaml') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
