"""Slow, evident twins of the loops that make a trace: features of a frame, rows of keys, rotation, sampling."""

from __future__ import annotations

import math

import numpy as np

from resv.features import FEATURES, PATCH_PX
from resv.synthetic.kernels import NOISE_TABLE

MASK = (1 << 64) - 1


def ref_patch_features(patch, neighbours_y, neighbours_x):
    """Features of one patch: colours, contrast, gradient energy in eight directions over the contrast.

    patch : (8, 8, 3) in [0, 1];  neighbours : luma differences below - above and right - left
    """
    luma = patch @ np.array([0.299, 0.587, 0.114])
    contrast = luma.std()
    out = [luma.mean(), (patch[..., 0] - luma).mean(), (patch[..., 2] - luma).mean(), contrast]
    for k in range(8):
        angle = 2 * math.pi * k / 8
        along = neighbours_x * math.cos(angle) + neighbours_y * math.sin(angle)
        out.append(np.maximum(along, 0).mean() / (contrast + 0.02))
    return np.array(out)


def ref_frame_features(frame, regions):
    """Features of tokens that cover whole patches; regions as (top, bottom, left, right) in patches."""
    image = frame / 255.0
    padded = np.pad(image @ np.array([0.299, 0.587, 0.114]), 1, mode="edge")
    dy = padded[2:, 1:-1] - padded[:-2, 1:-1]
    dx = padded[1:-1, 2:] - padded[1:-1, :-2]
    tokens = []
    for top, bottom, left, right in regions:
        patches = []
        for y in range(top, bottom):
            for x in range(left, right):
                window = (
                    slice(y * PATCH_PX, (y + 1) * PATCH_PX),
                    slice(x * PATCH_PX, (x + 1) * PATCH_PX),
                )
                patches.append(ref_patch_features(image[window], dy[window], dx[window]))
        tokens.append(np.mean(patches, axis=0))
    assert len(tokens[0]) == FEATURES
    return np.array(tokens)


def ref_hash(key, token, head):
    z = (key + (token * 1024 + head + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def ref_rotate(row, position, theta):
    """One head's vector after rotary embedding: pair i is (i, i + D/2), turned by position / theta^(2i/D)."""
    half = len(row) // 2
    out = np.zeros(len(row))
    for i in range(half):
        z = complex(row[i], row[i + half])
        z *= complex(math.cos(position * theta ** (-i / half)), math.sin(position * theta ** (-i / half)))
        out[i], out[i + half] = z.real, z.imag
    return out


def ref_key(latent, projection, bias, scale, table, key, token, position, heads, theta):
    """(H, D) key of one token: bias + content + noise, rotated head by head."""
    row = bias + latent.astype(np.float64) @ projection.astype(np.float64)
    dim = len(row) // heads
    out = []
    for head in range(heads):
        channels = slice(head * dim, (head + 1) * dim)
        start = ref_hash(int(key), token, head) % NOISE_TABLE
        made = row[channels] + scale[channels] * table[start : start + dim]
        out.append(ref_rotate(made, position, theta))
    return np.array(out)


def ref_sampled(times_s, end_s, fps):
    """Index of the frame on screen at 0, 1/fps, ... seconds after the first, until the last one's end."""
    shown = []
    while len(shown) / fps < end_s - times_s[0] - 1e-6:
        now = times_s[0] + len(shown) / fps
        shown.append(max(i for i, t in enumerate(times_s) if t <= now + 1e-6))
    return shown


def ref_pingpong(n_clip, n_frames):
    order = [0]
    step = 1
    while len(order) < n_frames:
        if not 0 <= order[-1] + step < n_clip:
            step = -step
        order.append(max(0, order[-1] + step) if n_clip > 1 else 0)
    return order[:n_frames]
