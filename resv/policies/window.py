"""States of policies whose tokens leave the device one by one, oldest first; with the keys, where they score them.

Tokens are NumPy arrays here: a tensor on another device is copied. Knows no score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from resv._arrays import Array, in_float32, to_numpy
from resv.kv_cache import recent_window
from resv.policies.base import Policy, PolicyState
from resv.selection import Bool, Counts, Float32, LayerSelection
from resv.trace import ModelShape, StepKind

_LONGEST_JOINED = 512  # tokens; a product with a part this long costs more than starting it


class WindowState(PolicyState):
    """The last tokens are resident."""

    def __init__(self, policy: Policy, shape: ModelShape, layer: int) -> None:
        super().__init__(shape, layer, policy.recent_bytes)
        self._exempt = policy.recent == "exempt"

    def _append(self, keys: Array, step_lengths: Sequence[int] | NDArray[np.int64], kinds: Sequence[StepKind]) -> int:
        n_cached = self.n_cached + int(sum(step_lengths))
        capacity = n_cached if self.capacity_tokens is None else self.capacity_tokens
        return min(n_cached, capacity) * self.shape.n_kv_heads

    def all_heads(self, mask: Bool) -> Bool:
        """(S,) or (H, S) as (H, S) of its own."""
        return np.array(np.broadcast_to(mask, (self.shape.n_kv_heads, mask.shape[-1])))

    def resident(self) -> Bool:
        """(S,) bool"""
        return recent_window(self.n_cached, self.capacity_tokens)

    def residency(self) -> tuple[Bool, Bool | None]:
        return self.all_heads(self.resident()), None

    def competing(self) -> Bool:
        """(S,) bool, the oldest tokens: all of them, or those off the device where recent ones are exempt."""
        return ~self.resident() if self._exempt else np.ones(self.n_cached, dtype=np.bool_)

    def everything(self, counts: Counts | None = None) -> LayerSelection:
        """Full attention: what a policy does in stages and layers it does not act in. `counts`: its upkeep there."""
        return self.selection(np.ones(self.n_cached, dtype=np.bool_), counts)

    def selection(
        self,
        attended: Bool,
        counts: Counts | None = None,
        *,
        held: Bool | None = None,
        candidates: Bool | None = None,
    ) -> LayerSelection:
        """Masks (S,) or (H, S) as a selection; tokens `held` (S,) beside the window are on the device too."""
        resident = self.resident() if held is None else self.resident() | held
        return LayerSelection(
            layer=self.layer,
            attended=self.all_heads(attended),
            resident=self.all_heads(resident),
            candidates=self.all_heads(self.competing() if candidates is None else candidates),
            counts=Counts() if counts is None else counts,
        )

    def head_rows(self, head: int, queries: Array) -> Float32:
        """(G·N, D): queries of one KV head, row g·N + n is new token n of query head g."""
        group = self.shape.group
        rows = in_float32(to_numpy(queries))[head * group : (head + 1) * group]
        return np.ascontiguousarray(rows).reshape(-1, self.shape.head_dim)


class KeyLog:
    """Keys in the parts they came in: views, so that a long trace is not copied; short parts are joined."""

    def __init__(self, shape: ModelShape) -> None:
        self._parts: list[Float32] = []
        self._none = np.zeros((shape.n_kv_heads, 0, shape.head_dim), dtype=np.float32)

    def __deepcopy__(self, memo: dict[int, object]) -> KeyLog:
        """A log of its own over the same keys, which nobody writes to."""
        copy = KeyLog.__new__(KeyLog)
        copy._parts, copy._none = list(self._parts), self._none
        return copy

    def append(self, keys: Array) -> None:
        """keys : (H, n, D)"""
        part = in_float32(to_numpy(keys))
        # Like a binary counter, so that joining all steps of a stream copies each token a few times only.
        while self._parts and self._parts[-1].shape[1] <= part.shape[1] <= _LONGEST_JOINED:
            part = np.concatenate([self._parts.pop(), part], axis=1)
        self._parts.append(part)

    def scores(self, head: int, rows: Float32, n_tokens: int) -> Float32:
        """(R, n_tokens) products of rows (R, D) with the oldest keys."""
        out = np.empty((len(rows), n_tokens), dtype=np.float32)
        start = 0
        for part in self._parts:
            keys = part[head, : max(0, n_tokens - start)]
            np.matmul(rows, keys.T, out=out[:, start : start + len(keys)])
            start += len(keys)
        return out

    def tokens(self, start: int, stop: int) -> Float32:
        """(H, stop - start, D)"""
        pieces, first = [self._none], 0
        for part in self._parts:
            pieces.append(part[:, max(0, start - first) : max(0, stop - first)])
            first += part.shape[1]
        return np.concatenate(pieces, axis=1)


class ScoringState(WindowState):
    """A window whose policy scores the keys themselves."""

    def __init__(self, policy: Policy, shape: ModelShape, layer: int) -> None:
        super().__init__(policy, shape, layer)
        self.keys = KeyLog(shape)

    def _append(self, keys: Array, step_lengths: Sequence[int] | NDArray[np.int64], kinds: Sequence[StepKind]) -> int:
        self.keys.append(keys)
        return super()._append(keys, step_lengths, kinds)
