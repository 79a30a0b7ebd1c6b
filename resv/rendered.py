"""The embedded default video: textured objects over a natural-spectrum background, rendered on demand.

Scenes follow each other with hard cuts; within a scene the camera pans, the light changes and objects
move on smooth paths. Every frame is a pure function of the configuration and of its time in seconds,
so a video of any length costs nothing until it is read. Knows nothing of features and tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]

TEXTURE_PX = 256  # period of a texture; assumed: wide enough that a pan does not repeat within a frame
_CHROMA_CONTRAST = 0.35  # assumed: natural images vary less in chroma than in luma
_TEXTURE_KEY, _CUT_KEY, _SCENE_KEY, _NOISE_KEY = 1, 2, 3, 4  # tell the draws of one seed apart
_LUMA_CONTRAST = 0.22  # assumed: rms contrast of photographs is about 0.2 of full scale


class RenderedVideo(BaseModel):
    """What the rendered video shows. Lengths in units of the frame's side, times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=7, ge=0)
    scene_cut_every_s: float = Field(default=12.0, gt=0, description="mean time between hard cuts")
    n_places: int = Field(default=6, gt=0, description="backgrounds the cuts alternate between")
    spectrum_exponent: float = Field(
        default=1.2, ge=0, le=3, description="amplitude falls as 1/f^exponent; 1.2 is natural (Tolhurst 1992)"
    )
    pan_per_s: float = Field(default=0.02, ge=0, le=2, description="largest speed of the camera")
    light_change: float = Field(default=0.2, ge=0, lt=1, description="amplitude of the illumination's swing")
    light_period_s: float = Field(default=40.0, gt=0)
    n_objects: int = Field(default=4, ge=0, le=64)
    object_radius: float = Field(default=0.14, gt=0, le=0.5)
    object_speed_per_s: float = Field(default=0.08, ge=0, le=5)
    sensor_noise: float = Field(default=0.005, ge=0, le=0.5, description="rms, of full scale")


@njit(cache=True, nogil=True)
def _sample(texture: Float32, y: float, x: float, channel: int) -> float:
    """Bilinear sample of a periodic texture at (y, x) in pixels."""
    side = texture.shape[0]
    y0, x0 = int(np.floor(y)), int(np.floor(x))
    fy, fx = np.float32(y - y0), np.float32(x - x0)
    y0, x0 = y0 % side, x0 % side
    y1, x1 = (y0 + 1) % side, (x0 + 1) % side
    top = texture[y0, x0, channel] * (1 - fx) + texture[y0, x1, channel] * fx
    bottom = texture[y1, x0, channel] * (1 - fx) + texture[y1, x1, channel] * fx
    return float(top * (1 - fy) + bottom * fy)


@njit(cache=True, nogil=True)
def draw_background(canvas: Float32, texture: Float32, pan_y: float, pan_x: float) -> None:
    """The texture shifted by the pan: every pixel has the same fraction, so its weights are computed once."""
    size, side = canvas.shape[0], texture.shape[0]
    y0, x0 = int(np.floor(pan_y)), int(np.floor(pan_x))
    fy, fx = np.float32(pan_y - y0), np.float32(pan_x - x0)
    one = np.float32(1.0)
    for y in range(size):
        top, bottom = texture[(y0 + y) % side], texture[(y0 + y + 1) % side]
        for x in range(size):
            left, right = (x0 + x) % side, (x0 + x + 1) % side
            for c in range(3):
                upper = top[left, c] * (one - fx) + top[right, c] * fx
                lower = bottom[left, c] * (one - fx) + bottom[right, c] * fx
                canvas[y, x, c] = upper * (one - fy) + lower * fy


@njit(cache=True, nogil=True)
def _draw_discs(canvas: Float32, texture: Float32, discs: Float32) -> None:
    """Discs (n, 4) as (centre y, centre x, radius, texture shift), all in pixels, later ones in front."""
    size = canvas.shape[0]
    for cy, cx, radius, shift in discs:
        for y in range(max(0, int(cy - radius)), min(size, int(cy + radius) + 2)):
            for x in range(max(0, int(cx - radius)), min(size, int(cx + radius) + 2)):
                cover = radius + 0.5 - np.sqrt((y - cy) ** 2 + (x - cx) ** 2)
                if cover <= 0.0:
                    continue
                alpha = min(cover, 1.0)
                for c in range(3):
                    colour = _sample(texture, y - cy + shift, x - cx + 2.0 * shift, c)
                    canvas[y, x, c] += alpha * (colour - canvas[y, x, c])


@njit(cache=True, nogil=True)
def expose(canvas: Float32, gain: float, noise: Float32, out: UInt8) -> None:
    flat, result = canvas.reshape(-1), out.reshape(-1)
    for i in range(len(flat)):
        value = 255.0 * (gain * flat[i] + noise[i])
        result[i] = np.uint8(min(max(value + 0.5, 0.0), 255.0))


