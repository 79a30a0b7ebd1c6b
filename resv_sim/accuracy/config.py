"""What accuracy is measured on: the section `accuracy` of an experiment, and the section `benchmark` of a comparison.

Knows the sections' shapes; how a stream is made and asked about is `exam.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from resv.mini.streams import Split
from resv.mini.vocabulary import TASKS, Task
from resv.mini.world import Level
from resv.trace import StepKind
from resv_sim.sweep.config import Axis, AxisName

Stages = Literal["both", "frame", "text"]
ACTS_IN: dict[Stages, frozenset[StepKind]] = {
    "both": frozenset(("frame", "question", "decode")),
    "frame": frozenset(("frame",)),
    "text": frozenset(("question", "decode")),
}
# Keys and values count as bf16, as on the platforms; the model itself computes in float32.
KV_BITS = 16
# What is counted of an exam's selections: steps of streams, and tokens, each once per layer and KV head.
COUNTED = ("steps", "cached", "attended", "candidates", "selected", "fetched")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AccuracyConfig(_Section):
    """Streams of the embedded model, and what is asked about them.

    All streams are asked at the same moments, drawn once, one question per task at each. A task that has nothing to ask
    about yet gives its turn to the next one.
    """

    n_streams: int = Field(default=32, ge=1, le=4096)
    n_frames: int = Field(default=100, ge=8, le=10_000, description="10 tokens each")
    level: Level = Level.MEDIUM
    split: Split = Field(default="test", description="the weights were trained on the split `train`")
    first_seed: int = Field(default=0, ge=0, description="streams have this seed and those after it")
    moments: int = Field(default=4, ge=1, le=1000, description="at which every stream is asked; the last frame is one")
    tasks: tuple[Task, ...] = Field(default=TASKS, min_length=1)
    questions_from: float = Field(default=0.25, ge=0, lt=1, description="share of the stream before the first question")
    silence_threshold: float = Field(
        default=0.0, ge=0, le=1, description="of the narration; a policy with a threshold of its own uses that"
    )
    stages: Stages = Field(
        default="both", description="in which the policy selects; the other one attends to the whole cache"
    )
    recent_tokens: int | None = Field(
        default=None, ge=0, description="device memory of policies that offload, in tokens; none: their `recent_bytes`"
    )
    weights: Path | None = Field(default=None, description="weight file; none: the one that comes with the program")

    @property
    def seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.n_streams)


class Study(_Section):
    """Accuracy over one or two fields of one policy; paths begin below the policy."""

    policy: str
    axes: dict[AxisName, Axis] = Field(min_length=1, max_length=2)

    @model_validator(mode="after")
    def _check(self) -> Study:
        for name, axis in self.axes.items():
            if not axis.discrete:
                raise ValueError(f"axes.{name}: needs values, or a step or points in its range")
        return self


class BenchmarkConfig(_Section):
    """What is compared, beside the policies of the experiment that the section is part of."""

    reference: str = Field(default="full", description="policy that the others are held against")
    stages: tuple[Stages, ...] = Field(default=("both",), min_length=1)
    every_frames: int = Field(
        default=10, ge=1, description="one frame step in so many of one stream in 16 is timed and priced"
    )
    study_streams: int = Field(default=32, ge=1, description="of studies and further lengths, the first of the exam's")
    lengths: tuple[Annotated[int, Field(ge=8)], ...] = Field(
        default=(), description="further stream lengths in frames, with --studies"
    )
    studies: dict[AxisName, Study] = Field(default={}, description="with --studies")
