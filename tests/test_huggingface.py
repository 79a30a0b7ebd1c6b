"""Policies inside tiny random models of every family: equal to the model where nothing is left out, and clean."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import resv
from resv.huggingface.attach import NAME
from resv.huggingface.families import UnsupportedModelError
from resv.huggingface.store import MemoryStore
from resv.huggingface.tiny import tiny_model
from resv.huggingface.versions import TransformersVersionError, check_version
from resv.kv_cache import account
from resv.policies import POLICIES, ReSV
from resv.tiers.config import Tiers
from resv.tiers.store import tiered
from tests.hf_models import MODELS, N_TOKENS, SESSION, at_once, embeds, model_named, run, steps
from tests.test_policy_conformance import KEEPING_EVERYTHING, SMALL

every_model = pytest.mark.parametrize("name", MODELS)
every_policy = pytest.mark.parametrize("kind", POLICIES)


def small(kind, **options):
    return POLICIES[kind](**{**SMALL.get(kind, {}), **options})


@every_model
def test_streaming_under_the_full_policy_is_one_pass_of_the_model(name):
    model = model_named(name)
    x = embeds(model, batch=2)
    hidden, _ = run(model, POLICIES["full"](), x)
    torch.testing.assert_close(hidden, at_once(model, x), atol=1e-5, rtol=0)


@every_model
def test_logits_are_the_models(name):
    model = model_named(name)
    x = embeds(model)
    with resv.attach(model, POLICIES["full"]()) as attachment:
        stream = attachment.new_stream()
        outputs = [stream.forward(part, kind) for part, kind in steps(x)]
    with torch.no_grad():
        expected = model.get_output_embeddings()(at_once(model, x))
    got = torch.cat([out.logits for out in outputs], dim=1)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs[-1].last_logits, expected[:, -1], atol=1e-5, rtol=0)


@every_model
@every_policy
def test_every_policy_runs_in_every_family_and_accounts_for_its_tokens(name, kind):
    model, policy = model_named(name), small(kind)
    with resv.attach(model, policy) as attachment:
        stream = attachment.new_stream(batch=2)
        fetched = hit = 0
        for part, stage in steps(embeds(model, batch=2)):
            before, n_new = stream.n_tokens, part.shape[1]
            assert torch.isfinite(stream.forward(part, stage).hidden).all()
            for selection in stream.last_selections[1]:
                assert selection.attended.shape == (2, before)
                booked = account(selection, stream.stored_shape, n_new)
                hit, fetched = hit + booked.hit_bytes, fetched + booked.fetched_bytes
        assert stream.n_tokens == stream.store.n_tokens == N_TOKENS
        held = stream.bytes(1)
        assert (held.hit_bytes, held.fetched_bytes) == (hit, fetched)
        whole = attachment.shape.n_layers * stream.stored_shape.kv_bytes(N_TOKENS * attachment.shape.n_kv_heads)
        assert held.appended_bytes == whole
        assert (held.evicted_bytes > 0) == (kind in {"streamingllm", "flash_vstream"})


@every_model
@pytest.mark.parametrize("policy", KEEPING_EVERYTHING, ids=lambda policy: policy.kind)
def test_keeping_everything_is_the_full_cache(name, policy):
    model = model_named(name)
    x = embeds(model)
    if policy.kind == "infllm":  # it moves what it looks up, so only its window keeps everything where it was
        policy = POLICIES["infllm"](n_local=N_TOKENS)
    if policy.kind == "flash_vstream":
        assert policy.temporal >= len(SESSION)
    torch.testing.assert_close(run(model, policy, x)[0], run(model, POLICIES["full"](), x)[0], atol=1e-5, rtol=0)


@every_policy
def test_a_batch_of_three_is_three_streams(kind):
    model, policy = model_named("tiny-llava"), small(kind)
    x = embeds(model, batch=3)
    together, selections = run(model, policy, x)
    for item in range(3):
        alone, own = run(model, policy, x[item : item + 1])
        torch.testing.assert_close(together[item : item + 1], alone, atol=1e-5, rtol=0)
        for step, mine in zip(selections, own, strict=True):
            for a, b in zip(step[item], mine[0], strict=True):
                np.testing.assert_array_equal(a.attended, b.attended)


@every_policy
def test_no_token_sees_a_later_one(kind):
    model, policy = model_named("tiny-smolvlm"), small(kind)
    x = embeds(model)
    other = x.clone()
    other[:, 34] += 1  # inside a frame
    before, after = run(model, policy, x)[0], run(model, policy, other)[0]
    if policy.positions == "original" and kind not in {"infinigenp", "resv", "rekv_vrex", "topk"}:
        assert torch.equal(before[:, :34], after[:, :34])
    else:  # the rows of a step share one choice, so only earlier steps are untouched
        assert torch.equal(before[:, :32], after[:, :32])
    assert not torch.equal(before[:, 34:], after[:, 34:])


def test_cached_tokens_are_read_by_steps_of_several_tokens():
    """An attention function that trusts the model's mask, which is None here, loses the cache as soon as n > 1."""
    model = model_named("tiny-llama")
    x = embeds(model)
    other = x.clone()
    other[:, 0] += 1
    a, b = (run(model, POLICIES["full"](), y)[0] for y in (x, other))
    assert ((a - b).abs().amax(dim=-1) > 1e-6).all()


