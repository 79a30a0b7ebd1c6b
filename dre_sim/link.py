"""PCIe: what a transfer costs in transaction-layer packets, wire bytes, per-transfer cost and time.

`raw` counts every byte on the wire, `payload` only the data inside packets; every figure says which. Knows no
tier behind the link (`offload.py`) and no queueing between devices on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Int64 = NDArray[np.int64]

# Decimal GB/s of one lane and direction, by generation: transfer rate / 8 without the line code, as V-Rex
# (HPCA 2026, arXiv 2512.12284), Table I counts it (3.0 x4 = 4 GB/s, 4.0 x16 = 32 GB/s).
RAW_GB_PER_S_PER_LANE = {3: 1.0, 4: 2.0, 5: 4.0}


class LinkConfig(BaseModel):
    """One PCIe link, one direction.

    transfer_ps : time that each extent adds, not overlapped with other extents; that of copy calls and gather kernels
        is the platform's (`GpuConfig.copy_path`)
    efficiency : share of the payload rate reached by long transfers
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    generation: Literal[3, 4, 5]
    lanes: Literal[1, 2, 4, 8, 16]
    tlp_payload_bytes: int = Field(default=128, ge=64, le=4096, description="largest data part of one packet")
    tlp_overhead_bytes: int = Field(default=28, ge=12, le=64, description="framing, header, CRC, share of DLLPs")
    transfer_ps: int = Field(default=0, ge=0, le=10**9)
    efficiency: float = Field(default=1.0, ge=0.001, le=1)
    latency_ps: int = Field(default=0, ge=0, le=10**9, description="first byte asked to first byte received")

    @property
    def raw_gb_per_s(self) -> float:
        return RAW_GB_PER_S_PER_LANE[self.generation] * self.lanes

    @property
    def payload_gb_per_s(self) -> float:
        """What is left for data in full packets, at the link's efficiency."""
        full = self.tlp_payload_bytes + self.tlp_overhead_bytes
        return self.raw_gb_per_s * self.tlp_payload_bytes / full * self.efficiency


@dataclass(frozen=True)
class LinkResult:
    """time_ps : from the first extent's start to the last byte, link otherwise idle."""

    time_ps: int
    payload_bytes: int
    wire_bytes: int
    n_tlps: int
    n_transactions: int


def transfer(config: LinkConfig, extent_bytes: Int64) -> LinkResult:
    """Move extents (n,) one after the other; each starts a packet of its own. No extent takes no time.

    Raises ValueError where an extent is not positive.
    """
    if extent_bytes.size == 0:
        return LinkResult(0, 0, 0, 0, 0)
    if int(extent_bytes.min()) <= 0:
        raise ValueError(f"extent of {int(extent_bytes.min())} bytes; extents must be positive")
    tlps = int((-(-extent_bytes // config.tlp_payload_bytes)).sum())
    payload = int(extent_bytes.sum())
    wire = payload + tlps * config.tlp_overhead_bytes
    moving = wire * 1000 / (config.raw_gb_per_s * config.efficiency)
    time_ps = config.latency_ps + extent_bytes.size * config.transfer_ps + round(moving)
    return LinkResult(time_ps, payload, wire, tlps, int(extent_bytes.size))
