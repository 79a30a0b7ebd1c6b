"""ReKV as released (ICLR 2025, commit 63793f7): a sliding window while frames arrive, whole frames for a question.

The internal retriever scores a frame by the product of the question's mean query and the frame's mean key, both
before rotation, one choice per layer for all heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from resv._arrays import Array, in_float32, to_numpy
from resv.blocks import BlockCache, BlockSums, largest
from resv.policies.base import Granularity, Policy, PolicyState, Positions
from resv.policies.window import WindowState
from resv.rope import rotated
from resv.selection import Bool, Counts, Float32, Int64, LayerSelection
from resv.trace import ModelShape, Step, StepKind


def mean_query(queries: Array, shape: ModelShape) -> Float32:
    """(H, D): queries (H·G, N, D) averaged over the new tokens and summed over the query heads of a KV head."""
    mean = in_float32(to_numpy(queries)).mean(axis=1, dtype=np.float64)
    return np.asarray(mean.reshape(shape.n_kv_heads, shape.group, -1).sum(axis=1), dtype=np.float32)


class FrameState(WindowState):
    """Frames of the stream with their mean keys, and which frame each token belongs to."""

    def __init__(self, policy: Policy, shape: ModelShape, layer: int, *, unrotate: bool) -> None:
        super().__init__(policy, shape, layer)
        self.unrotate = unrotate
        self._sums = BlockSums(shape, unrotate=unrotate)
        self._frame_tokens: list[int] = []
        self._frame_of: list[Int64] = []

    def _append(self, keys: Array, step_lengths: Sequence[int] | NDArray[np.int64], kinds: Sequence[StepKind]) -> int:
        numbers = []
        for length, kind in zip(step_lengths, kinds, strict=True):
            numbers.append(len(self._frame_tokens) if kind == "frame" else -1)
            if kind == "frame":
                self._frame_tokens.append(int(length))
        frame_of = np.repeat(np.array(numbers, dtype=np.int64), step_lengths)
        self._sums.append(keys, self.n_cached, frame_of)
        self._frame_of.append(frame_of)
        return super()._append(keys, step_lengths, kinds)

    @property
    def n_frames(self) -> int:
        return len(self._frame_tokens)

    def frame_of(self) -> Int64:
        """(S,) frame of each cached token, -1 for text"""
        return np.concatenate([np.zeros(0, dtype=np.int64), *self._frame_of])

    def frame_scores(self, queries: Array) -> NDArray[np.float32]:
        """(frames,) product of the step's mean query and each frame's mean key, all heads concatenated."""
        if self.unrotate:
            n_new = queries.shape[1]
            queries = rotated(in_float32(to_numpy(queries)), -(self.n_cached + np.arange(n_new)), self.shape)
        means = self._sums.means(np.array(self._frame_tokens, dtype=np.int64)).reshape(self.n_frames, -1)
        return np.asarray(means @ mean_query(queries, self.shape).ravel())

    def tokens_of(self, frames: Bool) -> Bool:
        """(S,) tokens of a mask over frames"""
        return np.append(frames, False)[self.frame_of()]  # text is frame -1, the appended False

    def scoring_counts(self, n_new: int, n_scored: int) -> Counts:
        """One row of all query heads against mean keys expanded to query heads; each frame's mean is written once."""
        width = self.shape.n_query_heads * self.shape.head_dim
        bits = self.shape.kv_bits
        return Counts(
            score_macs=n_scored * width,
            score_elements=n_scored,
            scanned_elements=n_scored,
            score_rows=1,
            score_read_bytes=n_scored * width * bits // 8,
            table_write_bytes=width * bits // 8,
        )


