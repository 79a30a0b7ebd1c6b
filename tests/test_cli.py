"""The command line: what it prints, what it writes, and how it says no. Most tests replace the pipeline."""

from __future__ import annotations

import io
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from resv.trace import ModelShape, Step
from resv_sim import library
from resv_sim.cli import main
from resv_sim.progress import Progress
from resv_sim.validation import load
from tests.sample_results import sample_result

Run = Callable[..., Any]


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> types.ModuleType:
    """A pipeline that returns the sample result, no figures (test_plots.py has them), an empty current folder."""
    fake = types.ModuleType("resv_sim.pipeline")
    calls: list[tuple[Any, ...]] = []

    def run(experiment: Any, progress: Progress, jobs: int, *, use_cache: bool) -> Any:
        calls.append((experiment, jobs, use_cache))
        progress.finished("probe 1 of 1")
        return sample_result((1000,))

    fake.run = run  # type: ignore[attr-defined]
    fake.calls = calls  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "resv_sim.pipeline", fake)
    monkeypatch.setattr("resv_sim.plots.draw_figures", lambda *_: [])
    monkeypatch.chdir(tmp_path)
    return fake


def resv_sim(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def refused(*arguments: str) -> str:
    """The one paragraph that a refusal prints."""
    result = resv_sim(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    paragraph = result.stderr.strip().splitlines()[-1]
    assert paragraph.startswith("resv-sim: error: ")
    assert "Traceback" not in result.stderr
    return paragraph


# -- what works ------------------------------------------------------------------------------------------


def test_help_answers_at_once_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from resv_sim.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'torch', 'numba', 'yaml', 'pydantic', 'matplotlib', 'rich', 'jinja2', 'pyarrow'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--config NAME_OR_PATH" in done.stdout


def test_a_run_prints_the_table_and_writes_every_file(pipeline: Any, tmp_path: Path) -> None:
    result = resv_sim("--config", "orin_vs_dre.yaml", "--out", "out")
    assert result.exit_code == 0, result.output
    assert "agx_orin+flexgen_stream" in result.stdout
    assert "Results in out" in result.stdout
    assert "probe 1 of 1" in result.stderr
    assert "orin_vs_dre.yaml" in result.stderr
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {
        "results.csv", "results.json", "summary.md", "report.html", "timeline.json", "config.resolved.yaml",
        "provenance.json",
    }  # fmt: skip


def test_options_reach_the_experiment_and_the_pipeline(pipeline: Any) -> None:
    settings = ("--set", "workload.batch=4", "--set", "policies.resv.wicsum.ratio=0.5")
    result = resv_sim("--config", "orin_vs_dre", *settings, "--jobs", "3", "--no-cache")
    assert result.exit_code == 0, result.output
    ((experiment, jobs, use_cache),) = pipeline.calls
    assert experiment.workload.batch == 4
    assert experiment.policies["resv"].wicsum.ratio == 0.5
    assert (jobs, use_cache) == (3, False)
    assert Path("results/orin_vs_dre/results.csv").exists()


def test_the_same_command_twice_gives_the_same_table(pipeline: Any) -> None:
    for out in ("a", "b", "a"):
        assert resv_sim("--config", "orin_vs_dre", "--out", out).exit_code == 0
    assert Path("a/results.csv").read_bytes() == Path("b/results.csv").read_bytes()


def test_the_package_runs_as_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "resv_sim", "list", "nothing"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: resv-sim list")


def test_without_arguments_help_is_shown() -> None:
    result = resv_sim()
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


def test_the_version_is_printed() -> None:
    assert resv_sim("--version").stdout.startswith("resv-sim ")


@pytest.mark.parametrize("family", ["models", "policies", "platforms", "configs"])
def test_a_list_names_every_bundled_file(family: str) -> None:
    result = resv_sim("list", family)
    assert result.exit_code == 0
    names = [line.split()[0] for line in result.stdout.splitlines()]
    assert names == library.bundled("" if family == "configs" else family)
    assert names


def test_list_alone_lists_all_families() -> None:
    text = resv_sim("list").stdout
    assert [line for line in text.splitlines() if not line.startswith(" ")] == [
        "models:", "policies:", "platforms:", "configs:",
    ]  # fmt: skip
    assert "vrex8" in text


class FakeTrace:
    """A recorded trace whose second layer may be broken."""

    broken = False
    n_tokens = 30
    steps = (Step("frame", 0, 10),) * 3
    probes = (Step("frame", 20, 10),)

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"{path}: no such trace file")
        self.shape = load("tiny", "models", ModelShape)

    def layer(self, layer: int) -> None:
        if self.broken and layer == 1:
            raise ValueError("layer 1: values are not finite")

    def describe(self) -> dict[str, object]:
        return {"recorder": "test"}

    def fingerprint(self) -> str:
        return "f00d"


@pytest.fixture
def trace_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    fake = types.ModuleType("resv.trace_file")
    fake.RecordedTrace = FakeTrace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "resv.trace_file", fake)
    (tmp_path / "t.safetensors").touch()
    return tmp_path / "t.safetensors"


