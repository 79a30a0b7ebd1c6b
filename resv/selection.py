"""The nouns a policy returns: what it selected, in which state of the cache, and what it counted.

Everything is per probed step and layer. Frozen; no later stage changes them. Bytes and tokens only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resv.trace import Step

Bool = NDArray[np.bool_]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]
Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class ClusterTable:
    """Snapshot of one hash-cluster (HC) table before a step: the clusters of S cached tokens.

    cluster_of_token : (S,) int32, the cluster of each cached token
    codes : (C,) uint64, leader code of each cluster, low `hash_bits` bits used
    token_counts : (C,) int32
    resident : (C,) bool, the cluster's K and V are in device memory
    departure : (C,) int32, order in which clusters left the device (0 = first), -1 = resident
    last_append : (C,) int32, token index of the last member
    """

    cluster_of_token: Int32
    codes: UInt64
    token_counts: Int32
    resident: Bool
    departure: Int32
    last_append: Int32

    @property
    def n_clusters(self) -> int:
        return len(self.codes)


@dataclass(frozen=True)
class ClusterUpdate:
    """What clustering a step's N new tokens did to one table: the HCU's input and its answer.

    new_codes : (N,) uint64
    eligible : (E,) int32, indices of the clusters that may take members, ascending (resident ones, when
        a cluster that left the device takes none)
    assignment : (N,) int32, cluster index in the table after the step; the k-th cluster founded by the
        step has index C + k
    """

    new_codes: UInt64
    eligible: Int32
    assignment: Int32


@dataclass(frozen=True)
class ScoreRows:
    """What one KV head's threshold unit sees: R = N·G score rows over its candidate clusters.

    scores : (R, K) float32, already transformed and rounded to bf16
    token_counts : (K,) int32
    candidates : (K,) int32, cluster index in the head's table of each column, ascending
    selected : (K,) bool, union over the rows of what `resv` selected
    """

    scores: Float32
    token_counts: Int32
    candidates: Int32
    selected: Bool


@dataclass(frozen=True)
class Counts:
    """Operations of one layer and step, all KV heads together. MACs, elements and bytes as integers.

    scanned_elements : elements a rescanning threshold unit visits, one pass per visited range
    selected_prefix_elements : elements selected, summed over the rows (before their union)
    exact_prefix_elements : the same for exact sorted prefixes; the difference is what ranges overshoot
    rows_without_mass : score rows whose weighted sum was not positive, which keep their top cluster only
    score_rows : rows that were scored, 0 = every new token of every query head
    score_read_bytes : what scoring reads, 0 = each scored key once per KV head
    query_columns : columns of the query projection that a prediction needs, 0 = all
    vector_elements : element-wise work beside the prediction, such as quantising and dequantising
    """

    hash_macs: int = 0
    hamming_compares: int = 0
    score_macs: int = 0
    score_elements: int = 0
    exp_elements: int = 0
    scanned_elements: int = 0
    selected_prefix_elements: int = 0
    exact_prefix_elements: int = 0
    rows_without_mass: int = 0
    table_read_bytes: int = 0
    table_write_bytes: int = 0
    score_rows: int = 0
    score_read_bytes: int = 0
    query_columns: int = 0
    vector_elements: int = 0


@dataclass(frozen=True)
class LayerSelection:
    """What a policy keeps of S cached tokens for one step in one layer.

    attended : (H, S) bool, cached tokens the step attends to; new tokens are always attended
    resident : (H, S) bool, cached tokens whose K and V are in device memory before the step
    candidates : (H, S) bool, tokens the policy could have left out (the denominator of its ratio)
    tables, updates : one per HC table (one shared by the KV heads, or H), empty for other policies
    rows : one `ScoreRows` per KV head, empty for other policies
    evicted : (H, S) bool, tokens that are gone for good: neither attended, candidates nor resident; None = none

    Fetched tokens are `attended & ~resident`; conservation: attended = resident part + fetched.
    """

    layer: int
    attended: Bool
    resident: Bool
    candidates: Bool
    counts: Counts
    tables: tuple[ClusterTable, ...] = ()
    updates: tuple[ClusterUpdate, ...] = ()
    rows: tuple[ScoreRows, ...] = ()
    evicted: Bool | None = None

    @property
    def n_cached(self) -> int:
        return int(self.attended.shape[1])

    @property
    def selected_tokens(self) -> Int64:
        """(H,) candidates that were kept."""
        return np.asarray((self.attended & self.candidates).sum(axis=1), dtype=np.int64)

    @property
    def candidate_tokens(self) -> Int64:
        """(H,)"""
        return np.asarray(self.candidates.sum(axis=1), dtype=np.int64)

    @property
    def fetched_tokens(self) -> Int64:
        """(H,) attended tokens that are not on the device."""
        return np.asarray((self.attended & ~self.resident).sum(axis=1), dtype=np.int64)


@dataclass(frozen=True)
class Fidelity:
    """How close attention over the selection is to full attention, one value per KV head, (H,) float64.

    attention_mass_kept : share of the full softmax mass on attended tokens, mean over rows and query heads
    topk_overlap : share of the k heaviest cached tokens of a row that are attended, mean over rows
    output_rel_error : ||o_selected - o_full|| / ||o_full||, Frobenius over the head's rows
    """

    attention_mass_kept: NDArray[np.float64]
    topk_overlap: NDArray[np.float64]
    output_rel_error: NDArray[np.float64]


@dataclass(frozen=True)
class Selection:
    """One probed step over all layers."""

    policy: str
    step: Step
    layers: tuple[LayerSelection, ...]
    fidelity: tuple[Fidelity, ...] = ()
