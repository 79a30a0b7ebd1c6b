"""Attention over a selection, full attention, and how close the one is to the other.

Query head h·G + g belongs to KV head h; cached keys come as (H, S, D), possibly strided views of
token-major storage, which are never copied. Knows masks, not the policies that made them.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from resv._arrays import Array, in_float32, like, namespace, to_numpy
from resv.selection import Fidelity

_BLOCK = 64  # elements whose maximum is taken first when looking for a row's heaviest


def topk_indices(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Columns of the min(k, S) largest of each row of `scores` (R, S), ties to the lowest; (R, min(k, S))."""
    from resv._float_kernels import topk

    n = scores.shape[1]
    k = min(k, n)
    out = np.empty((len(scores), k), dtype=np.int64)
    if k:
        block = max(1, min(_BLOCK, n // (2 * k)))
        topk(np.ascontiguousarray(scores, dtype=np.float32).view(np.int32), k, block, out)
    return out


def _step_logits(query: Array, step_keys: Array) -> Array:
    """Logits (G, N, N) of the new tokens among themselves, -inf where a key comes after the query."""
    logits = query @ step_keys.T
    n = logits.shape[1]
    later = np.triu(np.ones((n, n), dtype=np.bool_), 1)
    logits[:, like(later, logits)] = -math.inf
    return logits


def _attend(query: Array, keys: Array, values: Array, step_keys: Array, step_values: Array) -> Array:
    """Softmax attention of one KV head's queries (G, N, D) over all of `keys` (K, D) and the step's own."""
    xp = namespace(query)
    query = query * query.shape[-1] ** -0.5
    logits = xp.concatenate([query @ keys.T, _step_logits(query, step_keys)], axis=-1)
    weights = xp.exp(logits - xp.amax(logits, axis=-1, keepdims=True))
    n = keys.shape[0]
    context = weights[..., :n] @ values + weights[..., n:] @ step_values
    return context / weights.sum(-1)[..., None]


def light_attention(
    queries: Array, keys: Array, values: Array, attended: Array | None, step_keys: Array, step_values: Array
) -> Array:
    """Attention of a step over the attended cached tokens and, causally, its own new tokens.

    queries : (H·G, N, D);  keys, values : (H, S, D);  attended : (H, S) bool, None = all
    step_keys, step_values : (H, N, D).  Returns (H·G, N, D) float32.

    Every row of a KV head attends to the same tokens, the union of what its rows selected. Source: V-Rex
    (HPCA 2026, arXiv 2512.12284), light attention; docs/decisions.md, A9 and A10.
    """
    n_heads, n_queries = keys.shape[0], queries.shape[0]
    if n_queries % n_heads:
        raise ValueError(f"{n_queries} query heads cannot be shared evenly by {n_heads} KV heads")
    group, xp = n_queries // n_heads, namespace(queries)
    out = []
    for h in range(n_heads):
        kept = slice(None) if attended is None else like(to_numpy(attended[h]), queries)
        query = in_float32(queries[h * group : (h + 1) * group])
        cached = in_float32(keys[h][kept]), in_float32(values[h][kept])
        out.append(_attend(query, *cached, in_float32(step_keys[h]), in_float32(step_values[h])))
    return xp.concatenate(out, axis=0)


def full_attention(queries: Array, keys: Array, values: Array, step_keys: Array, step_values: Array) -> Array:
    """Attention of a step over all cached tokens; shapes as in `light_attention`."""
    return light_attention(queries, keys, values, None, step_keys, step_values)


def fidelity(
    queries: Array,
    keys: Array,
    values: Array | None,
    step_keys: Array,
    step_values: Array | None,
    attended: Array,
    topk: int = 64,
) -> Fidelity:
    """How close `light_attention` is to `full_attention`, per KV head; shapes as there, computed on the CPU.

    Masses include the step's own tokens, which are always attended. `queries` are the true ones, whatever
    the policy predicted with. Without values `output_rel_error` is NaN.
    """
    n_heads = keys.shape[0]
    group = queries.shape[0] // n_heads
    query = in_float32(to_numpy(queries))
    heads = []
    for h in range(n_heads):
        arrays = (
            keys[h],
            step_keys[h],
            *(() if values is None or step_values is None else (values[h], step_values[h])),
        )
        heads.append(
            _head_fidelity(
                query[h * group : (h + 1) * group],
                to_numpy(attended[h]),
                topk,
                *(in_float32(to_numpy(a)) for a in arrays),
            )
        )
    mass, overlap, error = np.array(heads, dtype=np.float64).reshape(n_heads, 3).T
    return Fidelity(mass, overlap, error)


# Below this share of the full mass a row's kept weights are few float32 digits or none.
THIN_MASS = np.float32(1e-20)


def _head_fidelity(
    query: NDArray[np.float32],
    attended: NDArray[np.bool_],
    topk: int,
    keys: NDArray[np.float32],
    step_keys: NDArray[np.float32],
    values: NDArray[np.float32] | None = None,
    step_values: NDArray[np.float32] | None = None,
) -> tuple[float, float, float]:
    """Mass kept, top-k overlap and output error of one KV head; exponentials are taken once."""
    dim = query.shape[-1]
    query = query * np.float32(dim**-0.5)
    own = _step_logits(query, step_keys).reshape(-1, step_keys.shape[0])
    weights = query.reshape(-1, dim) @ keys.T
    heaviest = topk_indices(weights, topk)
    overlap = float(attended[heaviest].mean()) if heaviest.size else 1.0
    peak = np.maximum(weights.max(axis=1, initial=-np.inf), own.max(axis=1))[:, None]
    np.exp(np.subtract(weights, peak, out=weights), out=weights)
    own = np.exp(own - peak)
    chosen = np.flatnonzero(attended)
    kept = weights if len(chosen) == len(attended) else weights[:, chosen]
    mass_all = (weights.sum(axis=1) + own.sum(axis=1))[:, None]
    mass_kept = (kept.sum(axis=1) + own.sum(axis=1))[:, None]
    mass = float((mass_kept / mass_all).mean(dtype=np.float64))
    if values is None or step_values is None:
        return mass, overlap, math.nan
    recent = own @ step_values
    full = (weights @ values + recent) / mass_all
    light = full if kept is weights else (kept @ values[chosen] + recent) / np.maximum(mass_kept, THIN_MASS)
    thin = np.flatnonzero(mass_kept[:, 0] < THIN_MASS)
    if thin.size:
        # A row that kept next to nothing has lost its digits against the full maximum: take its own.
        own_logits = _step_logits(query, step_keys).reshape(-1, step_keys.shape[0])[thin]
        logits = np.concatenate([query.reshape(-1, dim)[thin] @ keys[chosen].T, own_logits], axis=1)
        rest = np.exp(logits - logits.max(axis=1, keepdims=True))
        light[thin] = rest @ np.concatenate([values[chosen], step_values]) / rest.sum(axis=1, keepdims=True)
    return mass, overlap, float(np.linalg.norm(light - full) / np.linalg.norm(full))
