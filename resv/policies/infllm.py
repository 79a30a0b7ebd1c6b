"""InfLLM (NeurIPS 2024, commit 12b7079): a local window, the first tokens, and blocks of the past looked up per step.

A block is known by the tokens that local queries attended to most while it was in the window; the step's mean query
is scored against these, before rotation and all at one distance, one choice per layer for all heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from resv._arrays import Array, in_float32, to_numpy
from resv.blocks import BlockCache, BlockSums, largest
from resv.policies.base import Granularity, Policy, PolicyState, Positions
from resv.policies.window import ScoringState
from resv.rope import rotated
from resv.selection import Counts, Float32, LayerSelection
from resv.trace import ModelShape, Step, StepKind


class InfLLMState(ScoringState):
    def __init__(self, policy: InfLLM, shape: ModelShape, layer: int) -> None:
        super().__init__(policy, shape, layer)
        self._policy = policy
        self._sums = BlockSums(shape, unrotate=True)
        self._cache = BlockCache(policy.cached_blocks)
        # Attention that local queries gave each token, per query head; steps whose queries nobody saw gave none.
        self._received = np.zeros((0, shape.n_query_heads), dtype=np.float32)
        # A block's representatives are settled when it leaves the window.
        self._settled = np.zeros((0, shape.n_query_heads, shape.head_dim), dtype=np.float32)

    def _append(self, keys: Array, step_lengths: Sequence[int] | NDArray[np.int64], kinds: Sequence[StepKind]) -> int:
        tokens = np.arange(self.n_cached, self.n_cached + keys.shape[1]) - self._policy.n_init
        self._sums.append(keys, self.n_cached, np.where(tokens < 0, -1, tokens // self._policy.block_tokens))
        return super()._append(keys, step_lengths, kinds)

    @property
    def n_blocks(self) -> int:
        """Blocks that have left the window; what is left over of the next one is still in it."""
        return max(0, (self.n_cached - self._policy.n_init - self._policy.n_local) // self._policy.block_tokens)

    @property
    def window_start(self) -> int:
        return self._policy.n_init + self.n_blocks * self._policy.block_tokens

    def select(self, queries: Array, step_keys: Array, stage: StepKind = "frame") -> LayerSelection:
        tokens = np.arange(self.n_cached)
        blocks = np.zeros(self.n_blocks, dtype=np.bool_)
        n_new = step_keys.shape[1]
        counts = Counts()
        if self.n_blocks:
            blocks[largest(self.block_scores(queries), self._policy.topk)] = True
            counts = self._counts(n_new)
        attended = (tokens < self._policy.n_init) | (tokens >= self.window_start) | self._tokens_of(blocks)
        return self.selection(attended, counts, held=self._tokens_of(self._cache.held(self.n_blocks)))

    def observe(self, step: Step, queries: Array, step_keys: Array, selection: LayerSelection) -> None:
        """The cache of blocks takes what was looked up; tokens in the window take the attention they got."""
        first = self._policy.n_init
        chosen = selection.attended[0, first : self.window_start].reshape(self.n_blocks, self._policy.block_tokens)
        self._cache.use(np.flatnonzero(chosen.any(axis=1)).tolist())
        if not step.in_stream:
            return
        start, stop = self.window_start, self.n_cached + step.n_tokens
        grown = np.zeros((stop, self.shape.n_query_heads), dtype=np.float32)
        grown[: len(self._received)] = self._received
        self._received = grown
        own, local = in_float32(to_numpy(step_keys)), self.keys.tokens(start, self.n_cached)
        later = np.triu(np.ones((step.n_tokens, step.n_tokens), dtype=np.bool_), 1)
        for head in range(self.shape.n_kv_heads):
            keys = np.concatenate([local[head], own[head]])
            rows = self.head_rows(head, queries).reshape(self.shape.group, step.n_tokens, -1)
            logits = rows @ keys.T * np.float32(self.shape.head_dim**-0.5)
            logits[..., len(keys) - step.n_tokens :][:, later] = -np.inf
            weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
            columns = slice(head * self.shape.group, (head + 1) * self.shape.group)
            grown[stop - len(keys) :, columns] += weights.sum(axis=1).T

    def _tokens_of(self, blocks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        mask = np.zeros(self.n_cached, dtype=np.bool_)
        mask[self._policy.n_init : self.window_start] = np.repeat(blocks, self._policy.block_tokens)
        return mask

    def block_scores(self, queries: Array) -> NDArray[np.float32]:
        """(blocks,) mean query of the step, at the distance of the window, times each block's representatives."""
        rows = in_float32(to_numpy(queries))
        distance = self._policy.n_local - 1 - (self.n_cached + np.arange(rows.shape[1]))
        query = rotated(rows, distance, self.shape).mean(axis=1, dtype=np.float64).astype(np.float32)
        return np.asarray(self._representatives().reshape(self.n_blocks, -1) @ query.ravel())

    def _representatives(self) -> Float32:
        """(blocks, H·G, D): mean of a query head's most attended tokens, of all tokens where nobody saw attention."""
        size, known = self._policy.block_tokens, len(self._settled)
        if known < self.n_blocks:
            means = self._sums.means(np.full(self.n_blocks, size, dtype=np.int64))[known:]
            new = np.repeat(means, self.shape.group, axis=1)
            for block in range(known, self.n_blocks):
                first = self._policy.n_init + block * size
                received = self._received[first : first + size]
                if received.any():
                    new[block - known] = self._most_attended(first, received)
            self._settled = np.concatenate([self._settled, new])
        return self._settled

    def _most_attended(self, first: int, received: Float32) -> Float32:
        """(H·G, D) of a block from token `first`; `received` (tokens, H·G), ties to the first token."""
        positions = np.arange(first, first + self._policy.block_tokens)
        keys = rotated(self.keys.tokens(first, int(positions[-1]) + 1), -positions, self.shape)
        order = np.argsort(-received, axis=0, kind="stable")[: self._policy.representatives]
        head = np.arange(self.shape.n_query_heads)
        return np.asarray(keys[head[:, None] // self.shape.group, order[:, head].T].mean(axis=1))

    def _counts(self, n_new: int) -> Counts:
        width = self.shape.n_query_heads * self.shape.head_dim
        bits = self.shape.kv_bits
        return Counts(
            score_macs=self.n_blocks * width,
            score_elements=self.n_blocks,
            scanned_elements=self.n_blocks,
            score_rows=1,
            score_read_bytes=self.n_blocks * width * bits // 8,
            table_write_bytes=n_new * width * bits // 8 // self._policy.block_tokens,
            vector_elements=n_new * self.shape.n_query_heads * (self.n_cached - self.window_start + n_new),
        )


class InfLLM(Policy):
    """`topk` blocks in every step, which is InfLLM's chunk; blocks on the device are reused, LRU.

    A block's representatives need the attention its tokens got while in the window. A trace yields queries at its
    probes alone, so blocks that no probe looked at fall back to the mean of their keys, the paper's own ablation
    (96.8 to 84.6 on R.KV); a trace that probes every step has them all. What the cache of blocks saves between distant
    probes is a lower bound for the same reason.

    Differs from InfLLM: on a trace, whose keys are rotated, retrieved blocks keep their positions where it clamps them
    to one distance, the score does clamp; the local softmax that ranks tokens leaves retrieved blocks out.
    """

    runs_in: ClassVar[frozenset[StepKind]] = frozenset(("frame", "question", "decode"))
    granularity: ClassVar[Granularity] = "block"
    lossy: ClassVar[bool] = True
    trained: ClassVar[bool] = False
    heads_together: ClassVar[bool] = True
    positions: ClassVar[Positions] = "clamped"

    kind: Literal["infllm"] = "infllm"
    recent: Literal["candidate"] = "candidate"
    block_tokens: int = Field(default=128, gt=0)
    topk: int = Field(default=16, gt=0, description="blocks looked up per step and layer")
    n_local: int = Field(default=4096, gt=0, description="tokens of the window")
    n_init: int = Field(default=128, ge=0, description="first tokens, always attended")
    representatives: int = Field(default=4, gt=0, description="tokens that stand for a block")
    cached_blocks: int = Field(default=32, ge=0, description="blocks kept on the device, LRU")

    def start(self, shape: ModelShape, layer: int) -> PolicyState:
        return InfLLMState(self, shape, layer)
