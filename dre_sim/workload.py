"""`StepWork`: what one step asks of a machine, in FLOPs, bytes, transfers and DRE jobs.

Hardware-neutral but for the fetch list, which is laid out by the platform's KV management
(`kvmu.py`). Statistics-driven experiments build the same nouns from given ratios (`statistics.py`).
Knows no second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from resv.trace import StepKind

Int64 = NDArray[np.int64]
Cut = Literal["wicsum", "topk", "threshold"]
PredictMode = Literal["none", "same_layer", "next_layer"]


@dataclass(frozen=True)
class Gemm:
    """C[m, n] = A[m, k] · B[k, n].

    `weight_bytes` is what must stream from device memory for B, once; 0 where B is an activation.
    `activation_bytes` is A and C traffic to device memory, 0 where they stay on chip.
    """

    name: str
    m: int
    k: int
    n: int
    weight_bytes: int = 0
    activation_bytes: int = 0

    @property
    def macs(self) -> int:
        return self.m * self.k * self.n

    @property
    def flops(self) -> int:
        return 2 * self.macs


@dataclass(frozen=True)
class AttentionWork:
    """Attention of one layer over cached and new tokens, all streams of the batch together.

    cached_tokens : (batch, H) int64, attended cached tokens of each KV head (selected, resident or fetched)
    rows : query rows of one query head (N); a KV head serves `group` query heads
    chunk_bytes : mean contiguous run of the gathered K and V in device memory, 0 = one stream
    """

    rows: int
    group: int
    head_dim: int
    cached_tokens: Int64
    kv_read_bytes: int
    chunk_bytes: int = 0

    @property
    def macs(self) -> int:
        """QK^T and PV over cached tokens plus the causal half of the new ones (algorithms.md, section 0)."""
        batch, heads = self.cached_tokens.shape
        cached = int(self.cached_tokens.sum()) * self.rows
        new = batch * heads * self.rows * (self.rows + 1) // 2
        return int(2 * self.group * self.head_dim * (cached + new))

    @property
    def masked_scores(self) -> int:
        """Scores between new tokens that the causal mask discards; only kernels that skip them save their work."""
        return int(self.cached_tokens.size * self.group * self.rows * (self.rows - 1) // 2)


@dataclass(frozen=True)
class FetchWork:
    """What one layer brings over the link, in extents (contiguous runs on the offload tier).

    extent_bytes : (n,) int64, size of each extent as requested (rounded out to the tier's sector)
    useful_bytes : K and V bytes of the fetched tokens; <= extent_bytes.sum()
    """

    extent_bytes: Int64
    useful_bytes: int
    n_tokens: int

    @property
    def link_bytes(self) -> int:
        return int(self.extent_bytes.sum())


@dataclass(frozen=True)
class DreJob:
    """Cycles and actions of the DRE units for one layer's prediction, from `hcu.py` and `wtu.py`.

    Cycles are of the slowest core; counts are summed over cores, KV heads and streams.
    """

    hcu_cycles: int
    wtu_cycles: int
    hcu_chunks: int
    hcu_updates: int
    hcu_table_bytes: int
    wtu_elements: int
    wtu_rows: int
    wtu_spills: int
    wtu_union_words: int
    kvmu_lookups: int
    wtu_spill_bytes: int = 0


@dataclass(frozen=True)
class Method:
    """What a platform must know of how a policy chooses, beside what was counted.

    cut : how scores become a choice;  hash_bits : code length of a policy that clusters, 0 otherwise
    heads_together : the KV heads of a stream share one choice, and their K and V lie side by side on the tier
    """

    cut: Cut = "wicsum"
    hash_bits: int = 0
    heads_together: bool = False


@dataclass(frozen=True)
class PredictionWork:
    """What predicting one layer's selection asks for, all streams of the batch together.

    A GPU does all of it in software; a V-Rex core gives the GEMMs and exponentials to the LXE and the
    rest to the DRE (`dre`, None on platforms without one).

    A step in which nothing can be left out scores nothing (`selects` is false) and still keeps what its new keys add.

    new_tokens : N · batch;  clusters : what a row is scored against: clusters C, frames, pages or tokens (mean over
    streams and heads);  score_rows : N · G rows of every KV head and stream;  score_depth : elements of a scored key
    tables : HC tables updated, 0 where nothing is clustered;  comparisons : of new tokens with clusters open to them,
    over all tables;  kv_heads : choices made, one per KV head and stream, or
    one per stream where its heads share it
    """

    hash_gemm: Gemm | None
    query_gemm: Gemm | None
    score_macs: int
    score_read_bytes: int
    exp_elements: int
    new_tokens: int
    clusters: int
    comparisons: int
    tables: int
    score_rows: int
    score_depth: int
    kv_heads: int
    table_read_bytes: int
    table_write_bytes: int
    dre: DreJob | None = None
    cut: Cut = "wicsum"

    @property
    def selects(self) -> bool:
        return self.clusters > 0


@dataclass(frozen=True)
class LayerWork:
    """One decoder layer of a step.

    gemms : qkv, o, gate_up, down in order;  vector_elements : elements of norms, RoPE, SwiGLU, residuals
    softmax_elements : attention probabilities;  kv_write_bytes : new K and V into device memory
    offload_write_bytes : K and V that leave the device after this step (hidden behind later steps)
    reorder_bytes : device-memory bytes moved to keep clusters contiguous
    prediction : the prediction that *selects for this layer* (made in the layer before under `next_layer`)
    """

    layer: int
    gemms: tuple[Gemm, ...]
    attention: AttentionWork
    vector_elements: int
    softmax_elements: int
    kv_write_bytes: int
    fetch: FetchWork | None = None
    offload_write_bytes: int = 0
    reorder_bytes: int = 0
    prediction: PredictionWork | None = None

    @property
    def selects(self) -> bool:
        """A prediction chooses what this layer attends to."""
        return self.prediction is not None and self.prediction.selects


@dataclass(frozen=True)
class StepWork:
    """One step of one platform: vision encoder (frames only), decoder layers, LM head."""

    kind: StepKind
    batch: int
    kv_len_tokens: int
    n_new: int
    predict: PredictMode
    vision: tuple[Gemm, ...]
    vision_vector_elements: int
    layers: tuple[LayerWork, ...]
    head: tuple[Gemm, ...]
    policy: str
