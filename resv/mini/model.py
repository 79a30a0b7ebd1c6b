"""The model: a patch encoder of ten tokens per frame in front of a small `LlamaForCausalLM`.

A frame becomes one token per cell, row by row, and then one token of the whole frame, at whose place the narration is
read. Cell tokens are trained to lie near the embedding of the object they show, so a question's word finds them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from resv.mini.picture import CELL_PX, FRAME_PX
from resv.mini.vocabulary import GRID, N_CELLS, SILENT, VOCAB_SIZE, words
from resv.trace import ModelShape

TOKENS_PER_FRAME = N_CELLS + 1
_GLANCE_PX = 12  # side to which the whole frame is reduced for its one token
_PIXEL_MEAN, _PIXEL_SCALE = 0.45, 0.25  # of full scale: mean of a background, about its spread with objects


class MiniConfig(BaseModel):
    """Shape of the model. The defaults are those of the shipped weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_layers: int = Field(default=5, gt=0)
    hidden: int = Field(default=160, gt=0)
    n_query_heads: int = Field(default=4, gt=0)
    n_kv_heads: int = Field(default=2, gt=0)
    head_dim: int = Field(default=64, gt=0, multiple_of=2)
    ffn: int = Field(default=448, gt=0)
    patch_hidden: int = Field(default=192, gt=0, description="width inside the patch encoder")
    rope_theta: float = Field(
        default=500_000.0, gt=1, description="as Llama-3; half of the pairs then turn less than once in any stream"
    )
    max_positions: int = Field(default=12_288, gt=0, description="training stretches positions up to here")

    def llama(self) -> LlamaConfig:
        """The same as transformers wants it; word embedding and output share their weights."""
        return LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=self.hidden,
            intermediate_size=self.ffn,
            num_hidden_layers=self.n_layers,
            num_attention_heads=self.n_query_heads,
            num_key_value_heads=self.n_kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=self.max_positions,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            tie_word_embeddings=True,
            initializer_range=self.hidden**-0.5,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )


def _perceptron(n_in: int, n_inside: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, n_inside), nn.GELU(), nn.Linear(n_inside, n_out))


