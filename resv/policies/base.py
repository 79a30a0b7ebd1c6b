"""What a retrieval policy is: a frozen set of fields that starts a state per layer; the state does the work.

A policy declares where it runs and what it loses; its state appends tokens for good and selects for a step
without changing itself. `run_layer` drives a state along a trace. Knows no clock.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from resv._arrays import Array
from resv.kv_cache import Ledger, capacity_tokens
from resv.selection import LayerSelection
from resv.trace import KVTrace, LayerTrace, ModelShape, StepKind

Granularity = Literal["layer", "token", "cluster", "frame"]


class PolicyState(ABC):
    """One layer of one stream under a policy. Arrays may be NumPy or torch; selections are NumPy."""

    def __init__(self, shape: ModelShape, layer: int, recent_bytes: int | None) -> None:
        self.shape = shape
        self.layer = layer
        self.capacity_tokens = capacity_tokens(shape, recent_bytes)
        self.n_cached = 0
        self.ledger = Ledger()

    def append(self, keys: Array, step_lengths: Sequence[int] | NDArray[np.int64]) -> None:
        """Add tokens to the cache for good.

        keys : (H, n, D), the tokens of a run of steps in stream order;  step_lengths : their sum is n.
        Residency is decided at the end of each step.
        """
        heads, n_new, dim = keys.shape
        if (heads, dim) != (self.shape.n_kv_heads, self.shape.head_dim) or sum(step_lengths) != n_new:
            raise ValueError(
                f"keys {tuple(keys.shape)} with steps of {sum(step_lengths)} tokens do not fit "
                f"{self.shape.n_kv_heads} KV heads of dimension {self.shape.head_dim}"
            )
        resident = self._append(keys, step_lengths)
        self.n_cached += n_new
        self.ledger.append(n_new * heads, resident)

    @abstractmethod
    def _append(self, keys: Array, step_lengths: Sequence[int] | NDArray[np.int64]) -> int:
        """Add the tokens; return how many are resident after it, each counted once per KV head."""

    @abstractmethod
    def select(self, queries: Array, step_keys: Array) -> LayerSelection:
        """What a step attends to in the cache as it stands, which stays as it is.

        queries : (H·G, N, D), exact or predicted;  step_keys : (H, N, D), the step's own keys
        """


class Policy(BaseModel, ABC):
    """Fields common to all policies; `kind` names the class in `POLICIES`.

    runs_in : step kinds that the policy acts in;  granularity : unit of its choice
    lossy : attention may differ from full attention;  trained : needs training or calibration
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    runs_in: ClassVar[frozenset[StepKind]]
    granularity: ClassVar[Granularity]
    lossy: ClassVar[bool]
    trained: ClassVar[bool]

    kind: str
    recent_bytes: int | None = Field(
        default=None, ge=0, description="device memory for keys and values of all layers; None = unlimited"
    )
    recent: Literal["candidate", "exempt"] = Field(
        default="candidate",
        description="exempt: resident tokens are always attended and do not compete; candidate: they compete",
    )
    predict: Literal["same_layer", "next_layer"] = Field(
        default="next_layer",
        description="select with the layer's own query, or as predicted one layer before",
    )

    @abstractmethod
    def start(self, shape: ModelShape, layer: int) -> PolicyState:
        """An empty cache of one layer."""


def run_layer(policy: Policy, trace: KVTrace, layer_trace: LayerTrace) -> tuple[LayerSelection, ...]:
    """Run one layer of a trace: one selection per probe, in order.

    Under `predict: next_layer` the queries are the predicted ones; layer 0, which nothing precedes, selects
    with its own. A step that a probe cuts in two counts as two steps.
    """
    state = policy.start(trace.shape, layer_trace.layer)
    predicted = layer_trace.predicted_queries if policy.predict == "next_layer" else None
    queries = layer_trace.queries if predicted is None else predicted
    ends = np.array([step.first_token + step.n_tokens for step in trace.steps], dtype=np.int64)
    selections = []
    for probe, query, step_keys in zip(trace.probes, queries, layer_trace.step_keys, strict=True):
        start, stop = state.n_cached, probe.first_token
        if stop > start:
            inner = ends[(ends > start) & (ends < stop)]
            state.append(layer_trace.keys[:, start:stop], np.diff(inner, prepend=start, append=stop))
        selections.append(state.select(query, step_keys))
    return tuple(selections)
