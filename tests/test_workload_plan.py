"""Steps and probes of a workload on a video of a given length."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from resv.trace import Step
from resv.workload_plan import ProbeWorkload, SessionWorkload, plan_steps


def tiles(plan):
    at = 0
    for step in plan.steps:
        assert step.first_token == at
        assert step.in_stream
        at += step.n_tokens
    return at == plan.n_tokens


def test_probes_stand_at_each_length_in_the_order_of_a_conversation():
    plan = plan_steps(ProbeWorkload(kv_lengths_tokens=(20, 50), question_tokens=7), 6, 10)
    assert plan.probes == (
        Step("frame", 20, 10),
        Step("question", 20, 7, in_stream=False),
        Step("decode", 20, 1, in_stream=False),
        Step("frame", 50, 10),
        Step("question", 50, 7, in_stream=False),
        Step("decode", 50, 1, in_stream=False),
    )
    assert plan.n_tokens == 60
    assert not plan.skipped
    assert tiles(plan)


@given(
    lengths=st.sets(st.integers(1, 400), min_size=1, max_size=4),
    n_frames=st.integers(0, 60),
    per_frame=st.integers(1, 12),
)
def test_a_length_is_probed_or_skipped_with_a_reason(lengths, n_frames, per_frame):
    workload = ProbeWorkload(kv_lengths_tokens=tuple(sorted(lengths)), stages=("decode", "frame"))
    frames = [length // per_frame for length in sorted(lengths)]
    assume(frames[0] and len(set(frames)) == len(frames))
    plan = plan_steps(workload, n_frames, per_frame)
    assert tiles(plan)
    assert len(plan.steps) == min(n_frames, workload.frames_needed(per_frame))
    assert len(plan.probes) == 2 * (len(lengths) - len(plan.skipped))
    assert [p.first_token for p in plan.probes] == sorted(p.first_token for p in plan.probes)
    for probe in plan.probes:
        assert probe.first_token % per_frame == 0  # rounded down to a frame
        assert probe.in_stream == (probe.kind == "frame")
        assert probe.first_token + per_frame <= plan.n_tokens
    for length, reason in plan.skipped.items():
        assert length // per_frame >= n_frames
        assert f"{n_frames * per_frame} tokens" in reason


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        ((20, 201, 209), "201 and 209 tokens are the same cache length, 200"),
        ((1, 20), "cache length 1 is less than one frame"),
    ],
)
def test_lengths_that_are_the_same_frame_or_none_are_refused(lengths, words):
    with pytest.raises(ValueError, match=f"{words}.* 10 tokens"):
        plan_steps(ProbeWorkload(kv_lengths_tokens=lengths), 60, 10)


def test_a_video_may_end_one_frame_too_early():
    workload = ProbeWorkload(kv_lengths_tokens=(10, 40))
    assert 40 not in plan_steps(workload, 5, 10).skipped
    assert 40 in plan_steps(workload, 4, 10).skipped


@pytest.mark.parametrize(("n", "probed"), [(1, (10, 20, 40, 50)), (2, (0, 10, 20, 30, 40, 50)), (9, range(0, 60, 10))])
def test_frames_that_warm_up_are_probed_once_and_not_measured(n, probed):
    workload = ProbeWorkload(kv_lengths_tokens=(22, 50), stages=("frame",), warmup_frames=n)
    probes = plan_steps(workload, 9, 10).probes
    assert [probe.first_token for probe in probes] == list(probed)
    assert [probe.first_token for probe in probes if workload.measures(probe, 10)] == [20, 50]


def test_a_session_probes_every_step():
    plan = plan_steps(SessionWorkload(), 30, 10)
    assert plan.n_tokens == 26 * 10 + 25 + 39
    assert plan.steps == plan.probes
    assert [s.kind for s in plan.steps] == ["frame"] * 26 + ["question"] + ["decode"] * 39
    assert tiles(plan)


def test_a_session_without_a_question_is_frames_alone():
    plan = plan_steps(SessionWorkload(frames=2, question_tokens=0, answer_tokens=0), 2, 4)
    assert [s.n_tokens for s in plan.steps] == [4, 4]


def test_a_session_needs_all_its_frames():
    with pytest.raises(ValueError, match="26 frames, but the video has 25"):
        plan_steps(SessionWorkload(), 25, 10)


@pytest.mark.parametrize(
    "bad",
    [
        {"kv_lengths_tokens": ()},
        {"kv_lengths_tokens": (5, 5)},
        {"kv_lengths_tokens": (9, 5)},
        {"kv_lengths_tokens": (0,)},
        {"stages": ()},
        {"stages": ("frame", "frame")},
        {"stages": ("pause",)},
        {"question_tokens": 0},
    ],
)
def test_a_bad_workload_is_refused(bad):
    with pytest.raises(ValidationError):
        ProbeWorkload(**bad)
