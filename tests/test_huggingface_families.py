"""Frames, embeddings and positions of each family against transformers' own."""

import numpy as np
import pytest
import torch

import resv
from resv.huggingface.families import Cursor, Qwen25VL, family_of
from resv.huggingface.frames import CLIP_MEAN, CLIP_STD, HALF, fitting_size, patches, pixel_values
from resv.huggingface.tiny import TINY_MODELS, tiny_model
from resv.policies import POLICIES
from tests.hf_models import MODELS, model_named

VIDEO_MODELS = [name for name in MODELS if name != "tiny-llama"]
every_video_model = pytest.mark.parametrize("name", VIDEO_MODELS)
FULL = POLICIES["full"]()


def frames(n, height=60, width=80, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (n, height, width, 3), dtype=np.uint8))


@every_video_model
def test_a_frame_becomes_as_many_embeddings_as_its_grid_says(name):
    model = model_named(name)
    family = family_of(model)
    with resv.attach(model, FULL) as attachment:
        made = attachment.encode_frame(frames(2))
        rows, columns = family.grid(model, 60, 80)
        assert made.shape == (2, rows * columns, attachment.shape.hidden)
        assert attachment.family.frames_per_step == (2 if name == "tiny-qwen2.5-vl" else 1)
        one = attachment.encode_frame(frames(2)[:1])
        torch.testing.assert_close(one, made[:1], atol=1e-5, rtol=0)
        stream = attachment.new_stream(2)
        stream.add_frame(frames(2))
        assert stream.n_tokens == rows * columns


def test_a_llava_video_frame_by_frame_has_no_newline_between_frames():
    """transformers ends every call with a newline embedding: called per frame, the stream would hold one per frame."""
    model = model_named("tiny-llava")
    pixels = pixel_values(frames(5)[None], (56, 56), HALF, HALF)
    with torch.no_grad():
        video = model.model.get_video_features(
            pixels, vision_feature_layer=-1, vision_feature_select_strategy="full"
        ).pooler_output
    with resv.attach(model, FULL) as attachment:
        parts = [attachment.encode_frame(frame[None]) for frame in frames(5)]
    assert video.shape[1] == 5 * 4 + 1
    torch.testing.assert_close(torch.cat(parts, dim=1), video[:, :-1], atol=1e-5, rtol=0)


def test_preprocessed_frames_are_taken_as_they_are():
    model = model_named("tiny-smolvlm")
    with resv.attach(model, FULL) as attachment:
        raw = frames(2)
        ready = pixel_values(raw, (32, 32), HALF, HALF)
        assert torch.equal(attachment.encode_frame(raw), attachment.encode_frame(ready))
        for wrong in (ready[..., :-1], raw.int(), ready[:, None].expand(-1, 2, -1, -1, -1)):
            with pytest.raises(ValueError, match="allowed"):
                attachment.encode_frame(wrong)


def test_two_frames_of_qwen_are_one_step_and_a_lone_one_is_repeated():
    model = model_named("tiny-qwen2.5-vl")
    with resv.attach(model, FULL) as attachment:
        pair, lone = frames(2)[None], frames(2)[:1]
        both = attachment.encode_frame(pair)
        assert both.shape[1] == 6
        assert torch.equal(attachment.encode_frame(lone), attachment.encode_frame(lone[:, None].repeat(1, 2, 1, 1, 1)))
        assert not torch.equal(attachment.encode_frame(lone), both)
        with pytest.raises(ValueError, match="one or two frames"):
            attachment.encode_frame(frames(3)[None])


def test_qwen_positions_of_a_run_of_frames_are_those_of_one_video():
    model = model_named("tiny-qwen2.5-vl")
    rows, columns, n_steps = 2, 3, 4
    per_step = rows * columns
    kinds = torch.tensor([[0] * 5 + [2] * n_steps * per_step])
    ids = torch.where(kinds == 2, 251, 7)
    grid = torch.tensor([[n_steps, 2 * rows, 2 * columns]])
    expected, _ = model.model.get_rope_index(ids, kinds, video_grid_thw=grid, second_per_grid_ts=torch.tensor([0.8]))
    family, cursor, got = Qwen25VL(), Cursor(), []
    interval = model.config.vision_config.tokens_per_second * 0.8
    text, cursor = family.step_positions(cursor, 5, "question", None, interval)
    for _ in range(n_steps):
        made, cursor = family.step_positions(cursor, per_step, "frame", (rows, columns), interval)
        got.append(made)
    assert torch.equal(torch.cat([text, *got], dim=1), expected[:, 0])
    after, _ = family.step_positions(cursor, 2, "decode", None, interval)
    assert after.tolist() == [[int(expected.max()) + 1, int(expected.max()) + 2]] * 3


