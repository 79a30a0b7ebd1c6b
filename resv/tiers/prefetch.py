"""Reads ahead of their use, on one background thread. What is read does not depend on when.

Rows wait in host memory, at most one read per layer, until `take` asks for them.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Int64 = NDArray[np.int64]
Read = Callable[[int, Int64, Int64], Tensor]


class Prefetcher:
    """read : (layer, lanes (m,), tokens (m,)) -> rows (m, 2, D) on the CPU"""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._thread: ThreadPoolExecutor | None = None
        self._jobs: dict[int, tuple[Int64, Future[Tensor]]] = {}

    def start(self, layer: int, lanes: Int64, tokens: Int64) -> None:
        """Begin to read; replaces an earlier read of the layer that nobody took."""
        self.settle(layer)
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kv-prefetch")
        self._jobs[layer] = (_keys(lanes, tokens), self._thread.submit(self._read, layer, lanes, tokens))

    def take(self, layer: int, lanes: Int64, tokens: Int64) -> Tensor:
        """Rows (m, 2, D) of these units: those read ahead, the rest read now."""
        job = self._jobs.pop(layer, None)
        if job is None:
            return self._read(layer, lanes, tokens)
        ahead, rows, wanted = job[0], job[1].result(), _keys(lanes, tokens)
        order = np.argsort(ahead)
        place = np.searchsorted(ahead[order], wanted)
        place = order[np.minimum(place, len(ahead) - 1)]
        found = ahead[place] == wanted
        out = rows[torch.from_numpy(place)]
        if not found.all():
            out[torch.from_numpy(~found)] = self._read(layer, lanes[~found], tokens[~found])
        return out

    def settle(self, layer: int) -> None:
        """Wait until nothing of the layer is being read, so that its rows may be moved."""
        if layer in self._jobs:
            self._jobs[layer][1].exception()

    def discard(self) -> None:
        """Forget everything that was read ahead."""
        for layer in list(self._jobs):
            self.settle(layer)
        self._jobs.clear()

    def close(self) -> None:
        self.discard()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None


def _keys(lanes: Int64, tokens: Int64) -> Int64:
    """One number per unit."""
    return (lanes << 40) | tokens
