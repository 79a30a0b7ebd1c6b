"""Reference tables: CSV files with a header of comments, checked by name, column, unit and value.

Which model a table belongs to is decided by its columns (`SCHEMAS`), never by its name; its name, the file's
up to the first dot, tells the device where a model needs one (`dram.py`). Knows nothing of what the models are.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from resv_sim.errors import ConfigError
from resv_sim.validate.schemas import MODELS, SCHEMAS, Row, Schema
from resv_sim.yaml_source import shown

REFERENCE = Path(__file__).resolve().parent.parent / "data" / "reference"
# Identities of a table's own columns hold to this share, unless its author mixed units.
IDENTITY_TOLERANCE = 0.02
# Refused in every column, also in those that no comparison reads.
NOT_NUMBERS = ("nan", "inf", "infinity")


class TableError(ConfigError):
    """A reference table that cannot be used: says file and line, what was wrong, and what is allowed."""


@dataclass(frozen=True)
class Table:
    """A checked table. `name` is that of the file up to its first dot, `header` its comment lines."""

    name: str
    kind: str
    file: str
    header: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def model(self) -> str:
        return SCHEMAS[self.kind].model


def read_folder(folder: Path, models: Sequence[str] = MODELS) -> list[Table]:
    """The tables of `models` among all `*.csv` of a folder, by name. Raises TableError for any that is bad."""
    if not folder.is_dir():
        raise TableError(f"{folder}: no such folder; --data takes a folder of CSV tables")
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise TableError(f"{folder}: no *.csv file in this folder")
    return [table for table in map(read_table, files) if table.model in models]


def read_table(path: Path) -> Table:
    """One table. Raises TableError naming file and line of the first thing that is wrong."""
    file = shown(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise TableError(f"{file}: not a UTF-8 text file ({error.reason})") from None
    except OSError as error:
        raise TableError(f"{file}: cannot be read: {error.strerror or error}") from None
    header = tuple(line.lstrip("# ") for line in lines if line.startswith("#"))
    body = [(i, line) for i, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    if not body:
        raise TableError(f"{file}:{max(1, len(lines))}: empty table: no line with column names")
    names_line, names = body[0][0], [name.strip() for name in next(csv.reader([body[0][1]]))]
    kind = _kind(f"{file}:{names_line}", names)
    if len(body) == 1:
        raise TableError(f"{file}:{names_line}: empty table: column names but no row")
    rows = tuple(_row(f"{file}:{line}", line, names, text, SCHEMAS[kind]) for line, text in body[1:])
    return Table(path.name.split(".")[0], kind, file, header, rows)


def _kind(where: str, names: Sequence[str]) -> str:
    """The one schema whose columns are all there; else an error about the schema that comes closest."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TableError(f"{where}: column {twice[0]!r} is there twice")
    complete = [kind for kind, schema in SCHEMAS.items() if set(schema.columns) <= set(names)]
    if complete:
        return complete[0]
    share = {k: len(set(s.columns) & set(names)) / len(s.columns) for k, s in SCHEMAS.items()}
    nearest = max(share, key=lambda kind: share[kind])
    if share[nearest] < 0.5:
        known = "; ".join(f"{kind}: {', '.join(schema.columns)}" for kind, schema in SCHEMAS.items())
        raise TableError(f"{where}: these columns belong to no known kind of table. Known are {known}")
    missing = [name for name in SCHEMAS[nearest].columns if name not in names]
    units = [f"{o!r} has the wrong unit, {m!r} is needed" for m in missing for o in names if _same_but_unit(m, o)]
    detail = units[0] if units else f"missing column{'s' * (len(missing) > 1)} {', '.join(missing)}"
    raise TableError(f"{where}: {detail} (table of kind {nearest})")


def _same_but_unit(one: str, other: str) -> bool:
    """Names that differ in their unit alone, `lat_mean_ns` and `lat_mean_us`."""
    endings = ("bytes_per_s", "gb_per_s", "mb_per_s", "ps", "ns", "us", "ms", "s", "bytes", "kb", "kib")
    stems = [[n.removesuffix(f"_{e}") for e in endings if n.lower().endswith(f"_{e}")] for n in (one, other)]
    return one != other and bool(set(stems[0]) & set(stems[1]))


def _row(where: str, line: int, names: Sequence[str], text: str, schema: Schema) -> Row:
    fields = [field.strip() for field in next(csv.reader([text]))]
    if len(fields) != len(names):
        raise TableError(f"{where}: {len(fields)} fields, {len(names)} columns")
    given = dict(zip(names, fields, strict=True))
    values: dict[str, str | float] = {}
    for name, parse in schema.columns.items():
        try:
            values[name] = parse(given[name])
        except ValueError as error:
            raise TableError(f"{where}: column {name!r} is {given[name]!r}: {error}") from None
    for name, text in given.items():
        if text.lower().lstrip("+-") in NOT_NUMBERS:
            raise TableError(f"{where}: column {name!r} is {text!r}: must be a finite number")
    row = Row(line, values)
    for what, quotient in schema.identity(row):
        require_identity(where, what, quotient)
    return row


def require_identity(where: str, what: str, quotient: float) -> None:
    """Two columns that say the same thing: raises TableError where they do not agree, as after a wrong unit."""
    if abs(quotient - 1) > IDENTITY_TOLERANCE:
        raise TableError(f"{where}: units do not match: {what} is {quotient:.4g}, it must be 1")
