"""Where the cache lies: device memory and one offload tier, and the bytes that move between them.

The residency rule is shared by all policies: what is most recent stays within `recent_bytes`. Token-granular
policies keep the last tokens (`recent_window`); clusters leave whole (`clustering.py`). Knows no bandwidth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from resv.selection import LayerSelection
from resv.trace import ModelShape


class ConservationError(RuntimeError):
    """Tokens or bytes were lost or made: a defect of a policy, never of the input."""


class OffloadTier(BaseModel):
    """The tier below device memory."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["host", "ssd"]
    capacity_bytes: int = Field(gt=0)

    def check_fits(self, shape: ModelShape, n_tokens: int, batch: int = 1) -> None:
        """Raise ValueError where the caches of `batch` streams of `n_tokens` are larger than the tier."""
        needed = batch * n_tokens * shape.kv_bytes_per_token
        if needed > self.capacity_bytes:
            raise ValueError(
                f"the cache of {batch} stream(s) of {n_tokens} tokens of {shape.name} takes {needed} bytes, "
                f"the {self.kind} tier holds {self.capacity_bytes}: allowed are at most "
                f"{self.capacity_bytes // (batch * shape.kv_bytes_per_token)} tokens per stream"
            )


def capacity_tokens(shape: ModelShape, recent_bytes: int | None) -> int | None:
    """Tokens whose keys and values, of all layers, fit into `recent_bytes`; None = no limit."""
    return None if recent_bytes is None else recent_bytes // shape.kv_bytes_per_token


def recent_window(n_cached: int, capacity: int | None) -> NDArray[np.bool_]:
    """(S,) bool: the last `capacity` of `n_cached` tokens, all of them where there is no limit."""
    resident = np.ones(n_cached, dtype=np.bool_)
    if capacity is not None:
        resident[: max(0, n_cached - capacity)] = False
    return resident


@dataclass(frozen=True)
class CacheAccount:
    """Bytes of keys and values of one layer at one step, all KV heads.

    cached = resident + offloaded, what was evicted left out;  attended = hit (resident) + fetched
    appended: the step's new tokens
    """

    cached_bytes: int
    resident_bytes: int
    offloaded_bytes: int
    attended_bytes: int
    hit_bytes: int
    fetched_bytes: int
    appended_bytes: int


def account(selection: LayerSelection, shape: ModelShape, n_new: int) -> CacheAccount:
    """Bytes a selection touches, checked.

    Raises
    ------
    ConservationError
        masks of unlike shape, a token that is neither attended nor a candidate for being left out, or an evicted
        one that is still used.
    """
    attended, resident, candidates = selection.attended, selection.resident, selection.candidates
    if not attended.shape == resident.shape == candidates.shape:
        raise ConservationError(
            f"layer {selection.layer}: masks of unlike shape {attended.shape}, {resident.shape}, {candidates.shape}"
        )
    evicted = np.zeros_like(attended) if selection.evicted is None else selection.evicted
    if (evicted & (attended | resident | candidates)).any():
        raise ConservationError(f"layer {selection.layer}: an evicted token is attended, resident or a candidate")
    forgotten = ~attended & ~candidates & ~evicted
    if forgotten.any():
        head, token = np.argwhere(forgotten)[0]
        raise ConservationError(
            f"layer {selection.layer}, KV head {head}: token {token} is left out but was no candidate"
        )

    def size(mask: NDArray[np.bool_]) -> int:
        return shape.kv_bytes(int(np.count_nonzero(mask)))

    on_device, on_tier = size(resident), size(~resident & ~evicted)
    hit, fetched = size(attended & resident), size(attended & ~resident)
    return CacheAccount(
        cached_bytes=on_device + on_tier,
        resident_bytes=on_device,
        offloaded_bytes=on_tier,
        attended_bytes=hit + fetched,
        hit_bytes=hit,
        fetched_bytes=fetched,
        appended_bytes=n_new * shape.kv_bytes_per_token_layer,
    )


class Ledger:
    """Tokens of one layer that entered the cache, left the device or were dropped, each once per KV head."""

    def __init__(self) -> None:
        self.appended = 0
        self.offloaded = 0
        self.evicted = 0

    @property
    def resident(self) -> int:
        return self.appended - self.offloaded - self.evicted

    def append(self, n_new: int, resident: int, evicted: int = 0) -> None:
        """Book `n_new` tokens, after which `resident` are on the device and `evicted` gone; the rest is on the tier.

        Raises
        ------
        ConservationError
            more resident tokens than there can be: offloaded tokens never come back for good, evicted ones never.
        """
        offloaded = self.appended + n_new - resident - evicted
        if n_new < 0 or not 0 <= resident <= self.resident + n_new or evicted < self.evicted or offloaded < 0:
            raise ConservationError(
                f"{n_new} tokens joined {self.resident} resident and {self.evicted} evicted ones, after which "
                f"{resident} are resident and {evicted} evicted"
            )
        self.appended += n_new
        self.offloaded, self.evicted = offloaded, evicted
