"""Rotary position embedding turned back and on: policies that score keys as they were before rotation.

Pair i of a head is (i, i + D/2), its angle position · theta^(-2i/D), as in Llama. One position per token: a model
with several (M-RoPE) is not covered.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from resv.trace import Float32, ModelShape


def frequencies(shape: ModelShape) -> NDArray[np.float64]:
    """(D/2,) radians per token."""
    return np.asarray(shape.rope_theta ** -(np.arange(0, shape.head_dim, 2) / shape.head_dim))


def rotated(x: Float32, positions: NDArray[np.int64], shape: ModelShape) -> Float32:
    """x (..., n, D) turned by `positions` (n,), negative ones back; a new float32 array."""
    angles = positions[:, None] * frequencies(shape)
    cosine, sine = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    low, high = np.split(x, 2, axis=-1)
    return np.concatenate([low * cosine - high * sine, high * cosine + low * sine], axis=-1)
