"""Speed of the DRAM and SSD models beside the simulators they are validated on.

    python scripts/bench_memory.py [--repeat N]

Every figure is the median of several runs, per CPU-second of one thread, kernels compiled. The marks are ten times
what the simulators that made the reference tables reached on one core: Ramulator 2.1 250 to 350 thousand LPDDR5
transactions, MQSim 127 to 200 thousand requests of 4 to 128 KiB, per CPU-second.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from dre_sim.dram import DramRequests
from dre_sim.dram import simulate as simulate_dram
from dre_sim.ssd import simulate as simulate_ssd
from resv_sim.validate import replay
from resv_sim.validate.dram import BACKLOG, memory_of
from resv_sim.validate.ssd import drive_of

RAMULATOR_PER_S, MQSIM_PER_S = 350_000, 200_000
TIMES_FASTER = 10
TRANSACTIONS, REQUESTS = 400_000, 100_000
CHANNEL = (("rand64", "page", 64), ("rand64", "bank_group", 64), ("seq", "bank_group", 64), ("chunk", "page", 4096))
SYSTEM = (("seq", 64), ("chunk", 4096), ("rand64", 64))
READS = ((4096, 64), (16384, 64), (131072, 16))


def main() -> None:
    """Measure and print one line for each pattern."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    for peer, peer_per_s, jobs in (("Ramulator", RAMULATOR_PER_S, _dram()), ("MQSim", MQSIM_PER_S, _ssd())):
        for what, n, job in jobs:
            job()
            per_s = n / statistics.median(_cpu_s(job) for _ in range(repeat))
            factor = per_s / peer_per_s
            verdict = "met" if factor >= TIMES_FASTER else "NOT met"
            print(f"{what:<44} {per_s / 1e6:6.2f} M/s  {factor:5.1f} x {peer} (>= {TIMES_FASTER}: {verdict})")


def _dram() -> Iterator[tuple[str, int, Callable[[], object]]]:
    channel, system = memory_of("dram_lpddr5_6400"), memory_of("dram_system_lpddr5_6400_x16ch")
    for pattern, address_map, arg in CHANNEL:
        memory = channel.model_copy(update={"address_map": address_map})
        requests = _requests(pattern, arg, memory.channel_bytes, memory.transaction_bytes)
        job = partial(simulate_dram, memory, requests, backlog=BACKLOG)
        yield f"LPDDR5, one channel, {pattern} {arg} B, {address_map}", TRANSACTIONS, job
    for pattern, arg in SYSTEM:
        requests = _requests(pattern, arg, system.capacity_bytes, system.transaction_bytes)
        job = partial(simulate_dram, system, requests, window_bytes=system.outstanding_bytes)
        yield f"LPDDR5, 16 channels, {pattern} {arg} B", TRANSACTIONS, job


def _requests(pattern: str, arg: int, space_bytes: int, transaction_bytes: int) -> DramRequests:
    size = replay.unit_bytes(pattern, arg)
    n = TRANSACTIONS * transaction_bytes // size
    stream = replay.units(pattern, arg, n, space_bytes)
    return DramRequests(stream.address, np.full(n, size, np.int64), stream.is_write, np.zeros(n, np.int64))


def _ssd() -> Iterator[tuple[str, int, Callable[[], object]]]:
    drive, link = drive_of("g4", "u50")
    for size, depth in READS:
        places = np.random.default_rng(0).integers(0, drive.capacity_bytes // size, REQUESTS, dtype=np.int64)
        sizes = np.full(REQUESTS, size, np.int64)
        job = partial(simulate_ssd, drive, link, places * size, sizes, None, depth)
        yield f"SSD, random reads of {size} B, depth {depth}", REQUESTS, job


def _cpu_s(job: Callable[[], object]) -> float:
    start = time.thread_time()
    job()
    return time.thread_time() - start


if __name__ == "__main__":
    main()