def test_positions_go_on_after_eviction():
    model = model_named("tiny-llama")
    with resv.attach(model, POLICIES["streamingllm"](start_size=2, recent_size=10)) as attachment:
        stream = attachment.new_stream()
        for part, kind in steps(embeds(model)):
            stream.forward(part, kind)
        assert stream.token_positions.tolist() == list(range(N_TOKENS))
        kept = stream.last_selections[0][0].attended
        assert kept.sum(axis=1).tolist() == [11, 11]


@every_policy
def test_a_dropped_fork_leaves_no_trace_and_a_kept_one_is_the_stream(kind):
    model, policy = model_named("tiny-llama"), small(kind)
    x = embeds(model)
    parts = steps(x)
    plain = run(model, policy, x)[0][:, -7:]

    def asked(*, ask, keep=False, fail=False):
        with resv.attach(model, policy) as attachment:
            stream = attachment.new_stream()
            for part, stage in parts[:9]:
                stream.forward(part, stage)
            if ask:
                try:
                    with stream.fork() as aside:
                        for part, stage in parts[9:]:
                            spoken = stream.forward(part + (not keep), stage)
                        if keep:
                            aside.keep()
                        if fail:
                            raise KeyError
                except KeyError:
                    pass
            if keep:
                return spoken.hidden, stream.bytes()
            assert stream.n_tokens == stream.store.n_tokens == 36
            hidden = torch.cat([stream.forward(part, stage).hidden for part, stage in parts[9:]], dim=1)
            return hidden, stream.bytes()

    never = asked(ask=False)
    for fail in (False, True):
        hidden, held = asked(ask=True, fail=fail)
        torch.testing.assert_close(hidden, plain, atol=1e-6, rtol=0)
        assert held == never[1]
    hidden, held = asked(ask=True, keep=True)
    torch.testing.assert_close(hidden, plain[:, -1:], atol=1e-6, rtol=0)
    assert held == never[1]


def test_after_an_error_a_fork_is_dropped_even_where_it_was_to_be_kept():
    model = model_named("tiny-llama")
    with resv.attach(model, small("topk")) as attachment:
        stream = attachment.new_stream()
        stream.forward(embeds(model, 4))

        def asked(error=None):
            with stream.fork() as aside:
                stream.forward(embeds(model, 3), "question")
                aside.keep()
                if error is not None:
                    raise error

        with pytest.raises(KeyError):
            asked(KeyError())
        assert stream.n_tokens == stream.store.n_tokens == 4
        asked()
        assert stream.n_tokens == stream.store.n_tokens == 7


def test_a_probe_leaves_the_cache_as_it_is():
    model = model_named("tiny-llama")
    x = embeds(model)
    parts = steps(x)
    with resv.attach(model, POLICIES["topk"](k=3)) as attachment:
        stream = attachment.new_stream()
        for part, stage in parts[:5]:
            stream.forward(part, stage)
        asked = stream.forward(parts[9][0], "question", in_stream=False).hidden
        assert stream.n_tokens == stream.store.n_tokens == 20
        torch.testing.assert_close(stream.forward(parts[9][0], "question").hidden, asked, atol=1e-6, rtol=0)


