"""What points share must not change them: outcomes made together, runs kept, warm-up frames without rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from resv.policies import ReSV
from resv.workload_plan import ProbeWorkload, plan_steps
from resv_sim import pipeline
from resv_sim.config import Experiment, load_experiment
from resv_sim.functional import functional_layer
from resv_sim.memo import Memo, pack_layers
from resv_sim.progress import Progress
from resv_sim.results import ResultRow
from resv_sim.streams import make_streams
from resv_sim.sweep import evaluate as module
from resv_sim.sweep.evaluate import evaluate, prepare, used_policies
from tests.sample_results import sample_row


def experiment(settings: Sequence[str] = ()) -> Experiment:
    short = ["workload.kv_lengths_tokens=[200]", "runs=[{platform: agx_orin, policy: full}, "]
    short[1] += "{platform: vrex8, policy: resv}]"
    return load_experiment("quick.yaml", [*short, *settings])[0]


def rows(settings: Sequence[str]) -> list[ResultRow]:
    result = pipeline.run(experiment(settings), Progress(quiet=True), 1, use_cache=False)
    return [row for row in result.rows if row.policy == "resv"]


def test_policies_run_together_select_and_score_what_each_does_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    base = experiment()
    resv = base.policies["resv"]
    varied = ({"exit": "bucket"}, {"ratio": 0.7}, {"score_transform": "relu"})
    a, b, d = (resv.model_copy(update={"wicsum": resv.wicsum.model_copy(update=one)}) for one in varied)
    policies = {"full": base.policies["full"], "a": a, "b": b, "d": d, "c": resv.model_copy(update={"n_sink": 9})}
    trace = make_streams(base, lambda: None).traces[0]
    started: list[str] = []
    start = ReSV.start
    monkeypatch.setattr(ReSV, "start", lambda self, *of: (started.append(self.wicsum.exit), start(self, *of))[1])
    together = functional_layer(trace, policies, 1, 8, Memo(None))
    assert len(started) == 2, "what is clustered alike is clustered once"
    for label, policy in policies.items():
        alone = functional_layer(trace, {label: policy}, 1, 8, Memo(None))[label]
        got = pack_layers(together[label].selections, together[label].fidelity)
        want = pack_layers(alone.selections, alone.fidelity)
        assert got.keys() == want.keys()
        assert all(np.array_equal(got[name], want[name]) for name in got)


def test_a_prepared_layer_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = experiment()
    for layer in range(base.model.n_layers):
        prepare(Memo(tmp_path), base, used_policies(base), layer)
    stored = sorted(path.name for path in tmp_path.rglob("*.safetensors"))
    assert len(stored) == 2 * base.model.n_layers
    monkeypatch.setattr("resv.synthetic.stream.SyntheticTrace.layer", None)
    (result,) = evaluate(Memo(tmp_path), [(0, base)])
    assert result.error is None
    assert sorted(path.name for path in tmp_path.rglob("*.safetensors")) == stored


def test_a_point_is_the_same_after_any_other(tmp_path: Path) -> None:
    variants = [
        experiment(settings)
        for settings in (
            [],
            ["platforms.vrex8.hcu.bits_per_cycle=8"],
            ["platforms.vrex8.wtu.lanes=8"],
            ["platforms.vrex8.lxe.cores=4"],
            ["platforms.vrex8.kvmu.mapping=arrival"],
            ["policies.resv.wicsum.ratio=0.5"],
            ["platforms.agx_orin.launch_ps=1_000_000"],
            ["platforms.vrex8.energy=vrex_14nm_hbm2e"],
            ["trace.seed=1"],
            ["fidelity.topk=3"],
            ["name=other"],
        )
    ]
    tasks = list(enumerate(variants))
    module._kept.cache_clear()
    forward = evaluate(Memo(tmp_path), tasks)
    assert [result.error for result in forward] == [None] * len(variants)
    assert sorted(evaluate(Memo(tmp_path), tasks[::-1]), key=lambda r: r.index) == forward
    for index, variant in tasks:
        module._kept.cache_clear()
        assert evaluate(Memo(tmp_path), [(index, variant)]) == [forward[index]]
    text = [repr(result.rows) for result in forward]
    assert len(set(text)) == len(text)


def test_an_error_is_the_result_of_its_own_point(tmp_path: Path) -> None:
    bad = experiment(["platforms.vrex8.offload.capacity_bytes=1000"])
    results = evaluate(Memo(tmp_path), [(3, bad), (4, experiment())])
    assert [(r.index, r.error is None) for r in results] == [(3, False), (4, True)]
    assert str(results[0].error).startswith("ValueError: platforms.vrex8.offload")


def test_a_number_that_is_not_finite_is_an_error_and_what_was_noted_comes_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = experiment(["platforms.vrex8.memory_capacity_bytes=100000"])
    (result,) = evaluate(Memo(tmp_path), [(2, small)])
    assert {row["platform"] for row in result.rows} == {"agx_orin"}
    assert [note.split(",")[0] for note in result.notes] == ["vrex8+resv"] * 2

    def lost(*_: object) -> tuple[list[Any], list[str]]:
        row = replace(sample_row("vrex8", "resv", 200, "frame"), energy_j=float("nan"))
        return [SimpleNamespace(row=row, exposed_s={}, energy_j={})], []

    monkeypatch.setattr(module, "_points", lost)
    (result,) = evaluate(Memo(tmp_path), [(5, small)])
    assert (result.index, result.rows) == (5, ())
    assert result.error == "ArithmeticError: energy_j is nan for vrex8+resv"


# -- warm-up ----------------------------------------------------------------------------------------------


def first_tokens(workload: ProbeWorkload) -> list[tuple[str, int]]:
    return [(step.kind, step.first_token) for step in plan_steps(workload, 100, 10).probes]


def test_warm_up_frames_come_before_each_length_and_none_twice() -> None:
    workload = ProbeWorkload(kv_lengths_tokens=(50, 75, 300), stages=("frame", "decode"), warmup_frames=3)
    assert first_tokens(workload) == [
        *[("frame", t) for t in (20, 30, 40, 50)],
        ("decode", 50),
        *[("frame", t) for t in (60, 70)],
        ("decode", 70),
        *[("frame", t) for t in (270, 280, 290, 300)],
        ("decode", 300),
    ]
    first = ProbeWorkload(kv_lengths_tokens=(10,), stages=("frame",), warmup_frames=5)
    assert first_tokens(first) == [("frame", 0), ("frame", 10)]


REUSE: dict[str, Any] = {"none": [], "lru": ["platforms.vrex8.kvmu={reuse: lru, reuse_bytes: 1_000_000}"]}


def test_warm_up_frames_fill_what_is_kept_and_have_no_rows() -> None:
    warm = ["workload.warmup_frames=4", "workload.stages=[frame]"]
    without, kept = rows(warm), rows([*warm, *REUSE["lru"]])
    assert [r.kv_len_tokens for r in without] == [r.kv_len_tokens for r in kept] == [200]
    assert kept[0].retrieval_ratio == without[0].retrieval_ratio
    assert kept[0].fetched_bytes < without[0].fetched_bytes
    cold = ["workload.stages=[frame]"]
    assert rows([*cold, *REUSE["lru"]])[0].fetched_bytes == rows(cold)[0].fetched_bytes, "nothing was there before"
