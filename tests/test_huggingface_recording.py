"""A recording replayed outside the model selects what was selected inside it."""

import numpy as np
import pytest
import torch

import resv
from resv.huggingface.recording import Recorder
from resv.huggingface.step import projected_query
from resv.policies import POLICIES, run_layer
from resv.trace_file import RecordedTrace, write_trace
from tests.hf_models import MODELS, SESSION, embeds, model_named, run, steps
from tests.test_policy_conformance import SMALL, same


def small(kind, **options):
    return POLICIES[kind](**{**SMALL.get(kind, {}), **options})


def recorded(model, policy, recorder, x):
    """Stream frames, a probing question, a fork that is dropped, the same question for good; selections of item 1."""
    parts, seen = steps(x), []
    with resv.attach(model, policy, record=recorder) as attachment:
        stream = attachment.new_stream(len(x))

        def forward(part, kind, **options):
            stream.forward(part, kind, **options)
            seen.append(stream.last_selections[-1])

        for part, kind in parts[:9]:
            forward(part, kind)
        forward(parts[9][0], "question", in_stream=False)
        with stream.fork():
            stream.forward(parts[10][0], "decode")
            stream.forward(parts[9][0], "question", in_stream=False)
        for part, kind in parts[9:]:
            forward(part, kind)
    return seen


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", POLICIES)
def test_replaying_a_recording_selects_the_same(name, kind, tmp_path):
    model, policy = model_named(name), small(kind)
    recorder = Recorder(item=1)
    seen = recorded(model, policy, recorder, embeds(model, batch=2))
    write_trace(tmp_path / "trace.safetensors", recorder.trace())
    trace = RecordedTrace(tmp_path / "trace.safetensors")
    assert [probe.kind for probe in trace.probes] == ["frame"] * 9 + ["question"] * 2 + ["decode"] * 2
    assert [probe.in_stream for probe in trace.probes].count(False) == 1
    assert trace.n_tokens == sum(n for n, _ in SESSION)
    for layer in range(trace.shape.n_layers):
        replayed = run_layer(policy, trace, trace.layer(layer))
        assert all(same(a, step[layer]) for a, step in zip(replayed, seen, strict=True))


def test_a_recording_holds_what_the_model_computed():
    model = model_named("tiny-qwen2.5-vl")
    x = embeds(model)
    recorder = Recorder()
    attentions = [layer.self_attn for layer in model.model.language_model.layers]
    inputs = [[] for _ in attentions]
    hooks = [
        attention.register_forward_pre_hook(
            lambda module, args, kwargs, log=log: log.append((kwargs["hidden_states"], *kwargs["position_embeddings"])),
            with_kwargs=True,
        )
        for attention, log in zip(attentions, inputs, strict=True)
    ]
    try:
        run(model, POLICIES["full"](), x, record=recorder)
    finally:
        for hook in hooks:
            hook.remove()
    trace = recorder.trace()
    for layer, attention in enumerate(attentions):
        got = trace.layer(layer)
        assert got.keys.shape == got.values.shape == (2, trace.n_tokens, 16)
        assert got.keys.dtype == np.float32
        for p, (hidden, cosine, sine) in enumerate(inputs[layer]):
            with torch.no_grad():
                own = projected_query(attention, hidden, cosine, sine)[0]
                np.testing.assert_allclose(got.queries[p], own.numpy(), atol=1e-5)
                if layer:
                    before = inputs[layer - 1][p][0]
                    predicted = projected_query(attention, before, cosine, sine)[0]
                    np.testing.assert_allclose(got.predicted_queries[p], predicted.numpy(), atol=1e-5)
            start, n = trace.probes[p].first_token, trace.probes[p].n_tokens
            np.testing.assert_array_equal(got.step_keys[p], got.keys[:, start : start + n])
            np.testing.assert_array_equal(got.step_values[p], got.values[:, start : start + n])
    assert trace.layer(0).predicted_queries is None
    assert trace.layer(1, values=False).values is None
    with pytest.raises(ValueError, match="layer 3 is not among the 3"):
        trace.layer(3)


def test_files_hold_the_same_and_are_removed(tmp_path):
    model = model_named("tiny-llava")
    x = embeds(model, batch=2)
    in_memory = Recorder(item=1)
    recorded(model, small("resv"), in_memory, x)
    with Recorder(item=1, folder=tmp_path) as recorder:
        recorded(model, small("resv"), recorder, x)
        assert len(list(tmp_path.rglob("layer-*.f32"))) == 4
        a, b = in_memory.trace(), recorder.trace()
        assert a.fingerprint() == b.fingerprint()
        assert (a.steps, a.probes, a.describe()) == (b.steps, b.probes, b.describe())
        for layer in range(4):
            assert same(a.layer(layer), b.layer(layer))
    assert list(tmp_path.iterdir()) == []


def test_steps_nobody_probes_keep_their_keys_alone():
    model = model_named("tiny-llama")
    recorder = Recorder(probe=lambda step: step.kind == "question")
    run(model, POLICIES["full"](), embeds(model), record=recorder)
    trace = recorder.trace()
    assert [step.kind for step in trace.steps] == [kind for _, kind in SESSION]
    assert [probe.kind for probe in trace.probes] == ["question"]
    made = trace.layer(2)
    assert made.keys.shape[1] == 43
    assert len(made.queries) == len(made.predicted_queries) == len(made.step_keys) == 1


def test_a_recording_says_what_made_it():
    model = model_named("tiny-qwen2.5-vl")
    recorder = Recorder()
    run(model, POLICIES["rekv"](), embeds(model), record=recorder)
    said = recorder.trace().describe()
    assert (said["model_type"], said["dtype"], said["policy"]["kind"]) == ("qwen2_5_vl", "float32", "rekv")
    assert "M-RoPE" in " ".join(said["notes"])


def test_a_recorder_is_for_one_stream():
    model = model_named("tiny-llama")
    recorder = Recorder()
    with pytest.raises(ValueError, match="nothing was recorded"):
        recorder.trace()
    with resv.attach(model, POLICIES["full"](), record=recorder) as attachment:
        attachment.new_stream().forward(embeds(model, 3))
        other = attachment.new_stream()
        with pytest.raises(ValueError, match="records one stream"):
            other.forward(embeds(model, 3))
        assert other.n_tokens == 0
    with (
        resv.attach(model, POLICIES["full"](), record=Recorder(item=2)) as attachment,
        pytest.raises(ValueError, match="batch of 2"),
    ):
        attachment.new_stream(2).forward(embeds(model, 3, 2))


def test_after_a_reset_a_recording_begins_anew():
    model = model_named("tiny-llama")
    recorder = Recorder()
    with resv.attach(model, POLICIES["full"](), record=recorder) as attachment:
        stream = attachment.new_stream()
        stream.forward(embeds(model, 5))
        stream.reset()
        stream.forward(embeds(model, 3))
    assert recorder.trace().n_tokens == 3
