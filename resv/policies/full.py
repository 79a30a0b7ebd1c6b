"""No retrieval: every step attends to the whole cache. What FlexGen-style offloading moves.

FlexGen itself (ICML 2023) offloads without selecting; fetching the full cache in every frame step is the
streaming extension that V-Rex (HPCA 2026, arXiv 2512.12284) compares with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from resv._arrays import Array
from resv.kv_cache import recent_window
from resv.policies.base import Granularity, Policy, PolicyState
from resv.selection import Counts, LayerSelection
from resv.trace import ModelShape, StepKind


class WindowState(PolicyState):
    """State of a policy whose tokens leave one by one: the last tokens are resident."""

    def _append(self, keys: Array, step_lengths: Sequence[int] | NDArray[np.int64]) -> int:
        n_cached = self.n_cached + sum(step_lengths)
        capacity = n_cached if self.capacity_tokens is None else self.capacity_tokens
        return int(min(n_cached, capacity)) * self.shape.n_kv_heads

    def _all_heads(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(S,) as a read-only (H, S) view."""
        return np.broadcast_to(mask, (self.shape.n_kv_heads, len(mask)))

    def resident(self) -> NDArray[np.bool_]:
        """(H, S) bool"""
        return self._all_heads(recent_window(self.n_cached, self.capacity_tokens))


class FullState(WindowState):
    def select(self, queries: Array, step_keys: Array) -> LayerSelection:
        everything = self._all_heads(np.ones(self.n_cached, dtype=np.bool_))
        return LayerSelection(self.layer, everything, self.resident(), everything, Counts())


class Full(Policy):
    """Attend to everything. `recent` and `predict` change nothing: nothing competes."""

    runs_in: ClassVar[frozenset[StepKind]] = frozenset(("frame", "question", "decode"))
    granularity: ClassVar[Granularity] = "layer"
    lossy: ClassVar[bool] = False
    trained: ClassVar[bool] = False

    kind: Literal["full"] = "full"

    def start(self, shape: ModelShape, layer: int) -> PolicyState:
        return FullState(shape, layer, self.recent_bytes)
