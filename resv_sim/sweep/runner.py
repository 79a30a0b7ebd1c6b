"""Runs points on workers: functional stage first, in chunks of settings that share a layer's arrays, then points.

Every finished point is stored before it is reported. Knows dask's futures; knows nothing of what a point is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from resv_sim.config import Experiment
from resv_sim.memo import Memo
from resv_sim.sweep.evaluate import (
    Evaluated,
    algorithm_key,
    evaluate,
    prepare,
    prepare_accuracy,
    stream_key,
    used_policies,
)
from resv_sim.sweep.space import SweepPoint

Task = tuple[SweepPoint, Experiment]
Done = Callable[[SweepPoint, Evaluated], None]
# A layer's arrays cost as much as half a setting; 32 settings make that small and the first points early.
SETTINGS_PER_CHUNK = 32
POINTS_PER_TASK = 8


@dataclass(frozen=True)
class _Chunk:
    """Settings of the same streams; each setting's points follow each other."""

    settings: tuple[tuple[Task, ...], ...]

    @property
    def first(self) -> Experiment:
        return self.settings[0][0][1]


def run_points(client: Any, tasks: Sequence[Task], memo: Memo, done: Done) -> None:
    """Evaluate every task on the client's workers; `done` is called here, once per point, as they finish.

    A point whose worker dies again and again is done with an error.
    """
    from distributed import as_completed

    waiting: dict[Any, tuple[Task, ...]] = {}
    for number, chunk in enumerate(_chunks(tasks)):
        waiting.update(_submit(client, chunk, memo, -number))
    finished = as_completed(list(waiting))
    for future in finished:
        mine = waiting.pop(future)
        if future.status == "finished":
            for (point, _), result in zip(mine, future.result(), strict=True):
                done(point, result)
        elif len(mine) > 1 or future.status == "cancelled":
            for task in mine:
                alone = client.submit(evaluate, memo, _sent((task,)), pure=False)
                waiting[alone] = (task,)
                finished.add(alone)
        else:
            done(mine[0][0], Evaluated(mine[0][0].index, error=_reason(future.exception())))
        future.release()


def _chunks(tasks: Sequence[Task]) -> Iterator[_Chunk]:
    settings: dict[str, list[Task]] = {}
    for task in tasks:
        settings.setdefault(algorithm_key(task[1]), []).append(task)
    by_stream: dict[str, list[tuple[Task, ...]]] = {}
    for group in settings.values():
        by_stream.setdefault(stream_key(group[0][1]), []).append(tuple(group))
    for groups in by_stream.values():
        for first in range(0, len(groups), SETTINGS_PER_CHUNK):
            yield _Chunk(tuple(groups[first : first + SETTINGS_PER_CHUNK]))


def _submit(client: Any, chunk: _Chunk, memo: Memo, priority: int) -> dict[Any, tuple[Task, ...]]:
    """Futures of the chunk's points, by future. Earlier chunks go first."""
    policies = {p.model_dump_json(): p for group in chunk.settings for p in used_policies(group[0][1])}
    layers = [
        client.submit(prepare, memo, chunk.first, list(policies.values()), i, pure=False, priority=priority)
        for i in range(chunk.first.model.n_layers)
    ]
    exams = {
        (a.model_dump_json(), policy.model_dump_json()): (experiment, policy)
        for experiment in (group[0][1] for group in chunk.settings)
        if (a := experiment.accuracy) is not None
        for policy in used_policies(experiment)
    }
    layers += [
        client.submit(prepare_accuracy, memo, experiment, policy, pure=False, priority=priority)
        for experiment, policy in exams.values()
    ]
    out = {}
    for group in chunk.settings:
        for first in range(0, len(group), POINTS_PER_TASK):
            mine = group[first : first + POINTS_PER_TASK]
            future = client.submit(evaluate, memo, _sent(mine), after=layers, pure=False, priority=priority)
            out[future] = mine
    return out


def _sent(tasks: Sequence[Task]) -> list[tuple[int, Experiment]]:
    return [(point.index, experiment) for point, experiment in tasks]


def _reason(error: BaseException | None) -> str:
    from distributed import KilledWorker

    if isinstance(error, KilledWorker):
        return "the worker died every time it tried (killed, or out of memory)"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
