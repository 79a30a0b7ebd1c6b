"""The generator: every knob does what it says, and the same seed makes the same arrays in any order."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from numba import get_num_threads, set_num_threads
from pydantic import ValidationError
from threadpoolctl import threadpool_limits

from resv.hashing import cosine_hamming_correlation
from resv.policies import ReSV, run_layer
from resv.synthetic import GeneratorConfig, KeyConfig, RecencyConfig, SharpnessConfig, SyntheticTrace, build_trace
from resv.synthetic.latents import TEXT_SHARE, frame_latents, text_latents
from resv.synthetic.weights import draw_weights, recency_kernel, rope_wavelengths
from resv.trace import ModelShape, Step
from resv.video import VideoConfig
from resv.workload_plan import ProbeWorkload, SessionWorkload
from tests.clips import write_clip
from tests.naive_trace import ref_key
from tests.shapes import LLAMA3_8B, TINY

SMALL_VIDEO = VideoConfig(size_px=48)
WIDE = ModelShape(name="wide", n_layers=4, hidden=64, n_query_heads=8, n_kv_heads=4, head_dim=64, ffn=64, vocab=10)
PLAIN = GeneratorConfig(
    key=KeyConfig(noise_share=0.0),
    sharpness=SharpnessConfig(frame_nats=1.0, row_diversity=0.0, depth_gain=0.0, layer_jitter=0.0, head_jitter=0.0),
    recency=RecencyConfig(exponent=0.0, head_jitter=0.0),
)


def made(shape=TINY, generator=None, seed=0, **workload) -> SyntheticTrace:
    workload = {"kv_lengths_tokens": (20, 50), "question_tokens": 4, **workload}
    return build_trace(shape, SMALL_VIDEO, generator or GeneratorConfig(), ProbeWorkload(**workload), seed)


def of_latents(latents, shape, generator, n_step=None, seed=0) -> SyntheticTrace:
    """A trace whose last step is probed."""
    n_step = n_step or len(latents) // 2
    steps = (Step("frame", 0, len(latents) - n_step), Step("frame", len(latents) - n_step, n_step))
    return SyntheticTrace(shape, steps, steps[1:], generator, seed, latents)


def random_latents(n_tokens, rng):
    rows = rng.standard_normal((n_tokens, 12))
    return np.pad(rows / np.linalg.norm(rows, axis=1, keepdims=True), ((0, 0), (0, 13))).astype(np.float32)


def arrays(layer):
    yield from (layer.keys, layer.values)
    for group in (layer.queries, layer.predicted_queries or (), layer.step_keys, layer.step_values):
        yield from group


def test_shapes_are_those_of_the_model():
    trace = made()
    for index in range(TINY.n_layers):
        layer = trace.layer(index)
        assert layer.keys.shape == layer.values.shape == (2, 60, 16)
        assert (layer.predicted_queries is None) == (index == 0)
        for p, probe in enumerate(trace.probes):
            assert layer.queries[p].shape == (4, probe.n_tokens, 16)
            assert layer.step_keys[p].shape == layer.step_values[p].shape == (2, probe.n_tokens, 16)
        assert all(a.dtype == np.float32 for a in arrays(layer))
        assert all(np.isfinite(a).all() for a in arrays(layer))


def test_values_are_made_only_on_request():
    with_values, without = made().layer(1), made().layer(1, values=False)
    assert without.values is None
    assert without.step_values is None
    np.testing.assert_array_equal(with_values.keys, without.keys)


def test_a_tokens_concatenated_key_is_contiguous():
    keys = made().layer(1).keys
    assert keys.transpose(1, 0, 2).flags.c_contiguous


def test_keys_are_those_of_the_slow_twin():
    trace = made()
    weights = draw_weights(TINY, trace.generator, 12, trace.seed, 2)
    keys = trace.layer(2).keys
    for token in (0, 7, 59):
        want = ref_key(
            trace.latents[token],
            weights.key_projection,
            weights.key_bias,
            weights.key_noise,
            trace._noise_table,
            trace._noise_key(2, 0),
            token,
            token,
            TINY.n_kv_heads,
            TINY.rope_theta,
        )
        np.testing.assert_allclose(keys[:, token], want, rtol=1e-4, atol=1e-5)


def test_layers_are_the_same_in_any_order_and_on_any_number_of_threads():
    first, again = made(WIDE), made(WIDE)
    want = [list(arrays(first.layer(layer))) for layer in range(WIDE.n_layers)]
    threads = get_num_threads()
    set_num_threads(1)
    try:
        with threadpool_limits(1):
            for layer in (3, 0, 2, 1, 3):
                for got, expected in zip(arrays(again.layer(layer)), want[layer], strict=True):
                    np.testing.assert_array_equal(got, expected)
    finally:
        set_num_threads(threads)


def test_a_frame_probe_is_the_streams_own_next_frame_and_others_are_not():
    trace = made()
    layer = trace.layer(1)
    for p, probe in enumerate(trace.probes):
        own = layer.keys[:, probe.first_token : probe.first_token + probe.n_tokens]
        assert np.array_equal(layer.step_keys[p], own) == probe.in_stream


def test_fingerprints_tell_apart_what_makes_other_arrays():
    same = {made().fingerprint(), made().fingerprint()}
    others = {
        made(seed=1).fingerprint(),
        made(WIDE).fingerprint(),
        made(kv_lengths_tokens=(20, 40)).fingerprint(),
        made(generator=GeneratorConfig(text_affinity_nats=1.0)).fingerprint(),
        build_trace(TINY, SMALL_VIDEO, GeneratorConfig(), SessionWorkload(frames=3), 0).fingerprint(),
        build_trace(
            TINY, SMALL_VIDEO, GeneratorConfig(), ProbeWorkload(kv_lengths_tokens=(20, 50)), 0, batch_index=1
        ).fingerprint(),
    }
    assert len(same) == 1
    assert len(same | others) == 7


def test_a_trace_says_what_made_it():
    said = json.loads(json.dumps(made(kv_lengths_tokens=(20, 50)).describe()))
    assert said["video"] == "rendered"
    assert said["frames"] == 6
    assert said["seed"] == 0
    assert said["generator"]["predicted_query_cosine"] == 0.95


def test_keys_have_unit_power_shared_out_as_the_fields_say():
    rng = np.random.default_rng(5)
    keys = of_latents(random_latents(2000, rng), WIDE, GeneratorConfig()).layer(1).keys
    assert np.mean(keys**2) == pytest.approx(1.0, rel=0.2)
    silent = np.zeros((2000, 25), dtype=np.float32)
    noisy = GeneratorConfig(key=KeyConfig(noise_share=0.3, bias_share=0.2))
    assert np.mean(of_latents(silent, WIDE, noisy).layer(1).keys ** 2) == pytest.approx(0.5, rel=0.02)


def test_the_predicted_query_has_the_cosine_asked_for():
    for cosine in (0.0, 0.89, 1.0):
        layer = made(WIDE, GeneratorConfig(predicted_query_cosine=cosine)).layer(2)
        for true, guess in zip(layer.queries, layer.predicted_queries, strict=True):
            norms = np.linalg.norm(true, axis=-1) * np.linalg.norm(guess, axis=-1)
            np.testing.assert_allclose(np.sum(true * guess, axis=-1) / norms, cosine, atol=1e-4)


def test_content_logits_spread_as_sharply_as_asked():
    latents = random_latents(600, np.random.default_rng(1))
    for nats in (0.5, 2.0):
        generator = PLAIN.model_copy(
            update={"sharpness": PLAIN.sharpness.model_copy(update={"frame_nats": nats, "row_diversity": 1.0})}
        )
        layer = of_latents(latents, LLAMA3_8B, generator, n_step=100).layer(4, values=False)
        spread = [
            np.std(layer.queries[0][4 * h : 4 * h + 4] @ layer.keys[h].T, axis=-1) / np.sqrt(128) for h in range(8)
        ]
        # A latent in 12 random dimensions has a variance of 1/12 along each: the spread is nats on the whole.
        assert np.sqrt(np.mean(np.square(spread))) == pytest.approx(nats, rel=0.15)


def test_rows_of_a_step_agree_without_diversity_and_differ_with_it():
    latents = random_latents(100, np.random.default_rng(2))

    def likeness(diversity, of="queries"):
        sharpness = PLAIN.sharpness.model_copy(update={"row_diversity": diversity})
        generator = PLAIN.model_copy(update={"sharpness": sharpness})
        keys = of_latents(latents, LLAMA3_8B, generator, n_step=10).layer(4, values=False)
        rows = (getattr(keys, of)[0][:4].reshape(40, 128) @ keys.keys[0, :90].T).astype(np.float64)
        return np.corrcoef(rows)[np.triu_indices(40, 1)].mean()

    assert likeness(0.0) > 0.95 > likeness(0.3) > likeness(1.0)
    assert likeness(0.0, "predicted_queries") > 0.95 > likeness(1.0, "predicted_queries")
    assert abs(likeness(1.0)) < 0.2


def test_late_layers_are_sharper_than_early_ones():
    sharp = PLAIN.model_copy(update={"sharpness": PLAIN.sharpness.model_copy(update={"depth_gain": 3.0})})
    gains = [draw_weights(LLAMA3_8B, sharp, 12, 0, layer).gain for layer in (0, 20, 31)]
    assert gains[0] == pytest.approx(1.0)
    assert gains[2] == pytest.approx(4.0)
    assert gains[0] < gains[1] < gains[2]


def test_recency_is_what_rotation_makes_of_the_shared_bias():
    generator = PLAIN.model_copy(update={"recency": RecencyConfig(exponent=1.5, head_jitter=0.0)})
    silent = np.zeros((12_010, 25), dtype=np.float32)
    layer = of_latents(silent, LLAMA3_8B, generator, n_step=10).layer(5, values=False)
    logits = layer.queries[0][0, 0] @ layer.keys[0].T / np.sqrt(128)
    distance = 12_000 - np.arange(12_010)
    turns = 2 * np.pi * distance[:, None] / rope_wavelengths(LLAMA3_8B)
    want = 1.5 * np.cos(turns) @ recency_kernel(LLAMA3_8B, generator)
    np.testing.assert_allclose(logits, want, atol=2e-3)


def test_attention_falls_as_a_power_of_distance_between_the_wavelengths():
    def fall(near, far):
        distance = np.array([near, far])
        waves = np.cos(2 * np.pi * distance[:, None] / rope_wavelengths(LLAMA3_8B))
        kernel = waves @ recency_kernel(LLAMA3_8B, GeneratorConfig())
        return (kernel[0] - kernel[1]) / np.log(far / near)

    assert fall(100, 2_000) == pytest.approx(0.0, abs=0.1)  # flat before a sixth of the shortest wavelength
    assert fall(10_000, 30_000) == pytest.approx(1.0, abs=0.25)


def test_text_queries_prefer_text_by_the_affinity():
    words = text_latents(30, 12, np.random.default_rng(0))
    assert np.allclose(np.linalg.norm(words, axis=1), 1)
    assert np.mean(words[:15] @ words[15:].T) == pytest.approx(TEXT_SHARE, abs=0.1)
    frames = random_latents(30, np.random.default_rng(1))
    generator = PLAIN.model_copy(
        update={
            "text_affinity_nats": 5.0,
            "sharpness": PLAIN.sharpness.model_copy(update={"decode_nats": 0.0}),
        }
    )
    steps = (Step("frame", 0, 30), Step("question", 30, 30), Step("decode", 60, 1))
    latents = np.concatenate([frames, words, words[:1]])
    layer = SyntheticTrace(LLAMA3_8B, steps, steps[2:], generator, 0, latents).layer(3, values=False)
    logits = layer.queries[0][:, 0].reshape(8, 4, 128) @ layer.keys.transpose(0, 2, 1) / np.sqrt(128)
    assert np.mean(logits[..., 30:60]) - np.mean(logits[..., :30]) == pytest.approx(5.0, abs=0.1)


def test_like_tokens_stay_alike_only_if_content_lies_in_slow_pairs():
    features = np.repeat(np.random.default_rng(3).standard_normal((1, 10, 12)), 200, axis=0)
    still = frame_latents(features.astype(np.float32), 10.0, 0.3)

    def tokens_per_cluster(even_share):
        trace = of_latents(still, LLAMA3_8B, GeneratorConfig(key=KeyConfig(even_share=even_share)), n_step=10)
        selection = run_layer(ReSV(), trace, trace.layer(3, values=False))[0]
        return 1_990 / selection.tables[0].n_clusters

    assert tokens_per_cluster(0.02) > 5 * tokens_per_cluster(1.0)


def test_smoothing_makes_adjacent_frames_more_alike():
    features = np.random.default_rng(4).standard_normal((50, 10, 12)).astype(np.float32)

    def adjacent(smoothing_s):
        latents = frame_latents(features, 10.0, smoothing_s).reshape(50, 10, -1)
        return np.sum(latents[1:] * latents[:-1], axis=-1).mean()

    assert abs(adjacent(0.0)) < 0.1 < adjacent(0.1) < adjacent(1.0)


def test_a_length_the_clip_is_too_short_for_is_skipped_and_said(tmp_path):
    video = VideoConfig(file=str(write_clip(tmp_path / "c.avi", [40, 90, 140], fps=10)), size_px=16)
    trace = build_trace(TINY, video, GeneratorConfig(), ProbeWorkload(kv_lengths_tokens=(20, 30), stages=("frame",)))
    assert [p.first_token for p in trace.probes] == [20]
    assert list(trace.skipped_lengths) == [30]
    looped = video.model_copy(update={"loop": "pingpong"})
    sharp = GeneratorConfig(key=KeyConfig(smoothing_s=0.0))
    trace = build_trace(TINY, looped, sharp, ProbeWorkload(kv_lengths_tokens=(20, 30), stages=("frame",)))
    assert not trace.skipped_lengths
    np.testing.assert_array_equal(trace.latents[30:40], trace.latents[10:20])  # frames 0 1 2 1


def test_streams_of_a_batch_share_weights_and_nothing_else():
    workload = ProbeWorkload(kv_lengths_tokens=(20,), stages=("frame",))
    one, two = (build_trace(TINY, SMALL_VIDEO, GeneratorConfig(), workload, 3, b) for b in (0, 1))
    assert np.abs(one.latents - two.latents).max() > 0.1
    same_sight = replace(two, latents=one.latents)
    assert np.abs(one.layer(1).keys - same_sight.layer(1).keys).max() > 0.1  # noise of its own
    silent = [replace(t, generator=PLAIN) for t in (one, same_sight)]
    np.testing.assert_array_equal(silent[0].layer(1).keys, silent[1].layer(1).keys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": (Step("frame", 0, 10), Step("frame", 11, 10))}, "tile"),
        ({"steps": (Step("frame", 0, 10),)}, "latents"),
        ({"probes": (Step("decode", 10, 1, in_stream=False),)}, "latents of its own"),
        ({"probes": (Step("frame", 20, 10),)}, "the stream has 20 tokens"),
    ],
)
def test_an_inconsistent_trace_is_refused(change, message):
    steps = (Step("frame", 0, 10), Step("frame", 10, 10))
    fields = {"steps": steps, "probes": steps[1:], **change}
    with pytest.raises(ValueError, match=message):
        SyntheticTrace(TINY, fields["steps"], fields["probes"], PLAIN, 0, np.zeros((20, 25), dtype=np.float32))


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="layer 3: allowed are 0 to 2"):
        made().layer(3)


def test_a_head_too_small_for_the_generator_is_refused():
    narrow = TINY.model_copy(update={"head_dim": 4})
    with pytest.raises(ValueError, match="at least 8"):
        made(narrow).layer(0)


@pytest.mark.parametrize(
    "bad",
    [
        {"key": {"bias_share": 0.6, "noise_share": 0.5}},
        {"recency": {"shortest_tokens": 500.0, "longest_tokens": 400.0}},
        {"predicted_query_cosine": 1.2},
        {"warmth": 1},
    ],
)
def test_a_bad_generator_is_refused(bad):
    with pytest.raises(ValidationError):
        GeneratorConfig(**bad)


@cache
def session():
    trace = build_trace(LLAMA3_8B, VideoConfig(), GeneratorConfig(), SessionWorkload())
    selections = {}
    for layer in (3, 12):
        made_layer = trace.layer(layer, values=False)
        if layer == 3:
            selections["keys"] = made_layer.keys.transpose(1, 0, 2).reshape(trace.n_tokens, -1)
        selections[layer] = run_layer(ReSV(), trace, made_layer)
    return trace, selections


@pytest.mark.parametrize(("kind", "low", "high"), [("frame", 0.2, 0.5), ("decode", 0.005, 0.05)])
def test_the_defaults_retrieve_about_what_was_measured_on_coin(kind, low, high):
    trace, selections = session()
    for layer in (3, 12):
        ratios = [
            s.selected_tokens.sum() / s.candidate_tokens.sum()
            for step, s in zip(trace.probes, selections[layer], strict=True)
            if step.kind == kind and step.first_token
        ]
        assert low < np.mean(ratios) < high


def test_the_defaults_hash_about_as_well_as_was_measured():
    assert 0.7 < abs(cosine_hamming_correlation(session()[1]["keys"], 32, seed=0)) < 0.9