class ReKVState(FrameState):
    def __init__(self, policy: ReKV, shape: ModelShape, layer: int) -> None:
        super().__init__(policy, shape, layer, unrotate=policy.keys == "unrotated")
        self._policy = policy
        self._cache = BlockCache(policy.cached_frames)
        self._answer: tuple[int, Bool] | None = None  # cache length at the question, its frames

    def _append(self, keys: Array, step_lengths: Sequence[int] | NDArray[np.int64], kinds: Sequence[StepKind]) -> int:
        if "frame" in kinds:
            self._answer = None
        return super()._append(keys, step_lengths, kinds)

    def select(self, queries: Array, step_keys: Array, stage: StepKind = "frame") -> LayerSelection:
        if stage == "frame":
            return self._window()
        held = self.tokens_of(self._cache.held(self.n_frames))
        if stage == "decode" and self._answer is not None:
            start, frames = self._answer
            chosen = self.tokens_of(frames)
            spoken = np.arange(self.n_cached) >= start
            return self._with_prompt(chosen | spoken, held | chosen, Counts())
        frames = self._retrieve(queries)
        counts = self.scoring_counts(step_keys.shape[1], self.n_frames)
        return self._with_prompt(self.tokens_of(frames), held, counts)

    def observe(self, step: Step, queries: Array, step_keys: Array, selection: LayerSelection) -> None:
        """A retrieval leaves its frames in the device's cache of blocks; decoding goes on with them."""
        if step.kind == "frame" or (step.kind == "decode" and self._answer is not None):
            return
        frames, frame_of = np.zeros(self.n_frames, dtype=np.bool_), self.frame_of()
        behind_prompt = np.arange(self.n_cached) >= self._policy.n_init  # which is attended whatever was retrieved
        frames[np.unique(frame_of[selection.attended[0] & behind_prompt & (frame_of >= 0)])] = True
        self._cache.use(np.flatnonzero(frames).tolist())
        self._answer = (self.n_cached, frames)

    def _retrieve(self, queries: Array) -> Bool:
        """(frames,) the r frames of highest score; in chunks of consecutive frames where so asked."""
        frames = np.zeros(self.n_frames, dtype=np.bool_)
        if self.n_frames <= self._policy.r:
            return ~frames
        chunk = self._policy.retrieve_chunk
        starts = np.arange(0, self.n_frames, chunk)
        sizes = np.diff(np.append(starts, self.n_frames))
        scores = np.add.reduceat(self.frame_scores(queries), starts) / sizes
        chosen = largest(scores, self._policy.r // chunk)
        frames[:] = np.isin(np.arange(self.n_frames) // chunk, chosen)
        return frames

    def _window(self) -> LayerSelection:
        positions = np.arange(self.n_cached)
        return self._with_prompt(positions >= self.n_cached - self._policy.n_local, None, Counts())

    def _with_prompt(self, attended: Bool, held: Bool | None, counts: Counts) -> LayerSelection:
        prompt = np.arange(self.n_cached) < self._policy.n_init
        return self.selection(attended | prompt, counts, held=held)


class ReKV(Policy):
    """`r` whole frames per question and layer; frames themselves see a window, and nothing is retrieved for them.

    Attention of a question and its answer covers the prompt tokens and the retrieved frames alone: the window is not
    appended. Decoding goes on with the question's frames, which are on the device by then, and with the question's
    and the answer's own tokens; what was said leaves no trace in the video cache.

    Differs from ReKV: on a trace, whose keys are rotated, retrieved frames keep their positions (ReKV renumbers them);
    the question is charged one pass, not a retrieving and an answering one; a decode step with no question before it
    retrieves by itself. The score is the released dot product in float32, where the paper says cosine.
    """

    runs_in: ClassVar[frozenset[StepKind]] = frozenset(("frame", "question", "decode"))
    granularity: ClassVar[Granularity] = "frame"
    lossy: ClassVar[bool] = True
    trained: ClassVar[bool] = False
    heads_together: ClassVar[bool] = True
    positions: ClassVar[Positions] = "consecutive"

    kind: Literal["rekv"] = "rekv"
    recent: Literal["candidate"] = "candidate"
    predict: Literal["same_layer", "next_layer"] = "same_layer"
    r: int = Field(default=64, gt=0, description="frames retrieved per question and layer")
    n_local: int = Field(default=15_000, gt=0, description="tokens of the window that frames attend to")
    n_init: int = Field(default=0, ge=0, description="prompt tokens at the start of the stream, always attended")
    retrieve_chunk: int = Field(default=1, gt=0, description="consecutive frames scored and taken together")
    cached_frames: int = Field(default=128, ge=0, description="retrieved frames kept on the device, LRU")
    keys: Literal["unrotated", "rotated"] = Field(default="unrotated", description="keys that are averaged")
    retriever: Literal["internal", "external"] = "internal"

    @model_validator(mode="after")
    def _check(self) -> ReKV:
        if self.retriever == "external":
            raise ValueError(
                "retriever is 'external': it ranks frames by the similarity of image and question embeddings "
                "(SigLIP), and a trace holds keys, values and queries alone; allowed on a trace: 'internal'"
            )
        if self.retrieve_chunk > self.r:
            raise ValueError(f"retrieve_chunk is {self.retrieve_chunk}; allowed: 1 to r ({self.r})")
        return self

    def start(self, shape: ModelShape, layer: int) -> PolicyState:
        return ReKVState(self, shape, layer)
