"""`resv-sim trace record`: a trace of every model that the simulator replays, and refusals that leave no file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

pytest.importorskip("transformers")

from resv.policies.base import run_layer
from resv.trace import Step
from resv.trace_file import RecordedTrace
from resv_sim.cli import main
from resv_sim.config import load_experiment
from resv_sim.record import EveryNth
from resv_sim.stream import policy_of
from resv_sim.streams import make_streams
from tests.clips import write_clip


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.avi", list(range(0, 250, 10)))


def recorded(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["trace", "record", "-o", str(path), "--max-new-tokens", "3", *arguments])


@pytest.mark.parametrize("model", ["tiny-llava", "tiny-qwen2.5-vl", "tiny-smolvlm"])
def test_a_trace_of_every_family_is_whole_and_holds_the_question(model: str, clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "trace.safetensors"
    done = recorded(path, "--model", model, "--video", str(clip), "--fps", "10", "--frames", "8", "--ask", "0.4: why?")
    assert done.exit_code == 0, done.output
    trace = RecordedTrace(path)
    kinds = [step.kind for step in trace.steps]
    assert kinds.count("decode") >= 1
    assert 0 < kinds.index("question", 1) < len(kinds) - 1
    assert kinds.count("frame") == {"tiny-qwen2.5-vl": 5}.get(model, 8)  # two frames a step, cut at the question
    assert trace.layer(1).predicted_queries is not None
    assert sorted(tmp_path.iterdir()) == sorted([clip, path])


def test_the_simulator_takes_the_trace_and_its_model(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "trace.safetensors"
    policy = ("--policy", "resv", "--set", "recent_bytes=0")
    assert recorded(path, "--model", "tiny-llava", "--video", str(clip), "--fps", "10", *policy).exit_code == 0
    settings = [f"trace.recorded={path}", f"model={path}", "fidelity.topk=4"]
    command = ["--config", "quick.yaml", "--no-cache", "--jobs", "1", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, [*command, *(part for setting in settings for part in ("--set", setting))])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "results.csv").read_text().count("vrex8,resv") > 10


def test_a_trace_without_values_is_simulated_without_an_output_error(clip: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "trace.safetensors", tmp_path / "out"
    given = ("--video", str(clip), "--fps", "10", "--probe-every", "8", "--no-values")
    assert recorded(path, "--model", "tiny-llava", *given).exit_code == 0
    added = ("topk", "quest", "oaken")
    settings = [f"trace.recorded={path}", f"model={path}", *(f"policies.{name}={name}" for name in added)]
    settings += ["runs=[" + ", ".join(f"{{platform: agx_orin, policy: {p}}}" for p in ("full", "resv", *added)) + "]"]
    command = ["--config", "quick.yaml", "--no-cache", "--jobs", "1", "--out", str(out)]
    done = CliRunner().invoke(main, [*command, *(part for setting in settings for part in ("--set", setting))])
    assert done.exit_code == 0, done.output
    rows = json.loads((out / "results.json").read_text())["rows"]
    errors = {row["policy"]: row["output_rel_error"] for row in rows if row["kv_len_tokens"]}
    assert (errors["full"], errors["resv"], errors["oaken"]) == (0.0, None, None)
    assert all(row["attention_mass_kept"] is not None for row in rows)
    assert (out / "figures" / "fidelity_frame.png").exists()
    assert (out / "figures" / "fidelity_length.png").exists()


def test_a_recorded_model_counts_the_bits_it_is_served_in(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "trace.safetensors"
    assert recorded(path, "--model", "tiny-llava", "--video", str(clip), "--fps", "10", "--frames", "8").exit_code == 0
    shape = RecordedTrace(path).shape
    assert (shape.kv_bits, shape.weight_bits) == (16, 16)
    settings = [f"trace.recorded={path}", f"model={path}", "model.kv_bits=8"]
    experiment, _ = load_experiment("quick.yaml", settings)
    (trace,) = make_streams(experiment, lambda: None).traces
    assert (trace.shape.kv_bits, trace.shape.weight_bits) == (8, 16)


def test_only_every_nth_frame_is_probed(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "trace.safetensors"
    given = ("--video", str(clip), "--fps", "10", "--probe-every", "4", "--no-values")
    assert recorded(path, "--model", "tiny-llava", *given).exit_code == 0
    trace = RecordedTrace(path)
    assert not trace.has_values
    assert [probe.first_token for probe in trace.probes] == [
        step.first_token for step in [s for s in trace.steps if s.kind == "frame"][::4]
    ]
    selection = run_layer(policy_of("resv", ("recent_bytes=0",)), trace, trace.layer(1))
    assert [chosen.n_cached for chosen in selection] == [probe.first_token for probe in trace.probes]


def test_every_nth_asks_for_texts_always() -> None:
    probe = EveryNth(3)
    frames = [Step("frame", 4 * i, 4) for i in range(7)]
    assert [probe(frame) for frame in frames] == [True, False, False, True, False, False, True]
    assert [probe(frame) for frame in reversed(frames)] == [True, False, False, True, False, False, True]
    assert probe(Step("question", 28, 5))


def test_the_mini_model_is_recorded_in_its_own_world_and_on_a_clip(clip: Path, tmp_path: Path) -> None:
    own, foreign = tmp_path / "own.safetensors", tmp_path / "foreign.safetensors"
    assert recorded(own, "--model", "mini", "--frames", "12").exit_code == 0
    assert recorded(foreign, "--model", "mini", "--video", str(clip), "--fps", "10", "--frames", "12").exit_code == 0
    kinds = [step.kind for step in RecordedTrace(own).steps]
    assert kinds.count("frame") == 12
    assert "question" in kinds
    assert [step.n_tokens for step in RecordedTrace(foreign).steps] == [10] * 12
    assert np.isfinite(RecordedTrace(foreign).layer(0).keys).all()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--model", "gpt", "--frames", "2"), "no model 'gpt'"),
        (("--model", "tiny-llava"), "never ends"),
        (("--model", "tiny-llama", "--frames", "2"), "takes no frames"),
        (("--model", "mini", "--frames", "4", "--ask", "why?"), "words"),
        (("--model", "tiny-llava", "--frames", "2", "--policy", "nearest"), "nearest"),
        (("--model", "tiny-llava", "--video", "absent.mp4"), "no such video"),
    ],
)
def test_what_cannot_be_recorded_is_refused_and_leaves_nothing(
    arguments: tuple[str, ...], text: str, tmp_path: Path
) -> None:
    done = recorded(tmp_path / "trace.safetensors", *arguments)
    assert done.exit_code == 2
    assert text in done.stderr
    assert not list(tmp_path.iterdir())