@lru_cache(maxsize=16)
def texture(seed: int, place: int, exponent: float) -> Float32:
    """A periodic colour texture (side, side, 3) around 0.5 whose amplitude spectrum falls as 1/f^exponent."""
    rng = np.random.default_rng([seed, _TEXTURE_KEY, place])
    fy = np.fft.fftfreq(TEXTURE_PX)[:, None]
    fx = np.fft.rfftfreq(TEXTURE_PX)[None, :]
    frequency = np.maximum(np.hypot(fy, fx), 1.0 / TEXTURE_PX)
    white = rng.standard_normal((3, TEXTURE_PX, TEXTURE_PX))
    planes = np.fft.irfft2(np.fft.rfft2(white) / frequency**exponent, s=white.shape[1:])
    planes -= planes.mean(axis=(1, 2), keepdims=True)
    planes /= planes.std(axis=(1, 2), keepdims=True)
    luma, red, blue = planes * np.array([1.0, _CHROMA_CONTRAST, _CHROMA_CONTRAST])[:, None, None]
    tint = rng.uniform(-0.12, 0.12, 3)
    colours = np.stack([luma + red, luma - 0.5 * (red + blue), luma + blue], axis=-1)
    return np.ascontiguousarray(0.45 + tint + _LUMA_CONTRAST * colours, dtype=np.float32)


def _scene_at(video: RenderedVideo, time_s: float) -> int:
    """Index of the scene; the cut that opens scene k lies up to half an interval before or after k intervals."""
    k = int(time_s // video.scene_cut_every_s)
    for scene in (k + 1, k):
        jitter = np.random.default_rng([video.seed, _CUT_KEY, scene]).uniform(-0.5, 0.5)
        if scene == 0 or time_s >= (scene + jitter) * video.scene_cut_every_s:
            return scene
    return k - 1


@lru_cache(maxsize=4)
def _scene_parameters(video: RenderedVideo, scene: int) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    """(place, phases (8,), discs (n_objects, 7)): what stays the same while a scene lasts."""
    rng = np.random.default_rng([video.seed, _SCENE_KEY, scene])
    place = int(rng.integers(video.n_places))
    return place, rng.uniform(0.0, 2 * np.pi, 8), rng.uniform(0.0, 1.0, (video.n_objects, 7))


def _discs_at(video: RenderedVideo, draws: NDArray[np.float64], time_s: float, size_px: int) -> Float32:
    """Positions of the objects: each swings about its own centre, at its own share of the speed."""
    swing = 0.15 + 0.2 * draws[:, 0]
    rate = video.object_speed_per_s * (0.4 + 0.6 * draws[:, 1]) / swing  # rad/s
    y = draws[:, 2] + swing * np.sin(rate * time_s + 2 * np.pi * draws[:, 3])
    x = draws[:, 4] + swing * np.sin(0.73 * rate * time_s + 2 * np.pi * draws[:, 5])
    radius = video.object_radius * (0.6 + 0.8 * draws[:, 6])
    shift = TEXTURE_PX / size_px * draws[:, 3]
    return np.stack([y, x, radius, shift], axis=1).astype(np.float32) * np.float32(size_px)


def render_frame(video: RenderedVideo, time_s: float, size_px: int) -> UInt8:
    """The frame shown at `time_s`, (size_px, size_px, 3) RGB."""
    scene = _scene_at(video, time_s)
    place, phase, draws = _scene_parameters(video, scene)
    sway_s = np.array([23.0, 31.0])  # assumed: periods of the pan in y and x, incommensurate
    reach = video.pan_per_s * sway_s / (2 * np.pi) * size_px
    pan = reach * np.sin(2 * np.pi * time_s / sway_s + phase[:2]) + TEXTURE_PX * phase[2:4]
    canvas = np.empty((size_px, size_px, 3), dtype=np.float32)
    draw_background(canvas, texture(video.seed, place, video.spectrum_exponent), pan[0], pan[1])
    objects = texture(video.seed, video.n_places + place, video.spectrum_exponent)
    _draw_discs(canvas, objects, _discs_at(video, draws, time_s, size_px))
    gain = 1.0 + video.light_change * np.sin(2 * np.pi * time_s / video.light_period_s + phase[4])
    noise_rng = np.random.default_rng([video.seed, _NOISE_KEY, round(time_s * 1e6)])
    noise = np.float32(video.sensor_noise) * noise_rng.standard_normal(canvas.size, dtype=np.float32)
    out = np.empty(canvas.shape, dtype=np.uint8)
    expose(canvas, gain, noise, out)
    return out


def render(video: RenderedVideo, fps: float, size_px: int, start_s: float = 0.0) -> Iterator[UInt8]:
    """Frames of the endless video at `fps` from `start_s` on."""
    index = 0
    while True:
        yield render_frame(video, start_s + index / fps, size_px)
        index += 1
