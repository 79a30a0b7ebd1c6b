"""Speed and memory of the simulator, each as measured, beside its mark. `make bench` runs this.

    python scripts/bench.py [--only dense|functional|main|sweep] [--repeat N]

Every figure is the median of several runs on this machine; a mark is a goal or a peer's measured figure
(one Llama-3-8B layer, bf16, 10 new tokens, eight cores of 64x64 MACs at 800 MHz, 204.8 GB/s).
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

Row = tuple[str, str, str]

COLD = """
import resource
import bench
print(bench.dense_layer_ps(1024), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
PEERS = "GenZ 1.9 s, ZigZag 27 s, LLMCompass 25 s, SCALE-Sim 152 s, ONNXim 543 s"


def main() -> None:
    """Run the chosen groups and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=GROUPS)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    for name, group in GROUPS.items():
        if arguments.only in (None, name):
            for what, measured, mark in group(arguments.repeat):
                print(f"{what:<58} {measured:>16}   {mark}", flush=True)


def dense(repeat: int) -> Iterator[Row]:
    """The dense layer step that every peer can run."""
    for cached in (1024, 40_960):
        ours, bound = dense_layer_ps(cached), dense_layer_bound_ps(cached)
        if ours < bound:
            raise SystemExit(f"dense layer at {cached} tokens: {ours} ps is below the bandwidth bound {bound} ps")
        yield (
            f"dense layer, {cached} cached tokens",
            f"{ours / 1e9:.3f} ms",
            f"bound {bound / 1e9:.3f} ms; ours adds {added(ours, bound)}: DRAM refresh, rows and turnaround "
            f"{added(dense_layer_ps(cached, ports=False), bound)}, the cores' memory ports the rest",
        )
    warm = median(lambda: cpu_seconds(lambda: [dense_layer_ps(1024) for _ in range(20)]) / 20, repeat)
    yield "dense layer, warm evaluation, CPU", f"{1e3 * warm:.2f} ms", "<= 2 ms; GenZ 2.3 ms"
    seconds, kib = [], []
    for _ in range(repeat):
        start = time.perf_counter()
        command = [sys.executable, "-c", COLD]
        out = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent).stdout
        seconds.append(time.perf_counter() - start)
        kib.append(int(out.split()[1]))
    yield "dense layer, cold process", f"{statistics.median(seconds):.2f} s", f"<= 0.6 s; {PEERS}"
    yield "dense layer, cold process, memory", f"{statistics.median(kib) / 1024:.0f} MiB", "<= 200 MiB"


def functional(repeat: int) -> Iterator[Row]:
    """The algorithm at full size: 40,000 tokens, 32 layers, beside making the trace."""
    rate = median(clustering_compares_per_s, repeat)
    yield (
        "clustering, Hamming comparisons per core",
        f"{rate / 1e9:.1f} G/s",
        ">= 8 G/s; 30 Numba alone, 58.8 the instruction's limit",
    )
    parts = functional_cpu_seconds()
    yield (
        "ReSV over 40,000 tokens x 32 layers, CPU",
        f"{parts['resv']:.1f} s",
        "<= 10 s beside making the trace",
    )
    yield "  making the trace, CPU", f"{parts['trace']:.1f} s", ""
    yield "  fidelity against full attention, CPU", f"{parts['fidelity']:.1f} s", ""


def main_job(repeat: int) -> Iterator[Row]:
    """The commands a user types, on two cores."""
    tool = str(Path(sys.executable).with_name("resv-sim"))
    help_s = median(lambda: wall_seconds([tool, "--help"]), repeat)
    yield "resv-sim --help", f"{help_s:.2f} s", "<= 0.3 s"
    with tempfile.TemporaryDirectory() as folder:
        job = [tool, "--config", "orin_vs_dre.yaml", "--out", f"{folder}/out", "--no-cache", "--jobs", "2"]
        environment = {**os.environ, "RESV_SIM_CACHE": f"{folder}/cache"}
        runs = [(wall_seconds(job, two_cores=True, environment=environment), peak_gib()) for _ in range(min(3, repeat))]
        yield (
            "main job, two cores, kernels compiled, nothing remembered",
            f"{statistics.median(r[0] for r in runs):.1f} s",
            "<= 60 s",
        )
        yield "main job, peak memory", f"{max(r[1] for r in runs):.2f} GiB", "<= 4 GB (3.73 GiB)"
        job.remove("--no-cache")
        wall_seconds(job, two_cores=True, environment=environment)
        again = wall_seconds(job, two_cores=True, environment=environment)
        yield "main job, two cores, functional stage remembered", f"{again:.1f} s", ""


def sweep(repeat: int) -> Iterator[Row]:
    """Design-space sweeps: the large one from nothing, and what one more point costs."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RESV_SIM_CACHE"] = f"{folder}/cache"
        tool = str(Path(sys.executable).with_name("resv-sim"))
        job = [tool, "--config", "sweep_bitwidth_exit.yaml", "--out", f"{folder}/out", "--jobs", "4"]
        n_points, seconds = sweep_points("sweep_bitwidth_exit.yaml"), wall_seconds(job)
        yield f"sweep_bitwidth_exit, {n_points} points, four workers, from nothing", f"{seconds:.0f} s", "<= 300 s"
        again = median(lambda: resumed_seconds(f"{folder}/out"), repeat)
        yield "resume, per point that is finished", f"{1e3 * again / n_points:.2f} ms", "<= 1 ms"
        yield (
            "hardware-only point, algorithm stage on disk",
            f"{1e3 * hardware_point_seconds(repeat):.0f} ms",
            "<= 50 ms",
        )
    rates = [(sweep_points_per_s(1), sweep_points_per_s(4), sum(apart(4))) for _ in range(min(3, repeat))]
    efficiency = statistics.median(four / (4 * one) for one, four, _ in rates)
    machine = statistics.median(alone / (4 * one) for one, _, alone in rates)
    idle = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    yield f"parallel efficiency, one to four workers ({idle})", f"{efficiency:.2f}", ">= 0.85 on idle cores"
    yield "  of four sweeps that know nothing of each other", f"{machine:.2f}", "what the machine has to give"