def test_trace_info_shows_what_a_file_holds(trace_file: Path) -> None:
    text = resv_sim("trace", "info", str(trace_file)).stdout
    assert "tokens: 30 in 3 steps" in text
    assert "probes: frame at 20" in text
    assert "fingerprint: f00d" in text
    assert "recorder: test" in text


def test_trace_check_reads_every_layer(trace_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resv_sim("trace", "check", str(trace_file)).exit_code == 0
    monkeypatch.setattr(FakeTrace, "broken", True)
    assert "layer 1: values are not finite" in refused("trace", "check", str(trace_file))


@pytest.mark.parametrize("command", ["info", "check"])
def test_a_trace_that_is_not_there_is_refused(trace_file: Path, command: str) -> None:
    assert "no such trace file" in refused("trace", command, "missing.safetensors")


# -- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "orin_vs_drе"], ["no configuration", "orin_vs_dre", "Did you mean 'orin_vs_dre'?"]),
        (["--config", "missing/file.yaml"], ["no configuration 'missing/file.yaml'"]),
        (["--config", "orin_vs_dre", "--set", "video.fps_hz=2"],
         ["--set video.fps_hz: video.fps_hz: unknown key", "Did you mean 'fps'?"]),
        (["--config", "orin_vs_dre", "--set", "policies.resv.recent_mb=2"], ["Did you mean 'recent_bytes'?"]),
        (["--config", "orin_vs_dre", "--set", "workload.batch=many"], ["workload.batch = 'many'", "valid integer"]),
        (["--config", "orin_vs_dre", "--set", "policies.resv.wicsum.ratio=1.5"],
         ["policies.resv.wicsum.ratio = 1.5", "less than or equal to 1"]),
        (["--config", "orin_vs_dre", "--set", "policies.resv.wicsum.ratio=0"], ["greater than 0"]),
        (["--config", "orin_vs_dre", "--set", "policies.resv.hamming_threshold=33"], ["hamming_threshold", "33", "32"]),
        (["--config", "orin_vs_dre", "--set", "baseline.policy=rsv"], ["no policy 'rsv'", "Did you mean 'resv'?"]),
        (["--config", "orin_vs_dre", "--set", "runs.2.platform=vrex"], ["no platform 'vrex'", "'vrex8'"]),
        (["--config", "orin_vs_dre", "--set", "platforms.vrex8=vrex9"], ["no configuration 'vrex9'", "'vrex8'"]),
        (["--config", "orin_vs_dre", "--set", "platforms.vrex8.energy.static.x=1"], ["energy.vrex8.static.x"]),
        (["--config", "orin_vs_dre", "--set", "trace.seed=true"],
         ["--set trace.seed: trace.seed = True: must be a number, not a truth value"]),
        (["--config", "orin_vs_dre", "--set", "policies.resv.n_sink=yes"], ["policies.resv.n_sink = True: must be"]),
        (["--config", "orin_vs_dre", "--set", "swep=1"], ["Did you mean 'sweep'?", "report, sweep, benchmark."]),
        (["--config", "orin_vs_dre", "--set", "novalue"], ["must be KEY=VALUE"]),
    ],
)  # fmt: skip
def test_a_bad_configuration_ends_in_one_paragraph(pipeline: Any, arguments: list[str], words: list[str]) -> None:
    paragraph = refused(*arguments)
    assert all(word in paragraph for word in words), paragraph
    assert pipeline.calls == []


def test_a_file_with_an_error_is_named_with_its_line(pipeline: Any, tmp_path: Path) -> None:
    text = library.find("orin_vs_dre").read_text(encoding="utf-8").replace("  seed: 0", "  sede: 0")
    Path("mine.yaml").write_text(text, encoding="utf-8")
    line = next(n for n, row in enumerate(text.splitlines(), 1) if "sede" in row)
    assert f"mine.yaml:{line}: trace.sede: unknown key. Did you mean 'seed'?" in refused("--config", "mine.yaml")


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("policy: full}\n", "policy: fulll}\n", "baseline.policy: no policy 'fulll'"),
        ("{platform: vrex8, policy: resv}", "{platform: vrex, policy: resv}", "runs.2.platform: no platform 'vrex'"),
        ("{platform: vrex8, policy: resv}", "{platform: agx_orin, policy: resv}", "runs.2: each pair"),
    ],
)
def test_an_entry_that_fits_no_other_is_named_with_its_line(pipeline: Any, old: str, new: str, where: str) -> None:
    before, _, after = library.find("quick").read_text(encoding="utf-8").rpartition(old)
    Path("mine.yaml").write_text(f"{before}{new}{after}", encoding="utf-8")
    assert f"mine.yaml:{before.count(chr(10)) + 1}: {where}" in refused("--config", "mine.yaml")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("baseline.policy=nope", "baseline.policy: no policy 'nope'"),
        ("policies.resv.hamming_threshold=99", "policies.resv: hamming_threshold is 99"),
        ("workload.stages=[frame,frame]", "workload: stages"),
    ],
)
def test_a_setting_that_does_not_fit_the_rest_is_named(pipeline: Any, setting: str, words: str) -> None:
    key = setting.partition("=")[0]
    assert f"error: --set {key}: {words}" in refused("--config", "quick", "--set", setting)


