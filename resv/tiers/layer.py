"""One layer's keys and values on device and host: where each token of each head is at home, and copies of fetched ones.

Every token of a lane (one KV head of one batch item) has one home: the device, the host or the disk; or none once it
is gone. Fetched tokens stay on the device as copies, step by step the least recently used leaving first. Reads of
the disk are the caller's. Knows no bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resv.tiers.errors import DeviceFullError, HostFullError
from resv.tiers.slab import Slab

Bool = NDArray[np.bool_]
Int64 = NDArray[np.int64]
Units = tuple[Int64, Int64]
GONE, DEVICE, HOST, DISK = 0, 1, 2, 3
_NOWHERE = -1


@dataclass(frozen=True)
class Limits:
    """Of one layer, in units (a token of a lane); None = no limit.

    device : homes and copies together;  copies : of fetched units;  host : homes
    """

    device: int | None = None
    copies: int = 0
    host: int | None = None


class LayerTiers:
    """Units are addressed by a pair of arrays (lanes, tokens), each (m,), no unit twice."""

    def __init__(self, lanes: int, head_dim: int, device: torch.device, dtype: torch.dtype, limits: Limits) -> None:
        self.n_tokens = 0
        self._limits = limits
        self._unit_bytes = 2 * head_dim * dtype.itemsize
        self._device = Slab(head_dim, device, dtype, limits.device)
        self._host = Slab(head_dim, torch.device("cpu"), dtype, limits.host)
        self._home = np.zeros((lanes, 0), dtype=np.int8)
        self._device_slot = np.zeros((lanes, 0), dtype=np.int32)
        self._host_slot = np.zeros((lanes, 0), dtype=np.int32)
        self._homes = np.zeros(4, dtype=np.int64)  # units at home in each tier
        self._n_stuck = 0
        self._first_above_disk = 0  # tokens before it are at home on the disk, or nowhere
        self._first: list[int] = []  # token of each step
        self._copied: dict[int, None] = {}  # steps that may have copies, least recently used first

    @property
    def homes(self) -> tuple[int, int, int]:
        """Units at home on device, host and disk."""
        return int(self._homes[DEVICE]), int(self._homes[HOST]), int(self._homes[DISK])

    @property
    def n_copies(self) -> int:
        return self._device.used - int(self._homes[DEVICE])

    def check_room(self, n_units: int) -> None:
        """Raise `DeviceFullError` where `n_units` more cannot be at home on the device.

        Raise `HostFullError` where something that should have left it found no room.
        """
        if self._n_stuck:
            n_host = self._homes[HOST] + self._n_stuck
            raise HostFullError(f"{self._bytes(n_host)} should lie there, {self._bytes(self._limits.host)} are allowed")
        limit = self._limits.device
        if limit is not None and self._homes[DEVICE] + n_units > limit:
            there, come = self._bytes(self._homes[DEVICE]), self._bytes(n_units)
            raise DeviceFullError(f"{there} lie there and {come} come, {self._bytes(limit)} are allowed")

    def _bytes(self, n_units: int | np.int64 | None) -> str:
        return f"{(n_units or 0) * self._unit_bytes} bytes"

    def append(self, rows: Tensor) -> None:
        """New tokens (lanes, n, 2, D), at home on the device."""
        lanes, n_new = rows.shape[:2]
        self.check_room(lanes * n_new)
        self._make_room(lanes * n_new)
        start = self._extend(n_new, DEVICE)
        self._device_slot[:, start : self.n_tokens] = self._device.put(rows.flatten(0, 1)).reshape(lanes, n_new)

    def adopt(self, n_new: int) -> None:
        """Tokens that lie on the disk already."""
        self._extend(n_new, DISK)

    def _extend(self, n_new: int, home: int) -> int:
        start, stop = self.n_tokens, self.n_tokens + n_new
        if stop > self._home.shape[1]:
            room = max(stop, 2 * start, 64) - start
            spread = ((0, 0), (0, room))
            self._home = np.pad(self._home[:, :start], spread, constant_values=GONE)
            self._device_slot = np.pad(self._device_slot[:, :start], spread, constant_values=_NOWHERE)
            self._host_slot = np.pad(self._host_slot[:, :start], spread, constant_values=_NOWHERE)
        self._first.append(start)
        self._home[:, start:stop] = home
        self._homes[home] += n_new * len(self._home)
        self.n_tokens = stop
        return start

    def place(self, resident: Bool, evicted: Bool | None, n_on_disk: int) -> int:
        """Send home tokens off the device that are not `resident`, and drop the `evicted`; both (lanes, S).

        Of what leaves, the newest stays on the host; the rest goes to the disk, which holds the first `n_on_disk`
        tokens. Where that leaves something without a place nothing moves, and `check_room` says so. Returns how many
        units left.
        """
        start = self._first_above_disk if evicted is None else 0  # what lies on the disk does not move
        n = resident.shape[1]
        home, tokens = self._home[:, start:n], np.arange(start, n)
        gone = np.zeros_like(home, dtype=np.bool_) if evicted is None else evicted
        leaving = (home == DEVICE) & ~resident[:, start:] & ~gone
        below = leaving | ((home == HOST) & ~gone)
        sunk = below & (tokens < start + self._first_on_host(below))
        if evicted is not None:
            self._drop(gone & (home != GONE), start)
        self._n_stuck = int(np.count_nonzero(leaving)) if sunk[:, tokens >= n_on_disk].any() else 0
        if self._n_stuck:
            return 0
        self._sink(_units(leaving & ~sunk, start))
        self._forget(self._host, self._host_slot, sunk, start)
        self._forget(self._device, self._device_slot, leaving, start)
        self._move(_units(sunk, start), DISK)
        above = ((home == DEVICE) | (home == HOST)).any(axis=0)
        self._first_above_disk = start + int(above.argmax()) if above.any() else n
        return int(np.count_nonzero(leaving))

    def _sink(self, units: Units) -> None:
        """From the device to the host."""
        if len(units[0]):
            self._host_slot[units] = self._host.put(self._device.take(self._device_slot[units]))
            self._move(units, HOST)

    def _first_on_host(self, below: Bool) -> int:
        """The column from which on all of `below` (lanes, n) fit on the host."""
        if self._limits.host is None or np.count_nonzero(below) <= self._limits.host:
            return 0
        from_end = np.cumsum(below.sum(axis=0)[::-1])
        return int(below.shape[1] - np.searchsorted(from_end, self._limits.host, side="right"))

    def truncate(self, n_tokens: int) -> None:
        """Forget the tokens from `n_tokens` on."""
        self._drop(self._home[:, n_tokens : self.n_tokens] != GONE, n_tokens)
        self.n_tokens = min(self.n_tokens, n_tokens)
        self._first_above_disk = min(self._first_above_disk, self.n_tokens)
        self._first = [first for first in self._first if first < self.n_tokens]
        self._copied = {step: None for step in self._copied if step < len(self._first)}
        self._n_stuck = 0  # told anew after the next step

    def on_device(self, lanes: Int64, tokens: Int64) -> Bool:
        return np.asarray(self._device_slot[lanes, tokens] != _NOWHERE)

    def home(self, lanes: Int64, tokens: Int64) -> NDArray[np.int8]:
        """(m,) GONE, DEVICE, HOST or DISK"""
        return np.asarray(self._home[lanes, tokens])

    def from_host(self, lanes: Int64, tokens: Int64) -> Tensor:
        """(m, 2, D)"""
        return self._host.take(self._host_slot[lanes, tokens])

    def from_device(self, lanes: Int64, tokens: Int64) -> Tensor:
        """(m, 2, D)"""
        return self._device.take(self._device_slot[lanes, tokens])

    def bring_home(self, lanes: Int64, tokens: Int64, rows: Tensor) -> None:
        """Make units that are not on the device at home there. Raises `DeviceFullError`."""
        self.check_room(len(lanes))
        self._make_room(len(lanes))
        on_host = self._home[lanes, tokens] == HOST
        from_host = lanes[on_host], tokens[on_host]
        self._host.free(self._host_slot[from_host])
        self._host_slot[from_host] = _NOWHERE
        self._device_slot[lanes, tokens] = self._device.put(rows)
        self._move((lanes, tokens), DEVICE)
        self._first_above_disk = min(self._first_above_disk, int(tokens.min(initial=self.n_tokens)))

    def touch(self, lanes: Int64, tokens: Int64) -> None:
        """Units on the device that were just used: copies of their steps leave last."""
        for step in np.unique(self._step_of(tokens[self._home[lanes, tokens] != DEVICE])).tolist():
            self._copied[step] = self._copied.pop(step, None)

    def remember(self, lanes: Int64, tokens: Int64, rows: Tensor) -> None:
        """Keep fetched units as copies as far as the budget goes, those of the newest steps first."""
        budget = self._copy_budget(0)
        kept = np.sort(np.argsort(tokens, kind="stable")[max(0, len(tokens) - budget) :])
        if not len(kept):
            return
        self._evict_copies(budget - len(kept))
        lanes, tokens = lanes[kept], tokens[kept]
        self._device_slot[lanes, tokens] = self._device.put(rows[torch.from_numpy(kept).to(rows.device)])
        self.touch(lanes, tokens)

    def _step_of(self, tokens: Int64) -> Int64:
        return np.searchsorted(np.array(self._first), tokens, side="right") - 1

    def _copy_budget(self, n_more: int) -> int:
        """Copies that may lie beside the homes and `n_more` of them."""
        if self._limits.device is None:
            return self._limits.copies
        return min(self._limits.copies, max(0, self._limits.device - int(self._homes[DEVICE]) - n_more))

    def _make_room(self, n_units: int) -> None:
        if self._limits.device is not None:
            self._evict_copies(self._copy_budget(n_units))

    def _evict_copies(self, n_left: int) -> None:
        """Drop copies, least recently used step first, until at most `n_left` lie on the device."""
        bounds = [*self._first, self.n_tokens]
        while self.n_copies > n_left:
            step = next(iter(self._copied))
            del self._copied[step]
            span = slice(bounds[step], bounds[step + 1])
            self._forget(self._device, self._device_slot, self._home[:, span] != DEVICE, bounds[step])

    def _drop(self, units: Bool, start: int) -> None:
        self._forget(self._device, self._device_slot, units, start)
        self._forget(self._host, self._host_slot, units, start)
        self._move(_units(units, start), GONE)

    def _move(self, units: Units, home: int) -> None:
        self._homes -= np.bincount(self._home[units], minlength=4)
        self._home[units] = home
        self._homes[home] += len(units[0])

    def _forget(self, slab: Slab, all_slots: NDArray[np.int32], units: Bool, start: int) -> None:
        """Free the slots of `units` (lanes, n), of tokens from `start` on, that have one."""
        slots = all_slots[:, start : start + units.shape[1]]
        held = units & (slots != _NOWHERE)
        slab.free(slots[held])
        slots[held] = _NOWHERE


def _units(mask: Bool, start: int) -> Units:
    """Lanes and tokens of a mask (lanes, n) over tokens from `start` on."""
    lanes, tokens = np.nonzero(mask)
    return lanes, tokens + start
