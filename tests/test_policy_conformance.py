"""Laws that every registered policy keeps the day it is registered, on the tiny model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import save_file

from dre_sim.lowering import lower
from dre_sim.platforms import PLATFORMS, VRexConfig
from resv.attention import full_attention, light_attention
from resv.kv_cache import account, capacity_tokens
from resv.policies import POLICIES, Policy, ReSV, run_layer
from resv.policies.state_file import load_state, save_state
from resv.selection import Selection
from resv.wicsum import WicsumConfig
from resv_sim.hardware import layer_on_platform, method_of
from resv_sim.library import bundled
from resv_sim.pipeline import _predict_mode
from tests.bundled import platform
from tests.shapes import TINY
from tests.tiny_trace import N_TOKENS, TinySession, TinyTrace

CONFIGS = Path(__file__).parent.parent / "configs" / "policies"
CAPACITY = 24
RECENT_BYTES = CAPACITY * TINY.kv_bytes_per_token
OFFLOADING = {"recent_bytes": RECENT_BYTES}
EXEMPT = {"recent": "exempt", **OFFLOADING}

# Sizes that matter in a stream of 90 tokens; all others are the defaults.
SMALL = {
    "rekv": {"n_local": 20, "r": 3, "n_init": 2, "cached_frames": 4},
    "infinigen": {"dense_layers": 1, "alpha": 2.0},
    "infinigenp": {"dense_layers": 1, "alpha": 2.0},
    "infllm": {"n_local": 20, "n_init": 4, "block_tokens": 8, "topk": 2, "representatives": 2, "cached_blocks": 3},
    "quest": {"page_tokens": 4, "budget_tokens": 8, "min_pages": 1, "dense_layers": 1},
    "streamingllm": {"start_size": 2, "recent_size": 20},
    "flash_vstream": {"temporal": 4, "abstract": 2, "key_frames": 1, "pool": 2},
}
# What a policy does not take: one that keeps everything on the device, two that have windows of their own.
REFUSED = {"videollm_online": {"recent_bytes", "recent"}, "rekv": {"recent"}, "infllm": {"recent"}}
EVICTING = {"streamingllm", "flash_vstream"}
HOLDING_COPIES = {"rekv", "infllm"}
INDIFFERENT = {"full", "flexgen_stream", "videollm_online", "oaken", *EVICTING}  # to queries


def variants():
    for kind in POLICIES:
        for label, options in (
            ("defaults", {}),
            ("offloading", OFFLOADING),
            ("exempt", EXEMPT),
            ("same layer", {"predict": "same_layer", **OFFLOADING}),
        ):
            if not REFUSED.get(kind, set()) & set(options):
                yield pytest.param(POLICIES[kind](**SMALL.get(kind, {}), **options), id=f"{kind}-{label}")
    yield pytest.param(ReSV(table="kv_head", **OFFLOADING), id="resv-tables per head")
    yield pytest.param(ReSV(n_sink=3, **EXEMPT), id="resv-sinks")
    yield pytest.param(ReSV(freeze_on_offload=False, code="majority", **OFFLOADING), id="resv-thawed")
    yield pytest.param(ReSV(hash_bits=48, match="first"), id="resv-wide codes")
    yield pytest.param(POLICIES["rekv"](r=4, retrieve_chunk=2, keys="rotated", **OFFLOADING), id="rekv-chunks")


every_policy = pytest.mark.parametrize("policy", list(variants()))


def run(policy, trace=None):
    trace = TinyTrace() if trace is None else trace
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


@every_policy
@pytest.mark.parametrize("trace", [TinyTrace, TinySession])
def test_every_token_is_accounted_for(policy, trace):
    trace = trace()
    shape = policy.stored_shape(TINY)
    capacity = capacity_tokens(shape, policy.recent_bytes)
    for probe, got in zip(trace.probes, run(policy, trace), strict=True):
        masks = (got.attended, got.resident, got.candidates)
        assert all(mask.shape == (2, probe.first_token) and mask.dtype == np.bool_ for mask in masks)
        booked = account(got, shape, probe.n_tokens)
        assert booked.cached_bytes == booked.resident_bytes + booked.offloaded_bytes
        assert booked.attended_bytes == booked.hit_bytes + booked.fetched_bytes
        assert np.array_equal(got.fetched_tokens, (got.attended & ~got.resident).sum(axis=1))
        assert (got.evicted is not None) == (policy.kind in EVICTING)
        if policy.kind in EVICTING:
            assert booked.offloaded_bytes == booked.fetched_bytes == 0
        elif capacity is None:
            assert got.resident.all()
        elif policy.kind not in HOLDING_COPIES:
            assert got.resident.sum() <= 2 * capacity
        if policy.recent == "exempt" and policy.kind not in INDIFFERENT:
            assert got.attended[got.resident].all()


@pytest.mark.parametrize("policy", [p for p in variants() if "exempt" in p.id and p.values[0].kind not in EVICTING])
@pytest.mark.parametrize("trace", [TinyTrace, TinySession])
def test_what_is_exempt_is_no_candidate_in_any_stage(policy, trace):
    for got in run(policy, trace()):
        assert not (got.candidates & got.resident).any()
        if policy.kind not in ("resv", "rekv_vrex"):  # whole clusters; text has no frame
            assert np.array_equal(got.candidates, ~got.resident)


@every_policy
@pytest.mark.parametrize("stage", ["frame", "question", "decode"])
def test_selecting_changes_nothing_and_appending_in_bulk_is_appending_step_by_step(policy, stage):
    trace = TinyTrace().layer_trace
    keys, probe = trace.keys, (trace.queries[1], trace.step_keys[1], stage)
    bulk, single = (policy.start(policy.stored_shape(TINY), 1) for _ in range(2))
    lengths, kinds = [4] * 10 + [3], ["frame"] * 10 + ["question"]
    bulk.append(keys[:, :43], lengths, kinds)
    end = np.cumsum(lengths)
    for start, stop, kind in zip(end - lengths, end, kinds, strict=True):
        single.select(*probe)
        single.append(keys[:, start:stop], [stop - start], [kind])
    assert same(bulk.select(*probe), single.select(*probe))
    assert same(bulk.select(*probe), bulk.select(*probe))
    assert vars(bulk.ledger) == vars(single.ledger)
    assert bulk.ledger.appended == 43 * 2 == bulk.ledger.resident + bulk.ledger.offloaded + bulk.ledger.evicted


@every_policy
def test_later_tokens_change_no_earlier_selection(policy):
    """Two streams that part at token 70: the same selections up to there, other ones after where keys matter."""
    one, other = TinyTrace(), TinyTrace()
    keys = np.array(other.layer_trace.keys)
    keys[:, 70:] = np.random.default_rng(1).standard_normal(keys[:, 70:].shape)
    other.layer_trace = replace(other.layer_trace, keys=keys)
    for probe, a, b in zip(one.probes, run(policy, one), run(policy, other), strict=True):
        assert same(a, b) or probe.first_token > 70


@every_policy
def test_a_state_goes_on_from_a_file_as_if_it_had_never_stopped(policy, tmp_path):
    layer = TinySession().layer_trace
    state, restored = (policy.start(policy.stored_shape(TINY), 1) for _ in range(2))
    for p, step in enumerate(TinySession.steps[:10]):
        chosen = state.select(layer.queries[p], layer.step_keys[p], step.kind)
        state.observe(step, layer.queries[p], layer.step_keys[p], chosen)
        state.append(layer.step_keys[p], [step.n_tokens], [step.kind])
    save_state(state, tmp_path / "state.safetensors")
    load_state(restored, tmp_path / "state.safetensors")
    for p, step in enumerate(TinySession.steps[10:], start=10):
        chosen = [s.select(layer.queries[p], layer.step_keys[p], step.kind) for s in (state, restored)]
        assert same(*chosen)
        for s in (state, restored):
            s.observe(step, layer.queries[p], layer.step_keys[p], chosen[0])
            s.append(layer.step_keys[p], [step.n_tokens], [step.kind])
    assert vars(state.ledger) == vars(restored.ledger)
    other = policy.start(policy.stored_shape(TINY), 2)
    with pytest.raises(ValueError, match="cannot become"):
        load_state(other, tmp_path / "state.safetensors")


def test_a_file_that_is_no_state_is_refused(tmp_path):
    state = POLICIES["full"]().start(TINY, 0)
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"not a state")
    with pytest.raises(ValueError, match="not a saved policy state"):
        load_state(state, path)
    save_file({"a": np.zeros(1)}, path)
    with pytest.raises(ValueError, match="not a policy state of version 1"):
        load_state(state, path)


@every_policy
def test_the_same_stream_gives_the_same_selections(policy):
    assert same(run(policy), run(policy))
    assert same(run(policy, TinySession()), run(policy, TinySession()))


@every_policy
def test_tensors_select_what_arrays_do(policy):
    trace = TinyTrace().layer_trace
    results = []
    for convert in (np.asarray, lambda a: torch.from_numpy(np.array(a))):
        state = policy.start(policy.stored_shape(TINY), 1)
        state.append(convert(trace.keys[:, :70]), [7] * 10)
        results.append(state.select(convert(trace.queries[2]), convert(trace.step_keys[2]), "decode"))
    expected, got = results
    assert all(same(getattr(got, m), getattr(expected, m)) for m in ("attended", "resident", "candidates"))
    assert got.counts.score_macs == expected.counts.score_macs
    assert got.counts.hamming_compares == expected.counts.hamming_compares


@every_policy
def test_the_layer_before_predicts_except_for_layer_0(policy):
    exact = policy.model_copy(update={"predict": "same_layer"})
    predicted = policy.model_copy(update={"predict": "next_layer"})
    assert same(run(exact, TinyTrace(layer=0)), run(predicted, TinyTrace(layer=0)))
    assert same(run(exact), run(predicted)) == (policy.kind in INDIFFERENT)


KEEPING_EVERYTHING = [
    POLICIES["full"](),
    POLICIES["flexgen_stream"](),
    POLICIES["videollm_online"](),
    POLICIES["topk"](k=N_TOKENS),
    ReSV(wicsum=WicsumConfig(ratio=1.0)),
    ReSV(wicsum=WicsumConfig(ratio=1.0, score_transform="raw"), table="kv_head"),
    ReSV(wicsum=WicsumConfig(ratio=1.0, selector="exact"), **EXEMPT),
    POLICIES["rekv"](n_local=N_TOKENS, r=N_TOKENS),
    POLICIES["rekv_vrex"](frame_ratio=1.0, text_ratio=1.0),
    POLICIES["infinigen"](alpha=1e6, row_cap=1.0),
    POLICIES["infinigenp"](alpha=1e6, row_cap=1.0, union_cap=1.0, dense_layers=0),
    POLICIES["infllm"](n_local=8, block_tokens=4, n_init=0, topk=N_TOKENS),
    POLICIES["quest"](budget_tokens=N_TOKENS + 16, dense_layers=0),
    POLICIES["streamingllm"](recent_size=2 * N_TOKENS),
    POLICIES["flash_vstream"](temporal=N_TOKENS, pool=1),
]


@pytest.mark.parametrize("policy", KEEPING_EVERYTHING, ids=lambda policy: policy.kind)
def test_keeping_everything_is_full_attention(policy):
    layer = TinyTrace().layer_trace
    for probe, (step, got) in enumerate(zip(TinyTrace.probes, run(policy), strict=True)):
        assert got.attended.all()
        cached = layer.keys[:, : step.first_token], layer.values[:, : step.first_token]
        own = layer.step_keys[probe], layer.step_values[probe]
        light = light_attention(layer.queries[probe], *cached, got.attended, *own)
        np.testing.assert_allclose(light, full_attention(layer.queries[probe], *cached, *own), atol=1e-5)


def test_only_a_quantised_cache_cannot_keep_everything():
    assert {policy.kind for policy in KEEPING_EVERYTHING} == set(POLICIES) - {"oaken"}


BUDGET_TOKENS = {  # most tokens that a KV head may attend to with SMALL and nothing exempt
    "rekv": lambda n, stage, rows: 2 + (20 if stage == "frame" else 3 * 4),
    "rekv_vrex": lambda n, stage, rows: 4 * np.ceil((0.584 if stage == "frame" else 0.312) * np.ceil(n / 4)),
    "topk": lambda n, stage, rows: 64 * rows,
    "infinigen": lambda n, stage, rows: n if stage != "decode" else rows * max(1, int(0.2 * n)),
    "infinigenp": lambda n, stage, rows: max(1, int(0.5 * n)),
    "infllm": lambda n, stage, rows: 4 + 20 + 7 + 2 * 8,
    "quest": lambda n, stage, rows: n if stage != "decode" else rows * 2 * 4,
    "streamingllm": lambda n, stage, rows: 22 - rows // 2,
    # A first cut frame may be short; each frame has four tokens: two pooled, one abstract.
    "flash_vstream": lambda n, stage, rows: 4 * 2 + 2 + (1 + 1) * 4,
}


@pytest.mark.parametrize("kind", BUDGET_TOKENS)
def test_budgets_are_respected(kind):
    policy = POLICIES[kind](**SMALL.get(kind, {}))
    for probe, got in zip(TinyTrace.probes, run(policy), strict=True):
        rows = probe.n_tokens * TINY.group
        assert got.attended.sum(axis=1).max() <= BUDGET_TOKENS[kind](probe.first_token, probe.kind, rows)
    assert set(BUDGET_TOKENS) | {"full", "flexgen_stream", "videollm_online", "oaken", "resv"} == set(POLICIES)


@pytest.mark.parametrize("kind", POLICIES)
def test_every_policy_declares_itself_and_its_yaml_states_its_defaults(kind):
    cls = POLICIES[kind]
    assert issubclass(cls, Policy)
    assert cls.runs_in
    assert cls.runs_in <= {"frame", "question", "decode"}
    assert cls.granularity in ("layer", "token", "cluster", "frame", "block", "page", "element")
    assert isinstance(cls.lossy, bool)
    assert isinstance(cls.trained, bool)
    fields = yaml.safe_load((CONFIGS / f"{kind}.yaml").read_text())
    assert next(iter(fields)) == "kind"
    assert cls(**fields) == cls()
    assert set(fields) == set(cls.model_fields)


@pytest.mark.parametrize("kind", POLICIES)
def test_a_stage_or_layer_that_a_policy_does_not_act_in_is_dense(kind):
    policy = POLICIES[kind](**SMALL.get(kind, {}))
    dense_layers = getattr(policy, "dense_layers", 0)
    for probe, got in zip(TinyTrace.probes, run(policy), strict=True):
        if probe.kind not in policy.runs_in:
            assert got.attended.all()
            assert got.counts.score_macs == 0
    if dense_layers:
        trace = TinyTrace(layer=dense_layers - 1)
        assert all(got.attended.all() for got in run(policy, trace))


@pytest.mark.parametrize("kind", POLICIES)
def test_bytes_scored_and_kept_follow_the_width_of_keys(kind):
    """Also below a byte; hash-cluster tables, whose rows have widths of their own, are no part of it."""
    read, kept = [], []
    for kv_bits in (4, 8, 16):
        trace = TinyTrace()
        trace.shape = TINY.model_copy(update={"kv_bits": kv_bits})
        offloading = {"recent_bytes": CAPACITY * trace.shape.kv_bytes_per_token}
        options = {} if "recent_bytes" in REFUSED.get(kind, set()) else offloading
        counts = [got.counts for got in run(POLICIES[kind](**SMALL.get(kind, {}), **options), trace)]
        read.append([c.score_read_bytes for c in counts])
        kept.append([c.table_write_bytes for c in counts])
    assert np.array_equal(read[2], 2 * np.array(read[1]))
    assert np.array_equal(read[1], 2 * np.array(read[0]))
    if kind != "resv":
        assert np.array_equal(kept[2], 2 * np.array(kept[1]))
        assert kept[1] == pytest.approx(2 * np.array(kept[0]), abs=1)


@pytest.mark.parametrize("name", bundled("platforms"))
@pytest.mark.parametrize("kind", POLICIES)
def test_every_policy_runs_on_every_platform_and_takes_at_least_its_bytes(kind, name):
    options = {} if "recent_bytes" in REFUSED.get(kind, set()) else OFFLOADING
    policy, config = POLICIES[kind](**SMALL.get(kind, {}), **options), platform(name)
    traces = [TinyTrace(layer=i) for i in range(TINY.n_layers)]
    layers = [run(policy, trace) for trace in traces]
    placed = [layer_on_platform(config, policy, t, sel) for t, sel in zip(traces, layers, strict=True)]
    model = PLATFORMS[config.kind][1](config)
    peak = config.memory.peak_bytes_per_s if isinstance(config, VRexConfig) else config.dram_bytes_per_s
    for p, step in enumerate(TinyTrace.probes):
        selection = Selection(kind, step, tuple(selections[p] for selections in layers))
        transfers = [[layer.transfers[p] for layer in placed]]
        jobs = [layer.jobs[p] for layer in placed]
        predict = _predict_mode(policy, selection)
        work = lower(policy.stored_shape(TINY), [selection], transfers, predict, method_of(policy), jobs)
        timeline = model.simulate(work)
        moved = timeline.actions["dram_read_bytes"] + timeline.actions["dram_write_bytes"]
        assert timeline.end_ps >= moved / peak * 1e12 - 1
        fetched = sum(layer.fetch.useful_bytes for layer in work.layers if layer.fetch)
        asked = sum(int(sel.fetched_tokens.sum()) for sel in selection.layers)
        token_bytes = 2 * -(-policy.stored_shape(TINY).kv_bytes(1) // 2)
        assert fetched == asked * token_bytes
        assert timeline.end_ps >= fetched / (config.offload.link.payload_gb_per_s * 1e9) * 1e12
        counts = [layer.counts for layer in selection.layers]
        works = any(layer.tables for layer in selection.layers) or any(
            c.score_macs + c.table_write_bytes for c in counts
        )
        assert (sum(s.duration_ps for s in timeline.spans if s.what == "prediction") > 0) == works
