"""Weighted-cumulative-sum threshold unit (WTU): which clusters a KV head keeps, counting every cycle.

Functional and cycle-counting on real score rows, as docs/dre.md defines the unit. Knows no query and no
key: scores arrive transformed and rounded to bf16, and the exponentials are not its work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

ARRIVING_SCORE_BITS = 16  # bf16, docs/dre.md, WTU
UNION_BITS = 64  # mask bits OR-ed a cycle, docs/dre.md, WTU


class WicsumFields(Protocol):
    """The algorithm's fields as the unit needs them; `resv.wicsum.WicsumConfig` has them."""

    @property
    def ratio(self) -> float: ...
    @property
    def buckets(self) -> int: ...
    @property
    def edges(self) -> str: ...
    @property
    def mantissa_bits(self) -> int: ...
    @property
    def score_bits(self) -> int: ...
    @property
    def exit(self) -> str: ...
    @property
    def selector(self) -> str: ...
    @property
    def group_size(self) -> int: ...


class WtuConfig(BaseModel):
    """Widths and depths of one WTU. Defaults: V-Rex (HPCA 2026, arXiv 2512.12284), core configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lanes: int = Field(default=16, ge=1, le=1024, description="elements tested a cycle, W")
    cores: int = Field(default=1, ge=1, description="threshold units of one V-Rex core")
    score_bytes: int = Field(default=8192, ge=2)
    count_bytes: int = Field(default=8192, ge=2)
    # assumed: 16 bits make both memories 4,096 entries deep
    count_bits: int = Field(default=16, ge=1, le=32, description="bits of one token count")
    # assumed: not in the paper; as the table port of the HCU
    spill_bytes_per_cycle: int = Field(default=32, ge=1, description="rate of rows that do not fit")

    @model_validator(mode="after")
    def _check(self) -> WtuConfig:
        for name, entry_bits in (("score_bytes", ARRIVING_SCORE_BITS), ("count_bytes", self.count_bits)):
            least = -(-self.lanes * entry_bits // 8)
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; {self.lanes} lanes of {entry_bits} bits need {least} or more"
                )
        return self

    @property
    def tree_cycles(self) -> int:
        """Latency of the adder and comparator trees behind the lanes: ceil(log2 W) + 2."""
        return (self.lanes - 1).bit_length() + 2


@dataclass(frozen=True)
class WtuResult:
    """What one unit did with the R rows of one KV head over K candidate clusters.

    row_cycles : (R,) int64, scan of each row;  union_words : 64-bit words OR-ed, one a cycle, R·ceil(K / 64)
    buckets_visited : (R,) int32, 0 where a row's total was not positive
    elements_visited : elements that passed the range test (pre-processing reads R·K more)
    spills : rows longer than the memories;  spill_bytes : what they moved to and from device memory
    selected : (K,) bool, union over the rows;  row_selected : (R,) int32, clusters each row selected
    overshoot : (R,) int32, row_selected minus the exact prefix of the scores as the unit holds them
    """

    row_cycles: Int64
    union_words: int
    buckets_visited: Int32
    elements_visited: int
    spills: int
    spill_bytes: int
    selected: NDArray[np.bool_]
    row_selected: Int32
    overshoot: Int32

    @property
    def n_rows(self) -> int:
        return len(self.row_cycles)

    @property
    def selected_count(self) -> int:
        return int(self.selected.sum())

    @property
    def cycles(self) -> int:
        """All rows one after the other on one unit, union included."""
        return int(self.row_cycles.sum()) + self.union_words


def simulate_wtu(config: WtuConfig, wicsum: WicsumFields, scores: Float32, token_counts: Int32) -> WtuResult:
    """Scan `scores` (R, K), bf16-valued float32, weighted with `token_counts` (K,) int32.

    Source: docs/dre.md, WTU. Sums are float64 in cluster order within a bucket and one addition per bucket;
    a row exceeds strictly above ratio times its total (never at ratio 1); a row without a positive total
    keeps its top cluster.

    Raises
    ------
    ValueError
        `selector: exact`, which no unit does; `exit: group` with groups that are not the unit's lanes; wrong
        shapes or dtypes; scores that are not finite bf16 values, or negative under `edges: exponent`; counts
        that do not fit `count_bits`.
    """
    from dre_sim._wtu_kernels import WtuParams, run

    _check_fields(config, wicsum)
    _check_rows(config, wicsum, scores, token_counts)
    n_rows, n = scores.shape
    if n == 0 or n_rows == 0:
        zeros = np.zeros(n_rows, np.int32)
        return WtuResult(np.zeros(n_rows, np.int64), 0, zeros, 0, 0, 0, np.zeros(n, np.bool_), zeros, zeros)
    params = WtuParams(
        ratio=wicsum.ratio,
        n_buckets=wicsum.buckets,
        exponent=wicsum.edges == "exponent",
        key_shift=23 - wicsum.mantissa_bits,
        score_bits=wicsum.score_bits,
        group=config.lanes if wicsum.exit == "group" else 0,
    )
    buckets, last_groups, n_selected, n_prefix, selected = run(
        np.ascontiguousarray(scores),
        np.ascontiguousarray(token_counts),
        scores.min(axis=1).astype(np.float64),
        scores.max(axis=1).astype(np.float64),
        params,
    )
    if wicsum.exit == "none":
        buckets = np.where(buckets > 0, wicsum.buckets, 0).astype(np.int32)
    cost = rows_cost(config, wicsum.score_bits, n, buckets, last_groups)
    return WtuResult(
        row_cycles=cost.cycles,
        union_words=n_rows * cost.union_words,
        buckets_visited=buckets,
        elements_visited=int(cost.elements.sum()),
        spills=n_rows if cost.spilled else 0,
        spill_bytes=int(cost.spill_bytes.sum()),
        selected=selected,
        row_selected=n_selected,
        overshoot=n_selected - n_prefix,
    )


def segment_elements(config: WtuConfig, score_bits: int) -> int:
    """Clusters that fit both memories, in whole groups of `lanes`."""
    fit = min(config.score_bytes * 8 // score_bits, config.count_bytes * 8 // config.count_bits)
    return fit // config.lanes * config.lanes


class RowsCost(NamedTuple):
    """Cycles, elements range-tested and bytes spilled, each (R,); words of one row's mask."""

    cycles: Int64
    elements: Int64
    spill_bytes: Int64
    union_words: int
    spilled: bool


