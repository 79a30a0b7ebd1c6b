"""The training recipe: what is trained on, for how long, and at what rate."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field, model_validator

from resv.mini.model import MiniConfig
from resv.mini.vocabulary import N_CELLS, TASKS, Task

_LENGTHS = ("min_frames", "first_max_frames", "max_frames", "long_frames")


class TrainingConfig(BaseModel):
    """The recipe. Defaults are those of the shipped weights; all values are assumed, chosen on validation streams."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: MiniConfig = MiniConfig()
    seed: int = Field(default=1, ge=0, lt=1 << 20)
    steps: int = Field(default=8000, gt=0)
    n_streams: int = Field(default=16, gt=0, description="per step")
    n_shards: int = Field(default=4, gt=0, description="parts of a batch, run side by side, each on one CPU thread")
    n_probes: int = Field(default=20, gt=0, description="questions per stream that leave no trace in it")
    max_turns: int = Field(default=3, ge=0, description="further questions that stay in the stream")
    turn_share: float = Field(default=0.5, ge=0, le=1, description="share of steps with turns")
    min_frames: int = Field(default=8, ge=4)
    max_frames: int = Field(default=32, ge=4, description="longest stream of most steps")
    first_max_frames: int = Field(default=12, ge=4, description="longest stream at the first step")
    curriculum: float = Field(default=0.25, gt=0, le=1, description="share of steps until the longest is max_frames")
    long_after: float = Field(default=0.4, ge=0, le=1, description="share of steps before the first with long streams")
    long_share: float = Field(default=0.5, ge=0, le=1, description="of steps then, with fewer and longer streams")
    long_frames: int = Field(default=128, ge=4, description="longest stream of these: the training length")
    long_streams: int = Field(default=4, gt=0, description="per step of these")
    long_probes: int = Field(default=40, gt=0, description="as n_probes, of these")
    stretch_share: float = Field(default=0.6, ge=0, le=1, description="share of streams with jumps in position")
    tasks: tuple[Task, ...] = Field(
        default=(*TASKS, Task.LAST_SEEN, Task.LAST_SEEN, Task.BEFORE_EMPTY, Task.COUNT),
        description="in turn; those that are slow to learn and that no frame answers are asked more often",
    )
    hurry_after: float = Field(default=0.1, ge=0, le=1, description="share of steps at the usual tempo")
    hurried_share: float = Field(default=0.6, ge=0, le=1, description="of streams then, with much history")
    max_tempo: float = Field(default=8.0, ge=1, le=32, description="a hurried tempo is log-uniform from 1 up to this")
    fewest_cells: int = Field(default=4, ge=3, le=N_CELLS, description="in use in a hurried stream")
    learning_rate: float = Field(default=1.5e-3, gt=0)
    last_rate: float = Field(default=0.03, gt=0, le=1, description="of the learning rate, at the cosine's end")
    warmup_steps: int = Field(default=150, gt=0)
    weight_decay: float = Field(default=0.03, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    narration_weight: float = Field(default=0.5, ge=0)
    alignment_weight: float = Field(default=0.3, ge=0, description="cells lie near the word for what they show")
    recall_weight: float = Field(
        default=0.3, ge=0, description="every cell token tells what is or was last in its cell, and how often that came"
    )
    bfloat16: bool = Field(default=True, description="matrix products in bfloat16; weights stay float32")

    @model_validator(mode="after")
    def _check(self) -> TrainingConfig:
        lengths = [getattr(self, name) for name in _LENGTHS]
        if lengths != sorted(lengths) or self.long_frames == self.max_frames:
            raise ValueError(f"{' <= '.join(_LENGTHS)} must hold, the last two unequal, not {lengths}")
        for name in ("n_streams", "long_streams"):
            if getattr(self, name) % self.n_shards:
                raise ValueError(f"{name} ({getattr(self, name)}) must be a multiple of n_shards ({self.n_shards})")
        return self

    def longest_frames(self, step: int) -> int:
        """Longest stream of a step: grows in proportion to the step until the curriculum ends."""
        share = min(step / (self.curriculum * self.steps), 1.0)
        return round(self.first_max_frames + share * (self.max_frames - self.first_max_frames))

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then a cosine."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        share = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        return self.learning_rate * (self.last_rate + (1 - self.last_rate) * 0.5 * (1 + math.cos(math.pi * share)))
