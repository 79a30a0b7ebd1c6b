"""An oracle baseline: every query row takes its k heaviest tokens by the exact product with every key.

Best of all selections of k tokens per row by attention mass, at the price of reading every key. The selection
is shared by the rows and query heads of a KV head, as in ReSV.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from resv._arrays import Array
from resv.attention import topk_indices
from resv.policies.base import Granularity, Policy, PolicyState
from resv.policies.window import ScoringState
from resv.selection import Counts, LayerSelection
from resv.trace import ModelShape, StepKind


class TopKState(ScoringState):
    def __init__(self, policy: TopK, shape: ModelShape, layer: int) -> None:
        super().__init__(policy, shape, layer)
        self._k = policy.k

    def select(self, queries: Array, step_keys: Array, stage: StepKind = "frame") -> LayerSelection:
        competing = self.competing()
        attended = self.all_heads(~competing)
        n_candidates, n_rows = int(competing.sum()), self.shape.group * queries.shape[1]
        for head in range(self.shape.n_kv_heads):
            scores = self.keys.scores(head, self.head_rows(head, queries), n_candidates)
            attended[head, topk_indices(scores, self._k).ravel()] = True
        n_scores = self.shape.n_kv_heads * n_rows * n_candidates
        counts = Counts(score_macs=n_scores * self.shape.head_dim, score_elements=n_scores, scanned_elements=n_scores)
        return self.selection(attended, counts)


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
