"""A store's disk tier: none, a temporary one, a named one that is written, or one that is only read.

Frames are written as they come. Text may still be taken back, so it waits in memory until the next frame; a tier
that is only read keeps everything new waiting. Knows rows of bytes and steps.
"""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from resv.tiers.config import Tiers
from resv.tiers.errors import TierError
from resv.tiers.layout import Layout, Rows, StepNote, StepRecord
from resv.tiers.locks import temporary_folder
from resv.tiers.reader import BlockReader
from resv.tiers.writer import BlockWriter

Int64 = NDArray[np.int64]
RowsOf = Callable[[int, int, int], Rows]
"""(layer, first token, last token + 1) -> rows (n, row_bytes) that wait in memory"""


class DiskTier:
    """Raises `FolderError`, `FolderInUseError` where the folder is not to be used, `DiskFullError` where it is full."""

    def __init__(self, tiers: Tiers, layout: Layout, rows_of: RowsOf) -> None:
        self._rows_of = rows_of
        self._waiting: list[tuple[StepNote, int]] = []  # with their tokens
        self._step = (StepNote(), 0)
        self._keeps = tiers.folder is not None
        self._reader: BlockReader | None = None
        self._writer: BlockWriter | None = None
        self._remove = weakref.finalize(self, lambda: None)
        if tiers.folder is not None and tiers.read_only:
            self._reader = BlockReader(tiers.folder, layout)
        elif tiers.folder is not None:
            self._writer = BlockWriter(tiers.folder, layout, capacity_bytes=tiers.disk_bytes, sync=tiers.sync)
        elif tiers.disk:
            folder, lock = temporary_folder()
            self._remove = weakref.finalize(self, partial(shutil.rmtree, folder, ignore_errors=True))
            self._writer = BlockWriter(folder, layout, capacity_bytes=tiers.disk_bytes, sync=False, lock=lock)
        if self._writer is not None:
            self._reader = self._writer.reader

    @property
    def n_tokens(self) -> int:
        return self._reader.n_tokens if self._reader else 0

    @property
    def records(self) -> list[StepRecord]:
        return self._reader.records if self._reader else []

    @property
    def _is_written(self) -> bool:
        """Whether the step under way goes to the disk layer by layer."""
        return self._writer is not None and self._step[0].kind == "frame"

    def begin(self, step: StepNote, n_tokens: int) -> None:
        """A step starts: its room is made before anything of it is computed."""
        self._step = (step, n_tokens)
        if self._writer is not None and self._is_written:
            self._write_waiting(self._writer)
            self._writer.begin(n_tokens)

    def write(self, layer: int, rows: Callable[[], Rows]) -> None:
        if self._writer is not None and self._is_written:
            self._writer.write(layer, rows())

    def end(self) -> None:
        """The step has landed in all layers."""
        if self._writer is not None and self._is_written:
            self._writer.commit(self._step[0])
        else:
            self._waiting.append(self._step)

    def units(self, layer: int, lanes: Int64, tokens: Int64) -> Rows:
        assert self._reader is not None
        return self._reader.units(layer, lanes, tokens)

    def truncate(self, n_tokens: int) -> None:
        """Drop the step under way and everything from `n_tokens` on. Raises `TierError` where that may not be."""
        if self._writer is not None:
            self._writer.rollback()
        if n_tokens < self.n_tokens:
            if self._writer is None:
                raise TierError(f"a folder that is read only cannot forget: it holds {self.n_tokens} tokens")
            self._writer.forget(n_tokens)
        left, kept = n_tokens - self.n_tokens, []
        for step, n in self._waiting:
            if left > 0:
                kept.append((step, min(n, left)))
            left -= n
        self._waiting = kept

    def refresh(self) -> None:
        """Take in what the folder's writer has landed. Raises `TierError` where tokens wait here."""
        if self._reader is None or self._writer is not None:
            return
        if self._waiting:
            n_waiting = sum(n for _, n in self._waiting)
            raise TierError(f"{n_waiting} tokens were added to a folder that is read only: take them back first")
        self._reader.refresh()

    def close(self) -> None:
        if self._writer is not None:
            if self._keeps:
                self._write_waiting(self._writer)
            self._writer.close()
            self._writer = None
        if self._reader is not None:
            self._reader.close()
        self._remove()

    def _write_waiting(self, writer: BlockWriter) -> None:
        while self._waiting:
            step, n_tokens = self._waiting[0]
            first = self.n_tokens
            writer.begin(n_tokens)
            for layer in range(writer.layout.n_layers):
                writer.write(layer, self._rows_of(layer, first, first + n_tokens))
            writer.commit(step)
            del self._waiting[0]
