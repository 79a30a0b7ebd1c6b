"""Flash-VStream's bounded memory of frames, in front of the language model (commit 8f6bde2).

Frames pass the encoder alone; every question prefills the memory afresh: a few tokens of each centroid of frames, one
token of each of an abstract memory, and a few whole frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

from resv.policies.flash_vstream import FlashVStream


class VisualMemory:
    """Embeddings of frames (B, n, hidden) in, of the memory out; every batch item has a memory of its own.

    Differs from Flash-VStream: pools neighbouring tokens in their order where it pools a square; joins the pair of
    centroids of least cost where it restarts k-means at random; the abstract memory is the mean of each of the
    heaviest centroids where it is a trained attention; key frames are those nearest to the heaviest centroids
    ("corrected"), where the release's index points at other frames.
    """

    def __init__(self, policy: FlashVStream) -> None:
        self._policy = policy
        self._items: list[_ItemMemory] = []

    def add(self, frame: Tensor) -> None:
        """Take in a frame's embeddings; the two most alike centroids become one where there are too many."""
        self._items = self._items or [_ItemMemory(self._policy) for _ in frame]
        for item, own in zip(self._items, torch.split(frame, 1), strict=True):
            item.add(own.clone())  # a view would keep the frames of all items

    def tokens(self) -> Tensor:
        """(B, m, hidden): abstract, temporal, key and current frames. Raises ValueError before the first frame."""
        if not self._items:
            raise ValueError("the visual memory is empty: add a frame before asking")
        return torch.cat([item.tokens() for item in self._items])


class _ItemMemory:
    """Of one video: `temporal` + `current` frames and centroids, and as many tokens after as many frames."""

    def __init__(self, policy: FlashVStream) -> None:
        self._policy = policy
        self._centroids: list[Tensor] = []  # pooled, (1, n / pool, hidden) float32, in order of time
        self._stand_ins: list[Tensor] = []  # the whole frame nearest to each
        self._weights: list[int] = []
        self._current: list[Tensor] = []

    def add(self, frame: Tensor) -> None:
        pooled = _pooled(frame.float(), self._policy.pool)
        self._centroids.append(pooled)
        self._stand_ins.append(frame)
        self._weights.append(1)
        if len(self._centroids) > self._policy.temporal:
            self._join(*self._cheapest_pair())
        self._current = [*self._current, frame][-self._policy.current :]

    def tokens(self) -> Tensor:
        """(1, m, hidden)"""
        heaviest = sorted(range(len(self._weights)), key=lambda i: (-self._weights[i], i))
        abstract = [self._centroids[i].mean(dim=1, keepdim=True) for i in sorted(heaviest[: self._policy.abstract])]
        keys = [self._stand_ins[i] for i in sorted(heaviest[: self._policy.key_frames])]
        parts = [*abstract, *self._centroids, *keys, *self._current]
        return torch.cat([part.to(self._current[0].dtype) for part in parts], dim=1)

    def _cheapest_pair(self) -> tuple[int, int]:
        """The pair whose joining adds least to the sum of squared distances (Ward), the earliest of equals."""
        points = torch.stack([c.flatten() for c in self._centroids])
        weights = torch.tensor(self._weights, dtype=torch.float64)
        squared = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").double().cpu() ** 2
        costs = squared * weights[:, None] * weights / (weights[:, None] + weights)
        costs[torch.tril_indices(len(points), len(points)).unbind()] = torch.inf
        first, second = divmod(int(costs.argmin()), len(points))
        return first, second

    def _join(self, first: int, second: int) -> None:
        """Put the second centroid into the first; the nearer of their frames stands for both."""
        a, b = self._weights[first], self._weights[second]
        mean = (a * self._centroids[first] + b * self._centroids[second]) / (a + b)
        frames = [self._stand_ins[first], self._stand_ins[second]]
        far = [float((_pooled(frame.float(), self._policy.pool) - mean).square().sum()) for frame in frames]
        self._centroids[first], self._weights[first] = mean, a + b
        self._stand_ins[first] = frames[int(far[1] < far[0])]
        for each in (self._centroids, self._stand_ins, self._weights):
            del each[second]


def _pooled(frame: Tensor, pool: int) -> Tensor:
    """(B, n, hidden) as (B, ceil(n / pool), hidden): means of runs of tokens."""
    starts = range(0, frame.shape[1], pool)
    return torch.stack([frame[:, start : start + pool].mean(dim=1) for start in starts], dim=1)
