"""A layer's prediction on the DRE: sums over tables and heads, and the comparison with the policy."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import pytest

from dre_sim.dre import DisagreementError, simulate_dre_layer, table_indices
from dre_sim.hcu import HcuConfig, simulate_hcu
from dre_sim.kvmu import KvmuConfig, KvmuState, fetch_list
from dre_sim.wtu import WtuConfig, simulate_wtu
from resv.policies.resv import ReSV
from resv.selection import ClusterTable, ClusterUpdate, Counts, LayerSelection, ScoreRows
from resv.trace import ModelShape
from resv.wicsum import WicsumConfig, bucketed


class Policy(NamedTuple):
    hash_bits: int = 32
    hamming_threshold: int = 7
    match: str = "nearest"
    wicsum: WicsumConfig = WicsumConfig()


def leader_clustering(tokens, codes, eligible, threshold):
    """The algorithm in plain words: nearest eligible cluster below the threshold, or a new one."""
    known = {int(c): int(codes[c]) for c in eligible}
    answer = []
    for token in map(int, tokens):
        distance, cluster = min(((token ^ code).bit_count(), c) for c, code in known.items())
        if distance >= threshold:
            cluster = len(codes) + sum(c >= len(codes) for c in known)
            known[cluster] = token
        answer.append(cluster)
    return np.array(answer, np.int32)


def selection_of(rng, n_tables, n_heads=4, n_clusters=40, n_new=6, n_rows=8):
    tables, updates, rows = [], [], []
    for _ in range(n_tables):
        codes = rng.integers(0, 1 << 32, n_clusters, dtype=np.uint64)
        eligible = np.flatnonzero(rng.random(n_clusters) < 0.6).astype(np.int32)
        new = codes[rng.integers(0, n_clusters, n_new)] ^ (np.uint64(1) << rng.integers(0, 32, n_new, dtype=np.uint64))
        nothing = np.zeros(n_clusters, np.int32)
        tables.append(ClusterTable(np.empty(0, np.int32), codes, nothing, nothing == 0, nothing - 1, nothing))
        updates.append(ClusterUpdate(new, eligible, leader_clustering(new, codes, eligible, 7)))
    for _ in range(n_heads):
        scores = (rng.integers(0, 256, (n_rows, n_clusters)) / 16).astype(np.float32)
        counts = rng.integers(1, 40, n_clusters, dtype=np.int32)
        mask, _ = bucketed(scores, counts, WicsumConfig())
        rows.append(ScoreRows(scores, counts, np.arange(n_clusters, dtype=np.int32), mask.any(axis=0)))
    cached = np.zeros((n_heads, 0), bool)
    return LayerSelection(2, cached, cached, cached, Counts(), tuple(tables), tuple(updates), tuple(rows))


@pytest.mark.parametrize("n_cores", [1, 3, 4, 8])
@pytest.mark.parametrize("n_tables", [1, 4])
def test_a_layers_job_is_the_sum_of_its_units_on_the_busiest_core(n_tables, n_cores):
    selection = selection_of(np.random.default_rng(n_tables), n_tables)
    job = simulate_dre_layer(HcuConfig(), WtuConfig(), Policy(), selection, n_cores)
    heads = [simulate_wtu(WtuConfig(), WicsumConfig(), r.scores, r.token_counts) for r in selection.rows]
    hcus = [
        simulate_hcu(HcuConfig(), 32, 7, "nearest", u.new_codes, t.codes[u.eligible], n_cores if n_tables == 1 else 1)
        for t, u in zip(selection.tables, selection.updates, strict=True)
    ]
    loads = [sum(h.cycles for h in hcus[core::n_cores]) for core in range(n_cores)]
    assert job.hcu_cycles == max(loads)
    assert job.hcu_chunks == sum(h.chunks_examined for h in hcus)
    assert job.hcu_updates == 6 * n_tables
    assert job.hcu_table_bytes == 4 * sum(len(u.eligible) for u in selection.updates)
    assert job.wtu_elements == 4 * 8 * 40 + sum(h.elements_visited for h in heads)
    assert (job.wtu_rows, job.wtu_spills, job.wtu_union_words) == (32, 0, 32)
    assert job.kvmu_lookups == sum(int(r.selected.sum()) for r in selection.rows)
    if n_cores <= 4:
        assert job.wtu_cycles == max(sum(h.cycles for h in heads[core::n_cores]) for core in range(n_cores))
    else:
        assert max(h.cycles for h in heads) / 2 < job.wtu_cycles < max(h.cycles for h in heads)


def test_two_threshold_units_a_core_count_as_twice_the_cores():
    selection = selection_of(np.random.default_rng(8), 1)
    doubled = simulate_dre_layer(HcuConfig(), WtuConfig(cores=2), Policy(), selection, 2)
    assert doubled.wtu_cycles == simulate_dre_layer(HcuConfig(), WtuConfig(), Policy(), selection, 4).wtu_cycles


def test_positions_among_eligible_clusters_become_indices_of_the_table():
    eligible = np.array([2, 5, 9], np.int32)
    assert table_indices(np.array([0, 2, 3, 4, 3], np.int32), eligible, 11).tolist() == [2, 9, 11, 12, 11]


def test_a_difference_stops_the_run_and_names_layer_and_place():
    selection = selection_of(np.random.default_rng(0), 4)
    wrong = selection.updates[2].assignment.copy()
    wrong[3] += 1
    updates = list(selection.updates)
    updates[2] = dataclasses.replace(updates[2], assignment=wrong)
    with pytest.raises(DisagreementError, match="layer 2, HC table 2: the HCU puts token 3 into cluster"):
        run(dataclasses.replace(selection, updates=tuple(updates)))
    flipped = selection.rows[1].selected.copy()
    flipped[17] = not flipped[17]
    rows = list(selection.rows)
    rows[1] = dataclasses.replace(rows[1], selected=flipped)
    with pytest.raises(DisagreementError, match=r"layer 2, KV head 1: the WTU .* cluster 17 "):
        run(dataclasses.replace(selection, rows=tuple(rows)))
    short = dataclasses.replace(rows[1], selected=selection.rows[1].selected[:-1])
    rows[1] = short
    with pytest.raises(DisagreementError, match="KV head 1"):
        run(dataclasses.replace(selection, rows=tuple(rows)))


def test_a_policy_with_another_threshold_than_the_unit_is_caught():
    selection = selection_of(np.random.default_rng(0), 1)
    with pytest.raises(DisagreementError, match="KV head 0"):
        simulate_dre_layer(HcuConfig(), WtuConfig(), Policy(wicsum=WicsumConfig(ratio=0.6)), selection, 8)
    with pytest.raises(DisagreementError, match="HC table 0"):
        simulate_dre_layer(HcuConfig(), WtuConfig(), Policy(hamming_threshold=1), selection, 8)


@pytest.mark.parametrize("recent", ["candidate", "exempt"])
@pytest.mark.parametrize("table", ["layer", "kv_head"])
@pytest.mark.parametrize("match", ["nearest", "first"])
def test_the_units_agree_with_resv_along_a_stream_that_leaves_the_device(table, match, recent):
    shape = ModelShape(name="test", n_layers=2, hidden=64, n_query_heads=8, n_kv_heads=4, head_dim=16, ffn=64, vocab=64)
    rng = np.random.default_rng(5)
    scenes = rng.standard_normal((6, 4, 1, 16))
    fetched = 0
    for wicsum in (WicsumConfig(), WicsumConfig(edges="exponent", exit="group"), WicsumConfig(score_bits=6)):
        policy = ReSV(
            match=match, table=table, recent=recent, recent_bytes=60 * shape.kv_bytes_per_token, wicsum=wicsum
        )
        state = policy.start(shape, 1)
        for frame in range(24):
            keys = scenes[frame // 2 % 6] + 0.3 * rng.standard_normal((4, 5, 16))
            queries = 2 * rng.standard_normal((8, 5, 16))
            keys, queries = keys.astype(np.float32), queries.astype(np.float32)
            if frame:
                selection = state.select(queries, keys)
                job = simulate_dre_layer(HcuConfig(), WtuConfig(), policy, selection, 8)
                assert job.hcu_updates == 5 * len(selection.tables)
                assert job.wtu_rows == 4 * 10
                plan = fetch_list(KvmuConfig(), KvmuState.empty(), selection, shape, n_new=5)
                assert plan.n_tokens == selection.fetched_tokens.sum()
                fetched += plan.n_tokens
            state.append(keys, [5])
    assert fetched > 0


def run(selection):
    return simulate_dre_layer(HcuConfig(), WtuConfig(), Policy(), selection, 8)
