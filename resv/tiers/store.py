"""A stream's keys and values in three tiers: device, host and disk. A `KVStore` for hours of video.

What a step adds lies on the device; what the policy then does not hold there goes to the host, and from there, oldest
first, to the disk. A disk tier is written through: every frame is on the disk as soon as it has landed in all layers,
so a frame either counts whole, for this process and for those that read the folder, or not at all. Knows no policy
and no clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resv.huggingface.store import StoreBytes, StoreFactory
from resv.tiers.config import Tiers
from resv.tiers.disk import DiskTier
from resv.tiers.errors import DeviceFullError, HostFullError, TierError
from resv.tiers.layer import DEVICE, DISK, GONE, HOST, LayerTiers, Limits
from resv.tiers.layout import DType, Layout, Rows, StepNote, StepRecord
from resv.tiers.prefetch import Prefetcher
from resv.trace import ModelShape

Int64 = NDArray[np.int64]
_DTYPES: dict[torch.dtype, DType] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


class TieredStore:
    """A `KVStore`; see there for the arrays.

    weights : fingerprint of the model's weights, compared with the folder's
    Raises `FolderError`, `FolderInUseError` where the folder is not to be used; `DeviceFullError`, `HostFullError`,
    `DiskFullError` from `append`, after which the steps before can still be read.
    """

    def __init__(
        self,
        shape: ModelShape,
        batch: int,
        device: torch.device,
        dtype: torch.dtype,
        tiers: Tiers | None = None,
        weights: str = "",
    ) -> None:
        self.tiers = tiers or Tiers()
        self.layout = Layout.of(shape, _DTYPES[dtype], batch, weights)
        self._out = torch.zeros((0, 2, shape.head_dim), device=device, dtype=dtype)
        self._disk = DiskTier(self.tiers, self.layout, self._bytes_in_memory)
        lanes, limits = self.layout.lanes, self._limits()
        self._layers = [LayerTiers(lanes, shape.head_dim, device, dtype, limits) for _ in range(shape.n_layers)]
        self._prefetcher = Prefetcher(self._read)
        self._next = StepNote()
        self._n_tokens = 0
        self._n_fetched = self._n_left = 0  # units
        self._adopt()

    @property
    def n_tokens(self) -> int:
        return self._n_tokens

    @property
    def on_device(self) -> bool:
        """Never taken for granted."""
        return False

    @property
    def records(self) -> tuple[StepRecord, ...]:
        """The steps that the disk tier holds, in order; none without one."""
        return tuple(self._disk.records)

    @property
    def copies_bytes(self) -> int:
        """Copies of fetched tokens on the device, beside what is at home there."""
        return sum(layer.n_copies for layer in self._layers) * self.layout.unit_bytes

    @property
    def file_bytes(self) -> int:
        """What the disk tier takes, whether or not a token is at home there."""
        return self._disk.n_tokens * self.layout.token_bytes

    def announce(self, step: StepNote) -> None:
        """What the next step is; a frame where nothing is said."""
        self._next = step

    def append(self, layer: int, keys: Tensor, values: Tensor) -> None:
        rows = torch.stack((keys, values), dim=3).flatten(0, 1).detach()  # (B·H, n, 2, D)
        try:
            if layer == 0:
                self._begin(rows.shape[1])
            with self._explained(layer):
                self._layers[layer].append(rows)
            self._disk.write(layer, lambda: _as_bytes(rows.transpose(0, 1)))
            if layer == len(self._layers) - 1:
                self._disk.end()
                self._n_tokens = self._layers[layer].n_tokens
                self._next = StepNote()
        except (TierError, OSError):
            self.truncate(self._n_tokens)
            raise

    def full(self, layer: int) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer; what is not on the device is fetched and not kept there."""
        shape = (self.layout.lanes, self._layers[layer].n_tokens)
        lanes, tokens = (part.ravel() for part in np.indices(shape))
        places = np.flatnonzero(self._layers[layer].home(lanes, tokens) != GONE)
        rows = self._fetch(layer, lanes[places], tokens[places], keep=False)
        return self._keys_and_values(_spread(rows, places, len(lanes)))

    def gather(self, layer: int, indices: Tensor) -> tuple[Tensor, Tensor]:
        lanes, tokens, places = self._units_of(layer, indices)
        rows = self._fetch(layer, lanes, tokens, keep=True)
        return self._keys_and_values(_spread(rows, places, indices.numel()))

    def keys(self, layer: int, first: int, stop: int) -> Tensor:
        """(B, H, n, D) on the CPU: keys of a run of tokens that the disk tier holds; counted as no fetch."""
        lanes, tokens = (part.ravel() for part in np.indices((self.layout.lanes, stop - first)))
        units = self._disk.units(layer, lanes, tokens + first)
        rows = torch.from_numpy(units).view(self._out.dtype).view(-1, *self._out.shape[1:])
        return self._keys_and_values(rows)[0]

    def prefetch(self, layer: int, indices: Tensor) -> None:
        lanes, tokens, _ = self._units_of(layer, indices)
        missing = ~self._layers[layer].on_device(lanes, tokens)
        if missing.any():
            self._prefetcher.start(layer, lanes[missing], tokens[missing])

    def place(self, layer: int, resident: Tensor, evicted: Tensor | None) -> None:
        self._prefetcher.settle(layer)
        held = resident.flatten(0, 1).numpy()
        gone = None if evicted is None else evicted.flatten(0, 1).numpy()
        self._n_left += self._layers[layer].place(held, gone, self._disk.n_tokens)

    def restore(self, layer: int, resident: Tensor) -> None:
        """Bring what a policy holds on the device back there: for a stream that goes on from its folder."""
        self._prefetcher.settle(layer)
        lanes, tokens = np.nonzero(resident.flatten(0, 1).numpy())
        away = ~self._layers[layer].on_device(lanes, tokens)
        lanes, tokens = lanes[away], tokens[away]
        with self._explained(layer):
            self._layers[layer].check_room(len(lanes))
            self._layers[layer].bring_home(lanes, tokens, self._fetch(layer, lanes, tokens, keep=False))

    def truncate(self, n_tokens: int) -> None:
        self._prefetcher.discard()
        self._disk.truncate(n_tokens)
        self._forget(n_tokens)
        self._next = StepNote()

    def refresh(self) -> int:
        """Take in the steps that the folder's writer has landed since; return how many tokens from before still hold.

        Those are all, unless the writer has taken steps back. Nothing to do where this store is not read only: no other
        process adds steps. Raises `TierError` where tokens were added here: take them back first.
        """
        if not self.tiers.read_only:
            return self._n_tokens
        before = list(self._disk.records)
        self._disk.refresh()
        pairs = zip(before, self._disk.records, strict=False)
        still = sum(old.n_tokens for old, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if still < self._n_tokens:
            self._prefetcher.discard()
            self._forget(still)
        self._adopt()
        return still

    def size(self) -> StoreBytes:
        """Where each token is at home; copies are not counted twice."""
        device, host, disk = np.sum([layer.homes for layer in self._layers], axis=0) * self.layout.unit_bytes
        fetched, left = self._n_fetched * self.layout.unit_bytes, self._n_left * self.layout.unit_bytes
        return StoreBytes(int(device), int(host), int(disk), fetched_bytes=fetched, spilled_bytes=left)

    def close(self) -> None:
        self._prefetcher.close()
        self._disk.close()

    def _begin(self, n_new: int) -> None:
        for number, layer in enumerate(self._layers):
            with self._explained(number):
                layer.check_room(n_new * self.layout.lanes)
        self._disk.begin(self._next, n_new)

    def _forget(self, n_tokens: int) -> None:
        """The tokens from `n_tokens` on, in all layers; the disk tier apart."""
        for layer in self._layers:
            layer.truncate(n_tokens)
        self._n_tokens = min(self._n_tokens, n_tokens)

    def _adopt(self) -> None:
        """Take in the steps of the disk tier that the layers do not have."""
        for record in self._disk.records:
            if record.first_token >= self._n_tokens:
                for layer in self._layers:
                    layer.adopt(record.n_tokens)
                self._n_tokens = record.first_token + record.n_tokens

    def _units_of(self, layer: int, indices: Tensor) -> tuple[Int64, Int64, Int64]:
        """Lane, token and place among all of every index (B, H, m) that is not padding."""
        wanted = indices.numpy().ravel()
        n = self._layers[layer].n_tokens
        if wanted.max(initial=-1) >= n:
            raise ValueError(f"token {wanted.max()} was asked for in layer {layer}, which has {n}")
        places = np.flatnonzero(wanted >= 0)
        return places // indices.shape[-1], wanted[places], places

    def _fetch(self, layer: int, lanes: Int64, tokens: Int64, *, keep: bool) -> Tensor:
        """(m, 2, D) on the device; what was fetched stays there as copies where it may."""
        tier = self._layers[layer]
        here = tier.on_device(lanes, tokens)
        if here.all():
            tier.touch(lanes, tokens)
            return tier.from_device(lanes, tokens)
        out = self._out.new_empty((len(lanes), *self._out.shape[1:]))
        out[torch.from_numpy(here).to(out.device)] = tier.from_device(lanes[here], tokens[here])
        rows = self._prefetcher.take(layer, lanes[~here], tokens[~here]).to(out.device)
        out[torch.from_numpy(~here).to(out.device)] = rows
        self._n_fetched += len(rows)
        if keep:
            tier.touch(lanes[here], tokens[here])
            tier.remember(lanes[~here], tokens[~here], rows)
        return out

    def _read(self, layer: int, lanes: Int64, tokens: Int64) -> Tensor:
        """(m, 2, D) on the CPU, from host and disk. Also runs on the prefetching thread."""
        tier = self._layers[layer]
        home = tier.home(lanes, tokens)
        if (home == GONE).any():
            raise TierError(f"token {tokens[home == GONE][0]} of layer {layer} was evicted for good")
        out = torch.empty((len(lanes), *self._out.shape[1:]), dtype=self._out.dtype)
        host, disk = home == HOST, home == DISK
        out[torch.from_numpy(host)] = tier.from_host(lanes[host], tokens[host])
        if disk.any():
            units = self._disk.units(layer, lanes[disk], tokens[disk])
            out[torch.from_numpy(disk)] = torch.from_numpy(units).view(out.dtype).view(-1, *out.shape[1:])
        return out

    def _bytes_in_memory(self, layer: int, first: int, stop: int) -> Rows:
        """(n, row_bytes) of tokens that no disk has yet; zeros where they were evicted meanwhile."""
        tier = self._layers[layer]
        lanes, tokens = (part.ravel() for part in np.indices((self.layout.lanes, stop - first)))
        tokens += first
        rows = self._out.new_zeros((len(lanes), *self._out.shape[1:])).cpu()
        home = tier.home(lanes, tokens)
        for where, take in ((DEVICE, tier.from_device), (HOST, tier.from_host)):
            here = home == where
            rows[torch.from_numpy(here)] = take(lanes[here], tokens[here]).cpu()
        return _as_bytes(rows.view(self.layout.lanes, stop - first, *rows.shape[1:]).transpose(0, 1))

    def _keys_and_values(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(B·H·m, 2, D) as two (B, H, m, D)"""
        batch, heads = self.layout.batch, self.layout.n_kv_heads
        shaped = rows.view(batch, heads, -1, *rows.shape[1:])
        return shaped[..., 0, :], shaped[..., 1, :]

    def _limits(self) -> Limits:
        def units(n_bytes: int | None) -> int | None:
            return None if n_bytes is None else n_bytes // (self.layout.n_layers * self.layout.unit_bytes)

        tiers = self.tiers
        return Limits(units(tiers.device_bytes), units(tiers.copies_bytes) or 0, units(tiers.host_bytes))

    @contextmanager
    def _explained(self, layer: int) -> Iterator[None]:
        """Say of a full tier what it is and what may be done."""
        try:
            yield
        except DeviceFullError as error:
            raise DeviceFullError(
                f"out of device capacity in layer {layer}: {error}, {self.tiers.device_bytes} bytes for all layers, "
                f"{self.layout.token_bytes} bytes per token. Let the policy hold less there (recent_bytes), or give "
                "device_bytes more"
            ) from None
        except HostFullError as error:
            raise HostFullError(
                f"the host tier is full in layer {layer}: {error}, {self.tiers.host_bytes} bytes for all layers, and "
                "no disk below it holds the rest. Give host_bytes more, or a disk tier"
            ) from None


def tiered(tiers: Tiers, weights: str = "") -> StoreFactory:
    """What makes the store of a stream with these tiers; `weights` is the fingerprint of the model's weights."""

    def make(shape: ModelShape, batch: int, device: torch.device, dtype: torch.dtype) -> TieredStore:
        return TieredStore(shape, batch, device, dtype, tiers, weights)

    return make


def _spread(rows: Tensor, places: Int64, n: int) -> Tensor:
    """(n, 2, D): rows (m, 2, D) at their places (m,), ascending, and zeros between them."""
    if len(rows) == n:
        return rows
    out = rows.new_zeros((n, *rows.shape[1:]))
    out[torch.from_numpy(places).to(out.device)] = rows
    return out


def _as_bytes(rows: Tensor) -> Rows:
    """(n, B·H, 2, D) as (n, row_bytes)"""
    flat = rows.contiguous().cpu().view(torch.uint8)
    return flat.reshape(len(rows), -1).numpy()
