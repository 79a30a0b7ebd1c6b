"""A seeded stream: frames, events, questions with their answers, and what to narrate after every frame.

The same configuration gives the same stream, bit for bit, on one machine. Streams of different splits never share a
seed: the split is part of the random key, and the splits see different backgrounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from resv.mini.picture import draw
from resv.mini.tasks import Question, ask_questions, narration
from resv.mini.vocabulary import N_CELLS, TASKS, Task
from resv.mini.world import LEVELS, Event, Level, World, make_world

UInt8 = NDArray[np.uint8]
Split = Literal["train", "validation", "test"]

_SPLIT_KEYS: dict[Split, int] = {"train": 1, "validation": 2, "test": 3}
_PLACES: dict[Split, range] = {"train": range(24), "validation": range(24, 32), "test": range(32, 40)}
_WORLD_KEY, _PICTURE_KEY, _QUESTION_KEY = 1, 2, 3  # tell the draws of one stream apart


class StreamConfig(BaseModel):
    """Which stream. Pictures and questions are drawn apart, so more questions leave the frames as they are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_frames: int = Field(default=200, ge=4, le=100_000)
    level: Level = Level.MEDIUM
    split: Split = Field(default="test", description="the weights were trained on the split `train`")
    seed: int = Field(default=0, ge=0)
    tempo: float = Field(default=1.0, ge=1, le=32, description="how much faster than usual things happen")
    n_cells: int = Field(default=N_CELLS, ge=3, le=N_CELLS, description="cells in which objects may be")
    n_questions: int = Field(default=10, ge=0, le=10_000, description="fewer come back where nothing can be asked")
    questions_from: float = Field(default=0.0, ge=0, lt=1, description="share of the stream before the first question")
    tasks: tuple[Task, ...] = Field(default=TASKS, min_length=1)


@dataclass(frozen=True)
class MiniStream:
    """frames (T, 48, 48, 3) uint8 RGB; `narration[t]` is the token id to say after frame t (SILENT: nothing)."""

    config: StreamConfig
    frames: UInt8
    world: World
    questions: tuple[Question, ...]
    narration: tuple[int, ...]

    @property
    def events(self) -> tuple[Event, ...]:
        return self.world.events


def random_key(config: StreamConfig) -> tuple[int, int]:
    """(split, seed): what every draw of a stream is keyed by."""
    return _SPLIT_KEYS[config.split], config.seed


def make_stream(config: StreamConfig) -> MiniStream:
    """Simulate, draw and question one stream."""
    difficulty = LEVELS[config.level]
    key = random_key(config)
    rng = np.random.default_rng([*key, _WORLD_KEY])
    world = make_world(config.n_frames, difficulty, rng, config.tempo, config.n_cells)
    frames = draw(world, difficulty, _PLACES[config.split], np.random.default_rng([*key, _PICTURE_KEY]))
    questions = ask_questions(
        world, config.n_questions, config.tasks, np.random.default_rng([*key, _QUESTION_KEY]), config.questions_from
    )
    return MiniStream(config, frames, world, questions, narration(world))
