"""ReKV as V-Rex (HPCA 2026, arXiv 2512.12284) compares with it: whole frames in every step, a fixed share of them."""

from __future__ import annotations

from math import ceil
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from resv._arrays import Array
from resv.blocks import largest
from resv.policies.base import Granularity, Policy, PolicyState
from resv.policies.rekv import FrameState
from resv.selection import Counts, LayerSelection
from resv.trace import ModelShape, StepKind


class ReKVVRexState(FrameState):
    def __init__(self, policy: ReKVVRex, shape: ModelShape, layer: int) -> None:
        super().__init__(policy, shape, layer, unrotate=False)
        self._policy = policy

    def select(self, queries: Array, step_keys: Array, stage: StepKind = "frame") -> LayerSelection:
        competing, frame_of = self.competing(), self.frame_of()
        frames = np.zeros(self.n_frames, dtype=np.bool_)
        frames[np.unique(frame_of[competing & (frame_of >= 0)])] = True
        candidates = np.flatnonzero(frames)
        share = self._policy.frame_ratio if stage == "frame" else self._policy.text_ratio
        # Rounding in binary must not add a frame: 0.584 · 125 is 73.
        budget = ceil(round(share * len(candidates), 9))
        counts = Counts()
        if len(candidates):
            frames[:] = False
            frames[candidates[largest(self.frame_scores(queries)[candidates], budget)]] = True
            counts = self.scoring_counts(step_keys.shape[1], len(candidates))
        text = frame_of < 0
        return self.selection(self.tokens_of(frames) | ~competing | text, counts, candidates=competing & ~text)


class ReKVVRex(Policy):
    """The same share of the past frames in every layer, by mean query · mean key, predicted one layer ahead.

    The default shares are the operating point of V-Rex's Table II (58.4 % in frame, 31.2 % in text steps): given, not
    found, so they are no result of this policy. Differs from ReKV: it retrieves while frames arrive, r is a share,
    recent tokens are attended as the other policies attend to them, keys are averaged as rotated. Text tokens have no
    frame and are always attended.
    """

    runs_in: ClassVar[frozenset[StepKind]] = frozenset(("frame", "question", "decode"))
    granularity: ClassVar[Granularity] = "frame"
    lossy: ClassVar[bool] = True
    trained: ClassVar[bool] = False
    heads_together: ClassVar[bool] = True

    kind: Literal["rekv_vrex"] = "rekv_vrex"
    frame_ratio: float = Field(default=0.584, gt=0, le=1, description="share of the frames, in frame steps")
    text_ratio: float = Field(default=0.312, gt=0, le=1, description="the same in question and decode steps")

    def start(self, shape: ModelShape, layer: int) -> PolicyState:
        return ReKVVRexState(self, shape, layer)
