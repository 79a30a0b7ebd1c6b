"""Pixels of a stream: sprites over a textured background, with camera shake, light change, noise and scene cuts.

Backgrounds and exposure are those of the rendered video (`resv.rendered`). Every frame is square, RGB, uint8.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

from resv.mini.vocabulary import COLOURS, GRID, N_KINDS, SHAPES
from resv.mini.world import Difficulty, World
from resv.rendered import TEXTURE_PX, draw_background, expose, texture

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]

CELL_PX = 16
FRAME_PX = GRID * CELL_PX
SPRITE_PX = 13  # leaves room for the camera's shake within the cell
_SUBPIXELS = 4  # per side, to smooth the edges of a sprite
_TEXTURE_SEED = 11  # of all backgrounds; which places a split uses is the caller's business
_SPECTRUM_EXPONENT = 1.2  # natural images (Tolhurst 1992), as the rendered video
_GREY = 0.45  # mean of a texture
_SPRITE_RGB = {
    "red": (0.85, 0.12, 0.12),
    "green": (0.10, 0.70, 0.15),
    "blue": (0.15, 0.25, 0.90),
    "yellow": (0.90, 0.85, 0.10),
    "magenta": (0.85, 0.15, 0.80),
    "cyan": (0.10, 0.80, 0.85),
}
_NOISE_BANK = 1 << 20  # values; a frame starts anywhere in it


def _inside(shape: str, y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points of the square [-1, 1]^2 a shape covers; y points down."""
    radius = np.hypot(y, x)
    if shape == "disc":
        return radius <= 0.95
    if shape == "square":
        return np.maximum(abs(y), abs(x)) <= 0.8
    if shape == "triangle":
        return (y <= 0.85) & (y >= -0.95) & (abs(x) <= (y + 0.95) * 0.55)
    if shape == "ring":
        return (radius <= 1.0) & (radius >= 0.55)
    if shape == "cross":
        return (np.minimum(abs(y), abs(x)) <= 0.28) & (np.maximum(abs(y), abs(x)) <= 0.98)
    return (abs(x) <= 0.95) & (abs(abs(y) - 0.6) <= 0.28)


@lru_cache(maxsize=1)
def sprites() -> Float32:
    """(kinds, SPRITE_PX, SPRITE_PX, 4): colour and coverage of every kind, in the order of the token ids."""
    side = SPRITE_PX * _SUBPIXELS
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    out = np.empty((N_KINDS, SPRITE_PX, SPRITE_PX, 4), dtype=np.float32)
    for s, shape in enumerate(SHAPES):
        fine = _inside(shape, y, x).reshape(SPRITE_PX, _SUBPIXELS, SPRITE_PX, _SUBPIXELS)
        for c, colour in enumerate(COLOURS):
            out[s * len(COLOURS) + c, :, :, :3] = _SPRITE_RGB[colour]
            out[s * len(COLOURS) + c, :, :, 3] = fine.mean(axis=(1, 3))
    return out


@lru_cache(maxsize=64)
def background(place: int) -> Float32:
    """The periodic texture of a place, (TEXTURE_PX, TEXTURE_PX, 3)."""
    return texture(_TEXTURE_SEED, place, _SPECTRUM_EXPONENT)


@lru_cache(maxsize=1)
def _noise_bank() -> Float32:
    return np.random.default_rng(_TEXTURE_SEED).standard_normal(_NOISE_BANK, dtype=np.float32)


@njit(cache=True, nogil=True)
def _dim(canvas: Float32, grey: float, contrast: float) -> None:
    flat = canvas.reshape(-1)
    for i in range(len(flat)):
        flat[i] = grey + contrast * (flat[i] - grey)


