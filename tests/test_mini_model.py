"""The mini model: batches, training, resuming, weights, and the shipped weights against their card."""

from __future__ import annotations

import json
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import DynamicCache

from resv.mini.card import card_streams, measure, render_card
from resv.mini.checkpoint import Run, load_checkpoint, save_checkpoint, start
from resv.mini.evaluation import answer_stream, evaluate, score_narration
from resv.mini.model import TOKENS_PER_FRAME, MiniConfig, MiniModel, build_network
from resv.mini.packing import IGNORED, last_shown, make_batch, pack, split, stretch, times_appeared
from resv.mini.recipe import TrainingConfig
from resv.mini.scoring import Score
from resv.mini.streams import StreamConfig, make_stream
from resv.mini.training import train
from resv.mini.vocabulary import COUNT_CAP, EMPTY, N_CELLS, SILENT, TASKS
from resv.mini.weights import SHIPPED, WeightsError, load_mini, save_weights
from resv.mini.world import Level
from tests.naive_mini import ref_visible, replay

TINY_MODEL = MiniConfig(
    n_layers=2, hidden=32, n_query_heads=2, n_kv_heads=1, head_dim=16, ffn=48, patch_hidden=24, max_positions=1600
)
TINY = TrainingConfig(
    model=TINY_MODEL,
    long_frames=16,
    long_streams=2,
    steps=30,
    n_streams=4,
    n_shards=2,
    n_probes=4,
    max_frames=12,
    warmup_steps=3,
    bfloat16=False,
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny_model():
    return MiniModel(build_network(TINY_MODEL, 3).eval().requires_grad_(False))


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 14), st.integers(0, 4), st.integers(0, 6), st.integers(0, 1000))
def test_a_packed_stream_sees_what_the_stream_written_out_would_see(n_frames, n_turns, n_probes, seed):
    stream = make_stream(StreamConfig(n_frames=n_frames, seed=seed, n_questions=n_turns + n_probes))
    turns, probes = list(stream.questions[::2][:n_turns]), list(stream.questions[1::2])
    jumps = stretch(n_frames, 5000, 100, np.random.default_rng(seed))
    packed = pack(n_frames, turns, probes, jumps)
    sees = ref_visible(n_frames, turns, probes)
    for slot, row in enumerate(packed.visible):
        assert set(np.flatnonzero(row).tolist()) == sees[slot]
    straight = pack(n_frames, turns, probes, np.zeros_like(jumps)).positions
    np.testing.assert_array_equal(straight, [len(sees[slot]) - 1 for slot in range(len(straight))])
    assert (packed.positions >= straight).all()
    assert packed.positions.max() < 5000
    np.testing.assert_array_equal(packed.answers, [question.answer_id for question in [*turns, *probes]])


def test_stretching_leaves_a_frame_whole_and_reaches_far():
    reach = [int(stretch(20, 12_000, 30, np.random.default_rng(seed))[-1]) for seed in range(200)]
    assert max(reach) > 6_000
    assert min(reach) < 50
    assert stretch(20, 210, 30, np.random.default_rng(0)).tolist() == [0] * 20


def test_a_cell_recalls_what_was_last_in_it():
    occupancy = np.array([[-1, 3], [4, -1], [-1, -1], [5, -1]], dtype=np.int8)
    expected = [[EMPTY, 3], [4, 3], [4, 3], [5, 3]]
    np.testing.assert_array_equal(last_shown(occupancy), expected)


def test_a_cell_tells_how_often_its_object_appeared():
    stream = make_stream(StreamConfig(n_frames=60, level=Level.HARD, tempo=6.0, n_cells=4, seed=3, n_questions=0))
    times = times_appeared(stream.world)
    seen = set()
    for frame, grid in enumerate(replay(stream.events, 60)):
        for cell in range(N_CELLS):
            if cell not in grid:
                assert times[frame, cell] == IGNORED
                continue
            past = [event for event in stream.events if event.frame <= frame and event.what == "appear"]
            count = sum(event.kind == grid[cell] for event in past)
            assert times[frame, cell] == min(count, COUNT_CAP)
            seen.add(count)
    assert max(seen) > COUNT_CAP


