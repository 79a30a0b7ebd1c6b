"""The disk tier as it is read: one folder per stream, written by one process and read by any number.

`model.json` says whose keys and values these are; `blocks.kv` holds them, step after step and in a step layer after
layer; `steps.jsonl` is the index. A step counts once its line stands in the index, and the line is written after
the bytes it vouches for. Knows rows of bytes, not what they mean; never changes a file.
"""

from __future__ import annotations

import json
import mmap
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from resv.tiers.errors import FolderError
from resv.tiers.layout import Layout, Rows, StepRecord

MODEL, BLOCKS, INDEX = "model.json", "blocks.kv", "steps.jsonl"
VERSION = 1


def read_layout(folder: Path) -> Layout:
    """Whose keys and values a folder holds. Raises `FolderError` where it is no disk tier."""
    try:
        header = json.loads((folder / MODEL).read_text(encoding="utf-8"))
        if header.pop("version") != VERSION:
            raise FolderError(f"'{folder}' is a disk tier of another version; this is version {VERSION}")
        return Layout(**header)
    except (OSError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise FolderError(f"'{folder}' is no disk tier: {MODEL} cannot be read ({error})") from error


def check_layout(folder: Path, wanted: Layout) -> None:
    """Raise `FolderError` where the folder holds another model's keys and values, with the difference."""
    if difference := read_layout(folder).difference(wanted):
        raise FolderError(f"'{folder}' holds the cache of another model: there, {difference}. Choose another folder")


@dataclass(frozen=True)
class _View:
    """Steps and the memory map that shows them; replaced as a whole, so that another thread may keep reading."""

    first: NDArray[np.int64]
    length: NDArray[np.int64]
    units: Rows
    memory: mmap.mmap

    def read(self, layout: Layout, layer: int, lanes: NDArray[np.int64], tokens: NDArray[np.int64]) -> Rows:
        step = np.searchsorted(self.first, tokens, side="right") - 1
        first = self.first[step]
        row = layout.n_layers * first + layer * self.length[step] + tokens - first
        out = np.asarray(self.units[row * layout.lanes + lanes])
        self.memory.madvise(mmap.MADV_DONTNEED)  # the pages stay in the system's cache, not in this process
        return out


class BlockReader:
    """Steps that have landed in all layers, as they were when the folder was opened or last refreshed."""

    def __init__(self, folder: Path, layout: Layout | None = None) -> None:
        self.folder = folder
        if layout is not None:
            check_layout(folder, layout)
        self.layout = read_layout(folder)
        self.records: list[StepRecord] = []
        self.index_bytes = 0  # of the index, as far as it was taken in
        self._view: _View | None = None
        self._lock = Lock()
        self.refresh()

    @property
    def n_tokens(self) -> int:
        return self.records[-1].first_token + self.records[-1].n_tokens if self.records else 0

    def refresh(self) -> int:
        """Take in what has landed since; return how many steps there are more than before.

        Their bytes are checked against the index and its lines against themselves; a torn tail is left out.
        Raises `FolderError` where a damaged step is followed by a sound one, which no torn write leaves behind.
        """
        before, torn = len(self.records), None
        if self._is_overwritten():
            self.forget(0)
        for record, end in self._whole_lines():
            if not self._is_intact(record):
                torn = torn or record
            elif torn is not None:
                raise FolderError(f"'{self.folder}' is damaged: the bytes of step {torn.step} are not what was written")
            else:
                self.accept(record, end - self.index_bytes)
        return len(self.records) - before

    def accept(self, record: StepRecord, line_bytes: int) -> None:
        """Count a step whose line stands in the index."""
        with self._lock:
            self.records.append(record)
            self.index_bytes += line_bytes
            self._view = None

    def forget(self, n_steps: int) -> None:
        """Count only the first `n_steps`."""
        with self._lock:
            self.index_bytes = sum(len(record.line()) for record in self.records[:n_steps])
            del self.records[n_steps:]
            self._view = None

    def units(self, layer: int, lanes: NDArray[np.int64], tokens: NDArray[np.int64]) -> Rows:
        """(m, unit_bytes): a copy of lanes (m,) of tokens (m,) of a layer, each token below `n_tokens`."""
        if not len(tokens):
            return np.zeros((0, self.layout.unit_bytes), dtype=np.uint8)
        with self._lock:
            view = self._view = self._view or self._mapped()
        return view.read(self.layout, layer, lanes, tokens)

    def close(self) -> None:
        self._view = None

    def _mapped(self) -> _View:
        first = np.array([record.first_token for record in self.records], dtype=np.int64)
        length = np.array([record.n_tokens for record in self.records], dtype=np.int64)
        with (self.folder / BLOCKS).open("rb") as file:
            memory = mmap.mmap(file.fileno(), self.n_tokens * self.layout.token_bytes, prot=mmap.PROT_READ)
        units = np.frombuffer(memory, dtype=np.uint8).reshape(-1, self.layout.unit_bytes)
        return _View(first, length, units, memory)

    def _is_overwritten(self) -> bool:
        """Whether the writer has taken steps back that were counted here."""
        line = self.records[-1].line() if self.records else b""
        return not self._index_from(self.index_bytes - len(line)).startswith(line)

    def _index_from(self, start_bytes: int) -> bytes:
        try:
            with (self.folder / INDEX).open("rb") as file:
                file.seek(start_bytes)
                return file.read()
        except OSError as error:
            raise FolderError(f"'{self.folder}' is no disk tier: {INDEX} cannot be read ({error})") from error

    def _is_intact(self, record: StepRecord) -> bool:
        size = record.n_tokens * self.layout.row_bytes
        with (self.folder / BLOCKS).open("rb") as file:
            file.seek(record.first_token * self.layout.token_bytes)
            blocks = [file.read(size) for _ in record.checksums]
        whole = all(len(block) == size for block in blocks) and record.n_bytes == len(blocks) * size
        return whole and all(zlib.crc32(b) == c for b, c in zip(blocks, record.checksums, strict=True))

    def _whole_lines(self) -> Iterator[tuple[StepRecord, int]]:
        """Records of the index from where it was left, with where each ends, up to the first that does not follow."""
        step, token, end = len(self.records), self.n_tokens, self.index_bytes
        for line in self._index_from(end).splitlines(keepends=True):
            record = StepRecord.of_line(line)
            if record is None or (record.step, record.first_token) != (step, token):
                return
            step, token, end = step + 1, token + record.n_tokens, end + len(line)
            yield record, end
