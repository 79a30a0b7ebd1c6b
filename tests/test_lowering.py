"""Counting: parameters, FLOPs and bytes of a step against closed forms and published totals."""

from dataclasses import replace

import numpy as np
import pytest

from dre_sim.lowering import LayerTransfers, dense_step, linear_gemms, lower, vision_gemms, vision_vector_elements
from dre_sim.workload import FetchWork, Method
from resv.selection import ClusterTable, ClusterUpdate, Counts, LayerSelection, ScoreRows, Selection
from resv.trace import Step
from tests.shapes import LLAMA3_8B, SIGLIP_L_384, TINY


def test_a_llama3_8b_layer_streams_436_megabytes_of_weights() -> None:
    weights = sum(g.weight_bytes for g in linear_gemms(LLAMA3_8B, 10))
    assert weights == pytest.approx(436.2e6, rel=1e-3)


def test_weights_of_a_decode_step_are_the_15_01_gigabytes_that_are_measured_against() -> None:
    work = dense_step(LLAMA3_8B, 1, 4, kind="decode")
    gemms = [g for layer in work.layers for g in layer.gemms] + list(work.head)
    assert sum(g.weight_bytes for g in gemms) == pytest.approx(15.01e9, rel=1e-3)
    assert work.vision == ()


def test_linear_flops_follow_the_closed_form_of_a_swiglu_layer() -> None:
    s, n = LLAMA3_8B, 10
    q, kv = s.n_query_heads * s.head_dim, s.n_kv_heads * s.head_dim
    expected = 2 * n * (2 * s.hidden * q + 2 * s.hidden * kv + 3 * s.hidden * s.ffn)
    assert sum(g.flops for g in linear_gemms(s, n)) == expected


def test_siglip_l_384_costs_about_192_gmacs_and_316_million_weights() -> None:
    gemms = vision_gemms(SIGLIP_L_384, 1, 10, 4096)
    encoder = [g for g in gemms if g.name != "projector"]
    assert sum(g.macs for g in encoder) == pytest.approx(192.07e9, rel=0.04)
    assert sum(g.weight_bytes for g in encoder) / 2 == pytest.approx(316.28e6, rel=0.06)


def test_images_of_a_frame_share_weights_and_are_projected_as_one_frame() -> None:
    tiled = SIGLIP_L_384.model_copy(update={"images_per_frame": 3})
    for one, three in zip(vision_gemms(SIGLIP_L_384, 2, 10, 4096), vision_gemms(tiled, 2, 10, 4096), strict=True):
        times = 1 if one.name == "projector" else 3
        assert (three.macs, three.weight_bytes) == (times * one.macs, one.weight_bytes)
    assert vision_vector_elements(tiled, 2) == 3 * vision_vector_elements(SIGLIP_L_384, 2)
    per_layer = 576 * (4 * 1024 + 4096) + 16 * 576 * 576  # norms and residuals, GELU, softmax
    assert vision_vector_elements(SIGLIP_L_384, 2) == 2 * 24 * per_layer


