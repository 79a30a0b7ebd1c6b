"""Quest (ICML 2024, commit 01c1623): pages of 16 tokens, ranked by an upper bound of their largest product.

A page keeps the least and largest value of every key element; a query's product with any key of the page is at most
the sum over elements of the larger of the two products with these. Keys are as rotated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from resv._arrays import Array
from resv.attention import topk_indices
from resv.blocks import BlockBounds
from resv.policies.base import Granularity, Policy, PolicyState
from resv.policies.window import WindowState
from resv.selection import Counts, Float32, LayerSelection
from resv.trace import ModelShape, StepKind


class QuestState(WindowState):
    def __init__(self, policy: Quest, shape: ModelShape, layer: int) -> None:
        super().__init__(policy, shape, layer)
        self._policy = policy
        self._bounds = BlockBounds(shape, policy.page_tokens)
        self._bounds_bytes = 2 * shape.n_kv_heads * shape.head_dim * shape.kv_bits // 8  # of one page

    def _append(self, keys: Array, step_lengths: Sequence[int] | NDArray[np.int64], kinds: Sequence[StepKind]) -> int:
        self._bounds.append(keys, self.n_cached)
        return super()._append(keys, step_lengths, kinds)

    def select(self, queries: Array, step_keys: Array, stage: StepKind = "frame") -> LayerSelection:
        policy, competing = self._policy, self.competing()
        if self.layer < policy.dense_layers:
            return self.everything()
        if stage not in policy.runs_in or not competing.any():
            return self.everything(self._upkeep(queries.shape[1]))
        size = policy.page_tokens
        n_pages = -(-int(competing.sum()) // size)  # the last may reach into the exempt window
        k = max(policy.min_pages, policy.budget_tokens // size)
        attended = self.all_heads(~competing)
        for head in range(self.shape.n_kv_heads):
            pages = np.zeros(n_pages, dtype=np.bool_)
            pages[topk_indices(self._upper_bounds(head, queries, n_pages), k).ravel()] = True
            chosen = np.repeat(pages, size)[: self.n_cached]
            attended[head, : len(chosen)] |= chosen
        return self.selection(attended, self._counts(queries.shape[1], n_pages))

    def _upper_bounds(self, head: int, queries: Array, n_pages: int) -> Float32:
        """(G·N, pages)"""
        rows = self.head_rows(head, queries)
        low, high = self._bounds.of(head, n_pages)
        return np.asarray(np.maximum(rows, 0.0) @ high.T + np.minimum(rows, 0.0) @ low.T, dtype=np.float32)

    def _counts(self, n_new: int, n_pages: int) -> Counts:
        n_scores = self.shape.n_query_heads * n_new * n_pages
        return replace(
            self._upkeep(n_new),
            score_macs=2 * n_scores * self.shape.head_dim,
            score_elements=n_scores,
            scanned_elements=n_scores,
            score_read_bytes=n_pages * self._bounds_bytes,
        )

    def _upkeep(self, n_new: int) -> Counts:
        """Bounds that new tokens change: the page they go on with is read, every page they reach is written."""
        return Counts(
            table_read_bytes=self._bounds_bytes,
            table_write_bytes=-(-n_new // self._policy.page_tokens) * self._bounds_bytes,
        )


class Quest(Policy):
    """The pages of highest bound per query head in decode steps; frames and questions attend to the whole cache.

    Quest keeps K and V on the device and saves device-memory reads alone: without `recent_bytes` nothing is fetched
    here either. Differs from Quest: grouped queries, which it lacks, choose per query head and read the union per KV
    head; the layer before may predict (`predict: same_layer` is Quest's way).
    """

    runs_in: ClassVar[frozenset[StepKind]] = frozenset(("decode",))
    granularity: ClassVar[Granularity] = "page"
    lossy: ClassVar[bool] = True
    trained: ClassVar[bool] = False

    kind: Literal["quest"] = "quest"
    predict: Literal["same_layer", "next_layer"] = "same_layer"
    page_tokens: int = Field(default=16, gt=0)
    budget_tokens: int = Field(default=512, gt=0, description="tokens per query head")
    min_pages: int = Field(default=3, gt=0)
    dense_layers: int = Field(default=2, ge=0, description="first layers, which attend to everything")

    def start(self, shape: ModelShape, layer: int) -> PolicyState:
        return QuestState(self, shape, layer)

    def read_fraction(self, n_cached: int) -> float:
        """Bounds and chosen pages that one query head reads / K and V of the cache."""
        return min(1.0, 1 / self.page_tokens + self.budget_tokens / n_cached)
