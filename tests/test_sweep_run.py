"""Running sweeps for real: any number of workers, kills in the middle, another machine's scheduler. Byte for byte."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from resv_sim.config import load_experiment
from resv_sim.errors import ConfigError, OutputError
from resv_sim.memo import Memo
from resv_sim.pipeline import run
from resv_sim.progress import Progress
from resv_sim.sweep.cluster import connected
from resv_sim.sweep.evaluate import evaluate
from resv_sim.sweep.job import run_sweep
from resv_sim.sweep.runner import run_points
from resv_sim.sweep.space import points
from resv_sim.writing import csv_text
from tests.sweeps import finish, load_sweep, start, sweep_data, write_sweep

N_RATIOS = 15
N_POINTS = 4 * N_RATIOS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def config(folder: Path) -> Path:
    return write_sweep(folder, sweep_data(N_RATIOS))


@pytest.fixture(scope="module")
def uninterrupted(folder: Path, config: Path) -> bytes:
    """results.csv of one worker that nobody disturbed."""
    finish(start(config, folder / "one"))
    return (folder / "one" / "results.csv").read_bytes()


def wait_for_points(out: Path, n: int) -> None:
    """Until `n` points are in the journal."""
    for _ in range(600):
        if (out / "points.jsonl").exists() and (out / "points.jsonl").read_bytes().count(b"\n") >= n:
            return
        time.sleep(0.05)
    raise AssertionError("no point was finished in 30 s")


def children(pid: int) -> list[int]:
    """Processes that `pid` started to run points."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == pid and b"spawn_main" in command:
            found.append(int(entry.name))
    return found


def test_three_workers_give_the_bytes_of_one(folder: Path, config: Path, uninterrupted: bytes) -> None:
    assert uninterrupted.count(b"\n") == 1 + 2 * N_POINTS
    finish(start(config, folder / "three", jobs=3))
    assert (folder / "three" / "results.csv").read_bytes() == uninterrupted
    assert json.loads((folder / "three" / "sweep.json").read_text())["finished"] == N_POINTS


