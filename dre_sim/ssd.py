"""Request-level NVMe drive: flash dies and planes, channels, write buffer, queue depth, behind a PCIe link.

Small random reads pile up on hot dies, large ones fill the channels or the link; all three are queues here. A drive
fetches its commands over the link too, so that they wait behind data on its way to the host.
The kernels are `_ssd_kernel.py` and `_ssd_levels.py`. Knows no garbage collection, no SLC cache, no mapping misses, no
program suspend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from dre_sim.link import LinkConfig

if TYPE_CHECKING:
    from dre_sim._ssd_kernel import Device

Int64 = NDArray[np.int64]
Count = Field(ge=1, le=4096)
Duration = Field(ge=0, le=10**11)
NO_DATA = np.zeros(1, np.int64)


class SsdConfig(BaseModel):
    """A drive. Logical pages stripe over channels, then dies, then planes.

    t_read_ps : array read time of each page level, levels alternating along a block
    t_command_ps : bus time of a read command;  t_command_plane_ps : more for each further plane
    sector_bytes : extents are rounded out to it by who lays them out
    buffer_bytes : writes complete when they are in this buffer
    commands_first : a free channel gives idle dies commands before it moves waiting pages, which keeps dies busier
    merge_same_page : queued reads of a page that is being fetched share its array read
    doorbell_bytes, entry_bytes, completion_bytes : wire bytes of what a command adds: the host's doorbells, the
        entry that the drive reads, the completion that it writes
    read_request_bytes : with which the drive asks for an entry, or for the data of a write
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    n_channels: int = Field(ge=1, le=256)
    dies_per_channel: int = Count
    planes_per_die: int = Field(ge=1, le=16)
    page_bytes: int = Field(ge=2048, le=1 << 20)
    pages_per_block: int = Field(ge=1, le=65536)
    sector_bytes: int = Field(default=4096, ge=512, le=65536)
    capacity_bytes: int = Field(gt=0)
    channel_gb_per_s: float = Field(ge=0.001, le=64)
    t_read_ps: tuple[int, ...] = Field(min_length=1)
    t_program_ps: int = Duration
    t_command_ps: int = Duration
    t_command_plane_ps: int = Duration
    t_program_command_ps: int = Duration
    t_data_setup_ps: int = Duration
    t_overhead_ps: int = Duration
    buffer_bytes: int = Field(gt=0)
    merge_same_page: bool = False
    commands_first: bool = False
    doorbell_bytes: int = Field(ge=0, le=4096)
    read_request_bytes: int = Field(ge=0, le=4096)
    entry_bytes: int = Field(ge=0, le=4096)
    completion_bytes: int = Field(ge=0, le=4096)
    max_request_bytes: int = Field(default=131072, ge=4096, le=1 << 24, description="longest command of a fetch")
    queue_depth: int = Field(default=64, ge=1, le=65536, description="commands that a fetch keeps outstanding")

    @model_validator(mode="after")
    def _consistent(self) -> SsdConfig:
        if min(self.t_read_ps) <= 0:
            raise ValueError(f"t_read_ps {self.t_read_ps}: every page level needs a positive read time")
        if self.page_bytes % self.sector_bytes:
            raise ValueError(f"page_bytes {self.page_bytes} is not a multiple of sector_bytes {self.sector_bytes}")
        return self

    @property
    def n_dies(self) -> int:
        return self.n_channels * self.dies_per_channel


@dataclass(frozen=True)
class SsdResult:
    """submit_ps, completion_ps : (n,) of the requests in order; latency is their difference.

    up_busy_ps : the link's direction toward the host was in use;  page_reads, page_programs : of the flash array
    """

    submit_ps: Int64
    completion_ps: Int64
    is_write: NDArray[np.bool_]
    payload_bytes: int
    page_reads: int
    page_programs: int
    up_busy_ps: int

    @property
    def time_ps(self) -> int:
        return int(self.completion_ps.max())

    @property
    def bandwidth_bytes_per_s(self) -> float:
        """Reads and writes together."""
        return self.payload_bytes * 1e12 / self.time_ps

    @property
    def read_latency_ps(self) -> Int64:
        return (self.completion_ps - self.submit_ps)[~self.is_write]

    @property
    def mean_latency_ps(self) -> float:
        return float(self.read_latency_ps.mean())

    @property
    def p50_latency_ps(self) -> float:
        return float(np.percentile(self.read_latency_ps, 50))

    @property
    def p99_latency_ps(self) -> float:
        return float(np.percentile(self.read_latency_ps, 99))


