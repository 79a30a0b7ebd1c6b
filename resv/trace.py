"""The nouns of a stream: `ModelShape`, `Step`, `KVTrace`, `LayerTrace`.

A trace yields keys, values and queries layer by layer and never holds more than one layer: a
full-size Llama-3-8B stream of 40,000 tokens is 2.6 GB of keys. Nothing here knows where a trace
comes from; see `synthetic/` (made from a video) and `trace_file.py` (recorded).

Alphabet used everywhere: `L` layers, `H` KV heads, `G` query heads per KV head, `T` tokens of the
stream, `N` new tokens of a step, `C` clusters, `D` head dim, `B` hash bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

Float32 = NDArray[np.float32]
StepKind = Literal["frame", "question", "decode"]
STEP_KINDS: tuple[StepKind, ...] = get_args(StepKind)


class VisionShape(BaseModel):
    """Shape of the vision encoder (a ViT) and of the projector behind it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    n_layers: int = Field(gt=0)
    hidden: int = Field(gt=0)
    ffn: int = Field(gt=0)
    n_heads: int = Field(gt=0)
    n_patches: int = Field(gt=0, description="tokens inside the encoder, e.g. (384 / 16)^2 = 576")
    patch_elements: int = Field(gt=0, description="inputs of the patch embedding, e.g. 3 * 16 * 16")
    image_px: int = Field(gt=0)
    images_per_frame: int = Field(default=1, gt=0, description="encoder passes of a frame: tiles, crops, views")
    projector_layers: int = Field(default=2, ge=1, description="linear layers from the encoder to the LLM")
    projector_widths: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        default=(), description="inputs of each projector layer; empty = the encoder's hidden, then the LLM's"
    )
    projector_tokens: int | None = Field(
        default=None, gt=0, description="rows that the projector works on per frame; None = the tokens of a frame"
    )
    weight_bits: int = Field(default=16, gt=0)

    @model_validator(mode="after")
    def _check(self) -> VisionShape:
        if self.projector_widths and len(self.projector_widths) != self.projector_layers:
            raise ValueError(f"projector_widths: {len(self.projector_widths)} for {self.projector_layers} layers")
        return self


class ModelShape(BaseModel):
    """Shape of a decoder-only model with grouped-query attention and SwiGLU feed-forward layers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    n_layers: int = Field(gt=0)
    hidden: int = Field(gt=0)
    n_query_heads: int = Field(gt=0)
    n_kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    ffn: int = Field(gt=0)
    vocab: int = Field(gt=0)
    rope_theta: float = Field(default=500_000.0, gt=1.0)
    tokens_per_frame: int = Field(default=10, gt=0)
    kv_bits: int = Field(default=16, gt=0, description="bits of one stored key or value element")
    kv_bytes_factor: float = Field(
        default=1.0, gt=0, le=1, description="stored bytes of keys and values / bytes at kv_bits: a quantised cache"
    )
    weight_bits: int = Field(default=16, gt=0)
    vision: VisionShape | None = None

    @model_validator(mode="after")
    def _check(self) -> ModelShape:
        if self.n_query_heads % self.n_kv_heads:
            raise ValueError(
                f"n_query_heads ({self.n_query_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: rotary embedding works on pairs")
        return self

    @property
    def group(self) -> int:
        """Query heads per KV head, G."""
        return self.n_query_heads // self.n_kv_heads

    @property
    def kv_bytes_per_token_layer(self) -> int:
        """Bytes of the keys and values of one token in one layer, all KV heads: 2·H·D·b."""
        return self.kv_bytes(self.n_kv_heads)

    def kv_bytes(self, n_tokens: int) -> int:
        """Bytes of the keys and values of `n_tokens`, each counted once per KV head; part bytes round up."""
        bits = 2 * n_tokens * self.head_dim * self.kv_bits
        return bits // 8 if self.kv_bytes_factor == 1.0 else math.ceil(bits * self.kv_bytes_factor / 8)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of the keys and values of one token, all layers: 2·L·H·D·b (131,072 for Llama-3-8B)."""
        return self.n_layers * self.kv_bytes_per_token_layer


@dataclass(frozen=True)
class Step:
    """One forward pass: a frame, a question, or one decoded token.

    `first_token` is the number of tokens in the cache before the step (the cache length S).
    `in_stream` says that the step's tokens are tokens `first_token ... first_token + n_tokens` of the
    stream; a step with `in_stream=False` is a probe whose tokens are dropped again after it.
    """

    kind: StepKind
    first_token: int
    n_tokens: int
    in_stream: bool = True


@dataclass(frozen=True)
class LayerTrace:
    """One layer of a trace. Tuples follow `KVTrace.probes`.

    keys, values : (H, T, D) float32, post-RoPE keys; `values` is None where nobody asked for them
    queries : per probe (H·G, N, D) float32, post-RoPE, query head h·G + g belongs to KV head h
    predicted_queries : per probe (H·G, N, D), the same query as the layer before predicts it; None for
        layer 0, which nothing precedes
    step_keys, step_values : per probe (H, N, D), keys and values of the probe's own new tokens
    """

    layer: int
    keys: Float32
    values: Float32 | None
    queries: tuple[Float32, ...]
    predicted_queries: tuple[Float32, ...] | None
    step_keys: tuple[Float32, ...]
    step_values: tuple[Float32, ...] | None


class KVTrace(Protocol):
    """A stream of tokens of one model. Implementations hold no more than one layer at a time."""

    @property
    def shape(self) -> ModelShape: ...

    @property
    def n_tokens(self) -> int:
        """T, the length of the stream in tokens."""
        ...

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps of the stream in order; their tokens tile [0, T)."""
        ...

    @property
    def probes(self) -> tuple[Step, ...]:
        """The steps whose queries the trace yields, ordered by `first_token`."""
        ...

    def layer(self, layer: int, *, values: bool = True) -> LayerTrace:
        """Make or load one layer, 0 <= layer < L. Pure: the same layer gives the same arrays."""
        ...

    def fingerprint(self) -> str:
        """Hash of everything that decides the arrays; equal fingerprints mean equal traces."""
        ...

    def describe(self) -> dict[str, object]:
        """What made the trace, for provenance (source, seed, frames, generator fields)."""
        ...
