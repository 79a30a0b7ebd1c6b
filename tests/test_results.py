"""Every file of a result folder: what is in it, that it is the same twice, and that it appears whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import defaultdict
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from dre_sim.timeline import Span, Timeline
from resv_sim.chrome_trace import lanes, trace_events
from resv_sim.config import load_experiment
from resv_sim.errors import OutputError
from resv_sim.output import OutputFolder
from resv_sim.results import ResultRow, SensitivityRow, sensitivity_ranges
from resv_sim.writing import csv_text, json_text, write_results
from tests.sample_results import sample_experiment, sample_result, sample_rows, sample_timeline

# fmt: off
FIRST_COLUMNS = [
    "experiment", "platform", "policy", "model", "kv_len_tokens", "batch", "stage", "latency_s", "fps", "speedup",
    "energy_j", "energy_gain", "power_w", "area_mm2", "retrieval_ratio", "attention_mass_kept", "output_rel_error",
    "dram_bytes", "link_bytes", "link_transactions", "prediction_s", "exposed_fetch_s",
]
# fmt: on
FILES = [
    "config.resolved.yaml",
    "provenance.json",
    "report.html",
    "results.csv",
    "results.json",
    "summary.md",
    "timeline.json",
]  # fmt: skip


def test_the_csv_has_the_agreed_columns_first_and_reads_back_equal() -> None:
    rows = sample_rows()
    read = list(csv.DictReader(io.StringIO(csv_text(rows))))
    assert list(read[0])[: len(FIRST_COLUMNS)] == FIRST_COLUMNS
    for row, got in zip(rows, read, strict=True):
        for field in fields(ResultRow):
            value = getattr(row, field.name)
            cell = got[field.name]
            assert cell == "" if value is None else type(value)(cell) == value


def test_every_column_and_no_other_is_explained_in_the_documentation() -> None:
    text = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text(encoding="utf-8")
    text = text.partition("## Comparison with published figures")[0]
    explained = {
        name for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    assert explained == {field.name for field in fields(ResultRow)}


def test_a_numpy_float_is_written_as_the_number_it_is() -> None:
    row = replace(sample_rows()[0], latency_s=np.float64(0.1))
    assert ",0.1," in csv_text([row])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_never_written(value: float) -> None:
    row = replace(sample_rows()[0], energy_j=value)
    with pytest.raises(
        ArithmeticError, match=r"energy_j is .* for agx_orin\+flexgen_stream at 1000 tokens, frame stage"
    ):
        csv_text([row])
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_text({"x": value})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the sample result was written into."""
    folder = tmp_path_factory.mktemp("written")
    write_results(sample_result(), sample_experiment("trace.seed=11"), folder)
    return folder


def test_every_file_is_written_and_the_same_result_gives_the_same_bytes(written: Path, tmp_path: Path) -> None:
    write_results(sample_result(), sample_experiment("trace.seed=11"), tmp_path)
    folders = [written, tmp_path]
    names = sorted(str(p.relative_to(folders[0])) for p in folders[0].rglob("*") if p.is_file())
    assert [name for name in names if "/" not in name] == FILES
    assert {Path(name).suffix for name in names if name.startswith("figures/")} == {".png", ".svg"}
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_provenance_says_what_made_the_result_and_nothing_of_when_or_where(written: Path) -> None:
    experiment = sample_experiment("trace.seed=11")
    text = (written / "provenance.json").read_text(encoding="utf-8")
    data = json.loads(text)
    assert data["seed"] == 11
    assert data["config_hash"] == experiment.config_hash()
    assert set(data["price_tables"]) == {"agx_orin", "vrex8"}
    assert data["platforms"] == {"agx_orin": "agx_orin", "vrex8": "vrex8"}
    assert {"version", "git_revision", "python", "libraries"} <= set(data)
    assert "results.csv" in data["files"]
    assert str(Path.cwd()) not in text
    assert str(written) not in text
    assert not re.search(r"\b20\d\d-\d\d-\d\d\b", text)


def test_the_resolved_configuration_loads_back_to_the_same_experiment(tmp_path: Path) -> None:
    experiment = sample_experiment("platforms.vrex8.hcu.bits_per_cycle=8", "workload.batch=2")
    path = tmp_path / "config.resolved.yaml"
    path.write_text(experiment.as_yaml(), encoding="utf-8")
    again, _ = load_experiment(str(path))
    assert again == experiment
    assert again.config_hash() == experiment.config_hash()


def test_results_json_holds_everything_but_the_timelines(written: Path) -> None:
    result = sample_result()
    data = json.loads((written / "results.json").read_text(encoding="utf-8"))
    assert len(data["rows"]) == len(result.rows)
    assert len(data["published"]) == len(result.published)
    assert np.shape(data["retrieval_ratios"][0]["layer_by_kv_head"]) == (32, 8)
    assert data["notes"] == list(result.notes)


# -- timeline.json ---------------------------------------------------------------------------------------