def test_attention_counts_cached_tokens_and_the_causal_half_of_the_new_ones() -> None:
    work = dense_step(TINY, 3, 7)
    a = work.layers[0].attention
    pairs = TINY.n_kv_heads * (3 * 7 + 3 * 4 // 2)
    assert a.macs == 2 * TINY.group * TINY.head_dim * pairs
    assert a.kv_read_bytes == (7 + 3) * TINY.kv_bytes_per_token_layer


def test_a_layers_elements_follow_the_closed_forms() -> None:
    """Three new tokens behind seven, two streams: a probability per pair; two norms and residuals, RoPE, SwiGLU."""
    layer = dense_step(TINY, 3, 7, batch=2).layers[0]
    assert layer.softmax_elements == 2 * TINY.n_query_heads * (3 * 7 + 3 * 4 // 2)
    assert layer.vector_elements == 2 * 3 * (4 * 64 + (4 + 2) * 16 + 2 * 128)
    assert layer.kv_write_bytes == 2 * 3 * TINY.kv_bytes_per_token_layer


def test_batch_multiplies_rows_and_cache_but_not_weights() -> None:
    one, four = dense_step(LLAMA3_8B, 10, 1000), dense_step(LLAMA3_8B, 10, 1000, batch=4)
    for a, b in zip(one.layers[0].gemms, four.layers[0].gemms, strict=True):
        assert (b.m, b.weight_bytes) == (4 * a.m, a.weight_bytes)
    assert four.layers[0].attention.macs == 4 * one.layers[0].attention.macs
    assert four.layers[0].kv_write_bytes == 4 * one.layers[0].kv_write_bytes


def _selection(n_cached: int, kept: int) -> Selection:
    attended = np.zeros((TINY.n_kv_heads, n_cached), dtype=bool)
    attended[:, :kept] = True
    counts = Counts(score_macs=96, score_elements=6)
    layer = LayerSelection(0, attended, np.zeros_like(attended), np.ones_like(attended), counts)
    step = Step("frame", n_cached, 3)
    layers = tuple(LayerSelection(i, attended, layer.resident, layer.candidates, layer.counts) for i in range(3))
    return Selection("topk", step, layers)


def test_lowering_keeps_every_byte_the_kv_management_reported() -> None:
    selections = [_selection(50, 20), _selection(50, 30)]
    fetches = [FetchWork(np.array([512, 1024]), 1100, 20), FetchWork(np.array([2048]), 2048, 30)]
    transfers = [[LayerTransfers(f, 64, 32)] * 3 for f in fetches]
    work = lower(TINY, selections, transfers, "next_layer", Method())
    layer = work.layers[1]
    assert layer.fetch is not None
    assert layer.fetch.link_bytes == 512 + 1024 + 2048
    assert (layer.fetch.useful_bytes, layer.offload_write_bytes, layer.reorder_bytes) == (3148, 128, 64)
    assert layer.attention.cached_tokens.tolist() == [[20, 20], [30, 30]]
    assert (work.batch, work.kv_len_tokens, work.n_new) == (2, 50, 3)


def test_what_is_read_of_the_device_comes_in_the_runs_that_are_attended_to() -> None:
    """Two runs of three and four tokens a head, K or V of one head; everything attended to is one stream."""
    counts, tokens = Counts(score_macs=96, score_elements=6), TINY.head_dim * TINY.kv_bits // 8
    nothing = [[LayerTransfers(FetchWork(np.zeros(0, dtype=np.int64), 0, 0), 0, 0)] * 3]
    for picked, chunk in (([1, 2, 3, 10, 11, 12, 13], 7 * tokens // 2), (range(20), 0)):
        attended = np.zeros((TINY.n_kv_heads, 20), dtype=bool)
        attended[:, list(picked)] = True
        everything = np.ones_like(attended)
        layers = tuple(LayerSelection(i, attended, everything, everything, counts) for i in range(3))
        selection = Selection("topk", Step("frame", 20, 3), layers)
        work = lower(TINY, [selection], nothing, "next_layer", Method())
        assert work.layers[0].attention.chunk_bytes == chunk


def test_scored_keys_keep_their_depth_whatever_streams_hold() -> None:
    """Streams of unlike cluster counts: the mean is rounded, elements of a key are not."""
    nothing = FetchWork(np.zeros(0, dtype=np.int64), 0, 0)
    selections = []
    for clusters in (9, 31, 58):
        one = _selection(60, 20)
        scored = 3 * TINY.n_query_heads * clusters
        counts = Counts(score_macs=scored * TINY.head_dim, score_elements=scored)
        selections.append(replace(one, layers=tuple(replace(layer, counts=counts) for layer in one.layers)))
    work = lower(TINY, selections, [[LayerTransfers(nothing, 0, 0)] * 3] * 3, "next_layer", Method())
    assert {layer.prediction.score_depth for layer in work.layers if layer.prediction} == {TINY.head_dim}


def test_the_first_layer_predicts_with_its_own_query_and_later_ones_project_a_predicted_one() -> None:
    transfers = [[LayerTransfers(FetchWork(np.zeros(0, dtype=np.int64), 0, 0), 0, 0)] * 3]
    work = lower(TINY, [_selection(50, 20)], transfers, "next_layer", Method())
    predictions = [layer.prediction for layer in work.layers]
    assert predictions[0] is not None
    assert predictions[1] is not None
    assert predictions[0].query_gemm is None
    assert predictions[1].query_gemm is not None
    assert work.layers[0].fetch is None


def _clustering(columns: int, eligible: int, n_tables: int, **counts: int) -> Selection:
    """Two KV heads with four query rows a new token; three new tokens clustered in each table."""
    one = _selection(50, 20)
    nothing = np.zeros(columns, np.int32)
    table = ClusterTable(nothing, nothing.astype(np.uint64), nothing, nothing == 0, nothing, nothing)
    update = ClusterUpdate(np.zeros(3, np.uint64), np.arange(eligible, dtype=np.int32), np.zeros(3, np.int32))
    rows = ScoreRows(np.zeros((6, columns), np.float32), nothing, nothing, nothing == 0)
    scored = 3 * TINY.n_query_heads * columns
    made = Counts(score_macs=scored * 16, score_elements=scored, exp_elements=scored, **counts)
    layers = (
        replace(la, counts=made, tables=(table,) * n_tables, updates=(update,) * n_tables, rows=(rows,) * 2)
        for la in one.layers
    )
    return Selection("resv", one.step, tuple(layers))


@pytest.mark.parametrize("kv_bits", [4, 8, 16])
@pytest.mark.parametrize("n_tables", [1, 2])
def test_a_prediction_asks_for_what_its_streams_cluster_and_score(n_tables: int, kv_bits: int) -> None:
    """Streams of 9 and 11 clusters, of which 5 and 7 take members; a key is hashed and scored once."""
    shape = TINY.model_copy(update={"kv_bits": kv_bits})
    kept = {"table_read_bytes": 100, "table_write_bytes": 50, "vector_elements": 7}
    selections = [_clustering(9, 5, n_tables, **kept), _clustering(11, 7, n_tables, **kept)]
    nothing = [[LayerTransfers(FetchWork(np.zeros(0, dtype=np.int64), 0, 0), 0, 0)] * 3] * 2
    layer = lower(shape, selections, nothing, "next_layer", Method(hash_bits=24)).layers[1]
    assert layer.vector_elements == dense_step(shape, 3, 50, batch=2).layers[1].vector_elements + 2 * 7
    p = layer.prediction
    assert p is not None
    assert p.hash_gemm is not None
    assert p.query_gemm is not None
    hashed, depth = 2 * 3 * n_tables, 2 * 16 // n_tables
    assert (p.hash_gemm.m, p.hash_gemm.k, p.hash_gemm.n) == (hashed, depth, 24)
    assert p.hash_gemm.weight_bytes == depth * 24 * kv_bits // 8
    assert (p.query_gemm.m, p.query_gemm.k, p.query_gemm.n, p.query_gemm.weight_bytes) == (6, 64, 64, 64 * 64 * 2)
    assert (p.new_tokens, p.tables, p.comparisons) == (6, 2 * n_tables, 3 * n_tables * (5 + 7))
    assert (p.clusters, p.score_rows, p.score_depth, p.kv_heads) == (10, 24, 16, 4)
    assert (p.score_macs, p.exp_elements) == (12 * 20 * 16, 12 * 20)
    assert p.score_read_bytes == 2 * 20 * 16 * kv_bits // 8
    assert (p.table_read_bytes, p.table_write_bytes) == (200, 100)
    fewer = [_clustering(9, 5, n_tables, query_columns=24), _clustering(11, 7, n_tables, score_rows=4)]
    p = lower(shape, fewer, nothing, "next_layer", Method(heads_together=True)).layers[1].prediction
    assert p is not None
    assert p.query_gemm is not None
    assert (p.hash_gemm, p.query_gemm.n, p.kv_heads, p.score_rows) == (None, 24, 2, 12 + 4)


def test_streams_that_disagree_on_the_step_are_refused() -> None:
    other = Selection("topk", Step("decode", 50, 1), _selection(50, 20).layers)
    with pytest.raises(ValueError, match="same kind of step"):
        lower(TINY, [_selection(50, 20), other], [[], []], "none", Method())