def test_a_batch_is_a_function_of_seed_and_step():
    first, again, other = make_batch(TINY, 20), make_batch(TINY, 20), make_batch(TINY, 21)
    for field in fields(first):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(again, field.name))
    assert first.frames.tobytes() != other.frames.tobytes()
    assert first.shown.shape == (*first.frames.shape[:2], N_CELLS)
    parts = split(first, 2)
    np.testing.assert_array_equal(np.concatenate([part.visible for part in parts]), first.visible)


def test_after_the_beginning_there_is_more_history_in_as_many_frames():
    recipe = TrainingConfig(steps=1000, turn_share=0, long_share=0, n_probes=1, min_frames=12)
    early = np.mean([(make_batch(recipe, step).narration != SILENT).mean() for step in range(80, 90)])
    late = np.mean([(make_batch(recipe, step).narration != SILENT).mean() for step in range(900, 910)])
    assert late > 1.3 * early


def test_the_loss_falls():
    run = start(TINY.model_copy(update={"steps": 60, "learning_rate": 5e-3, "hurry_after": 1.0}))
    points = list(train(run, n_threads=2, every=20))
    assert [point["step"] for point in points] == [20, 40, 60]
    assert points[-1]["loss"] < 0.85 * points[0]["loss"]
    assert points == run.curve


def test_the_last_steps_have_fewer_and_longer_streams():
    shapes = {make_batch(TINY, step).frames.shape[:2] for step in range(18, 30)}
    assert {n_streams for n_streams, n_frames in shapes if n_frames > TINY.max_frames} == {TINY.long_streams}
    assert {n_streams for n_streams, n_frames in shapes if n_frames <= TINY.max_frames} == {TINY.n_streams}


def weights_of(run):
    return {name: value.clone() for name, value in run.network.state_dict().items()}


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_resumed_run_ends_with_the_same_weights_as_an_uninterrupted_one(tmp_path, bfloat16):
    recipe = TINY.model_copy(update={"bfloat16": bfloat16})
    whole = start(recipe)
    curve = list(train(whole, n_threads=2, every=10))
    killed = start(recipe)
    for _ in train(killed, n_threads=1, every=10):
        save_checkpoint(killed, tmp_path / "checkpoint.pt")
        break
    assert killed.step == 10
    resumed = load_checkpoint(tmp_path / "checkpoint.pt")
    list(train(resumed, n_threads=3, every=10))
    assert resumed.step == whole.step == recipe.steps
    assert resumed.curve == curve
    for name, value in weights_of(whole).items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_the_rate_warms_up_and_decays_and_streams_grow():
    rates = [TINY.rate(step) for step in range(TINY.steps)]
    assert rates[0] < rates[1] < max(rates) == pytest.approx(TINY.learning_rate)
    assert rates[-1] < 0.1 * TINY.learning_rate
    assert TrainingConfig(steps=100).longest_frames(0) == 12
    assert TrainingConfig(steps=100).longest_frames(99) == 32


@pytest.mark.parametrize("bad", [{"min_frames": 20}, {"n_streams": 6}, {"max_frames": 10}, {"long_frames": 32}])
def test_a_recipe_that_cannot_be_is_refused(bad):
    with pytest.raises(ValidationError, match="must"):
        TrainingConfig(**bad)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"checkpoint\.pt: not a checkpoint"):
        load_checkpoint(tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "missing.pt")


def streamed(model, stream, feed_back):
    """Frame by frame with a cache; questions as turns that stay, or as probes that are cropped away again."""
    cache, answers, said = DynamicCache(config=model.llm.config), [], []

    def feed(embeds):
        return model.llm(inputs_embeds=embeds, past_key_values=cache, use_cache=True).logits[0, -1]

    tokens = model.encode(stream.frames[None])
    for frame in range(len(stream.frames)):
        said.append(int(feed(tokens[:, frame]).argmax()))
        for question in (q for q in stream.questions if q.frame == frame):
            kept = cache.get_seq_length()
            answers.append(int(feed(model.embed(question.ids)).argmax()))
            if feed_back:
                feed(model.embed([question.answer_id]))
            else:
                cache.crop(kept - cache.get_seq_length())
    return tuple(answers), tuple(said)


