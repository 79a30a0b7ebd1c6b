"""Slow, evident twins of the mini world: every answer by replaying the list of events, frame by frame."""

from __future__ import annotations

from resv.mini.vocabulary import CELL_0, COUNT_0, COUNT_CAP, GRID, KIND_0, SILENT, Task


def replay(events, n_frames):
    """[(frame, {cell: kind})] and the log of what an attentive viewer writes down."""
    grid, shown = {}, []
    for frame in range(n_frames):
        for event in (e for e in events if e.frame == frame):
            if event.what == "vanish":
                assert grid.pop(event.cell) == event.kind
            elif event.what == "appear":
                assert event.cell not in grid
                assert event.kind not in grid.values()
                grid[event.cell] = event.kind
            elif event.what == "move":
                assert grid.pop(event.from_cell) == event.kind
                assert event.cell not in grid
                grid[event.cell] = event.kind
        shown.append(dict(grid))
    return shown


def ref_answer(events, question):
    """The answer's token id, from the events up to the question's frame alone."""
    past = [event for event in events if event.frame <= question.frame]
    shown = replay(past, question.frame + 1)
    _, first, second, _ = question.ids
    if question.task is Task.LAST_SEEN:
        where = None
        for grid in shown:
            for cell, kind in grid.items():
                where = cell if kind == first - KIND_0 else where
        return CELL_0 + where
    if question.task is Task.BEFORE_EMPTY:
        cell = first - CELL_0
        assert cell not in shown[-1]
        for grid in reversed(shown):
            if cell in grid:
                return KIND_0 + grid[cell]
    if question.task is Task.FIRST_OF:
        for event in past:
            if event.what == "appear" and event.kind in (first - KIND_0, second - KIND_0):
                return KIND_0 + event.kind
    if question.task is Task.COUNT:
        times = sum(event.what == "appear" and event.kind == first - KIND_0 for event in past)
        return COUNT_0 + min(times, COUNT_CAP)
    return KIND_0 + [event for event in past if event.what in ("appear", "move")][-1].kind


def ref_narration(events, n_frames):
    """Token ids to say."""
    said = []
    for frame in range(n_frames):
        new = [event for event in events if event.frame == frame and event.what in ("appear", "move")]
        assert len(new) <= 1
        said.append(KIND_0 + new[0].kind if new else SILENT)
    return tuple(said)


def ref_visible(n_frames, turns, probes):
    """For every slot of a packed stream, the set of slots it sees: the stream is written out as a list and walked."""
    per_frame = GRID * GRID + 1
    stream, slot = [], n_frames * per_frame
    slots_of = {}
    for index in range(len(turns) + len(probes)):
        n_words = 5 if index < len(turns) else 4
        slots_of[index] = list(range(slot, slot + n_words))
        slot += n_words
    sees = {}
    for frame in range(n_frames):
        for token in range(per_frame):
            stream.append(frame * per_frame + token)
            sees[stream[-1]] = set(stream)
        for index, turn in enumerate(turns):
            if turn.frame == frame:
                for word in slots_of[index]:
                    stream.append(word)
                    sees[word] = set(stream)
        for index, probe in enumerate(probes, len(turns)):
            if probe.frame == frame:
                for n, word in enumerate(slots_of[index]):
                    sees[word] = set(stream) | set(slots_of[index][: n + 1])
    assert len(sees) == slot
    return sees