@njit(cache=True, nogil=True)
def _draw_sprite(canvas: Float32, sprite: Float32, top: float, left: float) -> None:
    """Blend a sprite whose corner is at (top, left), sampled bilinearly; what leaves the canvas is not drawn."""
    side, size = sprite.shape[0], canvas.shape[0]
    y0, x0 = int(np.floor(top)), int(np.floor(left))
    fy, fx = np.float32(top - y0), np.float32(left - x0)
    for y in range(max(0, y0), min(size, y0 + side + 1)):
        for x in range(max(0, x0), min(size, x0 + side + 1)):
            cover = np.float32(0.0)
            for dy in range(2):
                for dx in range(2):
                    sy, sx = y - y0 - dy, x - x0 - dx
                    if 0 <= sy < side and 0 <= sx < side:
                        weight = (fy if dy else 1 - fy) * (fx if dx else 1 - fx)
                        cover += weight * sprite[sy, sx, 3]
            for c in range(3):
                canvas[y, x, c] += cover * (sprite[side // 2, side // 2, c] - canvas[y, x, c])


@njit(cache=True, nogil=True)
def _draw_frames(
    occupancy: NDArray[np.int8],
    textures: Float32,
    scene: NDArray[np.int64],
    corner: Float32,
    jitter: Float32,
    gain: Float32,
    contrast: float,
    kinds: Float32,
    bank: Float32,
    noise_start: NDArray[np.int64],
    noise: np.float32,
    out: UInt8,
) -> None:
    grid = np.int64(np.sqrt(occupancy.shape[1]))
    cell = out.shape[1] // grid
    margin = (cell - kinds.shape[1]) / 2.0
    canvas = np.empty(out.shape[1:], dtype=np.float32)
    n_values = canvas.size
    for t in range(len(out)):
        draw_background(canvas, textures[scene[t]], corner[t, 0], corner[t, 1])
        _dim(canvas, _GREY, contrast)
        for c in range(occupancy.shape[1]):
            if occupancy[t, c] >= 0:
                top = (c // grid) * cell + margin + jitter[t, 0]
                left = (c % grid) * cell + margin + jitter[t, 1]
                _draw_sprite(canvas, kinds[occupancy[t, c]], top, left)
        start = noise_start[t]
        expose(canvas, gain[t], noise * bank[start : start + n_values], out[t])


def draw(world: World, difficulty: Difficulty, places: range, rng: np.random.Generator) -> UInt8:
    """The frames of a world, (T, FRAME_PX, FRAME_PX, 3); every scene is at one of `places`, never twice in a row."""
    n_frames = len(world.occupancy)
    scene = np.zeros(n_frames, dtype=np.int64)
    for event in world.events:
        if event.what == "cut":
            scene[event.frame :] += 1
    n_scenes = int(scene[-1]) + 1
    start = int(rng.integers(len(places)))
    steps = np.cumsum(np.r_[start, rng.integers(1, len(places), n_scenes - 1)]) % len(places)
    shown = sorted(set(steps.tolist()))
    textures = np.stack([background(places[i]) for i in shown])
    which = np.array([shown.index(step) for step in steps.tolist()])
    # A hand that shakes: white jitter smoothed over about three frames, at the level's amplitude.
    white = rng.uniform(-1.0, 1.0, (n_frames + 2, 2))
    shake = difficulty.shake_px * (white[:-2] + white[1:-1] + white[2:]) / 2.0
    shake = np.clip(shake, -difficulty.shake_px, difficulty.shake_px)
    corner = rng.uniform(0, TEXTURE_PX, (n_scenes, 2))[scene] - shake
    period, phase = rng.uniform(20.0, 80.0), rng.uniform(0.0, 2 * np.pi, n_scenes)
    gain = 1.0 + difficulty.light_change * np.sin(2 * np.pi * np.arange(n_frames) / period + phase[scene])
    out = np.empty((n_frames, FRAME_PX, FRAME_PX, 3), dtype=np.uint8)
    noise_start = rng.integers(0, _NOISE_BANK - out[0].size, n_frames)
    _draw_frames(
        world.occupancy,
        textures,
        which[scene],
        corner.astype(np.float32),
        shake.astype(np.float32),
        gain.astype(np.float32),
        difficulty.clutter,
        sprites(),
        _noise_bank(),
        noise_start,
        np.float32(difficulty.noise),
        out,
    )
    return out
