"""The embedded model sits an exam under a policy: frames as steps of a stream, questions as probes that leave no trace.

All streams of an exam run as one batch. Answers and narration are taken over the whole vocabulary. Imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from resv.huggingface.attach import attach
from resv.huggingface.stream import Stream
from resv.mini.model import MiniModel
from resv.mini.vocabulary import Task, question_ids
from resv.policies.base import Policy
from resv.policies.videollm_online import VideoLLMOnline
from resv.selection import LayerSelection
from resv.trace import ModelShape, Step, StepKind
from resv_sim.accuracy.config import ACTS_IN, COUNTED, KV_BITS, Stages
from resv_sim.accuracy.exam import Exam, Turn
from resv_sim.errors import ConfigError

Int64 = NDArray[np.int64]
_NOTHING = question_ids(Task.NEW_NOW)  # fed where a stream has nothing to be asked; its answer is not looked at


@dataclass(frozen=True)
class Answers:
    """What came of an exam, and what the policy selected meanwhile.

    given (B, Q), said (B, T) : token ids
    counts (2, len(COUNTED)) : frame steps, then questions; a token counts once per layer and KV head
    steps, selections : recorded steps, and per layer their selections, of one stream
    """

    given: Int64
    said: Int64
    counts: Int64
    steps: tuple[Step, ...] = ()
    selections: tuple[tuple[LayerSelection, ...], ...] = ()


def answer_exam(
    model: MiniModel,
    policy: Policy,
    exam: Exam,
    *,
    stages: Stages = "both",
    silence_threshold: float = 0.0,
    record_every: int | None = None,
) -> Answers:
    """Run the exam.

    record_every : keep what the first stream selects in one frame step in so many and in every question
    Raises ConfigError for streams longer than the model's positions and for a policy that cannot run on it.
    """
    check_length(model, len(exam.streams[0].frames))
    threshold = policy.silence_threshold if isinstance(policy, VideoLLMOnline) else silence_threshold
    try:
        with attach(model.llm, policy) as attachment, torch.no_grad():
            attachment.shape = stored_shape(attachment.shape)
            stream = attachment.new_stream(len(exam.streams))
            stream.acts_in = ACTS_IN[stages]
            for state in chain.from_iterable(stream.states[1 if record_every else 0 :]):
                state.brief = True
            return _Sitting(model, stream, exam, threshold, record_every).run()
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"policy {policy.kind} cannot run on the embedded model: {error}") from error


def stored_shape(shape: ModelShape) -> ModelShape:
    """The model's shape with keys and values as they are counted."""
    return shape.model_copy(update={"kv_bits": KV_BITS, "weight_bits": KV_BITS})


def check_length(model: MiniModel, n_frames: int) -> None:
    """Raise ConfigError where so many frames do not fit the model's positions."""
    if n_frames > model.max_frames:
        raise ConfigError(
            f"accuracy: {n_frames} frames are more than the model has positions for; allowed: at most "
            f"{model.max_frames}"
        )


def question_kind(policy: Policy) -> StepKind:
    """What a question's step is. Policies of decode steps alone take it as one: its last token decides the answer."""
    return "question" if "question" in policy.runs_in else "decode"


class _Sitting:
    """One exam while it runs."""

    def __init__(
        self, model: MiniModel, stream: Stream, exam: Exam, threshold: float, record_every: int | None
    ) -> None:
        self.model, self.stream, self.exam, self.threshold = model, stream, exam, threshold
        self.record_every = record_every
        self.asks_as = question_kind(stream.policy)
        self.counts = np.zeros((2, len(COUNTED)), dtype=np.int64)
        self.steps: list[Step] = []
        self.recorded: list[tuple[LayerSelection, ...]] = []

    def run(self) -> Answers:
        embeds = self.model.encode(np.stack([stream.frames for stream in self.exam.streams]))
        said, given = [], []
        turns = list(self.exam.turns)
        for frame in range(embeds.shape[1]):
            logits = self._step(embeds[:, frame], Step("frame", self.stream.n_tokens, embeds.shape[2]), frame)
            said.append(self.model.narrate(logits, self.threshold))
            while turns and turns[0].frame == frame:
                given.append(self._ask(turns.pop(0)))
        layers = tuple(zip(*self.recorded, strict=True))
        return Answers(
            torch.stack(given, dim=1).numpy(), torch.stack(said, dim=1).numpy(), self.counts, tuple(self.steps), layers
        )

    def _ask(self, turn: Turn) -> torch.Tensor:
        ids = torch.tensor([question.ids if question else _NOTHING for question in turn.questions])
        step = Step(self.asks_as, self.stream.n_tokens, ids.shape[1], in_stream=False)
        return self._step(self.model.embed(ids), step, 0).argmax(dim=-1)

    def _step(self, embeds: torch.Tensor, step: Step, number: int) -> torch.Tensor:
        """(B, V) logits at the step's last token."""
        out = self.stream.forward(embeds, step.kind, in_stream=step.in_stream)
        chosen = self.stream.last_selections
        self.counts[int(step.kind != "frame")] += counted(layer for layers in chosen for layer in layers)
        self.counts[int(step.kind != "frame"), 0] += len(chosen)
        if self.record_every and step.first_token and (step.kind != "frame" or number % self.record_every == 0):
            self.steps.append(step)
            self.recorded.append(chosen[0])
        return out.last_logits


def counted(selections: Iterable[LayerSelection]) -> Int64:
    """(len(COUNTED),) tokens of these selections; steps are left at 0."""
    total = np.zeros(len(COUNTED), dtype=np.int64)
    for one in selections:
        attended, candidates = one.attended, one.candidates
        masks = attended, candidates, attended & candidates, attended & ~one.resident
        total[1] += attended.size
        total[2:] += [int(np.count_nonzero(mask)) for mask in masks]
    return total
