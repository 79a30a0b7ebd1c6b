"""GPU kernels against closed forms and a twin, and their laws."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dre_sim import gpu_kernels as kernels
from dre_sim.lowering import dense_step
from dre_sim.workload import Gemm
from tests import naive_compute as naive
from tests.gpu_platforms import A100, ORIN
from tests.shapes import LLAMA3_8B

GEMMS = st.builds(
    lambda m, k, n, bits: Gemm("linear", m, k * 128, n, k * 128 * n * bits // 8),
    st.integers(1, 700),
    st.integers(1, 64),
    st.integers(1, 20_000),
    st.sampled_from([4, 8, 16]),
)


def test_one_row_of_weights_takes_their_bytes_at_the_usable_bandwidth() -> None:
    kernel = kernels.gemm(ORIN, Gemm("qkv", 1, 4096, 4096, 2 * 4096 * 4096))
    assert kernel.busy_ps == round(2 * 4096 * 4096 / 152.8e9 * 1e12) + ORIN.kernel_gap_ps
    assert (kernel.read_bytes, kernel.write_bytes, kernel.flops) == (2 * 4096 * 4096, 0, 2 * 4096 * 4096)


def test_a_large_product_reaches_the_measured_rate() -> None:
    """4096 rows: within 5 % of 33.8 TFLOPS, of which pipeline fill is 3 % and tiles fit the SMs evenly."""
    g = Gemm("qkv", 4096, 4096, 4096, 2 * 4096 * 4096)
    tflops = g.flops / kernels.gemm(ORIN, g).busy_ps
    assert 0.95 * 33.8 < tflops < 33.8


def test_integer_weights_bring_scales_and_unpacking() -> None:
    g = Gemm("down", 64, 4096, 4096, 4096 * 4096 // 2)
    kernel = kernels.gemm(ORIN, g)
    assert kernel.read_bytes == 4096 * 4096 // 2 + 4096 * 4096 // 128 * 4
    plain = kernels.gemm(ORIN, replace(g, weight_bytes=2 * 4096 * 4096))
    assert kernel.busy_ps < plain.busy_ps
    compute_bound, rows = replace(g, m=2048), 2048
    assert (
        kernels.gemm(ORIN, compute_bound).busy_ps
        > kernels.gemm(ORIN, Gemm("down", rows, 4096, 4096, 2 * 4096 * 4096)).busy_ps
    )


def test_a_second_block_of_rows_unpacks_four_bit_weights_again() -> None:
    """AWQ's kernel: 16 rows a block up to 64 rows, 32 up to 128, then 64."""
    config = ORIN.model_copy(update={"dram_bytes_per_s": 1e30, "kernel_gap_ps": 0, "l2_bytes_per_s": 1e30})
    busy = {m: kernels.gemm(config, Gemm("down", m, 4096, 4096, 4096 * 4096 // 2)).busy_ps for m in (16, 32, 64, 65)}
    assert busy[32] == pytest.approx(2 * busy[16], rel=0.01)
    assert busy[64] == pytest.approx(4 * busy[16], rel=0.01)
    assert busy[65] < 1.5 * busy[64]
    wide = {m: kernels.gemm(config, Gemm("down", m, 4096, 4096, 4096 * 4096)).busy_ps for m in (16, 32)}
    assert wide[32] == wide[16]


def test_int8_activations_run_at_the_int8_rate() -> None:
    g = Gemm("down", 2048, 4096, 4096, 4096 * 4096)
    fast = kernels.gemm(ORIN.model_copy(update={"activation": "int8"}), g).busy_ps
    assert 0.45 < fast / kernels.gemm(ORIN, replace(g, weight_bytes=2 * 4096 * 4096)).busy_ps < 0.6


@settings(max_examples=40, deadline=None)
@given(g=GEMMS, sms=st.integers(1, 20), unlimited=st.booleans())
def test_compute_time_is_that_of_the_twin(g: Gemm, sms: int, unlimited: bool) -> None:
    """Without a memory or launch limit a kernel takes what handing its tiles to the SMs takes."""
    slow_l2 = ORIN.l2_bytes_per_s if not unlimited else 1e18
    config = ORIN.model_copy(
        update={"sms": sms, "kernel_gap_ps": 0, "dram_bytes_per_s": 1e30, "l2_bytes_per_s": slow_l2}
    )
    assert kernels.gemm(config, g).busy_ps == pytest.approx(naive.gpu_gemm_ps(config, g), rel=1e-9, abs=1)


@settings(max_examples=150, deadline=None)
@given(
    g=GEMMS,
    field=st.sampled_from(["dram_bytes_per_s", "gemm_share", "fp32_flops", "l2_bytes_per_s", "kernel_gap_ps"]),
    grow=st.integers(0, 2),
)
def test_gemm_laws(g: Gemm, field: str, grow: int) -> None:
    kernel = kernels.gemm(ORIN, g)
    assert kernel.busy_ps >= kernel.dram_bytes / ORIN.dram_bytes_per_s * 1e12 - 1
    assert kernel.busy_ps >= kernel.flops / 42.6e12 * 1e12 - 1
    better = 0.5 if field == "kernel_gap_ps" else 1.2
    faster = ORIN.model_copy(update={field: type(getattr(ORIN, field))(getattr(ORIN, field) * better)})
    assert kernels.gemm(faster, g).busy_ps <= kernel.busy_ps
    more_rows = replace(g, m=g.m + 1 + 50 * grow)
    fewer_rows = replace(g, m=_rows_in_the_same_blocks(g, more_rows.m))
    assert kernels.gemm(ORIN, more_rows).busy_ps >= kernels.gemm(ORIN, fewer_rows).busy_ps


def _rows_in_the_same_blocks(g: Gemm, m: int) -> int:
    """Rows of g, or the fewest from which four-bit weights take the blocks that they take for m rows.

    Larger blocks unpack their weights less often: 65 rows in blocks of 32 may take less time than 64 in blocks of 16.
    """
    if not 0 < 8 * g.weight_bytes <= 4 * g.k * g.n:
        return g.m
    return max(g.m, *(last + 1 for last, _ in kernels.QUANT_TILES if m > last), 1)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 64),
    tokens=st.integers(0, 50_000),
    mode=st.sampled_from(["fused", "eager"]),
)
def test_attention_laws(rows: int, tokens: int, mode: str) -> None:
    config = ORIN.model_copy(update={"attention": mode})

    def cost(n_rows: int, n_tokens: int) -> kernels.Kernel:
        layer = dense_step(LLAMA3_8B, n_rows, n_tokens, n_layers=1).layers[0]
        return kernels.attention(config, layer.attention, layer.softmax_elements)

    base = cost(rows, tokens)
    kv_bytes = (tokens + rows) * LLAMA3_8B.kv_bytes_per_token_layer
    assert base.read_bytes >= kv_bytes
    assert base.busy_ps >= max(base.dram_bytes / ORIN.dram_bytes_per_s, base.flops / 42.6e12) * 1e12 - 1
    assert cost(rows, tokens + 100).busy_ps >= base.busy_ps
    assert cost(rows + 1, tokens).busy_ps >= base.busy_ps


@pytest.mark.parametrize(("rows", "fused", "eager"), [(1, 16 / 4, 1), (4, 16 / 16, 64 / 4), (10, 64 / 40, 64 / 10)])
def test_attention_computes_whole_tiles_of_rows(rows: int, fused: float, eager: float) -> None:
    """Fused: the rows of four query heads in tiles of 16, then 64; eager: those of one in tiles of 64, or alone."""
    layer = dense_step(LLAMA3_8B, rows, 1000, n_layers=1).layers[0]
    config = ORIN.model_copy(update={"dram_bytes_per_s": 1e30, "kernel_gap_ps": 0})
    macs = 32 * 128 * (1000 * rows + rows * (rows + 1) // 2) * 2
    kernel = kernels.attention(config, layer.attention, layer.softmax_elements)
    assert kernel.busy_ps == round(2 * macs * fused / config.flops_per_s(config.attention_share) * 1e12)
    kernel = kernels.attention(config.model_copy(update={"attention": "eager"}), layer.attention, 0)
    rate = config.cuda_flops_per_s if rows == 1 else config.flops_per_s(config.gemm_share)
    executed = macs + 2 * 32 * 128 * (rows * (rows - 1) // 2)
    assert kernel.busy_ps == round(2 * executed * eager / rate * 1e12)


def test_an_encoders_scores_are_written_and_read_where_attention_is_eager() -> None:
    """16 heads of 576 patches, 24 B a score as in the decoder; the product with V reads nothing from memory."""
    scores, context = Gemm(kernels.VISION_SCORES, 16 * 576, 64, 576), Gemm("vision_context", 16 * 576, 576, 64)
    config = ORIN.model_copy(update={"dram_bytes_per_s": 1e30})
    for attention, share, n_bytes in (("fused", ORIN.attention_share, 0), ("eager", ORIN.gemm_share, 16 * 576**2 * 24)):
        for g, expected in ((scores, n_bytes), (context, 0)):
            kernel = kernels.encoder_attention(config.model_copy(update={"attention": attention}), g)
            assert kernel.read_bytes == kernel.write_bytes == expected // 2
            assert kernel.busy_ps == round(g.flops / config.flops_per_s(share) * 1e12) + ORIN.kernel_gap_ps
            assert (kernel.flops, kernel.launches) == (2 * 16 * 576 * 576 * 64, 1)


def test_eager_attention_repeats_the_cache() -> None:
    layer = dense_step(LLAMA3_8B, 10, 40_000, n_layers=1).layers[0]
    fused = kernels.attention(ORIN, layer.attention, layer.softmax_elements)
    eager = kernels.attention(ORIN.model_copy(update={"attention": "eager"}), layer.attention, layer.softmax_elements)
    assert fused.dram_bytes == layer.attention.kv_read_bytes
    assert eager.dram_bytes > 10 * fused.dram_bytes
    assert eager.flops == fused.flops == 2 * layer.attention.macs


def test_eager_attention_computes_what_the_mask_discards() -> None:
    """512 new tokens and none cached: twice the scores, less half a diagonal, in 24 B each."""
    layer = dense_step(LLAMA3_8B, 512, 0, n_layers=1).layers[0]
    kernel = kernels.attention(ORIN.model_copy(update={"attention": "eager"}), layer.attention, layer.softmax_elements)
    scores, kv = 32 * 512 * 512, layer.attention.kv_read_bytes
    assert layer.attention.masked_scores == 32 * 512 * 511 // 2
    assert kernel.dram_bytes == 2 * kv + kv + 2 * 4 * kv + scores * kernels.EAGER_SCORE_BYTES


GGML = {"stack": "ggml"}


def test_llama_cpp_takes_so_many_bytes_a_clock_and_sm() -> None:
    """The A100 stays below its memory, the Orin's 16 SMs could take more than theirs gives."""
    g = Gemm("down", 1, 14336, 4096, 2 * 14336 * 4096)
    a100 = kernels.gemm(A100.model_copy(update=GGML), g)
    assert g.weight_bytes / (a100.busy_ps - kernels.GGML_KERNEL_PS) == pytest.approx(7.72 * 108 * 1.41e-3, rel=1e-6)
    orin = kernels.gemm(ORIN.model_copy(update=GGML), g)
    assert orin.busy_ps - kernels.GGML_KERNEL_PS == kernels.gemm(ORIN, g).busy_ps - ORIN.kernel_gap_ps


def test_llama_cpp_converts_around_products_of_more_rows() -> None:
    """q, k and v each take their own copy of the input; nothing of it leaves the A100's L2."""
    g = Gemm("qkv", 512, 4096, 6144, 2 * 4096 * 6144)
    plain = kernels.gemm(A100, g, 3)
    converted = kernels.gemm(A100.model_copy(update=GGML), g, 3)
    assert converted.launches == 3 * plain.launches
    n_bytes = 512 * (3 * 4096 + 6144) * 6
    moved_ps = n_bytes / A100.l2_bytes_per_s * 1e12
    fixed_ps = 9 * kernels.GGML_KERNEL_PS - 3 * A100.kernel_gap_ps
    assert converted.dram_bytes == plain.dram_bytes
    assert converted.busy_ps == pytest.approx(plain.busy_ps + moved_ps + fixed_ps, rel=1e-6)
    assert converted.flops == plain.flops


def test_small_intermediates_stay_in_l2() -> None:
    half = ORIN.l2_bytes // 2  # beside what is made of it
    assert (ORIN.spilled(half), ORIN.spilled(half + 1)) == (0, half + 1)
    assert kernels.elementwise(ORIN, 10_000, 4).dram_bytes == 0
    assert kernels.elementwise(ORIN, 100_000_000, 4).dram_bytes == 4 * 100_000_000


def test_gather_wastes_more_in_smaller_chunks() -> None:
    fine, coarse = kernels.gather(ORIN, 1 << 24, 256), kernels.gather(ORIN, 1 << 24, 8192)
    assert fine.busy_ps > coarse.busy_ps
    assert coarse.dram_bytes >= 2 << 24


def test_sort_runs_at_the_radix_rate() -> None:
    kernel = kernels.sort(A100, 256_000_000)
    assert 256e6 / kernel.busy_ps * 1e12 == pytest.approx(19.6e9, rel=0.01)
    mode = ORIN.power_modes["50w"]
    slower = min(mode.gpu_scale, mode.memory_scale)
    assert slower < max(mode.gpu_scale, mode.memory_scale)
    keys = 10_000  # four launches, and nothing leaves L2
    slow = kernels.sort(ORIN.model_copy(update={"power_mode": "50w"}), keys)
    assert slow.busy_ps == round(keys / (slower * ORIN.sort_keys_per_s) * 1e12) + 4 * ORIN.kernel_gap_ps
