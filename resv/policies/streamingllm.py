"""StreamingLLM (ICLR 2024, commit 2e50426): the first tokens and the last ones; the rest is evicted for good."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from resv._arrays import Array
from resv.policies.base import Granularity, Policy, PolicyState, Positions
from resv.selection import Bool, Counts, LayerSelection
from resv.trace import ModelShape, StepKind


class StreamingLLMState(PolicyState):
    def __init__(self, policy: StreamingLLM, shape: ModelShape, layer: int) -> None:
        super().__init__(shape, layer, None)
        self._sinks, self._recent = policy.start_size, policy.recent_size

    def _append(self, keys: Array, step_lengths: Sequence[int] | NDArray[np.int64], kinds: Sequence[StepKind]) -> int:
        if max(step_lengths, default=0) > self._recent:
            raise ValueError(_too_small(int(max(step_lengths)), self._recent))
        n_cached = self.n_cached + int(sum(step_lengths))
        return int(np.count_nonzero(self._kept(n_cached, 0))) * self.shape.n_kv_heads

    def n_evicted(self) -> int:
        return int(np.count_nonzero(~self._kept(self.n_cached, 0))) * self.shape.n_kv_heads

    def residency(self) -> tuple[Bool, Bool | None]:
        kept = np.array(np.broadcast_to(self._kept(self.n_cached, 0), (self.shape.n_kv_heads, self.n_cached)))
        return kept, ~kept

    def _kept(self, n_cached: int, n_coming: int) -> Bool:
        """(n_cached,) tokens left when room has been made for `n_coming`: cache and new ones fill the window."""
        tokens = np.arange(n_cached)
        return (tokens < self._sinks) | (tokens >= n_cached + n_coming - self._recent)

    def select(self, queries: Array, step_keys: Array, stage: StepKind = "frame") -> LayerSelection:
        n_new = step_keys.shape[1]
        if n_new > self._recent:
            raise ValueError(_too_small(n_new, self._recent))
        kept = np.array(np.broadcast_to(self._kept(self.n_cached, n_new), (self.shape.n_kv_heads, self.n_cached)))
        return LayerSelection(self.layer, kept, kept, kept, Counts(), evicted=~kept)


def _too_small(n_new: int, recent: int) -> str:
    return f"recent_size is {recent}, but a step brings {n_new} tokens; allowed: at least as many as the longest step"


class StreamingLLM(Policy):
    """`start_size` sinks and the last `recent_size` tokens, the step's own among them; nothing is ever fetched.

    What is kept stays on the device, so `recent_bytes`, `recent` and `predict` change nothing. Differs from
    StreamingLLM: on a trace, whose keys are rotated, tokens keep their positions in the stream, where it counts inside
    the cache.
    """

    runs_in: ClassVar[frozenset[StepKind]] = frozenset(("frame", "question", "decode"))
    granularity: ClassVar[Granularity] = "token"
    lossy: ClassVar[bool] = True
    trained: ClassVar[bool] = False
    positions: ClassVar[Positions] = "cache_index"

    kind: Literal["streamingllm"] = "streamingllm"
    start_size: int = Field(default=4, ge=0, description="sinks: first tokens, never evicted")
    recent_size: int = Field(default=512, gt=0, description="last tokens, the step's own included")

    def start(self, shape: ModelShape, layer: int) -> PolicyState:
        return StreamingLLMState(self, shape, layer)
