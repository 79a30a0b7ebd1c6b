"""Oaken (ISCA 2025): keys and values in about 4.8 bits, quantised as they come; everything is attended to.

Thresholds found beforehand put each element of a token into one of three groups by size, each quantised between
its own least and largest value: the middle in 4 bits, outliers and near-zeros in 5.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from resv._arrays import Array, in_float32, to_numpy
from resv.blocks import token_major
from resv.policies.base import Granularity, Policy, PolicyState
from resv.policies.window import WindowState
from resv.rope import frequencies, rotated
from resv.selection import Counts, Float32, LayerSelection
from resv.trace import ModelShape, StepKind

# Groups in the order of the kernel: outer, middle, inner.
_LEVELS = np.array([32, 16, 32], dtype=np.int64)
_SLOT_BITS = 4  # of every element
_RECORD_BITS = 8  # beside the slot of an element outside the middle: place, group and sign
_SCALE_BITS = 3 * 2 * 16  # least and largest value of three groups in fp16, per token for K and for V


class OakenState(WindowState):
    def select(self, queries: Array, step_keys: Array, stage: StepKind = "frame") -> LayerSelection:
        """Everything; the step's own tokens are quantised, the cached ones are read and restored."""
        tokens = self.n_cached + step_keys.shape[1]
        elements = 2 * tokens * self.shape.n_kv_heads * self.shape.head_dim
        everything = np.ones(self.n_cached, dtype=np.bool_)
        return self.selection(everything, Counts(vector_elements=elements))


class Oaken(Policy):
    """A cache of `bits_per_element`; nothing is selected.

    Thresholds are quantiles: half of `outer` beyond each outer edge, half of `inner` on each side of zero. Differs
    from Oaken: they come from the first `calibration_tokens` of the stream, where it averages over WikiText samples;
    each token has its own scales, as the paper says, where the released accuracy code has one pair for the tensor.
    Keys are quantised before rotation, as there. The step's own keys and values are read before they are quantised.
    """

    runs_in: ClassVar[frozenset[StepKind]] = frozenset(("frame", "question", "decode"))
    granularity: ClassVar[Granularity] = "element"
    lossy: ClassVar[bool] = True
    trained: ClassVar[bool] = True

    kind: Literal["oaken"] = "oaken"
    outer: float = Field(default=0.04, ge=0, lt=1, description="share of the elements beyond the outer thresholds")
    inner: float = Field(default=0.06, ge=0, lt=1, description="share of the elements between the inner thresholds")
    calibration_tokens: int = Field(default=2048, gt=0, description="first tokens, whose quantiles are the thresholds")

    @model_validator(mode="after")
    def _check(self) -> Oaken:
        if self.outer + self.inner >= 1:
            raise ValueError(f"outer + inner is {self.outer + self.inner}; allowed: below 1, the rest is the middle")
        return self

    def start(self, shape: ModelShape, layer: int) -> PolicyState:
        return OakenState(self, shape, layer)

    def bits_per_element(self, shape: ModelShape) -> float:
        """4.82 for Llama-2-7B, whose K or V of a token has 4,096 elements; narrower ones share scales among fewer."""
        return _SLOT_BITS + _RECORD_BITS * (self.outer + self.inner) + _SCALE_BITS / (shape.n_kv_heads * shape.head_dim)

    def stored_shape(self, shape: ModelShape) -> ModelShape:
        factor = self.bits_per_element(shape) / shape.kv_bits
        return shape.model_copy(update={"kv_bytes_factor": min(1.0, factor * shape.kv_bytes_factor)})

    def read_back(self, shape: ModelShape, keys: Array, values: Array) -> tuple[Array, Array]:
        """Keys and values (H, S, D) of the stream's first tokens as quantised and restored; NumPy float32."""
        return self.reader(shape).read(keys, values)

    def reader(self, shape: ModelShape) -> OakenReader:
        return OakenReader(self, shape)

    def edges(self, x: Float32) -> Float32:
        """Outer low, inner low, inner high, outer high threshold."""
        shares = [self.outer / 2, 0.5 - self.inner / 2, 0.5 + self.inner / 2, 1 - self.outer / 2]
        return np.asarray(np.quantile(x.astype(np.float64), shares) if x.size else np.zeros(4), dtype=np.float32)


class OakenReader:
    """One layer's restored tokens. Before the thresholds are settled, all tokens are restored anew."""

    def __init__(self, policy: Oaken, shape: ModelShape) -> None:
        self._policy, self._shape = policy, shape
        self._keys = _Restored(frequencies(shape))
        self._values = _Restored(np.zeros(0))

    def read(self, keys: Array, values: Array) -> tuple[Float32, Float32]:
        """(H, S, D) each, valid until the next call."""
        n = min(keys.shape[1], self._policy.calibration_tokens)
        if self._keys.n_calibrated < n:
            first = in_float32(to_numpy(keys[:, :n]))
            self._keys.calibrate(n, self._policy.edges(rotated(first, -np.arange(n), self._shape)))
            self._values.calibrate(n, self._policy.edges(in_float32(to_numpy(values[:, :n]))))
        return self._keys.grown(keys), self._values.grown(values)


class _Restored:
    """Restored keys, turned by `turn` radians per token, or values: (room, H, D), token by token."""

    def __init__(self, turn: NDArray[np.float64]) -> None:
        self._turn = turn
        self.n_calibrated = 0
        self._edges = np.zeros(4, dtype=np.float32)
        self._n = 0
        self._tokens = np.zeros((0, 0, 0), dtype=np.float32)

    def calibrate(self, n_tokens: int, edges: Float32) -> None:
        """Other thresholds: nothing that was restored holds."""
        self.n_calibrated, self._edges, self._n = n_tokens, edges, 0

    def grown(self, x: Array) -> Float32:
        """(H, S, D) of `x`: each token's H·D elements are one row of the kernel."""
        from resv._quant_kernels import quantise

        start, stop = self._n, x.shape[1]
        new = np.array(token_major(x[:, start:]), order="C", dtype=np.float32)
        if len(new):
            quantise(new.reshape(len(new), -1), start, self._turn, self._edges, _LEVELS)
        if stop > len(self._tokens):
            longer = np.empty((max(stop, 2 * start), *new.shape[1:]), dtype=np.float32)
            longer[:start] = self._tokens[:start].reshape(start, *new.shape[1:])
            self._tokens = longer
        self._tokens[start:stop] = new
        self._n = stop
        return self._tokens[:stop].transpose(1, 0, 2)