@pytest.mark.parametrize("recent", ["candidate", "exempt"])
@pytest.mark.parametrize("kind", ["topk", "resv", "quest", "streamingllm"])
def test_a_stage_that_a_policy_is_kept_out_of_reads_everything_and_no_exempt_token_is_a_candidate(kind, recent):
    model = model_named("tiny-llama")
    x = embeds(model)
    options = {} if kind == "streamingllm" else {"recent_bytes": 6 * 3 * 2 * 2 * 8 * 4}  # six tokens
    with resv.attach(model, small(kind, recent=recent, **options)) as attachment:
        stream = attachment.new_stream()
        stream.acts_in = frozenset()
        hidden = []
        for part, stage in steps(x):
            hidden.append(stream.forward(part, stage).hidden)
            for got in stream.last_selections[0]:
                assert got.attended.all()
                left_out = (
                    ~got.resident if recent == "exempt" and kind != "streamingllm" else np.ones_like(got.attended)
                )
                np.testing.assert_array_equal(got.candidates, left_out)
        assert not got.resident.all()
    torch.testing.assert_close(torch.cat(hidden, dim=1), at_once(model, x), atol=1e-5, rtol=0)


class FullStore(MemoryStore):
    """A store that has no room for the layer that is asked of it."""

    refuse = False

    def append(self, layer, keys, values):
        if self.refuse and layer == 2:
            raise OSError("no space left on device")
        super().append(layer, keys, values)


@every_policy
def test_a_step_that_fails_leaves_the_stream_as_it_was(kind):
    model, policy = model_named("tiny-llama"), small(kind)
    x = embeds(model)
    expected = run(model, policy, x)[0]
    with resv.attach(model, policy, store=FullStore) as attachment:
        stream = attachment.new_stream()
        for at, (part, stage) in enumerate(steps(x)):
            if at in (0, 4, 9):
                stream.store.refuse = True
                with pytest.raises(OSError, match="no space"):
                    stream.forward(part, stage)
                stream.store.refuse = False
            out = stream.forward(part, stage)
        torch.testing.assert_close(out.hidden, expected[:, -1:], atol=1e-6, rtol=0)
        assert stream.n_steps == len(SESSION)


def test_reset_is_a_new_stream():
    model = model_named("tiny-qwen2.5-vl")
    x = embeds(model)
    with resv.attach(model, small("resv")) as attachment:
        stream = attachment.new_stream()
        first = [stream.forward(part, stage).hidden for part, stage in steps(x)]
        stream.reset()
        assert stream.n_tokens == stream.store.n_tokens == stream.bytes().appended_bytes == 0
        again = [stream.forward(part, stage).hidden for part, stage in steps(x)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@every_model
def test_the_model_is_given_back(name):
    model = tiny_model(name)
    decoder_config = model.config.get_text_config()
    vision_config = getattr(model.config, "vision_config", None)
    before = decoder_config._attn_implementation
    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    with resv.attach(model, small("resv")):
        assert decoder_config._attn_implementation == NAME
        assert vision_config is None or vision_config._attn_implementation == before
    with pytest.raises(KeyError), resv.attach(model, small("infinigenp")):
        raise KeyError
    assert decoder_config._attn_implementation == before
    assert not any(module._forward_pre_hooks for module in model.modules())
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, expected)


def test_one_policy_at_a_time_and_only_through_a_stream():
    model = model_named("tiny-llama")
    with resv.attach(model, small("full")) as attachment:
        with pytest.raises(ValueError, match="attached to this LlamaForCausalLM already"):
            resv.attach(model, small("resv")).__enter__()
        with pytest.raises(RuntimeError, match=r"attachment\.new_stream"):
            model(input_ids=torch.arange(4)[None])
        stream = attachment.new_stream()
        stream.forward(embeds(model, 4))
    with pytest.raises(ValueError, match="closed"):
        stream.forward(embeds(model, 4))


