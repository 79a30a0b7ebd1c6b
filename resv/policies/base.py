"""What a retrieval policy is: a frozen set of fields that starts a state per layer; the state does the work.

A policy declares where it runs and what it loses; its state appends tokens for good, selects for a step
without changing itself, and may remember what a step did. `run_layer` drives a state along a trace. Knows no clock.

A trace's keys are rotated already, so policies that move retrieved tokens to other positions (ReKV, InfLLM,
StreamingLLM) are measured at the original ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from resv._arrays import Array
from resv.kv_cache import Ledger, capacity_tokens
from resv.selection import Bool, LayerSelection
from resv.trace import KVTrace, LayerTrace, ModelShape, Step, StepKind

Granularity = Literal["layer", "token", "cluster", "frame", "block", "page", "element"]
# How scores become a choice: weighted cumulative sums of sorted rows, the k largest, or all near the largest.
Cut = Literal["wicsum", "topk", "threshold"]
Recent = Literal["candidate", "exempt"]
# Where attended tokens stand for rotary embedding: where they stood; in a row before the step, as its own would; looked
# up ones at one distance.
Positions = Literal["original", "consecutive", "clamped", "cache_index"]


class PolicyState(ABC):
    """One layer of one stream under a policy. Arrays may be NumPy or torch; selections are NumPy.

    brief : selections may leave out tables, updates, rows and counts, which models of hardware alone look at
    """

    brief = False

    def __init__(self, shape: ModelShape, layer: int, recent_bytes: int | None) -> None:
        self.shape = shape
        self.layer = layer
        self.capacity_tokens = capacity_tokens(shape, recent_bytes)
        self.n_cached = 0
        self.ledger = Ledger()

    def append(
        self, keys: Array, step_lengths: Sequence[int] | NDArray[np.int64], kinds: Sequence[StepKind] = ()
    ) -> None:
        """Add tokens to the cache for good.

        keys : (H, n, D), the tokens of a run of steps in stream order;  step_lengths : their sum is n.
        kinds : of the steps, frames where not given.  Residency is decided at the end of each step.
        """
        heads, n_new, dim = keys.shape
        if (heads, dim) != (self.shape.n_kv_heads, self.shape.head_dim) or sum(step_lengths) != n_new:
            raise ValueError(
                f"keys {tuple(keys.shape)} with steps of {sum(step_lengths)} tokens do not fit "
                f"{self.shape.n_kv_heads} KV heads of dimension {self.shape.head_dim}"
            )
        frame: StepKind = "frame"
        resident = self._append(keys, step_lengths, tuple(kinds) or [frame] * len(step_lengths))
        self.n_cached += n_new
        self.ledger.append(n_new * heads, resident, self.n_evicted())

    @abstractmethod
    def _append(self, keys: Array, step_lengths: Sequence[int] | NDArray[np.int64], kinds: Sequence[StepKind]) -> int:
        """Add the tokens; return how many are resident after it, each counted once per KV head."""

    def n_evicted(self) -> int:
        """Tokens that are gone for good, each counted once per KV head."""
        return 0

    @abstractmethod
    def residency(self) -> tuple[Bool, Bool | None]:
        """(H, S) bool each: tokens on the device and tokens gone for good, None = none; what the ledger counts."""

    @abstractmethod
    def select(self, queries: Array, step_keys: Array, stage: StepKind = "frame") -> LayerSelection:
        """What a step attends to in the cache as it stands, which stays as it is.

        queries : (H·G, N, D), exact or predicted;  step_keys : (H, N, D), the step's own keys
        """

    def under(self, policy: Policy) -> PolicyState:
        """This state as another policy sees it whose `cached_as` is the same; valid until the next append."""
        raise NotImplementedError(f"{type(self).__name__} is kept for one policy alone")

    def observe(  # noqa: B027  # most policies have nothing to remember
        self, step: Step, queries: Array, step_keys: Array, selection: LayerSelection
    ) -> None:
        """Told of a step that was taken, before its tokens join the cache: what later steps reuse of it.

        queries : the true ones
        """


class CacheReader(Protocol):
    """Remembers what it has read back, so that a step costs what its new tokens cost."""

    def read(self, keys: Array, values: Array) -> tuple[Array, Array]:
        """As `Policy.read_back` of the same arrays, which begin with those of the last call."""
        ...


class Policy(BaseModel, ABC):
    """Fields common to all policies; `kind` names the class in `POLICIES`.

    runs_in : step kinds that the policy acts in;  granularity : unit of its choice
    cut : how scores become a choice;  heads_together : KV heads share one choice and lie side by side on the tier
    lossy : attention may differ from full attention;  trained : needs training or calibration
    positions : of attended tokens inside a model; on a trace they are the original ones
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    runs_in: ClassVar[frozenset[StepKind]]
    granularity: ClassVar[Granularity]
    lossy: ClassVar[bool]
    trained: ClassVar[bool]
    cut: ClassVar[Cut] = "topk"
    heads_together: ClassVar[bool] = False
    positions: ClassVar[Positions] = "original"

    kind: str
    recent_bytes: int | None = Field(
        default=None, ge=0, description="device memory for keys and values of all layers; None = unlimited"
    )
    recent: Recent = Field(
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

    def cached_as(self) -> Policy:
        """Stands for all policies that keep the very same cache, so that one state serves them.

        Only for states whose `observe` remembers nothing.
        """
        return self

    def stored_shape(self, shape: ModelShape) -> ModelShape:
        """The model's shape with keys and values as this policy stores them; `start` is given this one."""
        return shape

    def read_back(self, shape: ModelShape, keys: Array, values: Array) -> tuple[Array, Array] | None:
        """What attention reads of stored keys and values (H, S, D) each; None where it is what was stored."""
        return None

    def reader(self, shape: ModelShape) -> CacheReader | None:
        """`read_back` of a cache that grows, one reader per layer and stream; None where `read_back` is."""
        return None


def run_layer(policy: Policy, trace: KVTrace, layer_trace: LayerTrace) -> tuple[LayerSelection, ...]:
    """Run one layer of a trace: one selection per probe, in order.

    Under `predict: next_layer` the queries are the predicted ones; layer 0, which nothing precedes, selects
    with its own. A step that a probe cuts in two counts as two steps.
    """
    return _run_together([policy], trace, layer_trace)[0]


def run_layers(policies: Sequence[Policy], trace: KVTrace, layer_trace: LayerTrace) -> list[tuple[LayerSelection, ...]]:
    """`run_layer` of each policy; policies that keep the same cache share its making."""
    groups: dict[str, list[int]] = {}
    for i, policy in enumerate(policies):
        groups.setdefault(policy.cached_as().model_dump_json(), []).append(i)
    out: dict[int, tuple[LayerSelection, ...]] = {}
    for members in groups.values():
        out.update(zip(members, _run_together([policies[i] for i in members], trace, layer_trace), strict=True))
    return [out[i] for i in range(len(policies))]


def _run_together(
    policies: Sequence[Policy], trace: KVTrace, layer_trace: LayerTrace
) -> list[tuple[LayerSelection, ...]]:
    """Policies of one `cached_as`, on one state."""
    policy = policies[0]
    state = policy.start(policy.stored_shape(trace.shape), layer_trace.layer)
    predicted = layer_trace.predicted_queries if policy.predict == "next_layer" else None
    queries = layer_trace.queries if predicted is None else predicted
    ends = np.array([step.first_token + step.n_tokens for step in trace.steps], dtype=np.int64)
    selections: list[list[LayerSelection]] = [[] for _ in policies]
    for p, (probe, step_keys) in enumerate(zip(trace.probes, layer_trace.step_keys, strict=True)):
        start, stop = state.n_cached, probe.first_token
        if stop > start:
            first, last = np.searchsorted(ends, [start, stop - 1], side="right")
            bounds = np.append(ends[first:last], stop)
            kinds = [step.kind for step in trace.steps[first : last + 1]]
            state.append(layer_trace.keys[:, start:stop], np.diff(bounds, prepend=start), kinds)
        chosen = state.select(queries[p], step_keys, probe.kind)
        for mine, other in zip(selections, policies, strict=True):
            same = other == policy
            mine.append(chosen if same else state.under(other).select(queries[p], step_keys, probe.kind))
        state.observe(probe, layer_trace.queries[p], step_keys, chosen)
    return [tuple(mine) for mine in selections]
