"""Accuracy on the embedded model: the exam, the run under a policy, statistics, what is remembered, and bad input."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resv.mini.evaluation import answer_stream
from resv.mini.model import MiniConfig, build_network
from resv.mini.tasks import BlindBaseline
from resv.mini.vocabulary import SILENT, Task
from resv.mini.weights import SHIPPED, WeightsError, load_mini, save_weights
from resv.policies import POLICIES
from resv_sim import library
from resv_sim.accuracy import answering, measured, outcomes
from resv_sim.accuracy.answering import COUNTED, answer_exam, question_kind
from resv_sim.accuracy.config import AccuracyConfig
from resv_sim.accuracy.exam import fit_blind, make_exam, moments
from resv_sim.accuracy.outcomes import Setting, parts_of, run_part, run_settings
from resv_sim.accuracy.platforms import mean_rows, platform_points
from resv_sim.accuracy.statistics import mcnemar
from resv_sim.accuracy.table import BLIND, Answered, pair_rows
from resv_sim.config import load_experiment
from resv_sim.errors import ConfigError
from resv_sim.memo import Memo
from tests.accuracy import TINY, exam_config, policies_that_sit, tiny_weights
from tests.shapes import TINY as TINY_SHAPE

FULL = POLICIES["full"]()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def model(weights):
    return load_mini(weights)


@pytest.fixture(scope="module")
def exam():
    return make_exam(exam_config(), exam_config().seeds)


# -- the exam -------------------------------------------------------------------------------------------------


def test_an_exam_is_the_same_in_parts(exam) -> None:
    config = exam_config()
    parts = [make_exam(config, [seed]) for seed in config.seeds]
    assert np.array_equal(np.concatenate([part.answers for part in parts]), exam.answers)
    assert np.array_equal(np.concatenate([part.narration for part in parts]), exam.narration)
    for index, part in enumerate(parts):
        assert part.rows()[0] == exam.rows()[index]


def test_more_questions_and_other_seeds_do_not_touch_the_frames(exam) -> None:
    config = exam_config(moments=4, tasks=(Task.NEW_NOW,))
    other = make_exam(config, config.seeds)
    for one, two in zip(exam.streams, other.streams, strict=True):
        assert np.array_equal(one.frames, two.frames)
    assert not np.array_equal(make_exam(config, [100]).streams[0].frames, other.streams[0].frames)


@settings(max_examples=50, deadline=None)
@given(n_frames=st.integers(8, 400), n=st.integers(1, 40), share=st.floats(0, 0.99))
def test_moments_ascend_to_the_last_frame(n_frames: int, n: int, share: float) -> None:
    drawn = moments(AccuracyConfig(n_frames=n_frames, moments=n, questions_from=share))
    assert drawn == sorted(set(drawn))
    assert drawn[-1] == n_frames - 1
    assert len(drawn) == 1 or drawn[0] >= max(2, int(share * n_frames))
    assert len(drawn) <= n


def test_questions_are_asked_after_what_they_ask_about(exam) -> None:
    for stream, row in zip(exam.streams, exam.rows(), strict=True):
        for turn, question in zip(exam.turns, row, strict=True):
            assert question.frame == turn.frame < len(stream.frames)
            assert question.answer_id in question.choices


def test_a_stream_without_a_question_is_refused() -> None:
    config = exam_config(n_frames=8, moments=1, tasks=(Task.BEFORE_EMPTY,), level="easy")
    nothing_left = [seed for seed in range(20) if not _anything_emptied(config, seed)]
    assert 0 < len(nothing_left) < 20
    for seed in nothing_left:
        with pytest.raises(ConfigError, match=rf"seed {seed} .*has no question.*before_empty"):
            make_exam(config, [seed])


def _anything_emptied(config: AccuracyConfig, seed: int) -> bool:
    easy = make_exam(config.model_copy(update={"tasks": (Task.NEW_NOW,)}), [seed])
    occupancy = easy.streams[0].world.occupancy
    return bool(((occupancy[-1] < 0) & (occupancy >= 0).any(axis=0)).any())


def test_the_level_of_chance_sees_no_video() -> None:
    config = exam_config(n_streams=8)
    baseline = fit_blind(config)
    assert isinstance(baseline, BlindBaseline)
    exam = make_exam(config, config.seeds)
    marked = Answered([exam]).blind(config, baseline)
    assert marked.label == BLIND
    assert 0.0 < marked.right.mean() < 0.6
    assert (marked.outcome.said == SILENT).all()


# -- the run --------------------------------------------------------------------------------------------------


def test_the_full_cache_answers_as_one_dense_pass_does(model, exam) -> None:
    answers = answer_exam(model, FULL, exam)
    for index, (stream, row) in enumerate(zip(exam.streams, exam.rows(), strict=True)):
        dense = answer_stream(model, replace(stream, questions=tuple(row)))
        assert answers.given[index].tolist() == list(dense.answers)
        assert answers.said[index].tolist() == list(dense.narration)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_policy_sits_the_exam(model, exam, name: str) -> None:
    policy = POLICIES[name](**SMALL.get(name, {}))
    answers = answer_exam(model, policy, exam)
    assert answers.given.shape == (len(exam.streams), len(exam.turns))
    counts = dict(zip(COUNTED, answers.counts.sum(axis=0).tolist(), strict=True))
    assert counts["selected"] <= counts["attended"] <= counts["cached"]
    if not policy.lossy:
        full = answer_exam(model, FULL, exam)
        assert np.array_equal(full.given, answers.given)


SMALL = {
    "resv": {"hamming_threshold": 4, "recent_bytes": 20_000},
    "topk": {"k": 4},
    "rekv": {"r": 3, "n_local": 40},
    "infllm": {"block_tokens": 10, "topk": 3, "n_local": 40, "n_init": 10, "cached_blocks": 0},
    "infinigen": {"calibration_tokens": 40, "dense_layers": 0},
    "infinigenp": {"calibration_tokens": 40, "dense_layers": 0},
    "quest": {"page_tokens": 10, "budget_tokens": 30, "dense_layers": 0},
    "streamingllm": {"recent_size": 40},
    "flash_vstream": {"temporal": 3, "abstract": 2, "key_frames": 1},
    "oaken": {"calibration_tokens": 40},
}


@pytest.mark.parametrize("name", ["resv", "topk", "streamingllm", "oaken", "infllm", "rekv"])
def test_stages_separate_what_is_seen_from_what_is_asked(model, exam, name: str) -> None:
    policy = POLICIES[name](**SMALL[name])
    full, both = answer_exam(model, FULL, exam), answer_exam(model, policy, exam)
    frame, text = (answer_exam(model, policy, exam, stages=stages) for stages in ("frame", "text"))
    assert np.array_equal(text.said, full.said)  # frames see everything
    assert np.array_equal(frame.said, both.said)
    cached, attended = COUNTED.index("cached"), COUNTED.index("attended")
    assert text.counts[0, attended] == text.counts[0, cached]
    assert frame.counts[1, attended] == frame.counts[1, cached]
    assert np.array_equal(frame.counts[0], both.counts[0])


def test_policies_of_decode_steps_act_in_the_question(model, exam) -> None:
    quest = POLICIES["quest"](**SMALL["quest"])
    assert question_kind(quest) == "decode"
    assert question_kind(POLICIES["resv"]()) == "question"
    answers = answer_exam(model, quest, exam)
    attended, cached = COUNTED.index("attended"), COUNTED.index("cached")
    assert answers.counts[0, attended] == answers.counts[0, cached]
    assert answers.counts[1, attended] < answers.counts[1, cached]


def test_recording_changes_nothing(model, exam) -> None:
    policy = POLICIES["resv"](**SMALL["resv"])
    plain, recorded = answer_exam(model, policy, exam), answer_exam(model, policy, exam, record_every=4)
    assert np.array_equal(plain.given, recorded.given)
    assert np.array_equal(plain.said, recorded.said)
    assert np.array_equal(plain.counts, recorded.counts)
    frames = [step for step in recorded.steps if step.kind == "frame"]
    assert [step.first_token for step in frames] == [40, 80, 120, 160]
    assert len(recorded.steps) == len(frames) + len(exam.turns)
    assert all(layer[-1].rows for layer in recorded.selections)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    table=st.sampled_from(["layer", "kv_head"]),
    selector=st.sampled_from(["bucketed", "exact"]),
    recent=st.sampled_from(["candidate", "exempt"]),
    ratio=st.sampled_from([0.1, 0.5, 1.0]),
)
def test_a_brief_selection_is_the_same_selection(
    seed: int, table: str, selector: str, recent: str, ratio: float
) -> None:

    rng, shape = np.random.default_rng(seed), TINY_SHAPE
    fields = {"table": table, "recent": recent, "recent_bytes": 30 * shape.kv_bytes_per_token, "n_sink": 2}
    policy = POLICIES["resv"](**fields, wicsum={"ratio": ratio, "selector": selector})
    state = policy.start(shape, 0)
    for n_new in (8, 8, 20, 12):
        keys = rng.standard_normal((shape.n_kv_heads, n_new, shape.head_dim)).astype(np.float32)
        queries = rng.standard_normal((shape.n_query_heads, n_new, shape.head_dim)).astype(np.float32)
        state.brief = False
        whole = state.select(queries, keys)
        state.brief = True
        brief = state.select(queries, keys)
        for mask in ("attended", "resident", "candidates"):
            assert np.array_equal(getattr(whole, mask), getattr(brief, mask))
        assert not brief.rows
        assert not brief.tables
        state.append(keys, [n_new])


# -- statistics -----------------------------------------------------------------------------------------------


def test_mcnemar_is_the_sign_test_of_what_one_alone_knew() -> None:
    first = np.array([True] * 5 + [False] * 3 + [True] * 10)
    second = np.array([False] * 5 + [False] * 3 + [True] * 10)
    assert mcnemar(first, second) == (5, 0, pytest.approx(2 * 0.5**5))
    assert mcnemar(second, first)[:2] == (0, 5)
    assert mcnemar(first, first) == (0, 0, 1.0)
    with pytest.raises(ValueError, match="cannot be paired"):
        mcnemar(first, second[1:])


@settings(max_examples=30, deadline=None)
@given(only_first=st.integers(0, 12), only_second=st.integers(0, 12), both=st.integers(0, 5))
def test_mcnemar_against_counting(only_first: int, only_second: int, both: int) -> None:
    from math import comb

    first = np.array([True] * only_first + [False] * only_second + [True] * both, dtype=bool)
    second = np.array([False] * only_first + [True] * only_second + [True] * both, dtype=bool)
    n = only_first + only_second
    tail = sum(comb(n, k) for k in range(min(only_first, only_second) + 1)) / 2**n
    assert mcnemar(first, second).p_value == pytest.approx(min(1.0, 2 * tail))


def test_pairs_are_of_one_exam(model, exam) -> None:
    config = exam_config()
    answered = Answered([exam])
    outcomes_ = [answer_exam(model, policy, exam) for policy in (FULL, POLICIES["topk"](k=2))]
    marked = [
        answered.mark(label, config, outcomes.Outcome(a.given, a.said, a.counts))
        for label, a in zip(("full", "topk"), outcomes_, strict=True)
    ]
    elsewhere = replace(marked[0], config=config.model_copy(update={"stages": "text"}))
    (pair,) = pair_rows([*marked, elsewhere])
    assert (pair.first, pair.second) == ("full", "topk")
    row = answered.row(marked[1], marked[0], load_experiment("accuracy")[0].model)
    assert row.only_reference - row.only_policy == round(row.accuracy_drop * row.n_questions)
    assert row.accuracy_low <= row.accuracy <= row.accuracy_high
    assert sum(t.n_questions for t in answered.task_rows(marked[1])) == row.n_questions


def test_a_row_of_three_questions_and_six_frames_by_hand() -> None:
    """Two streams; the second asks once. Only the second thing that was new was not told."""
    asked = [[Task.COUNT, Task.NEW_NOW], [Task.COUNT, None]]
    narration = np.array([[SILENT, 9, SILENT], [SILENT, SILENT, 8]])
    exam = SimpleNamespace(answers=np.array([[5, 6], [7, -1]]), narration=narration, tasks=lambda: asked)
    answered, config = Answered([exam]), exam_config()
    counts = np.array([[4, 100, 60, 50, 10, 8], [0, 0, 0, 0, 0, 0]])
    said = np.array([[SILENT, 9, 4], [SILENT, SILENT, 1]])
    reference = answered.mark("full", config, outcomes.Outcome(exam.answers, narration, counts))
    marked = answered.mark("topk", config, outcomes.Outcome(np.array([[5, 0], [7, 3]]), said, counts))
    assert COUNTED == ("steps", "cached", "attended", "candidates", "selected", "fetched")
    row = answered.row(marked, reference, load_experiment("accuracy")[0].model)
    assert (row.policy, row.n_questions, row.n_frames) == ("topk", 3, config.n_frames)
    assert (row.accuracy, row.accuracy_drop) == pytest.approx((2 / 3, 1 / 3))
    assert (row.only_reference, row.only_policy, row.p_value) == (1, 0, 1.0)
    assert (row.narration, row.speak, row.silent) == pytest.approx((4 / 6, 1 / 2, 3 / 4))
    assert row.narration_low < row.narration < row.narration_high
    assert (row.frame_kept, row.frame_ratio) == pytest.approx((0.6, 0.2))
    assert row.frame_fetched_bytes == 8 * 2 * 64 * 2 / 4  # tokens of a head, keys and values of 64 numbers, over steps
    assert (row.text_kept, row.text_ratio, row.text_fetched_bytes) == (None, None, None)
    tasks = {task.task: (task.n_questions, task.accuracy) for task in answered.task_rows(marked)}
    assert tasks == {"count": (2, 1.0), "new_now": (1, 0.0)}


# -- outcomes -------------------------------------------------------------------------------------------------


def test_a_part_is_run_once(weights, tmp_path, monkeypatch) -> None:
    memo, config = Memo(tmp_path), exam_config(weights=weights)
    experiment, _ = load_experiment("accuracy")
    setting = Setting("resv", POLICIES["resv"](**SMALL["resv"]), config)
    (part,) = parts_of(setting, experiment, 5)
    first = run_part(part, memo)
    monkeypatch.setattr(answering, "answer_exam", _refused)
    again = run_part(part, memo)
    assert np.array_equal(first.given, again.given)
    assert [p.row for p in first.points] == [p.row for p in again.points]
    with pytest.raises(AssertionError):
        run_part(replace(part, seeds=(99,)), memo)


def _refused(*_: object, **__: object) -> None:
    raise AssertionError("the model ran")


def test_other_weights_are_another_outcome(weights, tmp_path) -> None:
    other = tmp_path / "other.safetensors"
    save_weights(build_network(TINY, 4), other, {})
    memo = Memo(tmp_path / "memo")
    one, two = (
        run_settings([Setting("full", FULL, exam_config(weights=path))], memo, 1)[0] for path in (weights, other)
    )
    assert not np.array_equal(one.given, two.given)


def test_parts_are_put_together_in_order(weights) -> None:
    config = exam_config(n_streams=20, n_frames=8, moments=1, weights=weights)
    setting = Setting("full", FULL, config)
    assert [part.seeds for part in parts_of(setting)] == [tuple(range(16)), tuple(range(16, 20))]
    (whole,) = run_settings([setting], Memo(None), 1)
    last = run_part(parts_of(setting)[1], Memo(None))
    assert np.array_equal(whole.given[16:], last.given)
    assert whole.given.shape[0] == 20


def test_device_memory_in_tokens_is_for_policies_that_offload() -> None:
    shape = load_experiment("accuracy")[0].model
    resv = outcomes.on_device(POLICIES["resv"](recent_bytes=10**9), shape, 100)
    assert resv.recent_bytes == 100 * 2 * 2 * 64 * 5 * 2
    assert outcomes.on_device(POLICIES["videollm_online"](), shape, 100).recent_bytes is None
    assert outcomes.on_device(POLICIES["resv"](recent_bytes=5), shape, None).recent_bytes == 5


def test_platforms_see_the_steps_that_were_run(model, exam) -> None:
    experiment, _ = load_experiment("accuracy")
    policy = experiment.policies["resv"].model_copy(update={"recent_bytes": 5_000})
    experiment = experiment.model_copy(update={"policies": {**experiment.policies, "resv": policy}})
    answers = answer_exam(model, policy, exam, record_every=4)
    remembered = outcomes._unpacked(outcomes._packed(answers))
    assert remembered.steps == answers.steps
    shape = outcomes._shape(model)
    rows = mean_rows(platform_points(experiment, "resv", shape, answers))
    assert [(row.platform, row.stage) for row in rows] == [
        (platform, stage) for platform in ("agx_orin", "vrex8") for stage in ("frame", "question")
    ]
    at = [i for i, step in enumerate(answers.steps) if step.kind == "frame"]
    fetched = np.mean([sum(layer[i].fetched_tokens.sum() for layer in answers.selections) for i in at])
    for row in rows:
        assert row.latency_s > 0
        assert row.energy_j > 0
        if row.stage == "frame":
            assert row.fetched_tokens == round(fetched) > 0


# -- the columns of an experiment -----------------------------------------------------------------------------


def test_accuracy_of_an_experiment_is_measured_once_per_setting(weights, tmp_path, monkeypatch) -> None:
    ran = policies_that_sit(monkeypatch)
    memo, config = Memo(tmp_path), exam_config(weights=weights)
    topk = POLICIES["topk"](k=3)
    right, drop = measured.accuracy(memo, config, topk)
    assert measured.accuracy(memo, config, topk) == (right, drop)
    assert ran == [topk, FULL]
    assert measured.accuracy(memo, config, FULL) == (pytest.approx(right + drop), 0.0)


def test_a_drop_of_eight_questions_in_eight_hundred_keeps_a_limit_of_a_hundredth(monkeypatch) -> None:
    """A difference of shares, 0.95 - 0.94, would not."""
    n_right = {"full": 760, "topk": 752}
    monkeypatch.setattr(measured, "_right", lambda memo, config, policy: np.arange(800) < n_right[policy.kind])
    assert measured.accuracy(Memo(None), exam_config(), POLICIES["topk"]()) == (0.94, 0.01)


# -- bad input ------------------------------------------------------------------------------------------------


def test_missing_weights_say_what_to_run(tmp_path) -> None:
    config = exam_config(weights=tmp_path / "none.safetensors")
    with pytest.raises(WeightsError, match=r"no such weight file.*train_mini\.py"):
        run_settings([Setting("full", FULL, config)], Memo(None), 1)


def test_weights_of_another_version_say_what_to_run(weights, tmp_path, monkeypatch) -> None:
    import resv.mini.weights

    monkeypatch.setattr(resv.mini.weights, "FORMAT_VERSION", "0")
    path = tmp_path / "old.safetensors"
    save_weights(build_network(TINY, 3), path, {})
    monkeypatch.undo()
    with pytest.raises(WeightsError, match=r"format version 0.*train_mini\.py"):
        run_settings([Setting("full", FULL, exam_config(weights=path))], Memo(None), 1)


def test_streams_longer_than_the_positions_are_refused(weights, model) -> None:
    config = exam_config(n_frames=model.max_frames + 1, weights=weights)
    with pytest.raises(ConfigError, match=rf"allowed: at most {model.max_frames}"):
        run_settings([Setting("full", FULL, config)], Memo(None), 1)


def test_a_policy_that_cannot_run_on_the_model_is_named(weights) -> None:
    setting = Setting("window", POLICIES["streamingllm"](recent_size=5), exam_config(weights=weights))
    with pytest.raises(ConfigError, match=r"streamingllm cannot run on the embedded model: recent_size is 5"):
        run_settings([setting], Memo(None), 1)


# -- what is shipped ------------------------------------------------------------------------------------------


def test_the_bundled_shape_is_the_shipped_models() -> None:
    config, shape = MiniConfig(), load_experiment("accuracy")[0].model
    for name in ("n_layers", "hidden", "n_query_heads", "n_kv_heads", "head_dim", "ffn", "rope_theta"):
        assert getattr(shape, name) == getattr(config, name)
    assert "mini" in library.bundled("models")


@pytest.mark.skipif(not SHIPPED.is_file(), reason="no weights in this checkout: scripts/train_mini.py makes them")
def test_the_shipped_model_knows_what_it_saw() -> None:
    config = exam_config(n_streams=8, n_frames=32, moments=3)
    exam = make_exam(config, config.seeds)
    answers = answer_exam(load_mini(), FULL, exam)
    answered = Answered([exam])
    marked = answered.mark("full", config, outcomes.Outcome(answers.given, answers.said, answers.counts))
    blind = answered.blind(config, fit_blind(config))
    assert marked.right.mean() > blind.right.mean() + 0.4
    assert (answers.said == exam.narration).mean() > 0.9
