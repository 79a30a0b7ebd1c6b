"""The journal: nothing finished is lost, nothing half written is believed, one process at a time."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from resv_sim.errors import ConfigError, OutputError
from resv_sim.output import MANIFEST, OutputFolder
from resv_sim.sweep.evaluate import Evaluated
from resv_sim.sweep.space import Sweep, points
from resv_sim.sweep.store import JOURNAL, SweepStore, read_records, read_state
from tests.sweeps import load_sweep, sweep_data


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return load_sweep(tmp_path, sweep_data(2))


def store(folder: Path, sweep: Sweep, *, resume: bool = False, models: str = "models") -> SweepStore:
    return SweepStore(folder / "out", sweep, models, resume=resume)


def fill(folder: Path, sweep: Sweep, n: int = 3) -> bytes:
    """The journal of a sweep with `n` finished points, the last first."""
    with store(folder, sweep) as opened:
        for point in reversed(points(sweep.config)[:n]):
            opened.add(point, Evaluated(point.index, ({"latency_s": 0.1 + point.index},), ({},), ({},)))
    return (folder / "out" / JOURNAL).read_bytes()


def test_what_is_added_is_on_disk_and_comes_back_by_point(tmp_path: Path, sweep: Sweep) -> None:
    journal = fill(tmp_path, sweep)
    assert [json.loads(line)["point"] for line in journal.splitlines()] == [2, 1, 0]
    with store(tmp_path, sweep, resume=True) as opened:
        assert [record["point"] for record in opened.records()] == [0, 1, 2]
        assert opened.records()[1]["rows"] == [{"latency_s": 1.1}]
    assert read_records(tmp_path / "out") == sorted(map(json.loads, journal.splitlines()), key=lambda r: r["point"])


def test_the_state_counts_what_is_finished_and_what_failed(tmp_path: Path, sweep: Sweep) -> None:
    first, second, third = points(sweep.config)[:3]
    with store(tmp_path, sweep) as opened:
        opened.add(second, Evaluated(1, ({"latency_s": 0.1},), ({},), ({},)))
        opened.add(first, Evaluated(0, error="x"))
        assert [(record["point"], record.get("error")) for record in opened.records()] == [(0, "x"), (1, None)]
        opened.write_state(12)
    with store(tmp_path, sweep, resume=True) as opened:
        opened.add(third, Evaluated(2, error="y"))
        state = read_state(tmp_path / "out")
        assert (state["n_points"], state["finished"], state["failed"]) == (12, 2, 1)
        opened.write_state(12)
    state = read_state(tmp_path / "out")
    assert (state["n_points"], state["finished"], state["failed"]) == (12, 3, 2)


def test_a_sweep_and_another_run_do_not_share_a_folder(tmp_path: Path, sweep: Sweep) -> None:
    fill(tmp_path, sweep)
    before = sorted((tmp_path / "out").iterdir())
    with pytest.raises(OutputError, match="holds a sweep"), OutputFolder(tmp_path / "out"):
        pass
    assert sorted((tmp_path / "out").iterdir()) == before
    (tmp_path / "other" / "out").mkdir(parents=True)
    (tmp_path / "other" / "out" / MANIFEST).write_text("{}")
    with pytest.raises(OutputError, match="results of another run"), store(tmp_path / "other", sweep):
        pass
    assert [path.name for path in (tmp_path / "other" / "out").iterdir()] == [MANIFEST]


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_line_cut_anywhere_is_dropped_and_the_others_stay(tmp_path: Path, sweep: Sweep, cut: int) -> None:
    journal = fill(tmp_path, sweep)
    (tmp_path / "out" / JOURNAL).write_bytes(journal[:-cut])
    with store(tmp_path, sweep, resume=True) as opened:
        assert [record["point"] for record in opened.records()] == [1, 2]
    assert (tmp_path / "out" / JOURNAL).read_bytes() == b"".join(journal.splitlines(keepends=True)[:2])


def test_a_damaged_line_in_the_middle_costs_that_point_alone(tmp_path: Path, sweep: Sweep) -> None:
    first, second, third = fill(tmp_path, sweep).splitlines(keepends=True)
    (tmp_path / "out" / JOURNAL).write_bytes(first + b"\0" * len(second) + b"\n" + b"[1]\n{}\n" + third)
    with store(tmp_path, sweep, resume=True) as opened:
        assert [record["point"] for record in opened.records()] == [0, 2]


def test_a_full_disk_keeps_what_was_finished_and_says_how_to_go_on(
    tmp_path: Path, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fill(tmp_path, sweep)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with store(tmp_path, sweep, resume=True) as opened:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match=r"No space left on device.*--resume"):
            opened.add(points(sweep.config)[5], Evaluated(5, error="x"))
        assert (tmp_path / "out" / JOURNAL).read_bytes() == before
        monkeypatch.undo()
        opened.add(points(sweep.config)[5], Evaluated(5, error="x"))
    assert (tmp_path / "out" / JOURNAL).read_bytes().count(b"\n") == 4


def test_two_runs_cannot_share_a_folder(tmp_path: Path, sweep: Sweep) -> None:
    with (
        store(tmp_path, sweep),
        pytest.raises(OutputError, match="in use by another run"),
        store(tmp_path, sweep, resume=True),
    ):
        pass


def test_another_sweep_is_refused_with_what_differs(tmp_path: Path, sweep: Sweep) -> None:
    fill(tmp_path, sweep)
    data: dict[str, Any] = sweep_data(2)
    data["sweep"]["axes"]["ratio"]["values"] = [0.1, 0.2]
    other = load_sweep(tmp_path, data)
    with (
        pytest.raises(ConfigError, match=r"sweep\.axes\.ratio\.values\.1 was 0\.11, is 0\.2"),
        store(tmp_path, other, resume=True),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="another version of the models"),
        store(tmp_path, sweep, resume=True, models="newer"),
    ):
        pass
    with pytest.raises(OutputError, match="go on with --resume"), store(tmp_path, sweep):
        pass


def test_a_folder_without_a_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds no sweep that can be read"):
        read_records(tmp_path)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, sweep: Sweep) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="cannot write results into"), store(tmp_path, sweep):
        pass