def test_a_stream_in_one_pass_answers_as_one_fed_frame_by_frame(tiny_model):
    stream = make_stream(StreamConfig(n_frames=25, n_questions=12, seed=2))
    given_at_once = answer_stream(tiny_model, stream)
    assert (given_at_once.answers, given_at_once.narration) == streamed(tiny_model, stream, feed_back=False)
    assert len(set(given_at_once.answers)) > 1


def test_a_packed_turn_is_what_a_dialogue_feeds_back(tiny_model):
    stream = make_stream(StreamConfig(n_frames=12, n_questions=5, seed=1))
    packed = pack(12, list(stream.questions), [], np.zeros(12, dtype=np.int64))
    tokens = torch.cat(
        [tiny_model.encode(stream.frames[None]).flatten(1, 2), tiny_model.embed(packed.words.tolist())], 1
    )
    logits = tiny_model.llm(
        inputs_embeds=tokens,
        attention_mask=torch.from_numpy(packed.visible)[None, None],
        position_ids=torch.from_numpy(packed.positions)[None],
    ).logits[0]
    answers, said = streamed(tiny_model, stream, feed_back=True)
    assert tuple(logits[packed.answer_slots].argmax(-1).tolist()) == answers
    assert tuple(logits[TOKENS_PER_FRAME - 1 : 120 : TOKENS_PER_FRAME].argmax(-1).tolist()) == said


def test_the_shape_is_that_of_the_cache(tiny_model):
    cache = DynamicCache(config=tiny_model.llm.config)
    frames = make_stream(StreamConfig(n_frames=4, n_questions=0)).frames[None]
    tiny_model.llm(inputs_embeds=tiny_model.encode(frames).flatten(1, 2), past_key_values=cache, use_cache=True)
    shape = tiny_model.shape
    assert len(cache.layers) == shape.n_layers
    assert cache.layers[0].keys.shape == (1, shape.n_kv_heads, 4 * shape.tokens_per_frame, shape.head_dim)


def test_a_stream_without_questions_is_narrated(tiny_model):
    given_none = answer_stream(tiny_model, make_stream(StreamConfig(n_frames=6, n_questions=0)))
    assert given_none.answers == ()
    assert len(given_none.narration) == 6


def test_frames_of_another_shape_and_too_many_are_refused(tiny_model):
    assert tiny_model.max_frames == 144
    tiny_model.check_length(144)
    with pytest.raises(ValueError, match="145 frames are more than the model has positions for: at most 144"):
        tiny_model.encode(np.zeros((1, 145, 48, 48, 3), dtype=np.uint8))
    for wrong in (np.zeros((1, 5, 40, 48, 3), dtype=np.uint8), np.zeros((1, 5, 48, 48, 3), dtype=np.float32)):
        with pytest.raises(ValueError, match=r"must be \(B, T, 48, 48, 3\) uint8"):
            tiny_model.encode(wrong)


def test_the_threshold_rules_silence_out_where_it_is_unsure(tiny_model):
    logits = torch.full((2, 64), -10.0)
    logits[0, SILENT], logits[0, 7] = 1.0, 0.0  # P(silent) = 0.73
    logits[1, SILENT], logits[1, 7] = 3.0, 0.0  # 0.95
    assert tiny_model.narrate(logits).tolist() == [SILENT, SILENT]
    assert tiny_model.narrate(logits, 0.8).tolist() == [7, SILENT]
    assert tiny_model.narrate(logits, 0.99).tolist() == [7, 7]
    assert score_narration([SILENT, 7, 7], [SILENT, 7, 3]) == {"silent": Score(1, 1), "speak": Score(1, 2)}


