"""InfiniGen (OSDI 2024): decode steps fetch what the next layer's attention is speculated to be heavy on.

Keys and queries are turned so that few columns carry most of the product; with `partial_ratio` of the columns the
layer before guesses every cached token's score. `infinigenp.py` does the same in every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from resv._arrays import Array
from resv.policies.base import Cut, Granularity, Policy, PolicyState
from resv.policies.window import ScoringState
from resv.selection import Bool, Counts, Float32, Int64, LayerSelection
from resv.trace import ModelShape, StepKind


class _Speculation(NamedTuple):
    """scores (G·N, K), each row's maximum, how many are within alpha of it"""

    scores: Float32
    peak: Float32
    counts: Int64


def speculation_basis(keys: NDArray[np.float32], n_columns: int) -> Float32:
    """(D, n_columns): directions of most energy in one head's keys (S, D), orthonormal.

    The right singular vectors of the keys, which the columns of largest sum |k| follow.
    """
    turned = np.linalg.eigh(keys.T.astype(np.float64) @ keys)[1][:, ::-1]
    weight = np.abs(keys @ turned.astype(np.float32)).sum(axis=0, dtype=np.float64)
    columns = np.sort(np.argsort(-weight, kind="stable")[:n_columns])
    return np.ascontiguousarray(turned[:, columns], dtype=np.float32)


class InfiniGenState(ScoringState):
    """The keys, and the basis that their first `calibration_tokens` give."""

    def __init__(self, policy: InfiniGen, shape: ModelShape, layer: int) -> None:
        super().__init__(policy, shape, layer)
        self._policy = policy
        self._n_columns = max(1, round(policy.partial_ratio * shape.head_dim))
        self._basis: tuple[int, list[Float32]] = (0, [])  # tokens it was made of, per KV head

    def select(self, queries: Array, step_keys: Array, stage: StepKind = "frame") -> LayerSelection:
        competing = self.competing()
        if self.layer < self._policy.dense_layers:
            return self.everything()
        if stage not in self._policy.runs_in or not competing.any():
            return self.everything(Counts(table_write_bytes=self._partial_bytes(queries.shape[1])))
        heads = [self._speculate(head, queries, int(competing.sum())) for head in range(self.shape.n_kv_heads)]
        per_row = self._tokens_per_row(heads, queries.shape[1], int(competing.sum()))
        attended = self.all_heads(~competing)
        for head, speculation in enumerate(heads):
            attended[head, : len(speculation.scores[0])] |= self._choose(speculation, per_row)
        return self.selection(attended, self._counts(heads, queries.shape[1]))

    def _bases(self) -> list[Float32]:
        n_tokens = min(self.n_cached, self._policy.calibration_tokens)
        if self._basis[0] != n_tokens:
            keys = self.keys.tokens(0, n_tokens)
            self._basis = n_tokens, [speculation_basis(np.ascontiguousarray(head), self._n_columns) for head in keys]
        return self._basis[1]

    def _speculate(self, head: int, queries: Array, n_candidates: int) -> _Speculation:
        """Partial queries times partial keys; the same as whole keys times queries projected and turned back."""
        from resv._select_kernels import count_near_maximum

        basis = self._bases()[head]
        rows = np.asarray(self.head_rows(head, queries) @ basis @ basis.T * self.shape.head_dim**-0.5, dtype=np.float32)
        scores = self.keys.scores(head, rows, n_candidates)
        peak, counts = np.empty(len(rows), np.float32), np.empty(len(rows), np.int64)
        count_near_maximum(scores, np.float32(self._policy.alpha), peak, counts)
        return _Speculation(scores, peak, counts)

    def _tokens_per_row(self, heads: Sequence[_Speculation], n_new: int, n_candidates: int) -> Int64:
        """(N,) tokens that every query head of a new token takes: the mean count over its query heads, capped."""
        counts = np.stack([head.counts for head in heads]).reshape(-1, n_new)
        cap = max(1, int(self._policy.row_cap * n_candidates))
        return np.asarray(np.clip(counts.mean(axis=0), 1, cap), dtype=np.int64)

    def _choose(self, speculation: _Speculation, per_row: Int64) -> Bool:
        """(K,) union over the rows of a KV head, the largest of it where a cap on the union asks for fewer."""
        from resv._select_kernels import raise_topk

        scores = speculation.scores
        best = np.full(scores.shape[1], -np.inf, dtype=np.float32)
        k = np.tile(per_row, self.shape.group)
        raise_topk(scores, scores.view(np.int32), k, -speculation.peak, best)
        chosen = best > -np.inf
        cap = max(1, int(self._policy.union_cap * len(best)))
        if np.count_nonzero(chosen) > cap:
            chosen[:] = False
            chosen[np.argsort(-best, kind="stable")[:cap]] = True
        return chosen

    def _counts(self, heads: Sequence[_Speculation], n_new: int) -> Counts:
        """What partial queries and partial keys cost, whatever they were computed with here."""
        n_scores, n_candidates = sum(head.scores.size for head in heads), heads[0].scores.shape[1]
        kv_columns = self.shape.n_kv_heads * self._n_columns
        return Counts(
            score_macs=n_scores * self._n_columns,
            score_elements=n_scores,
            scanned_elements=2 * n_scores,
            score_read_bytes=n_candidates * kv_columns * self.shape.kv_bits // 8,
            query_columns=self.shape.n_query_heads * self._n_columns,
            table_write_bytes=self._partial_bytes(n_new),
        )

    def _partial_bytes(self, n_new: int) -> int:
        """Partial keys of new tokens, which later steps speculate with."""
        return n_new * self.shape.n_kv_heads * self._n_columns * self.shape.kv_bits // 8


class InfiniGen(Policy):
    """Speculated tokens in decode steps; frames and questions attend to the whole cache.

    A token counts where its speculated score is within `alpha` of its row's maximum; the mean count over the query
    heads is what every one of them takes, at most `row_cap` of the cache. The first two layers are not speculated.

    Differs from InfiniGen: the turned basis and its columns come from the keys of the stream's first tokens, where
    the release uses queries of an offline run and of the prompt, which a trace does not have; every row has its own
    maximum, where the release takes head 0's. With grouped queries, which it leaves open, columns are chosen per KV
    head, counted per query head, fetched as the union per KV head.
    """

    runs_in: ClassVar[frozenset[StepKind]] = frozenset(("decode",))
    granularity: ClassVar[Granularity] = "token"
    cut: ClassVar[Cut] = "threshold"
    lossy: ClassVar[bool] = True
    trained: ClassVar[bool] = False

    kind: Literal["infinigen", "infinigenp"] = "infinigen"
    partial_ratio: float = Field(default=0.3, gt=0, le=1, description="share of a head's columns that speculate")
    alpha: float = Field(default=5.0, gt=0, description="distance from the row's maximum, in logits")
    row_cap: float = Field(default=0.2, gt=0, le=1, description="share of the candidates a query row may take")
    union_cap: float = Field(default=1.0, gt=0, le=1, description="share of the candidates a KV head may take")
    dense_layers: int = Field(default=2, ge=0, description="first layers, which load everything")
    calibration_tokens: int = Field(default=2048, gt=0, description="first tokens, whose keys give the basis")

    def start(self, shape: ModelShape, layer: int) -> PolicyState:
        return InfiniGenState(self, shape, layer)

    def overhead(self, shape: ModelShape) -> float:
        """Device bytes of the partial keys / bytes of the cache."""
        return max(1, round(self.partial_ratio * shape.head_dim)) / (2 * shape.head_dim)
