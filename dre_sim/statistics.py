"""Statistics-driven work: a step described by figures (ratio, tokens per cluster), not by a trace.

For reproducing a published operating point and for models nobody has traced. Same nouns from
`StepWork` on; results built this way say so (`trace_kind = statistics`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from dre_sim.hcu import HcuConfig, simulate_hcu
from dre_sim.lowering import dense_step
from dre_sim.workload import DreJob, FetchWork, Gemm, Int64, LayerWork, PredictionWork, PredictMode, StepWork
from dre_sim.wtu import WtuConfig, rows_cost
from resv.trace import ModelShape, StepKind

# Width of a score in the threshold unit (docs/dre.md).
SCORE_BITS = 16


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
    token_bytes = -(-shape.kv_bytes(1) // 2)
    whole, rest = divmod(fetched, point.tokens_per_cluster)
    sizes = [point.tokens_per_cluster] * whole + ([rest] if rest else [])
    extents = np.tile(np.array(sizes, dtype=np.int64) * token_bytes, 2 * shape.n_kv_heads * batch)
    fetch = FetchWork(extents, int(extents.sum()), fetched * shape.n_kv_heads * batch) if fetched else None
    attended = np.full((batch, shape.n_kv_heads), resident + fetched, dtype=np.int64)
    kv_read_bytes = shape.kv_bytes(int(attended.sum()) + n_new * attended.size)
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
        prediction=_prediction(shape, layer.layer, n_new, batch, layer.attention.cached_tokens, attended, point),
    )


def _prediction(
    shape: ModelShape, layer: int, n_new: int, batch: int, cached: Int64, attended: Int64, point: OperatingPoint
) -> PredictionWork | None:
    if point.predict == "none":
        return None
    clusters = -(-int(cached.max()) // point.tokens_per_cluster)
    rows, kv_dim = n_new * shape.n_query_heads * batch, shape.n_kv_heads * shape.head_dim
    q_dim = shape.n_query_heads * shape.head_dim
    query = Gemm("predict_query", n_new * batch, shape.hidden, q_dim, shape.hidden * q_dim * shape.weight_bits // 8)
    return PredictionWork(
        hash_gemm=Gemm("hash", n_new * batch, kv_dim, point.hash_bits, kv_dim * point.hash_bits * shape.kv_bits // 8),
        query_gemm=query if point.predict == "next_layer" and layer > 0 else None,
        score_macs=rows * clusters * shape.head_dim,
        score_read_bytes=clusters * kv_dim * batch * shape.kv_bits // 8,
        exp_elements=rows * clusters,
        new_tokens=n_new * batch,
        clusters=clusters,
        comparisons=n_new * batch * clusters,
        tables=batch,
        score_rows=rows,
        score_depth=shape.head_dim,
        kv_heads=shape.n_kv_heads * batch,
        table_read_bytes=0,
        table_write_bytes=0,
        dre=_dre_job(shape, n_new, batch, clusters, int((-(-attended // point.tokens_per_cluster)).sum()), point),
    )


def _dre_job(shape: ModelShape, n_new: int, batch: int, clusters: int, selected: int, point: OperatingPoint) -> DreJob:
    """What the units take on as many cores as the model has KV heads, one stream after the other.

    Every comparison of the HCU runs to its end, and every new token joins a cluster: data would end most of them
    early. Every row of the WTU visits as many ranges. `selected` clusters of all KV heads and streams are looked up.
    """
    wtu, cores = WtuConfig(), shape.n_kv_heads
    hcu = simulate_hcu(
        HcuConfig(early_exit=False),
        point.hash_bits,
        point.hash_bits,
        "nearest",
        np.zeros(n_new, np.uint64),
        np.zeros(clusters, np.uint64),
        cores,
    )
    row = rows_cost(wtu, SCORE_BITS, clusters, np.array([point.buckets_visited], np.int32))
    rows_of_head = n_new * shape.group * batch
    rows = rows_of_head * shape.n_kv_heads
    return DreJob(
        hcu_cycles=batch * hcu.cycles,
        wtu_cycles=rows_of_head * (int(row.cycles[0]) + row.union_words),
        hcu_chunks=batch * hcu.chunks_examined,
        hcu_updates=batch * hcu.updates,
        hcu_table_bytes=batch * hcu.tile_bytes_read,
        wtu_elements=rows * (clusters + int(row.elements[0])),
        wtu_rows=rows,
        wtu_spills=rows if row.spilled else 0,
        wtu_union_words=rows * row.union_words,
        kvmu_lookups=selected,
        wtu_spill_bytes=rows * int(row.spill_bytes[0]),
    )