def rows_cost(config: WtuConfig, score_bits: int, n: int, buckets: Int32, last_groups: Int32 | None = None) -> RowsCost:
    """What rows of `n` clusters cost that visit `buckets` (R,) ranges; `last_groups` > 0 ends within the last."""
    if last_groups is None:
        last_groups = np.zeros_like(buckets)
    words, spilled = -(-n // UNION_BITS), n > segment_elements(config, score_bits)
    n_groups = -(-n // config.lanes)
    ended_inside = last_groups > 0
    whole = buckets.astype(np.int64) - ended_inside
    part = np.minimum(last_groups.astype(np.int64) * config.lanes, n)
    elements = whole * n + part
    if not spilled:
        cycles = n_groups + config.tree_cycles + whole * (n_groups + 1)
        cycles += ended_inside * (last_groups.astype(np.int64) + config.tree_cycles)
        return RowsCost(cycles, elements, np.zeros(len(buckets), np.int64), words, spilled)
    entry_bits = score_bits + config.count_bits
    part_bytes = -(-part * entry_bits // 8)
    full_bytes = -(-n * entry_bits // 8)
    full_pass = max(n_groups, -(-full_bytes // config.spill_bytes_per_cycle))
    part_pass = np.maximum(last_groups, -(-part_bytes // config.spill_bytes_per_cycle))
    cycles = full_pass + config.tree_cycles + whole * (full_pass + 1)
    cycles += ended_inside * (part_pass + config.tree_cycles)
    written_bytes = -(-n * score_bits // 8)
    spill_bytes = written_bytes + (1 + whole) * full_bytes + part_bytes
    return RowsCost(cycles, elements, spill_bytes, words, spilled)


def wtu_cycles_over_cores(heads: Sequence[WtuResult], n_units: int) -> int:
    """Cycles until the last of `n_units` threshold units has worked off the rows of all KV heads.

    Heads are dealt to units round robin. With more units than heads, a head's rows are dealt round robin to
    its units, whose masks are OR-ed pairwise at the end: ceil(log2 k)·ceil(K / 64) cycles for k units.
    """
    if n_units < 1:
        raise ValueError(f"n_units is {n_units}; allowed: 1 or more")
    if n_units <= len(heads):
        return heads_over_cores([head.cycles for head in heads], n_units)
    return max((_head_cycles(head, -(-(n_units - h) // len(heads))) for h, head in enumerate(heads)), default=0)


def heads_over_cores(head_cycles: Sequence[int], n_cores: int) -> int:
    """Cycles of the busiest of `n_cores` when head h is worked off, undivided, by core h modulo n_cores."""
    return max((sum(head_cycles[core::n_cores]) for core in range(n_cores)), default=0)


def _head_cycles(head: WtuResult, n_units: int) -> int:
    if head.n_rows == 0:
        return 0
    n_units = min(n_units, head.n_rows)
    words = head.union_words // head.n_rows
    busiest = max(int((head.row_cycles[unit::n_units] + words).sum()) for unit in range(n_units))
    return busiest + (n_units - 1).bit_length() * words


def _check_fields(config: WtuConfig, wicsum: WicsumFields) -> None:
    if wicsum.selector != "bucketed":
        raise ValueError(f"selector is {wicsum.selector!r}; the threshold unit does 'bucketed' only")
    if wicsum.exit == "group" and wicsum.group_size != config.lanes:
        raise ValueError(
            f"exit 'group' ends after a group of the unit's lanes ({config.lanes}); "
            f"group_size is {wicsum.group_size}, allowed: {config.lanes}"
        )


def _check_rows(config: WtuConfig, wicsum: WicsumFields, scores: Float32, token_counts: Int32) -> None:
    if scores.ndim != 2 or scores.dtype != np.float32:
        raise ValueError(f"scores must be (R, K) float32, got {scores.shape} {scores.dtype}")
    if token_counts.shape != scores.shape[1:] or token_counts.dtype != np.int32:
        raise ValueError(
            f"token_counts must be ({scores.shape[1]},) int32, got {token_counts.shape} {token_counts.dtype}"
        )
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite; softmax rows are after the row maximum is subtracted")
    if (np.bitwise_or.reduce(scores.view(np.uint32), axis=None) & 0xFFFF) != 0:
        raise ValueError("scores must be bf16 values: a float32 with bits set below its upper 16 was found")
    if scores.size and wicsum.edges == "exponent" and scores.min() < 0:
        raise ValueError(
            "edges 'exponent' reads buckets off the bits of scores that are not negative; "
            f"the lowest score is {scores.min()}. Use edges 'linear' or another transform"
        )
    if token_counts.size and int(token_counts.max()) >> config.count_bits:
        raise ValueError(f"a cluster of {int(token_counts.max())} tokens does not fit count_bits ({config.count_bits})")