def test_bad_steps_are_refused():
    model = model_named("tiny-llama")
    with resv.attach(model, small("full")) as attachment:
        with pytest.raises(ValueError, match="batch is 0"):
            attachment.new_stream(0)
        stream = attachment.new_stream(2)
        for wrong in (embeds(model, 4), embeds(model, 4, 2)[..., :-1], embeds(model, 0, 2), embeds(model, 4, 2)[0]):
            with pytest.raises(ValueError, match="with batch 2, hidden 64 and at least one token"):
                stream.forward(wrong)
        with pytest.raises(ValueError, match="differ between batch items"):
            stream.forward(embeds(model, 4, 2), positions=torch.stack([torch.arange(4), torch.arange(4) + 1]))
        for wrong in (torch.arange(5), torch.arange(8), torch.zeros((3, 4)), torch.zeros((3, 2, 4))):
            with pytest.raises(ValueError, match=r"positions are \(.*\); allowed: \(4,\) or \(2, 4\)$"):
                stream.forward(embeds(model, 4, 2), positions=wrong)
        with pytest.raises(ValueError, match="stage is 'answer'; allowed: frame, question, decode"):
            stream.forward(embeds(model, 4, 2), "answer")
        assert stream.n_tokens == stream.store.n_tokens == 0
        with pytest.raises(UnsupportedModelError, match="no vision tower"):
            stream.add_frame(torch.zeros(2, 8, 8, 3, dtype=torch.uint8))


def test_what_a_policy_refuses_leaves_the_stream_as_it_was():
    model = model_named("tiny-llama")
    with resv.attach(model, POLICIES["streamingllm"](recent_size=5)) as attachment:
        stream = attachment.new_stream()
        stream.forward(embeds(model, 5))
        with pytest.raises(ValueError, match="recent_size is 5, but a step brings 6 tokens"):
            stream.forward(embeds(model, 6))
        assert stream.n_tokens == stream.store.n_tokens == 5
        stream.forward(embeds(model, 5))


def test_positions_of_a_model_with_several_are_one_row_or_three():
    model = model_named("tiny-qwen2.5-vl")
    x, row = embeds(model, 4, 2), torch.arange(4)
    with resv.attach(model, small("full")) as attachment:
        usual = attachment.new_stream(2).forward(x, "question").hidden
        for given in (row, row.expand(2, 4), row.expand(3, 2, 4)):
            assert torch.equal(attachment.new_stream(2).forward(x, "question", positions=given).hidden, usual)
        with pytest.raises(ValueError, match=r"allowed: \(4,\) or \(2, 4\) or \(3, 2, 4\)"):
            attachment.new_stream(2).forward(x, positions=row.expand(3, 4))


def test_given_positions_are_used():
    model = model_named("tiny-llama")
    x = embeds(model, 8)
    with resv.attach(model, small("full")) as attachment:
        moved, usual = attachment.new_stream(), attachment.new_stream()
        a = moved.forward(x, positions=torch.arange(8) * 3).hidden
        b = usual.forward(x).hidden
        assert moved.token_positions.tolist() == list(range(0, 24, 3))
        assert moved.forward(x).hidden.shape == b.shape
        assert moved.token_positions[8:].tolist() == list(range(22, 30))
    decoder = model.model
    with torch.no_grad():
        # With a mask: without one, the model takes a jump in positions for the start of another sequence.
        given = {"position_ids": torch.arange(8)[None] * 3, "attention_mask": torch.ones(1, 8)}
        expected = decoder(inputs_embeds=x, use_cache=False, **given).last_hidden_state
    torch.testing.assert_close(a, expected, atol=1e-5, rtol=0)
    assert (a - b).abs().max() > 1e-3


def test_unsupported_models_are_named_with_what_is_missing():
    from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2Model

    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=8)).eval()
    with pytest.raises(UnsupportedModelError, match=r"model_type 'gpt2'.*decoder layers.*llama, qwen2.*smolvlm"):
        resv.attach(gpt2, small("full")).__enter__()
    with pytest.raises(UnsupportedModelError, match="no config"):
        resv.attach(torch.nn.Linear(2, 2), small("full")).__enter__()
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 8,
    }
    mistral = MistralForCausalLM(MistralConfig(num_hidden_layers=1, sliding_window=16, **sizes)).eval()
    sliding = Qwen2Config(num_hidden_layers=2, use_sliding_window=True, sliding_window=4, max_window_layers=1, **sizes)
    for model in (mistral, Qwen2Model(sliding).eval()):
        with pytest.raises(UnsupportedModelError, match="sliding-window attention"):
            resv.attach(model, small("full")).__enter__()
    with pytest.raises(ValueError, match="training mode"):
        resv.attach(tiny_model("tiny-llama").train(), small("full")).__enter__()


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "mistral"])
def test_plain_decoders_of_other_makes_stream_too(kind):
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    options = {"sliding_window": None} if kind == "mistral" else {}
    config = AutoConfig.for_model(
        kind, **sizes, num_hidden_layers=3, head_dim=8, vocab_size=16, initializer_range=0.1, **options
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    x = embeds(model)
    torch.testing.assert_close(run(model, POLICIES["full"](), x)[0], at_once(model, x), atol=1e-5, rtol=0)
    assert torch.isfinite(run(model, small("infinigenp"), x)[0]).all()


@pytest.mark.parametrize("version", ["4.57.1", "5.19.0", "6.0.0", "6.0.0.dev0"])
def test_a_release_of_transformers_that_is_not_supported_is_refused(version):
    with pytest.raises(TransformersVersionError, match=r"too (old|new); supported: >=5.20,<6"):
        check_version(version)


def test_supported_releases_pass():
    for version in ("5.20.0", "5.23.0", "5.99.1.dev0"):
        check_version(version)


def test_a_missing_transformers_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        TransformersVersionError, match=r">=5.20,<6, which is not installed: pip install 'resv-sim\[hf\]'"
    ):
        tiny_model("tiny-llama")


