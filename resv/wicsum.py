"""Weighted-cumulative-sum (WiCSum) thresholding: which clusters carry a given share of a row's mass.

What is summed is score times token count. `exact` sorts a row; `bucketed` is what the hardware does
(docs/dre.md, WTU), and the words below fix its arithmetic so that another implementation agrees bit for bit:

- All sums are float64. A row's total is summed in cluster order; the limit is ratio times the total, infinite
  at ratio 1 (rounding must not end a row early). A sum passes the limit only if it exceeds it.
- A bucket's sum starts from 0.0 and runs in cluster order; it is then added to the running sum, one addition
  per bucket. Within the exit bucket under `exit: group`, the partial bucket sum is added to the running sum
  after each group of `group_size` consecutive clusters.
- With score_bits b < 16 the held score is low + rint((s - low) * (n / (high - low))) * (high - low) / n for
  n = 2^b - 1; it is what is bucketed and summed. A bucket index is truncated towards zero.
- A row whose total is not positive selects its top held score (lowest index), visits no bucket and is
  counted; at ratio 1 it selects everything like any other row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from resv._arrays import Array, like, namespace, round_bf16, to_numpy

ScoreTransform = Literal["softmax", "raw", "relu", "minshift"]
Int32 = NDArray[np.int32]
_BF16_MANTISSA_BITS = 7


class WicsumConfig(BaseModel):
    """How scores become a selection. Defaults: V-Rex (HPCA 2026, arXiv 2512.12284), WiCSum and WTU."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ratio: float = Field(default=0.3, gt=0.0, le=1.0, description="share of a row's weighted sum to reach")
    selector: Literal["exact", "bucketed"] = "bucketed"
    buckets: int = Field(default=32, ge=1, le=4096)
    edges: Literal["linear", "exponent"] = "linear"
    mantissa_bits: int = Field(default=1, ge=0, le=_BF16_MANTISSA_BITS, description="edges: exponent only")
    score_bits: int = Field(default=16, ge=1, le=16, description="16 = bf16; fewer = fixed point")
    exit: Literal["bucket", "group", "none"] = "bucket"
    group_size: int = Field(default=16, ge=1, description="lanes of the WTU; exit: group only")
    score_transform: ScoreTransform = "softmax"

    @model_validator(mode="after")
    def _check(self) -> WicsumConfig:
        if self.edges == "exponent" and self.score_transform == "raw":
            raise ValueError(
                "edges: exponent reads the bits of scores that are not negative; score_transform is 'raw', "
                "allowed with it: 'softmax', 'relu', 'minshift'"
            )
        if self.edges == "exponent" and self.score_bits < 16:
            raise ValueError(f"edges: exponent needs bf16 scores; score_bits is {self.score_bits}, allowed: 16")
        return self


@dataclass(frozen=True)
class WicsumStats:
    """What thresholding did, row by row, each (R,).

    buckets_visited : 0 for `exact` and for rows without a positive total
    elements_visited : elements a unit that rescans the row per bucket tests; for `exact`, those accumulated
    selected, exact_prefix : clusters selected, and those of the exact prefix of the scores as given
    no_mass : rows whose total is not positive
    """

    buckets_visited: Int32
    elements_visited: Int32
    selected: Int32
    exact_prefix: Int32
    no_mass: NDArray[np.bool_]

    @property
    def overshoot(self) -> Int32:
        """Clusters selected beyond the exact prefix; negative where coarse scores selected fewer."""
        return self.selected - self.exact_prefix


class Rule(NamedTuple):
    """Scalars of the scan: `group` is 0 unless a row may end within a bucket."""

    ratio: float
    buckets: int
    exponent: bool
    key_shift: int
    score_bits: int
    group: int
    scan_all: bool


def _checked(scores: Array, token_counts: Array) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rows = np.ascontiguousarray(to_numpy(scores), dtype=np.float32)
    counts = to_numpy(token_counts).astype(np.int64)
    if rows.ndim != 2 or counts.shape != rows.shape[1:]:
        raise ValueError(f"scores {rows.shape} and token counts {counts.shape} do not fit: (R, K) and (K,)")
    finite = np.isfinite(rows)  # the kernels turn scores into indices
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise ValueError(f"the score in row {row}, column {column} is {rows[row, column]}; allowed: finite numbers")
    return rows, counts


