"""Model families of transformers: where the decoder lies, how a frame becomes embeddings, how positions count.

One small class per family, one line in `FAMILIES` per `model_type`. Knows layouts of modules and nothing of policies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from resv.huggingface.frames import CLIP_MEAN, CLIP_STD, HALF, Channels, fitting_size, patches, pixel_values
from resv.trace import StepKind

Grid = tuple[int, int]
"""Rows and columns of a frame's tokens."""

_DEFAULT_SECONDS_PER_STEP = 1.0  # get_rope_index of transformers 5.23 where nobody gives the time between steps


class UnsupportedModelError(ValueError):
    """A model whose attention cannot be taken over: what is missing, and which architectures are supported."""


@dataclass(frozen=True)
class Cursor:
    """Where a stream's next token stands.

    following : position of the next text token;  run_start, run_steps : of the run of frames the stream is in
    """

    following: int = 0
    run_start: int = 0
    run_steps: int = 0


class Family:
    """A plain decoder: text only, one position per token."""

    frames_per_step: ClassVar[int] = 0
    several_positions: ClassVar[bool] = False  # M-RoPE

    def check(self, model: Any) -> None:
        """Raise UnsupportedModelError where a layer does not attend to the whole cache."""
        config = self.decoder(model).config
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"} or (config.model_type == "mistral" and config.sliding_window is not None):
            raise UnsupportedModelError(
                f"{type(model).__name__} has layers of sliding-window attention; supported are decoders whose layers "
                "all attend to the whole cache"
            )

    def decoder(self, model: Any) -> Any:
        """The text model: embeddings in, hidden states out."""
        return model.model if hasattr(model, "lm_head") else model

    def layers(self, model: Any) -> nn.ModuleList:
        layers: nn.ModuleList = self.decoder(model).layers
        return layers

    def rotary(self, model: Any) -> Any:
        """The module of rotary embedding, with `inv_freq` (D/2,) and `rope_type`."""
        return self.decoder(model).rotary_emb

    def embed_tokens(self, model: Any, ids: Tensor) -> Tensor:
        """Token ids (B, n) as embeddings (B, n, hidden)."""
        embedded: Tensor = model.get_input_embeddings()(ids)
        return embedded

    def logits(self, model: Any, hidden: Tensor) -> Tensor:
        """Hidden states (B, n, hidden) as logits (B, n, V); raises ValueError for a model without an output head."""
        head = model.get_output_embeddings()
        if head is None:
            raise ValueError(
                f"{type(model).__name__} has no output head; logits need the model with one (…ForCausalLM)"
            )
        made: Tensor = head(hidden)
        return made

    def grid(self, model: Any, height: int, width: int) -> Grid | None:
        """Tokens of a frame of this size, in rows and columns; None where there is no vision tower."""
        return None

    def encode_frame(self, model: Any, frames: Tensor) -> Tensor:
        """Frames (B, H, W, 3) uint8, or preprocessed (B, 3, H', W') of a float type, as embeddings (B, n, hidden).

        A family of several frames per step takes (B, frames, H, W, 3) too; where one lacks, the last is repeated.
        """
        raise UnsupportedModelError(f"{type(model).__name__} has no vision tower and takes no frames; give embeddings")

    def step_positions(
        self, cursor: Cursor, n_new: int, stage: StepKind, grid: Grid | None, seconds_per_step: float
    ) -> tuple[Tensor, Cursor]:
        """Positions of a step's tokens, (n,) or, with several per token, (3, n), and the cursor behind them."""
        return cursor.following + torch.arange(n_new), Cursor(cursor.following + n_new)


