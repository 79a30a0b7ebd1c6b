"""Blocks of consecutive tokens: sums and bounds of their keys as they grow, and which blocks the device still holds.

Knows keys and block numbers, not why a block is chosen.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from resv._arrays import Array, in_float32, to_numpy
from resv.rope import frequencies
from resv.selection import Bool, Float32, Int64
from resv.trace import ModelShape


def token_major(keys: Array) -> Float32:
    """(H, n, D) as (n, H, D); no copy where tokens are the outer axis of the storage."""
    return np.asarray(in_float32(to_numpy(keys)).transpose(1, 0, 2))


def _grown(array: NDArray[np.float32], n: int, fill: float) -> NDArray[np.float32]:
    if n <= len(array):
        return array
    out = np.full((max(n, 2 * len(array)), *array.shape[1:]), fill, dtype=np.float32)
    out[: len(array)] = array
    return out


class BlockSums:
    """Sums of keys per block, as they are or turned back to position 0."""

    def __init__(self, shape: ModelShape, *, unrotate: bool) -> None:
        self._frequencies = frequencies(shape) if unrotate else None
        self._sums = np.zeros((0, shape.n_kv_heads, shape.head_dim), dtype=np.float32)

    def append(self, keys: Array, first_position: int, block: Int64) -> None:
        """keys : (H, n, D);  block : (n,) block of each token, -1 for none"""
        from resv._block_kernels import add_to_blocks, add_unrotated

        self._sums = _grown(self._sums, int(block.max(initial=-1)) + 1, 0.0)
        rows = token_major(keys)
        if self._frequencies is None:
            add_to_blocks(rows, block, self._sums)
        else:
            add_unrotated(rows, first_position, self._frequencies, block, self._sums)

    def means(self, token_counts: Int64) -> Float32:
        """(blocks, H, D) of the first len(token_counts) blocks."""
        return np.asarray(self._sums[: len(token_counts)] / token_counts[:, None, None].astype(np.float32))


class BlockBounds:
    """Least and largest value of every key element per block of `size` tokens."""

    def __init__(self, shape: ModelShape, size: int) -> None:
        self.size = size
        self._low = np.zeros((0, shape.n_kv_heads, shape.head_dim), dtype=np.float32)
        self._high = self._low

    def append(self, keys: Array, first: int) -> None:
        """keys : (H, n, D), tokens first ... first + n"""
        from resv._block_kernels import widen_bounds

        rows = token_major(keys)
        block = np.arange(first, first + len(rows)) // self.size
        n_blocks = -(-(first + len(rows)) // self.size)
        self._low, self._high = _grown(self._low, n_blocks, np.inf), _grown(self._high, n_blocks, -np.inf)
        widen_bounds(rows, block, self._low, self._high)

    def of(self, head: int, n_blocks: int) -> tuple[Float32, Float32]:
        """(low, high), each (n_blocks, D)"""
        return self._low[:n_blocks, head], self._high[:n_blocks, head]


class BlockCache:
    """Copies of fetched blocks in device memory, the least recently used leaving first."""

    def __init__(self, capacity_blocks: int) -> None:
        self._capacity = capacity_blocks
        self._held: dict[int, None] = {}  # oldest use first

    def use(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._held.pop(block, None)
            self._held[block] = None
        for block in list(self._held)[: max(0, len(self._held) - self._capacity)]:
            del self._held[block]

    def held(self, n_blocks: int) -> Bool:
        """(n_blocks,) bool"""
        mask = np.zeros(n_blocks, dtype=np.bool_)
        mask[list(self._held)] = True
        return mask


def largest(scores: NDArray[np.floating], k: int) -> Int64:
    """Indices of the min(k, n) largest of `scores` (n,), ties to the lowest index, ascending."""
    order = np.argsort(-scores, kind="stable")[:k]
    return np.sort(order).astype(np.int64)
