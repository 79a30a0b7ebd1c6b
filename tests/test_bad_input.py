"""Inputs that cannot be used, through the real pipeline: one paragraph, exit code 2, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from resv_sim.cli import main


def refused(*settings: str) -> str:
    arguments = ["--config", "quick", "--out", "out", "--no-cache", "--jobs", "1"]
    for setting in settings:
        arguments += ["--set", setting]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.stderr
    assert not Path("out").exists()
    return result.stderr.strip().splitlines()[-1]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_video_that_is_not_there_is_named() -> None:
    assert "missing.mp4: no such video file" in refused("video.file=missing.mp4")


def test_a_folder_is_no_video() -> None:
    Path("clips").mkdir()
    assert "clips: is a folder, not a video file" in refused("video.file=clips")


def test_a_file_that_is_no_video_is_named() -> None:
    Path("noise.mp4").write_bytes(bytes(range(256)) * 40)
    assert "noise.mp4" in refused("video.file=noise.mp4")


def test_an_empty_video_file_is_named() -> None:
    Path("empty.mp4").touch()
    assert "empty.mp4" in refused("video.file=empty.mp4")


def test_a_cache_larger_than_the_offload_tier_says_both_sizes() -> None:
    paragraph = refused("platforms.vrex8.offload.capacity_bytes=4096")
    assert "platforms.vrex8.offload" in paragraph
    assert "4096" in paragraph


def test_a_session_longer_than_its_video_says_what_helps() -> None:
    clip("short.mp4", n_frames=5)
    settings = ("workload={kind: session, frames: 26}", "video.file=short.mp4")
    assert "video.loop: pingpong" in refused(*settings)


def test_a_clip_too_short_for_every_length_says_what_helps() -> None:
    clip("short.mp4", n_frames=5)
    paragraph = refused("video.file=short.mp4")
    assert "video.loop: pingpong" in paragraph
    assert "200" in paragraph


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        ("[201,209]", "201 and 209 tokens are the same cache length, 200"),
        ("[1]", "cache length 1 is less than one frame"),
    ],
)
def test_lengths_that_are_the_same_frame_or_none_are_named_with_their_place(lengths: str, words: str) -> None:
    where = "--set workload.kv_lengths_tokens: workload.kv_lengths_tokens: "
    assert where + words in refused(f"workload.kv_lengths_tokens={lengths}")


def clip(name: str, n_frames: int) -> None:
    """A video of grey frames, ten a second."""
    import av
    import numpy as np

    with av.open(name, "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for value in range(n_frames):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 40 * value, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
