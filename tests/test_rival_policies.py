"""Every rival against its slow twin, its counts and traps, and the figures published for it."""

from itertools import pairwise

import numpy as np
import pytest
from pydantic import ValidationError

from resv._quant_kernels import quantise
from resv.blocks import BlockCache
from resv.policies import POLICIES, run_layer
from resv.policies.infinigen import speculation_basis
from resv.policies.oaken import Oaken
from resv.rope import rotated
from resv.trace import ModelShape
from tests import naive_policies as naive
from tests.shapes import LLAMA3_8B, TINY
from tests.tiny_trace import TinySession, TinyTrace

LLAVA_OV_7B = ModelShape(
    name="llava_ov_7b",
    n_layers=28,
    hidden=3584,
    n_query_heads=28,
    n_kv_heads=4,
    head_dim=128,
    ffn=18944,
    vocab=152064,
    tokens_per_frame=196,
)
LLAVA_OV_05B = LLAVA_OV_7B.model_copy(update={"n_layers": 24, "n_query_heads": 14, "n_kv_heads": 2, "head_dim": 64})
FRAME, QUESTION, DECODE = 1, 2, 3  # probes of TinyTrace


def run(kind, trace=None, **fields):
    trace = TinyTrace() if trace is None else trace
    return run_layer(POLICIES[kind](**{"predict": "same_layer", **fields}), trace, trace.layer_trace)


def kept(selection, head=0):
    return set(np.flatnonzero(selection.attended[head]).tolist())


def frames_up_to(n):
    """Four tokens each; the probe at 70 cuts one in two."""
    starts = sorted({*range(0, n, 4), *([70] if n > 70 else [])})
    return [list(range(a, b)) for a, b in pairwise([*starts, n])]


def tokens(frames, chosen):
    return {t for f in chosen for t in frames[f]}


# --- ReKV ---------------------------------------------------------------------------------------------


def test_rekv_sees_a_window_while_frames_arrive_and_whole_frames_for_a_question():
    layer = TinyTrace().layer_trace
    got = run("rekv", n_local=10, n_init=3, r=5)
    assert kept(got[FRAME]) == {0, 1, 2, *range(30, 40)}
    assert got[FRAME].counts.score_macs == 0
    frames = frames_up_to(70)
    scores, macs = naive.frame_scores(layer.keys[:, :70], frames, layer.queries[QUESTION], TINY.rope_theta)
    expected = tokens(frames, naive.best(scores, 5)) | {0, 1, 2}
    assert kept(got[QUESTION]) == kept(got[QUESTION], head=1) == expected
    counts = got[QUESTION].counts
    assert (counts.score_macs, counts.score_elements) == (macs, len(frames))
    assert counts.score_rows == 1
    assert counts.score_read_bytes == len(frames) * TINY.n_query_heads * TINY.head_dim * 2


