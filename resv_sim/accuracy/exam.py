"""The exam: rendered streams and the questions asked about them, the same for every policy.

Streams are asked at common moments, so that all of them go through the model as one batch. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resv.mini.streams import MiniStream, StreamConfig, make_stream, random_key
from resv.mini.tasks import FIRST_ASKED, BlindBaseline, Question, ask
from resv.mini.vocabulary import Task
from resv_sim.accuracy.config import AccuracyConfig
from resv_sim.errors import ConfigError

_MOMENT_KEY, _QUESTION_KEY = 11, 12  # tell these draws from those of the streams
Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Turn:
    """One question to every stream after a frame; None where nothing can be asked of a stream."""

    frame: int
    questions: tuple[Question | None, ...]


@dataclass(frozen=True)
class Exam:
    """B streams of T frames and Q turns in order of their frames."""

    streams: tuple[MiniStream, ...]
    turns: tuple[Turn, ...]

    @property
    def narration(self) -> Int64:
        """(B, T) token ids to say."""
        return np.array([stream.narration for stream in self.streams], dtype=np.int64)

    @property
    def answers(self) -> Int64:
        """(B, Q) right token ids, -1 where nothing is asked."""
        return self._of(lambda question: question.answer_id)

    def blind(self, baseline: BlindBaseline) -> Int64:
        """(B, Q) what is answered without seeing the video, -2 where nothing is asked."""
        return np.where(self.answers < 0, -2, self._of(baseline.answer))

    def tasks(self) -> tuple[tuple[Task | None, ...], ...]:
        """Per stream, the task of each turn."""
        return tuple(tuple(q.task if q else None for q in row) for row in self.rows())

    def rows(self) -> Sequence[tuple[Question | None, ...]]:
        """Per stream, its questions."""
        return list(zip(*(turn.questions for turn in self.turns), strict=True))

    def _of(self, value: Callable[[Question], int]) -> Int64:
        made = [[-1 if q is None else value(q) for q in row] for row in self.rows()]
        return np.array(made, dtype=np.int64)


def make_exam(config: AccuracyConfig, seeds: Sequence[int]) -> Exam:
    """Render the streams of these seeds and ask about them. The moments depend on the configuration, not on `seeds`.

    Raises ConfigError where a stream has nothing that can be asked.
    """
    streams = tuple(make_stream(_stream_config(config, seed)) for seed in seeds)
    turns = tuple(
        Turn(frame, tuple(_question(config, stream, frame, turn) for stream in streams))
        for frame in moments(config)
        for turn in range(len(config.tasks))
    )
    exam = Exam(streams, turns)
    for stream, row in zip(streams, exam.rows(), strict=True):
        if not any(row):
            raise ConfigError(
                f"accuracy: the stream of seed {stream.config.seed} ({config.split}, {config.level}, {config.n_frames} "
                f"frames) has no question: nothing of {', '.join(config.tasks)} can be asked about it. Allow more "
                "tasks, or take longer streams."
            )
    return exam


def moments(config: AccuracyConfig) -> list[int]:
    """Frames after which every stream is asked, ascending, the last frame among them."""
    first = max(FIRST_ASKED, int(config.questions_from * config.n_frames))
    candidates = np.arange(first, config.n_frames - 1)
    rng = np.random.default_rng([_MOMENT_KEY, config.n_frames, config.moments])
    drawn = rng.choice(candidates, min(config.moments - 1, len(candidates)), replace=False)
    return [*sorted(drawn.tolist()), config.n_frames - 1]


def fit_blind(config: AccuracyConfig) -> BlindBaseline:
    """The best answer per task that needs no video, chosen on as many streams of the split `train`."""
    training = config.model_copy(update={"split": "train"})
    streams = [make_stream(_stream_config(training, seed)) for seed in config.seeds]
    asked = [
        _question(training, stream, frame, turn)
        for stream in streams
        for frame in moments(config)
        for turn in range(len(config.tasks))
    ]
    return BlindBaseline.fit([question for question in asked if question is not None])


def _stream_config(config: AccuracyConfig, seed: int) -> StreamConfig:
    return StreamConfig(n_frames=config.n_frames, level=config.level, split=config.split, seed=seed, n_questions=0)


def _question(config: AccuracyConfig, stream: MiniStream, frame: int, turn: int) -> Question | None:
    """Of the task whose turn it is, or the next one that can be asked."""
    rng = np.random.default_rng([*random_key(stream.config), _QUESTION_KEY, frame, turn])
    for shift in range(len(config.tasks)):
        question = ask(stream.world, frame, config.tasks[(turn + shift) % len(config.tasks)], rng)
        if question is not None:
            return question
    return None
