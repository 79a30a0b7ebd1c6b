"""Model shape + what is attended and fetched -> `StepWork`. Pure counting, no seconds.

`lower` serves trace-driven runs (one `Selection` per stream of the batch); `dense_step` is a step whose
whole cache is on the device. `statistics.py` builds the same from given ratios.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from dre_sim.workload import (
    AttentionWork,
    DreJob,
    FetchWork,
    Gemm,
    Int64,
    LayerWork,
    Method,
    PredictionWork,
    PredictMode,
    StepWork,
)
from resv.selection import LayerSelection, Selection
from resv.trace import ModelShape, StepKind, VisionShape


@dataclass(frozen=True)
class LayerTransfers:
    """What the KV management of a platform does for one layer of one stream (see `kvmu.py`)."""

    fetch: FetchWork
    offload_write_bytes: int
    reorder_bytes: int


def linear_gemms(shape: ModelShape, rows: int) -> tuple[Gemm, ...]:
    """QKV, output, gate+up and down projection of one decoder layer for `rows` tokens."""
    q_dim = shape.n_query_heads * shape.head_dim
    kv_dim = 2 * shape.n_kv_heads * shape.head_dim
    sizes = (
        ("qkv", shape.hidden, q_dim + kv_dim),
        ("o", q_dim, shape.hidden),
        ("gate_up", shape.hidden, 2 * shape.ffn),
        ("down", shape.ffn, shape.hidden),
    )
    return tuple(Gemm(name, rows, k, n, k * n * shape.weight_bits // 8) for name, k, n in sizes)


def head_gemms(shape: ModelShape, rows: int) -> tuple[Gemm, ...]:
    """Vocabulary projection; VideoLLM-online reads the last logits of every step, frames included."""
    weight_bytes = shape.hidden * shape.vocab * shape.weight_bits // 8
    return (Gemm("lm_head", rows, shape.hidden, shape.vocab, weight_bytes),)


def vision_gemms(vision: VisionShape, frames: int, tokens_per_frame: int, llm_hidden: int) -> tuple[Gemm, ...]:
    """Vision encoder and projector, the images of all frames together. Attention GEMMs carry no weights."""
    p, d, f = vision.n_patches, vision.hidden, vision.ffn
    per_element = vision.weight_bits // 8
    images = frames * vision.images_per_frame
    rows = images * p

    def linear(name: str, m: int, k: int, n: int) -> Gemm:
        return Gemm(name, m, k, n, k * n * per_element)

    block = (
        linear("vision_qkv", rows, d, 3 * d),
        Gemm("vision_scores", images * vision.n_heads * p, d // vision.n_heads, p),
        Gemm("vision_context", images * vision.n_heads * p, p, d // vision.n_heads),
        linear("vision_o", rows, d, d),
        linear("vision_fc1", rows, d, f),
        linear("vision_fc2", rows, f, d),
    )
    widths = vision.projector_widths or (d, *[llm_hidden] * (vision.projector_layers - 1))
    projected = frames * (vision.projector_tokens or tokens_per_frame)
    projector = tuple(linear("projector", projected, a, b) for a, b in pairwise((*widths, llm_hidden)))
    return (linear("patch_embed", rows, vision.patch_elements, d), *block * vision.n_layers, *projector)


def vision_vector_elements(vision: VisionShape, frames: int) -> int:
    """Elements of two norms, softmax, GELU and two residuals per encoder layer."""
    p = vision.n_patches
    per_layer = p * (4 * vision.hidden + vision.ffn) + vision.n_heads * p * p
    return frames * vision.images_per_frame * vision.n_layers * per_layer


def vision_work(shape: ModelShape, frames: int) -> tuple[tuple[Gemm, ...], int]:
    """Products and vector elements of encoder and projector; none without frames or without an encoder."""
    if shape.vision is None or frames == 0:
        return (), 0
    gemms = vision_gemms(shape.vision, frames, shape.tokens_per_frame, shape.hidden)
    return gemms, vision_vector_elements(shape.vision, frames)


def layer_vector_elements(shape: ModelShape, rows: int) -> int:
    """Elements of two norms and two residuals (4·hidden), RoPE on q and k, and SwiGLU of one layer."""
    rope = (shape.n_query_heads + shape.n_kv_heads) * shape.head_dim
    return rows * (4 * shape.hidden + rope + 2 * shape.ffn)


def attention_work(shape: ModelShape, rows: int, cached_tokens: Int64, chunk_bytes: int = 0) -> AttentionWork:
    """Attention of one layer; `cached_tokens` (batch, H) are the attended cached tokens."""
    tokens = int(cached_tokens.sum()) + rows * cached_tokens.size
    return AttentionWork(rows, shape.group, shape.head_dim, cached_tokens, shape.kv_bytes(tokens), chunk_bytes)


def _layer(
    shape: ModelShape, layer: int, rows: int, batch: int, cached_tokens: Int64, chunk_bytes: int = 0
) -> LayerWork:
    heads = shape.n_query_heads
    causal = batch * heads * rows * (rows + 1) // 2
    return LayerWork(
        layer=layer,
        gemms=linear_gemms(shape, rows * batch),
        attention=attention_work(shape, rows, cached_tokens, chunk_bytes),
        vector_elements=layer_vector_elements(shape, rows * batch),
        softmax_elements=int(cached_tokens.sum()) * shape.group * rows + causal,
        kv_write_bytes=rows * batch * shape.kv_bytes_per_token_layer,
    )


def _step(
    shape: ModelShape,
    kind: StepKind,
    rows: int,
    batch: int,
    kv_len: int,
    predict: PredictMode,
    layers: Sequence[LayerWork],
    policy: str,
) -> StepWork:
    vision, vector = vision_work(shape, batch if kind == "frame" else 0)
    return StepWork(
        kind=kind,
        batch=batch,
        kv_len_tokens=kv_len,
        n_new=rows,
        predict=predict,
        vision=vision,
        vision_vector_elements=vector,
        layers=tuple(layers),
        head=head_gemms(shape, batch),
        policy=policy,
    )


def dense_step(
    shape: ModelShape,
    n_new: int,
    kv_len: int,
    batch: int = 1,
    kind: StepKind = "frame",
    n_layers: int | None = None,
) -> StepWork:
    """A step that attends to its whole cache, all of it on the device. `n_layers` limits the layers."""
    cached = np.full((batch, shape.n_kv_heads), kv_len, dtype=np.int64)
    layers = [_layer(shape, i, n_new, batch, cached) for i in range(shape.n_layers if n_layers is None else n_layers)]
    return _step(shape, kind, n_new, batch, kv_len, "none", layers, "dense")


def lower(
    shape: ModelShape,
    selections: Sequence[Selection],
    transfers: Sequence[Sequence[LayerTransfers]],
    predict: PredictMode,
    method: Method,
    dre_jobs: Sequence[DreJob | None] | None = None,
) -> StepWork:
    """Turn one step's selections (one per stream of the batch) into a `StepWork`.

    transfers : per stream, per layer
    dre_jobs : per layer, the whole batch; None on platforms without a DRE
    Raises ValueError where streams disagree on the step.
    """
    step = selections[0].step
    if any(s.step.n_tokens != step.n_tokens or s.step.kind != step.kind for s in selections):
        raise ValueError("all streams of a batch must take the same kind of step with as many new tokens")
    batch, rows = len(selections), step.n_tokens
    layers = []
    for i in range(shape.n_layers):
        per_stream = [s.layers[i] for s in selections]
        moved = [t[i] for t in transfers]
        cached = np.stack([sel.attended.sum(axis=1) for sel in per_stream]).astype(np.int64)
        job = dre_jobs[i] if dre_jobs is not None else None
        fetch = merge_fetches([m.fetch for m in moved])
        layer = _layer(shape, i, rows, batch, cached, _chunk_bytes(shape, per_stream, fetch))
        layers.append(
            replace(
                layer,
                vector_elements=layer.vector_elements + sum(sel.counts.vector_elements for sel in per_stream),
                fetch=fetch,
                offload_write_bytes=sum(m.offload_write_bytes for m in moved),
                reorder_bytes=sum(m.reorder_bytes for m in moved),
                prediction=_prediction(shape, per_stream, rows, predict, i, method, job),
            )
        )
    kv_len = selections[0].layers[0].n_cached
    return _step(shape, step.kind, rows, batch, kv_len, predict, layers, selections[0].policy)


def _chunk_bytes(shape: ModelShape, streams: Sequence[LayerSelection], fetch: FetchWork | None) -> int:
    """Mean run of what is attended to in device memory: an extent as it arrived, or tokens in their order; 0 = all."""
    if fetch is not None:
        return fetch.useful_bytes // fetch.extent_bytes.size
    if all(sel.attended.all() for sel in streams):
        return 0
    tokens = runs = 0
    for attended in (sel.attended for sel in streams):
        tokens += int(attended.sum())
        runs += int(attended[:, 0].sum() + (attended[:, 1:] & ~attended[:, :-1]).sum())
    return shape.kv_bytes(tokens) // 2 // max(1, runs)


def merge_fetches(fetches: Sequence[FetchWork]) -> FetchWork | None:
    """One transfer list for the whole batch; None where nothing is fetched."""
    extents = np.concatenate([f.extent_bytes for f in fetches]) if fetches else np.zeros(0, dtype=np.int64)
    if extents.size == 0:
        return None
    return FetchWork(extents, sum(f.useful_bytes for f in fetches), sum(f.n_tokens for f in fetches))


def _prediction(
    shape: ModelShape,
    streams: Sequence[LayerSelection],
    rows: int,
    predict: PredictMode,
    layer: int,
    method: Method,
    job: DreJob | None,
) -> PredictionWork | None:
    kept = any(sel.tables or sel.counts.table_write_bytes for sel in streams)
    if not kept and not any(sel.rows or sel.counts.score_macs for sel in streams):
        return None
    batch = len(streams)
    kv_dim = shape.n_kv_heads * shape.head_dim
    tables = sum(len(sel.tables) for sel in streams)
    hash_gemm = None
    hash_bits = method.hash_bits
    if hash_bits and tables:
        # Hyperplanes are D_table x B; a table per head hashes D, a shared one H·D.
        depth = kv_dim * batch // tables
        hash_gemm = Gemm("hash", rows * tables, depth, hash_bits, depth * hash_bits * shape.kv_bits // 8)
    query_gemm = None
    if predict == "next_layer" and layer > 0:
        q_dim = max(sel.counts.query_columns for sel in streams) or shape.n_query_heads * shape.head_dim
        query_gemm = Gemm(
            "predict_query", rows * batch, shape.hidden, q_dim, shape.hidden * q_dim * shape.weight_bits // 8
        )
    counts = [sel.counts for sel in streams]
    score_rows = sum(c.score_rows or rows * shape.n_query_heads for c in counts)
    score_macs = sum(c.score_macs for c in counts)
    columns = [len(r.candidates) for sel in streams for r in sel.rows]
    return PredictionWork(
        hash_gemm=hash_gemm,
        query_gemm=query_gemm,
        score_macs=score_macs,
        # Each representative key is read once per step for all rows of its KV head.
        score_read_bytes=sum(
            c.score_read_bytes or c.score_macs // max(1, rows * shape.group) * shape.kv_bits // 8 for c in counts
        ),
        exp_elements=sum(sel.counts.exp_elements for sel in streams),
        new_tokens=rows * batch,
        clusters=round(sum(columns) / len(columns)) if columns else sum(c.score_elements for c in counts) // score_rows,
        comparisons=sum(rows * len(update.eligible) for sel in streams for update in sel.updates),
        tables=tables,
        score_rows=score_rows,
        score_depth=score_macs // max(1, sum(c.score_elements for c in counts)),
        kv_heads=batch if method.heads_together else shape.n_kv_heads * batch,
        table_read_bytes=sum(sel.counts.table_read_bytes for sel in streams),
        table_write_bytes=sum(sel.counts.table_write_bytes for sel in streams),
        dre=job,
        cut=method.cut,
    )
