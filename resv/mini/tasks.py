"""Questions about a world and their right answers, from what was shown up to the frame they are asked after.

Answers come from the occupancy of the grid and the list of arrivals, never from pixels. Where a task has answers of
several kinds (counts), they are drawn evenly, so that a guess from priors stays near one in the number of choices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resv.mini.vocabulary import (
    BLANK,
    CELL_0,
    COUNT_0,
    COUNT_CAP,
    KIND_0,
    N_KINDS,
    SILENT,
    TASKS,
    Task,
    answer_choices,
    question_ids,
)
from resv.mini.world import World

_ABSENT_SHARE = 0.7  # of "last seen" questions, about an object that is not visible, if there is one
FIRST_ASKED = 2  # no question before the third frame: little has happened


@dataclass(frozen=True)
class Question:
    """One turn. It is asked after `frame` (0-based), and is answered by one token, `answer_id`, of `choices`."""

    frame: int
    task: Task
    ids: tuple[int, ...]
    answer_id: int
    choices: tuple[int, ...]


@dataclass(frozen=True)
class _Past:
    """What was shown up to and including `frame`."""

    frame: int
    occupancy: NDArray[np.int8]
    appeared: NDArray[np.int64]  # kinds in the order of their appearances
    arrived: NDArray[np.int64]  # kinds in the order of their arrivals: appearances and moves

    @property
    def seen(self) -> NDArray[np.int64]:
        return np.unique(self.appeared)


Asked = tuple[tuple[int, ...], int]  # arguments and answer, as token ids


def _choose(options: NDArray[np.int64], rng: np.random.Generator) -> int:
    return int(options[rng.integers(len(options))])


def _ask_last_seen(past: _Past, rng: np.random.Generator) -> Asked | None:
    visible = np.isin(past.seen, past.occupancy[-1])
    absent, present = past.seen[~visible], past.seen[visible]
    if not len(past.seen):
        return None
    want_absent = rng.random() < _ABSENT_SHARE
    pool = absent if len(absent) and (want_absent or not len(present)) else present
    kind = _choose(pool, rng)
    _, cells = np.nonzero(past.occupancy == kind)
    return (KIND_0 + kind,), CELL_0 + int(cells[-1])


def _ask_before_empty(past: _Past, rng: np.random.Generator) -> Asked | None:
    emptied = np.flatnonzero((past.occupancy[-1] < 0) & (past.occupancy >= 0).any(axis=0))
    if not len(emptied):
        return None
    cell = _choose(emptied, rng)
    column = past.occupancy[:, cell]
    return (CELL_0 + cell,), KIND_0 + int(column[column >= 0][-1])


def _ask_first_of(past: _Past, rng: np.random.Generator) -> Asked | None:
    if len(past.seen) < 2:
        return None
    first, second = rng.permutation(past.seen)[:2].tolist()
    order = past.appeared.tolist()
    winner = first if order.index(first) < order.index(second) else second
    return (KIND_0 + first, KIND_0 + second), KIND_0 + winner


def _ask_count(past: _Past, rng: np.random.Generator) -> Asked | None:
    counts = np.minimum(np.bincount(past.appeared, minlength=N_KINDS), COUNT_CAP)
    count = _choose(np.unique(counts), rng)
    kind = _choose(np.flatnonzero(counts == count), rng)
    return (KIND_0 + kind,), COUNT_0 + count


def _ask_new_now(past: _Past, rng: np.random.Generator) -> Asked | None:
    return ((), KIND_0 + int(past.arrived[-1])) if len(past.arrived) else None


_ASK: dict[Task, Callable[[_Past, np.random.Generator], Asked | None]] = {
    Task.LAST_SEEN: _ask_last_seen,
    Task.BEFORE_EMPTY: _ask_before_empty,
    Task.FIRST_OF: _ask_first_of,
    Task.COUNT: _ask_count,
    Task.NEW_NOW: _ask_new_now,
}


def ask(world: World, frame: int, task: Task, rng: np.random.Generator) -> Question | None:
    """A question of this task after `frame`, or None if nothing shown so far can be asked about."""
    arrivals = [event for event in world.arrivals() if event.frame <= frame]
    past = _Past(
        frame,
        world.occupancy[: frame + 1],
        np.array([event.kind for event in arrivals if event.what == "appear"], dtype=np.int64),
        np.array([event.kind for event in arrivals], dtype=np.int64),
    )
    asked = _ASK[task](past, rng)
    if asked is None:
        return None
    arguments, answer = asked
    padded = (*arguments, BLANK, BLANK)[:2]
    return Question(frame, task, question_ids(task, *padded), answer, answer_choices(task, *padded))


def ask_questions(
    world: World, n_questions: int, tasks: Sequence[Task], rng: np.random.Generator, first_share: float = 0.0
) -> tuple[Question, ...]:
    """`n_questions` in the order of their frames, the tasks in turn from a random one on.

    Frames are drawn evenly from `first_share` of the stream on; a task that has nothing to ask about yet gives its
    turn to the next.
    """
    n_frames = len(world.occupancy)
    first = max(min(FIRST_ASKED, n_frames - 1), int(first_share * n_frames))
    frames = np.sort(rng.integers(first, n_frames, n_questions))
    turns = rng.permutation(np.arange(n_questions) + rng.integers(len(tasks)))
    questions = []
    for frame, turn in zip(frames.tolist(), turns.tolist(), strict=True):
        for shift in range(len(tasks)):
            question = ask(world, frame, tasks[(turn + shift) % len(tasks)], rng)
            if question is not None:
                questions.append(question)
                break
    return tuple(questions)


def narration(world: World) -> tuple[int, ...]:
    """What to say after every frame: the token id of the object that appeared or moved in it, or SILENT."""
    spoken = [SILENT] * len(world.occupancy)
    for event in world.arrivals():
        spoken[event.frame] = KIND_0 + event.kind
    return tuple(spoken)


@dataclass(frozen=True)
class BlindBaseline:
    """Answers without seeing the video: per task, the choice that was right most often in other streams."""

    choice: dict[Task, int]

    @staticmethod
    def fit(questions: Iterable[Question]) -> BlindBaseline:
        counts: dict[Task, Counter[int]] = {task: Counter() for task in TASKS}
        for question in questions:
            counts[question.task][question.choices.index(question.answer_id)] += 1
        return BlindBaseline({task: count.most_common(1)[0][0] for task, count in counts.items() if count})

    def answer(self, question: Question) -> int:
        """The token id it answers; the first choice for a task it never met."""
        return question.choices[self.choice.get(question.task, 0)]