def test_weights_come_back_in_half_precision(tmp_path, tiny_model):
    path = tmp_path / "mini.safetensors"
    save_weights(tiny_model.network, path, {"card": json.dumps({"streams": 1})})
    loaded = load_mini(path)
    assert loaded.config == TINY_MODEL
    assert loaded.card() == {"streams": 1}
    for name, value in tiny_model.network.state_dict().items():
        assert torch.equal(value.half().float(), loaded.network.state_dict()[name]), name
    assert loaded.llm.lm_head.weight.data_ptr() == loaded.llm.model.embed_tokens.weight.data_ptr()
    assert [file.name for file in tmp_path.iterdir()] == ["mini.safetensors"]


def spoil(path, metadata_changes=None, tensor_changes=None):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    save_file(load_file(path) | (tensor_changes or {}), path, metadata | (metadata_changes or {}))


def test_weights_that_are_missing_or_of_another_version_say_what_to_run(tmp_path, tiny_model):
    path = tmp_path / "mini.safetensors"
    with pytest.raises(WeightsError, match=r"no such weight file: scripts/train_mini\.py train"):
        load_mini(path)
    path.write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="not a weight file"):
        load_mini(path)
    for changes, tensors, message in (
        ({"format_version": "0"}, None, r"format version 0, this program reads 1: scripts/train_mini\.py"),
        ({"vocabulary": "[]"}, None, "another vocabulary"),
        (None, {"encoder.place": torch.zeros(10, 32, dtype=torch.float16)}, "damaged"),
        ({"model": MiniConfig().model_dump_json()}, None, "does not fit this program's model"),
    ):
        save_weights(tiny_model.network, path, {})
        spoil(path, changes, tensors)
        with pytest.raises(WeightsError, match=message):
            load_mini(path)


def test_a_card_is_rendered_from_measurements_alone(tiny_model):
    run = Run(TINY, tiny_model.network, None, 30, [{"step": 30, "loss": 1.5, "answers_right": 0.25}], 60.0)
    card = json.loads(json.dumps(measure(tiny_model, run, n_streams=1, lengths=(12,))))
    page = render_card(card, "abc")
    assert "$" not in page
    right, asked = card["accuracy"]["medium"]["12"]["count"]
    assert f"{100 * right / asked:.1f} (" in page
    assert asked == 8
    assert set(card["accuracy"]["hard"]) == {"16", "128"}


@pytest.fixture(scope="module")
def shipped():
    return load_mini()


def test_the_shipped_weights_are_small_and_of_the_asked_shape(shipped):
    assert SHIPPED.stat().st_size <= 8_000_000
    assert 1e6 <= shipped.network.n_parameters() == shipped.card()["parameters"] <= 4e6
    assert shipped.config.head_dim >= 32
    assert shipped.config.n_query_heads > shipped.config.n_kv_heads
    assert shipped.max_frames >= 1000
    page = (SHIPPED.parent / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert page == render_card(shipped.card(), shipped.metadata["sha256"])


@pytest.mark.parametrize("n_frames", [32, 256])
def test_the_shipped_weights_are_as_accurate_as_the_card_says(shipped, n_frames):
    stated = shipped.card()["accuracy"][Level.MEDIUM.value][str(n_frames)]
    measured = evaluate(shipped, card_streams(n_frames, Level.MEDIUM, 4))
    assert set(measured) == {task.value for task in TASKS} | {"speak", "silent"}
    for name, score in measured.items():
        low, high = score.interval(z=3.3)  # the card's streams are more, of which these are the first
        assert low <= Score(*stated[name]).accuracy <= high, name


def test_the_shipped_weights_work_on_streams_and_backgrounds_they_never_saw(shipped):
    streams = [make_stream(StreamConfig(n_frames=32, seed=s, split="test", n_questions=30)) for s in range(900, 904)]
    scores = evaluate(shipped, streams)
    assert scores["last_seen"].accuracy > 0.8
    assert scores["new_now"].accuracy > 0.8
    assert scores["silent"].accuracy > 0.9
