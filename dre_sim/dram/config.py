"""`DramConfig`: shape, timings, command bus, refresh and queues of one memory system."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

CommandBus = Literal["single", "split_activate", "row_and_column"]
Clocks = Field(ge=0, le=2_000)
RefreshClocks = Field(default=0, ge=0, le=100_000)
Count = Field(ge=1, le=1 << 20)


def _power_of_two(value: int, what: str) -> None:
    if value & (value - 1):
        raise ValueError(f"{what} is {value}; it must be a power of two")


class DramConfig(BaseModel):
    """One memory system. Timings named `n_*` are DRAM clocks, as in the JEDEC tables of the device.

    address_map : `page` puts column, pseudo-channel, bank group, bank, row from the lowest bit up (a stream stays
        in one bank group); `bank_group` changes the bank group every 64 B (64 B, pseudo-channel, bank group,
        rest of the column, bank, row). Channel = (address / interleave_bytes) mod n_channels, below all of it.
    command_bus : `split_activate` (LPDDR5) needs two slots for an activate, the second within `n_aad`;
        `row_and_column` (HBM) has a bus for each, and an activate takes `n_act` clocks of the row bus.
    outstanding_bytes : what a streaming source (DMA) keeps in flight over all channels in `steady_state`
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    n_channels: int = Field(ge=1, le=256)
    n_pseudo_channels: int = Field(default=1, ge=1, le=2)
    n_bank_groups: int = Count
    n_banks_per_group: int = Count
    n_rows: int = Count
    row_bytes: int = Count
    transaction_bytes: int = Field(ge=16, le=128)
    interleave_bytes: int = Field(default=256, ge=64, le=1 << 20)
    address_map: Literal["page", "bank_group"] = "bank_group"
    tck_ps: int = Field(gt=0, le=10_000)
    n_cl: int = Clocks
    n_cwl: int = Clocks
    n_bl: int = Field(ge=1, le=64, description="clocks that one transaction holds the data bus")
    n_bl_max: int | None = Field(default=None, description="column array cycle in write-to-read, same group")
    n_rcd_rd: int = Clocks
    n_rcd_wr: int = Clocks
    n_rp: int = Clocks
    n_ras: int = Clocks
    n_rc: int = Clocks
    n_wr: int = Clocks
    n_rtp: int = Clocks
    n_ccd_s: int = Clocks
    n_ccd_l: int = Clocks
    n_rrd_s: int = Clocks
    n_rrd_l: int = Clocks
    n_faw: int = Clocks
    n_wtr_s: int = Clocks
    n_wtr_l: int = Clocks
    n_rtw_gap: int = Field(default=2, ge=0, le=64, description="idle data-bus clocks between read and write")
    n_ppd: int = Field(default=0, ge=0, le=64)
    command_bus: CommandBus = "single"
    n_act: int = Field(default=1, ge=1, le=4, description="clocks of an activate command on its bus")
    n_aad: int = Field(default=0, ge=0, le=64, description="latest second half of a split activate")
    n_sync_post: int | None = Field(
        default=None, ge=0, le=64, description="clocks after data until the data clock must be synchronised again"
    )
    refresh: Literal["all_bank", "per_bank", "none"] = "all_bank"
    n_refi: int = RefreshClocks
    n_rfc: int = RefreshClocks
    n_refi_pb: int = RefreshClocks
    n_rfc_pb: int = RefreshClocks
    n_pbr2pbr: int = RefreshClocks
    n_pbr2act: int = RefreshClocks
    read_queue: int = Field(default=32, ge=1, le=1024)
    write_queue: int = Field(default=32, ge=1, le=1024)
    write_high: float = Field(default=0.8, gt=0, le=1, description="share of the write queue that starts a drain")
    write_low: float = Field(default=0.2, ge=0, lt=1, description="share of the write queue that ends a drain")
    n_front: int = Field(default=2, ge=0, le=1000, description="clocks from a request's arrival to its first command")
    outstanding_bytes: int = Field(ge=64)

    @model_validator(mode="after")
    def _consistent(self) -> DramConfig:
        for what in ("n_bank_groups", "n_banks_per_group", "n_rows", "row_bytes", "transaction_bytes"):
            _power_of_two(getattr(self, what), what)
        _power_of_two(self.interleave_bytes, "interleave_bytes")
        if self.row_bytes < 64:
            raise ValueError(f"row_bytes is {self.row_bytes}; a row holds at least 64 B")
        if self.transaction_bytes > 64:
            raise ValueError(f"transaction_bytes is {self.transaction_bytes}; at most 64 is modelled")
        if self.n_banks > 62:
            raise ValueError(f"{self.n_banks} banks in a channel; at most 62 are modelled")
        if self.write_low >= self.write_high:
            raise ValueError(f"write_low {self.write_low} must be below write_high {self.write_high}")
        if self.refresh == "all_bank" and not 0 < self.n_rfc < self.n_refi:
            raise ValueError(f"all-bank refresh needs 0 < n_rfc < n_refi, not {self.n_rfc} and {self.n_refi}")
        if self.refresh == "per_bank" and not 0 < self.n_rfc_pb < self.n_refi_pb * self.n_banks:
            raise ValueError(f"per-bank refresh needs n_rfc_pb and n_refi_pb, not {self.n_rfc_pb} and {self.n_refi_pb}")
        if (self.n_aad > 0) != (self.command_bus == "split_activate"):
            raise ValueError(f"n_aad {self.n_aad} belongs to a split_activate command bus, this is {self.command_bus}")
        if self.n_aad and self.n_aad >= min(self.n_rcd_rd, self.n_rcd_wr):
            raise ValueError(
                f"n_aad {self.n_aad} must be below n_rcd_rd {self.n_rcd_rd} and n_rcd_wr {self.n_rcd_wr}: "
                "a column command follows the whole activate"
            )
        return self

    @property
    def n_banks(self) -> int:
        """Banks of one channel, pseudo-channels together."""
        return self.n_pseudo_channels * self.n_bank_groups * self.n_banks_per_group

    @property
    def peak_bytes_per_s(self) -> float:
        """Data pins of all channels, busy in every clock."""
        per_clock = self.transaction_bytes * self.n_pseudo_channels / self.n_bl
        return self.n_channels * per_clock * 1e12 / self.tck_ps

    @property
    def unloaded_latency_ps(self) -> int:
        """A read of a closed bank on an idle channel, until its data is complete."""
        return (self.n_front + self.n_rcd_rd + self.n_cl + self.n_bl) * self.tck_ps

    @property
    def channel_bytes(self) -> int:
        return self.n_banks * self.n_rows * self.row_bytes

    @property
    def capacity_bytes(self) -> int:
        return self.n_channels * self.channel_bytes
