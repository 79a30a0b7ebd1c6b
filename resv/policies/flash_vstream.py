"""Flash-VStream (commit 8f6bde2): a bounded memory of visual tokens in front of the language model.

Not a cache policy in the original: it keeps pooled embeddings of 25 centroids of frames, of an abstract memory and
of 4 whole frames, 681 tokens, and every question prefills them afresh. See the class for what a trace can say of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from resv._arrays import Array
from resv.blocks import BlockSums, largest
from resv.policies.base import Granularity, Policy, PolicyState
from resv.selection import Bool, Counts, Int64, LayerSelection
from resv.trace import ModelShape, StepKind


class FlashVStreamState(PolicyState):
    """Centroids of frames with their weights; each is stood for by one frame, whose tokens stay."""

    def __init__(self, policy: FlashVStream, shape: ModelShape, layer: int) -> None:
        super().__init__(shape, layer, None)
        self._policy = policy
        slots, width = policy.temporal + 1, shape.n_kv_heads * shape.head_dim
        self._centroids = np.zeros((slots, width), dtype=np.float32)
        self._stand_ins = np.zeros((slots, width), dtype=np.float32)
        self._weights = np.zeros(slots)
        self._frames = np.zeros(slots, dtype=np.int64)
        self._costs = np.zeros((slots, slots), dtype=np.float32)
        self._n_frames = 0
        self._frame_of: list[Int64] = []  # of each token, -1 for text
        self._place: list[Int64] = []  # of each token within its step

    def _append(self, keys: Array, step_lengths: Sequence[int] | NDArray[np.int64], kinds: Sequence[StepKind]) -> int:
        from resv._memory_kernels import absorb

        is_frame = np.array([kind == "frame" for kind in kinds])
        lengths = np.asarray(step_lengths, dtype=np.int64)
        local = np.repeat(np.where(is_frame, np.cumsum(is_frame) - 1, -1), lengths)
        sums = BlockSums(self.shape, unrotate=True)
        sums.append(keys, self.n_cached, local)
        features = sums.means(lengths[is_frame]).reshape(-1, self._centroids.shape[1])
        absorb(features, self._n_frames, self._centroids, self._weights, self._frames, self._stand_ins, self._costs)
        self._frame_of.append(np.where(local < 0, -1, local + self._n_frames))
        self._place.append(np.concatenate([np.arange(n) for n in lengths]))
        self._n_frames += len(features)
        return int(np.count_nonzero(self._kept())) * self.shape.n_kv_heads

    def _of_tokens(self, parts: list[Int64]) -> Int64:
        return np.concatenate([np.zeros(0, dtype=np.int64), *parts])

    def _in_frames(self, frames: NDArray[np.int64]) -> Bool:
        mask = np.zeros(self._n_frames + 1, dtype=np.bool_)  # text is frame -1, the last
        mask[frames] = True
        return np.asarray(mask[self._of_tokens(self._frame_of)])

    @property
    def _current(self) -> Int64:
        return np.arange(max(0, self._n_frames - self._policy.current), self._n_frames)

    def _kept(self) -> Bool:
        """(S,) tokens of frames that stand for a centroid or are current, and text"""
        frames = self._frames[self._weights > 0]
        return self._in_frames(np.concatenate([frames, self._current, [-1]]))

    def n_evicted(self) -> int:
        return int(np.count_nonzero(~self._kept())) * self.shape.n_kv_heads

    def residency(self) -> tuple[Bool, Bool | None]:
        kept = np.array(np.broadcast_to(self._kept(), (self.shape.n_kv_heads, self.n_cached)))
        return kept, ~kept

    def select(self, queries: Array, step_keys: Array, stage: StepKind = "frame") -> LayerSelection:
        policy, live = self._policy, self._weights > 0
        heaviest = largest(self._weights[live], policy.key_frames)
        whole = self._in_frames(np.concatenate([self._frames[live][heaviest], self._current, [-1]]))
        place = self._of_tokens(self._place)
        centroids = self._in_frames(self._frames[live])
        abstract = self._in_frames(self._frames[live][largest(self._weights[live], policy.abstract)])
        attended = whole | (centroids & (place % policy.pool == 0)) | (abstract & (place == 1))
        kept = self._kept()
        shape = (self.shape.n_kv_heads, self.n_cached)
        attended, kept = (np.array(np.broadcast_to(mask, shape)) for mask in (attended, kept))
        return LayerSelection(self.layer, attended, kept, kept, Counts(), evicted=~kept)


class FlashVStream(Policy):
    """Weighted k-means over the frames seen, `temporal` centroids; the frames of the heaviest are kept whole.

    On a trace each layer clusters mean keys of frames where the original clusters image features once; a centroid is
    stood for by the frame nearest to it, and its pooled tokens by every `pool`-th token of that frame and, for the
    abstract memory, its second one. What a trace cannot express: pooled and attention-updated embeddings, the
    training that makes a model read them, and that frames pass the encoder alone: here they pass the model, so frame
    latency is an upper bound and a question's prefill of the memory is not charged.

    Differs from Flash-VStream: k-means of one frame more than there are centroids joins the pair of least cost, its
    optimum, where the release starts at random; key frames are those of the heaviest centroids ("corrected"), where
    the release's index points at other frames; frames that stand for nothing are evicted, where the release keeps
    every frame's features in host memory. Text tokens are kept.
    """

    runs_in: ClassVar[frozenset[StepKind]] = frozenset(("frame", "question", "decode"))
    granularity: ClassVar[Granularity] = "frame"
    lossy: ClassVar[bool] = True
    trained: ClassVar[bool] = True

    kind: Literal["flash_vstream"] = "flash_vstream"
    current: int = Field(default=1, ge=1, description="last frames, whole")
    temporal: int = Field(default=25, ge=1, description="centroids of frames")
    abstract: int = Field(default=25, ge=0, description="tokens of the abstract memory, one per centroid")
    key_frames: int = Field(default=3, ge=0, description="frames of the heaviest centroids, whole")
    pool: int = Field(default=4, ge=1, description="tokens of a frame that one token of a centroid stands for")

    def memory_tokens(self, tokens_per_frame: int) -> int:
        """Most visual tokens a question sees: 681 with 64 tokens per frame."""
        pooled = -(-tokens_per_frame // self.pool)
        return self.temporal * pooled + self.abstract + (self.current + self.key_frames) * tokens_per_frame

    def start(self, shape: ModelShape, layer: int) -> PolicyState:
        return FlashVStreamState(self, shape, layer)
