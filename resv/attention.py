"""Attention over a selection, full attention, and how close the one is to the other.

Query head h·G + g belongs to KV head h; cached keys come as (H, S, D), possibly strided views of
token-major storage, which are never copied. Knows masks, not the policies that made them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
    (HPCA 2026, arXiv 2512.12284), light attention.
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


@dataclass(frozen=True)
class FullHead:
    """Full attention of one KV head's rows R = G·N, kept for comparison with any number of selections.

    query : (G, N, D), scaled;  weights : (R, S) exponentials of the cached logits;  own : (R, N) of the step's own
    heaviest : (R, k) cached tokens;  mass : (R, 1), sum of all exponentials
    values, step_values : (S, D) and (N, D);  output : (R, D); all three None where nobody asked for values
    """

    query: NDArray[np.float32]
    keys: NDArray[np.float32]
    step_keys: NDArray[np.float32]
    weights: NDArray[np.float32]
    own: NDArray[np.float32]
    heaviest: NDArray[np.int64]
    mass: NDArray[np.float32]
    values: NDArray[np.float32] | None = None
    step_values: NDArray[np.float32] | None = None
    output: NDArray[np.float32] | None = None


def full_heads(
    queries: Array, keys: Array, values: Array | None, step_keys: Array, step_values: Array | None, topk: int = 64
) -> tuple[FullHead, ...]:
    """Full attention of every KV head, computed once for any number of selections; shapes as in `fidelity`."""
    n_heads = keys.shape[0]
    group = queries.shape[0] // n_heads
    query = in_float32(to_numpy(queries))
    heads = []
    for h in range(n_heads):
        arrays: tuple[Array, ...] = (keys[h], step_keys[h])
        if values is not None and step_values is not None:
            arrays = (*arrays, values[h], step_values[h])
        heads.append(_full_head(query[h * group : (h + 1) * group], topk, *(in_float32(to_numpy(a)) for a in arrays)))
    return tuple(heads)


def fidelity_to(full: Sequence[FullHead], attended: Array) -> Fidelity:
    """How close attention over `attended` (H, S) is to full attention, per KV head."""
    heads = [_head_fidelity(head, to_numpy(attended[h])) for h, head in enumerate(full)]
    mass, overlap, error = np.array(heads, dtype=np.float64).reshape(len(full), 3).T
    return Fidelity(mass, overlap, error)


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
    return fidelity_to(full_heads(queries, keys, values, step_keys, step_values, topk), attended)


# Below this share of the full mass a row's kept weights are few float32 digits or none.
THIN_MASS = np.float32(1e-20)


def _full_head(
    query: NDArray[np.float32],
    topk: int,
    keys: NDArray[np.float32],
    step_keys: NDArray[np.float32],
    values: NDArray[np.float32] | None = None,
    step_values: NDArray[np.float32] | None = None,
) -> FullHead:
    """Exponentials are taken once; `query` is (G, N, D)."""
    query = query * np.float32(query.shape[-1] ** -0.5)
    heaviest, weights, own, mass = _exponentials(query, keys, step_keys, topk)
    if values is None or step_values is None:
        return FullHead(query, keys, step_keys, weights, own, heaviest, mass)
    output = np.asarray((weights @ values + own @ step_values) / mass, dtype=np.float32)
    return FullHead(query, keys, step_keys, weights, own, heaviest, mass, values, step_values, output)


def _exponentials(
    query: NDArray[np.float32], keys: NDArray[np.float32], step_keys: NDArray[np.float32], topk: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Heaviest cached tokens, exponentials of the cached and of the step's own logits, their sums per row."""
    own = _step_logits(query, step_keys).reshape(-1, step_keys.shape[0])
    weights = query.reshape(-1, query.shape[-1]) @ keys.T
    heaviest = topk_indices(weights, topk)
    peak = np.maximum(weights.max(axis=1, initial=-np.inf), own.max(axis=1))[:, None]
    np.exp(np.subtract(weights, peak, out=weights), out=weights)
    own = np.exp(own - peak)
    return heaviest, weights, own, (weights.sum(axis=1) + own.sum(axis=1))[:, None]


def restored_fidelity(full: Sequence[FullHead], keys: Array, values: Array) -> Fidelity:
    """As `fidelity_to`, of a policy that leaves nothing out but stores with less precision: only the output errs.

    keys, values : (H, S, D) as they are read back
    """
    errors = np.full(len(full), math.nan)
    for h, head in enumerate(full):
        if head.output is None:
            continue
        weights, own, mass = _exponentials(head.query, in_float32(to_numpy(keys[h])), head.step_keys)[1:]
        assert head.step_values is not None
        output = (weights @ in_float32(to_numpy(values[h])) + own @ head.step_values) / mass
        errors[h] = np.linalg.norm(output - head.output) / np.linalg.norm(head.output)
    return Fidelity(np.ones(len(full)), np.ones(len(full)), errors)


def _head_fidelity(full: FullHead, attended: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Mass kept, top-k overlap and output error of one KV head."""
    overlap = float(attended[full.heaviest].mean()) if full.heaviest.size else 1.0
    chosen = np.flatnonzero(attended)
    everything = len(chosen) == len(attended)
    kept = full.weights if everything else full.weights.take(chosen, axis=1)  # twice as fast as an index
    mass_kept = (kept.sum(axis=1) + full.own.sum(axis=1))[:, None]
    mass = float((mass_kept / full.mass).mean(dtype=np.float64))
    if full.values is None or full.step_values is None or full.output is None:
        return mass, overlap, math.nan
    if everything:
        return mass, overlap, 0.0
    light = (kept @ full.values.take(chosen, axis=0) + full.own @ full.step_values) / np.maximum(mass_kept, THIN_MASS)
    thin = np.flatnonzero(mass_kept[:, 0] < THIN_MASS)
    if thin.size:
        light[thin] = _thin_rows(full, chosen, thin)
    return mass, overlap, float(np.linalg.norm(light - full.output) / np.linalg.norm(full.output))


def _thin_rows(full: FullHead, chosen: NDArray[np.int64], thin: NDArray[np.int64]) -> NDArray[np.float32]:
    """Outputs of rows that kept next to nothing and lost their digits against the full maximum: by their own."""
    assert full.values is not None
    assert full.step_values is not None
    own = _step_logits(full.query, full.step_keys).reshape(-1, len(full.step_keys))[thin]
    rows = full.query.reshape(-1, full.query.shape[-1])[thin]
    logits = np.concatenate([rows @ full.keys[chosen].T, own], axis=1)
    rest = np.exp(logits - logits.max(axis=1, keepdims=True))
    values = np.concatenate([full.values[chosen], full.step_values])
    return np.asarray(rest @ values / rest.sum(axis=1, keepdims=True))
