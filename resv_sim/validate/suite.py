"""Runs comparisons: tables in, points out, rows spread over threads.

The kernels release the interpreter and rows share nothing, so the result does not depend on the number of threads.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from resv_sim.progress import Progress
from resv_sim.validate import dram, energy, gpu, link, ssd
from resv_sim.validate.comparison import Point
from resv_sim.validate.schemas import MODELS, Row
from resv_sim.validate.tables import REFERENCE, Table, TableError, read_folder

COMPARISONS: dict[str, types.ModuleType] = {"dram": dram, "ssd": ssd, "link": link, "gpu": gpu, "energy": energy}


def tables_for(model: str, folder: Path | None) -> list[Table]:
    """The tables of one model, or of `all`, bundled or in `folder`, every row checked. Raises TableError."""
    wanted = MODELS if model == "all" else (model,)
    tables = read_folder(folder or REFERENCE, wanted)
    if not tables:
        raise TableError(f"{folder}: no table of the model '{model}' in this folder")
    for table in tables:
        for row in table.rows:
            COMPARISONS[table.model].check(table, row)
    return sorted(tables, key=lambda table: (MODELS.index(table.model), table.name))


def run(tables: Sequence[Table], jobs: int, progress: Progress) -> list[Point]:
    """The points of all rows, in the order of tables and rows."""
    work = [(table, row) for table in tables for row in table.rows]
    # The longest first, so that no thread is left alone with a long row at the end.
    order = sorted(range(len(work)), key=lambda i: -COMPARISONS[work[i][0].model].cost(work[i][1]))
    results: list[list[Point]] = [[] for _ in work]
    with progress.task("rows compared", len(work)) as advance:

        def one(index: int) -> None:
            results[index] = _compare(*work[index])
            advance()

        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(one, order))
    return [point for points in results for point in points]


def _compare(table: Table, row: Row) -> list[Point]:
    return list(COMPARISONS[table.model].compare(table, row))
