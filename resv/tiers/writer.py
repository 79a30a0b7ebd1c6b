"""The disk tier as it is written: a step's bytes first, then the line of the index that makes it count.

What a killed writer leaves behind the last line is dropped by the next one. Bytes are written, never stored through
a memory map: a full disk is then an error and not a signal.
"""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, astuple
from pathlib import Path

import numpy as np

from resv.tiers.errors import DiskFullError, FolderError
from resv.tiers.layout import Layout, Rows, StepNote, StepRecord
from resv.tiers.locks import LOCK, WriterLock
from resv.tiers.reader import BLOCKS, INDEX, MODEL, VERSION, BlockReader

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class BlockWriter:
    """The one process that adds steps: `begin`, `write` each layer, `commit`; or `rollback`.

    capacity_bytes : most that the blocks may take
    sync : force every step to the disk before it counts, so that it outlives a power cut and not only the process
    """

    def __init__(
        self,
        folder: Path,
        layout: Layout,
        *,
        capacity_bytes: int | None = None,
        sync: bool = True,
        lock: WriterLock | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock or WriterLock(folder)
        self._capacity_bytes, self._sync = capacity_bytes, sync
        self._n_tokens = 0  # of the step under way
        self._checksums: dict[int, int] = {}
        self._mapped_bytes = 0  # readers may have this much mapped, though it counts no more
        try:
            _prepare(folder, layout)
            self.reader = BlockReader(folder, layout)
            self._blocks = os.open(folder / BLOCKS, os.O_RDWR | os.O_CLOEXEC)
            self._index = os.open(folder / INDEX, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            os.ftruncate(self._index, self.reader.index_bytes)
            os.ftruncate(self._blocks, self.file_bytes)
        except BaseException:
            self._lock.release()
            raise

    @property
    def layout(self) -> Layout:
        return self.reader.layout

    @property
    def file_bytes(self) -> int:
        """Of the steps that have landed."""
        return self.reader.n_tokens * self.layout.token_bytes

    def begin(self, n_tokens: int) -> None:
        """Make room for a step. Raises `DiskFullError`, and nothing has happened then."""
        self.rollback()
        self._n_tokens = n_tokens
        needed = self._step_bytes
        if self._capacity_bytes is not None and self.file_bytes + needed > self._capacity_bytes:
            raise self._full(f"the limit of {self._capacity_bytes} bytes")
        self._or_give_up(lambda: os.posix_fallocate(self._blocks, self.file_bytes, needed))

    def write(self, layer: int, rows: Rows) -> None:
        """Rows (n, row_bytes) of one layer of the step. Raises `DiskFullError`, the step gone."""
        data = np.ascontiguousarray(rows).data.cast("B")
        start = self.file_bytes + layer * self._n_tokens * self.layout.row_bytes

        def write(done: int) -> int:
            return os.pwrite(self._blocks, data[done:], start + done)

        self._or_give_up(lambda: _write_all(write, len(data)))
        self._checksums[layer] = zlib.crc32(data)

    def commit(self, step: StepNote) -> StepRecord:
        """Make the step count. Raises `DiskFullError`, the step gone."""
        checksums = tuple(self._checksums[layer] for layer in range(self.layout.n_layers))
        number, first = len(self.reader.records), self.reader.n_tokens
        record = StepRecord(number, first, self._n_tokens, self._step_bytes, checksums, *astuple(step))
        line = record.line()
        self._or_give_up(lambda: self._land(line))
        self._n_tokens, self._checksums = 0, {}
        self.reader.accept(record, len(line))
        return record

    def forget(self, n_tokens: int) -> None:
        """Take back the steps from token `n_tokens` on. Raises `FolderError` in the middle of a step."""
        kept = [record for record in self.reader.records if record.first_token + record.n_tokens <= n_tokens]
        if sum(record.n_tokens for record in kept) != n_tokens:
            raise FolderError(
                f"'{self.reader.folder}': token {n_tokens} lies within step {len(kept)}; only whole steps go"
            )
        self._mapped_bytes = max(self._mapped_bytes, self.file_bytes)
        self.reader.forget(len(kept))
        os.ftruncate(self._index, self.reader.index_bytes)  # the blocks stay: a reader may still have them mapped

    def rollback(self) -> None:
        """Drop the step under way, if there is one."""
        self._n_tokens, self._checksums = 0, {}
        with suppress(OSError):  # the next writer drops it as well
            os.ftruncate(self._index, self.reader.index_bytes)
            os.ftruncate(self._blocks, max(self.file_bytes, self._mapped_bytes))

    def close(self) -> None:
        self.rollback()
        self.reader.close()
        os.close(self._blocks)
        os.close(self._index)
        self._lock.release()

    @property
    def _step_bytes(self) -> int:
        return self._n_tokens * self.layout.token_bytes

    def _land(self, line: bytes) -> None:
        if self._sync:
            os.fdatasync(self._blocks)
        _write_all(lambda done: os.write(self._index, line[done:]), len(line))
        if self._sync:
            os.fdatasync(self._index)

    def _or_give_up(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            if error.errno not in _FULL:
                self.rollback()
                raise
            raise self._full(error.strerror or "no space") from error

    def _full(self, reason: str) -> DiskFullError:
        step, needed = len(self.reader.records), self._step_bytes
        self.rollback()
        return DiskFullError(
            f"'{self.reader.folder}' is full ({reason}): step {step} takes {needed} bytes beside {self.file_bytes} of "
            f"the {step} steps before it, which are kept and can be read. Make room, or give a disk with more"
        )


def _write_all(write: Callable[[int], int], n_bytes: int) -> None:
    """`write(done)` until all is written: the system may write a part."""
    done = 0
    while done < n_bytes:
        done += write(done)


def _prepare(folder: Path, layout: Layout) -> None:
    """Make the folder's files where it is empty; the header last, for a folder without one is no disk tier."""
    if (folder / MODEL).exists():
        return
    others = sorted(path.name for path in folder.iterdir() if path.name not in (LOCK, BLOCKS, INDEX, f".{MODEL}.part"))
    if others:
        raise FolderError(f"'{folder}' is no disk tier and not empty ({others[0]}, ...): choose an empty folder")
    for name in (BLOCKS, INDEX):
        (folder / name).write_bytes(b"")
    temporary = folder / f".{MODEL}.part"
    temporary.write_text(json.dumps({"version": VERSION, **asdict(layout)}, indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / MODEL)
