"""Work built from published figures: fetch lists, bytes and DRE jobs against closed forms."""

from __future__ import annotations

import pytest

from dre_sim.lowering import dense_step
from dre_sim.statistics import OperatingPoint, statistics_step
from dre_sim.workload import LayerWork
from tests.shapes import TINY

# Of 1,000 cached tokens 100 are on the device and half of the others is fetched: 14 clusters of 32, and 2 tokens.
POINT = OperatingPoint(ratio=0.5, resident_tokens=100, hash_bits=24, buckets_visited=5)


def second_layer(point: OperatingPoint = POINT, batch: int = 1, **changes: float) -> LayerWork:
    return statistics_step(TINY.model_copy(update=changes), 10, 1000, point, batch).layers[1]


@pytest.mark.parametrize("batch", [1, 3])
def test_a_share_of_what_is_offloaded_comes_in_clusters_of_one_head(batch: int) -> None:
    layer, token_bytes = second_layer(batch=batch), TINY.head_dim * 2
    assert layer.fetch is not None
    one_head = [32 * token_bytes] * 14 + [2 * token_bytes]
    assert layer.fetch.extent_bytes.tolist() == one_head * 2 * 2 * batch
    assert layer.fetch.useful_bytes == layer.fetch.link_bytes == 450 * batch * TINY.kv_bytes_per_token_layer
    assert layer.fetch.n_tokens == 450 * 2 * batch
    assert layer.attention.cached_tokens.tolist() == [[550, 550]] * batch
    assert layer.attention.kv_read_bytes == (550 + 10) * batch * TINY.kv_bytes_per_token_layer
    assert layer.attention.chunk_bytes == 32 * token_bytes
    assert layer.softmax_elements == batch * TINY.n_query_heads * (10 * 550 + 10 * 11 // 2)


def test_everything_attended_to_is_a_dense_step() -> None:
    work = statistics_step(TINY, 10, 1000, OperatingPoint(ratio=1.0, predict="none"), 2)
    dense = dense_step(TINY, 10, 1000, 2)
    for got, expected in zip(work.layers, dense.layers, strict=True):
        assert got.attention.cached_tokens.tolist() == expected.attention.cached_tokens.tolist()
        assert got.attention.kv_read_bytes == expected.attention.kv_read_bytes
        assert got.softmax_elements == expected.softmax_elements
        assert got.prediction is None
    nothing = second_layer(OperatingPoint(ratio=0.0, resident_tokens=5000))
    assert (nothing.fetch, nothing.attention.cached_tokens.tolist()) == (None, [[1000, 1000]])


@pytest.mark.parametrize(("changes", "share"), [({"kv_bits": 4}, 0.25), ({"kv_bytes_factor": 0.25}, 0.25)])
def test_a_narrower_cache_is_fetched_and_read_in_as_many_bytes_less(changes: dict[str, float], share: float) -> None:
    wide, narrow = second_layer(), second_layer(**changes)
    assert wide.fetch is not None
    assert narrow.fetch is not None
    assert narrow.fetch.extent_bytes.tolist() == (share * wide.fetch.extent_bytes).tolist()
    assert narrow.attention.kv_read_bytes == share * wide.attention.kv_read_bytes


@pytest.mark.parametrize("kv_bits", [4, 8, 16])
@pytest.mark.parametrize("batch", [1, 3])
def test_new_tokens_are_hashed_and_compared_and_queries_scored_with_every_cluster(batch: int, kv_bits: int) -> None:
    """1,000 tokens are 32 clusters; four query heads of ten tokens score them."""
    p = second_layer(batch=batch, kv_bits=kv_bits).prediction
    assert p is not None
    assert p.hash_gemm is not None
    assert p.query_gemm is not None
    assert (p.hash_gemm.m, p.hash_gemm.k, p.hash_gemm.n) == (10 * batch, 32, 24)
    assert p.hash_gemm.weight_bytes == 32 * 24 * kv_bits // 8
    assert (p.query_gemm.m, p.query_gemm.k, p.query_gemm.n) == (10 * batch, 64, 64)
    assert p.query_gemm.weight_bytes == 64 * 64 * 2
    rows = 10 * TINY.n_query_heads * batch
    assert (p.clusters, p.score_rows, p.score_depth, p.exp_elements) == (32, rows, 16, 32 * rows)
    assert p.score_macs == rows * 32 * 16
    assert p.score_read_bytes == batch * 32 * 2 * 16 * kv_bits // 8
    assert (p.new_tokens, p.tables, p.comparisons, p.kv_heads) == (10 * batch, batch, 10 * batch * 32, 2 * batch)
    for predict in ("same_layer", "next_layer"):
        point = POINT.model_copy(update={"predict": predict})
        first, second, _ = (layer.prediction for layer in statistics_step(TINY, 10, 1000, point).layers)
        assert first is not None
        assert second is not None
        assert first.query_gemm is None
        assert (second.query_gemm is None) == (predict == "same_layer")


@pytest.mark.parametrize("batch", [1, 3])
def test_units_compare_every_chunk_and_rescan_every_row(batch: int) -> None:
    """24 bits are two chunks of 16 and 3 bytes; 32 clusters are two groups of 16 lanes and one mask word."""
    p = second_layer(batch=batch).prediction
    assert p is not None
    job = p.dre
    assert job is not None
    assert (job.hcu_chunks, job.hcu_updates) == (batch * 10 * 32 * 2, batch * 10)
    assert job.hcu_table_bytes == batch * 32 * 3
    # A core holds 16 codes: 48 bytes load in 2 cycles, 2 chunks each; update, pipeline, and a reduction of two cores.
    assert job.hcu_cycles == batch * (2 + 10 * 16 * 2 + 10 * (3 + 1))
    rows = 10 * TINY.n_query_heads * batch
    assert job.wtu_cycles == rows // 2 * (2 + 6 + 5 * (2 + 1) + 1)
    assert (job.wtu_rows, job.wtu_elements, job.wtu_union_words) == (rows, rows * (32 + 5 * 32), rows)
    assert job.kvmu_lookups == 2 * batch * 18  # of 550 tokens
    assert (job.wtu_spills, job.wtu_spill_bytes) == (0, 0)


def test_rows_longer_than_the_memories_spill_as_often_as_they_are_scanned() -> None:
    """5,000 clusters: written once in 2 bytes, then 2 + 2 bytes in each of 1 + 5 passes."""
    work = statistics_step(TINY, 10, 5000, POINT.model_copy(update={"tokens_per_cluster": 1}))
    prediction = work.layers[0].prediction
    assert prediction is not None
    assert prediction.dre is not None
    assert prediction.dre.wtu_spills == prediction.dre.wtu_rows == 40
    assert prediction.dre.wtu_spill_bytes == 40 * (5000 * 2 + 6 * 5000 * 4)
