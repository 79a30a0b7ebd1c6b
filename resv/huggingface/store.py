"""Where the keys and values of a stream lie: the `KVStore` protocol, and the store that keeps all on one device.

A store is complete: it gives back, for any token it was given, what it was given. It chooses nothing; policies do
that and tell it by `place` what they hold on the device and what is gone for good. Knows no clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from resv.trace import ModelShape

_GROWTH = 1.5  # a buffer that is full is replaced by one this much longer, so that appending stays linear in total
_FIRST_TOKENS = 64


@dataclass(frozen=True)
class StoreBytes:
    """Bytes of keys and values, all layers and batch items: where they lie now, and what has moved so far.

    fetched_bytes : read from host or disk to the device;  spilled_bytes : written from the device to host or disk
    """

    device_bytes: int
    host_bytes: int = 0
    disk_bytes: int = 0
    fetched_bytes: int = 0
    spilled_bytes: int = 0


class KVStore(Protocol):
    """Keys and values of one stream of `batch` items. H KV heads, S tokens so far, D head dimension.

    Layers of a step are appended in order 0 ... L-1, all with the same number of tokens; while a step runs, the
    layers it has passed are longer by its tokens. Tensors given are not changed later by the giver, tensors returned
    are not changed by the taker; both are on the store's device in its dtype. Masks and indices are on the CPU.
    """

    @property
    def n_tokens(self) -> int:
        """Tokens of the last layer, S: those of complete steps."""
        ...

    @property
    def on_device(self) -> bool:
        """Whether all tokens always lie on the device: `full` then costs nothing, residency need not be told."""
        ...

    def append(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Add tokens (B, H, n, D) at the end of one layer."""
        ...

    def full(self, layer: int) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer (B, H, S, D), on the device; evicted tokens hold anything finite."""
        ...

    def gather(self, layer: int, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, m, D) of the tokens `indices` (B, H, m) int64, ascending per item and head.

        Index -1, at a row's end, is padding: anything finite is returned there.
        """
        ...

    def prefetch(self, layer: int, indices: Tensor) -> None:
        """Hint that `gather` will soon ask for these; may do nothing."""
        ...

    def place(self, layer: int, resident: Tensor, evicted: Tensor | None) -> None:
        """What the policy holds on the device and what it will never ask for again, (B, H, S) bool.

        Told after a step, of all tokens. A store may ignore residency; what is evicted may be dropped and
        is not counted in `size`.
        """
        ...

    def truncate(self, n_tokens: int) -> None:
        """Forget the tokens from `n_tokens` on, in all layers: a question that was asked and dropped.

        Also ends a step that failed half-way, after which layers differ in length.
        """
        ...

    def size(self) -> StoreBytes: ...

    def close(self) -> None:
        """Give back files and memory; the store is not used afterwards."""
        ...


class StoreFactory(Protocol):
    """Makes the store of a new stream; `shape.kv_bits` are those of `dtype`."""

    def __call__(self, shape: ModelShape, batch: int, device: torch.device, dtype: torch.dtype) -> KVStore: ...


class MemoryStore:
    """Everything on one device, in buffers that grow."""

    def __init__(self, shape: ModelShape, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        empty = torch.empty((batch, shape.n_kv_heads, 0, shape.head_dim), device=device, dtype=dtype)
        self._keys = [empty] * shape.n_layers
        self._values = [empty] * shape.n_layers
        self._lengths = [0] * shape.n_layers
        self._evicted = [0] * shape.n_layers  # tokens, each counted once per item and head

    @property
    def n_tokens(self) -> int:
        return self._lengths[-1]

    @property
    def on_device(self) -> bool:
        return True

    def append(self, layer: int, keys: Tensor, values: Tensor) -> None:
        start = self._lengths[layer]
        stop = start + keys.shape[2]
        self._keys[layer] = _with_room(self._keys[layer], start, stop)
        self._values[layer] = _with_room(self._values[layer], start, stop)
        self._keys[layer][:, :, start:stop] = keys
        self._values[layer][:, :, start:stop] = values
        self._lengths[layer] = stop

    def full(self, layer: int) -> tuple[Tensor, Tensor]:
        n = self._lengths[layer]
        return self._keys[layer][:, :, :n], self._values[layer][:, :, :n]

    def gather(self, layer: int, indices: Tensor) -> tuple[Tensor, Tensor]:
        batch, heads, room, dim = self._keys[layer].shape
        first = torch.arange(batch * heads).view(batch, heads, 1) * room
        rows = (first + indices.clamp(min=0)).flatten().to(self._keys[layer].device)
        keys, values = (x[layer].view(-1, dim).index_select(0, rows) for x in (self._keys, self._values))
        return keys.view(*indices.shape, dim), values.view(*indices.shape, dim)

    def prefetch(self, layer: int, indices: Tensor) -> None:
        """Nothing to do."""

    def place(self, layer: int, resident: Tensor, evicted: Tensor | None) -> None:
        self._evicted[layer] = 0 if evicted is None else int(evicted.count_nonzero())

    def truncate(self, n_tokens: int) -> None:
        self._lengths = [min(n, n_tokens) for n in self._lengths]
        if not n_tokens:
            self._evicted = [0] * len(self._evicted)

    def size(self) -> StoreBytes:
        """Bytes of the tokens that are not evicted; the buffers themselves may be longer."""
        batch, heads, _, dim = self._keys[0].shape
        tokens = batch * heads * sum(self._lengths) - sum(self._evicted)
        return StoreBytes(2 * tokens * dim * self._keys[0].element_size())

    def close(self) -> None:
        self._keys, self._values, self._lengths = [], [], [0]


def _with_room(buffer: Tensor, used: int, needed: int) -> Tensor:
    """`buffer`, or a longer copy of its first `used` tokens where it holds fewer than `needed`."""
    if needed <= buffer.shape[2]:
        return buffer
    batch, heads, _, dim = buffer.shape
    longer = buffer.new_empty((batch, heads, max(needed, int(used * _GROWTH), _FIRST_TOKENS), dim))
    longer[:, :, :used] = buffer[:, :, :used]
    return longer
