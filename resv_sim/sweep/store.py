"""A sweep on disk: a journal that no kill can spoil, and the tables made from it.

`points.jsonl` holds one line per finished point in the order they finished, each synced before it counts;
`sweep.json` says of which sweep. `results.csv` and the others follow from the journal alone, ordered by point,
so they are the same bytes after any interruption. Knows no scheduler.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from resv_sim.errors import ConfigError, OutputError
from resv_sim.output import MANIFEST, SWEEP_STATE
from resv_sim.sweep.evaluate import Evaluated
from resv_sim.sweep.space import Sweep, SweepPoint

JOURNAL, STATE = "points.jsonl", SWEEP_STATE
_SHOWN = 5


class SweepStore:
    """`with SweepStore(folder, sweep, fingerprint, resume=...) as store:`; one process at a time per folder."""

    def __init__(self, folder: Path, sweep: Sweep, fingerprint: str, *, resume: bool) -> None:
        self.folder = folder
        self._identity = {**sweep.identity(), "models": fingerprint}
        self._resume = resume
        self.finished: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> SweepStore:
        if (self.folder / MANIFEST).exists():
            raise OutputError(f"'{self.folder}' holds the results of another run: choose another folder with --out.")
        with ExitStack() as opened:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._only_user(opened.enter_context((self.folder / ".lock").open("wb")))
                self.finished = {record["id"]: record for record in self._read_journal()}
                self._check_state()
                self._journal = opened.enter_context((self.folder / JOURNAL).open("ab"))
            except OSError as error:
                raise OutputError(
                    f"cannot write results into '{self.folder}': {error.strerror or error}. "
                    "Choose a folder that can be written with --out."
                ) from error
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def add(self, point: SweepPoint, result: Evaluated) -> None:
        """Put a finished point on disk; when this returns it is there. Raises `OutputError` where it does not fit."""
        record = {"point": point.index, "id": point.id, "names": dict(point.names), "overrides": dict(point.overrides)}
        record |= {key: value for key, value in asdict(result).items() if key != "index" and value}
        text = json.dumps(record, allow_nan=False, separators=(",", ":")) + "\n"
        before = self._journal.seek(0, os.SEEK_END)
        try:
            self._journal.write(text.encode())
            self._journal.flush()
            os.fsync(self._journal.fileno())
        except OSError as error:
            os.truncate(self.folder / JOURNAL, before)
            raise OutputError(
                f"cannot write '{self.folder / JOURNAL}': {error.strerror or error}. What was finished is kept; make "
                "room and go on with --resume."
            ) from error
        self.finished[point.id] = record

    def records(self) -> list[dict[str, Any]]:
        """Everything finished, by point."""
        return sorted(self.finished.values(), key=lambda record: record["point"])

    def write_state(self, n_points: int) -> None:
        """`sweep.json`: which sweep this is and how far it is."""
        failed = sum("error" in record for record in self.finished.values())
        state = {"n_points": n_points, "finished": len(self.finished), "failed": failed, "identity": self._identity}
        write_whole(self.folder / STATE, json.dumps(state, indent=1) + "\n")

    def _only_user(self, lock: BinaryIO) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"'{self.folder}' is in use by another run of this sweep.") from error

    def _check_state(self) -> None:
        if not self.finished:  # nothing that could be lost or mixed up
            self.write_state(0)
            return
        if not self._resume:
            raise OutputError(
                f"'{self.folder}' holds a sweep already: go on with --resume, or choose another folder with --out."
            )
        known = read_state(self.folder)["identity"]
        if known != self._identity:
            raise ConfigError(f"--resume: '{self.folder}' holds another sweep: {_difference(known, self._identity)}")

    def _read_journal(self) -> Iterator[dict[str, Any]]:
        """Whole lines; anything else (half a line of a killed run) is dropped from the file and done again."""
        path = self.folder / JOURNAL
        if not path.exists():
            return
        good = []
        content = path.read_bytes()
        for line in content.splitlines(keepends=True):
            record = _record(line)
            if record is not None:
                good.append(line)
                yield record
        if b"".join(good) != content:
            write_whole(path, b"".join(good))


def read_state(folder: Path) -> dict[str, Any]:
    """`sweep.json` of a folder. Raises `OutputError` where there is none."""
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"'{folder}' holds no sweep that can be read ({STATE}: {error}).") from error
    return state


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Finished points of a folder, by point. Raises `OutputError` where there is no sweep."""
    read_state(folder)
    try:
        lines = (folder / JOURNAL).read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise OutputError(f"'{folder / JOURNAL}' cannot be read: {error.strerror or error}.") from error
    found = [record for line in lines if (record := _record(line)) is not None]
    return sorted(found, key=lambda record: record["point"])


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a file as a whole: readers see the old or the new one."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)


def _record(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and {"point", "id"} <= record.keys() else None


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What differs, at most `_SHOWN` of it."""
    before, after = dict(_flat(old)), dict(_flat(new))
    changed = [path for path in dict.fromkeys([*before, *after]) if before.get(path) != after.get(path)]
    if changed == ["models"]:
        return "it was made by another version of the models. Start anew in another folder."
    named = [path for path in changed if path != "models"]
    shown = [f"{path} was {before.get(path, 'absent')!r}, is {after.get(path, 'absent')!r}" for path in named[:_SHOWN]]
    more = f"; {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    return f"{'; '.join(shown)}{more}. Undo the change, or start anew in another folder."


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    items: Sequence[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, (list, tuple)):
        items = list(enumerate(value))
    if not items:
        yield path, value
    for key, child in items:
        yield from _flat(child, f"{path}.{key}" if path else str(key))
