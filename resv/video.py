"""Frames of a video: the rendered default, or any file that PyAV decodes, sampled at a given rate.

Every frame comes out square, RGB, uint8. What a frame means to the model is in `features.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from resv.features import PATCH_PX, frame_features
from resv.rendered import RenderedVideo, render

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]


class VideoError(ValueError):
    """A video that cannot be read; the message names the file and what is wrong with it."""


class VideoConfig(BaseModel):
    """Which video, how often it is sampled, and what happens at its end.

    `fps` defaults to the rate at which the paper's motivation counts memory (Fig. 4, 10 FPS); adjacent frames
    are then as alike as the generator's calibration assumes. The rendered video never ends, so `loop` concerns
    files only: `pingpong` plays them forward and backward without showing the end frames twice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str | None = Field(default=None, description="a video file; None renders the default")
    fps: float = Field(default=10.0, gt=0, le=240, description="sampled frames per second of video")
    loop: Literal["none", "pingpong"] = "none"
    size_px: int = Field(default=96, ge=PATCH_PX, le=768, multiple_of=PATCH_PX, description="side after resizing")
    stream_offset_s: float = Field(
        default=1.0, ge=0, description="how much later in a file each further stream of a batch starts"
    )
    rendered: RenderedVideo = RenderedVideo()


def _decode(path: Path, fps: float, size_px: int, same_size: bool) -> Iterator[UInt8]:
    """The frames on screen at 0, 1/fps, 2/fps ... seconds after the first one."""
    import av  # decodes files only, and takes 0.1 s to import

    shown: av.VideoFrame | None = None
    n_sampled, n_decoded = 0, 0
    start_s = now_s = 0.0

    def resized(frame: av.VideoFrame) -> UInt8:
        return frame.reformat(size_px, size_px, "rgb24", interpolation="AREA").to_ndarray().astype(np.uint8, copy=False)

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError(f"{path}: has no video stream")
            stream = container.streams.video[0]
            period_s = 1.0 / float(stream.average_rate or stream.guessed_rate or fps)
            # Without a container frames have no times and the average rate is a default; the codec has the guessed one.
            bare_period_s = 1.0 / float(stream.guessed_rate or stream.average_rate or fps)
            for frame in container.decode(stream):
                period_s = bare_period_s if frame.time is None else period_s
                now_s = n_decoded * period_s if frame.time is None else float(frame.time)
                start_s = now_s if shown is None else start_s
                if same_size and shown is not None and (frame.width, frame.height) != (shown.width, shown.height):
                    raise VideoError(
                        f"{path}: decoded frame {n_decoded}, at {now_s:.2f} s, is {frame.width} x {frame.height} px, "
                        f"those before it {shown.width} x {shown.height} px: have it resized, or cut the video there"
                    )
                while shown is not None and start_s + n_sampled / fps < now_s - 1e-6:
                    yield resized(shown)
                    n_sampled += 1
                shown = frame
                n_decoded += 1
            while shown is not None and start_s + n_sampled / fps < now_s + period_s - 1e-6:
                yield resized(shown)
                n_sampled += 1
    except av.FFmpegError as error:
        raise VideoError(f"{path}: cannot be decoded after {n_decoded} frames: {error}") from error
    if shown is None:
        raise VideoError(f"{path}: has a video stream but no frames")


def duration_s(path: Path) -> float:
    """How long a file says that it is; infinite where it does not say. Raises `VideoError` as `read_frames`."""
    import av

    path = path.expanduser()
    _require_file(path)
    try:
        with av.open(str(path)) as container:
            return container.duration / av.time_base if container.duration else math.inf
    except av.FFmpegError as error:
        raise VideoError(f"{path}: cannot be decoded after 0 frames: {error}") from error


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise VideoError(f"{path}: is a folder, not a video file")
    if not path.is_file():
        raise VideoError(f"{path}: no such video file")


def read_frames(video: VideoConfig, start_s: float = 0.0, *, same_size: bool = False) -> Iterator[UInt8]:
    """Sampled frames, (size_px, size_px, 3) RGB uint8, from `start_s` on: endless if rendered, once through a file.

    same_size : refuse a file whose frames change their size, instead of resizing each by itself
    Raises `VideoError` if the file is missing, is no video, is corrupt, has no frames, or changes its size where it
    may not.
    """
    if video.file is None:
        yield from render(video.rendered, video.fps, video.size_px, start_s)
        return
    path = Path(video.file).expanduser()
    _require_file(path)
    yield from islice(_decode(path, video.fps, video.size_px, same_size), round(start_s * video.fps), None)


def pingpong_order(n_clip: int, n_frames: int) -> NDArray[np.int64]:
    """Indices of `n_frames` frames of a clip played forward and backward: 0 1 2 1 0 1 ... for three frames."""
    period = max(2 * n_clip - 2, 1)
    phase = np.arange(n_frames, dtype=np.int64) % period
    return np.minimum(phase, period - phase)


def stream_features(video: VideoConfig, tokens_per_frame: int, n_frames: int, batch_index: int = 0) -> Float32:
    """Token features of up to `n_frames` frames, (frames, tokens_per_frame, F) float32.

    Fewer frames come back when a file ends before and does not loop. Stream `batch_index` of a batch is another
    rendering (seed + index), or the file from `batch_index * stream_offset_s` seconds on.
    """
    if video.file is None:
        seed = video.rendered.seed + batch_index
        rendered = video.model_copy(update={"rendered": video.rendered.model_copy(update={"seed": seed})})
        return _rendered_features(rendered, tokens_per_frame, n_frames)
    start_s = batch_index * video.stream_offset_s
    clip = frame_features(islice(read_frames(video, start_s), n_frames), tokens_per_frame)
    if len(clip) == 0 and n_frames > 0:
        raise VideoError(f"{video.file}: ends before stream {batch_index} starts, at {start_s:g} s")
    if video.loop == "pingpong" and len(clip) < n_frames:
        return clip[pingpong_order(len(clip), n_frames)]
    return clip


@lru_cache(maxsize=4)
def _rendered_features(video: VideoConfig, tokens_per_frame: int, n_frames: int) -> Float32:
    """Rendered once for all traces that a process makes of a video: 4,000 frames take two seconds."""
    features = frame_features(islice(read_frames(video), n_frames), tokens_per_frame)
    features.flags.writeable = False
    return features
