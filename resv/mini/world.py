"""What happens in a stream: objects that appear, move, vanish and recur on a grid, and cuts that clear it.

Per frame at most one object appears or moves, so a frame has at most one thing to narrate. Nothing here has pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from resv.mini.vocabulary import N_CELLS, N_KINDS

Int8 = NDArray[np.int8]
EventKind = Literal["appear", "move", "vanish", "cut"]
NO_OBJECT = -1


class Level(StrEnum):
    """How difficult a stream is to see and to follow."""

    EASY = "easy"
    MEDIUM = "medium"
    HARD = "hard"


class Difficulty(BaseModel):
    """What a level means. Probabilities are per frame; all values are assumed, chosen so that levels differ in score.

    Of the first eight, the world uses the first six; the others concern the picture.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    event: float = Field(gt=0, le=1, description="chance that an object appears or moves")
    move_share: float = Field(ge=0, lt=1, description="share of moves among these, once two objects are there")
    vanish: float = Field(ge=0, le=1, description="chance that an object vanishes, from its third frame on")
    max_objects: int = Field(gt=0, le=N_CELLS - 1, description="on the grid at once")
    cut: float = Field(ge=0, le=1, description="chance that the scene changes")
    recurrence: float = Field(gt=0, description="objects that appear / kinds they are drawn from, at least 5 kinds")
    shake_px: float = Field(ge=0, le=2.5, description="largest displacement of the camera, each axis")
    light_change: float = Field(ge=0, lt=1, description="amplitude of the illumination's swing")
    noise: float = Field(ge=0, le=0.5, description="rms of the sensor, of full scale")
    clutter: float = Field(ge=0, le=1, description="contrast of the background, of that of a photograph")


LEVELS: dict[Level, Difficulty] = {
    Level.EASY: Difficulty(
        event=0.25, move_share=0.2, vanish=0.08, max_objects=3, cut=0.0, recurrence=1.2,
        shake_px=0.5, light_change=0.05, noise=0.01, clutter=0.3,
    ),
    Level.MEDIUM: Difficulty(
        event=0.35, move_share=0.3, vanish=0.08, max_objects=5, cut=0.01, recurrence=1.6,
        shake_px=1.0, light_change=0.15, noise=0.02, clutter=0.6,
    ),
    Level.HARD: Difficulty(
        event=0.45, move_share=0.4, vanish=0.08, max_objects=7, cut=0.02, recurrence=2.0,
        shake_px=2.0, light_change=0.3, noise=0.05, clutter=1.0,
    ),
}  # fmt: skip

_SMALLEST_CAST = 5  # kinds; assumed: fewer would be guessed
_SETTLED_FRAMES = 2  # an object stays so long where it came, and a kind stays away so long; less at a higher tempo


@dataclass(frozen=True)
class Event:
    """Something that is first seen in `frame`. `cell` is where the object is now, or was before it vanished."""

    frame: int
    what: EventKind
    kind: int = NO_OBJECT
    cell: int = -1
    from_cell: int = -1


@dataclass(frozen=True)
class World:
    """`occupancy[t, c]` is the kind of object in cell c in frame t, or -1; events are in order of their frames."""

    occupancy: Int8
    events: tuple[Event, ...]

    def arrivals(self) -> tuple[Event, ...]:
        """The events that are narrated: an object is in a cell in which it was not in the frame before."""
        return tuple(event for event in self.events if event.what in ("appear", "move"))