def test_text_between_frames_begins_a_new_run():
    family, cursor = Qwen25VL(), Cursor()
    _, cursor = family.step_positions(cursor, 4, "frame", None, 4.0)
    _, cursor = family.step_positions(cursor, 3, "question", None, 4.0)
    made, _ = family.step_positions(cursor, 4, "frame", (2, 2), 4.0)
    assert made.tolist() == [[5, 5, 5, 5], [5, 5, 6, 6], [5, 6, 5, 6]]
    with pytest.raises(ValueError, match="not square"):
        family.step_positions(cursor, 6, "frame", None, 4.0)
    with pytest.raises(ValueError, match="grid of 2 x 2"):
        family.step_positions(cursor, 6, "frame", (2, 2), 4.0)


def test_seconds_between_steps_move_qwen_frames_apart():
    model = model_named("tiny-qwen2.5-vl")
    tokens = []
    for seconds in (0.5, 2.0):
        with resv.attach(model, FULL) as attachment:
            stream = attachment.new_stream(seconds_per_step=seconds)
            for _ in range(3):
                stream.add_frame(frames(2)[None])
            tokens.append(stream.token_positions[::6].tolist())
    per_second = model.config.vision_config.tokens_per_second
    assert tokens == [[0, per_second // 2, per_second], [0, 2 * per_second, 4 * per_second]]


def test_the_model_keeps_no_position_of_a_stream():
    model = tiny_model("tiny-qwen2.5-vl")
    with resv.attach(model, FULL) as attachment:
        attachment.new_stream().add_frame(frames(2)[None])
    assert model.model.rope_deltas is None


def test_pixels_are_scaled_and_normalised():
    grey = torch.full((1, 10, 10, 3), 51, dtype=torch.uint8)
    got = pixel_values(grey, (4, 6), CLIP_MEAN, CLIP_STD)
    assert got.shape == (1, 3, 4, 6)
    expected = (0.2 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    np.testing.assert_allclose(got[0, :, 1, 1].numpy(), expected, atol=1e-6)
    edge = torch.zeros((1, 16, 16, 3), dtype=torch.uint8)
    edge[:, :, 8:] = 255
    sharp = pixel_values(edge, (32, 32), HALF, HALF)
    assert sharp.min() == -1  # bicubic overshoot is cut off as in bytes
    assert sharp.max() == 1


def test_patches_lie_as_the_vision_tower_reads_them():
    pixels = torch.arange(2 * 2 * 3 * 8 * 12).reshape(2, 2, 3, 8, 12).float()
    got = patches(pixels, 2, 2, 2)
    rows = []
    for item in range(2):
        for block_row, block_column, row, column in np.ndindex(2, 3, 2, 2):
            y, x = 2 * (2 * block_row + row), 2 * (2 * block_column + column)
            rows.append(pixels[item, :, :, y : y + 2, x : x + 2].transpose(0, 1).reshape(-1))
    assert torch.equal(got, torch.stack(rows))


@pytest.mark.parametrize("size", [(60, 80), (480, 640), (2160, 3840), (30, 500), (28, 28)])
def test_sizes_fit_the_patches_and_the_bounds(size):
    high, wide = fitting_size(*size, 28, 128 * 28 * 28, 768 * 28 * 28)
    assert high % 28 == wide % 28 == 0
    assert 128 <= high * wide // 28**2 <= 768
    assert abs(np.log(high / wide * size[1] / size[0])) < 0.5
    with pytest.raises(ValueError, match="200 times"):
        fitting_size(1, 500, 28, 784, 7840)


def test_tiny_models_are_the_same_for_a_seed_and_leave_the_generator_alone():
    state = torch.random.get_rng_state()
    for name in TINY_MODELS:
        one, two, other = tiny_model(name), tiny_model(name), tiny_model(name, seed=1)
        pairs = zip(one.parameters(), two.parameters(), other.parameters(), strict=True)
        assert any(not torch.equal(a, c) for a, b, c in pairs if torch.equal(a, b))
        assert not one.training
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(ValueError, match="tiny-llama, tiny-llava"):
        tiny_model("tiny-gpt")
