"""Keys and values of single tokens and heads in one buffer that grows to what is needed, with a list of free slots.

Knows slots, not tokens.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Slots = NDArray[np.int32]
_GROWTH = 1.5
_FIRST_SLOTS = 256


class Slab:
    """Rows (2, D) by slot number, on one device.

    limit : rows that are never exceeded to have room for more; the buffer still grows to what is stored
    """

    def __init__(self, head_dim: int, device: torch.device, dtype: torch.dtype, limit: int | None = None) -> None:
        self._limit = limit
        self._rows = torch.zeros((0, 2, head_dim), device=device, dtype=dtype)
        self._free = np.zeros(0, dtype=np.int32)

    @property
    def used(self) -> int:
        return len(self._rows) - len(self._free)

    def put(self, rows: Tensor) -> Slots:
        """Store rows (m, 2, D); return their slots (m,)."""
        if len(rows) > len(self._free):
            self._grow(self.used + len(rows))
        keep = len(self._free) - len(rows)
        slots, self._free = self._free[keep:], self._free[:keep]
        self._rows[self._index(slots)] = rows.to(self._rows.device)
        return slots

    def take(self, slots: Slots) -> Tensor:
        """(m, 2, D): a copy of the rows at slots (m,)"""
        return self._rows[self._index(slots)]

    def free(self, slots: Slots) -> None:
        self._free = np.concatenate([self._free, slots])

    def _index(self, slots: Slots) -> Tensor:
        return torch.from_numpy(slots.astype(np.int64)).to(self._rows.device)

    def _grow(self, needed: int) -> None:
        old = len(self._rows)
        roomy = max(int(old * _GROWTH), _FIRST_SLOTS)
        size = max(needed, roomy if self._limit is None else min(roomy, self._limit))
        with torch.inference_mode(mode=False):  # a buffer made in that mode could not be written outside of it
            rows = self._rows.new_zeros((size, *self._rows.shape[1:]))
            rows[:old] = self._rows
        self._rows = rows
        self._free = np.concatenate([self._free, np.arange(size - 1, old - 1, -1, dtype=np.int32)])
