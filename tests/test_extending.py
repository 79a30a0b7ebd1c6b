"""The examples of docs/extending.md: the policy keeps the laws of all policies, the chip runs."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from resv.policies import POLICIES, Policy
from resv_sim.config import load_experiment
from resv_sim.library import bundled
from tests import test_policy_conformance as laws
from tests.tiny_trace import TinySession, TinyTrace

DOCUMENT = (Path(__file__).parent.parent / "docs" / "extending.md").read_text(encoding="utf-8")


def block(language: str, number: int = 0) -> str:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)[number]


@pytest.fixture
def first_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Policy]:
    (tmp_path / "first_token.py").write_text(block("python"), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    made: type[Policy] = __import__("first_token").FirstToken
    monkeypatch.setitem(POLICIES, "first_token", made)
    return made


@pytest.mark.parametrize("options", [{}, laws.OFFLOADING, laws.EXEMPT], ids=["defaults", "offloading", "exempt"])
def test_the_policy_keeps_the_laws(first_token: type[Policy], tmp_path: Path, options: dict[str, Any]) -> None:
    policy = first_token(frames=3, **options)
    for trace in (TinyTrace, TinySession):
        laws.test_every_token_is_accounted_for(policy, trace)
    for stage in ("frame", "question", "decode"):
        laws.test_selecting_changes_nothing_and_appending_in_bulk_is_appending_step_by_step(policy, stage)
    laws.test_later_tokens_change_no_earlier_selection(policy)
    laws.test_a_state_goes_on_from_a_file_as_if_it_had_never_stopped(policy, tmp_path)
    laws.test_the_same_stream_gives_the_same_selections(policy)
    laws.test_tensors_select_what_arrays_do(policy)


def test_the_policy_attends_to_whole_frames_and_to_no_more_than_asked(first_token: type[Policy]) -> None:
    trace = TinyTrace()
    # The question cuts a frame in two, so that the last probe sees other steps.
    for probe, got in list(zip(trace.probes, laws.run(first_token(frames=3), trace), strict=True))[:3]:
        frames = [got.attended[:, start : start + 4] for start in range(0, probe.first_token, 4)]
        assert all(frame.all() or not frame.any() for frame in frames)
        assert sum(bool(frame.all()) for frame in frames) == min(3, len(frames))


@pytest.mark.parametrize("name", bundled("platforms"))
@pytest.mark.usefixtures("first_token")
def test_the_policy_runs_on_every_platform(name: str) -> None:
    laws.test_every_policy_runs_on_every_platform_and_takes_at_least_its_bytes("first_token", name)


def test_the_policys_yaml_states_its_defaults(first_token: type[Policy]) -> None:
    assert yaml.safe_load(block("yaml")) == first_token().model_dump()


def test_the_chip_is_what_its_lines_say() -> None:
    words = shlex.split(block("sh").replace("\\\n", " "))
    settings = [after for word, after in pairwise(words) if word == "--set"]
    experiment, _ = load_experiment(words[words.index("--config") + 1], settings)
    half, whole = (experiment.platforms[name] for name in ("half", "vrex8"))
    assert (half.lxe.cores, whole.lxe.cores) == (4, 8)
    assert half.memory.n_channels == 2 * whole.memory.n_channels
    assert (half.offload.link.generation, half.offload.ssd) == (4, whole.offload.ssd)
    costs = [experiment.energy[name].actions["dram_read_bytes"].cost_pj for name in ("half", "vrex8")]
    assert costs == [56.0, 64.0]
    assert [run.label for run in experiment.runs] == ["agx_orin+flexgen_stream", "vrex8+resv", "half+resv"]