def _best_last(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Per row, score and cluster packed into one sortable integer; equal scores, lowest index last."""
    bits = (scores + np.float32(0.0)).view(np.int32)  # -0.0 + 0.0 = 0.0: equal scores get equal bits
    order = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64) << 32
    order |= 0xFFFFFFFF - np.arange(scores.shape[1], dtype=np.int64)
    order.sort(axis=1)
    return order


def _prefixes(
    rows: NDArray[np.float32], counts: NDArray[np.int64], ratio: float
) -> tuple[NDArray[np.int64], Int32, NDArray[np.bool_]]:
    from resv._wicsum_kernels import exact_prefixes

    order = _best_last(rows)
    prefix, no_mass = np.zeros(len(rows), dtype=np.int32), np.zeros(len(rows), dtype=np.bool_)
    exact_prefixes(rows, counts, order, ratio, prefix, no_mass)
    return order, prefix, no_mass


def _exact_mask(
    rows: NDArray[np.float32], counts: NDArray[np.int64], ratio: float
) -> tuple[NDArray[np.bool_], Int32, NDArray[np.bool_]]:
    order, prefix, no_mass = _prefixes(rows, counts, ratio)
    mask = np.zeros(rows.shape, dtype=np.bool_)
    ranks = np.arange(rows.shape[1])[::-1]  # the best is last
    np.put_along_axis(mask, 0xFFFFFFFF - (order & 0xFFFFFFFF), ranks < prefix[:, None], axis=1)
    return mask, prefix, no_mass


def exact(scores: Array, token_counts: Array, ratio: float) -> Array:
    """Shortest prefix of each row, highest score first (ties to the lowest index), that exceeds the limit.

    scores : (R, K);  token_counts : (K,).  Returns (R, K) bool; the cluster that passes is included. A ratio
    of 1 selects everything. Source: V-Rex (HPCA 2026, arXiv 2512.12284), WiCSum thresholding, Fig. 9.
    """
    rows, counts = _checked(scores, token_counts)
    return like(_exact_mask(rows, counts, ratio)[0], scores)


def bucketed(scores: Array, token_counts: Array, config: WicsumConfig) -> tuple[Array, WicsumStats]:
    """Whole buckets of each row from the highest score range down, until their sum exceeds the limit.

    scores : (R, K), rounded to bf16;  token_counts : (K,).  Returns the mask (R, K) bool and what it took.
    `exit: group` ends within a bucket; `exit: none` selects what `bucket` does but scans every bucket.
    """
    rows, counts = _checked(scores, token_counts)
    mask, visited, elements = _scan(rows, counts, config)
    _, prefix, no_mass = _prefixes(rows, counts, config.ratio)
    selected = mask.sum(axis=1, dtype=np.int32)
    return like(mask, scores), WicsumStats(visited, elements, selected, prefix, no_mass)


def _scan(
    rows: NDArray[np.float32], counts: NDArray[np.int64], config: WicsumConfig
) -> tuple[NDArray[np.bool_], Int32, Int32]:
    """Mask (R, K), and per row the buckets and elements visited."""
    from resv._wicsum_kernels import scan_buckets

    rule = Rule(
        ratio=config.ratio,
        buckets=config.buckets,
        exponent=config.edges == "exponent",
        key_shift=16 + _BF16_MANTISSA_BITS - config.mantissa_bits,
        score_bits=config.score_bits,
        group=config.group_size if config.exit == "group" else 0,
        scan_all=config.exit == "none",
    )
    if rule.exponent and rows.size and rows.min() < 0.0:
        raise ValueError(f"edges: exponent takes scores of at least 0, got {rows.min()}")
    mask = np.zeros(rows.shape, dtype=np.bool_)
    visited, elements = np.zeros(len(rows), dtype=np.int32), np.zeros(len(rows), dtype=np.int32)
    if rows.size:
        scan_buckets(rows, counts, rule, mask, visited, elements)
    return mask, visited, elements


def chosen(scores: Array, token_counts: Array, config: WicsumConfig) -> NDArray[np.bool_]:
    """(K,): clusters that `threshold` selects in some row, without what it took."""
    rows, counts = _checked(scores, token_counts)
    masks = _scan(rows, counts, config) if config.selector == "bucketed" else _exact_mask(rows, counts, config.ratio)
    return np.asarray(np.any(masks[0], axis=0))


def threshold(scores: Array, token_counts: Array, config: WicsumConfig) -> tuple[Array, WicsumStats]:
    """The configured selector, `exact` or `bucketed`: mask (R, K) bool and what it took."""
    if config.selector == "bucketed":
        return bucketed(scores, token_counts, config)
    rows, counts = _checked(scores, token_counts)
    mask, prefix, no_mass = _exact_mask(rows, counts, config.ratio)
    return like(mask, scores), WicsumStats(np.zeros_like(prefix), prefix, prefix, prefix, no_mass)


def transform_scores(logits: Array, head_dim: int, transform: ScoreTransform) -> Array:
    """Products q·k (R, K) as the scores that are summed, rounded to bf16, held in float32.

    softmax : exp((s - row max) / sqrt(D)), so that score times count is a cluster's attention mass;
    raw : s;  relu : max(s, 0);  minshift : s - row min.
    """
    if logits.shape[1] == 0:
        return logits
    xp = namespace(logits)
    if transform == "softmax":
        logits = xp.exp((logits - xp.amax(logits, axis=1, keepdims=True)) * head_dim**-0.5)
    elif transform == "relu":
        # Never -0.0, whose bits are not those of the lowest score; NaN stays, to be refused.
        logits = xp.where(logits <= 0, 0.0, logits)
    elif transform == "minshift":
        logits = logits - xp.amin(logits, axis=1, keepdims=True)
    return round_bf16(logits)
