"""Drive and offload tier: the kernel against its twin, closed forms, laws."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dre_sim.dram import DramConfig
from dre_sim.link import LinkConfig
from dre_sim.offload import NOTHING, OffloadTier
from dre_sim.ssd import SsdConfig, SsdResult, fetch_requests, fetch_time, simulate, sustained_write_ps
from tests.naive_drive import NaiveDrive

CONFIGS = Path(__file__).parent.parent / "configs"


def read(family: str, name: str) -> dict[str, Any]:
    fields: dict[str, Any] = yaml.safe_load((CONFIGS / family / f"{name}.yaml").read_text(encoding="utf-8"))
    return fields


def ssd(name: str = "generic_g3", **changes: Any) -> SsdConfig:
    return SsdConfig(**(read("ssd", name) | changes))


def link(name: str = "pcie3_x4", **changes: Any) -> LinkConfig:
    return LinkConfig(**(read("link", name) | changes))


def random_reads(config: SsdConfig, wire: LinkConfig, size: int, depth: int, n: int = 4_000) -> SsdResult:
    address = np.random.default_rng(0).integers(0, config.capacity_bytes // size, n) * size
    return simulate(config, wire, address, np.full(n, size), None, depth)


# -- the kernel is its twin ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(24))
def test_kernel_completes_every_request_at_the_time_of_its_twin(seed: int) -> None:
    g = np.random.default_rng(seed)
    config = ssd(
        n_channels=int(g.integers(1, 4)),
        dies_per_channel=int(g.integers(1, 4)),
        planes_per_die=int(g.integers(1, 5)),
        pages_per_block=int(g.integers(1, 4)),
        capacity_bytes=64 * 16384,
        t_read_ps=[40_000_000, 55_000_000, 70_000_000][: int(g.integers(1, 4))],
        buffer_bytes=int(g.choice([16384, 65536, 1 << 22])),
        merge_same_page=bool(g.integers(2)),
        commands_first=bool(g.integers(2)),
    )
    wire = link(transfer_ps=int(g.choice([0, 1_000_000])))
    n, depth = 120, int(g.choice([1, 4, 40]))
    address, size = g.integers(0, 60, n) * 4096, g.choice([512, 4096, 40_000], n)
    write = g.random(n) < g.choice([0.0, 0.3, 1.0])
    fresh = bool(g.integers(2))
    got = simulate(config, wire, address, size, write, depth, fresh=fresh)
    ref = NaiveDrive(config, wire, address.tolist(), size.tolist(), write.tolist(), fresh=fresh)
    ref.run(depth)
    assert got.completion_ps.tolist() == ref.done
    assert got.submit_ps.tolist() == ref.submit
    assert got.page_reads == ref.page_reads


# -- closed forms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "wire"), [("generic_g3", "pcie3_x4"), ("generic_g4", "pcie4_x4")])
@pytest.mark.parametrize("size", [4096, 16384, 131072, 262144])
def test_read_at_depth_one_is_array_channel_link_and_overhead(name: str, wire: str, size: int) -> None:
    config, bus = ssd(name), link(wire)
    got = simulate(config, bus, np.array([0]), np.array([size]), None, 1)
    pages_of_a_channel = max(1, size // config.page_bytes // config.n_channels)
    channel_ps = pages_of_a_channel * min(size, config.page_bytes) * 1000
    raw = size + size // 128 * 28 + config.doorbell_bytes + config.read_request_bytes
    raw += config.entry_bytes + config.completion_bytes
    link_ps = raw * 1000 / bus.raw_gb_per_s
    expected = config.t_command_ps + config.t_read_ps[0] + channel_ps + link_ps + config.t_overhead_ps
    assert got.completion_ps[0] == pytest.approx(expected, abs=2)
    overhead_us = (
        expected - config.t_read_ps[0] - channel_ps - (size + size // 128 * 28) * 1000 / bus.raw_gb_per_s
    ) / 1e6
    assert overhead_us == pytest.approx({"generic_g3": 0.37, "generic_g4": 0.34}[name], abs=0.002)


def test_a_command_is_fetched_behind_the_data_of_those_before_it() -> None:
    """Four sequential reads of 64 KiB at a time, each over channels of its own: in step, one link transfer apart.

    MQSim takes 146.65 us for each (table ssd_read_g3, seq, depth 4), a drive that knew its commands at once 86.7.
    """
    config, bus, n = ssd(), link(), 400
    got = simulate(config, bus, np.arange(n) * 65536, np.full(n, 65536), None, 4)
    alone = simulate(config, bus, np.array([0]), np.array([65536]), None, 1).time_ps
    transfer_ps = (65536 + 512 * 28) * 250
    latency_ps = (got.completion_ps - got.submit_ps)[4:]
    assert latency_ps == pytest.approx(alone + 3 * transfer_ps, rel=2e-3)
    assert latency_ps / 1e6 == pytest.approx(146.65, rel=1e-3)


def test_a_fresh_drive_gives_pages_their_place_when_they_are_touched() -> None:
    """One die, two planes: while it reads a row, pages 4 and 7 arrive, each the second to be touched in its plane."""
    config = ssd(n_channels=1, dies_per_channel=1, planes_per_die=2)
    address, size = np.array([0, 4, 7]) * 16384, np.array([32768, 16384, 16384])
    filled, fresh = (simulate(config, link(), address, size, fresh=fresh) for fresh in (False, True))
    saved_ps = config.t_read_ps[0] + config.t_command_ps - config.t_command_plane_ps
    assert filled.time_ps - fresh.time_ps == pytest.approx(saved_ps, rel=0.01)


def test_planes_of_a_die_read_together_and_pages_of_one_plane_do_not() -> None:
    together, apart = (
        simulate(ssd(n_channels=1, dies_per_channel=1, planes_per_die=n), link(), np.array([0]), np.array([65536]))
        for n in (4, 1)
    )
    array_ps = ssd().t_read_ps[0]
    assert together.page_reads == apart.page_reads == 4
    assert array_ps < together.time_ps < 3 * array_ps < 4 * array_ps < apart.time_ps


def test_write_completes_in_the_buffer_and_read_behind_its_program_waits() -> None:
    config = ssd(n_channels=1, dies_per_channel=1)
    both = simulate(config, link(), np.array([0, 4 * 16384]), np.full(2, 16384), np.array([True, False]), 1)
    assert both.completion_ps[0] < 10_000_000
    assert both.completion_ps[1] - both.submit_ps[1] > config.t_program_ps
    assert both.page_programs == both.page_reads == 1


def test_full_buffer_makes_writes_wait_for_programs() -> None:
    config = ssd(buffer_bytes=16384, n_channels=1, dies_per_channel=1)
    got = simulate(config, link(), np.arange(6) * 4 * 16384, np.full(6, 16384), np.ones(6, np.bool_), 1)
    assert np.diff(got.completion_ps)[1:].min() > config.t_program_ps


def test_repeats_of_a_page_that_waits_share_its_array_read() -> None:
    config = ssd(merge_same_page=True)
    got = simulate(config, link(), np.arange(4) * 4096, np.full(4, 4096))
    apart = simulate(
        config.model_copy(update={"merge_same_page": False}), link(), np.arange(4) * 4096, np.full(4, 4096)
    )
    assert got.page_reads < apart.page_reads == 4
    assert got.time_ps < apart.time_ps


# -- laws ------------------------------------------------------------------------------------------------


def test_long_sequential_reads_reach_the_links_payload_rate() -> None:
    n = 400
    got = simulate(ssd(), link(), np.arange(n) * 262144, np.full(n, 262144), None, 32)
    assert got.bandwidth_bytes_per_s == pytest.approx(3.28e9, rel=0.02)


def test_bg6_reaches_its_specification_and_is_bounded_by_an_older_link() -> None:
    drive = ssd("bg6")
    n = 1_500
    stream = np.arange(n) * 131072, np.full(n, 131072), None, 32
    assert simulate(drive, link("pcie4_x4"), *stream).bandwidth_bytes_per_s == pytest.approx(6.0e9, rel=0.02)
    assert simulate(drive, link("pcie3_x4"), *stream).bandwidth_bytes_per_s == pytest.approx(3.28e9, rel=0.02)
    small = random_reads(drive, link("pcie4_x4"), 4096, 512, 30_000)
    assert 30_000 * 1e12 / small.time_ps == pytest.approx(850e3, rel=0.05)


def test_hot_dies_make_the_tail_of_small_random_reads() -> None:
    got = random_reads(ssd("generic_g4"), link("pcie4_x4"), 4096, 64, 20_000)
    assert got.p99_latency_ps == pytest.approx(3.5 * got.mean_latency_ps, rel=0.15)
    assert got.p50_latency_ps < got.mean_latency_ps


@pytest.mark.parametrize("size", [4096, 65536])
def test_less_hardware_is_never_faster(size: int) -> None:
    whole = random_reads(ssd("generic_g4"), link("pcie4_x4"), size, 32).time_ps
    slack = 0.99  # a reordering scheduler may gain a little
    for worse in (
        {"n_channels": 4},
        {"dies_per_channel": 2},
        {"channel_gb_per_s": 0.5},
        {"t_read_ps": [90_000_000]},
    ):
        assert random_reads(ssd("generic_g4", **worse), link("pcie4_x4"), size, 32).time_ps >= slack * whole, worse
    assert random_reads(ssd("generic_g4"), link("pcie3_x4"), size, 32).time_ps >= slack * whole
    assert random_reads(ssd("generic_g4"), link("pcie4_x4"), size, 8).time_ps >= slack * whole


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 400_000), min_size=1, max_size=40), seed=st.integers(0, 99))
def test_fetch_asks_for_every_byte_of_every_extent_in_whole_sectors(sizes: list[int], seed: int) -> None:
    config = ssd()
    extents = np.array(sizes, np.int64)
    address, n_bytes = fetch_requests(config, extents, seed)
    assert n_bytes.sum() == (-(-extents // 4096) * 4096).sum()
    assert (address % 4096 == 0).all()
    assert (n_bytes % 4096 == 0).all()
    assert 0 < n_bytes.min() <= n_bytes.max() <= config.max_request_bytes
    got = fetch_time(config, link(), extents, seed)
    assert got.payload_bytes == n_bytes.sum()
    assert got.page_reads * config.page_bytes >= got.payload_bytes
    assert got.time_ps >= got.up_busy_ps


# -- offload tier ----------------------------------------------------------------------------------------


def tier(kind: str = "ssd", **changes: Any) -> OffloadTier:
    if kind == "ssd":
        return OffloadTier(kind="ssd", link=link(), ssd=ssd(), **changes)
    return OffloadTier(
        kind="host_dram", link=link("pcie4_x16"), memory=DramConfig(**read("memory", "ddr4_3200")), **changes
    )


@pytest.mark.parametrize("kind", ["ssd", "host_dram"])
def test_fetch_is_bounded_by_the_link_and_repeatable(kind: str) -> None:
    extents = np.full(500, 32768)
    got = tier(kind).fetch(extents)
    assert got == tier(kind).fetch(extents.copy())
    assert got.payload_bytes == extents.sum()
    assert 0 < got.first_byte_ps < got.time_ps
    assert got.link_busy_ps <= got.time_ps
    assert 0.9 < got.bandwidth_bytes_per_s / (tier(kind).link.payload_gb_per_s * 1e9) <= 1.0
    assert tier(kind).fetch(extents[:400]).time_ps < got.time_ps


@pytest.mark.parametrize("kind", ["ssd", "host_dram"])
def test_small_extents_fetch_slower_for_the_same_bytes(kind: str) -> None:
    small, large = tier(kind).fetch(np.full(4_096, 2_048)), tier(kind).fetch(np.full(64, 131_072))
    assert small.time_ps >= large.time_ps
    assert small.tier_busy_ps > large.tier_busy_ps
    assert small.n_transactions > large.n_transactions


@pytest.mark.parametrize(("channels", "bound"), [(8, "link_busy_ps"), (1, "tier_busy_ps")])
def test_host_memory_answers_after_its_latency_and_takes_the_slower_of_memory_and_link(
    channels: int, bound: str
) -> None:
    memory = DramConfig(**read("memory", "ddr4_3200") | {"n_channels": channels})
    host = tier("host_dram").model_copy(update={"memory": memory})
    assert host.memory is not None
    latency_ps = host.memory.unloaded_latency_ps
    got = host.fetch(np.full(4_096, 2_048))
    assert got.first_byte_ps == latency_ps > 0
    assert got.time_ps == latency_ps + getattr(got, bound) == latency_ps + max(got.link_busy_ps, got.tier_busy_ps)
    assert got.tier_busy_ps > got.payload_bytes / host.memory.peak_bytes_per_s * 1e12
    sent = host.write(1 << 24)
    assert sent.time_ps == getattr(sent, bound) == max(sent.link_busy_ps, sent.tier_busy_ps)
    assert sent.tier_busy_ps > sent.payload_bytes / host.memory.peak_bytes_per_s * 1e12


def test_a_relay_reads_and_writes_every_byte_of_host_memory_and_a_drive_has_none() -> None:
    extents, host = np.full(4_096, 256), tier("host_dram")
    assert host.memory is not None
    passes_ps = 2 * extents.sum() / host.memory.peak_bytes_per_s * 1e12
    assert passes_ps <= host.relayed_ps(extents) < 5 * passes_ps
    assert host.relayed_ps(np.array([extents.sum()])) < host.relayed_ps(extents)  # rows opened for less
    assert host.relayed_ps(extents) < host.relayed_ps(np.full(8_192, 128))
    assert host.relayed_ps(np.array([], np.int64)) == 0 == tier("ssd").relayed_ps(extents)


def test_nothing_to_fetch_or_write_takes_no_time() -> None:
    assert tier().fetch(np.array([], np.int64)) == NOTHING == tier().write(0)
    assert NOTHING.bandwidth_bytes_per_s == 0.0
    assert set(astuple(NOTHING)) == {0}


def test_a_byte_more_than_the_write_buffer_holds_takes_no_longer_by_itself() -> None:
    held = tier().ssd.buffer_bytes
    sizes = [held - 1, held, held + 1, 2 * held, 8 * held]
    times = [tier().write(n).time_ps for n in sizes]
    assert times == sorted(times)
    assert times[2] - times[1] < 1e-3 * times[1]
    slow = tier().model_copy(update={"ssd": ssd(t_program_ps=6_000_000_000)})
    assert slow.write(8 * held).time_ps == sustained_write_ps(slow.ssd, 7 * held)


def test_long_writes_end_with_their_programs_and_short_ones_in_the_buffer() -> None:
    config = ssd()
    short, long = tier().write(40_960), tier().write(1 << 30)
    assert short.time_ps == short.link_busy_ps
    assert long.time_ps == max(long.link_busy_ps, sustained_write_ps(config, 1 << 30))
    assert sustained_write_ps(config, 32 * 4 * 16384) == config.t_program_ps


@pytest.mark.parametrize(
    ("kind", "names"), [("ssd", {"ssd_read_bytes", "ssd_busy_ps"}), ("host_dram", {"host_dram_bytes"})]
)
def test_what_is_moved_is_priced(kind: str, names: set[str]) -> None:
    timing = tier(kind).fetch(np.full(10, 8192))
    actions = tier(kind).fetch_actions(timing)
    assert set(actions) == {"link_bytes", "link_lane_ps"} | names
    assert actions["link_bytes"] == timing.payload_bytes == 81_920
    assert actions["link_lane_ps"] == tier(kind).link.lanes * timing.link_busy_ps
    written = tier(kind).write_actions(tier(kind).write(4096))
    assert written["link_bytes"] == 4096
    assert written["link_lane_ps"] == tier(kind).link.lanes * tier(kind).write(4096).link_busy_ps
    held = {"ssd_write_bytes": 4096, "ssd_busy_ps": sustained_write_ps(ssd(), 4096)}
    on_tier = {name: count for name, count in written.items() if not name.startswith("link")}
    assert on_tier == (held if kind == "ssd" else {"host_dram_bytes": 4096})


def test_capacity_is_the_devices_unless_it_is_given() -> None:
    assert tier().capacity_bytes == ssd().capacity_bytes
    assert tier("host_dram").capacity_bytes == DramConfig(**read("memory", "ddr4_3200")).capacity_bytes
    assert tier(capacity_bytes=10**9).capacity_bytes == 10**9


# -- bad input -------------------------------------------------------------------------------------------


def test_bad_requests_drives_and_tiers_are_refused() -> None:
    one = np.array([4096])
    with pytest.raises(ValueError, match="equal and not 0"):
        simulate(ssd(), link(), one, np.array([1, 2]))
    with pytest.raises(ValueError, match="sizes > 0"):
        simulate(ssd(), link(), one, np.array([0]))
    with pytest.raises(ValueError, match="queue_depth 0"):
        simulate(ssd(), link(), one, one, None, 0)
    with pytest.raises(ValueError, match="on a drive of"):
        simulate(ssd(), link(), one, np.array([10**12]))
    with pytest.raises(ValueError, match="every page level needs a positive read time"):
        ssd(t_read_ps=[0])
    with pytest.raises(ValueError, match="not a multiple of sector_bytes"):
        ssd(sector_bytes=5000)
    with pytest.raises(ValueError, match="extent of -1 bytes"):
        tier().fetch(np.array([-1]))
    with pytest.raises(ValueError, match="kind ssd takes ssd, not nothing"):
        OffloadTier(kind="ssd", link=link())


def test_a_links_latency_comes_on_top_of_every_request() -> None:
    config = ssd()
    near, far = (random_reads(config, link(latency_ps=ps), 4096, 1, 100) for ps in (0, 1_000_000))
    assert far.mean_latency_ps == near.mean_latency_ps + 1_000_000


def test_an_address_beyond_the_capacity_is_the_one_that_it_wraps_to() -> None:
    config = ssd()
    address, sizes = np.arange(40) * 4096 * 7, np.full(40, 4096)
    inside, beyond = (simulate(config, link(), address + n * config.capacity_bytes, sizes) for n in (0, 3))
    assert inside.completion_ps.tolist() == beyond.completion_ps.tolist()
