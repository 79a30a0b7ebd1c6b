"""Laws that every registered policy keeps, and ReSV against a slow twin of the whole pass."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError

from resv._arrays import round_bf16
from resv.attention import full_attention, light_attention
from resv.hashing import hash_codes, hyperplanes
from resv.kv_cache import account
from resv.policies import POLICIES, Policy, ReSV, TopK, run_layer
from resv.trace import LayerTrace, Step
from resv.wicsum import WicsumConfig
from tests import naive_resv as naive
from tests.shapes import TINY

CONFIGS = Path(__file__).parent.parent / "configs" / "policies"
N_TOKENS = 90
CAPACITY = 24
RECENT_BYTES = CAPACITY * TINY.kv_bytes_per_token
EXEMPT = {"recent": "exempt", "recent_bytes": RECENT_BYTES}


class TinyTrace:
    """Frames of four tokens that drift slowly, so that clusters form; a question and a decode probe."""

    shape = TINY
    n_tokens = N_TOKENS
    steps = tuple(Step("frame", t, min(4, N_TOKENS - t)) for t in range(0, N_TOKENS, 4))
    probes = (
        Step("frame", 0, 4, in_stream=False),
        Step("frame", 40, 4, in_stream=False),
        Step("question", 70, 5, in_stream=False),
        Step("decode", N_TOKENS, 1, in_stream=False),
    )

    def __init__(self, layer=1, seed=0):
        rng = np.random.default_rng(seed)
        places = rng.standard_normal((4, 2, 16))
        drift = 0.05 * rng.standard_normal((N_TOKENS, 2, 16)).cumsum(axis=0)
        stored = (places[np.arange(N_TOKENS) % 4] + drift).astype(np.float32)

        def normal(*shape):
            return rng.standard_normal(shape, dtype=np.float32)

        queries, predicted = (tuple(2 * normal(4, p.n_tokens, 16) for p in self.probes) for _ in range(2))
        self.layer_trace = LayerTrace(
            layer=layer,
            keys=stored.transpose(1, 0, 2),
            values=normal(N_TOKENS, 2, 16).transpose(1, 0, 2),
            queries=queries,
            predicted_queries=None if layer == 0 else predicted,
            step_keys=tuple(normal(2, p.n_tokens, 16) for p in self.probes),
            step_values=tuple(normal(2, p.n_tokens, 16) for p in self.probes),
        )


def run(policy, **trace_options):
    trace = TinyTrace(**trace_options)
    return run_layer(policy, trace, trace.layer_trace)


def same(a, b):
    """Whether two selections, tuples or arrays are equal all the way down."""
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if hasattr(a, "__dataclass_fields__"):
        return all(same(getattr(a, f), getattr(b, f)) for f in a.__dataclass_fields__)
    return a == b


EVERY_POLICY = [
    pytest.param(POLICIES[kind](**options), id=f"{kind}-{label}")
    for kind in POLICIES
    for label, options in (
        ("unlimited", {}),
        ("offloading", {"recent_bytes": RECENT_BYTES}),
        ("exempt", EXEMPT),
        ("same layer", {"predict": "same_layer"}),
    )
]
EVERY_POLICY += [
    pytest.param(ReSV(table="kv_head", recent_bytes=RECENT_BYTES), id="resv-tables per head"),
    pytest.param(ReSV(n_sink=3, **EXEMPT), id="resv-sinks"),
    pytest.param(ReSV(freeze_on_offload=False, code="majority", recent_bytes=RECENT_BYTES), id="resv-thawed"),
    pytest.param(ReSV(hash_bits=48, match="first"), id="resv-wide codes"),
]


@pytest.mark.parametrize("policy", EVERY_POLICY)
def test_every_policy_accounts_for_every_token(policy):
    for probe, got in zip(TinyTrace.probes, run(policy), strict=True):
        assert got.attended.shape == got.resident.shape == got.candidates.shape == (2, probe.first_token)
        booked = account(got, TINY, probe.n_tokens)
        assert booked.cached_bytes == probe.first_token * TINY.kv_bytes_per_token_layer
        assert np.array_equal(got.fetched_tokens, (got.attended & ~got.resident).sum(axis=1))
        if policy.recent_bytes is None:
            assert got.resident.all()
        else:
            assert got.resident.sum() <= 2 * CAPACITY
        if policy.recent == "exempt" and policy.kind != "full":
            assert got.attended[got.resident].all()
            assert not (got.candidates & got.resident).any()


@pytest.mark.parametrize("policy", EVERY_POLICY)
def test_selecting_changes_nothing_and_appending_in_bulk_is_appending_step_by_step(policy):
    trace = TinyTrace()
    keys, probe = trace.layer_trace.keys, (trace.layer_trace.queries[1], trace.layer_trace.step_keys[1])
    bulk, single = policy.start(TINY, 1), policy.start(TINY, 1)
    bulk.append(keys[:, :40], [4] * 10)
    for start in range(0, 40, 4):
        single.select(*probe)
        single.append(keys[:, start : start + 4], [4])
    assert same(bulk.select(*probe), single.select(*probe))
    assert same(bulk.select(*probe), bulk.select(*probe))
    assert vars(bulk.ledger) == vars(single.ledger)
    assert bulk.ledger.appended == 40 * 2
    assert bulk.ledger.resident == bulk.select(*probe).resident.sum()


@pytest.mark.parametrize("policy", EVERY_POLICY)
def test_tensors_select_what_arrays_do(policy):
    trace = TinyTrace()
    states = policy.start(TINY, 1), policy.start(TINY, 1)
    results = []
    for state, convert in zip(states, (np.asarray, lambda a: torch.from_numpy(np.array(a))), strict=True):
        state.append(convert(trace.layer_trace.keys[:, :70]), [7] * 10)
        results.append(state.select(convert(trace.layer_trace.queries[2]), convert(trace.layer_trace.step_keys[2])))
    got, expected = results[1], results[0]
    assert all(np.array_equal(getattr(got, m), getattr(expected, m)) for m in ("attended", "resident", "candidates"))
    assert got.counts.hamming_compares == expected.counts.hamming_compares


@pytest.mark.parametrize(
    "policy",
    [
        POLICIES["full"](),
        TopK(k=N_TOKENS),
        ReSV(wicsum=WicsumConfig(ratio=1.0)),
        ReSV(wicsum=WicsumConfig(ratio=1.0, score_transform="raw"), table="kv_head"),
        ReSV(wicsum=WicsumConfig(ratio=1.0, selector="exact"), **EXEMPT),
    ],
    ids=lambda policy: policy.kind,
)
def test_keeping_everything_is_full_attention(policy):
    layer = TinyTrace().layer_trace
    for probe, (step, got) in enumerate(zip(TinyTrace.probes, run(policy), strict=True)):
        assert got.attended.all()
        cached = layer.keys[:, : step.first_token], layer.values[:, : step.first_token]
        own = layer.step_keys[probe], layer.step_values[probe]
        light = light_attention(layer.queries[probe], *cached, got.attended, *own)
        np.testing.assert_allclose(light, full_attention(layer.queries[probe], *cached, *own), atol=1e-5)


@pytest.mark.parametrize("policy", EVERY_POLICY)
def test_the_layer_before_predicts_except_for_layer_0(policy):
    exact, predicted = (
        policy.model_copy(update={"predict": "same_layer"}),
        policy.model_copy(update={"predict": "next_layer"}),
    )
    assert same(run(exact, layer=0), run(predicted, layer=0))
    differs = not same(run(exact, layer=1), run(predicted, layer=1))
    assert differs == policy.lossy


@pytest.mark.parametrize("kind", POLICIES)
def test_every_policy_declares_itself_and_its_yaml_states_its_defaults(kind):
    cls = POLICIES[kind]
    assert issubclass(cls, Policy)
    assert cls.runs_in <= {"frame", "question", "decode"}
    assert cls.granularity in ("layer", "token", "cluster", "frame")
    assert isinstance(cls.lossy, bool)
    assert isinstance(cls.trained, bool)
    fields = yaml.safe_load((CONFIGS / f"{kind}.yaml").read_text())
    assert next(iter(fields)) == "kind"
    assert cls(**fields) == cls()
    assert set(fields) == set(cls.model_fields)


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


def test_counts_follow_from_the_shapes():
    policy = ReSV(predict="same_layer")
    got = run(policy)[1]
    n_new, clusters, rows = 4, got.tables[0].n_clusters, 4 * 4
    founded = len(set(got.updates[0].assignment[got.updates[0].assignment >= clusters].tolist()))
    touched = len(set(got.updates[0].assignment.tolist()))
    counts = got.counts
    assert counts.hash_macs == n_new * 32 * 32
    assert n_new * clusters <= counts.hamming_compares <= n_new * clusters + n_new * founded
    assert counts.score_elements == counts.exp_elements == rows * clusters
    assert counts.score_macs == rows * clusters * 16
    assert counts.score_elements * 32 >= counts.scanned_elements >= counts.score_elements
    assert rows <= counts.exact_prefix_elements <= counts.selected_prefix_elements <= counts.score_elements
    assert counts.rows_without_mass == 0
    key, index = 32 * 2, 4
    assert counts.table_write_bytes == n_new * index + touched * (key + index) + founded * 4
    assert counts.table_read_bytes == index * (2 * clusters + got.selected_tokens.sum()) + key * (touched - founded)


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


def test_the_fetch_of_full_is_what_lies_below_the_window():
    for probe, got in zip(TinyTrace.probes, run(POLICIES["full"](recent_bytes=RECENT_BYTES)), strict=True):
        assert got.fetched_tokens.tolist() == [max(0, probe.first_token - CAPACITY)] * 2


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
