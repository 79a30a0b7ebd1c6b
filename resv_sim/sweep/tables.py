"""`results.csv`, `results.parquet` and `failures.csv` of a sweep, from its finished points.

One row per point, run, cache length and stage: `point`, `id`, one column per axis, then the columns of a result row
(docs/metrics.md). Deterministic: the same points give the same bytes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from resv_sim.sweep.config import COLUMNS
from resv_sim.sweep.store import write_whole

Record = Mapping[str, Any]


def write_tables(folder: Path, records: Sequence[Record], axes: Sequence[str]) -> None:
    """All three files; the Parquet one only where there are rows."""
    header = ["point", "id", *axes, *COLUMNS]
    body = [row for record in records for row in _rows(record, axes)]
    write_whole(folder / "results.csv", _csv(header, body))
    failed = [(r["point"], r["id"], *(r["names"][axis] for axis in axes), r["error"]) for r in records if "error" in r]
    write_whole(folder / "failures.csv", _csv(["point", "id", *axes, "error"], failed))
    if body:
        _write_parquet(folder, header, body)


def _rows(record: Record, axes: Sequence[str]) -> Iterable[tuple[Any, ...]]:
    start = (record["point"], record["id"], *(record["names"][axis] for axis in axes))
    for row in record.get("rows", ()):
        yield (*start, *(row[column] for column in COLUMNS))


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([["" if value is None else value for value in row] for row in rows])
    return out.getvalue()


def _write_parquet(folder: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    columns = [_alike(column) for column in zip(*rows, strict=True)]
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(dict(zip(header, columns, strict=True))), sink)
    write_whole(folder / "results.parquet", sink.getvalue().to_pybytes())


def _alike(column: Sequence[Any]) -> list[Any]:
    """A column of one type: as it is where it has one, numbers as floats, anything else as text."""
    kinds = {type(value) for value in column if value is not None}
    if len(kinds) <= 1:
        return list(column)
    convert: Any = float if kinds <= {int, float} else str
    return [None if value is None else convert(value) for value in column]