class SquareFrames(Family):
    """A vision tower that takes one square frame at a time."""

    frames_per_step: ClassVar[int] = 1
    mean: ClassVar[Channels] = HALF
    std: ClassVar[Channels] = HALF

    def _pixels(self, model: Any, frames: Tensor) -> Tensor:
        """(B, 1, 3, side, side) on the model's device in its dtype"""
        side = model.config.vision_config.image_size
        pixels = pixel_values(frames.to(model.device), (side, side), self.mean, self.std)
        if pixels.ndim == 4:
            pixels = pixels[:, None]
        if pixels.ndim != 5 or pixels.shape[1] != 1:
            raise ValueError(f"frames are {tuple(frames.shape)}; allowed: one frame per batch item and step")
        return pixels.to(model.dtype)

    def _side(self, model: Any) -> int:
        """Patches along a side."""
        vision = model.config.vision_config
        return int(vision.image_size // vision.patch_size)


class LlavaOnevision(SquareFrames):
    """LLaVA-OneVision: every frame's patches are pooled to half a side, 14 x 14 = 196 tokens.

    Mean and deviation are SigLIP's, whose processor the released checkpoints were converted with.
    """

    def decoder(self, model: Any) -> Any:
        return _inner(model).language_model

    def grid(self, model: Any, height: int, width: int) -> Grid | None:
        side = math.ceil(self._side(model) / 2)
        return side, side

    def encode_frame(self, model: Any, frames: Tensor) -> Tensor:
        """As `Family.encode_frame`; the newline row that ends every call is left out: it ends a video, not a frame."""
        made = _inner(model).get_video_features(
            self._pixels(model, frames),
            vision_feature_layer=model.config.vision_feature_layer,
            vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        )
        embeds: Tensor = made.pooler_output[:, :-1]
        return embeds


class SmolVLM(SquareFrames):
    """SmolVLM: `scale_factor` x `scale_factor` patches become one token; video frames are not split into tiles."""

    def decoder(self, model: Any) -> Any:
        return _inner(model).text_model

    def grid(self, model: Any, height: int, width: int) -> Grid | None:
        side = self._side(model) // model.config.scale_factor
        return side, side

    def encode_frame(self, model: Any, frames: Tensor) -> Tensor:
        rows = _inner(model).get_image_features(self._pixels(model, frames)).pooler_output
        return torch.stack(list(rows))


class Qwen25VL(Family):
    """Qwen2.5-VL: two frames per step, frames of any size, three positions per token (M-RoPE).

    A run of frame steps counts as one video: rows and columns count from where it began, time from step to step, and
    text goes on behind the largest position of the run. Sizes: `vision_config.min_pixels` and `.max_pixels` where
    given, else the video processor's.
    """

    several_positions: ClassVar[bool] = True
    frames_per_step: ClassVar[int] = 2  # temporal_patch_size of every released checkpoint
    # source: Qwen2VLVideoProcessor of transformers 5.23, shortest and longest edge
    least_pixels: ClassVar[int] = 128 * 28 * 28
    most_pixels: ClassVar[int] = 768 * 28 * 28

    def decoder(self, model: Any) -> Any:
        return _inner(model).language_model

    def check(self, model: Any) -> None:
        super().check(model)
        if model.config.vision_config.temporal_patch_size != self.frames_per_step:
            raise UnsupportedModelError(
                f"temporal_patch_size is {model.config.vision_config.temporal_patch_size}; supported: 2 frames per step"
            )

    def _size(self, model: Any, height: int, width: int) -> tuple[int, int]:
        vision = model.config.vision_config
        least = getattr(vision, "min_pixels", None) or self.least_pixels
        most = getattr(vision, "max_pixels", None) or self.most_pixels
        return fitting_size(height, width, vision.patch_size * vision.spatial_merge_size, least, most)

    def grid(self, model: Any, height: int, width: int) -> Grid | None:
        vision = model.config.vision_config
        side = vision.patch_size * vision.spatial_merge_size
        high, wide = self._size(model, height, width)
        return high // side, wide // side

    def encode_frame(self, model: Any, frames: Tensor) -> Tensor:
        vision = model.config.vision_config
        frames = frames.to(model.device)
        is_plain = frames.is_floating_point()
        if frames.ndim == 4:
            frames = frames[:, None]
        if frames.ndim != 5 or not 1 <= frames.shape[1] <= self.frames_per_step:
            raise ValueError(f"frames are {tuple(frames.shape)}; allowed: one or two frames per batch item and step")
        height, width = frames.shape[-2:] if is_plain else frames.shape[-3:-1]
        pixels = pixel_values(frames, self._size(model, height, width), CLIP_MEAN, CLIP_STD)
        if pixels.shape[1] < self.frames_per_step:
            pixels = torch.cat([pixels, pixels[:, -1:]], dim=1)
        rows = patches(pixels, vision.patch_size, vision.spatial_merge_size, self.frames_per_step)
        thw = torch.tensor([[1, pixels.shape[-2] // vision.patch_size, pixels.shape[-1] // vision.patch_size]])
        thw = thw.repeat(len(frames), 1).to(model.device)
        return torch.stack(list(_inner(model).get_video_features(rows, thw).pooler_output))

    def step_positions(
        self, cursor: Cursor, n_new: int, stage: StepKind, grid: Grid | None, seconds_per_step: float
    ) -> tuple[Tensor, Cursor]:
        if stage != "frame":
            positions, after = super().step_positions(cursor, n_new, stage, grid, seconds_per_step)
            return positions.expand(3, -1), after
        rows, columns = _square(n_new) if grid is None else grid
        if rows * columns != n_new:
            raise ValueError(f"a frame step of {n_new} tokens has a grid of {rows} x {columns}")
        start = cursor.following if cursor.run_steps == 0 else cursor.run_start
        at = start + int(cursor.run_steps * seconds_per_step)
        row = start + torch.arange(rows).repeat_interleave(columns)
        column = start + torch.arange(columns).repeat(rows)
        positions = torch.stack([torch.full((n_new,), at), row, column])
        following = max(cursor.following, int(positions.max()) + 1)
        return positions, Cursor(following, start, cursor.run_steps + 1)


def _inner(model: Any) -> Any:
    """The model without its output head."""
    return model.model if hasattr(model, "lm_head") else model


def _square(n_tokens: int) -> Grid:
    side = math.isqrt(n_tokens)
    if side * side != n_tokens:
        raise ValueError(f"a frame step of {n_tokens} tokens is not square: give its grid (rows, columns)")
    return side, side


FAMILIES: dict[str, type[Family]] = {
    "llama": Family,
    "qwen2": Family,
    "qwen3": Family,
    "mistral": Family,
    "llava_onevision": LlavaOnevision,
    "qwen2_5_vl": Qwen25VL,
    "smolvlm": SmolVLM,
}


def family_of(model: Any) -> Family:
    """The family of a model; raises UnsupportedModelError for another architecture, naming what is missing."""
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    if kind not in FAMILIES:
        what = f"model_type '{kind}'" if kind else "no config with a model_type"
        raise UnsupportedModelError(
            f"{type(model).__name__} has {what}, for which no family says where its decoder layers, rotary embedding "
            f"and vision tower lie; supported are {', '.join(FAMILIES)}"
        )
    family = FAMILIES[kind]()
    family.check(model)
    return family


def seconds_to_positions(model: Any, seconds_per_step: float | None) -> float:
    """Temporal positions from one frame step to the next: seconds times `tokens_per_second` of the vision tower."""
    per_second = getattr(getattr(model.config, "vision_config", None), "tokens_per_second", 1)
    return float(per_second) * (_DEFAULT_SECONDS_PER_STEP if seconds_per_step is None else seconds_per_step)
