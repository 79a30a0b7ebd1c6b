"""ReSV: retrieve the clusters of like tokens that carry a given share of a query row's mass.

Keys are hashed and clustered as they arrive, queries are scored against the clusters' mean keys, and
weighted cumulative sums decide which clusters' tokens are attended to (V-Rex, HPCA 2026, arXiv 2512.12284).
What the paper leaves open is a field each; configs/policies/resv.yaml gives the reasons for the defaults.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from resv._arrays import Array, in_float32, namespace, to_numpy
from resv.clustering import CodeRule, HashClusterTables, Match
from resv.hashing import MAX_HASH_BITS, hash_codes, hyperplanes
from resv.policies.base import Cut, Granularity, Policy, PolicyState
from resv.representatives import Representatives
from resv.selection import ClusterTable, ClusterUpdate, Counts, LayerSelection, ScoreRows
from resv.trace import ModelShape, StepKind
from resv.wicsum import WicsumConfig, WicsumStats, chosen, threshold, transform_scores

# Fields of an HC table entry beside the code and the key: 4-byte token indices and token count
# (the arithmetic behind the published 1.67 % table overhead; docs/dre.md, KVMU).
_INDEX_BYTES = 4


class _HeadResult(NamedTuple):
    rows: ScoreRows
    stats: WicsumStats


def _attended(table: ClusterTable, competes: NDArray[np.bool_], rows: ScoreRows) -> NDArray[np.bool_]:
    """(S,): tokens of the selected clusters and of those that do not compete; whole clusters, always."""
    clusters = ~competes
    clusters[rows.candidates[rows.selected]] = True
    return clusters[table.cluster_of_token]


class ReSVState(PolicyState):
    """HC tables and representative keys of one layer."""

    def __init__(self, policy: ReSV, shape: ModelShape, layer: int) -> None:
        super().__init__(shape, layer, policy.recent_bytes)
        self._policy = policy
        self._n_tables = 1 if policy.table == "layer" else shape.n_kv_heads
        self._width = shape.n_kv_heads * shape.head_dim // self._n_tables
        self._planes = hyperplanes(self._width, policy.hash_bits, policy.seed)
        self._representatives = Representatives(self._n_tables)
        self._tables = HashClusterTables(
            self._n_tables,
            policy.hash_bits,
            policy.hamming_threshold,
            match=policy.match,
            code=policy.code,
            capacity_tokens=self.capacity_tokens,
            freeze_on_offload=policy.freeze_on_offload,
        )

    def under(self, policy: Policy) -> ReSVState:
        view = copy.copy(self)
        view._policy = ReSV.model_validate(policy)
        return view

    def _token_major(self, keys: Array) -> Array:
        """(H, n, D) as (n, tables, width); no copy where tokens are the outer axis of the storage."""
        return namespace(keys).swapaxes(keys, 0, 1).reshape(keys.shape[1], self._n_tables, self._width)

    def _append(self, keys: Array, step_lengths: Sequence[int] | NDArray[np.int64], kinds: Sequence[StepKind]) -> int:
        keys = self._token_major(keys)
        codes = to_numpy(hash_codes(keys, self._planes)).T
        assignment = self._tables.append(codes, step_lengths)
        self._representatives.append(keys, assignment, int(self._tables.n_clusters.max()))
        return int(self._tables.resident_tokens.sum()) * self.shape.n_kv_heads // self._n_tables

    def residency(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_] | None]:
        tables = [self._tables.snapshot(t) for t in range(self._n_tables)]
        return self._per_head([table.resident[table.cluster_of_token] for table in tables]), None

    def select(self, queries: Array, step_keys: Array, stage: StepKind = "frame") -> LayerSelection:
        """Scores are taken against the table as it stands before the step's own tokens join it."""
        if self.brief:
            return self._brief_selection(queries)
        trial = self._tables.copy()
        new_codes = to_numpy(hash_codes(self._token_major(step_keys), self._planes)).T
        assignment = trial.append(new_codes, [step_keys.shape[1]])
        tables = [self._tables.snapshot(t) for t in range(self._n_tables)]
        updates = [
            ClusterUpdate(np.ascontiguousarray(new_codes[t]), self._tables.eligible(t), assignment[t])
            for t in range(self._n_tables)
        ]
        competes = [self._competes(table) for table in tables]
        heads, attended = [], []
        for head in range(self.shape.n_kv_heads):
            t = head * self._n_tables // self.shape.n_kv_heads
            heads.append(self._score_head(head, t, queries, tables[t], competes[t]))
            attended.append(_attended(tables[t], competes[t], heads[-1].rows))
        return LayerSelection(
            layer=self.layer,
            attended=np.stack(attended),
            resident=self._per_head([table.resident[table.cluster_of_token] for table in tables]),
            candidates=self._per_head(
                [mask[table.cluster_of_token] for mask, table in zip(competes, tables, strict=True)]
            ),
            counts=self._counts(heads, updates, tables, trial.comparisons - self._tables.comparisons),
            tables=tuple(tables),
            updates=tuple(updates),
            rows=tuple(head.rows for head in heads),
        )

    def _competes(self, table: ClusterTable) -> NDArray[np.bool_]:
        """(C,): not the sinks' clusters, nor, where recent tokens are exempt, resident ones."""
        competes = np.ones(table.n_clusters, dtype=np.bool_)
        if self._policy.recent == "exempt":
            competes &= ~table.resident
        competes[table.cluster_of_token[: self._policy.n_sink]] = False
        return competes

    def _brief_selection(self, queries: Array) -> LayerSelection:
        """The same masks without tables, updates, rows and counts."""
        tables = [self._tables.snapshot(t) for t in range(self._n_tables)]
        competes = [self._competes(table) for table in tables]
        attended = np.empty((self.shape.n_kv_heads, self.n_cached), dtype=np.bool_)
        for head in range(self.shape.n_kv_heads):
            t = head * self._n_tables // self.shape.n_kv_heads
            scores, token_counts, candidates = self._scores(head, t, queries, tables[t], competes[t])
            clusters = ~competes[t]
            clusters[candidates] = chosen(scores, token_counts, self._policy.wicsum)
            attended[head] = clusters[tables[t].cluster_of_token]
        return LayerSelection(
            layer=self.layer,
            attended=attended,
            resident=self._per_head([table.resident[table.cluster_of_token] for table in tables]),
            candidates=self._per_head([m[t.cluster_of_token] for m, t in zip(competes, tables, strict=True)]),
            counts=Counts(),
        )

    def _score_head(
        self, head: int, t: int, queries: Array, table: ClusterTable, competes: NDArray[np.bool_]
    ) -> _HeadResult:
        """Score rows and selection of one KV head."""
        scores, token_counts, candidates = self._scores(head, t, queries, table, competes)
        mask, stats = threshold(scores, token_counts, self._policy.wicsum)
        selected = np.any(to_numpy(mask), axis=0)
        return _HeadResult(ScoreRows(to_numpy(scores), token_counts, candidates, selected), stats)

    def _scores(
        self, head: int, t: int, queries: Array, table: ClusterTable, competes: NDArray[np.bool_]
    ) -> tuple[Array, NDArray[np.int32], NDArray[np.int32]]:
        """Scores (R, K), token counts and numbers (K,) of the candidates of one KV head.

        Row g·N + n is new token n of the head's query head g.
        """
        dim, group, wicsum = self.shape.head_dim, self.shape.group, self._policy.wicsum
        candidates = np.flatnonzero(competes).astype(np.int32)
        token_counts = table.token_counts[candidates]
        rows = in_float32(queries[head * group : (head + 1) * group].reshape(-1, dim))
        if not len(candidates):
            return rows[:, :0], token_counts, candidates
        start = head * dim % self._width
        keys = self._representatives.means(t, candidates, token_counts, slice(start, start + dim))
        return transform_scores(rows @ keys.T, dim, wicsum.score_transform), token_counts, candidates

    def _per_head(self, masks: list[NDArray[np.bool_]]) -> NDArray[np.bool_]:
        """Token masks (S,) per table as (H, S), a read-only view where the heads share a table."""
        shape = (self._n_tables, self.shape.n_kv_heads // self._n_tables, self.n_cached)
        return np.broadcast_to(np.stack(masks)[:, None], shape).reshape(self.shape.n_kv_heads, self.n_cached)

    def _counts(
        self,
        heads: list[_HeadResult],
        updates: list[ClusterUpdate],
        tables: list[ClusterTable],
        comparisons: int,
    ) -> Counts:
        """Table bytes leave out what follows from other counts: compared codes and scored mean keys."""
        n_new = len(updates[0].assignment)
        elements = sum(head.rows.scores.size for head in heads)
        key_bytes = self._width * self.shape.kv_bits // 8
        code_bytes = -(-self._policy.hash_bits // 8)
        touched = [np.unique(update.assignment) for update in updates]
        n_touched = sum(map(len, touched))
        founded = [int((new >= t.n_clusters).sum()) for new, t in zip(touched, tables, strict=True)]
        chosen_tokens = sum(int(h.rows.token_counts[h.rows.selected].sum()) for h in heads)
        return Counts(
            hash_macs=n_new * self._n_tables * self._width * self._policy.hash_bits,
            hamming_compares=comparisons,
            score_macs=elements * self.shape.head_dim,
            score_elements=elements,
            exp_elements=elements if self._policy.wicsum.score_transform == "softmax" else 0,
            scanned_elements=sum(int(head.stats.elements_visited.sum()) for head in heads),
            selected_prefix_elements=sum(int(head.stats.selected.sum()) for head in heads),
            exact_prefix_elements=sum(int(head.stats.exact_prefix.sum()) for head in heads),
            rows_without_mass=sum(int(head.stats.no_mass.sum()) for head in heads),
            # Counts of the candidates, token indices of what was chosen, and the means that move.
            table_read_bytes=_INDEX_BYTES * (sum(len(h.rows.candidates) for h in heads) + chosen_tokens)
            + key_bytes * (n_touched - sum(founded)),
            # A token index per new token; mean and count of touched clusters; codes of founded ones.
            table_write_bytes=_INDEX_BYTES * (n_new * self._n_tables + n_touched)
            + key_bytes * n_touched
            + code_bytes * sum(founded),
        )


class ReSV(Policy):
    """Retrieval of hash clusters; defaults: V-Rex (HPCA 2026, arXiv 2512.12284), evaluation section."""

    runs_in: ClassVar[frozenset[StepKind]] = frozenset(("frame", "question", "decode"))
    granularity: ClassVar[Granularity] = "cluster"
    lossy: ClassVar[bool] = True
    trained: ClassVar[bool] = False
    cut: ClassVar[Cut] = "wicsum"

    kind: Literal["resv"] = "resv"
    hash_bits: int = Field(default=32, ge=1, le=MAX_HASH_BITS, description="hyperplanes, N_hp in the paper")
    hamming_threshold: int = Field(default=7, ge=1, description="join strictly below this distance, Th_hp")
    match: Match = Field(default="nearest", description="nearest cluster, or the first below the threshold")
    table: Literal["layer", "kv_head"] = Field(default="layer", description="what one HC table serves")
    representative: Literal["mean"] = "mean"
    code: CodeRule = Field(default="leader", description="founder's code for good, or majority of members")
    seed: int = Field(default=0, ge=0, description="of the hyperplanes, one matrix for all layers")
    freeze_on_offload: bool = Field(default=True, description="a cluster that left takes no members")
    n_sink: int = Field(default=0, ge=0, description="first tokens whose clusters are always attended")
    wicsum: WicsumConfig = WicsumConfig()

    @model_validator(mode="after")
    def _check(self) -> ReSV:
        if self.hamming_threshold > self.hash_bits:
            raise ValueError(
                f"hamming_threshold is {self.hamming_threshold}; allowed: 1 to hash_bits ({self.hash_bits})"
            )
        return self

    def cached_as(self) -> ReSV:
        """Clustering knows nothing of thresholds."""
        return self.model_copy(update={"wicsum": WicsumConfig()})

    def start(self, shape: ModelShape, layer: int) -> PolicyState:
        return ReSVState(self, shape, layer)
