"""Pixels of frames as the vision towers expect them: resized, scaled, normalised, cut into patches.

What the processors of transformers 5.23 do to a video, on the model's device and without rounding the resized frame
to bytes in between. Knows no model; each family gives its own sizes and statistics.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

Channels = tuple[float, float, float]

# source: transformers 5.23, image_utils.py
HALF: Channels = (0.5, 0.5, 0.5)  # IMAGENET_STANDARD_MEAN and _STD, also SigLIP's own
CLIP_MEAN: Channels = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Channels = (0.26862954, 0.26130258, 0.27577711)

_LONGEST_ASPECT = 200  # source: smart_resize, transformers 5.23, video_processing_qwen2_vl.py


def pixel_values(frames: Tensor, size: tuple[int, int], mean: Channels, std: Channels) -> Tensor:
    """Frames (..., H, W, 3) uint8 as float32 (..., 3, height, width), normalised.

    Float frames (..., 3, height, width) are preprocessed already and come back as they are; raises ValueError where
    they have another size.
    """
    if frames.is_floating_point():
        if frames.shape[-3] != 3 or tuple(frames.shape[-2:]) != size:
            raise ValueError(f"preprocessed frames are {tuple(frames.shape)}; allowed: (..., 3, {size[0]}, {size[1]})")
        return frames
    if frames.dtype != torch.uint8 or frames.shape[-1] != 3:
        raise ValueError(
            f"frames are {tuple(frames.shape)} of {frames.dtype}; allowed: (..., H, W, 3) of uint8, or preprocessed "
            "ones (..., 3, height, width) of a floating-point type"
        )
    flat = frames.reshape(-1, *frames.shape[-3:]).permute(0, 3, 1, 2).float()
    resized = interpolate(flat, size, mode="bicubic", antialias=True).clamp(0, 255) / 255
    centre, spread = (torch.tensor(c, device=frames.device)[:, None, None] for c in (mean, std))
    return ((resized - centre) / spread).reshape(*frames.shape[:-3], 3, *size)


def fitting_size(height: int, width: int, factor: int, least_pixels: int, most_pixels: int) -> tuple[int, int]:
    """Height and width divisible by `factor`, their product within the bounds, at the frame's aspect ratio.

    Raises ValueError where one side is more than 200 times the other. Source: smart_resize of transformers 5.23.
    """
    if max(height, width) > _LONGEST_ASPECT * min(height, width):
        raise ValueError(f"a frame of {height} x {width} pixels; allowed: one side at most {_LONGEST_ASPECT} times")
    area = height * width
    high, wide = round(height / factor) * factor, round(width / factor) * factor
    if high * wide > most_pixels:
        return _scaled(height, width, factor, math.sqrt(most_pixels / area), "floor")
    if high * wide < least_pixels:
        return _scaled(height, width, factor, math.sqrt(least_pixels / area), "ceil")
    return high, wide


def _scaled(height: int, width: int, factor: int, by: float, to: Literal["floor", "ceil"]) -> tuple[int, int]:
    whole = math.floor if to == "floor" else math.ceil
    high, wide = (max(factor, whole(side * by / factor) * factor) for side in (height, width))
    return high, wide


def patches(pixels: Tensor, patch: int, merge: int, temporal: int) -> Tensor:
    """(B, temporal, 3, height, width) cut into rows (B · patches, 3 · temporal · patch²), merged patches in a run.

    Source: patchify of transformers 5.23, video_processing_qwen2_vl.py.
    """
    batch, _, channels, height, width = pixels.shape
    rows, columns = height // patch, width // patch
    cut = pixels.reshape(batch, temporal, channels, rows // merge, merge, patch, columns // merge, merge, patch)
    ordered = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return ordered.reshape(batch * rows * columns, channels * temporal * patch * patch)
