"""From frames to token features: local statistics of image patches, pooled to the tokens of a frame.

A patch of 8x8 pixels gives its mean colour, its contrast, and the gradient energy in eight directions
divided by that contrast (local contrast normalisation, as in HOG, Dalal and Triggs 2005). A token's features are
the mean over the patches under it. Nothing is learned: the map stands in for a vision encoder in one respect
only, that what looks alike gets features alike. Knows nothing of the model's keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numba import njit
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]

PATCH_PX = 8
_DIRECTIONS = 8
FEATURES = 4 + _DIRECTIONS
_CONTRAST_FLOOR = 0.02  # of full scale; assumed: keeps sensor noise in flat patches from being amplified


@njit(cache=True, nogil=True)
def _patch_features(frame: UInt8, luma: Float32, cosine: Float32, sine: Float32, out: Float32) -> None:
    """Fill out (P, P, F) from a (size, size, 3) frame; `luma` is scratch."""
    size = frame.shape[0]
    for y in range(size):
        for x in range(size):
            r, g, b = frame[y, x, 0], frame[y, x, 1], frame[y, x, 2]
            luma[y, x] = np.float32((0.299 * r + 0.587 * g + 0.114 * b) / 255.0)
    out[:] = 0.0
    share = np.float32(1.0 / (PATCH_PX * PATCH_PX))
    for y in range(size):
        above, below = max(y - 1, 0), min(y + 1, size - 1)
        for x in range(size):
            cell = out[y // PATCH_PX, x // PATCH_PX]
            value = luma[y, x]
            cell[0] += share * value
            cell[1] += share * (np.float32(frame[y, x, 0] / 255.0) - value)
            cell[2] += share * (np.float32(frame[y, x, 2] / 255.0) - value)
            cell[3] += share * value * value
            gy = luma[below, x] - luma[above, x]
            gx = luma[y, min(x + 1, size - 1)] - luma[y, max(x - 1, 0)]
            for k in range(_DIRECTIONS):
                cell[4 + k] += share * max(gx * cosine[k] + gy * sine[k], np.float32(0.0))
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            cell = out[row, column]
            contrast = np.sqrt(max(cell[3] - cell[0] * cell[0], 0.0))
            cell[3] = np.float32(contrast)
            for k in range(_DIRECTIONS):
                cell[4 + k] /= np.float32(contrast + _CONTRAST_FLOOR)


@njit(cache=True, nogil=True)
def _pool(patches: Float32, weights: Float32, out: Float32) -> None:
    """out (tokens, F) = weights (tokens, patches) · patches (patches, F), in a fixed order of additions."""
    out[:] = 0.0
    for token in range(weights.shape[0]):
        for p in range(weights.shape[1]):
            weight = weights[token, p]
            if weight != 0.0:
                for f in range(patches.shape[1]):
                    out[token, f] += weight * patches[p, f]


def _token_regions(tokens_per_frame: int) -> list[tuple[float, float, float, float]]:
    """Regions (top, bottom, left, right) in [0, 1] of a frame's tokens.

    One global token and a k x k grid where n - 1 is a square (VideoLLM-online: 10 = 1 + 3x3); a k x k grid
    where n is one; else one global token and the most nearly square grid of n - 1.
    """
    n = tokens_per_frame
    if n > 1 and math.isqrt(n) ** 2 == n and math.isqrt(n - 1) ** 2 != n - 1:
        cells, regions = n, []
    else:
        cells, regions = n - 1, [(0.0, 1.0, 0.0, 1.0)]
    rows = next((r for r in range(math.isqrt(cells), 0, -1) if cells % r == 0), 0)
    for cell in range(cells):
        columns = cells // rows
        y, x = divmod(cell, columns)
        regions.append((y / rows, (y + 1) / rows, x / columns, (x + 1) / columns))
    return regions


def pooling_weights(tokens_per_frame: int, patches_per_side: int) -> Float32:
    """(tokens, patches) weights: a token averages the patches by the area it covers of each."""
    edges = np.arange(patches_per_side + 1) / patches_per_side

    def cover(low: float, high: float) -> NDArray[np.float64]:
        overlap = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
        return np.asarray(np.maximum(overlap, 0.0) / (high - low))

    rows = []
    for top, bottom, left, right in _token_regions(tokens_per_frame):
        rows.append(np.outer(cover(top, bottom), cover(left, right)).reshape(-1))
    return np.asarray(rows, dtype=np.float32)


def frame_features(frames: Iterable[UInt8], tokens_per_frame: int) -> Float32:
    """Features of the tokens of each frame: (frames, tokens_per_frame, FEATURES) float32, as measured.

    frames : (size, size, 3) uint8 each, size a multiple of `PATCH_PX`; read one at a time
    """
    angles = 2 * np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
    cosine, sine = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    weights = np.empty((0, 0), dtype=np.float32)
    rows: list[Float32] = []
    for frame in frames:
        size = frame.shape[0]
        if frame.shape != (size, size, 3) or size % PATCH_PX:
            raise ValueError(f"a frame of shape {frame.shape}: need (n, n, 3) with n a multiple of {PATCH_PX}")
        side = size // PATCH_PX
        if weights.shape[1] != side * side:
            weights = pooling_weights(tokens_per_frame, side)
            patches = np.empty((side, side, FEATURES), dtype=np.float32)
            luma = np.empty((size, size), dtype=np.float32)
        _patch_features(frame, luma, cosine, sine, patches)
        pooled = np.empty((tokens_per_frame, FEATURES), dtype=np.float32)
        _pool(patches.reshape(side * side, FEATURES), weights, pooled)
        rows.append(pooled)
    if not rows:
        return np.empty((0, tokens_per_frame, FEATURES), dtype=np.float32)
    return np.stack(rows)
