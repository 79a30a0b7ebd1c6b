"""DRAM: the kernel against its twin, closed forms, laws, and the bundled table of steady states."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dre_sim.dram import AccessPattern, DramConfig, DramRequests, DramResult, grid_pattern, simulate, steady_state
from dre_sim.dram.steady import measure, table_key
from tests.naive_memory import NaiveChannel, Txn, locate

CONFIGS = Path(__file__).parent.parent / "configs" / "memory"
Int64 = NDArray[np.int64]


def load(name: str, **changes: Any) -> DramConfig:
    fields = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    return DramConfig(**(fields | changes))


LPDDR5 = load("lpddr5_6400_256bit", n_channels=1)
HBM2E = load("hbm2e_5120bit", n_channels=1)
DDR4 = load("ddr4_3200", n_channels=1)
MEMORIES = (LPDDR5, HBM2E, DDR4)


def requests(address: Any, n_bytes: int = 64, arrival_ps: Any = 0, is_write: Any = False) -> DramRequests:
    address = np.asarray(address, np.int64)
    n = address.size
    return DramRequests(
        address,
        np.full(n, n_bytes, np.int64),
        np.broadcast_to(np.asarray(is_write, np.bool_), n).copy(),
        np.broadcast_to(np.asarray(arrival_ps, np.int64), n).copy(),
    )


def saturated(config: DramConfig, address: Any, is_write: Any = False, n_bytes: int = 64) -> float:
    """Share of the peak that a source reaches that is never empty, once it runs."""
    result = simulate(config, requests(address, n_bytes, is_write=is_write), backlog=64)
    done = np.sort(result.transaction_done_ps)
    skip = done.size // 10
    rate = (done.size - skip) * config.transaction_bytes * 1e12 / (done[-1] - done[skip - 1])
    return float(rate / config.peak_bytes_per_s)


SEQUENTIAL = np.arange(20_000, dtype=np.int64) * 64


# -- the kernel is its twin ----------------------------------------------------------------------------


def random_case(seed: int) -> tuple[DramConfig, DramRequests, int]:
    g = np.random.default_rng(seed)
    base = MEMORIES[seed % 3]
    refresh = ("all_bank", "none", "per_bank")[seed // 3 % 3] if base is not DDR4 else "all_bank"
    config = base.model_copy(
        update={
            "n_rows": 8,
            "address_map": ("page", "bank_group")[int(g.integers(2))],
            "refresh": refresh,
            "read_queue": int(g.integers(2, 12)),
            "write_queue": int(g.integers(2, 12)),
            "n_refi": 700,
            "n_refi_pb": 130,
        }
    )
    n = 40
    arrival = np.cumsum(g.integers(0, int(g.choice([1, 20_000, 200_000])), n))
    drawn = DramRequests(
        g.integers(0, config.capacity_bytes // 64, n) * 64,
        g.choice([64, 64, 256, 1024], n),
        g.random(n) < g.choice([0.0, 0.3, 1.0]),
        arrival,
    )
    return config, drawn, int(g.choice([0, 64]))


def naive(config: DramConfig, drawn: DramRequests, backlog: int) -> NaiveChannel:
    txns: list[Txn] = []
    for a, size, write, at in zip(*(x.tolist() for x in astuple(drawn)), strict=True):
        first = a // config.transaction_bytes
        count = (a + size - 1) // config.transaction_bytes - first + 1
        for x in range(first, first + count):
            _, pseudo, group, bank, row = locate(config, x * config.transaction_bytes)
            end = len(txns) + count - (x - first)
            txns.append(Txn((pseudo, group, bank), row, write, -(-at // config.tck_ps), end))
    channel = NaiveChannel(config, txns)
    channel.run(backlog)
    return channel


@pytest.mark.parametrize("seed", range(18))
def test_kernel_issues_every_command_in_the_clock_of_its_twin(seed: int) -> None:
    config, drawn, backlog = random_case(seed)
    got, ref = simulate(config, drawn, backlog=backlog), naive(config, drawn, backlog)
    assert got.transaction_done_ps.tolist() == [t.done * config.tck_ps for t in ref.txns]
    assert (got.row_hits, got.activates) == (ref.hits, ref.activates)


@pytest.mark.parametrize("n_channels", [2, 5])
@pytest.mark.parametrize("address_map", ["page", "bank_group"])
def test_channels_are_single_channels_on_the_addresses_that_the_map_gives_them(
    n_channels: int, address_map: str
) -> None:
    config = HBM2E.model_copy(update={"n_channels": n_channels, "address_map": address_map, "n_rows": 16})
    g = np.random.default_rng(n_channels)
    address = g.integers(0, config.capacity_bytes // 32, 300) * 32
    got = simulate(config, requests(address, 32))
    places = [locate(config, int(a)) for a in address]
    for channel in range(n_channels):
        mine = [i for i, place in enumerate(places) if place[0] == channel]
        ref = NaiveChannel(config, [Txn(places[i][1:4], places[i][4], False, 0) for i in mine])
        ref.run()
        assert got.completion_ps[mine].tolist() == [t.done * config.tck_ps for t in ref.txns]


# -- closed forms and timing edges -----------------------------------------------------------------------


@pytest.mark.parametrize("config", MEMORIES, ids=lambda c: c.name)
def test_read_of_a_closed_bank_takes_activate_column_and_burst(config: DramConfig) -> None:
    got = simulate(config, requests([0], config.transaction_bytes))
    extra = config.n_act - 1 + (config.n_sync_post is not None)  # whole activate; clock synchronisation
    assert got.completion_ps[0] == config.unloaded_latency_ps + extra * config.tck_ps


@pytest.mark.parametrize("config", MEMORIES, ids=lambda c: c.name)
def test_row_hit_takes_column_and_burst_and_row_conflict_precharge_and_activate_more(config: DramConfig) -> None:
    c = config.model_copy(update={"refresh": "none"})
    row = c.row_bytes * c.n_pseudo_channels * c.n_bank_groups * c.n_banks_per_group
    late = 1_000 * c.tck_ps
    sync = c.n_sync_post is not None
    for address, clocks in ((0, 0), (row, c.n_rp + c.n_rcd_rd)):
        got = simulate(c, requests([0, address], c.transaction_bytes, [0, late]))
        expected = c.n_front + clocks + sync + c.n_cl + c.n_bl
        assert got.completion_ps[1] - late == expected * c.tck_ps


def test_unloaded_row_conflict_of_lpddr5_with_its_clock_running_takes_63_8_ns() -> None:
    c = LPDDR5
    clocks = c.n_front + c.n_rp + c.n_rcd_rd + c.n_cl + c.n_bl
    assert clocks * c.tck_ps == 63_750


@pytest.mark.parametrize("config", MEMORIES, ids=lambda c: c.name)
def test_precharge_waits_for_tras_and_not_a_clock_longer(config: DramConfig) -> None:
    c = config.model_copy(update={"refresh": "none"})
    row = c.row_bytes * c.n_pseudo_channels * c.n_bank_groups * c.n_banks_per_group
    got = simulate(c, requests([0, row], c.transaction_bytes))
    act = c.n_front + c.n_act - 1
    read = act + c.n_rcd_rd + (c.n_sync_post is not None)
    precharge = max(act + c.n_ras, read + c.n_rtp)
    second_read = max(precharge + c.n_rp, act + c.n_rc) + c.n_rcd_rd
    synced = c.n_sync_post is None or second_read < read + c.n_cl + c.n_bl + c.n_sync_post
    assert got.completion_ps[1] == (second_read + (not synced) + c.n_cl + c.n_bl) * c.tck_ps


def test_request_is_taken_at_its_clock_and_not_one_before() -> None:
    for clock in (100, 101):
        got = simulate(LPDDR5, requests([0], 32, clock * LPDDR5.tck_ps))
        assert got.completion_ps[0] - got.arrival_ps[0] == simulate(LPDDR5, requests([0], 32)).completion_ps[0]
    between = simulate(LPDDR5, requests([0], 32, 100 * LPDDR5.tck_ps + 1))
    assert between.arrival_ps[0] == 101 * LPDDR5.tck_ps


@pytest.mark.parametrize("config", MEMORIES, ids=lambda c: c.name)
def test_bank_group_interleaved_stream_without_refresh_reaches_nine_tenths_of_the_peak(config: DramConfig) -> None:
    c = config.model_copy(update={"refresh": "none", "read_queue": 128})
    assert 0.95 < saturated(c, SEQUENTIAL) <= 1.0


def test_stream_within_one_bank_group_is_capped_by_tccd_l() -> None:
    # 64 B out of every 256 B: always the same bank group of the 64 B interleave.
    c = LPDDR5.model_copy(update={"refresh": "none"})
    assert saturated(c, SEQUENTIAL * 4) == pytest.approx(c.n_bl / c.n_ccd_l, rel=0.01)


def test_all_bank_refresh_takes_trfc_of_every_trefi() -> None:
    c = LPDDR5.model_copy(update={"read_queue": 128})
    still = c.model_copy(update={"refresh": "none"})
    lost = 1 - saturated(c, SEQUENTIAL) / saturated(still, SEQUENTIAL)
    share = c.n_rfc / c.n_refi
    assert share == pytest.approx(0.072, abs=0.0005)
    assert share < lost < share + 0.025  # and reopening of the banks


def test_stride_that_stays_in_one_bank_gets_one_row_cycle_per_request() -> None:
    c = LPDDR5.model_copy(update={"refresh": "none"})
    one_bank = np.arange(3_000, dtype=np.int64) * c.row_bytes * c.n_banks
    cycle = c.n_rcd_rd + c.n_ccd_l + c.n_rtp + c.n_rp  # two columns of 32 B in a row
    expected = 64 / c.transaction_bytes * c.n_bl / max(cycle, c.n_rc)
    assert saturated(c, one_bank) == pytest.approx(expected, rel=0.02)


# -- laws ------------------------------------------------------------------------------------------------


def test_presets_have_the_published_peaks() -> None:
    assert load("lpddr5_6400_256bit").peak_bytes_per_s == pytest.approx(204.8e9)
    assert load("hbm2e_5120bit").peak_bytes_per_s == pytest.approx(1935e9, rel=1e-3)
    assert DDR4.peak_bytes_per_s == pytest.approx(25.6e9)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    chunk=st.sampled_from([32, 64, 100, 256, 4096]),
    writes=st.sampled_from([0.0, 0.3, 1.0]),
    window=st.sampled_from([0, 64, 4096, 1 << 18]),
)
def test_every_byte_is_moved_once_after_its_arrival(seed: int, chunk: int, writes: float, window: int) -> None:
    config = HBM2E.model_copy(update={"n_channels": 3})
    g = np.random.default_rng(seed)
    address = g.integers(0, config.capacity_bytes - chunk, 50)
    at = np.sort(g.integers(0, 10**6, 50))
    got = simulate(config, requests(address, chunk, at, g.random(50) < writes), window_bytes=window)
    touched = (address + chunk - 1) // 32 - address // 32 + 1
    assert got.n_bytes == 50 * chunk
    assert got.transaction_done_ps.size == touched.sum() == got.row_hits + got.activates
    assert (got.completion_ps - got.arrival_ps >= (config.n_front + config.n_cwl) * config.tck_ps).all()


def completion(config: DramConfig, seed: int, window: int = 1 << 15) -> int:
    g = np.random.default_rng(seed)
    address = g.integers(0, (1 << 33) // 64, 6_000) * 64
    return int(simulate(config, requests(address), window_bytes=window).completion_ps.max())


@pytest.mark.parametrize("config", MEMORIES, ids=lambda c: c.name)
@pytest.mark.parametrize("seed", [0, 1])
def test_less_hardware_is_never_faster(config: DramConfig, seed: int) -> None:
    # Random 64 B: with longer chunks another shape also is another address map, for better or worse.
    c = config.model_copy(update={"n_channels": 2, "refresh": "none"})
    whole = completion(c, seed)
    slack = 0.99  # a reordering scheduler may gain a little from worse hardware
    for worse in (
        {"n_channels": 1},
        {"n_bank_groups": 2},
        {"n_banks_per_group": 2},
        {"read_queue": 8},
        {"n_faw": 2 * c.n_faw},
    ):
        assert completion(c.model_copy(update=worse), seed) >= slack * whole, worse
    assert completion(c, seed, window=2048) >= slack * whole


@pytest.mark.parametrize("config", MEMORIES, ids=lambda c: c.name)
def test_stream_over_a_bus_of_half_the_rate_takes_twice_as_long(config: DramConfig) -> None:
    c = config.model_copy(update={"refresh": "none", "read_queue": 128})
    half = c.model_copy(update={"n_bl": 2 * c.n_bl})
    rates = [saturated(x, SEQUENTIAL) * x.peak_bytes_per_s for x in (c, half)]
    assert rates[1] == pytest.approx(rates[0] / 2, rel=0.05)


@pytest.mark.parametrize("config", MEMORIES, ids=lambda c: c.name)
def test_sequential_stream_is_never_slower_than_random_64_bytes(config: DramConfig) -> None:
    g = np.random.default_rng(0)
    scattered = g.integers(0, config.capacity_bytes // 64, SEQUENTIAL.size) * 64
    for address_map in ("page", "bank_group"):
        c = config.model_copy(update={"address_map": address_map})
        assert saturated(c, SEQUENTIAL) > saturated(c, scattered)


def test_one_write_in_ten_costs_turnarounds() -> None:
    g = np.random.default_rng(0)
    write = g.random(SEQUENTIAL.size) < 0.1
    address = np.where(write, LPDDR5.capacity_bytes // 2 + np.cumsum(write) * 64, np.cumsum(~write) * 64)
    mixed, reads = saturated(LPDDR5, address, write), saturated(LPDDR5, SEQUENTIAL)
    assert 0.05 < 1 - mixed / reads < 0.12


# -- steady state ----------------------------------------------------------------------------------------


def test_steady_state_of_the_edge_bus_is_what_two_levels_of_interleaving_leave_of_it() -> None:
    edge = load("lpddr5_6400_256bit")
    efficiency = {chunk: steady_state(edge, AccessPattern(chunk)).efficiency for chunk in (4096, 16384, 65536)}
    # Reference simulation of 16 channels, 256 B interleave: 0.677, 0.840 and 0.902 of 204.8 GB/s.
    assert efficiency == {
        4096: pytest.approx(0.677, rel=0.02),
        16384: pytest.approx(0.840, rel=0.02),
        65536: pytest.approx(0.902, rel=0.02),
    }


@pytest.mark.parametrize("name", ["lpddr5_6400_256bit", "hbm2e_5120bit", "ddr4_3200"])
@pytest.mark.parametrize("write", [0.0, 1.0])
def test_sequential_steady_state_is_above_every_chunked_one(name: str, write: float) -> None:
    config = load(name)
    whole = steady_state(config, AccessPattern(0, write))
    for exponent in range(6, 21):
        chunked = steady_state(config, AccessPattern(1 << exponent, write))
        assert chunked.bandwidth_bytes_per_s <= whole.bandwidth_bytes_per_s < config.peak_bytes_per_s
        assert chunked.activates_per_byte >= 0.98 * whole.activates_per_byte  # refresh reopens rows by time


@pytest.mark.parametrize(
    ("name", "access"),
    [
        ("lpddr5_6400_256bit", AccessPattern(4096)),
        ("ddr4_3200", AccessPattern(0)),
        ("ddr4_3200", AccessPattern(64, 1.0)),
    ],
)
def test_bundled_table_holds_what_the_model_says(name: str, access: AccessPattern) -> None:
    config = load(name)
    assert astuple(steady_state(config, access)) == astuple(measure(config, access))


def test_every_bundled_memory_is_in_the_table_and_nothing_else() -> None:
    text = (CONFIGS.parent.parent / "dre_sim" / "data" / "dram_steady_state.json").read_text(encoding="utf-8")
    grid = [AccessPattern(c, w) for c in (0, *(1 << k for k in range(6, 21))) for w in (0.0, 1.0)]
    keys = {table_key(load(path.stem), access) for path in CONFIGS.glob("*.yaml") for access in grid}
    assert keys == set(json.loads(text)["entries"])


def test_bundled_steady_state_needs_no_compiler() -> None:
    code = (
        "import sys, yaml\n"
        "from dre_sim.dram import AccessPattern, DramConfig, steady_state\n"
        f"config = DramConfig(**yaml.safe_load(open({str(CONFIGS / 'hbm2e_5120bit.yaml')!r})))\n"
        "assert steady_state(config, AccessPattern(5000)).efficiency > 0\n"
        "assert 'numba' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_memory_outside_the_table_is_simulated() -> None:
    slow = DDR4.model_copy(update={"n_cl": 30, "n_rp": 40})
    state = steady_state(slow, AccessPattern(1024))
    assert state.efficiency < steady_state(DDR4, AccessPattern(1024)).efficiency


def test_chunk_sizes_round_down_to_a_power_of_two() -> None:
    assert [grid_pattern(AccessPattern(c)).chunk_bytes for c in (0, 1, 64, 127, 4096, 8191, 1 << 22)] == [
        0, 64, 64, 64, 4096, 4096, 1 << 20,
    ]  # fmt: skip


# -- bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_banks_per_group": 3}, "n_banks_per_group is 3; it must be a power of two"),
        ({"write_low": 0.9}, "write_low 0.9 must be below write_high 0.8"),
        ({"n_rfc": 4000}, "all-bank refresh needs 0 < n_rfc < n_refi, not 4000 and 3125"),
        ({"n_aad": 0}, "n_aad 0 belongs to a split_activate command bus, this is split_activate"),
        ({"n_aad": 15}, "n_aad 15 must be below n_rcd_rd 15 and n_rcd_wr 15"),
        ({"n_bank_groups": 32}, "128 banks in a channel; at most 62"),
        ({"tck": 1}, "Extra inputs are not permitted"),
    ],
)
def test_impossible_memories_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("lpddr5_6400_256bit", **changes)


@pytest.mark.parametrize(
    ("drawn", "options", "message"),
    [
        (requests([]), {}, "equal and not 0"),
        (requests([-64]), {}, "address and arrival_ps must be >= 0"),
        (requests([0], 0), {}, "n_bytes > 0"),
        (requests([0, 64], arrival_ps=[5, 4]), {}, "arrival_ps must not decrease"),
        (requests([0]), {"backlog": 64, "window_bytes": 64}, "backlog 64 is for one channel"),
    ],
)
def test_impossible_requests_are_refused(drawn: DramRequests, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(LPDDR5, drawn, **options)


def test_bad_patterns_are_refused() -> None:
    with pytest.raises(ValueError, match="chunk_bytes -1"):
        steady_state(LPDDR5, AccessPattern(-1))
    with pytest.raises(ValueError, match=r"write_share 1\.5"):
        steady_state(LPDDR5, AccessPattern(64, 1.5))


def test_same_requests_give_the_same_times() -> None:
    config, drawn, backlog = random_case(4)
    first: DramResult = simulate(config, drawn, backlog=backlog)
    assert simulate(config, drawn, backlog=backlog).transaction_done_ps.tolist() == first.transaction_done_ps.tolist()
