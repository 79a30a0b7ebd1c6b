"""The KVMU: extents and reuse against twins, residency and conservation, table size."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from pydantic import ValidationError

from dre_sim.kvmu import KvmuConfig, KvmuState, fetch_list, hc_table_bytes
from resv.kv_cache import ConservationError
from resv.selection import ClusterTable, Counts, LayerSelection
from resv.trace import ModelShape
from tests import naive_dre
from tests.shapes import TINY


def shape_of(n_heads, head_dim=8, n_layers=2):
    return ModelShape(
        name="test", n_layers=n_layers, hidden=64, n_query_heads=n_heads, n_kv_heads=n_heads,
        head_dim=head_dim, ffn=64, vocab=64,
    )  # fmt: skip


def cluster_table(rng, n_cached, n_clusters, share_departed):
    members = rng.integers(0, n_clusters, n_cached)
    _, cluster_of_token, counts = np.unique(members, return_inverse=True, return_counts=True)
    c = len(counts)
    departure = np.full(c, -1, np.int32)
    left = rng.permutation(c)[: int(c * share_departed)]
    departure[left] = np.arange(len(left))
    return ClusterTable(
        cluster_of_token=cluster_of_token.astype(np.int32),
        codes=np.zeros(c, np.uint64),
        token_counts=counts.astype(np.int32),
        resident=departure < 0,
        departure=departure,
        last_append=np.zeros(c, np.int32),
    )


def random_selection(rng, n_heads, n_tables, n_cached=60, tables=None):
    """Whole clusters attended where there are tables, else single tokens."""
    if tables is None:
        tables = tuple(cluster_table(rng, n_cached, 12, rng.random()) for _ in range(n_tables))
    attended = rng.random((n_heads, n_cached)) < rng.random()
    resident = np.zeros((n_heads, n_cached), bool)
    if tables:
        for h in range(n_heads):
            table = tables[h % len(tables)]
            attended[h] = (rng.random(table.n_clusters) < rng.random())[table.cluster_of_token]
            resident[h] = table.resident[table.cluster_of_token]
    else:
        resident[:, rng.integers(0, n_cached + 1) :] = True
    return LayerSelection(5, attended, resident, np.ones_like(attended), Counts(), tables)


def kv_extents(selection, wanted, by_cluster, row_bytes, sector_bytes):
    """Twin: the K extents of all heads, then the V extents."""
    of_k = []
    for head, tokens in enumerate(wanted):
        position = naive_dre.tier_position(selection, head, by_cluster)
        of_k += naive_dre.sector_runs([position[int(t)] for t in np.flatnonzero(tokens)], row_bytes, sector_bytes)
    return of_k + of_k


@pytest.mark.parametrize("mapping", ["cluster", "arrival"])
@pytest.mark.parametrize("n_tables", [0, 1, 3])
def test_extents_are_the_sector_runs_that_cover_what_is_fetched(mapping, n_tables):
    rng = np.random.default_rng(n_tables)
    for _ in range(60):
        selection = random_selection(rng, 3, n_tables)
        config = KvmuConfig(mapping=mapping, sector_bytes=int(rng.choice([1, 16, 32, 100, 512])))
        shape = shape_of(3, head_dim=int(rng.choice([2, 8, 16])))
        got = fetch_list(config, KvmuState.empty(), selection, shape, n_new=4)
        by_cluster = mapping == "cluster" and n_tables > 0
        wanted = selection.attended & ~selection.resident
        expected = kv_extents(selection, wanted, by_cluster, shape.head_dim * 2, config.sector_bytes)
        assert got.extent_bytes.tolist() == expected
        assert got.n_tokens == wanted.sum()
        assert got.useful_bytes == wanted.sum() * 4 * shape.head_dim <= got.fetched_bytes
        assert got.work.link_bytes == got.fetched_bytes


@pytest.mark.parametrize("mapping", ["cluster", "arrival"])
@pytest.mark.parametrize("n_tables", [0, 1, 3])
def test_a_reuse_region_hits_what_a_least_recently_used_list_holds(mapping, n_tables):
    rng = np.random.default_rng(20 + n_tables)
    by_cluster = mapping == "cluster" and n_tables > 0
    shape = shape_of(3, head_dim=8, n_layers=2)
    hits_seen = misses_seen = 0
    for _ in range(12):
        capacity = int(rng.integers(0, 120))
        config = KvmuConfig(mapping=mapping, reuse="lru", reuse_bytes=capacity * 32 * 2 + 5, sector_bytes=16)
        twin, state, selection = (
            naive_dre.Lru(capacity),
            KvmuState.empty(),
            random_selection(rng, 3, n_tables),
        )
        for _ in range(8):
            selection = random_selection(rng, 3, n_tables, tables=selection.tables)
            got = fetch_list(config, state, selection, shape, n_new=1)
            state = got.state
            used, wanted = [], selection.attended & ~selection.resident
            for head in range(3):
                position = naive_dre.tier_position(selection, head, by_cluster)
                units = {}
                for t in sorted(map(int, np.flatnonzero(wanted[head])), key=position.__getitem__):
                    cluster = selection.tables[head % n_tables].cluster_of_token[t] if by_cluster else t
                    units.setdefault((head, int(cluster)), []).append(t)
                used += units.items()
            hits = twin.step([(key, len(tokens)) for key, tokens in used])
            for (head, unit), tokens in used:
                if (head, unit) in hits:
                    wanted[head, tokens] = False
            assert sum(state.tokens) <= capacity
            assert got.n_tokens == wanted.sum()
            assert got.extent_bytes.tolist() == kv_extents(selection, wanted, by_cluster, 16, 16)
            assert got.reuse_hit_bytes == 32 * sum(len(tokens) for key, tokens in used if key in hits)
            hits_seen += got.reuse_hit_bytes
            misses_seen += got.n_tokens
    assert hits_seen > 0
    assert misses_seen > 0


def test_bytes_selected_are_resident_plus_reused_plus_fetched():
    rng = np.random.default_rng(4)
    shape, config = shape_of(3), KvmuConfig(reuse="lru", reuse_bytes=4096)
    state, selection = KvmuState.empty(), random_selection(rng, 3, 3)
    for _ in range(50):
        selection = random_selection(rng, 3, 3, tables=selection.tables)
        got = fetch_list(config, state, selection, shape, n_new=1)
        state = got.state
        selected = int(selection.attended.sum()) * 2 * 8 * 2
        assert selected == got.resident_hit_bytes + got.reuse_hit_bytes + got.useful_bytes


def three_clusters():
    """Clusters of 4, 2 and 2 tokens, strewn over the stream; they left in the order 2, 0, 1."""
    return ClusterTable(
        cluster_of_token=np.array([0, 1, 0, 2, 0, 1, 0, 2], np.int32),
        codes=np.zeros(3, np.uint64),
        token_counts=np.array([4, 2, 2], np.int32),
        resident=np.zeros(3, bool),
        departure=np.array([1, 2, 0], np.int32),
        last_append=np.array([6, 5, 7], np.int32),
    )


def test_clusters_that_left_one_after_the_other_are_one_extent():
    table = three_clusters()
    for clusters, extents in (([2, 0], [6]), ([2, 1], [2, 2]), ([0, 1, 2], [8]), ([0], [4]), ([], [])):
        attended = np.isin(table.cluster_of_token, clusters)[None]
        selection = LayerSelection(0, attended, np.zeros((1, 8), bool), attended, Counts(), (table,))
        got = fetch_list(KvmuConfig(sector_bytes=16), KvmuState.empty(), selection, shape_of(1), n_new=1)
        assert got.extent_bytes.tolist() == [16 * n for n in extents * 2]


def test_in_order_of_arrival_the_same_tokens_are_strewn():
    table = three_clusters()
    attended = (table.cluster_of_token == 0)[None]
    selection = LayerSelection(0, attended, np.zeros((1, 8), bool), attended, Counts(), (table,))
    config = KvmuConfig(mapping="arrival", sector_bytes=16)
    assert fetch_list(config, KvmuState.empty(), selection, shape_of(1), n_new=1).extent_bytes.tolist() == [16] * 8


def test_as_much_leaves_as_comes_in_once_the_cache_is_over_capacity():
    selection = random_selection(np.random.default_rng(1), 2, 1)
    shape = shape_of(2)
    over = dataclasses.replace(
        selection, resident=np.zeros_like(selection.resident), attended=np.zeros_like(selection.attended)
    )
    under = dataclasses.replace(over, resident=np.ones_like(selection.resident))
    plans = [
        fetch_list(KvmuConfig(mapping=m), KvmuState.empty(), s, shape, n_new=7)
        for m, s in (("cluster", over), ("arrival", over), ("cluster", under))
    ]
    new_bytes = 7 * shape.kv_bytes_per_token_layer
    assert [p.offload_write_bytes for p in plans] == [new_bytes, new_bytes, 0]
    assert [p.reorder_bytes for p in plans] == [2 * new_bytes, 0, 0]


def test_table_overhead_is_1_67_pct_at_32_tokens_a_cluster():
    llama = shape_of(8, head_dim=128, n_layers=32)
    kv_bytes = 32 * 100 * llama.kv_bytes_per_token_layer
    shared = hc_table_bytes(llama, 100, 3200, 32, "layer") / kv_bytes
    per_head = hc_table_bytes(llama, 8 * 100, 3200, 32, "kv_head") / kv_bytes
    assert shared == (8 * 128 * 2 + 4 + 4 + 4 + 32 * 4) / 131_072 == pytest.approx(0.0167, abs=5e-5)
    assert per_head == (128 * 2 + 4 + 4 + 4 + 32 * 4) / 16_384 == pytest.approx(0.0242, abs=5e-5)


def test_a_fetch_plan_reports_the_size_of_its_tables():
    rng = np.random.default_rng(6)
    for n_tables, kind in ((1, "layer"), (3, "kv_head")):
        selection = random_selection(rng, 3, n_tables)
        got = fetch_list(KvmuConfig(), KvmuState.empty(), selection, shape_of(3), n_new=1, hash_bits=16)
        clusters = sum(t.n_clusters for t in selection.tables)
        assert got.table_bytes == hc_table_bytes(shape_of(3), clusters, 60, 16, kind)


def test_a_cluster_fetched_in_part_or_while_resident_breaks_conservation():
    table = three_clusters()
    attended = np.zeros((1, 8), bool)
    attended[0, 0] = True
    part = LayerSelection(3, attended, np.zeros((1, 8), bool), attended, Counts(), (table,))
    with pytest.raises(ConservationError, match="layer 3, KV head 0: 1 of the 4 tokens of cluster 0"):
        fetch_list(KvmuConfig(), KvmuState.empty(), part, shape_of(1), n_new=1)
    stays = dataclasses.replace(table, departure=np.array([-1, 1, 0], np.int32))
    whole = dataclasses.replace(part, attended=(table.cluster_of_token == 0)[None], tables=(stays,))
    with pytest.raises(ConservationError, match="departure -1"):
        fetch_list(KvmuConfig(), KvmuState.empty(), whole, shape_of(1), n_new=1)


def test_bad_input_is_named():
    selection = random_selection(np.random.default_rng(1), 3, 2)
    with pytest.raises(ValueError, match="layer 5 has 2 HC tables"):
        fetch_list(KvmuConfig(), KvmuState.empty(), selection, shape_of(3), n_new=1)
    with pytest.raises(ValidationError, match="mapping"):
        KvmuConfig(mapping="frame")


def test_heads_that_share_a_choice_lie_in_one_extent_per_run():
    rng = np.random.default_rng(3)
    one = rng.random(60) < 0.4
    resident = np.arange(60) >= 40
    masks = [np.tile(mask, (3, 1)) for mask in (one, resident)]
    selection = LayerSelection(5, *masks, np.ones((3, 60), bool), Counts())
    shape = TINY.model_copy(update={"n_kv_heads": 3, "n_query_heads": 6})
    config, empty = KvmuConfig(sector_bytes=1), KvmuState.empty()
    apart = fetch_list(config, empty, selection, shape, n_new=2)
    together = fetch_list(config, empty, selection, shape, n_new=2, heads_together=True)
    assert together.n_extents == apart.n_extents // 3
    assert together.fetched_bytes == apart.fetched_bytes == together.useful_bytes
    same = ("useful_bytes", "n_tokens", "resident_hit_bytes", "offload_write_bytes", "reorder_bytes", "table_bytes")
    assert all(getattr(together, name) == getattr(apart, name) for name in same)
    selection.attended[1, 0] ^= True
    with pytest.raises(ConservationError, match="KV heads that share a choice differ"):
        fetch_list(config, empty, selection, shape, n_new=2, heads_together=True)


def test_evicted_tokens_are_not_written_to_the_tier():
    kept = np.tile(np.arange(20) >= 12, (2, 1))
    selection = LayerSelection(0, kept, kept, kept, Counts())
    assert fetch_list(KvmuConfig(), KvmuState.empty(), selection, TINY, n_new=3).offload_write_bytes > 0
    evicting = LayerSelection(0, kept, kept, kept, Counts(), evicted=~kept)
    plan = fetch_list(KvmuConfig(), KvmuState.empty(), evicting, TINY, n_new=3)
    assert (plan.offload_write_bytes, plan.fetched_bytes, plan.n_extents) == (0, 0, 0)
