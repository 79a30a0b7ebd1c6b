"""In-model fidelity: nothing lost is nothing measured, and layers agree with the trace's own measure."""

import numpy as np
import pytest
import torch

from resv.attention import fidelity
from resv.huggingface.compare import StepInput, compare
from resv.huggingface.recording import Recorder
from resv.policies import POLICIES
from tests.hf_models import SESSION, embeds, model_named, run, steps
from tests.test_policy_conformance import SMALL


@pytest.mark.parametrize("kind", ["full", "flexgen_stream", "videollm_online"])
def test_what_loses_nothing_measures_nothing(kind):
    model = model_named("tiny-llava")
    for step in compare(model, POLICIES[kind](), steps(embeds(model, batch=2))):
        assert (step.kl_nats, step.top1_agreement) == (0, 1)
        assert (step.attended_share == 1).all()
        assert (step.attention_mass_kept == 1).all()
        assert (step.output_rel_error == 0).all()


def test_kl_and_agreement_are_of_the_next_token():
    model, policy = model_named("tiny-llava"), POLICIES["topk"](k=1)
    x = embeds(model, batch=3)
    ours, theirs = (run(model, p, x)[0] for p in (policy, POLICIES["full"]()))
    with torch.no_grad():
        p, q = (model.get_output_embeddings()(h).double().softmax(-1).numpy() for h in (theirs, ours))
    got = compare(model, policy, [StepInput(part, kind) for part, kind in steps(x)])
    ends = np.cumsum([n for n, _ in SESSION]) - 1
    assert [(step.step.n_tokens, step.step.kind) for step in got] == SESSION
    for step, end in zip(got, ends, strict=True):
        kl = (p[:, end] * np.log(p[:, end] / q[:, end])).sum(axis=-1).mean()
        assert step.kl_nats == pytest.approx(kl, abs=1e-5)
        assert step.top1_agreement == np.mean(p[:, end].argmax(-1) == q[:, end].argmax(-1))
    assert max(step.kl_nats for step in got) > 1e-3


@pytest.mark.parametrize("kind", ["resv", "infinigenp"])
def test_layers_measure_as_a_recorded_trace_does(kind):
    model, policy = model_named("tiny-smolvlm"), POLICIES[kind](**SMALL.get(kind, {}))
    x = embeds(model)
    recorder = Recorder()
    _, selections = run(model, policy, x, record=recorder)
    trace = recorder.trace()
    got = compare(model, policy, steps(x))
    for layer in range(trace.shape.n_layers):
        held = trace.layer(layer)
        for p, step in enumerate(got):
            s = step.step.first_token
            attended = selections[p][0][layer].attended
            own = held.step_keys[p], held.step_values[p]
            expected = fidelity(held.queries[p], held.keys[:, :s], held.values[:, :s], *own, attended)
            assert step.attention_mass_kept[layer] == pytest.approx(expected.attention_mass_kept.mean(), abs=1e-6)
            assert step.output_rel_error[layer] == pytest.approx(expected.output_rel_error.mean(), abs=1e-6)
            assert step.topk_overlap[layer] == pytest.approx(expected.topk_overlap.mean())
            assert step.attended_share[layer] == (attended.mean() if s else 1)


def test_a_quantised_cache_keeps_all_mass_and_errs():
    model = model_named("tiny-llama")
    got = compare(model, POLICIES["oaken"](), steps(embeds(model)))
    assert all((step.attention_mass_kept == 1).all() for step in got)
    assert (got[0].output_rel_error == 0).all()
    assert all((step.output_rel_error > 0).all() and (step.output_rel_error < 0.3).all() for step in got[1:])


def test_nothing_to_compare_is_nothing():
    assert compare(model_named("tiny-llama"), POLICIES["full"](), []) == ()
