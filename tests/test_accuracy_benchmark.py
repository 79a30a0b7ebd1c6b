"""`resv-sim accuracy`: files, figures and errors; accuracy as a column, an objective and a constraint of sweeps."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from resv_sim import pipeline
from resv_sim.accuracy import answering
from resv_sim.accuracy.benchmark import benchmark_of, run_benchmark
from resv_sim.accuracy.report import cells, p_value, terminal_table
from resv_sim.accuracy.table import BLIND
from resv_sim.cli import main
from resv_sim.config import load_experiment, load_tree
from resv_sim.errors import ConfigError
from resv_sim.memo import Memo
from resv_sim.progress import Progress
from resv_sim.sweep.evaluate import evaluate, prepare_accuracy
from resv_sim.sweep.space import points, sweep_of
from tests.accuracy import policies_that_sit, tiny_weights
from tests.sweeps import sweep_data, write_sweep

SMALL = ["accuracy.n_streams=3", "accuracy.n_frames=20", "accuracy.moments=2"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RESV_SIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def run(*arguments: str):
    return CliRunner().invoke(main, ["accuracy", *arguments, "--jobs", "1"], catch_exceptions=False)


def few(weights: Path) -> list[str]:
    return ["--frames", "20", "--streams", "3", "--weights", str(weights)]


def read(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


# -- the command ----------------------------------------------------------------------------------------------


def test_the_command_writes_a_folder(weights) -> None:
    done = run(*few(weights), "--policy", "resv", "--policy", "topk", "--stages", "both,text", "--out", "out")
    assert done.exit_code == 0, done.output
    rows = read("out/accuracy.csv")
    assert [(row["policy"], row["stages"]) for row in rows] == [
        (BLIND, "both"),
        *((policy, stages) for stages in ("both", "text") for policy in ("full", "resv", "topk")),
    ]
    assert float(rows[1]["accuracy_drop"]) == 0.0
    assert float(rows[1]["p_value"]) == 1.0
    assert len(read("out/pairs.csv")) == 6 + 3  # four of the first exam with the level of chance, three of the second
    priced = read("out/platforms.csv")
    assert {(row["platform"], row["policy"], row["stage"]) for row in priced} == {
        (platform, policy, stage)
        for platform in ("agx_orin", "vrex8")
        for policy in ("full", "resv", "topk")
        for stage in ("frame", "question")
    }
    for figure in ("accuracy_kept", "accuracy_energy"):
        assert Path(f"out/figures/{figure}.png").stat().st_size > 10_000
    summary = Path("out/summary.md").read_text()
    assert "| resv | frame and text | 20 |" in summary
    manifest = json.loads(Path("out/provenance.json").read_text())
    assert "accuracy.json" in manifest["files"]


def test_a_second_run_gives_the_same_bytes_without_the_model(weights, monkeypatch) -> None:
    Path("page.md").write_text("<!-- begin generated: accuracy -->\n<!-- end generated: accuracy -->\n")
    first = run(*few(weights), "--policy", "topk", "--json", "--out", "a", "--markdown", "page.md")
    assert "| topk | frame and text | 20 |" in Path("page.md").read_text()

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("the model ran")

    monkeypatch.setattr(answering, "answer_exam", refused)
    second = run(*few(weights), "--policy", "topk", "--json", "--out", "b")
    assert first.stdout == second.stdout
    data = json.loads(first.stdout)
    assert data["accuracy"]["n_frames"] == 20
    assert [row["policy"] for row in data["rows"]] == [BLIND, "full", "topk"]
    assert Path("a/accuracy.csv").read_bytes() == Path("b/accuracy.csv").read_bytes()


def test_workers_change_nothing(weights) -> None:
    settings = ["accuracy.n_streams=17", "accuracy.n_frames=12", "accuracy.moments=1", f"accuracy.weights={weights}"]
    benchmark = benchmark_of(*load_tree("accuracy", settings), ["topk"])
    assert run_benchmark(benchmark, Memo(None), 1) == run_benchmark(benchmark, Memo(None), 2)


def test_a_configuration_runs_as_an_experiment_does(weights) -> None:
    settings = [*SMALL, f"accuracy.weights={weights}"]
    with_sets = [part for setting in settings for part in ("--set", setting)]
    Path("mine.yaml").write_text(Path(_bundled()).read_text(), encoding="utf-8")
    done = CliRunner().invoke(main, ["--config", "mine.yaml", *with_sets, "--out", "out", "--jobs", "1"])
    assert done.exit_code == 0, done.output
    assert len(read("out/accuracy.csv")) == 1 + len(load_experiment("accuracy")[0].policies)


def _bundled() -> Path:
    from resv_sim.library import find

    return find("accuracy")


def test_a_policy_of_the_family_can_be_added(weights) -> None:
    tree, source = load_tree("accuracy", SMALL)
    benchmark = benchmark_of(tree, source, ["streamingllm", "oaken", "infinigenp"])
    assert set(benchmark.experiment.policies) >= {"streamingllm", "infinigenp"}
    Path("mine.yaml").write_text("kind: topk\nk: 5\n")
    done = run(*few(weights), "--policy", "mine.yaml", "--out", "out")
    assert done.exit_code == 2  # a label has no dot
    assert "mine.yaml" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "resw"], "no configuration 'resw'"),
        (["--frames", "2"], "accuracy.n_frames"),
        (["--level", "extreme"], "accuracy.level"),
        (["--stages", "image"], "benchmark.stages"),
        (["--markdown", "none.md"], "none.md: no such file"),
        (["--config", "quick"], "needs the sections 'benchmark' and 'accuracy'"),
        (["--weights", "none.safetensors"], "train_mini.py"),
        (["--set", "benchmark.reference=nobody"], "benchmark.reference: no policy 'nobody'"),
        (["--set", "benchmark.studies.edges.policy=nobody"], "benchmark.studies.edges.policy: no policy 'nobody'"),
        (["--set", "policies.streamingllm.recent_size=5", "--policy", "streamingllm"], "streamingllm cannot run"),
    ],
)
def test_bad_input_is_one_paragraph_and_leaves_nothing(weights, arguments: list[str], message: str) -> None:
    given = [*few(weights), *arguments] if "--weights" not in arguments else arguments
    done = run(*given, "--out", "out")
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("out").exists()


def test_studies_vary_fields_of_a_policy(weights, tmp_path) -> None:
    studies = {
        "grid": {
            "policy": "resv",
            "axes": {
                "threshold": {"path": "hamming_threshold", "values": [2, 8]},
                "ratio": {"path": "wicsum.ratio", "values": [0.1, 1.0]},
            },
        },
        "bits": {"policy": "resv", "axes": {"bits": {"set": {"hash_bits": [8, 16], "hamming_threshold": [1, 2]}}}},
    }
    data = yaml.safe_load(_bundled().read_text())
    data["benchmark"] |= {"studies": studies, "lengths": [12]}
    data["accuracy"] |= {"n_streams": 3, "n_frames": 20, "moments": 2, "weights": str(weights)}
    Path("mine.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    done = run("--config", "mine.yaml", "--policy", "resv", "--studies", "--out", "out")
    assert done.exit_code == 0, done.output
    rows = read("out/studies.csv")
    assert [(row["study"], row["threshold"], row["ratio"], row["bits"]) for row in rows] == [
        ("grid", "2", "0.1", ""), ("grid", "2", "1.0", ""), ("grid", "8", "0.1", ""), ("grid", "8", "1.0", ""),
        ("bits", "", "", "8"), ("bits", "", "", "16"),
    ]  # fmt: skip
    for row in rows:
        if row["ratio"] == "1.0":
            assert float(row["text_kept"]) == 1.0
            assert float(row["accuracy_drop"]) == 0.0
    assert {row["n_frames"] for row in read("out/accuracy.csv")} == {"12", "20"}
    for figure in ("study_grid", "study_fields", "accuracy_length"):
        assert Path(f"out/figures/{figure}.png").stat().st_size > 10_000


def test_a_study_of_a_field_that_is_refused_says_which(weights) -> None:
    axes = '{"ratio": {"path": "wicsum.ratio", "values": [2.0]}}'
    setting = f'benchmark.studies.bad={{"policy": "resv", "axes": {axes}}}'
    done = run(*few(weights), "--studies", "--set", setting, "--out", "out")
    assert done.exit_code == 2
    assert "benchmark.studies.bad" in done.stderr
    assert "wicsum.ratio" in done.stderr


def test_the_table_says_nothing_of_a_platform_it_did_not_price(weights) -> None:
    tree, source = load_tree("accuracy", [*SMALL, f"accuracy.weights={weights}", "benchmark.stages=[text, both]"])
    result = run_benchmark(benchmark_of(tree, source, ["topk"]), Memo(None), 1)
    lines = [cells(row, result) for row in result.rows]
    assert [bool(line["vrex8 per frame"]) for line in lines] == [False, True, True, False, False]
    assert terminal_table(result).row_count == len(lines)
    assert p_value(0.0004) == "<0.001"


# -- sweeps ---------------------------------------------------------------------------------------------------


def accuracy_sweep(weights: Path, **changes: object):
    data = sweep_data(2, **changes)
    data["accuracy"] = {"n_streams": 3, "n_frames": 20, "moments": 2, "recent_tokens": 60, "weights": str(weights)}
    return sweep_of(*load_tree(str(write_sweep(Path(), data))))


def test_a_sweep_measures_accuracy_once_per_algorithm_setting(weights, tmp_path, monkeypatch) -> None:
    ran = policies_that_sit(monkeypatch)
    sweep, memo = accuracy_sweep(weights, constraints=["accuracy_drop <= 0.01"]), Memo(tmp_path / "memo")
    tasks = [(point.index, sweep.experiment(point)) for point in points(sweep.config)]
    found = evaluate(memo, tasks)
    assert not any(result.error for result in found)
    settings = {experiment.policies["resv"].model_dump_json() for _, experiment in tasks}
    assert len(tasks) == 8
    assert len(ran) == len(settings) + 2  # and the full cache, as policy and as what all are held against
    for result in found:
        full, resv = result.rows
        assert full["accuracy_drop"] == 0.0
        assert resv["accuracy"] + resv["accuracy_drop"] == pytest.approx(full["accuracy"])
    prepare_accuracy(memo, tasks[0][1], tasks[0][1].policies["resv"])
    assert len(ran) == len(settings) + 2


def test_without_a_section_there_is_no_accuracy(tmp_path) -> None:
    sweep = sweep_of(*load_tree(str(write_sweep(Path(), sweep_data(1)))))
    point = points(sweep.config)[0]
    (result,) = evaluate(Memo(tmp_path / "memo"), [(0, sweep.experiment(point))])
    assert {row["accuracy"] for row in result.rows} == {None}
    assert "accuracy" not in sweep.experiment(point).plain()


def test_what_accuracy_is_measured_on_decides_a_configurations_hash(weights) -> None:
    one, two = (load_experiment("search_accuracy", settings)[0] for settings in ([], ["accuracy.first_seed=7"]))
    assert one.config_hash() != two.config_hash()
    assert one.accuracy is not None
    assert one.plain()["accuracy"]["first_seed"] == 0


def test_an_experiment_has_the_columns_too(weights) -> None:
    fields = {"n_streams": 2, "n_frames": 20, "moments": 1, "weights": weights}
    settings = [f"accuracy.{name}={value}" for name, value in fields.items()]
    experiment, _ = load_experiment("quick", [*settings, "workload.kv_lengths_tokens=[200]"])
    rows = pipeline.run(experiment, Progress(quiet=True), 1).rows
    assert all(0 <= row.accuracy <= 1 for row in rows)
    assert {row.accuracy_drop for row in rows if row.policy == "full"} == {0.0}


def test_a_point_whose_policy_cannot_run_fails_alone(weights, tmp_path) -> None:
    sweep = accuracy_sweep(weights)
    experiment = sweep.experiment(points(sweep.config)[0])
    broken = experiment.model_copy(
        update={"accuracy": experiment.accuracy.model_copy(update={"weights": tmp_path / "none.safetensors"})}
    )
    bad, good = evaluate(Memo(tmp_path / "memo"), [(0, broken), (1, experiment)])
    assert "no such weight file" in bad.error
    assert good.error is None


def test_a_benchmark_needs_its_sections() -> None:
    tree, source = load_tree("quick")
    with pytest.raises(ConfigError, match="sections 'benchmark' and 'accuracy'"):
        benchmark_of(tree, source)
