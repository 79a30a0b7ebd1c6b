"""ReSV against a slow twin of the whole pass, and what top-k and full select.

Laws of all policies are in test_policy_conformance.py.
"""

from dataclasses import asdict

import numpy as np
import pytest
from pydantic import ValidationError

from resv._arrays import round_bf16
from resv.hashing import hash_codes, hyperplanes
from resv.policies import POLICIES, ReSV, TopK, run_layer
from resv.policies.base import run_layers
from resv.wicsum import WicsumConfig
from tests import naive_resv as naive
from tests.shapes import TINY
from tests.tiny_trace import TinyTrace

CAPACITY = 24
RECENT_BYTES = CAPACITY * TINY.kv_bytes_per_token
EXEMPT = {"recent": "exempt", "recent_bytes": RECENT_BYTES}


def run(policy, **trace_options):
    trace = TinyTrace(**trace_options)
    return run_layer(policy, trace, trace.layer_trace)


# --- ReSV --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["layer", "kv_head"])
@pytest.mark.parametrize("options", [{}, {"recent_bytes": RECENT_BYTES}, EXEMPT], ids=["all", "offload", "exempt"])
def test_resv_agrees_with_its_slow_twin(table, options):
    """All of probe 2 again: codes one by one, means of listed members, rows in rational arithmetic."""
    policy = ReSV(table=table, predict="same_layer", wicsum=WicsumConfig(selector="exact"), **options)
    layer, first = TinyTrace().layer_trace, TinyTrace.probes[2].first_token
    got = run(policy)[2]
    stored = layer.keys[:, :first].transpose(1, 0, 2).reshape(first, 1 if table == "layer" else 2, -1)
    planes = hyperplanes(stored.shape[2], 32, policy.seed)
    twins = [naive.Table(32, 7) for _ in range(stored.shape[1])]
    lengths = [4] * 17 + [2]  # the probe cuts the last frame
    capacity = CAPACITY * len(twins) if options else None
    naive.cluster_stream(twins, hash_codes(stored, planes).T, lengths, capacity)
    for head in range(2):
        twin, rows = twins[head % len(twins)], got.rows[head]
        competing = [i for i, c in enumerate(twin.clusters) if not (options is EXEMPT and c["departure"] < 0)]
        assert rows.candidates.tolist() == competing
        members = [twin.clusters[i]["members"] for i in competing]
        means = np.array([round_bf16(layer.keys[head, m].mean(axis=0)) for m in members])
        query = layer.queries[2][2 * head : 2 * head + 2].reshape(-1, 16)
        logits = query.astype(float) @ means.T / 4
        np.testing.assert_allclose(rows.scores, np.exp(logits - logits.max(1, keepdims=True)), rtol=2**-7)
        chosen = set().union(*(naive.wicsum_exact(row, rows.token_counts, 0.3) for row in rows.scores))
        assert set(np.flatnonzero(rows.selected).tolist()) == chosen
        kept = {t for i in chosen for t in members[i]} | (set(range(first)) - {t for m in members for t in m})
        assert set(np.flatnonzero(got.attended[head]).tolist()) == kept
        assert set(np.flatnonzero(got.candidates[head]).tolist()) == {t for m in members for t in m}


def test_clusters_are_selected_whole_and_new_tokens_join_a_copy_of_the_table():
    got = run(ReSV(table="kv_head", hamming_threshold=10, recent_bytes=RECENT_BYTES))[2]
    for head, (table, update) in enumerate(zip(got.tables, got.updates, strict=True)):
        for cluster in range(table.n_clusters):
            members = table.cluster_of_token == cluster
            assert len(set(got.attended[head, members].tolist())) == 1
            assert members.sum() == table.token_counts[cluster]
        assert np.array_equal(update.eligible, np.flatnonzero(table.resident))
        assert update.assignment.max() < table.n_clusters + len(update.new_codes)
        joined = update.assignment[update.assignment < table.n_clusters]
        assert set(joined.tolist()) <= set(update.eligible.tolist())


