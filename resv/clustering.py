"""The hash-cluster (HC) tables of one layer, grown online from hash codes, and which clusters are resident.

Rules of docs/dre.md (HCU and KVMU): a token joins the nearest cluster below the Hamming threshold, else it
founds one; over capacity, whole clusters leave the device. Knows codes and token numbers, no key and no byte.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from resv.selection import ClusterTable

Match = Literal["nearest", "first"]
CodeRule = Literal["leader", "majority"]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]

# Columns of `State.size`, one row per table.
TOKENS, CLUSTERS, ELIGIBLE, RESIDENT_TOKENS, DEPARTED, CURSOR, COMPARISONS = range(7)


class Rule(NamedTuple):
    """Scalars of the algorithm; `capacity` counts tokens over all tables, -1 = unbounded."""

    threshold: int
    first: bool
    majority: bool
    freeze: bool
    capacity: int


class State(NamedTuple):
    """Arrays of all tables, first axis the table; columns beyond `size` are spare.

    `eligible_codes` and `eligible` list the clusters that may take members, ascending, so that clusters
    which left cost no comparison. `ones` counts members with each bit set (code rule: majority only).
    """

    cluster_of_token: NDArray[np.int32]
    codes: NDArray[Any]
    token_counts: NDArray[np.int32]
    last_append: NDArray[np.int32]
    departure: NDArray[np.int32]
    eligible_codes: NDArray[Any]
    eligible: NDArray[np.int32]
    ones: NDArray[np.int32]
    size: NDArray[np.int64]


class HashClusterTables:
    """HC tables of one layer over one token stream: one shared by the KV heads, or one per head.

    hamming_threshold : a token joins a cluster strictly closer than this
    match : nearest cluster (ties to the lowest index), or the first one below the threshold
    code : a cluster's code stays its founder's (leader), or becomes the majority of its members' bits
        at the end of each step, so that codes never change within a step
    capacity_tokens : tokens per table that stay resident, all tables together; None = all
    freeze_on_offload : a cluster that left takes no members; otherwise tokens that join it are written
        through to where it is, and are not resident

    Source: docs/dre.md, HCU and KVMU; V-Rex (HPCA 2026, arXiv 2512.12284).
    """

    def __init__(
        self,
        n_tables: int,
        hash_bits: int,
        hamming_threshold: int,
        *,
        match: Match = "nearest",
        code: CodeRule = "leader",
        capacity_tokens: int | None = None,
        freeze_on_offload: bool = True,
    ) -> None:
        capacity = -1 if capacity_tokens is None else capacity_tokens * n_tables
        self._rule = Rule(
            threshold=hamming_threshold,
            first=match == "first",
            majority=code == "majority",
            freeze=freeze_on_offload,
            capacity=capacity,
        )
        self._code_type = np.uint32 if hash_bits <= 32 else np.uint64
        self._state = self._allocate(n_tables, 0, hash_bits if code == "majority" else 0)

    def _allocate(self, n_tables: int, spare: int, counted_bits: int) -> State:
        def int32(fill: int = 0) -> NDArray[np.int32]:
            return np.full((n_tables, spare), fill, dtype=np.int32)

        def codes() -> NDArray[Any]:
            return np.zeros((n_tables, spare), dtype=self._code_type)

        return State(
            cluster_of_token=int32(),
            codes=codes(),
            token_counts=int32(),
            last_append=int32(),
            departure=int32(-1),
            eligible_codes=codes(),
            eligible=int32(),
            ones=np.zeros((n_tables, spare, counted_bits), dtype=np.int32),
            size=np.zeros((n_tables, 7), dtype=np.int64),
        )

    def _reserve(self, n_new: int) -> None:
        """Room for `n_new` tokens, each of which may found a cluster."""
        old, needed = self._state, self.n_tokens + n_new
        if needed <= old.cluster_of_token.shape[1]:
            return
        new = self._allocate(self.n_tables, max(needed, 2 * self.n_tokens), old.ones.shape[2])
        for source, target in zip(old[:-1], new[:-1], strict=True):
            target[:, : source.shape[1]] = source
        self._state = new._replace(size=old.size)

    def append(self, codes: UInt64, step_lengths: Sequence[int] | Int64) -> Int32:
        """Cluster the next tokens' codes (tables, n), a run of steps of the given lengths, in stream order.

        Returns the cluster of each token, (tables, n) int32.
        """
        from resv._cluster_kernels import append_steps

        ends = np.cumsum(np.asarray(step_lengths, dtype=np.int64))
        n_new = codes.shape[1]
        if codes.shape[0] != self.n_tables or (ends[-1] if len(ends) else 0) != n_new:
            raise ValueError(
                f"codes are {codes.shape}, steps have {ends[-1] if len(ends) else 0} tokens: "
                f"expected ({self.n_tables}, sum of step_lengths)"
            )
        self._reserve(n_new)
        before = self.n_tokens
        append_steps(self._state, np.ascontiguousarray(codes, dtype=self._code_type), ends, self._rule)
        return self._state.cluster_of_token[:, before : before + n_new].copy()

    def copy(self) -> HashClusterTables:
        """An independent copy, for a step whose tokens are dropped again."""
        other = copy.copy(self)
        other._state = State(**{name: array.copy() for name, array in self._state._asdict().items()})
        return other

    @property
    def n_tables(self) -> int:
        return len(self._state.size)

    @property
    def n_tokens(self) -> int:
        return int(self._state.size[0, TOKENS])

    @property
    def n_clusters(self) -> Int64:
        """(tables,) int64"""
        return self._state.size[:, CLUSTERS].copy()

    @property
    def resident_tokens(self) -> Int64:
        """(tables,) int64, tokens of the clusters on the device."""
        return self._state.size[:, RESIDENT_TOKENS].copy()

    @property
    def comparisons(self) -> int:
        """Hamming comparisons made since the start, all tables together."""
        return int(self._state.size[:, COMPARISONS].sum())

    def eligible(self, table: int) -> Int32:
        """Clusters that may take members, ascending."""
        return self._state.eligible[table, : self._state.size[table, ELIGIBLE]].copy()

    def snapshot(self, table: int) -> ClusterTable:
        """The table as it stands, as a noun of its own."""
        s, n = self._state, int(self._state.size[table, CLUSTERS])
        departure = s.departure[table, :n].copy()
        return ClusterTable(
            cluster_of_token=s.cluster_of_token[table, : self.n_tokens].copy(),
            codes=s.codes[table, :n].astype(np.uint64),
            token_counts=s.token_counts[table, :n].copy(),
            resident=departure < 0,
            departure=departure,
            last_append=s.last_append[table, :n].copy(),
        )