def test_only_the_packages_that_need_models_import_transformers():
    root = Path(resv.__file__).parents[1]
    sources = [path for package in ("resv", "dre_sim", "energy_models") for path in root.glob(f"{package}/**/*.py")]
    importing = [
        path for path in sources if re.search(r"^\s*(import|from) transformers\b", path.read_text(), re.MULTILINE)
    ]
    assert {path.parent.name for path in importing} <= {"huggingface", "mini"}


def test_importing_resv_imports_neither_torch_nor_transformers():
    code = "import sys, resv, resv.trace, resv.selection; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'detach'"):
        _ = resv.detach


TYPES = [torch.bfloat16, torch.float16]
cuda = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"))


@pytest.mark.parametrize("device", ["cpu", cuda])
@pytest.mark.parametrize("dtype", [torch.float32, *TYPES], ids=str)
@pytest.mark.parametrize("kind", ["full", "resv", "rekv", "infllm", "oaken", "streamingllm", "infinigenp"])
def test_other_types_and_devices_run(device, dtype, kind):
    model = tiny_model("tiny-llava").to(device, dtype)
    x = embeds(model).to(device)
    hidden, _ = run(model, small(kind), x)
    assert (hidden.dtype, hidden.device.type) == (dtype, device)
    assert torch.isfinite(hidden).all()
    if kind == "full":
        tolerance = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.15}[dtype]
        torch.testing.assert_close(hidden.float(), at_once(model, x).float(), atol=tolerance, rtol=0)


def test_bytes_follow_the_type_of_the_model():
    for dtype, bits in ((torch.float32, 32), (torch.bfloat16, 16)):
        with resv.attach(tiny_model("tiny-llama").to(dtype), small("full")) as attachment:
            stream = attachment.new_stream(2)
            stream.forward(embeds(attachment.model, 6, 2))
            per_item = stream.bytes().resident_bytes
            assert per_item == 6 * 3 * 2 * 2 * 8 * bits // 8  # tokens, layers, K and V, heads, dimension
            assert stream.store.size().device_bytes == 2 * per_item


def test_the_store_counts_no_evicted_bytes():
    model = model_named("tiny-llama")
    with resv.attach(model, POLICIES["streamingllm"](start_size=2, recent_size=8)) as attachment:
        stream = attachment.new_stream(2)
        for part, stage in steps(embeds(model, batch=2)):
            stream.forward(part, stage)
        shape = attachment.shape
        assert stream.store.size().device_bytes == 2 * shape.n_layers * shape.kv_bytes(2 * (2 + 8))


@pytest.mark.parametrize("kind", ["flexgen_stream", "resv", "rekv", "infllm", "quest", "oaken", "streamingllm"])
def test_where_keys_lie_changes_nothing(kind, tmp_path):
    """On the device four tokens' worth, the newest of the rest on the host, everything on the disk."""
    model = model_named("tiny-llava")
    x = embeds(model, batch=2)
    shape_bytes = 4 * 2 * 2 * 8 * 4  # layers, K and V, heads, dimension, float32
    options = {} if kind == "streamingllm" else {"recent_bytes": 4 * shape_bytes}
    policy = small(kind, **options)
    store = tiered(Tiers(folder=tmp_path, host_bytes=2 * 8 * shape_bytes))
    hidden, selections = run(model, policy, x)
    with resv.attach(model, policy, store=store) as attachment:
        stream = attachment.new_stream(2)
        for at, (part, stage) in enumerate(steps(x)):
            out = stream.forward(part, stage)
            with stream.fork():  # reads ahead for tokens that are dropped again
                stream.forward(part, "question")
            for now, before in zip(stream.states[1], selections[at][1], strict=True):
                np.testing.assert_array_equal(now.n_cached, before.n_cached + part.shape[1])
        held, size = stream.bytes(), stream.store.size()
        if kind != "oaken":  # the store keeps what came, in full precision
            assert size.device_bytes == 2 * held.resident_bytes
            assert size.host_bytes + size.disk_bytes == 2 * held.offloaded_bytes
    torch.testing.assert_close(out.hidden, hidden[:, -1:], atol=1e-5, rtol=0)


