"""Attention of a step over cached tokens and, causally, its own: batched, per KV head, with this package's own mask.

Bottom-right causal rule: new token j sees every attended cached token and the step's tokens 0 ... j. Query head
h·G + g belongs to KV head h. Knows masks and tensors, no policy and no model.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

Bool = NDArray[np.bool_]
Int64 = NDArray[np.int64]


def attend(query: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None, scaling: float) -> Tensor:
    """Attention of new tokens over cached tokens and their own, which are the last N of the keys.

    query : (B, H·G, N, D);  keys, values : (B, H, S + N, D)
    allowed : (B, H, S) bool, cached tokens that all rows of a KV head attend to; None = all
    Returns (B, H·G, N, D).
    """
    batch, heads, _, dim = keys.shape
    n_new = query.shape[2]
    rows = query.reshape(batch, heads, -1, dim)  # row g·N + j: the query heads of a KV head read the same keys
    bias = _bias(n_new, rows.shape[2] // n_new, keys.shape[2], allowed, query)
    out = scaled_dot_product_attention(rows, keys, values, attn_mask=bias, scale=scaling)
    return out.reshape(query.shape)


def _bias(n_new: int, group: int, n_keys: int, allowed: Tensor | None, like: Tensor) -> Tensor | None:
    """(1 or B, 1 or H, G·N, S + N): 0 where a row attends, -inf elsewhere; None where all rows attend to all."""
    if allowed is None and n_new == 1:
        return None
    later = torch.full((n_new, n_new), -math.inf, dtype=like.dtype, device=like.device).triu(1).repeat(group, 1)
    shape = (1, 1) if allowed is None else allowed.shape[:2]
    bias = later.new_zeros((*shape, group * n_new, n_keys))
    bias[..., n_keys - n_new :] = later
    if allowed is not None:
        bias[..., : n_keys - n_new].masked_fill_(~allowed.to(like.device)[:, :, None], -math.inf)
    return bias


def attend_two_queries(
    query: Tensor, distant: Tensor, keys: Tensor, values: Tensor, allowed: Tensor, is_distant: Tensor, scaling: float
) -> Tensor:
    """As `attend`, with the query `distant` (B, H·G, N, D) for the keys of `is_distant` (B, H, S + N) bool.

    Both queries lie side by side in one of twice the width; a key has zeros where it is not to be met.
    """
    dim = query.shape[-1]
    far = is_distant.to(keys.device)[..., None]
    both = torch.cat([keys.masked_fill(far, 0), keys.masked_fill(~far, 0)], dim=-1)
    return attend(torch.cat([query, distant], dim=-1), both, pad(values, (0, dim)), allowed, scaling)[..., :dim]


def token_indices(attended: Bool) -> Int64:
    """(B, H, m): the tokens of a mask (B, H, S), ascending, -1 behind the last where another head has more."""
    flat = attended.reshape(attended.shape[0] * attended.shape[1], attended.shape[2])
    counts = np.count_nonzero(flat, axis=1)
    indices = np.full((len(flat), int(counts.max(initial=0))), -1, dtype=np.int64)
    rows, tokens = np.nonzero(flat)
    first = np.cumsum(counts) - counts
    indices[rows, np.arange(len(tokens)) - first[rows]] = tokens
    return indices.reshape(*attended.shape[:2], -1)