def test_a_killed_run_goes_on_where_it_was(folder: Path, config: Path, uninterrupted: bytes) -> None:
    out = folder / "killed"
    process = start(config, out, jobs=2)
    wait_for_points(out, 5)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = [line for line in (out / "points.jsonl").read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    assert 5 <= len(done) < N_POINTS
    finish(start(config, out, jobs=2, resume=True))
    assert (out / "results.csv").read_bytes() == uninterrupted
    after = (out / "points.jsonl").read_bytes().splitlines(keepends=True)
    assert after[: len(done)] == done, "what was finished must be neither lost nor done again"
    assert len(after) == N_POINTS


def test_a_killed_worker_costs_nothing_but_time(folder: Path, config: Path, uninterrupted: bytes) -> None:
    out = folder / "worker"
    process = start(config, out, jobs=2)
    wait_for_points(out, 1)
    workers = children(process.pid)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    finish(process)
    assert (out / "results.csv").read_bytes() == uninterrupted


def test_an_interrupt_ends_all_processes_with_one_line(folder: Path, config: Path) -> None:
    out = folder / "interrupted"
    command = [
        sys.executable,
        "-c",
        "from resv_sim.cli import main; main()",
        "--config",
        str(config),
        "--out",
        str(out),
    ]
    environment = {**os.environ, "RESV_SIM_CACHE": str(folder / "cache_interrupted")}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for_points(out, 1)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C: to the workers too
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert f"the same command with --resume goes on with {out}" in said.strip().splitlines()[-1]


def test_half_a_line_is_dropped_and_done_again(folder: Path, config: Path, uninterrupted: bytes) -> None:
    out = folder / "half"
    out.mkdir()
    journal = (folder / "one" / "points.jsonl").read_bytes()
    (out / "sweep.json").write_bytes((folder / "one" / "sweep.json").read_bytes())
    (out / "points.jsonl").write_bytes(journal[:-100])
    finish(start(config, out, resume=True))
    assert (out / "results.csv").read_bytes() == uninterrupted


@pytest.fixture
def scheduler(folder: Path) -> Iterator[str]:
    """A dask scheduler with one worker on each of two addresses of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}

    def dask(*arguments: str) -> Any:
        return subprocess.Popen([sys.executable, "-m", "dask", *arguments], env=environment, **quiet)

    processes = [dask("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")]
    processes += [
        dask("worker", address, "--host", host, "--nthreads", "1", "--no-nanny", "--no-dashboard")
        for host in ("127.0.0.2", "127.0.0.3")
    ]
    yield address
    for process in processes:
        process.terminate()
        process.wait()


def test_workers_of_two_addresses_give_the_same_bytes(
    folder: Path, config: Path, uninterrupted: bytes, scheduler: str
) -> None:
    finish(start(config, folder / "remote", scheduler=scheduler))
    assert (folder / "remote" / "results.csv").read_bytes() == uninterrupted


def test_two_sweeps_at_a_time_do_not_want_the_same_port() -> None:
    with connected(1, None), connected(1, None) as client:
        assert client.submit(abs, -1).result() == 1


def test_a_scheduler_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resv_sim.sweep.cluster.CONNECT_S", 1)
    with (
        pytest.raises(ConfigError, match=r"--scheduler tcp://127\.0\.0\.1:1: no scheduler answers"),
        connected(1, "tcp://127.0.0.1:1"),
    ):
        pass


# -- without workers --------------------------------------------------------------------------------------


class Future:
    """What a call gave, as the runner sees it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.status, self._value, self._error = "finished", None, None
        try:
            self._value = call()
        except BaseException as error:
            self.status, self._error = "error", error

    def result(self) -> Any:
        return self._value

    def exception(self) -> BaseException | None:
        return self._error

    def release(self) -> None:
        pass


class InlineClient:
    """Runs what is submitted at once, in this process."""

    def submit(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Future:
        for name in ("pure", "priority", "after"):
            options.pop(name, None)
        return Future(lambda: function(*arguments, **options))


class InOrder(list[Any]):
    """`as_completed` of futures that are finished."""

    def add(self, future: Future) -> None:
        self.append(future)


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps run in this process, without dask."""
    monkeypatch.setattr("distributed.as_completed", InOrder)
    monkeypatch.setattr("resv_sim.sweep.job.connected", _inline_connected)


class _inline_connected:  # noqa: N801
    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> InlineClient:
        return InlineClient()

    def __exit__(self, *_: object) -> None:
        pass


def quick(tmp_path: Path, data: dict[str, Any], out: str = "out", *, resume: bool = False) -> list[dict[str, Any]]:
    return run_sweep(load_sweep(tmp_path, data), tmp_path / out, 1, scheduler=None, resume=resume, use_cache=True)


@pytest.mark.usefixtures("inline")
def test_a_point_has_the_row_of_the_same_experiment_run_alone(tmp_path: Path) -> None:
    record = quick(tmp_path, sweep_data(2))[3]
    assert record["overrides"]["platforms.vrex8.offload.link"] == "pcie4_x4"
    settings = [f"{path}={value}" for path, value in record["overrides"].items()]
    alone = run(load_experiment(str(tmp_path / "sweep.yaml"), settings)[0], Progress(quiet=True), use_cache=False)
    line = csv_text(alone.rows).splitlines()[2]
    text = (tmp_path / "out" / "results.csv").read_text()
    assert text.splitlines()[1 + 2 * 3 + 1].split(",", 5)[5] == line


@pytest.mark.usefixtures("inline")
def test_a_failing_point_is_listed_with_its_error_and_not_tried_again(tmp_path: Path) -> None:
    data = sweep_data(1)
    data["sweep"]["axes"]["link"] = {"path": "platforms.vrex8.offload.capacity_bytes", "values": [1000, 10**9]}
    data["sweep"]["published"] = {}
    records = quick(tmp_path, data)
    assert ["error" in record for record in records] == [True, False, True, False]
    assert "the tier holds 1000" in records[0]["error"]
    failures = (tmp_path / "out" / "failures.csv").read_text().splitlines()
    assert len(failures) == 3
    assert "the tier holds 1000" in failures[1]
    before = (tmp_path / "out" / "points.jsonl").read_bytes()
    quick(tmp_path, data, resume=True)
    assert (tmp_path / "out" / "points.jsonl").read_bytes() == before


@pytest.mark.usefixtures("inline")
def test_a_measured_run_that_does_not_fit_is_a_failure(tmp_path: Path) -> None:
    data = sweep_data(1)
    data["sweep"]["axes"]["link"] = {"path": "platforms.vrex8.memory_capacity_bytes", "values": [1000, 10**9]}
    data["sweep"]["published"] = {}
    records = quick(tmp_path, data)
    assert records[0]["error"].startswith("no row for vrex8+resv, frame at the longest cache: ")
    assert "rows" in records[1]


@pytest.mark.usefixtures("inline")
def test_a_refused_point_is_named_before_anything_runs(tmp_path: Path) -> None:
    data = sweep_data(2)
    data["sweep"]["axes"]["ratio"]["values"] = [0.2, 1.5]
    with pytest.raises(ConfigError, match=r"point 2: .*sweep\.yaml:\d+: .*ratio = 1\.5.*less than or equal to 1"):
        quick(tmp_path, data)
    assert not (tmp_path / "out").exists()
    assert len(quick(tmp_path, sweep_data(2))) == 8


@pytest.mark.usefixtures("inline")
def test_a_folder_with_finished_points_needs_resume_and_the_same_sweep(tmp_path: Path) -> None:
    quick(tmp_path, sweep_data(1))
    with pytest.raises(OutputError, match="go on with --resume"):
        quick(tmp_path, sweep_data(1))
    changed = sweep_data(1)
    changed["policies"]["resv"]["n_sink"] = 4
    with pytest.raises(ConfigError, match=r"holds another sweep: experiment\.policies\.resv\.n_sink was 0, is 4"):
        quick(tmp_path, changed, resume=True)


def test_a_point_whose_worker_always_dies_is_done_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import KilledWorker

    monkeypatch.setattr("distributed.as_completed", InOrder)
    sweep = load_sweep(tmp_path, sweep_data(1))
    tasks = [(point, sweep.experiment(point)) for point in points(sweep.config)]

    def deadly(memo: Memo, some: Any, after: object = None) -> Any:
        if any(index == 1 for index, _ in some):
            raise KilledWorker("evaluate", None, 3)
        return evaluate(memo, some)

    monkeypatch.setattr("resv_sim.sweep.runner.evaluate", deadly)
    errors: dict[int, str | None] = {}
    run_points(InlineClient(), tasks, Memo(tmp_path / "memo"), lambda p, r: errors.update({p.index: r.error}))
    assert errors == {0: None, 1: "the worker died every time it tried (killed, or out of memory)", 2: None, 3: None}


SEARCH = {"sampler": "nsga2", "population": 6, "objectives": {"energy_j": "minimize", "latency_s": "minimize"}}


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize("sampler", ["nsga2", "tpe"])
def test_an_interrupted_search_takes_the_way_it_would_have_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    data = sweep_data(
        8, mode="search", budget=18, seed=3, search={**SEARCH, "sampler": sampler}, constraints=["fps >= 2"]
    )
    data["sweep"]["axes"]["recent"] = {
        "path": "policies.resv.recent_bytes",
        "logrange": {"start": 1000, "stop": 100_000},
    }
    quick(tmp_path, data, "whole")
    calls: list[int] = []

    def tires(memo: Memo, some: Any, after: object = None) -> Any:
        calls.extend(index for index, _ in some)
        if len(calls) > 10:
            raise KeyboardInterrupt
        return evaluate(memo, some)

    with monkeypatch.context() as patch:
        patch.setattr("resv_sim.sweep.runner.evaluate", tires)
        patch.setattr("resv_sim.sweep.runner._reason", _raise)
        with pytest.raises(KeyboardInterrupt):
            quick(tmp_path, data, "cut")
    assert 6 < (tmp_path / "cut" / "points.jsonl").read_bytes().count(b"\n") < 18
    records = quick(tmp_path, data, "cut", resume=True)
    assert len(records) == 18
    assert (tmp_path / "cut" / "results.csv").read_bytes() == (tmp_path / "whole" / "results.csv").read_bytes()

    import optuna

    study = optuna.load_study(
        study_name="sweep",
        storage=optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(tmp_path / "cut" / "study.journal"))
        ),
    )
    assert {trial.state.name for trial in study.trials} == {"COMPLETE"}


@pytest.mark.usefixtures("inline")
def test_a_search_pays_for_no_design_twice_and_ends_where_nothing_is_new(tmp_path: Path) -> None:
    data = sweep_data(2, mode="search", budget=40, search={**SEARCH, "population": 2})
    records = quick(tmp_path, data)
    assert records[0]["names"] == data["sweep"]["published"]
    designs = {json.dumps(record["overrides"]) for record in records}
    assert [record["point"] for record in records] == list(range(len(designs)))
    assert 6 <= len(designs) <= 8, "of 8 there are"
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["n_points"] == len(designs)
    before = [(tmp_path / "out" / name).read_bytes() for name in ("points.jsonl", "results.csv")]
    quick(tmp_path, data, resume=True)
    assert [(tmp_path / "out" / name).read_bytes() for name in ("points.jsonl", "results.csv")] == before


def _raise(error: BaseException) -> str:
    raise error