# -- what is measured -------------------------------------------------------------------------------------


def added(ours_ps: int, bound_ps: int) -> str:
    return f"{100 * (ours_ps / bound_ps - 1):.1f} %"


def dense_layer_ps(cached_tokens: int, *, ports: bool = True) -> int:
    """One Llama-3-8B layer with 10 new tokens on V-Rex8, its whole cache on the device. No torch, no Numba.

    ports : with the limit of the cores' memory ports, or with the memory's own alone
    """
    from dre_sim.lowering import dense_step
    from dre_sim.platforms import VRex

    work = dense_step(_bundled_shape(), 10, cached_tokens, n_layers=1)
    work = replace(work, vision=(), vision_vector_elements=0, head=())
    chip = _bundled_vrex()
    if not ports:
        chip = chip.model_copy(update={"lxe": chip.lxe.model_copy(update={"memory_port_bytes": None})})
    return VRex(chip).simulate(work).end_ps


def dense_layer_bound_ps(cached_tokens: int) -> int:
    """Bytes over the pins' bandwidth."""
    from dre_sim.lxe import dense_layer_bound

    return dense_layer_bound(_bundled_shape(), 10, cached_tokens, _bundled_vrex().memory.peak_bytes_per_s).ps


@cache
def _bundled_shape() -> Any:
    from resv.trace import ModelShape

    return ModelShape.model_validate(_bundled({"model": "llama3_8b"})["model"])


@cache
def _bundled_vrex() -> Any:
    from dre_sim.platforms import VRexConfig

    data = _bundled({"platforms": {"vrex8": "vrex8"}})["platforms"]["vrex8"]
    return VRexConfig.model_validate({**data, "energy": "vrex_14nm_lpddr5"})


def _bundled(tree: dict[str, Any]) -> dict[str, Any]:
    from resv_sim.library import expand
    from resv_sim.yaml_source import Node

    def node(value: Any) -> Any:
        return Node({k: node(v) for k, v in value.items()} if isinstance(value, dict) else value, "bench")

    families = ("models", "platforms", "memory", "link", "ssd")
    plain: dict[str, Any] = expand(node(tree), families).plain()
    return plain


def clustering_compares_per_s() -> float:
    """The real clustering loop on 40,000 codes that settle at about 1,250 clusters."""
    import numpy as np

    from resv.clustering import HashClusterTables

    rng = np.random.default_rng(0)
    centres = rng.integers(0, 2**32, 1250, dtype=np.uint64)
    codes = centres[rng.integers(0, 1250, 40_000)] ^ (np.uint64(1) << rng.integers(0, 32, 40_000, dtype=np.uint64))
    tables = HashClusterTables(1, 32, 7)
    tables.append(np.concatenate([centres, centres])[None], [2500])
    before, start = tables.comparisons, time.process_time()
    tables.append(codes[None], [10] * 4000)
    return float((tables.comparisons - before) / (time.process_time() - start))