def test_timeline_tracks_are_named_and_spans_of_a_track_do_not_overlap() -> None:
    timelines = {"vrex8+resv": sample_timeline("vrex8"), "again": sample_timeline("vrex8")}
    events = json.loads(json_text(trace_events(timelines)))["traceEvents"]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    processes = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert processes == ["vrex8+resv", "again"]
    assert {"lxe", "hcu", "link", "link (2)", "dram", "dram (2)"} <= set(names.values())
    tracks = defaultdict(list)
    for event in (e for e in events if e["ph"] == "X"):
        assert event["dur"] >= 0
        tracks[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    assert set(tracks) == set(names)
    for spans in tracks.values():
        assert all(a[1] <= b[0] for a, b in zip(sorted(spans), sorted(spans)[1:], strict=False))


def test_timeline_times_are_microseconds() -> None:
    timeline = Timeline("p", (Span("lxe", 2_500_000, 4_000_000, "linear", 3, 64),), {}, 4_000_000)
    (event,) = [e for e in trace_events({"p": timeline})["traceEvents"] if e["ph"] == "X"]  # type: ignore[attr-defined]
    assert (event["ts"], event["dur"], event["name"], event["cat"]) == (2.5, 1.5, "linear", "lxe")
    assert event["args"] == {"layer": 3, "bytes": 64, "share": 1.0}


def test_lanes_are_as_few_as_the_deepest_overlap() -> None:
    rng = np.random.default_rng(3)
    starts = rng.integers(0, 1000, 200)
    spans = [Span("r", int(s), int(s + d), "x", 0) for s, d in zip(starts, rng.integers(1, 60, 200), strict=True)]
    depth = max(sum(s.start_ps <= t < s.end_ps for s in spans) for t in range(1100))
    dealt = lanes(spans)
    assert len(dealt) == depth
    assert sorted(map(id, (s for lane in dealt for s in lane))) == sorted(map(id, spans))


# -- the folder ------------------------------------------------------------------------------------------


def test_a_run_that_fails_keeps_the_old_result(tmp_path: Path) -> None:
    write(tmp_path, {"results.csv": "old", "figures/a.png": "old"})
    with pytest.raises(RuntimeError):
        fail_halfway(tmp_path)
    assert read(tmp_path) == {"results.csv": "old", "figures/a.png": "old", "provenance.json": MANIFEST_AB}


def test_a_run_that_fails_leaves_no_folder_that_was_not_there(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        fail_halfway(tmp_path / "deep" / "er")
    assert list(tmp_path.iterdir()) == []


def test_a_rerun_replaces_its_files_drops_stale_ones_and_leaves_others_alone(tmp_path: Path) -> None:
    write(tmp_path, {"results.csv": "old", "figures/a.png": "old"})
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with OutputFolder(tmp_path) as folder:
        write(folder.partial, {"results.csv": "new", "figures/b.png": "new"})
        folder.commit()
    got = read(tmp_path)
    assert got.pop("provenance.json") != MANIFEST_AB
    assert got == {"results.csv": "new", "figures/b.png": "new", "notes.txt": "mine"}


def test_what_a_killed_run_left_goes_and_what_another_is_writing_stays(tmp_path: Path) -> None:
    (tmp_path / ".partial-dead" / "figures").mkdir(parents=True)
    with OutputFolder(tmp_path) as first:
        assert list(tmp_path.glob(".partial-*")) == [first.partial]
        with OutputFolder(tmp_path) as second:
            assert first.partial.is_dir()
            assert second.partial != first.partial
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_cannot_name_files_outside_its_folder(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("x", encoding="utf-8")
    out = tmp_path / "out"
    out.mkdir()
    (out / "provenance.json").write_text(json.dumps({"files": ["../victim", str(victim)]}), encoding="utf-8")
    with OutputFolder(out) as folder:
        folder.commit()
    assert victim.exists()


def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with (
        pytest.raises(OutputError, match=r"cannot write results into '.*file/out'.*--out"),
        OutputFolder(tmp_path / "file" / "out"),
    ):
        pytest.fail("entered")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "x"


def test_prices_that_hardly_move_the_gain_are_left_out() -> None:
    def moved(by: float) -> list[SensitivityRow]:
        return [SensitivityRow("p", "pJ", v, "a", "resv", 1000, "frame", 5.0 + by * v) for v in (0.0, 1.0)]

    assert sensitivity_ranges(moved(0.04)) == []
    assert len(sensitivity_ranges(moved(0.06))) == 1


def test_prices_are_put_together_by_run_in_ascending_order() -> None:
    rows = [
        SensitivityRow("p", "pJ", value, platform, "resv", 1000, "frame", 10 - value)
        for platform in ("a", "b")
        for value in (3.0, 1.0)
    ]
    got = sensitivity_ranges(rows)
    assert [(r.label, r.values, r.gains) for r in got] == [
        ("a+resv", (1.0, 3.0), (9.0, 7.0)),
        ("b+resv", (1.0, 3.0), (9.0, 7.0)),
    ]


MANIFEST_AB = json.dumps({"files": ["results.csv", "figures/a.png", "provenance.json"]})


def write(folder: Path, files: dict[str, str]) -> None:
    """Files and the manifest that lists them."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    manifest = json.dumps({"files": [*files, "provenance.json"]})
    (folder / "provenance.json").write_text(manifest, encoding="utf-8")


def fail_halfway(out: Path) -> None:
    """A run that breaks off after its first file."""
    with OutputFolder(out) as folder:
        (folder.partial / "results.csv").write_text("half", encoding="utf-8")
        raise RuntimeError


def read(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text(encoding="utf-8") for p in folder.rglob("*") if p.is_file()}
