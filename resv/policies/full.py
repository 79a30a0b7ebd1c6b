"""No retrieval: every step attends to the whole cache. What FlexGen-style offloading moves.

FlexGen itself (ICML 2023) offloads without selecting; fetching the full cache in every frame step is the
streaming extension that V-Rex (HPCA 2026, arXiv 2512.12284) compares with.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from resv._arrays import Array
from resv.policies.base import Granularity, Policy, PolicyState
from resv.policies.window import WindowState
from resv.selection import LayerSelection
from resv.trace import ModelShape, StepKind


class FullState(WindowState):
    def select(self, queries: Array, step_keys: Array, stage: StepKind = "frame") -> LayerSelection:
        return self.everything()


class Full(Policy):
    """Attend to everything. `predict` changes nothing, `recent` only what the retrieval ratio is taken of."""

    runs_in: ClassVar[frozenset[StepKind]] = frozenset(("frame", "question", "decode"))
    granularity: ClassVar[Granularity] = "layer"
    lossy: ClassVar[bool] = False
    trained: ClassVar[bool] = False

    kind: Literal["full"] = "full"

    def start(self, shape: ModelShape, layer: int) -> PolicyState:
        return FullState(self, shape, layer)
