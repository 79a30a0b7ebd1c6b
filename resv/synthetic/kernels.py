"""The loops of the generator: project latents, add noise, rotate. Single-threaded, so that no sum depends on threads.

Noise is a run of a table of Gaussian numbers that starts at a hashed place: a token's noise depends on its own
index alone, costs one sequential read, and needs no state.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

NOISE_TABLE = 1 << 17  # starting places; the table is one run longer


def noise_starts(key: np.uint64, first: int, n_tokens: int, n_heads: int) -> NDArray[np.int64]:
    """(T, H) starting places in the noise table: SplitMix64 (Steele et al. 2014) of stream, token and head."""
    tokens = np.arange(first, first + n_tokens, dtype=np.uint64)[:, None]
    heads = np.arange(1, n_heads + 1, dtype=np.uint64)
    z = key + (tokens * np.uint64(1024) + heads) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) & np.uint64(NOISE_TABLE - 1)).astype(np.int64)


@njit(cache=True, nogil=True)
def project(latents: Float32, weights: Float32, out: Float32) -> None:
    """out (T, M) += latents (T, F) · weights (F, M), each sum in the order of F."""
    n_tokens, n_features = latents.shape
    width = weights.shape[1]
    for t in range(n_tokens):
        row = out[t]
        for f in range(0, n_features - 3, 4):
            a, b, c, d = latents[t, f], latents[t, f + 1], latents[t, f + 2], latents[t, f + 3]
            wa, wb, wc, wd = weights[f], weights[f + 1], weights[f + 2], weights[f + 3]
            for m in range(width):
                row[m] += a * wa[m] + b * wb[m] + c * wc[m] + d * wd[m]
        for f in range(n_features - n_features % 4, n_features):
            a = latents[t, f]
            wa = weights[f]
            for m in range(width):
                row[m] += a * wa[m]


@njit(cache=True, nogil=True)
def add_noise(rows: Float32, scale: Float32, table: Float32, starts: NDArray[np.int64]) -> None:
    """rows (T, H·D) += scale (H·D) · the run of the table that begins at starts (T, H)."""
    n_heads = starts.shape[1]
    dim = rows.shape[1] // n_heads
    for t in range(rows.shape[0]):
        for head in range(n_heads):
            noise = table[starts[t, head] : starts[t, head] + dim]
            row = rows[t, head * dim : (head + 1) * dim]
            weight = scale[head * dim : (head + 1) * dim]
            for d in range(dim):
                row[d] += weight[d] * noise[d]


@njit(cache=True, nogil=True)
def rotate(rows: Float32, cosine: Float32, sine: Float32) -> None:
    """Rotary embedding in place: rows (T, heads·D), cosine and sine (T, D/2); pair i is (i, i + D/2)."""
    half = cosine.shape[1]
    for t in range(rows.shape[0]):
        c, s = cosine[t], sine[t]
        for start in range(0, rows.shape[1], 2 * half):
            low, high = rows[t, start : start + half], rows[t, start + half : start + 2 * half]
            for i in range(half):
                x, y = low[i], high[i]
                low[i] = x * c[i] - y * s[i]
                high[i] = y * c[i] + x * s[i]
