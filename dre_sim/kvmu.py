"""KV cache management unit (KVMU): where clusters lie on the offload tier and what is fetched of them.

Turns a `LayerSelection` into extents, counts residency, reuse, offload and reordering, and checks that no
byte is lost. Knows no bandwidth and no second: the fetch list goes to the link model. See docs/dre.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from dre_sim.workload import FetchWork
from resv.kv_cache import ConservationError
from resv.selection import ClusterTable, LayerSelection
from resv.trace import ModelShape

Int64 = NDArray[np.int64]


class KvmuConfig(BaseModel):
    """How the offload tier is laid out, and what is kept of what was fetched."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mapping: Literal["cluster", "arrival"] = "cluster"
    reuse: Literal["none", "lru"] = "none"
    reuse_bytes: int = Field(
        default=0, ge=0, description="device memory of one stream's reuse region, shared evenly by its layers"
    )
    submit_ps: int = Field(
        default=0, ge=0, description="host time per extent where software asks for it; 0 where the unit does"
    )
    # assumed: the smallest logical block of an NVMe device; a drive with larger sectors decides
    sector_bytes: int = Field(default=512, ge=1, description="extents are rounded out to this")


@dataclass(frozen=True)
class KvmuState:
    """Reuse region of one layer of one stream: fetched units, the most recently used first.

    units : (n,) int64, unit · H + KV head; a unit is a cluster, or a token where none lies in one extent
    tokens : (n,) int64, tokens of each unit
    """

    units: Int64
    tokens: Int64

    @classmethod
    def empty(cls) -> KvmuState:
        """Nothing was fetched yet."""
        return cls(np.empty(0, np.int64), np.empty(0, np.int64))


@dataclass(frozen=True)
class FetchPlan:
    """What one layer of one step fetches, keeps and writes. A token counts once per KV head.

    extent_bytes : (n,) int64, all K extents in order of head and address, then all V extents
    useful_bytes, n_tokens : of the fetched tokens
    reorder_bytes : device memory read and written to make clusters contiguous before they leave
    table_bytes : size of the layer's HC tables;  state : the reuse region after the step
    """

    extent_bytes: Int64
    useful_bytes: int
    n_tokens: int
    resident_hit_bytes: int
    reuse_hit_bytes: int
    offload_write_bytes: int
    reorder_bytes: int
    table_bytes: int
    state: KvmuState

    @property
    def n_extents(self) -> int:
        return len(self.extent_bytes)

    @property
    def fetched_bytes(self) -> int:
        return int(self.extent_bytes.sum())

    @property
    def work(self) -> FetchWork:
        return FetchWork(self.extent_bytes, self.useful_bytes, self.n_tokens)


class _Units(NamedTuple):
    """What is fetched as a whole, sorted by head and start; `start` and `tokens` count tokens."""

    head: Int64
    unit: Int64
    start: Int64
    tokens: Int64

    def where(self, mask: NDArray[np.bool_]) -> _Units:
        return _Units(*(column[mask] for column in self))


