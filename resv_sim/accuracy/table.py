"""From token ids given and said to rows of numbers: accuracy by task, narration, what was kept, and who beats whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resv.mini.scoring import Score
from resv.mini.tasks import BlindBaseline
from resv.mini.vocabulary import SILENT, Task
from resv.trace import ModelShape
from resv_sim.accuracy.config import COUNTED, AccuracyConfig, Stages
from resv_sim.accuracy.exam import Exam
from resv_sim.accuracy.outcomes import Outcome
from resv_sim.accuracy.statistics import mcnemar

Bool = NDArray[np.bool_]
BLIND = "no video"  # the row of the chance level


@dataclass(frozen=True)
class AccuracyRow:
    """One policy on one exam. Shares are of 1; `low` and `high` bound Wilson's 95 % interval.

    accuracy_drop : accuracy of the reference less this one's;  only_reference, only_policy, p_value : McNemar's exact
    test on the same questions
    narration : frames after which the right thing was said, or rightly nothing;  speak, silent : the same of frames
    with something new, and without
    frame_kept, text_kept : attended / cached tokens of frame steps and questions;  frame_ratio, text_ratio : selected /
    candidate tokens;  frame_fetched_bytes, text_fetched_bytes : from below the device, of one step of one stream
    """

    policy: str
    stages: Stages
    n_frames: int
    level: str
    n_questions: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    accuracy_drop: float
    only_reference: int
    only_policy: int
    p_value: float
    narration: float
    narration_low: float
    narration_high: float
    speak: float | None
    silent: float | None
    frame_kept: float | None
    text_kept: float | None
    frame_ratio: float | None
    text_ratio: float | None
    frame_fetched_bytes: float | None
    text_fetched_bytes: float | None


@dataclass(frozen=True)
class TaskRow:
    """One policy's answers to the questions of one task."""

    policy: str
    stages: Stages
    n_frames: int
    task: str
    n_questions: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float


@dataclass(frozen=True)
class PairRow:
    """Two policies on the same questions, by McNemar's exact test."""

    first: str
    second: str
    stages: Stages
    n_frames: int
    only_first: int
    only_second: int
    p_value: float


@dataclass(frozen=True)
class Marked:
    """An outcome beside the right answers: `right` (Q',) of all questions asked, in a fixed order."""

    label: str
    config: AccuracyConfig
    outcome: Outcome
    right: Bool


class Answered:
    """The right answers of one exam, all its parts together."""

    def __init__(self, exams: Sequence[Exam]) -> None:
        self.answers = np.concatenate([exam.answers for exam in exams])
        self.narration = np.concatenate([exam.narration for exam in exams])
        self._asked = self.answers >= 0
        tasks = [task for exam in exams for row in exam.tasks() for task in row]
        self._tasks = np.array([task.value if task else "" for task in tasks])[self._asked.ravel()]
        self._exams = exams

    def mark(self, label: str, config: AccuracyConfig, outcome: Outcome) -> Marked:
        """Which questions were answered rightly."""
        return Marked(label, config, outcome, (outcome.given == self.answers)[self._asked])

    def blind(self, config: AccuracyConfig, baseline: BlindBaseline) -> Marked:
        """Answers without the video, and silence after every frame."""
        given = np.concatenate([exam.blind(baseline) for exam in self._exams])
        said = np.full_like(self.narration, SILENT)
        return self.mark(BLIND, config, Outcome(given, said, np.zeros((2, len(COUNTED)), dtype=np.int64)))

    def row(self, marked: Marked, reference: Marked, shape: ModelShape) -> AccuracyRow:
        """`shape` : of the model, whose keys and values are counted."""
        low, high = _score(marked.right).interval()
        paired = mcnemar(reference.right, marked.right)
        said = marked.outcome.said == self.narration
        speaks = self.narration != SILENT
        spoken = _score(said)
        return AccuracyRow(
            policy=marked.label,
            stages=marked.config.stages,
            n_frames=marked.config.n_frames,
            level=marked.config.level.value,
            n_questions=marked.right.size,
            accuracy=_score(marked.right).accuracy,
            accuracy_low=low,
            accuracy_high=high,
            accuracy_drop=drop(reference.right, marked.right),
            only_reference=paired.only_first,
            only_policy=paired.only_second,
            p_value=paired.p_value,
            narration=spoken.accuracy,
            narration_low=spoken.interval()[0],
            narration_high=spoken.interval()[1],
            speak=_mean(said[speaks]),
            silent=_mean(said[~speaks]),
            **_kept(marked.outcome, shape),
        )

    def task_rows(self, marked: Marked) -> list[TaskRow]:
        """A row per task that was asked."""
        rows = []
        for task in Task:
            score = _score(marked.right[self._tasks == task.value])
            if score.asked:
                where = marked.label, marked.config.stages, marked.config.n_frames, task.value
                rows.append(TaskRow(*where, score.asked, score.accuracy, *score.interval()))
        return rows


def pair_rows(marked: Sequence[Marked]) -> list[PairRow]:
    """Every two outcomes of the same exam in the same stages."""
    rows = []
    for i, first in enumerate(marked):
        for second in marked[i + 1 :]:
            if first.config == second.config:
                paired = mcnemar(first.right, second.right)
                rows.append(PairRow(first.label, second.label, first.config.stages, first.config.n_frames, *paired))
    return rows


def drop(reference: Bool, right: Bool) -> float:
    """How much larger the share of right answers is in the reference, on the same questions.

    A quotient of counts: 8 of 800 questions keep a limit of 0.01, which a difference of shares may miss.
    """
    return (int(reference.sum()) - int(right.sum())) / right.size


def _score(right: Bool) -> Score:
    return Score(int(np.count_nonzero(right)), right.size)


def _mean(values: Bool) -> float | None:
    return float(values.mean()) if values.size else None


def _kept(outcome: Outcome, shape: ModelShape) -> dict[str, float | None]:
    out: dict[str, float | None] = {}
    for name, counts in zip(("frame", "text"), outcome.counts.tolist(), strict=True):
        of = dict(zip(COUNTED, counts, strict=True))
        out[f"{name}_kept"] = of["attended"] / of["cached"] if of["cached"] else None
        out[f"{name}_ratio"] = of["selected"] / of["candidates"] if of["candidates"] else None
        out[f"{name}_fetched_bytes"] = shape.kv_bytes(of["fetched"]) / of["steps"] if of["steps"] else None
    return out
