"""The closed vocabulary: 36 kinds of objects, nine cells, six counts, five tasks and a few marks, one token each.

The order of the groups is part of the trained weights; a change makes every shipped weight file another version.
"""

from __future__ import annotations

from enum import StrEnum

GRID = 3
N_CELLS = GRID * GRID
SHAPES = ("disc", "square", "triangle", "ring", "cross", "bars")
COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan")
N_KINDS = len(SHAPES) * len(COLOURS)
COUNT_CAP = 4  # "how many times" is answered 0, 1, 2, 3, or "4 or more"


class Task(StrEnum):
    """What a question asks of the frames that were shown before it."""

    LAST_SEEN = "last_seen"  # the cell in which object X was last visible
    BEFORE_EMPTY = "before_empty"  # the object that was in the empty cell c last
    FIRST_OF = "first_of"  # which of X and Y appeared first
    COUNT = "count"  # how many times X appeared, up to the cap; a move is no appearance
    NEW_NOW = "new_now"  # the object that appeared or moved last


TASKS = tuple(Task)

_WORDS = (
    *(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS),
    *(f"cell {row},{column}" for row in range(GRID) for column in range(GRID)),
    *(str(count) for count in range(COUNT_CAP)),
    f"{COUNT_CAP} or more",
    *(task.value for task in TASKS),
    "SILENT",
    "EMPTY",
    "-",
    "?",
)

KIND_0 = 0
CELL_0 = KIND_0 + N_KINDS
COUNT_0 = CELL_0 + N_CELLS
TASK_0 = COUNT_0 + COUNT_CAP + 1
SILENT = TASK_0 + len(TASKS)  # narration: nothing new in this frame
EMPTY = SILENT + 1  # what an empty cell shows; used in training only
BLANK = SILENT + 2  # an argument that the task does not have
ASK = SILENT + 3  # the end of a question: its answer is the next token
VOCAB_SIZE = 64  # a round number above the words; the rest is never trained nor answered

QUESTION_TOKENS = 4  # task, first argument, second argument, "?"


def words() -> tuple[str, ...]:
    """The word of every token id, in the order of the ids."""
    return _WORDS


def question_ids(task: Task, first: int = BLANK, second: int = BLANK) -> tuple[int, int, int, int]:
    """Token ids of a question; its arguments are token ids of kinds or cells."""
    return (TASK_0 + TASKS.index(task), first, second, ASK)


def answer_choices(task: Task, first: int = BLANK, second: int = BLANK) -> tuple[int, ...]:
    """Token ids among which the answer of such a question is."""
    if task is Task.LAST_SEEN:
        return tuple(range(CELL_0, CELL_0 + N_CELLS))
    if task is Task.COUNT:
        return tuple(range(COUNT_0, COUNT_0 + COUNT_CAP + 1))
    if task is Task.FIRST_OF:
        return (first, second)
    return tuple(range(KIND_0, KIND_0 + N_KINDS))
