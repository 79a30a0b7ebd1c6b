"""`run_sweep`: from a sweep and a folder to finished points and tables. The order of things.

Everything that a user can get wrong is refused before a worker starts.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from resv_sim.errors import ConfigError
from resv_sim.memo import Memo, cache_directory
from resv_sim.sweep.cluster import connected, models_fingerprint
from resv_sim.sweep.config import Measure
from resv_sim.sweep.evaluate import Evaluated
from resv_sim.sweep.progress import SweepProgress
from resv_sim.sweep.runner import run_points
from resv_sim.sweep.search import Search
from resv_sim.sweep.space import Sweep, SweepPoint, points, validate_points
from resv_sim.sweep.store import JOURNAL, SweepStore
from resv_sim.sweep.tables import write_tables


def run_sweep(
    sweep: Sweep, folder: Path, jobs: int, *, scheduler: str | None, resume: bool, use_cache: bool
) -> list[dict[str, Any]]:
    """Evaluate what is not finished yet and write the tables; returns the records of all points, in order.

    Raises `ConfigError` naming the point where one is refused, and `OutputError` where the folder cannot be used.
    """
    if sweep.config.mode != "search" and not (resume and (folder / JOURNAL).exists()):
        for _ in validate_points(sweep, points(sweep.config)):
            pass  # before the folder is touched; a sweep that is gone on with was validated once
    with SweepStore(folder, sweep, models_fingerprint(), resume=resume) as store:
        _Job(sweep, store, jobs, scheduler, use_cache).run()
        records = store.records()
        write_tables(folder, records, list(sweep.config.axes))
    return records


class _Job:
    """One run of a sweep into its store."""

    def __init__(self, sweep: Sweep, store: SweepStore, jobs: int, scheduler: str | None, use_cache: bool) -> None:
        self._sweep, self._store, self._jobs, self._scheduler = sweep, store, jobs, scheduler
        self._own_memo = None if use_cache else store.folder / ".memo"
        self._memo = Memo(self._own_memo or cache_directory())
        self._client: Any = None

    def run(self) -> None:
        config = self._sweep.config
        with ExitStack() as stack:
            if config.mode == "search":
                self._total = config.budget or 0
                self._progress = SweepProgress(self._total, len(self._store.finished))
                for batch in self._populations():
                    self._batch(batch, stack)
                self._total = len(self._store.finished)  # less than the budget where nothing new was left
            else:
                batch = points(config)
                self._total = len(batch)
                self._progress = SweepProgress(self._total, len(self._store.finished))
                self._batch(batch, stack)
        self._store.write_state(self._total)
        if self._own_memo is not None:
            shutil.rmtree(self._own_memo, ignore_errors=True)

    def _populations(self) -> Iterator[Sequence[SweepPoint]]:
        """Each population of a search, told as soon as all of it is finished."""
        search = Search(self._sweep.config, self._store.folder)
        while population := search.ask():
            yield population
            for point in population:
                search.tell(point, measured_row(self._store.finished[point.id], self._sweep.config.measure))

    def _batch(self, batch: Sequence[SweepPoint], stack: ExitStack) -> None:
        todo = [point for point in batch if point.id not in self._store.finished]
        if not todo:
            return
        if self._sweep.config.mode == "search":
            tasks = []
            for point in todo:  # a combination that is refused is an answer to the search
                try:
                    tasks.append((point, self._sweep.experiment(point)))
                except ConfigError as error:
                    self._done(point, Evaluated(point.index, error=str(error)))
        else:
            tasks = list(validate_points(self._sweep, todo))
        if self._client is None and tasks:
            print(f"{len(todo)} of {self._total} points to do", file=sys.stderr, flush=True)
            self._client = stack.enter_context(connected(self._jobs, self._scheduler))
        if tasks:
            run_points(self._client, tasks, self._memo, self._done)

    def _done(self, point: SweepPoint, result: Evaluated) -> None:
        if result.error is None and measured_row({"rows": result.rows}, self._sweep.config.measure) is None:
            why = "; ".join(result.notes) or "no step of it could be simulated"
            result = Evaluated(point.index, error=f"no row for {self._sweep.config.measure.label}: {why}")
        self._store.add(point, result)
        self._progress.finished(failed=result.error is not None)


def measured_row(record: Any, measure: Measure) -> Any:
    """The row of a point that the sweep measures, None where it has none."""
    rows = [
        row
        for row in record.get("rows", ())
        if (row["platform"], row["policy"], row["stage"]) == (measure.platform, measure.policy, measure.stage)
    ]
    if measure.kv_len_tokens is None:
        return max(rows, key=lambda row: row["kv_len_tokens"], default=None)
    # A length that is no multiple of a frame's tokens was rounded down to one.
    fitting = [row for row in rows if row["kv_len_tokens"] <= measure.kv_len_tokens]
    return max(fitting, key=lambda row: row["kv_len_tokens"], default=None)
