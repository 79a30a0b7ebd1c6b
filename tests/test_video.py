"""Frames: rendered ones are what their time says, files are sampled at their rate, and what is no video is refused."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from resv.features import FEATURES, frame_features, pooling_weights
from resv.rendered import RenderedVideo, render, render_frame
from resv.synthetic.latents import standardised
from resv.video import VideoConfig, VideoError, pingpong_order, read_frames, stream_features
from tests.clips import real_clip, write_bare_stream, write_clip, write_sound
from tests.naive_trace import ref_frame_features, ref_pingpong, ref_sampled

QUIET = {"sensor_noise": 0.0, "n_objects": 0}


def likeness(features, other):
    """Mean cosine of centred features of the same token."""
    x, y = features.astype(np.float64), other.astype(np.float64)
    return float(np.mean(np.sum(x * y, -1) / (np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1))))


def adjacent_likeness(features):
    x = standardised(features)
    return likeness(x[1:], x[:-1])


def test_a_rendered_frame_depends_on_its_time_alone():
    video = RenderedVideo()
    in_order = list(islice(render(video, 10.0, 48), 30))
    assert in_order[0].shape == (48, 48, 3)
    assert in_order[0].dtype == np.uint8
    for index in (29, 3, 17):
        np.testing.assert_array_equal(render_frame(video, index / 10.0, 48), in_order[index])
    later = next(render(video, 10.0, 48, start_s=1.7))
    np.testing.assert_array_equal(later, in_order[17])


def test_seeds_render_different_videos():
    a, b = (render_frame(RenderedVideo(seed=s), 0.0, 48).astype(float) for s in (1, 2))
    assert np.abs(a - b).mean() > 10


def test_cuts_come_as_often_as_asked_and_nothing_else_jumps():
    video = VideoConfig(rendered=RenderedVideo(scene_cut_every_s=2.0))
    x = standardised(stream_features(video, 10, 400))
    jumps = [likeness(x[i], x[i + 1]) < 0.6 for i in range(399)]
    assert 12 <= sum(jumps) <= 24  # 20 intervals; a cut may lead to the place it came from


def test_without_change_the_video_stands_still():
    still = RenderedVideo(**QUIET, pan_per_s=0.0, light_change=0.0, scene_cut_every_s=1e6)
    first, later = render_frame(still, 0.0, 48), render_frame(still, 300.0, 48)
    np.testing.assert_array_equal(first, later)


def test_the_pan_moves_the_background_by_whole_pixels_of_the_texture():
    panning = RenderedVideo(**QUIET, light_change=0.0, scene_cut_every_s=1e6)
    frames = [render_frame(panning, t / 4, 96).astype(float) for t in range(40)]
    moved = np.array([np.abs(f - frames[0]).mean() for f in frames])
    assert moved[0] == 0
    assert moved[-1] > moved[1] > 0


def test_the_amplitude_spectrum_falls_as_its_exponent_says():
    def share_of_fine_detail(exponent):
        video = RenderedVideo(**QUIET, light_change=0.0, spectrum_exponent=exponent)
        luma = render_frame(video, 0.0, 96).astype(float).mean(axis=2)
        spectrum = np.abs(np.fft.fft2(luma - luma.mean())) ** 2
        frequency = np.hypot(np.fft.fftfreq(96)[:, None], np.fft.fftfreq(96)[None, :])
        return spectrum[frequency > 0.2].sum() / spectrum.sum()

    assert share_of_fine_detail(0.5) > 2 * share_of_fine_detail(1.2) > 4 * share_of_fine_detail(2.0)


@pytest.mark.parametrize("tokens", [10, 5])
def test_features_are_those_of_the_slow_twin(tokens):
    frame = np.random.default_rng(3).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    got = frame_features([frame], tokens)
    side = {10: 3, 5: 2}[tokens]
    step = 6 // side
    cells = [(y * step, (y + 1) * step, x * step, (x + 1) * step) for y in range(side) for x in range(side)]
    want = ref_frame_features(frame, [(0, 6, 0, 6), *cells])
    assert got.shape == (1, tokens, FEATURES)
    np.testing.assert_allclose(got[0], want, rtol=1e-3, atol=1e-4)


@given(tokens=st.integers(1, 200), side=st.integers(1, 14))
def test_every_token_averages_what_it_covers(tokens, side):
    weights = pooling_weights(tokens, side)
    assert weights.shape == (tokens, side * side)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)


def test_tokens_are_one_global_and_a_grid_or_a_grid_alone():
    np.testing.assert_allclose(pooling_weights(10, 6)[0], 1 / 36, rtol=1e-6)  # the global token
    np.testing.assert_allclose(pooling_weights(10, 6)[1:].sum(axis=0), 1 / 4, rtol=1e-6)  # 3x3 of 2x2 patches
    np.testing.assert_allclose(pooling_weights(36, 6), np.eye(36), atol=1e-6)


def test_a_frame_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="multiple of 8"):
        frame_features([np.zeros((50, 50, 3), dtype=np.uint8)], 10)


@pytest.mark.parametrize("fps", [4.0, 10.0, 20.0, 33.0])
def test_a_file_is_sampled_at_the_rate_asked_for(tmp_path, fps):
    greys = list(range(20, 220, 10))
    path = write_clip(tmp_path / "clip.avi", greys, fps=20)
    got = [int(f.mean().round()) for f in read_frames(VideoConfig(file=str(path), fps=fps, size_px=16))]
    want = [greys[i] for i in ref_sampled([i / 20 for i in range(20)], 1.0, fps)]
    np.testing.assert_allclose(got, want, atol=1)


def test_a_stream_without_times_is_sampled_at_the_rate_of_its_codec(tmp_path):
    path = write_bare_stream(tmp_path / "clip.h264", list(range(20, 220, 10)), fps=10)
    got = [f.mean() for f in read_frames(VideoConfig(file=str(path), fps=5.0, size_px=16))]
    np.testing.assert_allclose(got, range(20, 220, 20), atol=3)


@given(n_clip=st.integers(1, 9), n_frames=st.integers(1, 60))
def test_pingpong_shows_end_frames_once(n_clip, n_frames):
    assert pingpong_order(n_clip, n_frames).tolist() == ref_pingpong(n_clip, n_frames)


def test_a_short_file_gives_what_it_has_unless_it_loops(tmp_path):
    path = str(write_clip(tmp_path / "clip.avi", [40, 80, 120, 160], fps=10))
    once = stream_features(VideoConfig(file=path, size_px=16), 5, 9)
    assert len(once) == 4
    looped = stream_features(VideoConfig(file=path, size_px=16, loop="pingpong"), 5, 9)
    np.testing.assert_array_equal(looped, once[[0, 1, 2, 3, 2, 1, 0, 1, 2]])


def test_streams_of_a_batch_see_different_things(tmp_path):
    rendered = [stream_features(VideoConfig(size_px=48), 10, 5, batch_index=b) for b in (0, 1)]
    assert np.abs(rendered[0] - rendered[1]).max() > 0.01
    path = str(write_clip(tmp_path / "clip.avi", list(range(50, 90)), fps=10))
    video = VideoConfig(file=path, size_px=16, stream_offset_s=1.0)
    first, second = (stream_features(video, 1, 40, batch_index=b) for b in (0, 1))
    np.testing.assert_array_equal(second, first[10:])
    with pytest.raises(VideoError, match="ends before stream 9"):
        stream_features(video, 1, 40, batch_index=9)


def refused(path: Path) -> str:
    with pytest.raises(VideoError) as error:
        next(read_frames(VideoConfig(file=str(path))))
    assert str(path) in str(error.value)
    return str(error.value)


def test_what_is_no_video_is_refused_with_its_name(tmp_path):
    assert "no such video file" in refused(tmp_path / "missing.mp4")
    noise = tmp_path / "noise.mp4"
    noise.write_bytes(np.random.default_rng(0).bytes(5000))
    assert "cannot be decoded" in refused(noise)
    assert "no video stream" in refused(write_sound(tmp_path / "sound.wav"))
    assert "no frames" in refused(write_clip(tmp_path / "empty.avi", []))
    whole = write_clip(tmp_path / "whole.avi", [10, 20, 30])
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole.read_bytes()[:100])
    assert "cannot be decoded" in refused(cut)


@pytest.mark.parametrize("bad", [{"fps": 0}, {"size_px": 50}, {"loop": "yes"}, {"colour": 1}])
def test_a_bad_configuration_is_refused(bad):
    with pytest.raises(ValidationError):
        VideoConfig(**bad)


def test_the_default_is_about_as_redundant_as_real_clips():
    assert 0.95 < adjacent_likeness(stream_features(VideoConfig(), 10, 300)) < 0.995


@pytest.mark.parametrize(("name", "n_frames"), [("bottle-detection.mp4", 399), ("car-detection.mp4", 302)])
def test_real_clips_at_ten_frames_a_second_are_redundant(name, n_frames):
    features = stream_features(VideoConfig(file=str(real_clip(name))), 10, 1000)
    assert features.shape == (n_frames, 10, FEATURES)
    assert 0.97 < adjacent_likeness(features) < 0.998