class AskedStore(MemoryStore):
    """Says that not everything is on the device, and keeps what it was asked for ahead of time and then."""

    def __init__(self, *args):
        super().__init__(*args)
        self.ahead, self.read = {}, {}

    @property
    def on_device(self):
        return False

    def prefetch(self, layer, indices):
        self.ahead[layer] = indices.tolist()

    def gather(self, layer, indices):
        self.read[layer] = indices.tolist()
        return super().gather(layer, indices)


def test_a_store_is_told_ahead_what_the_next_layer_will_read():
    model = model_named("tiny-llama")
    for policy in (small("full"), small("topk", k=1)):
        with resv.attach(model, policy, store=AskedStore) as attachment:
            stream = attachment.new_stream()
            read = {}
            for part, stage in steps(embeds(model))[:5]:
                stream.store.ahead.clear()
                stream.forward(part, stage)
                if policy.kind == "full":
                    everything = [[list(range(stream.n_tokens - 4))] * 2]
                    assert stream.store.ahead == ({1: everything, 2: everything} if stream.n_tokens > 4 else {})
                else:  # what it read in the step before
                    assert stream.store.ahead == {layer: read[layer] for layer in read if layer}
                    read = dict(stream.store.read)
            with stream.fork():
                stream.forward(part, stage)
            assert stream.last_read == {}


def test_timing_is_counted_and_shares_add_up():
    model = model_named("tiny-llama")
    with resv.attach(model, small("resv")) as attachment:
        stream = attachment.new_stream()
        assert stream.timing.policy_share == 0
        stream.keep_selections = False
        for part, stage in steps(embeds(model)):
            stream.forward(part, stage)
        timing = stream.timing
        assert stream.last_selections == ()
        assert timing.n_steps == len(SESSION)
        assert 0 < timing.policy_s < timing.forward_s
        assert 0 < timing.predict_s < timing.forward_s
        added_s = timing.policy_s + timing.predict_s
        assert timing.policy_share == added_s / (timing.forward_s - added_s)


def test_notes_say_what_a_result_does_not_mean():
    def notes(name, kind, **options):
        with resv.attach(model_named(name), POLICIES[kind](**options)) as attachment:
            return " ".join(attachment.notes)

    assert notes("tiny-llama", "rekv") == notes("tiny-llama", "resv") == notes("tiny-qwen2.5-vl", "resv") == ""
    assert "M-RoPE" in notes("tiny-qwen2.5-vl", "rekv")
    assert "keep their original positions" in notes("tiny-qwen2.5-vl", "streamingllm")
    assert "approximate" in notes("tiny-qwen2.5-vl", "oaken")
    assert "approximate" not in notes("tiny-qwen2.5-vl", "rekv", keys="rotated")
    assert "trained or calibrated" in notes("tiny-llama", "oaken")
    assert "Stream.reset" in notes("tiny-llama", "flash_vstream")


def test_sharing_one_model_two_streams_do_not_disturb_each_other():
    model = model_named("tiny-qwen2.5-vl")
    x, y = embeds(model, seed=1), embeds(model, seed=2)
    with resv.attach(model, ReSV()) as attachment:
        one, two = attachment.new_stream(), attachment.new_stream()
        for (a, stage), (b, _) in zip(steps(x), steps(y), strict=True):
            last = one.forward(a, stage).hidden, two.forward(b, stage).hidden
    torch.testing.assert_close(last[0], run(model, ReSV(), x)[0][:, -1:], atol=1e-6, rtol=0)
    torch.testing.assert_close(last[1], run(model, ReSV(), y)[0][:, -1:], atol=1e-6, rtol=0)