def fetch_list(
    config: KvmuConfig,
    state: KvmuState,
    selection: LayerSelection,
    shape: ModelShape,
    *,
    n_new: int,
    hash_bits: int = 32,
    heads_together: bool = False,
) -> FetchPlan:
    """Fetch plan of one layer in a step of `n_new` tokens, for one stream.

    Offloading is taken in steady state: once a cached token is not resident, as many bytes leave the device
    as the step adds. `heads_together`: all KV heads share one choice, and a token's rows of all heads are one extent.
    Source: docs/dre.md, KVMU.

    Raises
    ------
    ConservationError
        selected bytes differ from resident + reused + fetched, e.g. a cluster attended in part.
    """
    if heads_together:
        return _shared_fetch_list(config, state, selection, shape, n_new)
    by_cluster = config.mapping == "cluster" and bool(selection.tables)
    if by_cluster:
        units = _cluster_units(selection)
    else:
        units = _token_units(selection) if config.reuse == "lru" else _token_runs(selection)
    row_bytes = -(-shape.kv_bytes(1) // 2)
    token_bytes = 2 * row_bytes
    held = np.zeros(len(units.unit), np.bool_)
    if config.reuse == "lru":
        keys = units.unit * len(selection.attended) + units.head
        held = _isin(keys, state.units)
        state = _after(state, keys, units.tokens, config.reuse_bytes // shape.n_layers // token_bytes)
    fetched = units.where(~held)
    n_tokens, reused_tokens = int(fetched.tokens.sum()), int(units.tokens[held].sum())
    resident_tokens = int((selection.attended & selection.resident).sum())
    _check_conservation(selection, resident_tokens, reused_tokens, n_tokens)
    extents = _extents(fetched, row_bytes, config.sector_bytes)
    on_device = selection.resident if selection.evicted is None else selection.resident | selection.evicted
    leaving_bytes = 0 if on_device.all() else n_new * shape.kv_bytes_per_token_layer
    table_bytes = 0
    if selection.tables:
        n_clusters = sum(table.n_clusters for table in selection.tables)
        kind: Literal["layer", "kv_head"] = "layer" if len(selection.tables) == 1 else "kv_head"
        table_bytes = hc_table_bytes(shape, n_clusters, selection.n_cached, hash_bits, kind)
    return FetchPlan(
        extent_bytes=np.concatenate([extents, extents]),
        useful_bytes=n_tokens * token_bytes,
        n_tokens=n_tokens,
        resident_hit_bytes=resident_tokens * token_bytes,
        reuse_hit_bytes=reused_tokens * token_bytes,
        offload_write_bytes=leaving_bytes,
        reorder_bytes=2 * leaving_bytes if by_cluster else 0,
        table_bytes=table_bytes,
        state=state,
    )


def _shared_fetch_list(
    config: KvmuConfig, state: KvmuState, selection: LayerSelection, shape: ModelShape, n_new: int
) -> FetchPlan:
    """The heads' common choice as that of one head as wide as all of them; tokens still count once per KV head."""
    attended, resident, evicted = selection.attended, selection.resident, selection.evicted
    if any((mask != mask[:1]).any() for mask in (attended, resident)):
        raise ConservationError(f"layer {selection.layer}: KV heads that share a choice differ")
    n_heads = shape.n_kv_heads
    wide = shape.model_copy(
        update={"n_kv_heads": 1, "n_query_heads": shape.group, "head_dim": n_heads * shape.head_dim}
    )
    gone = None if evicted is None else evicted[:1]
    one = replace(selection, attended=attended[:1], resident=resident[:1], evicted=gone)
    plan = fetch_list(config, state, one, wide, n_new=n_new)
    return replace(plan, n_tokens=n_heads * plan.n_tokens)


def hc_table_bytes(
    shape: ModelShape, n_clusters: int, n_tokens: int, hash_bits: int, table: Literal["layer", "kv_head"]
) -> int:
    """Size of one layer's HC tables: `n_clusters` of all its tables together, over `n_tokens` cached tokens.

    A cluster holds its representative key (bf16), code, index and token count (4 bytes each of the last two),
    and 4 bytes per member: 1.67 % of the keys and values at 32 tokens per cluster in a shared table
    (V-Rex, HPCA 2026, arXiv 2512.12284, hash-cluster table overhead).
    """
    heads_of_table = shape.n_kv_heads if table == "layer" else 1
    n_tables = shape.n_kv_heads // heads_of_table
    cluster_bytes = heads_of_table * shape.head_dim * 2 + -(-hash_bits // 8) + 4 + 4
    return n_clusters * cluster_bytes + n_tables * n_tokens * 4


def _cluster_units(selection: LayerSelection) -> _Units:
    """Clusters to fetch, where they lie: one head's clusters in their order of departure."""
    n_heads, n_tables = len(selection.attended), len(selection.tables)
    if n_tables not in (1, n_heads):
        raise ValueError(f"layer {selection.layer} has {n_tables} HC tables; allowed: 1 or one per KV head ({n_heads})")
    starts = [_region_starts(table) for table in selection.tables]
    wanted = selection.attended & ~selection.resident
    columns = []
    for head in range(n_heads):
        table, start = selection.tables[head % n_tables], starts[head % n_tables]
        tokens = np.bincount(table.cluster_of_token[wanted[head]], minlength=table.n_clusters)
        unit = np.flatnonzero(tokens)
        broken = unit[(start[unit] < 0) | (tokens[unit] != table.token_counts[unit])]
        if len(broken):
            c = broken[0]
            raise ConservationError(
                f"layer {selection.layer}, KV head {head}: {tokens[c]} of the {table.token_counts[c]} tokens "
                f"of cluster {c} are to be fetched (departure {table.departure[c]}); a cluster is fetched "
                "whole, and only after it has left the device"
            )
        unit = unit[np.argsort(start[unit], kind="stable")]
        columns.append(_Units(np.full(len(unit), head), unit, start[unit], tokens[unit]))
    return _Units(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def _region_starts(table: ClusterTable) -> Int64:
    """(C,) first token of each cluster in its head's region, -1 for those on the device."""
    left = np.flatnonzero(table.departure >= 0)
    left = left[np.argsort(table.departure[left], kind="stable")]
    start = np.full(table.n_clusters, -1, np.int64)
    counts = table.token_counts[left].astype(np.int64)
    start[left] = np.cumsum(counts) - counts
    return start


def _token_units(selection: LayerSelection) -> _Units:
    head, token = np.nonzero(selection.attended & ~selection.resident)
    return _Units(head, token, token, np.ones(len(token), np.int64))


def _token_runs(selection: LayerSelection) -> _Units:
    """Runs of consecutive tokens: what tokens merge to where none of them has to be known by name."""
    n_heads, n_cached = selection.attended.shape
    wanted = np.zeros((n_heads, n_cached + 1), np.bool_)
    np.logical_and(selection.attended, ~selection.resident, out=wanted[:, :n_cached])
    flat = wanted.ravel()
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    head, start = np.divmod(edges[0::2], n_cached + 1)
    return _Units(head, start, start, edges[1::2] - edges[0::2])


def _extents(units: _Units, row_bytes: int, sector_bytes: int) -> Int64:
    """Sizes of the requests for one of K and V: runs rounded out to sectors, one where they touch."""
    if len(units.unit) == 0:
        return np.empty(0, np.int64)
    first = units.start * row_bytes // sector_bytes
    end = -(-(units.start + units.tokens) * row_bytes // sector_bytes)
    opens = np.ones(len(first), np.bool_)
    opens[1:] = (units.head[1:] != units.head[:-1]) | (first[1:] > end[:-1])
    at = np.flatnonzero(opens)
    last = np.append(at[1:], len(first)) - 1
    return np.asarray((end[last] - first[at]) * sector_bytes, dtype=np.int64)


def _after(state: KvmuState, used: Int64, tokens: Int64, capacity_tokens: int) -> KvmuState:
    """The region once the units `used` have passed through it: the last of them newest, the oldest gone."""
    stale = ~_isin(state.units, used)
    units = np.concatenate([used[::-1], state.units[stale]])
    sizes = np.concatenate([tokens[::-1], state.tokens[stale]])
    fits = np.cumsum(sizes) <= capacity_tokens
    return KvmuState(units[fits], sizes[fits])


def _isin(values: Int64, among: Int64) -> NDArray[np.bool_]:
    """`np.isin` for small non-negative integers, by lookup."""
    known = np.zeros(max(values.max(initial=-1), among.max(initial=-1)) + 1, np.bool_)
    known[among] = True
    return known[values]


def _check_conservation(selection: LayerSelection, resident: int, reused: int, fetched: int) -> None:
    attended = int(selection.attended.sum())
    if attended != resident + reused + fetched:
        raise ConservationError(
            f"layer {selection.layer}: {attended} tokens attended, but {resident} resident, {reused} reused "
            f"and {fetched} fetched"
        )
