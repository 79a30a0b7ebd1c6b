"""`simulate`: the time of every request of a list, or of a source that keeps a window or a queue full.

Splits requests into transactions, maps them to channel, bank and row, and hands them to `_dram_kernel.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dre_sim.dram.config import DramConfig

if TYPE_CHECKING:
    from dre_sim._dram_layout import Geometry
    from dre_sim._dram_state import Timing

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class DramRequests:
    """Requests in order: `address`, `n_bytes`, `arrival_ps` int64 (n,), `is_write` bool (n,).

    A request is split into transactions; it is done when the last of them is.
    """

    address: Int64
    n_bytes: Int64
    is_write: NDArray[np.bool_]
    arrival_ps: Int64


@dataclass(frozen=True)
class DramResult:
    """arrival_ps, completion_ps : (n,) of the requests; transaction_latency_ps, transaction_write :
    (m,) of their transactions in order, from the request's arrival to the end of its data.
    """

    arrival_ps: Int64
    completion_ps: Int64
    transaction_latency_ps: Int64
    transaction_done_ps: Int64
    transaction_write: NDArray[np.bool_]
    n_bytes: int
    row_hits: int
    activates: int
    busy_ps: int

    @property
    def span_ps(self) -> int:
        return int(self.completion_ps.max() - self.arrival_ps.min())

    @property
    def bandwidth_bytes_per_s(self) -> float:
        return self.n_bytes * 1e12 / self.span_ps


def simulate(config: DramConfig, requests: DramRequests, *, backlog: int = 0, window_bytes: int = 0) -> DramResult:
    """Time every request.

    backlog : instead of `arrival_ps`, add requests in order while fewer than this many transactions wait
        outside the controller (one channel only): a source that is never empty
    window_bytes : instead of `arrival_ps`, keep at most so much outstanding over all channels, in order
    Raises ValueError on empty or ragged requests, negative addresses, or `backlog` with several channels.
    """
    _check(config, requests, backlog, window_bytes)
    from dre_sim import _dram_state as k
    from dre_sim._dram_kernel import run_open, run_window
    from dre_sim._dram_layout import collect, count, fill

    geometry, timing = _geometry(config), _timing(config)
    per_channel, start = count(requests.address, requests.n_bytes, geometry)
    begin = np.cumsum(per_channel) - per_channel
    table, channels = _state(config, per_channel)
    write, arrival = requests.is_write.astype(np.int64), -(-requests.arrival_ps // config.tck_ps)
    q, place, owner = fill(requests.address, write, arrival, start, begin, channels, table, geometry)
    if window_bytes:
        quantum = config.n_bl + (min(config.n_cl, config.n_cwl) if write.any() else config.n_cl)
        window = max(1, window_bytes // config.transaction_bytes)
        run_window(channels, window, quantum, start, owner, table, q, timing)
    else:
        run_open(channels, backlog, table, q, timing)
    arrived, completed, latency, done = collect(start, place, q, config.tck_ps)
    return DramResult(
        arrival_ps=arrived,
        completion_ps=completed,
        transaction_latency_ps=latency,
        transaction_done_ps=done,
        transaction_write=np.repeat(requests.is_write, np.diff(start)),
        n_bytes=int(requests.n_bytes.sum()),
        row_hits=int(table[channels + k.HITS].sum()),
        activates=int(table[channels + k.ACTS].sum()),
        busy_ps=done.size * config.n_bl * config.tck_ps,
    )


def _check(config: DramConfig, r: DramRequests, backlog: int, window_bytes: int) -> None:
    n = r.address.size
    if n == 0 or not (n == r.n_bytes.size == r.is_write.size == r.arrival_ps.size):
        sizes = (n, r.n_bytes.size, r.is_write.size, r.arrival_ps.size)
        raise ValueError(f"address, n_bytes, is_write, arrival_ps have lengths {sizes}; they must be equal and not 0")
    if int(r.address.min()) < 0 or int(r.n_bytes.min()) <= 0 or int(r.arrival_ps.min()) < 0:
        raise ValueError("address and arrival_ps must be >= 0 and n_bytes > 0")
    if backlog and (window_bytes or config.n_channels > 1):
        raise ValueError(f"backlog {backlog} is for one channel without window_bytes; this has {config.n_channels}")
    if not backlog and not window_bytes and bool((np.diff(r.arrival_ps) < 0).any()):
        raise ValueError("arrival_ps must not decrease: requests are served in the order given")


def _geometry(c: DramConfig) -> Geometry:
    from dre_sim._dram_layout import Geometry

    return Geometry(
        transaction_shift=c.transaction_bytes.bit_length() - 1,
        interleave_shift=c.interleave_bytes.bit_length() - 1,
        n_channels=c.n_channels,
        page_map=int(c.address_map == "page"),
        row_shift=c.row_bytes.bit_length() - 1,
        pseudo_shift=c.n_pseudo_channels.bit_length() - 1,
        group_shift=c.n_bank_groups.bit_length() - 1,
        bank_shift=c.n_banks_per_group.bit_length() - 1,
        row_mask=c.n_rows - 1,
        n_transactions=c.capacity_bytes // c.transaction_bytes,
    )


def _timing(c: DramConfig) -> Timing:
    """The kernel's clocks: constraints between commands, from the device's timings."""
    from dre_sim._dram_state import BANK_SIZE, Timing

    per_bank = c.refresh == "per_bank"
    return Timing(
        cl=c.n_cl,
        cwl=c.n_cwl,
        bl=c.n_bl,
        rcd_rd=c.n_rcd_rd,
        rcd_wr=c.n_rcd_wr,
        rp=c.n_rp,
        ras=c.n_ras,
        rc=c.n_rc,
        rtp=c.n_rtp,
        write_to_pre=c.n_cwl + c.n_bl + c.n_wr,
        ccd_s=max(c.n_ccd_s, c.n_bl),
        ccd_l=max(c.n_ccd_l, c.n_bl),
        rrd_s=c.n_rrd_s,
        rrd_l=c.n_rrd_l,
        faw=c.n_faw,
        read_to_write=c.n_cl + c.n_bl + c.n_rtw_gap - c.n_cwl,
        write_to_read_s=c.n_cwl + c.n_bl + c.n_wtr_s,
        write_to_read_l=c.n_cwl + (c.n_bl_max or c.n_bl) + c.n_wtr_l,
        ppd=c.n_ppd,
        aad=c.n_aad,
        act_extra=c.n_act - 1,
        sync_post=-1 if c.n_sync_post is None else c.n_sync_post,
        rfc=c.n_rfc_pb if per_bank else c.n_rfc,
        refi=_refresh_interval(c),
        ref_to_ref=c.n_pbr2pbr if per_bank else 0,
        ref_to_act=c.n_pbr2act if per_bank else c.n_rfc,
        per_bank_refresh=int(per_bank),
        two_buses=int(c.command_bus == "row_and_column"),
        n_ranks=c.n_pseudo_channels,
        rank_banks=c.n_banks // c.n_pseudo_channels * BANK_SIZE,
        all_banks=c.n_banks * BANK_SIZE,
        write_high=int(c.write_high * c.write_queue),
        write_low=-int(-c.write_low * c.write_queue // 1),
        admit_per_clock=4,
        front_clocks=c.n_front,
    )


def _refresh_interval(c: DramConfig) -> int:
    never = 1 << 60
    return {"none": never, "all_bank": c.n_refi, "per_bank": c.n_refi_pb}[c.refresh]


def _state(c: DramConfig, per_channel: Int64) -> tuple[Int64, Int64]:
    """The kernel's table with idle banks and empty queues, and where its channel records begin."""
    from dre_sim import _dram_state as k

    n_ranks = c.n_channels * c.n_pseudo_channels
    n_slots = c.read_queue + c.write_queue
    chan = k.RING + np.arange(c.n_channels) * k.CHANNEL_SIZE
    rank = k.RING + c.n_channels * k.CHANNEL_SIZE + np.arange(n_ranks) * k.RANK_SIZE
    group = rank[-1] + k.RANK_SIZE + np.arange(n_ranks * c.n_bank_groups) * k.GROUP_SIZE
    bank = group[-1] + k.GROUP_SIZE + np.arange(c.n_channels * c.n_banks) * k.BANK_SIZE
    slot = bank[-1] + k.BANK_SIZE + np.arange(c.n_channels * n_slots) * k.SLOT_SIZE
    m = np.zeros(slot[-1] + k.SLOT_SIZE, np.int64)
    end = np.cumsum(per_channel)
    m[chan + k.TODO], m[chan + k.FIFO_END] = per_channel, end * k.TXN_COLS
    m[chan + k.FIFO_HEAD] = m[chan + k.FIFO_TAIL] = (end - per_channel) * k.TXN_COLS
    m[chan + k.ACT2_BANK] = k.NONE
    m[chan + k.REF_NEXT] = _refresh_interval(c)
    m[chan + k.BANKS] = bank[:: c.n_banks]
    m[chan + k.FREE_SLOT], m[chan + k.FREE_SLOT + 1] = slot[::n_slots], slot[c.read_queue :: n_slots]
    follow = (slot + k.SLOT_SIZE).reshape(c.n_channels, n_slots)
    follow[:, [c.read_queue - 1, -1]] = k.NONE
    m[slot + k.S_NEXT] = follow.ravel()
    for field in (k.ROW, k.OWNER, *range(k.HEAD, k.TAG_HIT)):
        m[bank + field] = k.NONE
    m[bank + k.NUMBER] = np.tile(np.arange(c.n_banks), c.n_channels)
    m[bank + k.GROUP] = np.repeat(group, c.n_banks_per_group)
    m[bank + k.RANK] = np.repeat(rank, c.n_banks // c.n_pseudo_channels)
    return m, chan