def test_rekv_scores_chunks_of_consecutive_frames_by_their_mean():
    layer, frames = TinyTrace().layer_trace, frames_up_to(70)
    got = run("rekv", r=4, retrieve_chunk=2, keys="rotated")[QUESTION]
    scores, _ = naive.frame_scores(layer.keys[:, :70], frames, layer.queries[QUESTION])
    chunks = {c: naive.mean([[scores[f]] for f in scores if f // 2 == c])[0] for c in range(9)}
    assert kept(got) == tokens(frames, [f for f in scores if f // 2 in naive.best(chunks, 2)])


def test_decoding_goes_on_with_the_questions_frames_which_are_on_the_device_by_then():
    trace = TinySession()
    policy = {"r": 2, "recent_bytes": 0, "cached_frames": 1}
    got = run("rekv", trace, **policy)
    question, *answer = got[8:]
    frames = kept(question)
    assert len(frames) == 8
    assert question.fetched_tokens.tolist() == [8, 8]
    for step, selection in zip(trace.probes[9:], answer, strict=True):
        said = set(range(32, step.first_token))
        assert kept(selection) == frames | said
        assert selection.resident[0, sorted(frames)].all()
        assert selection.counts.score_macs == 0


def test_prompt_tokens_of_a_frame_do_not_make_it_a_retrieved_one():
    trace = TinySession()
    question, *answer = run("rekv", trace, r=2, n_init=2, recent_bytes=0)[8:]
    assert kept(question) & {0, 1, 2, 3} == {0, 1}  # the prompt cuts the first frame, which was not retrieved
    for step, selection in zip(trace.probes[9:], answer, strict=True):
        assert kept(selection) == kept(question) | set(range(32, step.first_token))
        assert not selection.resident[0, :4].any()


def test_a_frame_after_the_answer_ends_it_and_what_was_said_is_in_no_frame():
    layer = TinySession().layer_trace
    state = POLICIES["rekv"](r=2, n_local=5).start(TINY, 1)
    state.append(layer.keys[:, :32], [4] * 8)
    question = TinySession.probes[8]
    asked = state.select(layer.queries[8], layer.step_keys[8], "question")
    state.observe(question, layer.queries[8], layer.step_keys[8], asked)
    state.append(layer.keys[:, 32:37], [5], ["question"])
    follow_up = state.select(layer.queries[9], layer.step_keys[9], "decode")
    assert kept(follow_up) == kept(asked) | set(range(32, 37))
    state.append(layer.keys[:, 37:41], [4], ["frame"])
    again = state.select(layer.queries[8], layer.step_keys[8], "question")
    assert again.counts.score_elements == 9
    assert not kept(again) & set(range(32, 37))


def test_retrieved_blocks_stay_on_the_device_until_others_push_them_out():
    cache = BlockCache(2)
    cache.use([1, 2])
    cache.use([1, 3])
    assert cache.held(4).tolist() == [False, True, False, True]
    nothing = BlockCache(0)
    nothing.use([1])
    assert not nothing.held(2).any()


def test_rekv_refuses_the_retriever_that_needs_images():
    with pytest.raises(ValidationError, match="a trace holds keys, values and queries alone"):
        POLICIES["rekv"](retriever="external")
    with pytest.raises(ValidationError, match=r"retrieve_chunk is 9; allowed: 1 to r \(8\)"):
        POLICIES["rekv"](r=8, retrieve_chunk=9)


@pytest.mark.parametrize(("shape", "gib"), [(LLAVA_OV_7B, 18.84), (LLAVA_OV_05B, 4.04)])
def test_an_hour_of_rekvs_cache_is_as_published(shape, gib):
    """1,800 frames of 196 tokens (ReKV, Table 5)."""
    assert 1800 * shape.tokens_per_frame * shape.kv_bytes_per_token / 2**30 == pytest.approx(gib, rel=0.005)


@pytest.mark.parametrize(("probe", "share"), [(FRAME, 0.584), (QUESTION, 0.312), (DECODE, 0.312)])
def test_rekv_of_vrex_takes_a_share_of_the_frames_in_every_step(probe, share):
    layer, n = TinyTrace().layer_trace, TinyTrace.probes[probe].first_token
    got, frames = run("rekv_vrex")[probe], frames_up_to(n)
    scores, macs = naive.frame_scores(layer.keys[:, :n], frames, layer.queries[probe])
    assert kept(got) == tokens(frames, naive.best(scores, int(np.ceil(share * len(frames)))))
    assert got.counts.score_macs == macs


def test_rekv_of_vrex_scores_no_exempt_frame_and_always_attends_to_text():
    layer = TinyTrace().layer_trace
    policy = POLICIES["rekv_vrex"](frame_ratio=0.5, recent="exempt", recent_bytes=6 * TINY.kv_bytes_per_token)
    state = policy.start(TINY, 1)
    state.append(layer.keys[:, :13], [4, 4, 1, 4], ["frame", "frame", "question", "frame"])
    assert state.residency()[0][0].tolist() == [False] * 7 + [True] * 6
    state.append(layer.keys[:, 13:17], [4], ["frame"])  # now text is off the device, too
    got = state.select(layer.queries[FRAME], layer.step_keys[FRAME])
    assert got.counts.score_elements == 3  # the third in part
    assert set(np.flatnonzero(got.candidates[0]).tolist()) == {*range(8), 9, 10}
    assert {8, *range(11, 17)} <= kept(got)


# --- InfiniGen ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["infinigen", "infinigenp"])
def test_infinigen_agrees_with_its_slow_twin(kind):
    layer, policy = TinyTrace().layer_trace, POLICIES[kind](alpha=1.5, row_cap=0.4)
    got = run(kind, alpha=1.5, row_cap=0.4, dense_layers=0)
    for probe in (FRAME, QUESTION, DECODE):
        n = TinyTrace.probes[probe].first_token
        if TinyTrace.probes[probe].kind not in policy.runs_in:
            assert got[probe].attended.all()
            continue
        keys = layer.keys[:, :n]
        basis = [speculation_basis(np.ascontiguousarray(k), 5).T for k in keys]
        expected, scores, macs = naive.infinigen(keys, layer.queries[probe], basis, 1.5, 0.4, policy.union_cap)
        assert [kept(got[probe], h) for h in range(2)] == expected
        assert (got[probe].counts.score_elements, got[probe].counts.score_macs) == (scores, macs)
        assert got[probe].counts.query_columns == TINY.n_query_heads * 5


@pytest.mark.parametrize("caps", [{"row_cap": 0.01}, {"union_cap": 0.01}])
def test_a_share_of_less_than_a_token_is_one_token(caps):
    got = run("infinigenp", alpha=1e9, dense_layers=0, **{"row_cap": 1.0, "union_cap": 1.0, **caps})[DECODE]
    rows = 1 if "union_cap" in caps else TINY.group
    assert all(1 <= n <= rows for n in got.attended.sum(axis=1))


def test_all_columns_speculate_the_true_scores_and_few_hold_most_of_them():
    keys = np.ascontiguousarray(TinyTrace().layer_trace.keys[0])
    whole = speculation_basis(keys, 16)
    np.testing.assert_allclose(whole @ whole.T, np.eye(16), atol=1e-5)
    part = speculation_basis(keys, 5)
    assert np.linalg.norm(keys @ part) ** 2 > 0.5 * np.linalg.norm(keys) ** 2


def test_infinigens_partial_keys_take_15_percent_of_the_cache():
    assert POLICIES["infinigen"]().overhead(LLAMA3_8B) == pytest.approx(0.15, abs=0.002)


# --- InfLLM ---------------------------------------------------------------------------------------------

INFLLM = {"n_local": 12, "n_init": 4, "block_tokens": 8, "topk": 2, "representatives": 2}


def test_infllm_looks_up_blocks_by_their_mean_key_where_nobody_saw_attention():
    layer, policy = TinyTrace().layer_trace, POLICIES["infllm"](**INFLLM)
    received = np.zeros((90, 4))
    for probe in (QUESTION, DECODE):
        n = TinyTrace.probes[probe].first_token
        got = run("infllm", **INFLLM)[probe]
        scores, macs = naive.infllm_blocks(layer.keys[:, :n], layer.queries[probe], received, policy, TINY.rope_theta)
        blocks = naive.best(scores, 2)
        window = 4 + 8 * len(scores)
        assert kept(got) == {*range(4), *range(window, n), *(t for b in blocks for t in range(4 + 8 * b, 12 + 8 * b))}
        assert (got.counts.score_macs, got.counts.score_elements) == (macs, len(scores))


def test_infllm_takes_the_tokens_that_local_queries_attended_to_most():
    trace, policy = TinySession(), POLICIES["infllm"](**INFLLM, cached_blocks=0)
    layer = trace.layer_trace
    received = np.zeros((trace.n_tokens + 8, 4))
    got = run("infllm", trace, **INFLLM)
    differs = False
    for p, step in enumerate(trace.probes):
        n = step.first_token
        scores, _ = naive.infllm_blocks(layer.keys[:, :n], layer.queries[p], received, policy, TINY.rope_theta)
        blind, _ = naive.infllm_blocks(layer.keys[:, :n], layer.queries[p], 0 * received, policy, TINY.rope_theta)
        blocks = naive.best(scores, 2)
        expected = {*range(min(4, n)), *range(4 + 8 * len(scores), n)}
        assert kept(got[p]) == expected | {t for b in blocks for t in range(4 + 8 * b, 12 + 8 * b)}
        differs |= any(abs(scores[b] - blind[b]) > 1e-3 for b in scores)
        start = 4 + 8 * len(scores)
        for (t, q), weight in naive.local_attention(
            layer.keys[:, :n], layer.queries[p], layer.step_keys[p], start
        ).items():
            received[t, q] += weight
    assert differs


def test_blocks_of_the_last_look_up_are_on_the_device():
    got = run("infllm", **INFLLM, recent_bytes=0, cached_blocks=9)
    frame, question = got[FRAME], got[QUESTION]
    again = kept(frame) & kept(question) & set(range(4, 4 + 8 * 3))
    assert not frame.resident.any()
    assert all(question.resident[0, t] == (t in kept(frame) and 4 <= t < 28) for t in range(28))
    assert question.fetched_tokens[0] == len(kept(question)) - len(again)


# --- Quest ----------------------------------------------------------------------------------------------


def test_quest_agrees_with_its_slow_twin_and_is_dense_before_decoding():
    layer = TinyTrace().layer_trace
    got = run("quest", page_tokens=8, budget_tokens=16, min_pages=1, dense_layers=0)
    assert got[FRAME].attended.all()
    expected, scores, macs = naive.quest(layer.keys, layer.queries[DECODE], 8, 2)
    assert [kept(got[DECODE], h) for h in range(2)] == expected
    counts = got[DECODE].counts
    assert (counts.score_elements, counts.score_macs) == (scores, macs)
    assert counts.score_read_bytes == 12 * 2 * TINY.n_kv_heads * TINY.head_dim * 2


def test_quest_takes_the_pages_of_every_row_and_counts_them_all():
    layer = TinyTrace().layer_trace
    state = POLICIES["quest"](page_tokens=8, budget_tokens=16, min_pages=1, dense_layers=0).start(TINY, 1)
    state.append(layer.keys[:, :70], [70])
    queries = layer.queries[QUESTION]
    got = state.select(queries, layer.step_keys[QUESTION], "decode")
    expected, scores, macs = naive.quest(layer.keys[:, :70], queries, 8, 2)
    assert [kept(got, head) for head in range(2)] == expected
    assert (got.counts.score_elements, got.counts.score_macs) == (scores, macs)


def test_quest_reads_an_eighth_of_64k_tokens_with_a_budget_of_4k():
    assert POLICIES["quest"](budget_tokens=4096).read_fraction(65_536) == pytest.approx(1 / 8)
    assert POLICIES["quest"](budget_tokens=4096).read_fraction(4000) == 1.0


@pytest.mark.parametrize(("kind", "per_token"), [("infinigen", 5 * 2 * 2), ("quest", 2 * 2 * 16 * 2 / 8)])
def test_what_decoding_will_need_of_new_keys_is_kept_in_frames_too(kind, per_token):
    """Partial keys or page bounds: 16 columns (5 of them), 2 KV heads, 2 bytes, pages of 8 tokens (one is begun)."""
    options = {"quest": {"page_tokens": 8}}.get(kind, {})
    for dense_layers in (0, 2):  # the trace is of layer 1
        frame = run(kind, **options, dense_layers=dense_layers)[FRAME]
        n_new = TinyTrace.probes[FRAME].n_tokens
        asked = n_new if kind == "infinigen" else -(-n_new // 8) * 8
        assert frame.attended.all()
        assert frame.counts.score_macs == 0
        assert frame.counts.table_write_bytes == (0 if dense_layers else asked * per_token)


# --- StreamingLLM and Flash-VStream -------------------------------------------------------------------------


@pytest.mark.parametrize("probe", range(4))
@pytest.mark.parametrize(("sinks", "recent"), [(4, 12), (0, 5), (100, 9)])
def test_streamingllm_keeps_sinks_and_a_window_that_holds_the_step(probe, sinks, recent):
    step = TinyTrace.probes[probe]
    got = run("streamingllm", start_size=sinks, recent_size=recent)[probe]
    expected = naive.streamingllm(step.first_token, step.n_tokens, sinks, recent)
    assert kept(got) == expected == set(np.flatnonzero(~got.evicted[0]).tolist())


def test_a_step_that_does_not_fit_into_the_window_is_refused():
    with pytest.raises(ValueError, match="recent_size is 3, but a step brings 4 tokens"):
        run("streamingllm", recent_size=3)
    with pytest.raises(ValueError, match="recent_size is 3, but a step brings 4 tokens"):
        POLICIES["streamingllm"](recent_size=3).start(TINY, 0).append(TinyTrace().layer_trace.keys[:, :6], [2, 4])


def test_flash_vstream_joins_the_frames_that_a_slow_twin_joins():
    layer = TinyTrace().layer_trace
    state = POLICIES["flash_vstream"](temporal=5, abstract=2, key_frames=1, pool=2).start(TINY, 1)
    state.append(layer.keys[:, :88], [4] * 22)
    plain = rotated(layer.keys[:, :88], -np.arange(88), TINY).transpose(1, 0, 2).reshape(22, 4, -1)
    memory = naive.flash_memory(plain.mean(axis=1), 5)
    live = state._weights > 0
    assert sorted(zip(state._weights[live], state._frames[live], strict=True)) == sorted((w, f) for w, _, f in memory)
    got = state.select(layer.queries[QUESTION], layer.step_keys[QUESTION])
    stand_ins = {f for _, _, f in memory} | {21}
    assert set(np.flatnonzero(~got.evicted[0]).tolist()) == {t for f in stand_ins for t in range(4 * f, 4 * f + 4)}
    assert set(range(84, 88)) <= kept(got)
    assert {4 * f for f in stand_ins} <= kept(got)


def test_an_evicted_frame_never_comes_back():
    layer = TinyTrace().layer_trace
    state = POLICIES["flash_vstream"](temporal=3).start(TINY, 1)
    gone = set()
    for frame in range(22):
        state.append(layer.keys[:, 4 * frame : 4 * frame + 4], [4])
        got = state.select(layer.queries[FRAME], layer.step_keys[FRAME])
        now = set(np.flatnonzero(got.evicted[0]).tolist())
        assert gone <= now
        gone = now
    assert len(gone) == 4 * (22 - 4)


def test_flash_vstreams_memory_is_681_tokens():
    assert POLICIES["flash_vstream"]().memory_tokens(64) == 681


# --- Oaken ----------------------------------------------------------------------------------------------


def test_oaken_restores_what_its_slow_twin_does():
    layer, policy = TinyTrace().layer_trace, Oaken()
    keys, values = policy.read_back(TINY, layer.keys, layer.values)
    positions = np.arange(90)
    plain, restored = (rotated(k, -positions, TINY).transpose(1, 0, 2).reshape(90, -1) for k in (layer.keys, keys))
    stored = [(plain, restored), *((v.transpose(1, 0, 2).reshape(90, -1),) for v in (layer.values, values))]
    pairs = [(plain, restored), (stored[1][0], stored[2][0])]
    for exact, got in pairs:
        edges = np.quantile(exact.astype(float), [0.02, 0.47, 0.53, 0.98])
        expected = np.array([naive.oaken_row(row, edges.astype(np.float32)) for row in exact])
        # A value on the border of two steps may round either way.
        assert (np.abs(got - expected) < 1e-4).mean() > 0.995
        assert np.linalg.norm(got - exact) < 0.08 * np.linalg.norm(exact)


def test_oaken_restores_an_outlier_just_beyond_an_edge_in_its_own_tail():
    edges = np.array([-4, -0.1, 0.1, 4], dtype=np.float32)
    row = np.array([[9, -9.2, 4.01, -4.01, 1, -1, 0, 0]], dtype=np.float32)  # the steps of the outer group miss 0
    expected = naive.oaken_row(row[0], edges)
    quantise(row, 0, np.zeros(0), edges, np.array([32, 16, 32]))
    assert row[0] == pytest.approx(expected, abs=1e-5)
    assert row[0, 2:4] == pytest.approx([4.01, -4.01], abs=0.2)


def test_oakens_cache_takes_4_8_bits_and_that_much_less_of_everything():
    llama2_7b = LLAMA3_8B.model_copy(update={"n_kv_heads": 32})
    assert Oaken().bits_per_element(llama2_7b) == pytest.approx(4.82, abs=0.005)
    stored = Oaken().stored_shape(LLAMA3_8B)
    assert stored.kv_bytes_per_token / LLAMA3_8B.kv_bytes_per_token == pytest.approx(4.89375 / 16, rel=1e-3)
    state = POLICIES["oaken"](recent_bytes=10 * LLAMA3_8B.kv_bytes_per_token).start(stored, 0)
    assert state.capacity_tokens == 32


def test_oaken_reads_and_writes_every_element_once():
    counts = run("oaken")[QUESTION].counts
    assert counts.vector_elements == 2 * (70 + 5) * TINY.n_kv_heads * TINY.head_dim


def test_oaken_needs_a_middle_group():
    with pytest.raises(ValidationError, match=r"outer \+ inner is 1.1; allowed: below 1"):
        Oaken(outer=0.5, inner=0.6)


# --- VideoLLM-online and FlexGen --------------------------------------------------------------------------


@pytest.mark.parametrize(("separators", "gb"), [(0, 3.15), (1, 3.46)])
def test_a_minute_of_four_live_streams_at_10_fps(separators, gb):
    policy = POLICIES["videollm_online"](separator_tokens=separators)
    assert policy.cache_bytes(LLAMA3_8B, fps=10, seconds=60, batch=4) / 1e9 == pytest.approx(gb, abs=0.005)


@pytest.mark.parametrize(
    ("silence", "threshold", "token"), [(0.8, 0.725, 1), (0.7, 0.725, 2), (0.7, 0.0, 1), (0.1, 0.0, 2)]
)
def test_a_model_speaks_where_silence_is_not_sure_enough(silence, threshold, token):
    rest = 1 - silence
    logits = np.log([0.1 * rest, silence, 0.9 * rest])
    assert POLICIES["videollm_online"](silence_threshold=threshold).next_token(logits, separator=1) == token


def test_a_cache_that_never_leaves_the_device_takes_no_limit():
    with pytest.raises(ValidationError, match="recent_bytes"):
        POLICIES["videollm_online"](recent_bytes=1)


def test_flexgen_moves_40k_tokens_in_1_31_seconds_at_4_gb_per_s():
    assert POLICIES["flexgen_stream"]().recent_bytes == 0
    assert 40_000 * LLAMA3_8B.kv_bytes_per_token / 4e9 == pytest.approx(1.31, abs=0.005)
