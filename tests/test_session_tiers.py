"""Sessions on three tiers: same answers, bytes as the policy's ledger has them, interruption, kill -9, full tiers."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

pytest.importorskip("transformers")

from resv.huggingface.answers import Answer
from resv.huggingface.attach import attach
from resv.huggingface.resume import weights_fingerprint
from resv.huggingface.session import Frame, Session, SessionConfig
from resv.huggingface.tiny import tiny_model
from resv.policies import POLICIES
from resv.policies.base import Policy
from resv.policies.full import Full
from resv.policies.infllm import InfLLM
from resv.policies.rekv import ReKV
from resv.tiers.config import Tiers
from resv.tiers.errors import DeviceFullError, DiskFullError, FolderError, TierError
from resv.tiers.reader import INDEX
from resv.tiers.store import TieredStore, tiered
from resv.video import VideoConfig, read_frames
from resv_sim.cli import main

LLAVA = tiny_model("tiny-llava")
WEIGHTS = weights_fingerprint(LLAVA)
KV = 2 * 4 * 2 * 8 * 4  # bytes per token: 4 layers, 2 KV heads of 8, float32
FRAME = 4 * KV
SHORT = SessionConfig(max_new_tokens=5)
POLICY_FIELDS: dict[str, dict[str, object]] = {
    "full": {"recent_bytes": 3 * FRAME},
    "flexgen_stream": {"recent_bytes": 3 * FRAME},
    "resv": {"recent_bytes": 3 * FRAME, "hamming_threshold": 12},
    "topk": {"recent_bytes": 3 * FRAME, "k": 6},
    "rekv": {"recent_bytes": 2 * FRAME, "n_local": 8, "r": 2},
    "rekv_vrex": {"recent_bytes": 3 * FRAME},
    "infinigenp": {"recent_bytes": 3 * FRAME},
    "quest": {"recent_bytes": 3 * FRAME},
    "streamingllm": {"recent_size": 30},
}


def policy_of(name: str) -> Policy:
    return POLICIES[name](**POLICY_FIELDS[name])


NAMES = list(POLICY_FIELDS)


_VIDEO = read_frames(VideoConfig(fps=1.0, size_px=64))
_FRAMES: list[Frame] = []


def frames(n: int, skip: int = 0) -> list[Frame]:
    _FRAMES.extend(islice(_VIDEO, max(0, n - len(_FRAMES))))
    return _FRAMES[skip:n]


def session_on(attachment: object) -> tuple[Session, TieredStore]:
    session = Session(attachment, config=SHORT)  # type: ignore[arg-type]
    assert isinstance(session.cache.store, TieredStore)
    return session, session.cache.store


def said(session: Session, question: str = "what?") -> tuple[int, ...]:
    answer = session.ask(question)
    assert isinstance(answer, Answer)
    return answer.token_ids


def uninterrupted(policy: Policy, n: int) -> tuple[int, ...]:
    with attach(LLAVA, policy) as attachment:
        session = Session(attachment, config=SHORT)
        list(session.stream(frames(n)))
        return said(session)


def assert_as_the_ledger_has_it(session: Session, store: TieredStore) -> None:
    booked, size = session.cache.bytes(), store.size()
    assert size.device_bytes == booked.resident_bytes
    assert size.host_bytes + size.disk_bytes == booked.offloaded_bytes
    assert size.device_bytes + size.host_bytes + size.disk_bytes == booked.appended_bytes - booked.evicted_bytes
    assert store.file_bytes == session.cache.n_tokens * KV


@pytest.mark.parametrize("name", NAMES)
def test_tiers_change_no_answer_and_hold_what_the_policy_says(name: str) -> None:
    tiers = Tiers(disk=True, host_bytes=2 * FRAME, copies_bytes=2 * FRAME)
    with attach(LLAVA, policy_of(name), store=tiered(tiers)) as attachment:
        session, store = session_on(attachment)
        for frame in frames(12):
            session.add_frame(frame)
            assert_as_the_ledger_has_it(session, store)
        got = said(session)
        assert_as_the_ledger_has_it(session, store)  # the question left nothing behind
        session.add_frame(frames(13, 12)[0])
        assert_as_the_ledger_has_it(session, store)
    assert got == uninterrupted(policy_of(name), 12)


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_goes_on_from_its_folder(name: str, tmp_path: Path) -> None:
    tiers = Tiers(folder=tmp_path / "tier", host_bytes=2 * FRAME)
    for n in (5, 9, 12):
        with attach(LLAVA, policy_of(name), store=tiered(tiers, WEIGHTS)) as attachment:
            session, store = session_on(attachment)
            if session.n_frames:
                assert_as_the_ledger_has_it(session, store)
            list(session.stream(frames(n, session.n_frames)))
            assert session.n_frames == n
            assert_as_the_ledger_has_it(session, store)
            assert said(session) == uninterrupted_cached(name, n)
    with attach(LLAVA, policy_of(name), store=tiered(tiers.model_copy(update={"read_only": True}))) as attachment:
        session, store = session_on(attachment)
        assert (session.n_frames, session.timestamp_s) == (12, 11.0)
        assert said(session) == uninterrupted_cached(name, 12)


def test_a_long_folder_is_taken_in_by_runs_of_whole_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with attach(LLAVA, policy_of("resv"), store=tiered(Tiers(folder=tmp_path), WEIGHTS)) as attachment:
        session, _ = session_on(attachment)
        list(session.stream(frames(9)))
    monkeypatch.setattr("resv.huggingface.stream._TOKENS_AT_ONCE", 10)
    asked, keys = [], TieredStore.keys
    monkeypatch.setattr(TieredStore, "keys", lambda self, *part: asked.append(part) or keys(self, *part))
    with attach(LLAVA, policy_of("resv"), store=tiered(Tiers(folder=tmp_path), WEIGHTS)) as attachment:
        session, store = session_on(attachment)
        assert asked == [(layer, at, min(at + 8, 36)) for layer in range(4) for at in range(0, 36, 8)]
        assert_as_the_ledger_has_it(session, store)
        assert said(session) == uninterrupted_cached("resv", 9)


def test_a_stream_below_the_session_goes_on_and_begins_anew_too(tmp_path: Path) -> None:
    x = torch.randn((1, 9, 64), generator=torch.Generator().manual_seed(0))
    tiers = Tiers(folder=tmp_path)
    with attach(LLAVA, Full()) as attachment:
        ref = attachment.new_stream()
        whole, alone = ref.forward(x).hidden, attachment.new_stream().forward(x[:, 5:]).hidden
    with attach(LLAVA, Full(), store=tiered(tiers)) as attachment:
        attachment.new_stream().forward(x[:, :5])
    with attach(LLAVA, Full(), store=tiered(tiers.model_copy(update={"read_only": True}))) as attachment:
        reading = attachment.new_stream()
        assert reading.n_tokens == 5
        with pytest.raises(TierError, match="read only cannot forget"):
            reading.reset()
        assert torch.allclose(reading.forward(x[:, 5:]).hidden, whole[:, 5:], atol=1e-5)
    with attach(LLAVA, Full(), store=tiered(tiers)) as attachment:
        stream = attachment.new_stream()
        assert torch.allclose(stream.forward(x[:, 5:]).hidden, whole[:, 5:], atol=1e-5)
        stream.reset()
        assert stream.n_tokens == stream.store.n_tokens == 0
        assert torch.allclose(stream.forward(x[:, 5:]).hidden, alone, atol=1e-5)
    with attach(LLAVA, Full(), store=tiered(tiers)) as attachment:
        assert attachment.new_stream().n_tokens == 4


@pytest.mark.parametrize("n_again", [2, 5, 9])
def test_a_reader_sees_that_its_writer_began_anew(n_again: int, tmp_path: Path) -> None:
    policy, tiers = policy_of("resv"), Tiers(folder=tmp_path)
    other = tiny_model("tiny-llava")
    with (
        attach(LLAVA, policy, store=tiered(tiers)) as writing,
        attach(other, policy, store=tiered(tiers.model_copy(update={"read_only": True}))) as reading,
    ):
        writer = Session(writing, config=SHORT)
        list(writer.stream(frames(5)))
        reader, store = session_on(reading)
        said(reader)
        writer.cache.reset()
        for frame in frames(20, 20 - n_again):
            writer.add_frame(frame)
        assert reader.refresh() == n_again
        assert reader.cache.n_tokens == store.n_tokens == 4 * n_again
        assert_as_the_ledger_has_it(reader, store)
        got = said(reader)
    with attach(LLAVA, policy) as attachment:
        session = Session(attachment, config=SHORT)
        list(session.stream(frames(20, 20 - n_again)))
        assert got == said(session)


_SAID: dict[tuple[str, int], tuple[int, ...]] = {}


def uninterrupted_cached(name: str, n: int) -> tuple[int, ...]:
    """Of a stream in one piece; made outside of an attached block, so in a model of its own."""
    if (name, n) not in _SAID:
        model = tiny_model("tiny-llava")
        with attach(model, policy_of(name)) as attachment:
            session = Session(attachment, config=SHORT)
            list(session.stream(frames(n)))
            _SAID[name, n] = said(session)
    return _SAID[name, n]


def test_kept_dialogue_and_frames_of_any_grid_are_in_the_folder(tmp_path: Path) -> None:
    model, tiers = tiny_model("tiny-qwen2.5-vl"), Tiers(folder=tmp_path)
    config = SHORT.model_copy(update={"dialogue": "kept"})
    wide = [np.ascontiguousarray(frame[:40]) for frame in frames(7)]
    with attach(model, Full(), store=tiered(tiers)) as attachment:
        session = Session(attachment, config=config)
        list(session.stream(wide[:3]))
        first = session.ask("who?")
        list(session.stream(wide[3:]))
        positions, ref = session.cache.token_positions.copy(), session.ask("what?")
    with attach(model, Full(), store=tiered(tiers)) as attachment:
        session = Session(attachment, config=config)
        assert isinstance(session.cache.store, TieredStore)
        records = session.cache.store.records
        kinds = [record.kind for record in records]
        assert kinds[:4] == ["frame", "frame", "question", "decode"]
        assert {record.grid for record in records if record.kind == "frame"} == {(2, 3)}
        assert [record.n_frames for record in records if record.kind == "frame"] == [2, 1, 2, 2]
        assert session.n_frames == 7
        assert np.array_equal(session.cache.token_positions[: len(positions)], positions)
    assert isinstance(first, Answer)
    assert isinstance(ref, Answer)


def test_a_policy_that_remembers_queries_says_that_it_forgot_them(tmp_path: Path) -> None:
    policy = InfLLM(block_tokens=8, n_local=16, n_init=4)
    for expected in (0, 1):
        with attach(LLAVA, policy, store=tiered(Tiers(folder=tmp_path))) as attachment:
            session = Session(attachment, config=SHORT)
            assert sum("representatives" in note for note in session.notes) == expected
            list(session.stream(frames(session.n_frames + 6, session.n_frames)))


def test_another_models_folder_is_refused(tmp_path: Path) -> None:
    with attach(LLAVA, Full(), store=tiered(Tiers(folder=tmp_path), WEIGHTS)) as attachment:
        Session(attachment).add_frame(frames(1)[0])
    for model, difference in (
        (tiny_model("tiny-smolvlm"), "model is tiny-llava, not tiny-smolvlm; n_layers is 4, not 3"),
        (tiny_model("tiny-llava", seed=1), "weights is"),
    ):
        store = tiered(Tiers(folder=tmp_path), weights_fingerprint(model))
        with attach(model, Full(), store=store) as attachment, pytest.raises(FolderError, match=difference):
            Session(attachment)


@pytest.mark.parametrize("how", ["limit", "writer"])
def test_a_full_disk_stops_the_stream_and_earlier_frames_can_be_asked_about(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiers = Tiers(folder=tmp_path, host_bytes=0, disk_bytes=5 * FRAME + 10 if how == "limit" else None)
    policy = policy_of("rekv")
    with attach(LLAVA, policy, store=tiered(tiers)) as attachment:
        session, store = session_on(attachment)
        if how == "writer":
            list(session.stream(frames(5)))
            n_left, pwrite = 2, os.pwrite

            def full(fd: int, data: bytes, offset: int) -> int:
                nonlocal n_left
                n_left -= 1
                if n_left < 0:  # in the middle of the step, two of four layers written
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return pwrite(fd, data, offset)

            monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(DiskFullError, match="5 steps before it, which are kept"):
            list(session.stream(frames(9, session.n_frames)))
        monkeypatch.undo()
        assert session.n_frames == 5
        assert_as_the_ledger_has_it(session, store)
        got = said(session)
        if how == "writer":  # room again
            list(session.stream(frames(6, 5)))
            assert session.n_frames == 6
    assert got == uninterrupted(policy, 5)


def test_out_of_device_capacity_is_an_error_and_a_smaller_window_is_none() -> None:
    tiers = Tiers(device_bytes=6 * FRAME, disk=True)
    with attach(LLAVA, ReKV(r=2), store=tiered(tiers)) as attachment:
        session, _ = session_on(attachment)
        with pytest.raises(DeviceFullError, match=r"out of device capacity.*recent_bytes"):
            list(session.stream(frames(9)))
        assert session.n_frames == 6
    with attach(LLAVA, policy_of("rekv"), store=tiered(tiers)) as attachment:
        session, store = session_on(attachment)
        list(session.stream(frames(20)))
        assert session.n_frames == 20
        assert store.size().device_bytes + store.copies_bytes <= 6 * FRAME


@pytest.mark.parametrize("disk", [False, True])
@pytest.mark.parametrize("dialogue", ["kept", "dropped"])
def test_a_stream_that_no_other_process_writes_has_nothing_to_take_in(disk: bool, dialogue: str) -> None:
    config = SessionConfig(max_new_tokens=5, dialogue=dialogue)  # type: ignore[arg-type]
    told = []
    for tiers in (Tiers(), Tiers(device_bytes=1 << 20, disk=disk)):
        with attach(LLAVA, Full(), store=tiered(tiers)) as attachment:
            session = Session(attachment, config=config)
            list(session.stream(frames(3)))
            said(session)
            before = session.n_frames, session.timestamp_s, session.cache.n_tokens
            if tiers != Tiers():
                assert session.refresh() == 3
                assert (session.n_frames, session.timestamp_s, session.cache.n_tokens) == before
                assert session.cache.store.n_tokens == session.cache.n_tokens
            list(session.stream(frames(4, 3)))
            told.append(said(session))
    assert told[0] == told[1]


def test_a_long_stream_stays_within_its_device_budget_and_weighs_what_was_predicted() -> None:
    n, window, copies = 120, 8 * FRAME, 4 * FRAME
    policy = ReKV(r=4, n_local=32, recent_bytes=window)
    question = 40 * KV  # and its answer
    tiers = Tiers(device_bytes=window + copies + question, copies_bytes=copies, host_bytes=20 * FRAME, disk=True)
    with attach(LLAVA, policy, store=tiered(tiers)) as attachment:
        session, store = session_on(attachment)
        for frame in frames(n):
            session.add_frame(frame)
            assert store.size().device_bytes + store.copies_bytes <= window + copies
        said(session)
        size = store.size()
    assert (size.device_bytes, size.host_bytes, size.disk_bytes) == (window, 20 * FRAME, (n - 28) * FRAME)
    assert size.spilled_bytes == (n - 8) * FRAME


def test_what_an_hour_of_rekv_takes_is_as_published() -> None:
    hour = 1800  # frames, at 0.5 per second
    gib = [n_tokens * hour * kv / 2**30 for n_tokens, kv in ((196, 2 * 28 * 4 * 128 * 2), (196, 2 * 24 * 2 * 64 * 2))]
    assert gib == pytest.approx([18.84, 4.04], rel=0.005)


# --- two processes

_STREAM = ["stream", "--model", "tiny-llava", "--fps", "1"]
_STREAM += [f"--set={key}={value}" for key, value in POLICY_FIELDS["rekv"].items()]
_PROCESS = [sys.executable, "-c", "from resv_sim.cli import main; main()", *_STREAM]


def _cli(*arguments: str) -> list[dict[str, Any]]:
    done = CliRunner().invoke(main, [*_STREAM, "--json", "--max-new-tokens", "5", *arguments])
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def _landed(folder: Path) -> int:
    index = folder / INDEX
    return index.read_bytes().count(b"\n") if index.exists() else 0


def test_one_process_analyses_another_answers_and_a_kill_costs_no_frame_that_had_landed(tmp_path: Path) -> None:
    folder = tmp_path / "tier"
    command = [*_PROCESS, "--analyse", "--tier", str(folder), "--frames", "100000"]
    analysing = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    reader = Tiers(folder=folder, read_only=True)
    try:
        _wait_for(lambda: _landed(folder) >= 8)
        analysing.send_signal(signal.SIGSTOP)  # wherever it is; or it runs far ahead of this slower test
        with attach(LLAVA, policy_of("rekv"), store=tiered(reader)) as attachment:  # while the other one writes
            session, _ = session_on(attachment)
            during, asked_of = said(session), session.n_frames
            analysing.send_signal(signal.SIGCONT)
            _wait_for(lambda: _landed(folder) >= asked_of + 5)
            analysing.send_signal(signal.SIGKILL)
            assert session.refresh() > asked_of
            later, then = said(session), session.n_frames
    finally:
        analysing.kill()
        analysing.wait()
    assert during == uninterrupted(policy_of("rekv"), asked_of)
    assert later == uninterrupted(policy_of("rekv"), then)

    *answers, _ = _cli("--answer", "--tier", str(folder), "--ask", "what?")
    n_landed = answers[0]["n_frames"]
    assert n_landed == _landed(folder) >= then
    assert tuple(answers[0]["token_ids"]) == uninterrupted(policy_of("rekv"), n_landed)

    n_all = n_landed + 6  # the restarted one takes what is missing, and no more
    seen = _cli("--analyse", "--tier", str(folder), "--frames", str(n_all))
    assert [event["index"] for event in seen[:-1]] == list(range(n_landed, n_all))
    with attach(LLAVA, policy_of("rekv"), store=tiered(reader)) as attachment:
        got = said(session_on(attachment)[0])
    assert got == uninterrupted(policy_of("rekv"), n_all)


def _wait_for(happened: object, timeout_s: float = 60.0) -> None:
    until = time.monotonic() + timeout_s
    while not happened():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.02)