class PatchEncoder(nn.Module):
    """Frames (..., 48, 48, 3) uint8 to what they show and where, each (..., 10, hidden)."""

    def __init__(self, config: MiniConfig) -> None:
        super().__init__()
        self.cell = _perceptron(CELL_PX * CELL_PX * 3, config.patch_hidden, config.hidden)
        self.glance = _perceptron(_GLANCE_PX * _GLANCE_PX * 3, config.patch_hidden // 2, config.hidden)
        self.place = nn.Parameter(torch.randn(TOKENS_PER_FRAME, config.hidden) * config.hidden**-0.5)

    def content(self, frames: Tensor) -> Tensor:
        """What every token shows, without its place; rows of length one."""
        lead = frames.shape[:-3]
        pixels = (frames.reshape(-1, FRAME_PX, FRAME_PX, 3).float() / 255.0 - _PIXEL_MEAN) / _PIXEL_SCALE
        n = len(pixels)
        cells = pixels.reshape(n, GRID, CELL_PX, GRID, CELL_PX, 3).transpose(2, 3).reshape(n, N_CELLS, -1)
        block = FRAME_PX // _GLANCE_PX
        glance = pixels.reshape(n, _GLANCE_PX, block, _GLANCE_PX, block, 3).mean(dim=(2, 4)).reshape(n, 1, -1)
        tokens = torch.cat([self.cell(cells), self.glance(glance)], dim=1)
        return functional.normalize(tokens.float(), dim=-1).reshape(*lead, TOKENS_PER_FRAME, -1)

    def forward(self, frames: Tensor) -> Tensor:
        return self.content(frames) + self.place


class MiniNetwork(nn.Module):
    """Encoder and language model, as they are trained and saved."""

    def __init__(self, config: MiniConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = PatchEncoder(config)
        self.llm = LlamaForCausalLM(config.llama())

    def n_parameters(self) -> int:
        """Trained values; those shared by word embedding and output count once."""
        return sum(parameter.numel() for parameter in self.parameters())


def build_network(config: MiniConfig, seed: int) -> MiniNetwork:
    """A freshly initialised network; the same seed gives the same values."""
    torch.manual_seed(seed)
    return MiniNetwork(config)


@dataclass(frozen=True)
class MiniModel:
    """A trained model, ready to stream.

    Feed `llm` with `inputs_embeds`: `encode(frames)[:, t]` for frame t, `embed(ids)` for a question, at consecutive
    positions. The answer is the largest logit at a question's last token, among its choices or the whole vocabulary;
    the narration is read at a frame's last token, see `narrate`. Answers and narration may be fed back or not: it was
    trained with both.
    """

    network: MiniNetwork
    metadata: dict[str, str] = field(default_factory=dict)

    def card(self) -> dict[str, Any]:
        """What the model card states: recipe, curve, accuracy by task and length; empty before it is measured."""
        return dict(json.loads(self.metadata.get("card", "{}")))

    @property
    def llm(self) -> LlamaForCausalLM:
        return self.network.llm

    @property
    def config(self) -> MiniConfig:
        return self.network.config

    @property
    def vocab(self) -> tuple[str, ...]:
        """The word of every token id."""
        return words()

    @property
    def silent_id(self) -> int:
        return SILENT

    @property
    def tokens_per_frame(self) -> int:
        return TOKENS_PER_FRAME

    @property
    def max_frames(self) -> int:
        """Frames that fit the positions the model was trained for, a tenth of them left to questions."""
        return int(self.config.max_positions * 0.9) // TOKENS_PER_FRAME

    def check_length(self, n_frames: int) -> None:
        """Raises ValueError if a stream of so many frames does not fit the positions; for who feeds frames singly."""
        if n_frames > self.max_frames:
            raise ValueError(f"{n_frames} frames are more than the model has positions for: at most {self.max_frames}")

    @property
    def shape(self) -> ModelShape:
        """The language model as the simulator's noun; the patch encoder is too small to count."""
        config = self.config
        return ModelShape(
            name="mini",
            n_layers=config.n_layers,
            hidden=config.hidden,
            n_query_heads=config.n_query_heads,
            n_kv_heads=config.n_kv_heads,
            head_dim=config.head_dim,
            ffn=config.ffn,
            vocab=VOCAB_SIZE,
            rope_theta=config.rope_theta,
            tokens_per_frame=TOKENS_PER_FRAME,
        )

    def encode(self, frames: Any) -> Tensor:
        """Tokens (B, T, 10, hidden) of frames (B, T, 48, 48, 3) uint8, numpy or torch.

        Raises ValueError for another shape, and for more frames than the positions allow.
        """
        pixels = torch.as_tensor(frames)
        if pixels.ndim != 5 or pixels.shape[2:] != (FRAME_PX, FRAME_PX, 3) or pixels.dtype != torch.uint8:
            raise ValueError(
                f"frames are {tuple(pixels.shape)} {pixels.dtype}, must be (B, T, {FRAME_PX}, {FRAME_PX}, 3) uint8"
            )
        self.check_length(pixels.shape[1])
        with torch.no_grad():
            return torch.as_tensor(self.network.encoder(pixels))

    def embed(self, ids: Sequence[int] | Tensor) -> Tensor:
        """Embeddings (B, n, hidden) of token ids (B, n), or (1, n, hidden) of a plain sequence."""
        tokens = torch.as_tensor(ids, dtype=torch.long)
        with torch.no_grad():
            return torch.as_tensor(self.llm.get_input_embeddings()(tokens if tokens.ndim == 2 else tokens[None]))

    def narrate(self, logits: Tensor, threshold: float = 0.0) -> Tensor:
        """Token ids to say, of logits (..., vocabulary) at frames' last tokens; `silent_id` where nothing.

        SILENT is ruled out where its probability is below `threshold`, as VideoLLM-online does (CVPR 2024).
        """
        probability = logits.float().softmax(-1)
        speak = probability[..., SILENT] < threshold
        ruled_out = probability.clone()
        ruled_out[..., SILENT] = torch.where(speak, 0.0, probability[..., SILENT])
        return ruled_out.argmax(-1)
