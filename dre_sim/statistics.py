"""Statistics-driven work: a step described by figures (ratio, tokens per cluster), not by a trace.

For reproducing a published operating point and for models nobody has traced. Same nouns from
`StepWork` on; results built this way say so (`trace_kind = statistics`).
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from dre_sim.hcu import HcuConfig, code_bytes
from dre_sim.lowering import dense_step
from dre_sim.workload import DreJob, FetchWork, Gemm, Int64, LayerWork, PredictionWork, PredictMode, StepWork
from dre_sim.wtu import WtuConfig
from resv.trace import ModelShape, StepKind


class OperatingPoint(BaseModel):
    """What a retrieval policy is said to do, as a paper reports it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ratio: float = Field(ge=0.0, le=1.0, description="share of the offloaded tokens that is fetched")
    tokens_per_cluster: int = Field(default=32, ge=1)
    resident_tokens: int = Field(default=0, ge=0)
    hash_bits: int = Field(default=32, ge=1, le=64)
    predict: PredictMode = "next_layer"
    buckets_visited: int = Field(default=27, ge=1, description="of 32 linear ranges, normal logits (docs/dre.md)")


def statistics_step(
    shape: ModelShape,
    n_new: int,
    kv_len: int,
    point: OperatingPoint,
    batch: int = 1,
    kind: StepKind = "frame",
) -> StepWork:
    """A step at cache length `kv_len` that fetches `point.ratio` of what is not resident.

    Extents are one cluster of one head, K and V apart: tokens_per_cluster·D·b bytes each.
    """
    step = dense_step(shape, n_new, kv_len, batch, kind)
    resident = min(kv_len, point.resident_tokens)
    fetched = round((kv_len - resident) * point.ratio)
    layers = tuple(_with_retrieval(shape, layer, n_new, batch, resident, fetched, point) for layer in step.layers)
    return replace(step, layers=layers, predict=point.predict, policy="statistics", kv_len_tokens=kv_len)


def _with_retrieval(
    shape: ModelShape,
    layer: LayerWork,
    n_new: int,
    batch: int,
    resident: int,
    fetched: int,
    point: OperatingPoint,
) -> LayerWork:
    token_bytes = shape.head_dim * shape.kv_bits // 8
    whole, rest = divmod(fetched, point.tokens_per_cluster)
    sizes = [point.tokens_per_cluster] * whole + ([rest] if rest else [])
    extents = np.tile(np.array(sizes, dtype=np.int64) * token_bytes, 2 * shape.n_kv_heads * batch)
    fetch = FetchWork(extents, int(extents.sum()), fetched * shape.n_kv_heads * batch) if fetched else None
    attended = np.full((batch, shape.n_kv_heads), resident + fetched, dtype=np.int64)
    heads = attended.size
    kv_read_bytes = (int(attended.sum()) + n_new * heads) * 2 * token_bytes
    attention = replace(
        layer.attention,
        cached_tokens=attended,
        kv_read_bytes=kv_read_bytes,
        chunk_bytes=point.tokens_per_cluster * token_bytes,
    )
    softmax = int(attended.sum()) * shape.group * n_new + batch * shape.n_query_heads * n_new * (n_new + 1) // 2
    return replace(
        layer,
        attention=attention,
        softmax_elements=softmax,
        fetch=fetch,
        prediction=_prediction(shape, layer.layer, n_new, batch, layer.attention.cached_tokens, point),
    )


def _prediction(
    shape: ModelShape, layer: int, n_new: int, batch: int, cached: Int64, point: OperatingPoint
) -> PredictionWork | None:
    if point.predict == "none":
        return None
    clusters = -(-int(cached.max()) // point.tokens_per_cluster)
    rows, kv_dim = n_new * shape.n_query_heads * batch, shape.n_kv_heads * shape.head_dim
    element_bytes = shape.kv_bits // 8
    q_dim = shape.n_query_heads * shape.head_dim
    query = Gemm("predict_query", n_new * batch, shape.hidden, q_dim, shape.hidden * q_dim * shape.weight_bits // 8)
    return PredictionWork(
        hash_gemm=Gemm("hash", n_new * batch, kv_dim, point.hash_bits, kv_dim * point.hash_bits * element_bytes),
        query_gemm=query if point.predict == "next_layer" and layer > 0 else None,
        score_macs=rows * clusters * shape.head_dim,
        score_read_bytes=clusters * kv_dim * element_bytes * batch,
        exp_elements=rows * clusters,
        new_tokens=n_new * batch,
        clusters=clusters,
        tables=batch,
        score_rows=rows,
        kv_heads=shape.n_kv_heads * batch,
        table_read_bytes=0,
        table_write_bytes=0,
        dre=_dre_job(shape, n_new, batch, clusters, point),
    )


def _dre_job(shape: ModelShape, n_new: int, batch: int, clusters: int, point: OperatingPoint) -> DreJob:
    """Closed forms of docs/dre.md without early exit in the HCU, on as many cores as the model has KV heads.

    An upper bound for the HCU: data would end most comparisons early.
    """
    hcu, wtu, cores = HcuConfig(), WtuConfig(), shape.n_kv_heads
    tokens = n_new * batch
    chunks_per_code = -(-point.hash_bits // hcu.bits_per_cycle)
    groups = ceil(ceil(clusters / cores) / hcu.xor_accumulators)
    rows = n_new * shape.n_query_heads * batch
    words = -(-clusters // wtu.lanes)
    row_cycles = words + (wtu.lanes - 1).bit_length() + 2 + point.buckets_visited * (words + 1)
    return DreJob(
        hcu_cycles=tokens * (groups * chunks_per_code + 3),
        wtu_cycles=-(-rows // cores) * row_cycles,
        hcu_chunks=tokens * clusters * chunks_per_code,
        hcu_updates=tokens,
        hcu_table_bytes=clusters * code_bytes(point.hash_bits) * batch,
        wtu_elements=rows * clusters * (point.buckets_visited + 1),
        wtu_rows=rows,
        wtu_spills=0,
        wtu_union_words=rows * -(-clusters // 64),
        kvmu_lookups=clusters,
    )