def functional_cpu_seconds() -> dict[str, float]:
    """CPU seconds of the main job's functional stage, layer by layer on one thread, by part."""
    from threadpoolctl import threadpool_limits

    from resv.policies import run_layer
    from resv_sim.config import load_experiment
    from resv_sim.functional import layer_fidelity
    from resv_sim.streams import make_streams

    experiment, _ = load_experiment("orin_vs_dre.yaml")
    policy = experiment.policies["resv"]
    trace = make_streams(experiment, lambda: None).traces[0]
    spent = {"trace": 0.0, "resv": 0.0, "fidelity": 0.0}
    with threadpool_limits(1):
        run_layer(policy, trace, trace.layer(0))  # loads the compiled kernels
        for layer in range(trace.shape.n_layers):
            times = [time.process_time()]
            arrays = trace.layer(layer)
            times.append(time.process_time())
            selections = run_layer(policy, trace, arrays)
            times.append(time.process_time())
            layer_fidelity(trace, arrays, selections, experiment.fidelity.topk)
            times.append(time.process_time())
            for part, begin, end in zip(spent, times, times[1:], strict=False):
                spent[part] += end - begin
    return spent


def sweep_points(config: str) -> int:
    """Number of points of a grid."""
    from resv_sim.config import load_tree
    from resv_sim.sweep.space import points, sweep_of

    return len(points(sweep_of(*load_tree(config)).config))


def resumed_seconds(out: str) -> float:
    """Time of going on with a finished sweep: finding that nothing is missing, and writing the tables."""
    from resv_sim.config import load_tree
    from resv_sim.sweep.job import run_sweep
    from resv_sim.sweep.space import sweep_of

    sweep_config = sweep_of(*load_tree("sweep_bitwidth_exit.yaml"))
    start = time.perf_counter()
    run_sweep(sweep_config, Path(out), 1, scheduler=None, resume=True, use_cache=True)
    return time.perf_counter() - start


def hardware_point_seconds(repeat: int) -> float:
    """One more point of a worker that had another of the same algorithm setting, every unit of the DRE changed."""
    from resv_sim.config import load_tree
    from resv_sim.memo import Memo, cache_directory
    from resv_sim.sweep.evaluate import evaluate
    from resv_sim.sweep.space import points, sweep_of

    tree, source = load_tree(
        "sweep_hcu_wtu_size.yaml",
        ["workload.kv_lengths_tokens=[10_000]", "sweep.measure.kv_len_tokens=10_000"],
    )
    sizes = sweep_of(tree, source)
    chosen = [(p.index, sizes.experiment(p)) for p in points(sizes.config)[:: 240 // (repeat + 1)]]
    memo = Memo(cache_directory())
    evaluate(memo, chosen[:1])
    return statistics.median(wall(lambda point=point: evaluate(memo, [point])) for point in chosen[1:])


def sweep_points_per_s(jobs: int) -> float:
    """Points of different algorithm settings per second on `jobs` warm workers, functional stage included."""
    from resv_sim.config import load_tree
    from resv_sim.memo import Memo
    from resv_sim.sweep.cluster import connected
    from resv_sim.sweep.evaluate import evaluate
    from resv_sim.sweep.runner import run_points
    from resv_sim.sweep.space import points, sweep_of

    edges = sweep_of(*load_tree("sweep_edges.yaml"))
    tasks = [(p, edges.experiment(p)) for p in points(edges.config)]
    with tempfile.TemporaryDirectory() as folder, connected(jobs, None) as client:
        memo = Memo(Path(folder))
        first = [(0, tasks[0][1])]
        workers = list(client.scheduler_info(n_workers=-1)["workers"])
        client.gather([client.submit(evaluate, memo, first, workers=[worker], pure=False) for worker in workers])
        return (len(tasks) - 1) / wall(lambda: run_points(client, tasks[1:], memo, lambda *_: None))


def apart(n: int) -> list[float]:
    """`sweep_points_per_s(1)` of processes that run at the same time and share nothing."""
    code = "import bench\nif __name__ == '__main__': print(bench.sweep_points_per_s(1))"
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "one_sweep.py"
        script.write_text(code, encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        command = [sys.executable, str(script)]
        runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(n)]
        return [float(run.communicate()[0]) for run in runs]


GROUPS: dict[str, Callable[[int], Iterator[Row]]] = {
    "dense": dense,
    "functional": functional,
    "main": main_job,
    "sweep": sweep,
}


def median(measure: Callable[[], float], repeat: int) -> float:
    """Median after one run that warms caches up."""
    measure()
    return statistics.median(measure() for _ in range(repeat))


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def wall(work: Callable[[], object]) -> float:
    """Time that something takes in this process."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def wall_seconds(command: list[str], *, two_cores: bool = False, environment: dict[str, str] | None = None) -> float:
    """Time of one process, held to two cores where asked."""
    limit = (lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])) if two_cores else None
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment, preexec_fn=limit)
    return time.perf_counter() - start


def peak_gib() -> float:
    """Largest resident set of any finished child so far."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
