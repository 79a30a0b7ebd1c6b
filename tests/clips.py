"""Video files for tests: small ones that are made here, and real clips where somebody has put some."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest


def write_clip(path: Path, greys: list[int], fps: int = 20, size: int = 64) -> Path:
    """An uncompressed AVI whose frame i is uniformly grey with value greys[i]."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=fps)
        stream.width = stream.height = size
        stream.pix_fmt = "bgr24"
        container.start_encoding()  # a file with no frames has a header too
        for grey in greys:
            frame = av.VideoFrame.from_ndarray(np.full((size, size, 3), grey, dtype=np.uint8), format="bgr24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_bare_stream(path: Path, greys: list[int], fps: int) -> Path:
    """H.264 without a container: frames have no times, and only the codec knows the rate."""
    with av.open(str(path), "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for grey in greys:
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), grey, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> Path:
    """A WAV file: a container with no video stream."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        frame.time_base = Fraction(1, 8000)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def real_clip(name: str) -> Path:
    """A clip from the folder that RESV_SIM_VIDEO_DIR names, or from one beside the repository; else the test skips."""
    beside = Path(__file__).parents[2] / "shared" / "video"
    path = Path(os.environ.get("RESV_SIM_VIDEO_DIR", beside)) / name
    if not path.is_file():
        pytest.skip(f"no {name}: set RESV_SIM_VIDEO_DIR to a folder that holds it")
    return path
