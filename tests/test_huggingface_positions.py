"""Moved positions inside models against a slow twin that starts from keys before rotation."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import resv
from resv.huggingface.attention import attend, token_indices
from resv.huggingface.positions import Turns, cannot_move, effective, shifts_in_a_row, turns_by_index
from resv.huggingface.tiny import tiny_model
from resv.policies import POLICIES
from resv.rope import rotated
from tests.hf_models import embeds, model_named, steps
from tests.shapes import TINY

# Of the same layer: predicting a query runs a projection that the hooks below would see too.
SAME = {"predict": "same_layer"}
POLICY = {
    "streamingllm": POLICIES["streamingllm"](start_size=3, recent_size=14, **SAME),
    "rekv": POLICIES["rekv"](n_local=10, r=2, n_init=3, **SAME),
    "infllm": POLICIES["infllm"](n_local=10, n_init=3, block_tokens=5, topk=1, representatives=2, **SAME),
}


def turn(x, positions, frequencies):
    """x (..., n, D) of plain rotary embedding, by complex numbers"""
    half = x.shape[-1] // 2
    spun = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * np.multiply.outer(positions, frequencies))
    return np.concatenate([spun.real, spun.imag], axis=-1)


def naive_output(policy, raw, n_cached, n_new, attended, window_start, frequencies):
    """(N, H·G, D) float64: keys before rotation are put where the policy says, row by row."""
    queries, keys, values = raw  # (n, heads, D) of all tokens so far
    group = queries.shape[1] // keys.shape[1]
    out = np.zeros((n_new, *queries.shape[1:]))
    for head in range(queries.shape[1]):
        kv = head // group
        kept = np.flatnonzero(attended[kv])
        for row in range(n_new):
            own = np.arange(n_cached, n_cached + row + 1)
            tokens = np.concatenate([kept, own])
            if policy.kind == "infllm":
                positions, query_positions = tokens.copy(), np.full(len(tokens), n_cached + row)
                far = tokens < min(window_start, max(0, n_cached - policy.n_local))
                positions[far], query_positions[far] = 0, policy.n_local - 1
            else:
                positions, query_positions = np.arange(len(tokens)), np.full(len(tokens), len(kept) + row)
            k = turn(keys[tokens, kv], 0 * tokens, frequencies)
            k = np.stack([turn(one[None], [at], frequencies)[0] for one, at in zip(k, positions, strict=True)])
            q = np.stack([turn(queries[n_cached + row, head][None], [at], frequencies)[0] for at in query_positions])
            logits = (q * k).sum(axis=1) / np.sqrt(q.shape[1])
            weights = np.exp(logits - logits.max())
            out[row, head] = weights @ values[tokens, kv] / weights.sum()
    return out


def captured(model):
    """Hooks that keep each layer's projections and what its attention gives; per layer lists over steps."""
    seen = [{"q_proj": [], "k_proj": [], "v_proj": [], "out": []} for _ in model.model.layers]
    hooks = []
    for layer, log in zip(model.model.layers, seen, strict=True):
        for name in ("q_proj", "k_proj", "v_proj"):
            keep = lambda module, args, out, log=log, name=name: log[name].append(out.detach().double().numpy())  # noqa: E731
            hooks.append(getattr(layer.self_attn, name).register_forward_hook(keep))
        give = lambda module, args, log=log: log["out"].append(args[0].detach().double().numpy())  # noqa: E731
        hooks.append(layer.self_attn.o_proj.register_forward_pre_hook(give))
    return seen, hooks


@pytest.mark.parametrize("kind", POLICY)
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "llama3 scaling"])
def test_moved_keys_are_keys_rotated_to_where_the_policy_puts_them(kind, scaled):
    model, policy = tiny_model("tiny-llama"), POLICY[kind]
    if scaled:
        from transformers import LlamaForCausalLM

        rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        rope |= {"original_max_position_embeddings": 64, "rope_theta": 1e4}
        config = type(model.config)(**{**model.config.to_dict(), "rope_parameters": rope})
        scaled_model = LlamaForCausalLM(config).eval()
        scaled_model.load_state_dict(model.state_dict())
        model = scaled_model
    frequencies = model.model.rotary_emb.inv_freq.double().numpy()
    seen, hooks = captured(model)
    moved = 0
    with resv.attach(model, policy) as attachment:
        stream = attachment.new_stream(2)
        for part, stage in steps(embeds(model, batch=2)):
            n_cached, n_new = stream.n_tokens, part.shape[1]
            starts = [getattr(state, "window_start", 0) for state in stream.states[1]]
            stream.forward(part, stage)
            for layer, log in enumerate(seen):
                raw = [
                    np.concatenate(log[name], axis=1)[1].reshape(n_cached + n_new, -1, 8)
                    for name in ("q_proj", "k_proj", "v_proj")
                ]
                attended = stream.last_selections[1][layer].attended
                got = log["out"][-1][1].reshape(n_new, -1, 8)
                expected = naive_output(policy, raw, n_cached, n_new, attended, starts[layer], frequencies)
                np.testing.assert_allclose(got, expected, atol=2e-5)
                moved += not attended.all() or starts[layer] > 0
    for hook in hooks:
        hook.remove()
    assert moved > 5


