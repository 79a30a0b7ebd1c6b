"""Workers: processes of this machine, or those of a dask scheduler that somebody started. One thread each.

The only module that knows dask's names besides `runner.py`.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from resv_sim.errors import ConfigError
from resv_sim.memo import code_fingerprint, key_of

PACKAGES = ("resv", "dre_sim", "energy_models")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), 1)
# Arrays of some MB come and go with every setting; kept by the allocator, none is mapped and zeroed anew (mallopt(3)).
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": 32 << 20, "MALLOC_TRIM_THRESHOLD_": 1 << 30}
# A worker may die of what a point does, or of something else: a point gets three chances.
SETTINGS = {
    "distributed.scheduler.allowed-failures": 2,
    "distributed.nanny.pre-spawn-environ": ONE_THREAD | ALLOCATOR,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.admin.large-graph-warning-threshold": "1GB",
}
CONNECT_S = 5


def models_fingerprint() -> str:
    """Hash of the sources that decide a point's numbers."""
    return key_of(*(code_fingerprint(package) for package in PACKAGES))


@contextmanager
def connected(jobs: int, scheduler: str | None) -> Iterator[Any]:
    """A dask client on `jobs` processes of this machine, or on `scheduler` (an address).

    Raises `ConfigError` where no scheduler answers, where it has no workers or where they run other code.
    """
    import dask
    from distributed import Client, LocalCluster

    with dask.config.set(SETTINGS):
        if scheduler is not None:
            with _remote(scheduler) as client:
                yield client
            return
        with _deaf_to_interrupts():
            cluster = LocalCluster(
                n_workers=jobs,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address=None,
                # dask answers over HTTP all the same, and would warn where another sweep has its usual port.
                scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                memory_limit=0,
                silence_logs=logging.CRITICAL,
            )
        with cluster, Client(cluster) as client:
            yield client


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes started in here ignore Ctrl-C, which reaches them too: ending them is this process's to do."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _remote(address: str) -> Iterator[Any]:
    from distributed import Client

    try:
        client = Client(address, timeout=CONNECT_S)
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        raise ConfigError(
            f"--scheduler {address}: no scheduler answers there ({error}). Start one with 'dask scheduler' and give "
            "its address, like tcp://host:8786."
        ) from error
    with client:
        _check_workers(client, address)
        yield client


def _check_workers(client: Any, address: str) -> None:
    try:
        client.wait_for_workers(1, timeout=CONNECT_S)
    except TimeoutError as error:
        raise ConfigError(
            f"--scheduler {address}: it has no workers. Start some with 'dask worker {address} --nthreads 1'."
        ) from error
    ours = models_fingerprint()
    for worker, theirs in client.run(models_fingerprint).items():
        if theirs != ours:
            raise ConfigError(f"--scheduler {address}: worker {worker} runs other code than this program; update it.")