def simulate(
    config: SsdConfig,
    link: LinkConfig,
    address: Int64,
    n_bytes: Int64,
    is_write: NDArray[np.bool_] | None = None,
    queue_depth: int | None = None,
    *,
    fresh: bool = False,
) -> SsdResult:
    """Serve requests in order, `queue_depth` of them outstanding (default: the drive's).

    address, n_bytes : (n,) int64; addresses wrap at the capacity. Raises ValueError where they are empty, ragged,
    negative or not positive.
    fresh : the drive holds nothing yet: a page gets its level when it is first touched, what is written always a new
    one; else the drive was filled in order of address. Decides which planes are read and programmed together.
    """
    write = np.zeros(address.size, np.bool_) if is_write is None else is_write
    depth = config.queue_depth if queue_depth is None else queue_depth
    _check(config, address, n_bytes, write, depth)
    from dre_sim import _ssd_kernel as k

    req = np.zeros((address.size, k.REQ_COLS), np.int64)
    wraps = int(address.max()) >= config.capacity_bytes
    req[:, k.ADDRESS] = address % config.capacity_bytes if wraps else address
    req[:, k.SIZE], req[:, k.WRITES] = n_bytes, write
    req[:, k.DOWN_PS] = _link_ps(link, np.where(write, n_bytes, 0))
    req[:, k.UP_PS] = _link_ps(link, np.where(write, 0, n_bytes), config.completion_bytes) + link.transfer_ps
    # At most: pages that are over leave their records to others.
    n_pages = int(((n_bytes - 1) // config.page_bytes).sum()) + 2 * address.size
    op = np.empty((n_pages, k.OP_COLS), np.int64)
    table, waiting = _state(config), np.empty(address.size, np.int64)
    levels = _levels(config, req) if fresh else np.zeros(0, np.int64)
    k.run(depth, waiting, levels, table, op, req, _device(config, link, fresh=fresh))
    return SsdResult(
        submit_ps=req[:, k.SUBMIT],
        completion_ps=req[:, k.DONE],
        is_write=write,
        payload_bytes=int(n_bytes.sum()),
        page_reads=int(table[k.PAGE_READS]),
        page_programs=int(table[k.PROGRAMS]),
        up_busy_ps=int(table[k.UP_BUSY]),
    )


def fetch_requests(config: SsdConfig, extent_bytes: Int64, seed: int = 0) -> tuple[Int64, Int64]:
    """Addresses and sizes of the requests that fetch extents (n,) scattered over the drive.

    An extent is rounded out to sectors, lies at a seeded random sector, and is asked for in requests of at most
    `max_request_bytes`.
    """
    size = -(-extent_bytes // config.sector_bytes) * config.sector_bytes
    sectors = config.capacity_bytes // config.sector_bytes
    start = np.random.default_rng(seed).integers(0, sectors, extent_bytes.size, dtype=np.int64) * config.sector_bytes
    count = -(-size // config.max_request_bytes)
    extent = np.repeat(np.arange(size.size), count)
    offset = (np.arange(extent.size) - (np.cumsum(count) - count)[extent]) * config.max_request_bytes
    return start[extent] + offset, np.minimum(size[extent] - offset, config.max_request_bytes)


def fetch_time(config: SsdConfig, link: LinkConfig, extent_bytes: Int64, seed: int = 0) -> SsdResult:
    """Read extents scattered over the drive, `queue_depth` requests at a time."""
    return simulate(config, link, *fetch_requests(config, extent_bytes, seed))


def sustained_write_ps(config: SsdConfig, n_bytes: int) -> int:
    """Time that programming takes when all dies and planes work on one long sequential write."""
    together = config.n_dies * config.planes_per_die * config.page_bytes
    return -(-n_bytes * config.t_program_ps // together)


def _check(config: SsdConfig, address: Int64, n_bytes: Int64, write: NDArray[np.bool_], depth: int) -> None:
    if address.size == 0 or not address.size == n_bytes.size == write.size:
        sizes = (address.size, n_bytes.size, write.size)
        raise ValueError(f"address, n_bytes, is_write have lengths {sizes}; they must be equal and not 0")
    if int(address.min()) < 0 or int(n_bytes.min()) <= 0:
        raise ValueError(f"addresses must be >= 0 and sizes > 0, not {int(address.min())} and {int(n_bytes.min())}")
    if int(n_bytes.max()) > config.capacity_bytes:
        raise ValueError(f"request of {int(n_bytes.max())} bytes on a drive of {config.capacity_bytes}")
    if depth < 1:
        raise ValueError(f"queue_depth {depth}; at least 1")


def _buses(c: SsdConfig) -> int:
    """Of the kernel's table: an even number, the last may have no dies."""
    return c.n_channels + c.n_channels % 2


def _device(c: SsdConfig, link: LinkConfig, *, fresh: bool) -> Device:
    from dre_sim._ssd_kernel import BUS_SIZE, DIE_SIZE, HOST_SIZE, Device

    dies = HOST_SIZE + _buses(c) * BUS_SIZE
    return Device(
        n_channels=c.n_channels,
        dies=c.dies_per_channel,
        planes=c.planes_per_die,
        levels=c.pages_per_block,
        page_bytes=c.page_bytes,
        bus_ps_per_byte=1e3 / c.channel_gb_per_s,
        command=c.t_command_ps,
        command_plane=c.t_command_plane_ps,
        program_command=c.t_program_command_ps,
        setup=c.t_data_setup_ps,
        program=c.t_program_ps,
        buffer_bytes=c.buffer_bytes,
        merge=int(c.merge_same_page),
        commands_first=int(c.commands_first),
        fresh=int(fresh),
        doorbell=int(_link_ps(link, NO_DATA, c.doorbell_bytes)[0]),
        ask=int(_link_ps(link, NO_DATA, c.read_request_bytes)[0]),
        entry=int(_link_ps(link, NO_DATA, c.entry_bytes)[0]),
        overhead=c.t_overhead_ps + link.latency_ps,
        buses=HOST_SIZE,
        all_dies=dies,
        read_times=dies + c.n_dies * DIE_SIZE,
    )


def _levels(c: SsdConfig, req: Int64) -> Int64:
    """Levels of all requests' pages on a fresh drive, in order; notes in each request how many come before its own."""
    from dre_sim import _ssd_kernel as k
    from dre_sim._ssd_levels import touch

    first, end = req[:, k.ADDRESS] // c.page_bytes, -(-(req[:, k.ADDRESS] + req[:, k.SIZE]) // c.page_bytes)
    count = end - first
    before = np.cumsum(count) - count
    req[:, k.PAGES_BEFORE] = before
    page = np.repeat(first - before, count) + np.arange(int(count.sum()))
    different, number = np.unique(page, return_inverse=True)
    n_planes = c.n_dies * c.planes_per_die
    writes = np.repeat(req[:, k.WRITES], count)
    return touch(number, writes, different.size, n_planes, c.pages_per_block, page % n_planes)


def _link_ps(link: LinkConfig, n_bytes: Int64, command_bytes: int = 0) -> Int64:
    """Time on the wire, one direction, of each request's data and of what its command adds."""
    wire = n_bytes - (-n_bytes // link.tlp_payload_bytes) * link.tlp_overhead_bytes + command_bytes
    time_ps: Int64 = np.ceil(wire * (1e3 / (link.raw_gb_per_s * link.efficiency))).astype(np.int64)
    return time_ps


def _state(c: SsdConfig) -> Int64:
    """The kernel's table: an idle host, idle buses and dies, and the page read times."""
    from dre_sim import _ssd_kernel as k

    bus = np.zeros((_buses(c), k.BUS_SIZE), np.int64)
    bus[:, [k.MOVES, k.OUT_HEAD, k.OUT_TAIL]] = k.NONE
    bus[:, [k.DIE_ENDS, k.NEXT]] = k.FAR
    die = np.full((c.n_dies, k.DIE_SIZE), k.NONE, np.int64)
    die[:, [k.STATE, k.N_ACTIVE]] = 0
    die[:, k.AT] = k.FAR
    # Page levels take their read times in turn.
    times = np.resize(np.array(c.t_read_ps, np.int64), c.pages_per_block)
    host = np.zeros(k.HOST_SIZE, np.int64)
    host[k.UNUSED] = k.NONE
    parts = host, bus.ravel(), die.ravel(), times
    return np.concatenate(parts)
