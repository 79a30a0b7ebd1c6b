"""Numba kernels of the HC tables: matching codes, appending tokens, letting clusters leave, summing keys.

Ranges and shapes are checked in `clustering.py` and `representatives.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numba.extending import intrinsic

from resv.clustering import (
    CLUSTERS,
    COMPARISONS,
    CURSOR,
    DEPARTED,
    ELIGIBLE,
    RESIDENT_TOKENS,
    TOKENS,
    Rule,
    State,
)

_CHUNK = 256  # codes tested at once under match: first; long enough to vectorise, short enough to stop early


@intrinsic
def _ctpop(typingctx: Any, x: Any) -> Any:
    """Set bits of an unsigned integer, in its own width: vectorises to AVX-512 vpopcnt."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return x(x), codegen


_popcount: Any = _ctpop  # its annotation knows the typing context as an argument, its callers do not


@njit(cache=True, nogil=True)
def _nearest32(codes: Any, n: int, code: Any) -> tuple[Any, Any]:
    """Least distance and its lowest index, as one minimum over (distance << 26 | index)."""
    best = np.uint32(0xFFFFFFFF)
    for i in range(n):
        distance = np.uint32(_popcount(np.uint32(codes[i] ^ code)))
        best = min(best, np.uint32(np.uint32(distance << np.uint32(26)) | np.uint32(i)))
    return np.int64(best >> np.uint32(26)), np.int64(best & np.uint32(0x3FFFFFF))


@njit(cache=True, nogil=True)
def _nearest64(codes: Any, n: int, code: Any) -> tuple[Any, Any]:
    """As `_nearest32` for codes of up to 64 bits."""
    best = np.uint64(0xFFFFFFFFFFFFFFFF)
    for i in range(n):
        distance = np.uint64(_popcount(np.uint64(codes[i] ^ code)))
        best = min(best, (distance << np.uint64(56)) | np.uint64(i))
    return np.int64(best >> np.uint64(56)), np.int64(best & np.uint64(0xFFFFFFFFFFFFFF))


@njit(cache=True, nogil=True)
def _first_below(codes: Any, n: int, code: Any, threshold: int) -> Any:
    """Lowest index closer than the threshold, or -1; chunk by chunk, each as one minimum."""
    none, limit = np.uint32(0xFFFFFFFF), np.uint32(threshold)
    for start in range(0, n, _CHUNK):
        best = none
        for i in range(start, min(n, start + _CHUNK)):
            near = np.uint32(_popcount(codes[i] ^ code)) < limit
            best = min(best, np.uint32(i) if near else none)
        if best != none:
            return np.int64(best)
    return -1


@njit(cache=True, nogil=True)
def _match(codes: Any, n: int, code: Any, rule: Rule) -> tuple[int, int]:
    """Index of the cluster a token joins, -1 if it founds one, and the comparisons it took."""
    if rule.first:
        found = _first_below(codes, n, code, rule.threshold)
        return found, (n if found < 0 else found + 1)
    distance, found = _nearest32(codes, n, code) if codes.itemsize == 4 else _nearest64(codes, n, code)
    return (found if distance < rule.threshold else -1), n


@njit(cache=True, nogil=True)
def _append_tokens(s: State, t: int, new_codes: Any, rule: Rule) -> None:
    """Cluster the tokens of one step in stream order; a founded cluster is visible to the next token."""
    size, eligible, eligible_codes = s.size[t], s.eligible[t], s.eligible_codes[t]
    codes, token_counts, last_append = s.codes[t], s.token_counts[t], s.last_append[t]
    departure, cluster_of_token, ones = s.departure[t], s.cluster_of_token[t], s.ones[t]
    for code in new_codes:
        n = size[ELIGIBLE]
        found, comparisons = _match(eligible_codes, n, code, rule)
        size[COMPARISONS] += comparisons
        if found < 0:
            cluster = size[CLUSTERS]
            codes[cluster] = eligible_codes[n] = code
            eligible[n] = cluster
            size[CLUSTERS] += 1
            size[ELIGIBLE] += 1
        else:
            cluster = np.int64(eligible[found])
        token = size[TOKENS]
        cluster_of_token[token] = cluster
        token_counts[cluster] += 1
        last_append[cluster] = token
        size[TOKENS] += 1
        size[RESIDENT_TOKENS] += departure[cluster] < 0
        for b in range(ones.shape[1]):
            ones[cluster, b] += np.int32((np.uint64(code) >> np.uint64(b)) & np.uint64(1))


