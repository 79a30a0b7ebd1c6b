"""Which steps a trace has and which of them are probed, given a video's length. Knows no keys.

Two kinds of workload: probes at given cache lengths of one long stream of frames, and a short session of frames,
a question and an answer, the paper's average case (V-Rex, HPCA 2026, arXiv 2512.12284, section VI).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from resv.trace import Step, StepKind


class ProbeWorkload(BaseModel):
    """One step of each stage at each cache length.

    Lengths in tokens. A length that is no multiple of the tokens per frame is rounded down to one, since the frame
    step that is probed there is the stream's own; two may not fall together so. Question and decode probes are dropped
    again after the step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kv_lengths_tokens: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(1_000, 5_000, 10_000, 20_000, 40_000), min_length=1
    )
    stages: tuple[StepKind, ...] = Field(default=("frame", "question", "decode"), min_length=1)
    question_tokens: int = Field(default=25, ge=1)
    warmup_frames: int = Field(
        default=0, ge=0, description="frames before each length that are probed too, for what a device keeps of them"
    )

    @model_validator(mode="after")
    def _check(self) -> ProbeWorkload:
        if list(self.kv_lengths_tokens) != sorted(set(self.kv_lengths_tokens)):
            raise ValueError(f"kv_lengths_tokens {self.kv_lengths_tokens}: must ascend, each length once")
        if len(set(self.stages)) != len(self.stages):
            raise ValueError(f"stages {self.stages}: each at most once")
        return self

    def frames_before(self, tokens_per_frame: int) -> dict[int, int]:
        """Length -> whole frames in the cache there. ValueError where that is none, or as many as at another length."""
        found: dict[int, int] = {}
        for length in self.kv_lengths_tokens:
            frames = length // tokens_per_frame
            if frames == 0:
                raise ValueError(f"cache length {length} is less than one frame of {tokens_per_frame} tokens")
            if frames in found.values():
                raise ValueError(
                    f"{list(found)[-1]} and {length} tokens are the same cache length, {frames * tokens_per_frame}: "
                    f"lengths are whole frames of {tokens_per_frame} tokens"
                )
            found[length] = frames
        return found

    def frames_needed(self, tokens_per_frame: int) -> int:
        """Frames up to and including the step at the longest length. Raises as `frames_before`."""
        return max(self.frames_before(tokens_per_frame).values()) + 1

    def measures(self, step: Step, tokens_per_frame: int) -> bool:
        """Whether a probed step has rows; frames that only warm up have none."""
        return self.warmup_frames == 0 or step.first_token in {
            length // tokens_per_frame * tokens_per_frame for length in self.kv_lengths_tokens
        }


class SessionWorkload(BaseModel):
    """Frames, then a question, then an answer token by token; every step is probed. Defaults: the paper's mean."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    frames: int = Field(default=26, ge=1)
    question_tokens: int = Field(default=25, ge=0)
    answer_tokens: int = Field(default=39, ge=0)

    def frames_needed(self, tokens_per_frame: int) -> int:
        return self.frames

    def measures(self, step: Step, tokens_per_frame: int) -> bool:
        """Every step of a session has rows."""
        return True


Workload = ProbeWorkload | SessionWorkload


@dataclass(frozen=True)
class Plan:
    """Steps of a stream and its probes; `skipped` says per length why it is not probed."""

    steps: tuple[Step, ...]
    probes: tuple[Step, ...]
    skipped: Mapping[int, str] = field(default_factory=dict)

    @property
    def n_tokens(self) -> int:
        return self.steps[-1].first_token + self.steps[-1].n_tokens if self.steps else 0


def plan_steps(workload: Workload, n_frames: int, tokens_per_frame: int) -> Plan:
    """Lay out a workload on a video of `n_frames`.

    A probe length is skipped, with its reason, where the frame after it is not there. A session needs all its
    frames: ValueError otherwise, as for lengths that `ProbeWorkload.frames_before` refuses.
    """
    if isinstance(workload, SessionWorkload):
        return _plan_session(workload, n_frames, tokens_per_frame)
    return _plan_probes(workload, n_frames, tokens_per_frame)


def _plan_session(workload: SessionWorkload, n_frames: int, tokens_per_frame: int) -> Plan:
    if n_frames < workload.frames:
        raise ValueError(
            f"a session of {workload.frames} frames, but the video has {n_frames} at this sampling rate: "
            "use a longer clip, a higher video.fps, fewer frames or video.loop: pingpong"
        )
    kinds: list[tuple[StepKind, int]] = [("frame", tokens_per_frame)] * workload.frames
    kinds += [("question", workload.question_tokens)] * (workload.question_tokens > 0)
    kinds += [("decode", 1)] * workload.answer_tokens
    steps, first = [], 0
    for kind, n_tokens in kinds:
        steps.append(Step(kind, first, n_tokens))
        first += n_tokens
    return Plan(tuple(steps), tuple(steps))


def _plan_probes(workload: ProbeWorkload, n_frames: int, tokens_per_frame: int) -> Plan:
    n_frames = min(n_frames, workload.frames_needed(tokens_per_frame))
    sizes: dict[StepKind, int] = {"frame": tokens_per_frame, "question": workload.question_tokens, "decode": 1}
    probes: list[Step] = []
    skipped = {}
    measured = workload.frames_before(tokens_per_frame)
    for length, frame in measured.items():
        if frame >= n_frames:
            skipped[length] = (
                f"cache length {length} skipped: it needs {frame + 1} frames of {tokens_per_frame} tokens, the video "
                f"has {n_frames} ({n_frames * tokens_per_frame} tokens)"
            )
            continue
        begin = probes[-1].first_token // tokens_per_frame + 1 if probes else 0
        warmup = range(max(begin, frame - workload.warmup_frames), frame)
        probes += [Step("frame", f * tokens_per_frame, tokens_per_frame) for f in warmup if f not in measured.values()]
        for stage, n_tokens in sizes.items():
            if stage in workload.stages:
                probes.append(Step(stage, frame * tokens_per_frame, n_tokens, in_stream=stage == "frame"))
    steps = tuple(Step("frame", f * tokens_per_frame, tokens_per_frame) for f in range(n_frames))
    return Plan(steps, tuple(probes), skipped)
