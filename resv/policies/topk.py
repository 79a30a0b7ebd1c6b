"""An oracle baseline: every query row takes its k heaviest tokens by the exact product with every key.

Best of all selections of k tokens per row by attention mass, at the price of reading every key. The selection
is shared by the rows and query heads of a KV head, as in ReSV (docs/decisions.md, A9).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from resv._arrays import Array, in_float32, to_numpy
from resv.attention import topk_indices
from resv.policies.base import Granularity, Policy, PolicyState
from resv.policies.full import WindowState
from resv.selection import Counts, LayerSelection
from resv.trace import ModelShape, StepKind


class TopKState(WindowState):
    def __init__(self, policy: TopK, shape: ModelShape, layer: int) -> None:
        super().__init__(shape, layer, policy.recent_bytes)
        self._k = policy.k
        self._exempt = policy.recent == "exempt"
        self._keys: list[Array] = []

    def _append(self, keys: Array, step_lengths: Sequence[int] | NDArray[np.int64]) -> int:
        self._keys.append(keys)  # views, so that a long trace is not copied
        return super()._append(keys, step_lengths)

    def _scores(self, head: int, queries: Array, n_candidates: int) -> NDArray[np.float32]:
        """(R, n_candidates) products of the head's rows with the oldest keys, those that compete."""
        group = self.shape.group
        rows = in_float32(queries[head * group : (head + 1) * group].reshape(-1, self.shape.head_dim))
        scores = np.empty((rows.shape[0], n_candidates), dtype=np.float32)
        start = 0
        for keys in self._keys:
            part = keys[head, : max(0, n_candidates - start)]
            scores[:, start : start + len(part)] = to_numpy(rows @ in_float32(part).T)
            start += len(part)
        return scores

    def select(self, queries: Array, step_keys: Array) -> LayerSelection:
        resident = self.resident()
        candidates = ~resident if self._exempt else np.ones_like(resident)
        attended = ~candidates
        n_candidates, n_rows = int(candidates[0].sum()), self.shape.group * queries.shape[1]
        for head in range(self.shape.n_kv_heads):
            attended[head, topk_indices(self._scores(head, queries, n_candidates), self._k).ravel()] = True
        n_scores = self.shape.n_kv_heads * n_rows * n_candidates
        counts = Counts(
            score_macs=n_scores * self.shape.head_dim, score_elements=n_scores, scanned_elements=n_scores
        )
        return LayerSelection(self.layer, attended, resident, candidates, counts)


class TopK(Policy):
    """The `k` heaviest cached tokens of each query row; k at or above the cache length attends to all."""

    runs_in: ClassVar[frozenset[StepKind]] = frozenset(("frame", "question", "decode"))
    granularity: ClassVar[Granularity] = "token"
    lossy: ClassVar[bool] = True
    trained: ClassVar[bool] = False

    kind: Literal["topk"] = "topk"
    k: int = Field(default=64, gt=0, description="tokens per query row")

    def start(self, shape: ModelShape, layer: int) -> PolicyState:
        return TopKState(self, shape, layer)
