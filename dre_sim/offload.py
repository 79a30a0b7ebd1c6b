"""`OffloadTier`: where K and V live that do not fit the device, an SSD or host memory behind a PCIe link.

`fetch` answers for the extents of one layer: the drive is simulated on them, host memory streams at its steady state.
Knows no layer before or after and nothing of what the device does meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from dre_sim.dram import AccessPattern, DramConfig, steady_state
from dre_sim.link import LinkConfig, LinkResult, transfer
from dre_sim.ssd import SsdConfig, fetch_requests, simulate, sustained_write_ps

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class FetchTiming:
    """time_ps : from the first request to the last byte, first_byte_ps to the first completed request
    link_busy_ps, tier_busy_ps : of it, data was on the link, and the tier worked
    payload_bytes : data, rounded out to the tier's sectors;  wire_bytes : with packet overhead (raw)
    n_transactions : requests that the tier served;  page_reads : of the flash array
    """

    time_ps: int
    first_byte_ps: int
    link_busy_ps: int
    tier_busy_ps: int
    payload_bytes: int
    wire_bytes: int
    n_transactions: int
    page_reads: int

    @property
    def bandwidth_bytes_per_s(self) -> float:
        """Payload over time; 0 for an empty fetch."""
        return self.payload_bytes * 1e12 / self.time_ps if self.time_ps else 0.0


NOTHING = FetchTiming(0, 0, 0, 0, 0, 0, 0, 0)


class OffloadTier(BaseModel):
    """An SSD (`ssd`) or host memory (`memory`) behind `link`. `capacity_bytes` defaults to the device's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["ssd", "host_dram"]
    link: LinkConfig
    ssd: SsdConfig | None = None
    memory: DramConfig | None = None
    capacity_bytes: int = Field(default=0, ge=0, validate_default=True)

    @field_validator("capacity_bytes")
    @classmethod
    def _device_capacity(cls, value: int, info: ValidationInfo) -> int:
        device = info.data.get("ssd") or info.data.get("memory")
        return value or (device.capacity_bytes if device is not None else 0)

    @model_validator(mode="after")
    def _device_fits_kind(self) -> OffloadTier:
        given = [name for name in ("ssd", "memory") if getattr(self, name) is not None]
        wanted = {"ssd": ["ssd"], "host_dram": ["memory"]}[self.kind]
        if given != wanted:
            raise ValueError(f"kind {self.kind} takes {wanted[0]}, not {' and '.join(given) or 'nothing'}")
        return self

    def fetch(self, extent_bytes: Int64) -> FetchTiming:
        """Bring extents (n,) to the device, all asked for at once. No extents take no time.

        Raises ValueError where an extent is not positive.
        """
        if extent_bytes.size == 0:
            return NOTHING
        if int(extent_bytes.min()) <= 0:
            raise ValueError(f"extent of {int(extent_bytes.min())} bytes; extents must be positive")
        return _fetch(self, np.ascontiguousarray(extent_bytes, np.int64).tobytes())

    def write(self, n_bytes: int) -> FetchTiming:
        """Stream `n_bytes` from the device, the other direction of the link; time until the tier has them."""
        if n_bytes == 0:
            return NOTHING
        moved = transfer(self.link, np.array([n_bytes], np.int64))
        if self.ssd is not None:
            busy_ps = sustained_write_ps(self.ssd, n_bytes)
            # What the drive's buffer does not hold has to be programmed first.
            behind_ps = sustained_write_ps(self.ssd, max(0, n_bytes - self.ssd.buffer_bytes))
        else:
            busy_ps = behind_ps = _stream_ps(self.memory, AccessPattern(write_share=1.0), n_bytes)
        return _timing(max(moved.time_ps, behind_ps), 0, moved, busy_ps, 1, 0)

    def relayed_ps(self, extent_bytes: Int64) -> int:
        """Time in which a host copies extents (n,) of its memory into one buffer that the link reads; a drive has none.

        Assumed to be as fast as the memory: every byte is read where it lies and written.
        """
        if self.memory is None or extent_bytes.size == 0:
            return 0
        n_bytes = int(extent_bytes.sum())
        read_ps = _stream_ps(self.memory, AccessPattern(chunk_bytes=int(extent_bytes.mean())), n_bytes)
        return read_ps + _stream_ps(self.memory, AccessPattern(write_share=1.0), n_bytes)

    def fetch_actions(self, timing: FetchTiming) -> dict[str, int]:
        """What is priced: payload bytes, lane-picoseconds of the link, work of the tier."""
        tier = {"ssd_read_bytes": timing.payload_bytes, "ssd_busy_ps": timing.tier_busy_ps}
        return self._link_actions(timing) | (tier if self.kind == "ssd" else {"host_dram_bytes": timing.payload_bytes})

    def write_actions(self, timing: FetchTiming) -> dict[str, int]:
        """As `fetch_actions`, for a write."""
        tier = {"ssd_write_bytes": timing.payload_bytes, "ssd_busy_ps": timing.tier_busy_ps}
        return self._link_actions(timing) | (tier if self.kind == "ssd" else {"host_dram_bytes": timing.payload_bytes})

    def _link_actions(self, timing: FetchTiming) -> dict[str, int]:
        return {"link_bytes": timing.payload_bytes, "link_lane_ps": self.link.lanes * timing.link_busy_ps}


@lru_cache(maxsize=256)
def _fetch(tier: OffloadTier, extents: bytes) -> FetchTiming:
    sizes = np.frombuffer(extents, np.int64)
    return _fetch_ssd(tier.ssd, tier.link, sizes) if tier.ssd is not None else _fetch_dram(tier, sizes)


def _fetch_ssd(ssd: SsdConfig, link: LinkConfig, sizes: Int64) -> FetchTiming:
    address, request_bytes = fetch_requests(ssd, sizes)
    result = simulate(ssd, link, address, request_bytes)
    moved = transfer(link, request_bytes)
    first = int(result.completion_ps.min())
    busy = result.up_busy_ps
    return FetchTiming(
        time_ps=result.time_ps,
        first_byte_ps=first,
        link_busy_ps=busy,
        tier_busy_ps=result.time_ps,
        payload_bytes=moved.payload_bytes,
        wire_bytes=moved.wire_bytes,
        n_transactions=moved.n_transactions,
        page_reads=result.page_reads,
    )


def _fetch_dram(tier: OffloadTier, sizes: Int64) -> FetchTiming:
    """Host memory reads extents at random places while the link moves them: the slower of the two decides."""
    assert tier.memory is not None
    moved = transfer(tier.link, sizes)
    access = AccessPattern(chunk_bytes=int(sizes.mean()))
    busy_ps = _stream_ps(tier.memory, access, moved.payload_bytes)
    first_ps = tier.memory.unloaded_latency_ps
    return _timing(first_ps + max(moved.time_ps, busy_ps), first_ps, moved, busy_ps, int(sizes.size), 0)


def _stream_ps(memory: DramConfig | None, access: AccessPattern, n_bytes: int) -> int:
    assert memory is not None
    return round(n_bytes * 1e12 / steady_state(memory, access).bandwidth_bytes_per_s)


def _timing(time_ps: int, first_ps: int, moved: LinkResult, busy_ps: int, n: int, pages: int) -> FetchTiming:
    return FetchTiming(
        time_ps=time_ps,
        first_byte_ps=first_ps,
        link_busy_ps=moved.time_ps,
        tier_busy_ps=busy_ps,
        payload_bytes=moved.payload_bytes,
        wire_bytes=moved.wire_bytes,
        n_transactions=n,
        page_reads=pages,
    )