def test_a_turn_is_a_rotation_by_whole_positions():
    x = np.random.default_rng(0).normal(size=(1, 2, 5, TINY.head_dim)).astype(np.float32)
    turns = Turns(torch.tensor(TINY.rope_theta ** -(np.arange(0, TINY.head_dim, 2) / TINY.head_dim)))
    for shifts in ([0, 1, 2, 3, 4], [-7, 300, 0, -1, 12_000]):
        got = turns.turned(torch.from_numpy(x), np.array(shifts)[None, None])
        np.testing.assert_allclose(got.numpy(), rotated(x, np.array(shifts), TINY), atol=3e-5)
    back = turns.turned(turns.turned(torch.from_numpy(x), np.array([[[9]]])), np.array([[[-9]]]))
    np.testing.assert_allclose(back.numpy(), x, atol=1e-6)
    assert turns.turned(torch.from_numpy(x).bfloat16(), np.array([[[9]]])).dtype == torch.bfloat16


def test_tokens_move_up_to_the_step_and_padding_stays():
    indices = np.array([[[0, 1, 8, 9], [4, 9, -1, -1]]])
    shifts = shifts_in_a_row(indices, np.arange(10), 10)
    assert shifts.tolist() == [[[6, 6, 0, 0], [4, 0, 0, 0]]]
    same = shifts_in_a_row(np.tile(indices[:, :1], (3, 2, 1)), np.arange(10) + 5, 20)
    assert same.tolist() == [[[11, 11, 5, 5]]]


def test_models_whose_tokens_cannot_be_moved_say_why():
    plain, changing = SimpleNamespace(rope_type="default"), SimpleNamespace(rope_type="dynamic")
    assert cannot_move(plain, False) == ""
    assert "M-RoPE" in cannot_move(plain, True)
    assert "dynamic" in cannot_move(changing, False)
    assert effective("clamped", plain, False) == "clamped"
    assert effective("clamped", changing, False) == effective("consecutive", plain, True) == "original"
    rotary = model_named("tiny-llama").model.rotary_emb
    shape = TINY.model_copy(update={"head_dim": 8, "rope_theta": 1e4})
    assert turns_by_index(rotary, False, shape)
    assert not turns_by_index(rotary, True, shape)
    assert not turns_by_index(rotary, False, shape.model_copy(update={"rope_theta": 5e5}))


@pytest.mark.parametrize("n_new", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_a_masked_softmax_row_by_row(n_new, masked):
    generator = torch.Generator().manual_seed(n_new)
    query = torch.randn(2, 6, n_new, 4, generator=generator)
    keys, values = (torch.randn(2, 3, 7 + n_new, 4, generator=generator) for _ in range(2))
    allowed = torch.rand(2, 3, 7, generator=generator) < 0.5 if masked else None
    got = attend(query, keys, values, allowed, 0.7)
    for item, head, row in np.ndindex(2, 6, n_new):
        sees = torch.ones(7 + n_new, dtype=torch.bool)
        sees[7 + row + 1 :] = False
        if allowed is not None:
            sees[:7] = allowed[item, head // 2]
        logits = 0.7 * keys[item, head // 2][sees] @ query[item, head, row]
        expected = logits.softmax(0) @ values[item, head // 2][sees]
        torch.testing.assert_close(got[item, head, row], expected, atol=1e-6, rtol=1e-5)


def test_token_indices_are_a_mask_in_another_form():
    rng = np.random.default_rng(0)
    for n in (0, 1, 9):
        mask = rng.random((3, 2, n)) < 0.4
        indices = token_indices(mask)
        assert indices.shape == (3, 2, mask.sum(axis=-1).max(initial=0))
        for item, head in np.ndindex(3, 2):
            kept = np.flatnonzero(mask[item, head])
            row = indices[item, head]
            assert row[: len(kept)].tolist() == kept.tolist()
            assert (row[len(kept) :] == -1).all()
