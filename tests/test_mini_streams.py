"""The mini world: streams repeat, splits are apart, answers are right by the past alone, and pixels show them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from resv.mini.picture import CELL_PX, FRAME_PX, SPRITE_PX, sprites
from resv.mini.scoring import Score
from resv.mini.streams import StreamConfig, make_stream, random_key
from resv.mini.tasks import BlindBaseline, ask
from resv.mini.vocabulary import (
    BLANK,
    COUNT_0,
    GRID,
    N_CELLS,
    N_KINDS,
    SILENT,
    TASKS,
    VOCAB_SIZE,
    Task,
    answer_choices,
    words,
)
from resv.mini.world import LEVELS, Level, World, make_world
from tests.naive_mini import ref_answer, ref_narration, replay

configs = st.builds(
    StreamConfig,
    n_frames=st.integers(4, 90),
    level=st.sampled_from(list(Level)),
    split=st.sampled_from(["train", "validation", "test"]),
    seed=st.integers(0, 10_000),
    tempo=st.sampled_from([1.0, 2.5, 8.0]),
    n_cells=st.integers(3, 9),
    n_questions=st.integers(0, 25),
    questions_from=st.sampled_from([0.0, 0.75]),
)


@settings(max_examples=60, deadline=None)
@given(configs)
def test_every_answer_is_what_a_replay_of_the_events_gives(config):
    stream = make_stream(config)
    shown = replay(stream.events, config.n_frames)
    for grid, row in zip(shown, stream.world.occupancy, strict=True):
        assert grid == {cell: kind for cell, kind in enumerate(row.tolist()) if kind >= 0}
    assert stream.narration == ref_narration(stream.events, config.n_frames)
    assert len(stream.questions) == config.n_questions
    frames = [question.frame for question in stream.questions]
    assert frames == sorted(frames)
    assert all(int(config.questions_from * config.n_frames) <= frame < config.n_frames for frame in frames)
    for question in stream.questions:
        assert question.answer_id in question.choices
        assert question.answer_id == ref_answer(stream.events, question)


@settings(max_examples=20, deadline=None)
@given(configs)
def test_the_same_configuration_gives_the_same_stream(config):
    first, second = make_stream(config), make_stream(config)
    np.testing.assert_array_equal(first.frames, second.frames)
    assert first.frames.shape == (config.n_frames, FRAME_PX, FRAME_PX, 3)
    assert (first.events, first.questions, first.narration) == (second.events, second.questions, second.narration)


def test_more_questions_leave_the_pictures_as_they_are():
    few = make_stream(StreamConfig(n_frames=30, n_questions=1))
    many = make_stream(StreamConfig(n_frames=30, n_questions=30))
    np.testing.assert_array_equal(few.frames, many.frames)


def test_splits_share_no_random_key_and_no_background():
    keys = {
        random_key(StreamConfig(split=split, seed=seed))
        for split in ("train", "validation", "test")
        for seed in (0, 1, 2, 1 << 40)
    }
    assert len(keys) == 12
    streams = [make_stream(StreamConfig(n_frames=12, split=split)) for split in ("train", "validation", "test")]
    assert len({stream.frames.tobytes() for stream in streams}) == 3
    assert len({stream.events for stream in streams}) == 3


@pytest.mark.parametrize("task", TASKS)
def test_a_question_is_answered_by_the_past_alone(task):
    whole = make_world(60, LEVELS[Level.HARD], np.random.default_rng(5))
    for frame in (15, 29, 41):
        events = tuple(event for event in whole.events if event.frame <= frame)
        cut_short = World(whole.occupancy[: frame + 1], events)
        seen = ask(cut_short, frame, task, np.random.default_rng(1))
        assert seen is not None
        assert seen == ask(whole, frame, task, np.random.default_rng(1))


def test_a_question_with_nothing_to_ask_about_is_not_asked():
    empty = World(np.full((5, N_CELLS), -1, dtype=np.int8), ())
    rng = np.random.default_rng(0)
    assert [ask(empty, 4, task, rng) for task in TASKS if task is not Task.COUNT] == [None] * 4
    count = ask(empty, 4, Task.COUNT, rng)
    assert count is not None
    assert count.answer_id == COUNT_0


def test_at_the_usual_tempo_an_object_stays_and_a_kind_stays_away_for_two_frames():
    for seed in range(10):
        stream = make_stream(StreamConfig(n_frames=150, level=Level.HARD, seed=seed))
        came, left = {}, {}
        for event in stream.events:
            if event.what in ("appear", "move"):
                assert event.frame - left.get(event.kind, -9) > 2 or event.what == "move"
                came[event.kind] = event.frame
            elif event.what == "vanish":
                left[event.kind] = event.frame
                cut = any(e.what == "cut" and e.frame == event.frame for e in stream.events)
                assert cut or event.frame - came[event.kind] >= 2


def test_longer_streams_have_more_kinds_and_each_recurs_more_often():
    def kinds_and_appearances(n_frames, **more):
        events = [
            event
            for seed in range(12)
            for event in make_stream(StreamConfig(n_frames=n_frames, seed=seed, n_questions=0, **more)).events
            if event.what == "appear"
        ]
        pairs = len({(event.kind, event.frame) for event in events})
        return pairs, len({event.kind for event in events})

    short, long = kinds_and_appearances(24), kinds_and_appearances(400)
    assert long[0] > 10 * short[0]
    assert long[1] == N_KINDS
    assert kinds_and_appearances(24, tempo=8.0, n_cells=4)[0] > 2 * short[0]


def test_levels_are_ever_harder_to_see():
    for name in ("shake_px", "light_change", "noise", "clutter", "event", "cut"):
        values = [getattr(LEVELS[level], name) for level in Level]
        assert values == sorted(values)
        assert values[0] < values[-1]


def test_the_36_sprites_differ_in_colour_or_shape():
    shown = (sprites()[..., :3] * sprites()[..., 3:]).reshape(N_KINDS, -1)
    distance = np.linalg.norm(shown[:, None] - shown[None], axis=-1) / np.sqrt(shown.shape[1])
    np.fill_diagonal(distance, np.inf)
    assert distance.min() > 0.1  # of full scale, rms
    assert SPRITE_PX < CELL_PX


def test_an_object_is_drawn_in_its_cell_and_nowhere_else():
    stream = make_stream(StreamConfig(n_frames=60, level=Level.EASY, seed=4, n_questions=0))
    cells = stream.frames.reshape(60, GRID, CELL_PX, GRID, CELL_PX, 3).swapaxes(2, 3).reshape(60, N_CELLS, -1, 3)
    centre = cells.reshape(60, N_CELLS, CELL_PX, CELL_PX, 3).astype(float)
    colourful = (centre.max(-1) - centre.min(-1)).mean(axis=(2, 3))
    occupied = stream.world.occupancy >= 0
    assert colourful[occupied].min() > 1.5 * colourful[~occupied].max()


def test_a_cut_changes_the_background_and_clears_the_grid():
    streams = (make_stream(StreamConfig(n_frames=80, seed=seed, n_questions=0)) for seed in range(50))
    stream = next(stream for stream in streams if any(event.what == "cut" for event in stream.events))
    cut = next(event.frame for event in stream.events if event.what == "cut")
    assert (stream.world.occupancy[cut] < 0).all()
    always_empty = (stream.world.occupancy[cut - 2 : cut + 1] < 0).all(axis=0)
    pixels = stream.frames.reshape(80, GRID, CELL_PX, GRID, CELL_PX, 3).swapaxes(2, 3).reshape(80, N_CELLS, -1)
    change = np.abs(np.diff(pixels[cut - 2 : cut + 1, always_empty].astype(float), axis=0)).mean(axis=(1, 2))
    assert change[1] > 2 * change[0]


def test_the_blind_baseline_is_near_chance_and_knows_its_priors():
    train = [make_stream(StreamConfig(n_frames=40, seed=s, split="train", n_questions=20)) for s in range(20)]
    test = [make_stream(StreamConfig(n_frames=40, seed=s, n_questions=20)) for s in range(40)]
    baseline = BlindBaseline.fit(question for stream in train for question in stream.questions)
    scores = dict.fromkeys(TASKS, Score(0, 0))
    for question in (question for stream in test for question in stream.questions):
        scores[question.task] += Score(int(baseline.answer(question) == question.answer_id), 1)
    assert scores[Task.LAST_SEEN].accuracy < 0.25
    assert 0.4 < scores[Task.FIRST_OF].accuracy < 0.6
    assert 0.2 < scores[Task.COUNT].accuracy < 0.6
    assert scores[Task.BEFORE_EMPTY].accuracy < 0.15
    assert scores[Task.NEW_NOW].accuracy < 0.15


def test_the_vocabulary_has_a_word_per_token():
    assert len(words()) == len(set(words())) == words().index("?") + 1 <= VOCAB_SIZE
    assert words()[SILENT] == "SILENT"
    assert words()[BLANK] == "-"
    for task in TASKS:
        assert len(answer_choices(task, 3, 4)) == {Task.FIRST_OF: 2, Task.LAST_SEEN: 9, Task.COUNT: 5}.get(
            task, N_KINDS
        )


def test_wilsons_interval_is_the_published_one():
    low, high = Score(9, 10).interval()  # Newcombe 1998 gives method 3 for such small cases
    assert low == pytest.approx(0.5958, abs=1e-4)
    assert high == pytest.approx(0.9821, abs=1e-4)
    assert Score(0, 0).interval() == (0.0, 1.0)


@pytest.mark.parametrize("bad", [{"n_frames": 3}, {"level": "brutal"}, {"split": "all"}, {"tasks": ()}, {"tempo": 0.5}])
def test_a_stream_that_cannot_be_is_refused(bad):
    with pytest.raises(ValidationError):
        StreamConfig(**bad)