def test_an_output_folder_that_cannot_be_written_is_refused_before_the_run(pipeline: Any) -> None:
    Path("file").write_text("x", encoding="utf-8")
    assert "cannot write results into 'file/out'" in refused("--config", "orin_vs_dre", "--out", "file/out")
    assert pipeline.calls == []


@pytest.mark.parametrize("error", [ValueError("two\nlines"), OSError("disk full")])
def test_what_the_user_can_mend_is_one_line_and_nothing_is_lost(pipeline: Any, error: Exception) -> None:
    assert resv_sim("--config", "orin_vs_dre", "--out", "out").exit_code == 0
    before = Path("out/results.csv").read_bytes()
    pipeline.run = failing(error)
    assert refused("--config", "orin_vs_dre", "--out", "out").endswith(" ".join(str(error).split()))
    assert Path("out/results.csv").read_bytes() == before
    assert not list(Path("out").glob(".partial*"))


def test_debug_shows_the_traceback(pipeline: Any) -> None:
    pipeline.run = failing(ValueError("inner"))
    result = resv_sim("--config", "orin_vs_dre", "--debug")
    assert isinstance(result.exception, ValueError)


def test_a_mistake_of_the_program_is_not_dressed_up_as_the_users(pipeline: Any) -> None:
    pipeline.run = failing(ArithmeticError("energy is not the sum of its parts"))
    result = resv_sim("--config", "orin_vs_dre")
    assert isinstance(result.exception, ArithmeticError)


@pytest.mark.parametrize(
    "arguments", [["--confg", "x"], ["list", "modles"], ["--config", "x", "list"], ["--jobs", "0"], ["trace", "inf"]]
)
def test_a_misspelt_command_is_a_usage_error(arguments: list[str]) -> None:
    result = resv_sim(*arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


@pytest.mark.parametrize(
    "option",
    ["--out=x", "--set=a=1", "--jobs=1", "--scheduler=tcp://127.0.0.1:1", "--resume", "--no-cache"],
)
def test_an_option_of_experiments_without_one_is_refused_by_name(option: str) -> None:
    for rest in ([], ["reproduce", "table3"]):
        result = resv_sim(option, *rest)
        assert result.exit_code == 2
        assert option.partition("=")[0] in result.stderr


@pytest.mark.parametrize("option", ["--resume", "--scheduler=tcp://127.0.0.1:1"])
@pytest.mark.parametrize("config", ["quick", "accuracy"])
def test_options_of_sweeps_are_refused_for_other_files(option: str, config: str) -> None:
    assert f"{option.partition('=')[0]} is for sweeps" in refused("--config", config, option)


def failing(error: Exception) -> Run:
    def run(*_: Any, **__: Any) -> None:
        raise error

    return run


# -- progress --------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_short_task_shows_no_bar_and_a_long_one_does() -> None:
    short, long = Terminal(), Terminal()
    with Progress(stream=short, delay_s=60).task("layers", 2) as advance:
        advance()
    with Progress(stream=long, delay_s=0.01).task("layers", 2) as advance:
        advance()
        time.sleep(0.3)
    assert short.getvalue() == ""
    assert "layers" in long.getvalue()
    assert "1/2" in long.getvalue()


def test_away_from_a_terminal_there_are_lines_and_no_bar() -> None:
    stream = io.StringIO()
    progress = Progress(stream=stream, delay_s=0)
    with progress.task("layers", 1) as advance:
        advance()
        progress.finished("frame at 1000 tokens")
    assert stream.getvalue() == "frame at 1000 tokens\n"


def test_a_quiet_progress_says_nothing() -> None:
    stream = Terminal()
    progress = Progress(quiet=True, stream=stream, delay_s=0)
    with progress.task("layers", 1) as advance:
        advance()
        progress.finished("x")
    assert stream.getvalue() == ""


def test_runs_of_a_longer_job_have_bars_and_no_lines() -> None:
    lines, terminal = io.StringIO(), Terminal()
    Progress(stream=lines, delay_s=0).of_parts().finished("frame at 1000 tokens")
    with Progress(stream=terminal, delay_s=0.01).of_parts().task("layers", 1) as advance:
        time.sleep(0.3)
        advance()
    assert lines.getvalue() == ""
    assert "layers" in terminal.getvalue()