@njit(cache=True, nogil=True)
def _take_majority(s: State, t: int, first_token: int) -> None:
    """Codes of the clusters a step touched become their members' majority; a tie keeps the bit."""
    for token in range(first_token, s.size[t, TOKENS]):
        cluster = s.cluster_of_token[t, token]
        code = np.uint64(s.codes[t, cluster])
        for b in range(s.ones.shape[2]):
            excess = 2 * s.ones[t, cluster, b] - s.token_counts[t, cluster]
            bit = np.uint64(1) << np.uint64(b)
            if excess > 0:
                code |= bit
            elif excess < 0:
                code &= ~bit
        s.codes[t, cluster] = code
        at = np.searchsorted(s.eligible[t, : s.size[t, ELIGIBLE]], cluster)
        if at < s.size[t, ELIGIBLE] and s.eligible[t, at] == cluster:
            s.eligible_codes[t, at] = code


@njit(cache=True, nogil=True)
def _oldest(s: State, t: int) -> int:
    """Token of the oldest last append among the resident clusters of a table, or -1.

    Every resident cluster's last append lies at or after the cursor, which only moves forward.
    """
    cursor = s.size[t, CURSOR]
    while cursor < s.size[t, TOKENS]:
        cluster = s.cluster_of_token[t, cursor]
        if s.departure[t, cluster] < 0 and s.last_append[t, cluster] == cursor:
            break
        cursor += 1
    s.size[t, CURSOR] = cursor
    return cursor if cursor < s.size[t, TOKENS] else -1


@njit(cache=True, nogil=True)
def _leave(s: State, t: int, cluster: int, freeze: bool) -> None:
    size = s.size[t]
    s.departure[t, cluster] = size[DEPARTED]
    size[DEPARTED] += 1
    size[RESIDENT_TOKENS] -= s.token_counts[t, cluster]
    if freeze:
        n = size[ELIGIBLE]
        at = np.searchsorted(s.eligible[t, :n], cluster)
        for i in range(at, n - 1):
            s.eligible[t, i] = s.eligible[t, i + 1]
            s.eligible_codes[t, i] = s.eligible_codes[t, i + 1]
        size[ELIGIBLE] = n - 1


@njit(cache=True, nogil=True)
def _offload(s: State, rule: Rule) -> None:
    """Let clusters leave, oldest last append first (a tie between tables to the lowest), down to capacity."""
    while s.size[:, RESIDENT_TOKENS].sum() > rule.capacity:
        table, oldest = -1, -1
        for t in range(len(s.size)):
            token = _oldest(s, t)
            if token >= 0 and (table < 0 or token < oldest):
                table, oldest = t, token
        _leave(s, table, s.cluster_of_token[table, oldest], rule.freeze)


@njit(cache=True, nogil=True)
def append_steps(s: State, codes: Any, step_ends: Any, rule: Rule) -> None:
    """Cluster codes (tables, n) step by step; `step_ends` are positions in `codes`."""
    start = 0
    for end in step_ends:
        for t in range(len(s.size)):
            first_token = s.size[t, TOKENS]
            _append_tokens(s, t, codes[t, start:end], rule)
            if rule.majority:
                _take_majority(s, t, first_token)
        if rule.capacity >= 0:
            _offload(s, rule)
        start = end


@njit(cache=True, nogil=True)
def add_members(sums: Any, keys: Any, cluster_of_token: Any) -> None:
    """Add keys (n, tables, width) to the sums (tables, clusters, width) of their clusters (tables, n)."""
    for t in range(len(sums)):
        for i in range(len(keys)):
            cluster = cluster_of_token[t, i]
            for d in range(keys.shape[2]):
                sums[t, cluster, d] += keys[i, t, d]
