"""What one stored token looks like, and what a step's record says. Nouns only; no file is touched here.

Rows of bytes know no policy: a folder written under one policy can be read under any other. With one gap: text waits in
memory for the next frame, and where a policy has evicted some of it by then (StreamingLLM, Flash-VStream), zeros stand
in its place. Frames are written before anything can evict them.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from resv.trace import ModelShape, StepKind

Rows = NDArray[np.uint8]
DType = Literal["float32", "bfloat16", "float16"]
ELEMENT_BYTES: dict[DType, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Layout:
    """Keys and values of one token of one layer lie in one row (B·H, 2, D): of each head its key, then its value.

    weights : fingerprint of the weights that made them, "" where nobody took one
    """

    model: str
    n_layers: int
    n_kv_heads: int
    head_dim: int
    dtype: DType
    batch: int = 1
    weights: str = ""

    def __post_init__(self) -> None:
        if self.dtype not in ELEMENT_BYTES:
            raise ValueError(f"dtype is {self.dtype!r}; allowed: {', '.join(get_args(DType))}")

    @classmethod
    def of(cls, shape: ModelShape, dtype: DType, batch: int = 1, weights: str = "") -> Layout:
        return cls(shape.name, shape.n_layers, shape.n_kv_heads, shape.head_dim, dtype, batch, weights)

    @property
    def lanes(self) -> int:
        """KV heads of all batch items, B·H; lane b·H + h is head h of item b."""
        return self.batch * self.n_kv_heads

    @property
    def unit_bytes(self) -> int:
        """Key and value of one token in one lane of one layer: the least that is moved."""
        return 2 * self.head_dim * ELEMENT_BYTES[self.dtype]

    @property
    def row_bytes(self) -> int:
        return self.lanes * self.unit_bytes

    @property
    def token_bytes(self) -> int:
        """Of all layers."""
        return self.n_layers * self.row_bytes

    def difference(self, other: Layout) -> str:
        """'head_dim is 64, not 128; ...' of `self` against `other`; empty where a cache fits both.

        Equal weights are the same model, whatever its name.
        """
        mine, theirs = asdict(self), asdict(other)
        if not (self.weights and other.weights):
            mine["weights"] = theirs["weights"] = ""
        elif self.weights == other.weights:
            mine["model"] = theirs["model"]
        return "; ".join(f"{name} is {mine[name]}, not {theirs[name]}" for name in mine if mine[name] != theirs[name])


@dataclass(frozen=True)
class StepNote:
    """What a step was.

    timestamp_s : when in the video;  grid : rows and columns of a frame's tokens, where it matters
    n_frames : of video that a frame step stands for
    """

    kind: StepKind = "frame"
    timestamp_s: float | None = None
    grid: tuple[int, int] | None = None
    n_frames: int = 1


@dataclass(frozen=True)
class StepRecord:
    """One step that has landed in all layers.

    checksums : CRC-32 of the step's bytes, per layer;  n_bytes : of all layers
    """

    step: int
    first_token: int
    n_tokens: int
    n_bytes: int
    checksums: tuple[int, ...]
    kind: StepKind = "frame"
    timestamp_s: float | None = None
    grid: tuple[int, int] | None = None
    n_frames: int = 1

    def line(self) -> bytes:
        """The record as one line of the index, its own checksum in front."""
        text = json.dumps(asdict(self), separators=(",", ":"))
        return f"{zlib.crc32(text.encode()):08x} {text}\n".encode()

    @classmethod
    def of_line(cls, line: bytes) -> StepRecord | None:
        """The record of a whole line; None for half of one, or one that was altered."""
        checksum, _, text = line.rstrip(b"\n").partition(b" ")
        if not line.endswith(b"\n") or checksum != f"{zlib.crc32(text):08x}".encode():
            return None
        fields: dict[str, Any] = json.loads(text)
        for name, value in fields.items():
            fields[name] = tuple(value) if isinstance(value, list) else value
        return cls(**fields)
