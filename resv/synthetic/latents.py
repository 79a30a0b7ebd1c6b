"""From features to the latents a synthetic layer projects: one vector of unit length per token.

Frames' features are standardised over the clip and averaged over a short past; text tokens, which no video has,
get latents of their own.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

# Dimensions of a latent behind the features of a frame, which are 0 in them.
TEXT = 0  # what all text tokens share
_WORD_FEATURES = 12  # assumed: as many as a frame's features
EXTRA = 1 + _WORD_FEATURES
TEXT_SHARE = 0.3  # assumed: share of a text latent's energy that all text has in common


def _unit(rows: Float64) -> Float64:
    length = np.sqrt(np.sum(rows * rows, axis=-1, keepdims=True))
    return np.asarray(rows / np.maximum(length, 1e-12))


def standardised(features: Float32) -> Float64:
    """Features (frames, n, F) with mean 0 and variance 1 in each of F over the clip; constant ones become 0."""
    x = features.astype(np.float64)
    x -= x.mean(axis=(0, 1))
    spread = x.std(axis=(0, 1))
    return np.asarray(x / np.where(spread > 1e-6, spread, 1.0))


def frame_latents(features: Float32, fps: float, smoothing_s: float) -> Float32:
    """(frames, n, F) features -> (frames·n, F + EXTRA) latents of unit length.

    smoothing_s : time constant of the average over earlier frames at the same place
    """
    x = standardised(features)
    keep = math.exp(-1.0 / (fps * smoothing_s)) if smoothing_s > 0 else 0.0
    for frame in range(1, len(x)):
        x[frame] = keep * x[frame - 1] + (1 - keep) * x[frame]
    frames = _unit(x).reshape(-1, x.shape[-1])
    return np.pad(frames, ((0, 0), (0, EXTRA))).astype(np.float32)


def text_latents(n_tokens: int, n_features: int, rng: np.random.Generator) -> Float32:
    """(n_tokens, n_features + EXTRA) latents of unit length: the direction of all text, and a word's own."""
    words = rng.standard_normal((n_tokens, _WORD_FEATURES))
    latents = np.zeros((n_tokens, n_features + EXTRA))
    latents[:, n_features + TEXT] = math.sqrt(TEXT_SHARE)
    latents[:, n_features + EXTRA - _WORD_FEATURES :] = math.sqrt(1 - TEXT_SHARE) * _unit(words)
    return latents.astype(np.float32)


def step_mean(latents: Float32) -> Float32:
    """(F,) direction of the mean of a step's latents (N, F), of unit length."""
    return _unit(latents.astype(np.float64).mean(axis=0)).astype(np.float32)