@pytest.mark.parametrize("table", ["layer", "kv_head"])
def test_counts_follow_from_the_shapes(table):
    got = run(ReSV(predict="same_layer", table=table))[1]
    n_new, n_tables, rows_of_head = 4, len(got.tables), 2 * 4
    clusters = [one.n_clusters for one in got.tables]
    assigned = [set(update.assignment.tolist()) for update in got.updates]
    touched = sum(map(len, assigned))
    founded = sum(cluster >= n for n, of_table in zip(clusters, assigned, strict=True) for cluster in of_table)
    scored = 2 // n_tables * sum(clusters)
    counts = got.counts
    assert counts.hash_macs == n_new * 32 * 32
    assert n_new * sum(clusters) <= counts.hamming_compares <= n_new * sum(clusters) + n_new * founded
    assert counts.score_elements == counts.exp_elements == rows_of_head * scored
    assert counts.score_macs == rows_of_head * scored * 16
    assert counts.score_elements * 32 >= counts.scanned_elements >= counts.score_elements
    assert 2 * rows_of_head <= counts.exact_prefix_elements <= counts.selected_prefix_elements <= counts.score_elements
    assert counts.rows_without_mass == 0
    key, index = 32 // n_tables * 2, 4
    assert counts.table_write_bytes == n_tables * n_new * index + touched * (key + index) + founded * 4
    assert counts.table_read_bytes == index * (scored + got.selected_tokens.sum()) + key * (touched - founded)


def test_sinks_are_attended_with_their_whole_cluster_and_do_not_compete():
    got = run(ReSV(n_sink=3))[2]
    sinks = np.isin(got.tables[0].cluster_of_token, got.tables[0].cluster_of_token[:3])
    assert got.attended[:, sinks].all()
    assert np.array_equal(got.candidates[0], ~sinks)


def test_topk_keeps_each_rows_heaviest_and_nothing_else():
    layer = TinyTrace().layer_trace
    for probe, got in enumerate(run(TopK(k=6, predict="same_layer"))):
        for head in range(2):
            logits = layer.queries[probe][2 * head : 2 * head + 2].reshape(-1, 16)
            logits = logits @ layer.keys[head, : got.n_cached].T
            expected = set().union(*(naive.topk(row, 6) for row in logits))
            assert set(np.flatnonzero(got.attended[head]).tolist()) == expected


@pytest.mark.parametrize("policy", [TopK(k=6), ReSV(), POLICIES["rekv"](r=3)])
def test_equal_policies_select_the_same(policy):
    trace = TinyTrace()
    one, other, again = run_layers(
        [policy, policy.model_copy(), type(policy)(**policy.model_dump())], trace, trace.layer_trace
    )
    for a, b, c, alone in zip(one, other, again, run(policy), strict=True):
        assert np.array_equal(a.attended, alone.attended)
        assert np.array_equal(b.attended, alone.attended)
        assert np.array_equal(c.attended, alone.attended)


def test_the_fetch_of_full_is_what_lies_below_the_window_and_costs_no_other_work():
    for probe, got in zip(TinyTrace.probes, run(POLICIES["full"](recent_bytes=RECENT_BYTES)), strict=True):
        assert got.fetched_tokens.tolist() == [max(0, probe.first_token - CAPACITY)] * 2
        assert not any(asdict(got.counts).values())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hamming_threshold": 33}, r"hamming_threshold is 33; allowed: 1 to hash_bits \(32\)"),
        ({"hash_bits": 65}, "less than or equal to 64"),
        ({"recent_bytes": -1}, "greater than or equal to 0"),
        ({"wicsum": {"ratio": 1.5}}, "less than or equal to 1"),
        ({"kind": "topk"}, "Input should be 'resv'"),
    ],
)
def test_fields_out_of_range_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        ReSV(**fields)


def test_keys_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="do not fit 2 KV heads of dimension 16"):
        ReSV().start(TINY, 0).append(np.zeros((2, 4, 8), np.float32), [4])
    with pytest.raises(ValueError, match="steps of 3 tokens"):
        ReSV().start(TINY, 0).append(np.zeros((2, 4, 16), np.float32), [3])