class _Stage:
    """The grid while a stream is made."""

    def __init__(
        self,
        level: Difficulty,
        settled: int,
        cells: NDArray[np.int64],
        cast: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> None:
        self.level, self.settled, self.cells, self.cast, self.rng = level, settled, cells, cast, rng
        self.most_objects = min(level.max_objects, len(cells) - 1)
        self.kinds = np.full(N_CELLS, NO_OBJECT, dtype=np.int8)
        self.since = np.zeros(N_CELLS, dtype=np.int64)  # frame in which a cell's object came to it
        self.gone = np.full(N_KINDS, -settled - 1, dtype=np.int64)  # last frame in which a kind vanished
        self.events: list[Event] = []

    def _clear(self, frame: int, cell: int) -> None:
        kind = int(self.kinds[cell])
        self.kinds[cell] = NO_OBJECT
        self.gone[kind] = frame
        self.events.append(Event(frame, "vanish", kind, cell))

    def _choose(self, options: NDArray[np.int64]) -> int:
        return int(options[self.rng.integers(len(options))])

    def _place(self, frame: int, kind: int, empty: NDArray[np.int64], from_cell: int = -1) -> None:
        cell = self._choose(empty)
        if from_cell >= 0:
            self.kinds[from_cell] = NO_OBJECT
        self.kinds[cell], self.since[cell] = kind, frame
        self.events.append(Event(frame, "move" if from_cell >= 0 else "appear", kind, cell, from_cell))

    def _arrive(self, frame: int, empty: NDArray[np.int64]) -> None:
        """One object appears or moves into a cell that was empty in the frame before, if any can."""
        settled = np.flatnonzero((self.kinds >= 0) & (frame - self.since >= self.settled))
        n_objects = int((self.kinds >= 0).sum())
        full = n_objects >= self.most_objects
        if len(settled) and (full or (n_objects > 1 and self.rng.random() < self.level.move_share)):
            cell = self._choose(settled)
            self._place(frame, int(self.kinds[cell]), empty, cell)
            return
        absent = self.cast[~np.isin(self.cast, self.kinds) & (frame - self.gone[self.cast] > self.settled)]
        if not full and len(absent):
            self._place(frame, self._choose(absent), empty)

    def advance(self, frame: int) -> None:
        empty = self.cells[self.kinds[self.cells] < 0]
        if frame > 0 and self.rng.random() < self.level.cut:
            self.events.append(Event(frame, "cut"))
            for cell in np.flatnonzero(self.kinds >= 0):
                self._clear(frame, int(cell))
            return
        leaving = self.rng.random(N_CELLS) < self.level.vanish
        for cell in np.flatnonzero(leaving & (self.kinds >= 0) & (frame - self.since >= self.settled)):
            self._clear(frame, int(cell))
        if len(empty) and (frame == 0 or self.rng.random() < self.level.event):
            self._arrive(frame, empty)


def _hurried(difficulty: Difficulty, tempo: float) -> Difficulty:
    """As much happens in a frame as otherwise in `tempo` frames, but for the one arrival that a frame can have."""
    return difficulty.model_copy(
        update={
            "event": min(1.0, difficulty.event * tempo),
            "vanish": 1.0 - (1.0 - difficulty.vanish) ** tempo,
            "cut": 1.0 - (1.0 - difficulty.cut) ** tempo,
        }
    )


def make_world(
    n_frames: int, difficulty: Difficulty, rng: np.random.Generator, tempo: float = 1.0, n_cells: int = N_CELLS
) -> World:
    """The events of a stream of `n_frames`. The longer the stream, the more kinds take part, up to all 36.

    At a higher tempo, and with fewer cells in use, a short stream has as much history as a long one.
    """
    level = difficulty if tempo == 1.0 else _hurried(difficulty, tempo)
    expected = n_frames * level.event * (1 - level.move_share)
    casts = expected / (level.recurrence * tempo**0.5) * rng.uniform(0.7, 1.4)
    n_cast = int(np.clip(round(casts), _SMALLEST_CAST, N_KINDS))
    settled = max(1, round(_SETTLED_FRAMES / tempo))
    cells = np.arange(N_CELLS) if n_cells == N_CELLS else np.sort(rng.permutation(N_CELLS)[:n_cells])
    stage = _Stage(level, settled, cells, rng.permutation(N_KINDS)[:n_cast], rng)
    occupancy = np.empty((n_frames, N_CELLS), dtype=np.int8)
    for frame in range(n_frames):
        stage.advance(frame)
        occupancy[frame] = stage.kinds
    return World(occupancy, tuple(stage.events))
