"""`resv-sim stream`: one line per event, two processes' roles, full tiers, refusals that say what is allowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from click.testing import CliRunner, Result

from tests.clips import write_clip

pytest.importorskip("transformers")

from resv.policies.rekv import ReKV
from resv_sim.cli import main
from resv_sim.errors import ConfigError
from resv_sim.stream import policy_of, questions_of


def stream(*arguments: str, model: str = "tiny-llava", fps: str = "10") -> Result:
    command = ["stream", "--model", model, "--fps", fps, "--max-new-tokens", "4", *arguments]
    return CliRunner().invoke(main, command)


def lines(*arguments: str, **options: str) -> list[dict[str, Any]]:
    done = stream("--json", *arguments, **options)
    assert done.exit_code == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def refusal(*arguments: str, **options: str) -> str:
    done = stream(*arguments, **options)
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.avi", list(range(0, 250, 10)))


def test_every_event_is_a_line(clip: Path) -> None:
    done = stream("--video", str(clip), "--ask", "0.35: what is on the table?", "--ask", "and now?", "--frames", "6")
    assert done.exit_code == 0
    told = done.stdout.splitlines()
    assert len(told) == 8
    assert [line.split()[2] for line in told] == ["frame"] * 4 + ['"what'] + ["frame"] * 2 + ['"and']
    assert told[0].startswith("     0.00 s  frame 0: encode ")
    assert '     0.35 s  "what is on the table?" -> "' in told[4]
    assert "4 frames, first token" in told[4]
    assert told[7].startswith('     0.50 s  "and now?"')
    assert "frames: 6, tokens: 24, device_bytes: 12288" in done.stderr


def test_events_are_json_on_request(clip: Path) -> None:
    told = lines(
        "--video", str(clip), "--ask", "what?", "--policy", "full", "--set", "recent_bytes=1024", "--frames", "3"
    )
    assert [event["kind"] for event in told] == ["frame"] * 3 + ["answer", "cache"]
    assert [event["timestamp_s"] for event in told[:4]] == [0.0, 0.1, 0.2, 0.2]
    assert told[3]["question"] == "what?"
    assert len(told[3]["token_ids"]) == 4
    assert told[4]["tokens"] == 12


def test_silence_and_speech_show_the_separators_probability(clip: Path) -> None:
    done = stream("--video", str(clip), "--policy", "videollm_online", "--frames", "2")
    assert "separator 0.00" in done.stdout
    assert "unasked -> " in done.stdout
    assert "Note: videollm_online needs a model trained" in done.stderr


def test_the_rendered_video_needs_an_end() -> None:
    assert "say how many --frames" in refusal("--ask", "what?")
    assert len(lines("--frames", "2")) == 3


def test_tiers_are_shared_and_gone_on_with(clip: Path, tmp_path: Path) -> None:
    tier = str(tmp_path / "tier")
    limits = ["--set", "recent_bytes=4096", "--limit", "host_bytes=2048"]
    first = lines("--video", str(clip), "--analyse", "--tier", tier, "--frames", "5", *limits)
    assert first[-1]["file_bytes"] == 5 * 2048
    assert (first[-1]["device_bytes"], first[-1]["host_bytes"], first[-1]["disk_bytes"]) == (4096, 2048, 4096)
    second = lines("--video", str(clip), "--tier", tier, "--frames", "8", "--ask", "what?", *limits)
    assert [event.get("index") for event in second[:3]] == [5, 6, 7]
    answer, _ = lines("--answer", "--tier", tier, "--ask", "what?", *limits)
    assert answer["token_ids"] == second[3]["token_ids"]
    assert "holds the cache of another model" in refusal("--tier", tier, "--frames", "1", model="tiny-smolvlm")


@pytest.mark.parametrize("keeping", [["--dialogue", "kept"], ["--policy", "videollm_online"]])
def test_a_reader_that_keeps_its_dialogue_answers_more_than_one_question(
    keeping: list[str], clip: Path, tmp_path: Path
) -> None:
    tier = str(tmp_path / "tier")
    lines("--video", str(clip), "--analyse", "--tier", tier, "--frames", "5")
    one, two, cache = lines("--answer", "--tier", tier, "--ask", "one?", "--ask", "two?", *keeping)
    assert [one["question"], two["question"]] == ["one?", "two?"]
    assert one["n_frames"] == two["n_frames"] == 5
    both = sum(answer["n_prompt"] + answer["n_passes"] for answer in (one, two))
    assert cache["tokens"] == 5 * 4 + both


def test_a_full_tier_ends_the_frames_and_not_the_answers(clip: Path) -> None:
    arguments = ["--video", str(clip), "--ask", "1.2: what?", "--json"]
    done = stream(*arguments, "--limit", "disk=true", "--limit", f"disk_bytes={4 * 2048}")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["kind"] for event in told] == ["frame"] * 4 + ["answer"]
    assert told[-1]["n_frames"] == 4
    assert done.exit_code == 2
    assert "is full (the limit of 8192 bytes): step 4" in done.stderr
    assert "out of device capacity" in refusal(*arguments, "--limit", "device_bytes=4096")
    done = stream(
        *arguments, "--limit", f"device_bytes={50 * 512}", "--set", "recent_bytes=4096", "--limit", "host_bytes=8192"
    )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["kind"] for event in told] == ["frame"] * 7 + ["answer"]  # the seventh finds no room on the host
    assert "the host tier is full" in done.stderr


def test_a_video_whose_frames_change_size_is_refused_or_resized(tmp_path: Path) -> None:
    parts = []
    for size in (64, 96):
        parts.append(tmp_path / f"{size}.m2v")
        with av.open(str(parts[-1]), "w", format="mpeg2video") as container:
            made = container.add_stream("mpeg2video", rate=25)
            made.width = made.height = size
            made.pix_fmt = "yuv420p"
            for grey in range(10):
                picture = np.full((size, size, 3), 10 * grey, dtype=np.uint8)
                container.mux(made.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(made.encode(None))
    video = tmp_path / "both.m2v"
    video.write_bytes(b"".join(part.read_bytes() for part in parts))
    message = refusal("--video", str(video), fps="25")
    assert "is 96 x 96 px, those before it 64 x 64 px" in message
    assert "decoded frame" in message
    assert len(lines("--video", str(video), "--resize", fps="25")) > 15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ask", "10: "], 'must be "SECONDS: question"'),
        (["--answer", "--ask", "what?"], "--tier DIR"),
        (["--analyse", "--tier", "x", "--ask", "what?"], "--analyse answers nothing"),
        (["--answer", "--tier", "x"], "--answer needs something to answer"),
        (["--answer", "--tier", "does/not/exist", "--ask", "what?"], "is no disk tier"),
        (["--limit", "ram=5"], "with a key of device_bytes, copies_bytes, host_bytes"),
        (["--limit", "host_bytes=-5"], "host_bytes = -5: input should be greater than or equal to 0"),
        (["--limit", "disk_bytes=5"], "disk_bytes limits a disk tier"),
        (["--policy", "rekw"], "Did you mean 'rekv'"),
        (["--set", "r=0"], "policy.r = 0: input should be greater than 0"),
        (["--video", "missing.mp4"], "missing.mp4: no such video file"),
        (["--policy", "flash_vstream", "--limit", "disk=true"], "it takes no tiers"),
    ],
)
def test_what_cannot_be_done_is_said(arguments: list[str], message: str) -> None:
    assert message in refusal("--frames", "2", *arguments)


def test_models_that_cannot_be_run_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no model 'tiny-lava'" in refusal("--frames", "1", model="tiny-lava")
    assert "takes no frames" in refusal("--frames", "1", model="tiny-llama")
    monkeypatch.setattr("transformers.__version__", "5.2.0")
    assert "transformers 5.2.0 is too old; supported: >=5.20,<6" in refusal("--frames", "1")


def test_questions_are_read_with_their_times() -> None:
    asked = questions_of(("10.5: who: me?", "end", " 2 :what?", ".5:x"))
    assert asked == [(0.5, "x"), (2.0, "what?"), (10.5, "who: me?"), (float("inf"), "end")]
    with pytest.raises(ConfigError, match=r"10\.0: what is on the table"):
        questions_of(("12:",))


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "-.5", "1e400"])
def test_a_time_that_is_none_is_refused(seconds: str) -> None:
    with pytest.raises(ConfigError, match="allowed: a finite number from 0"):
        questions_of((f"{seconds}: x",))


@pytest.mark.parametrize("command", [["stream"], ["trace", "record", "-o", "t.safetensors"]])
def test_a_question_after_the_end_is_refused_with_the_end(command: list[str], clip: Path) -> None:
    for given, end in ((["--frames", "3"], "6"), (["--video", str(clip), "--fps", "10"], "1.3")):
        done = CliRunner().invoke(main, [*command, "--model", "tiny-llava", "--fps", "0.5", *given, "--ask", "900: x"])
        assert done.exit_code == 2
        assert f"the stream ends at {end} s" in done.stderr


@pytest.mark.parametrize("fps", ["nan", "inf"])
def test_a_rate_is_finite(fps: str) -> None:
    assert f"{fps} is no finite number" in refusal("--frames", "2", fps=fps)


def test_a_file_is_no_tier_and_a_folder_no_trace(tmp_path: Path, clip: Path) -> None:
    assert "is a file; a tier is a folder" in refusal("--frames", "2", "--tier", str(clip))
    command = ["trace", "record", "--model", "tiny-llava", "--frames", "2", "-o", str(tmp_path)]
    assert "is a folder; name a file" in CliRunner().invoke(main, command).stderr


def test_policies_come_by_name_or_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("kind: rekv\nr: 3\n")
    policy = policy_of(str(file), ("n_local=50",))
    assert isinstance(policy, ReKV)
    assert (policy.r, policy.n_local) == (3, 50)
