"""The paper's figures beside ours: items, statements, the law of calibration, batches, uncertainty."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from click.testing import CliRunner, Result

from dre_sim.breakdown import exposed_ps
from dre_sim.kvmu import KvmuConfig
from dre_sim.timeline import Span, Timeline
from dre_sim.workload import FetchWork, StepWork
from resv_sim.cli import main
from resv_sim.config import load_experiment
from resv_sim.errors import ConfigError
from resv_sim.memo import Memo
from resv_sim.pipeline import run_with_points
from resv_sim.progress import Progress
from resv_sim.published import Fact, PublishedFacts, Where, published_facts
from resv_sim.reproduce import (
    FIGURES,
    Figure,
    Reproduction,
    ablation,
    baselines,
    chosen,
    machine,
    reproduce,
    retrieval,
    speed,
    tables,
)
from resv_sim.reproduce import calibration as law
from resv_sim.reproduce import uncertainty as unsure
from resv_sim.reproduce.ablation import with_all_keys
from resv_sim.reproduce.items import Findings, Group, Item, Statement, beside
from resv_sim.reproduce.orderings import RIVALS, chain, frame_orderings, ordering
from resv_sim.reproduce.report import inputs_hash, item_row, markdown, median_error, section, write_figures
from resv_sim.reproduce.speed import AGX, OURS, fig14, session_s
from resv_sim.reproduce.study import (
    Outcome,
    Study,
    batched_work,
    exposed_share,
    mean_row,
    other_streams,
    paper_experiment,
    vision_s,
    with_share,
)
from resv_sim.results import RatioKey
from tests.sample_results import LENGTHS, sample_row

KEYS = ["figure", "item", "unit", "ours", "published", "error", "role"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["reproduce", *arguments])


def facts(*found: Fact) -> PublishedFacts:
    return PublishedFacts(paper="p", model="llama3_8b", kv_lengths_tokens=LENGTHS, facts=found)


def fact(**fields: Any) -> Fact:
    return Fact(**{"figure": "Fig. 99", "item": "thing", "unit": "x", "role": "prediction", **fields})


def items(found: Fact, findings: Findings) -> list[Item]:
    return beside("fig99", ("Fig. 99",), facts(found), findings)


# -- numbers beside the paper's ---------------------------------------------------------------------------


def test_a_range_is_compared_at_both_ends_with_signed_errors() -> None:
    rows = tuple(
        replace(sample_row("vrex8", "resv", length, "frame"), speedup=gain)
        for length, gain in zip(LENGTHS, (3.0, 1.1, 9.0, 2.0, 4.0), strict=True)
    )
    found = fact(column="speedup", range=(2.2, 6.0), where=Where(platform=("vrex8",)), role="calibration")
    low, high = items(found, Findings(groups=(Group(rows, ("agx_orin", "full")),)))
    assert (low.ours, low.published, high.ours, high.published) == (1.1, 2.2, 9.0, 6.0)
    assert (low.error, high.error) == (pytest.approx(-0.5), pytest.approx(0.5))
    assert {low.role, high.role} == {"calibration"}


def test_a_statistic_over_lengths_is_compared_value_by_value() -> None:
    found = items(fact(statistic="s", values=(1, 2, 3, 4, 5)), Findings(statistics={"s": dict.fromkeys(LENGTHS, 2.0)}))
    assert [i.error for i in found] == pytest.approx([1.0, 0.0, -1 / 3, -0.5, -0.6])
    assert found[2].item == "thing at 10K"


def test_a_statistic_over_names_is_compared_name_by_name() -> None:
    found = items(fact(statistic="s", values=(1, 2), labels=("a", "b")), Findings(statistics={"s": {"b": 1.0}}))
    assert [(i.item, i.error) for i in found] == [("thing b", -0.5)]


def test_what_was_not_run_names_its_reason_in_every_number() -> None:
    missing = Findings(missing={"s": "no policy oaken is built"})
    (one,) = items(fact(statistic="s", value=3), missing)
    assert (one.ours, one.error, one.role) == (None, None, "not_run")
    assert one.plain()["item"] == "thing (not run: no policy oaken is built)"
    assert len(items(fact(statistic="s", range=(1, 2)), missing)) == 2
    (unknown,) = items(fact(column="speedup", value=1, where=Where(policy=("nobody",))), Findings())
    assert "no policy nobody is built" in unknown.reason


def test_the_first_group_that_has_a_counterpart_is_compared() -> None:
    rows = (replace(sample_row("vrex8", "resv", 1000, "frame"), speedup=2.0),)
    other = (replace(rows[0], platform="vrex48", speedup=8.0),)
    findings = Findings(groups=(Group(other, ("a", "b")), Group(rows, ("a", "b"))))
    (one,) = items(fact(column="speedup", value=4, where=Where(platform=("vrex8",))), findings)
    assert one.ours == 2.0


def test_every_published_fact_belongs_to_exactly_one_figure() -> None:
    claimed = [title for figure in FIGURES.values() for title in figure.published]
    assert len(claimed) == len(set(claimed))
    assert {f.figure for f in published_facts().facts} == set(claimed)
    names = {name for c in published_facts().known_contradictions for name in c.figures}
    assert names <= set(FIGURES)


def test_calibration_roles_of_machine_rows_are_rows_that_may_be_fitted() -> None:
    machine = [f for f in published_facts().facts if f.figure in ("Fig. 13", "Fig. 14", "Fig. 17", "Fig. 18")]
    fitted = {f.item for f in machine if f.role == "calibration"}
    assert fitted == {"V-Rex8 time per output token", "V-Rex8 frame speedup over AGX Orin + FlexGen"}


# -- the command ------------------------------------------------------------------------------------------


def test_an_unknown_figure_ends_with_code_two_and_a_list() -> None:
    result = run("fig99", "--json")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert all(name in result.stderr for name in (*FIGURES, "all"))
    with pytest.raises(ConfigError, match="Did you mean 'fig13'"):
        chosen(["fig13", "fgi13"])


def test_all_and_nothing_mean_everything_and_names_count_once() -> None:
    assert chosen([]) == chosen(["all"]) == chosen(["fig4", "all"]) == list(FIGURES)
    assert chosen(["table3", "fig4", "table3"]) == ["table3", "fig4"]


def test_json_is_a_list_of_objects_with_exactly_these_keys() -> None:
    result = run("table3", "table1", "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert all(list(entry) == KEYS for entry in data)
    assert {entry["figure"] for entry in data} == {"table3", "table1"}
    assert {entry["role"] for entry in data} == {"calibration", "prediction"}
    core = next(entry for entry in data if entry["item"] == "unit power, core")
    assert core["ours"] == pytest.approx(2609.43)


def test_a_report_is_written_with_its_figures(tmp_path: Path) -> None:
    result = run("table3", "calibration", "--out", str(tmp_path / "r"))
    assert result.exit_code == 0, result.stderr
    text = (tmp_path / "r" / "reproduce.md").read_text()
    assert "## table3: Area and power of a core" in text
    assert "The paper contradicts itself here: DRE share of power" in text
    assert (tmp_path / "r" / "figures" / "table3.png").stat().st_size > 10_000
    assert len(json.loads((tmp_path / "r" / "reproduce.json").read_text())) == 17


# -- the report -------------------------------------------------------------------------------------------


def test_the_median_counts_predictions_alone() -> None:
    def item(error: float | None, role: str) -> Item:
        return Item("f", "i", "x", 1.0, 1.0, error, cast(Any, role))

    assert median_error([item(0.9, "calibration"), item(-0.3, "prediction"), item(0.1, "prediction")]) == pytest.approx(
        0.2
    )
    assert median_error([item(None, "not_run")]) is None


def test_the_summary_says_whether_the_goal_is_met() -> None:
    def report(error: float) -> str:
        one = Item("fig14", "i", "x", 1.0, 1.0, error, "prediction")
        statement = Statement("A beats B", "open", "not built")
        figure = Figure("t", (), lambda _: Findings())
        done = Reproduction("fig14", figure, (one,), Findings(statements=(statement,)), ())
        return markdown([done], {})

    assert "is missed" in report(-0.2)
    assert "is met" in report(0.1)
    assert "| fig14 | A beats B | open | not built |" in report(0.1)


# -- docs/validation.md -----------------------------------------------------------------------------------

DOCUMENT = Path(__file__).parent.parent / "docs" / "validation.md"
STALE = "run `resv-sim reproduce all --markdown docs/validation.md`"


def paper_section() -> str:
    text = DOCUMENT.read_text(encoding="utf-8")
    return text.partition("<!-- begin generated: the-paper -->")[2].partition("<!-- end generated: the-paper -->")[0]


def test_the_document_was_made_from_the_present_configurations_and_facts() -> None:
    assert f"state `{inputs_hash()}`" in paper_section(), STALE


@pytest.mark.parametrize("name", ["table1", "table3", "calibration"])
def test_the_document_holds_the_present_rows_of_figures_without_a_run(name: str) -> None:
    (done,) = reproduce([name], Study(Progress(quiet=True)))
    lines = [item_row(item) for item in done.items] + [list(row) for t in done.findings.tables for row in t.rows]
    assert lines
    for line in lines:
        assert f"| {' | '.join(line)} |" in paper_section(), STALE


def test_the_document_holds_every_figure_and_no_date() -> None:
    text = paper_section()
    assert re.findall(r"^### (\w+):", text, re.M) == list(FIGURES)
    assert not re.search(r"\d{4}-\d{2}-\d{2}|\d\d:\d\d|!\[", text)


def test_the_state_of_the_document_changes_with_what_it_is_made_from(monkeypatch: pytest.MonkeyPatch) -> None:
    before = inputs_hash()
    ranges = unsure.load_ranges().model_copy(update={"seed": 1})
    monkeypatch.setattr("resv_sim.reproduce.report.load_ranges", lambda: ranges)
    assert inputs_hash() != before


def test_a_section_starts_one_heading_below_the_document() -> None:
    done = Reproduction("fig14", Figure("t", (), lambda _: Findings()), (), Findings(), ())
    headings = re.findall(r"^#+ .*", section([done]), re.M)
    assert headings[0].startswith("## ")
    assert all(h.startswith("### ") for h in headings[1:])


def test_a_document_is_written_of_all_figures_or_not_at_all(tmp_path: Path) -> None:
    document = tmp_path / "v.md"
    result = run("table1", "--markdown", str(document))
    assert result.exit_code == 2
    assert "--markdown writes all figures" in result.stderr
    assert not document.exists()


# -- the law of calibration -------------------------------------------------------------------------------


def constant(**changes: Any) -> law.Constant:
    fields = {
        "name": "c",
        "used_in": ("platforms/agx_orin",),
        "path": "dispatch_ps",
        "value": 50_500_000,
        "row": "fig16_ablation_40K_batch1.agx_resv",
        "mechanism": "m",
    }
    return law.Constant(**{**fields, **changes})


def test_the_bundled_constants_keep_the_law() -> None:
    found = law.load_calibration()
    assert 1 <= len(found.constants) <= 10
    assert any(c.name == "dispatch_ps" for c in found.constants)


def test_more_than_ten_constants_are_refused() -> None:
    law.Calibration(constants=(constant(),) * 10)
    with pytest.raises(ValueError, match="at most 10"):
        law.Calibration(constants=(constant(),) * 11)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"row": "fig13_edge.vrex8_frame_latency_ms_batch1[10000]"}, "allowed rows: table1_platforms"),
        ({"value": 44_000_000}, "holds 50500000 at dispatch_ps"),
        ({"used_in": ("platforms/agx_orin", "platforms/a100")}, "platforms/a100 holds 5400000"),
        ({"path": "offload.nothing"}, "has nothing at offload.nothing"),
    ],
)
def test_a_constant_that_breaks_the_law_is_refused(change: dict[str, Any], words: str) -> None:
    law.check(law.Calibration(constants=(constant(),)))
    with pytest.raises(ValueError, match=words):
        law.check(law.Calibration(constants=(constant(**change),)))


def test_at_most_two_constants_shape_the_trace() -> None:
    shaping = constant(used_in=(law.GENERATOR,), path="value_noise_share", value=None)
    law.check(law.Calibration(constants=(shaping,) * 2))
    with pytest.raises(ValueError, match="at most 2"):
        law.check(law.Calibration(constants=(shaping,) * 3))


# -- experiments, batches, sessions ------------------------------------------------------------------------


@cache
def tiny() -> Outcome:
    """The edge experiment with the tiny model at 200 and 600 tokens, nothing resident."""
    settings = (
        "model=tiny",
        "workload.kv_lengths_tokens=[200, 600]",
        "policies.resv.recent_bytes=0",
    )
    experiment, _ = load_experiment(str(paper_experiment("fig13_edge")), settings)
    result, points = run_with_points(experiment, Progress(quiet=True), 1)
    return Outcome(experiment, result, {(p.row.label, p.work.kind, p.row.kv_len_tokens): p for p in points})


@pytest.mark.parametrize("name", sorted(path.stem for path in paper_experiment("x").parent.glob("*.yaml")))
def test_every_experiment_of_the_paper_loads(name: str) -> None:
    experiment, _ = load_experiment(str(paper_experiment(name)))
    assert experiment.name == name
    assert experiment.model.name == "llama3_8b"


@pytest.mark.parametrize("label", [AGX, OURS])
def test_a_batch_of_one_is_the_traced_step(label: str) -> None:
    point = tiny().points[label, "frame", 600]
    again = tiny().simulate(label, batched_work(tiny().experiment.model, [point.work], 1))
    assert again.timeline == point.timeline
    assert (again.row.trace_kind, point.row.trace_kind) == ("statistics", "trace")


@pytest.mark.parametrize("label", [AGX, OURS])
def test_a_batch_repeats_what_is_a_streams_own_and_shares_the_weights(label: str) -> None:
    one = tiny().points[label, "frame", 600].work
    four = batched_work(tiny().experiment.model, [one], 4)
    for a, b in zip(one.layers, four.layers, strict=True):
        assert a.fetch is not None
        assert b.fetch is not None
        assert b.fetch.link_bytes == 4 * a.fetch.link_bytes
        assert b.attention.macs == 4 * a.attention.macs
        assert [g.weight_bytes for g in b.gemms] == [g.weight_bytes for g in a.gemms]
        assert sum(g.macs for g in b.gemms) == 4 * sum(g.macs for g in a.gemms)
        if a.prediction is not None and b.prediction is not None and a.prediction.dre and b.prediction.dre:
            assert b.prediction.score_macs == 4 * a.prediction.score_macs
            mine, together = (cast(Any, one.hash_gemm) for one in (a.prediction, b.prediction))
            assert together == replace(mine, m=4 * mine.m)
            assert b.prediction.dre.wtu_cycles == 4 * a.prediction.dre.wtu_cycles
    assert four.batch == 4


def test_a_batch_of_unlike_streams_takes_them_in_turn() -> None:
    model = tiny().experiment.model
    near, far = (tiny().points[OURS, "frame", length].work for length in (200, 600))
    three = batched_work(model, [near, far], 3)
    for a, b, both in zip(near.layers, far.layers, three.layers, strict=True):
        assert a.fetch is not None
        assert b.fetch is not None
        assert both.fetch is not None
        assert both.fetch.link_bytes == 2 * a.fetch.link_bytes + b.fetch.link_bytes
        tokens = [work.attention.cached_tokens.sum() for work in (a, b, both)]
        assert tokens[2] == 2 * tokens[0] + tokens[1]
        if a.prediction is not None and b.prediction is not None and both.prediction is not None:
            assert both.prediction.score_macs == 2 * a.prediction.score_macs + b.prediction.score_macs
            assert a.prediction.clusters < both.prediction.clusters < b.prediction.clusters


def test_streams_share_the_capacity_of_the_device() -> None:
    experiment, _ = load_experiment(str(paper_experiment("fig13_edge")))
    whole = experiment.policies["resv"].recent_bytes
    fourth = with_share(experiment, OURS, "frame", 4)
    assert fourth.workload.kind == "probes"
    assert fourth.workload.stages == ("frame",)
    assert fourth.policies["resv"].recent_bytes == (whole or 0) // 4
    assert [run.label for run in fourth.runs] == [fourth.baseline.label] == [OURS]
    assert experiment.policies["resv"].recent_bytes == whole


def test_a_batch_keeps_what_a_policy_adds_to_the_vectors_and_its_way_to_choose() -> None:
    for label in ("agx_orin_eager+oaken", "agx_orin_eager+rekv_vrex"):
        one = tiny().points[label, "frame", 600].work
        four = batched_work(tiny().experiment.model, [one], 4)
        for a, b in zip(one.layers, four.layers, strict=True):
            assert b.vector_elements == 4 * a.vector_elements
            assert (b.prediction and b.prediction.cut) == (a.prediction and a.prediction.cut)


def test_rows_of_several_streams_are_means_and_their_rates_those_of_the_means() -> None:
    one = sample_row("vrex8", "resv", 1000, "frame")
    one = replace(one, latency_s=0.1, energy_j=2.0, fps=10.0, link_bytes=10, retrieval_ratio=0.2, speedup=3.0, seed=0)
    two = replace(one, latency_s=0.3, energy_j=4.0, fps=1 / 0.3, link_bytes=13, retrieval_ratio=0.4, seed=1)
    mean = mean_row([one, two])
    assert (mean.latency_s, mean.energy_j, mean.retrieval_ratio) == pytest.approx((0.2, 3.0, 0.3))
    assert (mean.fps, mean.power_w) == pytest.approx((5.0, 15.0))
    assert (mean.link_bytes, mean.seed, mean.label, mean.kv_len_tokens) == (12, 0, "vrex8+resv", 1000)
    assert mean_row([one]) == one
    half_known = mean_row([one, replace(two, retrieval_ratio=None)])
    assert half_known.retrieval_ratio == one.retrieval_ratio


def test_other_streams_are_runs_of_resv_with_other_seeds() -> None:
    experiment, _ = load_experiment(str(paper_experiment("fig13_edge")))
    others = other_streams(experiment)
    assert [e.trace.seed for e in others] == [1, 2, 3]
    assert {run.label for e in others for run in e.runs} == {"agx_orin_eager+resv", "vrex8+resv"}
    assert other_streams(load_experiment(str(paper_experiment("table2")))[0]) == []
    assert other_streams(load_experiment(str(paper_experiment("fig4")))[0]) == []


def test_an_outcome_holds_means_over_streams_and_gains_of_the_means(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = tiny()
    monkeypatch.setattr("resv_sim.reproduce.study.load_experiment", lambda path: (outcome.experiment, None))
    found = Study(Progress(quiet=True), 1).outcome("fig13_edge")
    key = (OURS, "decode", 600)
    assert len(found.streams[key]) == 4
    assert len(found.streams[AGX, "decode", 600]) == 1
    latency = np.mean([p.row.latency_s for p in found.streams[key]])
    assert found.points[key].row.latency_s == pytest.approx(latency)
    assert found.points[key].row.speedup == pytest.approx(found.row(AGX, "decode", 600).latency_s / latency)
    of_streams = [p.row.latency_s for p in found.streams[key]]
    assert found.range_s(*key) == (min(of_streams), max(of_streams))
    assert found.points[key].timeline == outcome.points[key].timeline
    assert [r for r in found.result.rows if (r.label, r.stage, r.kv_len_tokens) == key] == [found.points[key].row]


def test_steps_of_a_batch_are_of_the_run_the_stage_and_the_size_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = tiny()
    monkeypatch.setattr("resv_sim.reproduce.study.load_experiment", lambda path: (outcome.experiment, None))
    monkeypatch.setattr(Study, "_averaged", lambda self, _: replace(outcome, streams=streams))
    streams = {key: (point,) for key, point in outcome.points.items()}
    study = Study(Progress(quiet=True), 1)
    for _ in range(2):
        for label in (AGX, OURS):
            for stage, batch in (("frame", 4), ("decode", 4), ("frame", 8)):
                found = study.batched("fig13_edge", label, cast(Any, stage), batch)
                rows = [(p.row.label, p.row.stage, p.row.batch, p.row.kv_len_tokens) for p in found]
                assert rows == [(label, stage, batch, length) for length in (200, 600)]
    gains = study.batched_gains("fig13_edge", (AGX, OURS), "frame", 4)
    base, ours = gains[:2], gains[2:]
    assert [p.row.speedup for p in base] == [1.0, 1.0]
    assert [p.row.speedup for p in ours] == [b.row.latency_s / o.row.latency_s for b, o in zip(base, ours, strict=True)]


def test_each_reading_of_a_baseline_has_its_own_speed_and_energy() -> None:
    bases = (AGX, "agx_orin_paper+full", "agx_orin+full")
    rows = list(baselines._rows(tiny(), OURS, bases))
    assert len(rows) == 2 * len(tiny().lengths)
    assert all(len(row) == 3 + 2 * len(bases) for row in rows)
    eager, table, measured = (baselines.gain(tiny(), OURS, base, "frame", 600) for base in bases)
    assert measured[0] < table[0] <= eager[0]
    assert table[1] / table[0] > measured[1] / measured[0]


def test_a_changed_host_is_the_platform_with_those_fields_and_no_change_is_the_row_itself() -> None:
    settings = ("workload.kv_lengths_tokens=[600]", "model.n_layers=4")
    experiment, _ = load_experiment(str(paper_experiment("fig13_server")), settings)
    runs = tuple(run for run in experiment.runs if run.label in (baselines.A100, baselines.SERVER))
    experiment = experiment.model_copy(update={"runs": runs})
    result, points = run_with_points(experiment, Progress(quiet=True), 1)
    server = Outcome(experiment, result, {(p.row.label, p.work.kind, p.row.kv_len_tokens): p for p in points})
    as_it_is = baselines._changed(server, 600)
    for stage in baselines.STAGES:
        latency_ms = 1e3 * server.row(baselines.A100, stage, 600).latency_s
        assert f"{stage} {latency_ms:.1f} ms" in as_it_is
    assert as_it_is in baselines._with_pinned_memory(server)
    assert baselines._changed(server, 600, pageable=False) not in (as_it_is, "")


@cache
def with_encoder() -> Outcome:
    """Two layers of Llama-3-8B behind its encoder, at 200 tokens, nothing resident."""
    settings = ("workload.kv_lengths_tokens=[200]", "model.n_layers=2", "policies.resv.recent_bytes=0")
    experiment, _ = load_experiment(str(paper_experiment("fig13_edge")), settings)
    runs = tuple(run for run in experiment.runs if run.label in (AGX, OURS))
    experiment = experiment.model_copy(update={"runs": runs})
    result, points = run_with_points(experiment, Progress(quiet=True), 1)
    return Outcome(experiment, result, {(p.row.label, p.work.kind, p.row.kv_len_tokens): p for p in points})


def test_the_roofline_is_the_decoders() -> None:
    """Operations, bytes and time of the encoder are left out; no machine is above its own roofline."""
    outcome = with_encoder()
    for label in (AGX, OURS):
        point = outcome.points[label, "frame", 200]
        part = machine.decoder_part(point)
        seeing = 2 * sum(g.macs for g in point.work.vision)
        assert part.operations == machine.operations(point) - seeing > 0
        without = outcome.simulate(label, replace(point.work, vision=(), vision_vector_elements=0))
        assert part.operations == machine.operations(without)
        assert part.dram_bytes == without.row.dram_bytes
        assert part.seconds == pytest.approx(without.row.latency_s, rel=0.02)
        roof = min(15.2 * 204.8e9, 53.25e12)  # Fig. 18's intensity, Table I's rates: the memory's, for both machines
        share = machine.attainable_share(machine._table_i(outcome, label), part)
        assert share == pytest.approx(part.operations / part.seconds / roof, rel=1e-3)


def test_a_session_is_frames_a_question_and_an_answer() -> None:
    seconds = {"frame": 2.0, "question": 5.0, "decode": 1.0}
    outcome = SimpleNamespace(row=lambda label, stage, length: SimpleNamespace(latency_s=seconds[stage]))
    assert session_s(cast(Outcome, outcome), OURS, 1000) == 26 * 2 + 5 + 39


def test_it_is_said_why_rekv_is_slower_where_it_is() -> None:
    rows = {
        (label, length): SimpleNamespace(latency_s=latency, prediction_s=0.05, exposed_fetch_s=latency / 10)
        for label, latencies in ((AGX, (0.2, 0.5)), (speed.ON_AGX["ReKV"], (0.3, 0.4)))
        for length, latency in zip((1000, 10_000), latencies, strict=True)
    }
    points = dict.fromkeys((label, "frame", length) for label, length in rows)
    edge = SimpleNamespace(lengths=[1000, 10_000], points=points, row=lambda label, stage, length: rows[label, length])
    said = list(speed._against_flexgen(cast(Outcome, edge)))
    assert said == [
        "AGX + ReKV at 1K predicts for 50 ms a frame and waits 30 ms for its fetch, AGX + FlexGen 20 ms.",
    ]
    assert list(speed._sessions_in_seconds(tiny())) == []


def test_prefill_is_frames_and_a_question_without_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ("workload.kv_lengths_tokens=[200,600]", "model.n_layers=4")
    experiment, _ = load_experiment(str(paper_experiment("fig4")), settings)
    result, points = run_with_points(experiment, Progress(quiet=True), 1)
    outcome = Outcome(experiment, result, {(p.row.label, p.work.kind, p.row.kv_len_tokens): p for p in points})
    monkeypatch.setattr(tables, "SESSION_LENGTH", 600)
    monkeypatch.setattr(tables, "SPECULATING_LENGTH", 200)
    shares = tables._retrieval_shares(outcome)
    frame, question, decode = (outcome.points["a100_eager+infinigen", s, 600] for s in ("frame", "question", "decode"))
    prefill = 26 * (frame.row.latency_s - vision_s(frame)) + question.row.latency_s
    assert shares["prefill_share"] == pytest.approx(
        prefill / (prefill + 26 * vision_s(frame) + 39 * decode.row.latency_s)
    )
    fetched = 26 * frame.row.exposed_fetch_s + question.row.exposed_fetch_s
    assert shares["retrieval_share_80k"] == pytest.approx(fetched / prefill)
    near = outcome.points["a100_eager+quarter", "frame", 200]
    near_s = near.row.latency_s - vision_s(near)
    assert shares["fetch_share"] == pytest.approx(near.row.exposed_fetch_s / near_s)
    assert shares["prediction_share"] == pytest.approx(near.row.prediction_s / near_s)
    assert shares["llm_share"] == pytest.approx(1 - (near.row.exposed_fetch_s + near.row.prediction_s) / near_s)
    predicted = [layer.prediction for layer in near.work.layers if layer.prediction]
    flops = [2 * p.score_macs + (p.query_gemm.flops if p.query_gemm else 0) for p in predicted]
    assert len(flops) > 1
    assert shares["ops_share"] == pytest.approx(sum(flops) / near.timeline.actions["gpu_flops"])


def test_an_exposed_share_is_of_all_streams_time() -> None:
    def stream(fetch_ps: int, end_ps: int) -> Any:
        spans = (Span("gpu", 0, end_ps - fetch_ps, "linear", 0), Span("link", 0, end_ps, "fetch", 0))
        return SimpleNamespace(timeline=Timeline("t", spans, {}, end_ps))

    assert exposed_share([stream(25, 100)], "fetch") == 0.25
    assert exposed_share([stream(25, 100), stream(0, 400)], "fetch") == 0.05
    assert exposed_share([stream(25, 100)], "prediction") == 0.0


def test_without_clustering_every_key_is_fetched_and_values_are_chosen() -> None:
    chosen_rows = FetchWork(np.array([4096, 8192, 4096, 8192]), useful_bytes=1024, n_tokens=2)
    found = with_all_keys(chosen_rows, np.array([10_000, 4096]), KvmuConfig(sector_bytes=4096))
    assert found.extent_bytes.tolist() == [12_288, 4096, 4096, 8192]
    assert found.useful_bytes == 512 + 14_096
    assert found.n_tokens == 2


def test_figure_14_compares_sessions_at_every_length() -> None:
    class Stub:
        def outcome(self, name: str) -> Outcome:
            return tiny()

    findings = fig14(cast(Study, Stub()))
    speedups = cast(dict[int, float], findings.statistics["end_to_end_speedup"])
    assert list(speedups) == [200, 600]
    assert speedups[600] == pytest.approx(session_s(tiny(), AGX, 600) / session_s(tiny(), OURS, 600))
    assert [s.verdict for s in findings.statements] == ["holds", "holds"]
    assert set(findings.panels[0].series) == {"V-Rex8", *(f"AGX Orin + {n}" for n in ("ReSV", *RIVALS))}


def test_figure_4_fills_the_memory_with_forty_tokens_a_tenth_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("prediction_share", "fetch_share", "llm_share", "prefill_share", "retrieval_share_80k")
    monkeypatch.setattr(tables, "_retrieval_shares", lambda _: dict.fromkeys(names, 0.5))
    findings = tables.fig4(cast(Study, SimpleNamespace(outcome=lambda name: None)))
    curve = cast(dict[int, float], findings.panels[0].series["ours"])
    a_minute = 600 * 10 * 4 * 131_072 / 1e9  # frames, tokens a frame, streams; 128 KiB a token of Llama-3-8B
    assert curve[60] - curve[0] == pytest.approx(60 * a_minute)
    assert curve[0] == pytest.approx(2 * (8.03 - 0.525 + 0.32), rel=0.005)  # without the token embedding, with SigLIP
    full, edge = findings.statements
    assert (full.verdict, edge.verdict) == ("holds", "holds")
    assert full.detail == f"after {(100 - curve[0]) / a_minute:.1f} min at 3.15 GB a minute"
    assert edge.detail == f"32 GB after {(32 - curve[0]) / a_minute:.1f} min"


@cache
def tiny_server() -> Outcome:
    """The server experiment with the tiny model at 200 and 600 tokens, nothing resident."""
    settings = ("model=tiny", "workload.kv_lengths_tokens=[200, 600]", "policies.resv.recent_bytes=0")
    experiment, _ = load_experiment(str(paper_experiment("fig13_server")), settings)
    result, points = run_with_points(experiment, Progress(quiet=True), 1)
    return Outcome(experiment, result, {(p.row.label, p.work.kind, p.row.kv_len_tokens): p for p in points})


def test_figure_13_compares_traced_rows_and_batches_and_counts_operations_for_a_joule() -> None:
    streams = [replace(o, streams={key: [p] for key, p in o.points.items()}) for o in (tiny(), tiny_server())]
    outcomes = dict(zip(("fig13_edge", "fig13_server"), streams, strict=True))
    asked: list[tuple[Any, ...]] = []

    def batched_gains(name: str, labels: tuple[str, ...], stage: Any, batch: int) -> list[Any]:
        asked.append((name, labels, stage, batch))
        points = [outcomes[name].points[label, stage, length] for label in labels for length in (200, 600)]
        return [replace(point, row=replace(point.row, batch=batch)) for point in points]

    study = SimpleNamespace(outcome=outcomes.__getitem__, batched_gains=batched_gains)
    findings = speed.fig13(cast(Study, study))
    pairs = ((AGX, OURS), (speed.A100, speed.SERVER))
    assert asked == [(name, of, "frame", n) for name, of, n in zip(outcomes, pairs, (4, 8), strict=True)]
    for outcome, group, batch, of in zip(streams, findings.groups, (4, 8), pairs, strict=True):
        assert group.baseline == tuple(of[0].split("+"))
        assert [r.label for r in group.rows if r.batch == batch] == [of[0]] * 2 + [of[1]] * 2
        alone = [row for row in group.rows if row.batch == 1]
        assert alone == [r for r in outcome.result.rows if r.platform not in speed.OTHER_READINGS]
    points = {n: tiny_server().points[speed.SERVER, "frame", n] for n in (200, 600)}
    per_joule = {n: 2 * p.timeline.actions["dpe_macs"] / p.row.energy_j / 1e12 for n, p in points.items()}
    assert findings.statistics["vrex48_tops_per_w"] == pytest.approx(per_joule)
    panels = {panel.title: cast(Any, panel.series) for panel in findings.panels}
    assert panels["V-Rex8, decode"] == {label: tiny().latency_s(label, "decode") for label in (AGX, OURS)}
    assert panels["energy gain, server"]["frame"] == {n: p.row.energy_gain for n, p in points.items()}


def test_figure_15_counts_the_frames_of_16_streams_and_says_where_memory_ends() -> None:
    edge = tiny()

    def batched(name: str, label: str, stage: str, batch: int) -> list[Any]:
        assert (name, stage, batch) == ("fig13_edge", "frame", 16)
        return [edge.points[label, "frame", length] for length in edge.lengths]

    findings = speed.fig15(cast(Study, SimpleNamespace(outcome=lambda name: edge, batched=batched)))
    ours, oaken = (edge.latency_s(label, "frame") for label in (OURS, speed.OAKEN))
    agx = cast(dict[int, float], findings.panels[0].series["AGX Orin, no offloading"])
    assert findings.statistics["fps_at_long_lengths"] == pytest.approx(16 / ours[600])
    assert findings.statistics["throughput_over_oaken"] == pytest.approx(oaken[200] / ours[200])
    assert findings.statistics["throughput_over_agx"] == pytest.approx(16 / ours[200] / agx[200])
    assert list(agx) == [200, 600]
    limits = [(20_000, 40_000, 20_000), (10_000, 40_000, 20_000), (40_000, 40_000, None), (10_000, 20_000, None)]
    verdicts = [speed._runs_out("t", longest, other, expected).verdict for longest, other, expected in limits]
    assert verdicts == ["holds", "does not hold", "does not hold", "holds"]


@cache
def ablated(name: str) -> Outcome:
    """An experiment of the ablations with 16 tiny layers at 600 tokens, nothing resident."""
    settings = ("model=tiny", "model.n_layers=16", "workload={kind: probes, kv_lengths_tokens: [600], stages: [frame]}")
    experiment, _ = load_experiment(str(paper_experiment(name)), (*settings, "policies.resv.recent_bytes=0"))
    result, points = run_with_points(experiment, Progress(quiet=True), 1)
    keyed = {(p.row.label, p.work.kind, p.row.kv_len_tokens): p for p in points}
    return Outcome(experiment, result, keyed, {key: (point,) for key, point in keyed.items()})


def ablating(name: str, memo: Memo) -> Study:
    return cast(Study, SimpleNamespace(outcome=lambda _: ablated(name), memo=memo))


def test_figure_16_gives_each_step_its_own_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation, "LENGTH", 600)
    findings = ablation.fig16(ablating("fig16", Memo(None)))
    gains, shares = (panel.series for panel in findings.panels)
    for name, label in ablation.STEPS.items():
        point, base = (ablated("fig16").points[of, "frame", 600] for of in (label, AGX))
        assert cast(Any, gains["speedup"])[name] == pytest.approx(base.row.latency_s / point.row.latency_s)
        assert cast(Any, gains["energy gain"])[name] == pytest.approx(base.row.energy_j / point.row.energy_j)
        hidden_by_nothing = exposed_ps(point.timeline).get("prediction", 0) / point.timeline.end_ps
        assert cast(Any, shares["prediction"])[name] == pytest.approx(hidden_by_nothing)
    agx, without = (cast(Any, shares["prediction"])[name] for name in ("AGX + ReSV", "V-Rex8 without KVMU"))
    stated = [findings.statistics[f"prediction_share_{of}"] for of in ("agx", "kvpu")]
    assert stated == [agx, without]
    assert agx > without > 0


def test_figure_19_fetches_every_key_and_the_chosen_values_in_the_layers_it_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation, "LENGTH", 600)
    study, outcome = ablating("fig19", Memo(tmp_path, 10**9)), ablated("fig19")
    ran: list[Any] = []
    run_layer = ablation.run_layer
    monkeypatch.setattr(ablation, "run_layer", lambda policy, *of: (ran.append(policy), run_layer(policy, *of))[1])
    ratio, resident, fetches = ablation.unclustered(study, outcome.experiment)
    keys, value_bytes = 600 * 2 * 16 * 2, 16 * 2  # tokens, KV heads, head dim, bytes
    assert [f.useful_bytes for f in fetches] == [keys + f.n_tokens * value_bytes for f in fetches]
    assert len(fetches) == 8
    assert ratio == pytest.approx(sum(f.n_tokens for f in fetches) / (8 * 2 * 600))
    assert resident == 0
    again = ablation.unclustered(study, outcome.experiment)
    assert [(policy.hash_bits, policy.hamming_threshold) for policy in ran] == [(64, 1)] * 8  # and from the memo
    assert again[:2] == (ratio, resident)
    assert [f.extent_bytes.tolist() for f in again[2]] == [f.extent_bytes.tolist() for f in fetches]

    simulated: list[StepWork] = []
    simulate = Outcome.simulate
    monkeypatch.setattr(
        Outcome, "simulate", lambda self, of, work: (simulated.append(work), simulate(self, of, work))[1]
    )
    findings = ablation.fig19(study)
    tokens = [layer.fetch and layer.fetch.n_tokens for layer in simulated[0].layers]
    assert tokens == [n for fetch in fetches for n in (fetch.n_tokens, fetch.n_tokens)]  # one for two layers
    full, resv = (outcome.row(f"vrex8+{policy}", "frame", 600).latency_s for policy in ("full", "resv"))
    alone = simulate(outcome, OURS, simulated[0]).row.latency_s
    speedups = [findings.statistics[f"speedup_{of}_clustering"] for of in ("without", "with")]
    assert speedups == pytest.approx([full / alone, full / resv])


def test_figure_17_divides_the_decoders_time_among_layers_and_its_bytes_by_what_could_move() -> None:
    spans = (
        Span("lxe", 0, 50_000_000, "vision", -1),
        Span("lxe", 100_000_000, 200_000_000, "linear", 0),
        Span("lxe", 250_000_000, 500_000_000, "linear", 1),
        Span("dram", 0, 500_000_000, "linear", 0, 7_000_000),
        Span("dram", 100_000_000, 150_000_000, "prediction", 0, 1_000_000),
        Span("dram", 250_000_000, 350_000_000, "prediction", 1, 4_000_000),
        Span("dram", 300_000_000, 400_000_000, "fetch", 1, 5_000_000),
        Span("dram", 450_000_000, 500_000_000, "fetch", 2, 3_000_000),
    )
    memory = SimpleNamespace(memory=SimpleNamespace(peak_bytes_per_s=200e9))
    model = SimpleNamespace(n_layers=2)
    outcome = SimpleNamespace(
        points={(speed.SERVER, "frame", 10_000): SimpleNamespace(timeline=Timeline("t", spans, {}, 500_000_000))},
        experiment=SimpleNamespace(model=model, platforms={"vrex48": memory}),
    )
    findings = machine.fig17(cast(Study, SimpleNamespace(outcome=lambda name: outcome)))
    assert findings.statistics["layer_time_us"] == pytest.approx(400 / 2)
    assert findings.statistics["prediction_peak_gb_per_s"] == pytest.approx(40)  # 4 MB in 100 us
    assert findings.statistics["retrieval_bandwidth_share"] == pytest.approx(8e6 / (200e9 * 400e-6))
    drawn = cast(dict[str, dict[int, float]], findings.panels[0].series)  # of layer 1, from 250 us on
    assert drawn["fetch"] == pytest.approx({0: 0, 50: 50, 100: 50, 150: 0, 200: 60, 250: 0})
    assert drawn["prediction"] == pytest.approx({0: 40, 50: 40, 100: 0, 150: 0, 200: 0, 250: 0})


def session_outcome(ratios: dict[str, tuple[float, float, float]]) -> Outcome:
    """An average COIN session: policy -> retrieval ratio of a frame, the question, an answer token."""
    rows = tuple(
        replace(sample_row("vrex8", policy, 300, stage), retrieval_ratio=ratio)
        for policy, of in ratios.items()
        for stage, ratio in zip(("frame", "question", "decode"), of, strict=True)
    )
    by_layer = {
        RatioKey(policy, 300, stage): np.full((2, 4), scale) * [[1], [3]]
        for policy, stage, scale in (("rekv_vrex", "frame", 0.3), ("resv", "decode", 0.2), ("resv", "frame", 0.1))
    }
    result = SimpleNamespace(rows=rows, ratios=by_layer, trace_statistics={"layer_ratio_max": 0.3})
    experiment, _ = load_experiment(str(paper_experiment("table2")))
    return cast(Outcome, SimpleNamespace(result=result, experiment=experiment, baseline=("a", "b")))


def test_the_ratio_of_a_session_counts_each_of_its_steps_once() -> None:
    session = session_outcome({"resv": (0.3, 0.9, 0.03), "rekv_vrex": (0.6, 0.5, 0.3)})
    assert retrieval.session_ratio(session, "resv") == pytest.approx((26 * 0.3 + 0.9 + 39 * 0.03) / 66)
    assert retrieval.session_ratio(session, "rekv_vrex") == pytest.approx((26 * 0.6 + 0.5 + 39 * 0.3) / 66)
    outcomes = {"table2": session, "fig13_edge": session_outcome({"oaken": (1.0, 1.0, 1.0)})}
    findings = retrieval.fig20(cast(Study, SimpleNamespace(outcome=outcomes.__getitem__)))
    assert findings.statistics["rekv_over_resv_tokens"] == pytest.approx(27.8 / 9.87)
    assert findings.statistics["layer_ratio_max"] == 0.3
    assert cast(Any, findings.panels[0].series["ReSV"]) == pytest.approx({0: 0.1, 1: 0.3})
    assert [group.rows for group in findings.groups] == [outcome.result.rows for outcome in outcomes.values()]


@pytest.mark.parametrize(("resv", "fewest"), [((0.3, 0.02), "holds"), ((0.3, 0.06), "does not hold")])
def test_table_ii_asks_for_the_fewest_tokens_in_both_stages(resv: tuple[float, float], fewest: str) -> None:
    rivals = {"infinigenp": (0.4, 0.4, 0.1), "rekv_vrex": (0.5, 0.5, 0.3), "infinigen": (1.0, 1.0, 0.05)}
    session = session_outcome({**rivals, "resv": (resv[0], 0.0, resv[1])})
    findings = retrieval.table2(cast(Study, SimpleNamespace(outcome=lambda name: session)))
    assert [s.verdict for s in findings.statements] == [fewest, "holds"]
    assert findings.statements[0].detail.startswith("frame: 30.0 % and 40.0 %; decode: ")
    series = cast(Any, findings.panels[0].series)
    assert series["frame"] == {"InfiniGen": 1.0, "InfiniGenP": 0.4, "ReKV": 0.5, "ReSV": 0.3}
    assert series["text"]["ReSV"] == resv[1]


# -- uncertainty ------------------------------------------------------------------------------------------


def few_samples(seed: int = 0, samples_log2: int = 2) -> unsure.Uncertainty:
    return unsure.load_ranges().model_copy(update={"seed": seed, "samples_log2": samples_log2})


def test_the_same_seed_draws_the_same_samples_inside_the_ranges() -> None:
    drawn = list(unsure.samples(few_samples()))
    assert drawn == list(unsure.samples(few_samples()))
    assert drawn != list(unsure.samples(few_samples(seed=1)))
    assert len(drawn) == 4
    assert all(0 <= q <= 1 for sample in drawn for q in sample.values())


def test_bands_repeat_by_seed_and_hold_every_unknown() -> None:
    known = few_samples()
    known = known.model_copy(update={"parameters": known.parameters[:2], "prices": ("dram_read_bytes", "soc_idle")})
    bands = unsure.headline_bands(tiny(), known)
    assert bands == unsure.headline_bands(tiny(), known)
    assert [band.name for band in bands][:3] == ["speedup at 200", "speedup at 600", "energy gain at 200"]
    for band in bands:
        assert list(band.quantiles) == sorted(band.quantiles)
        assert [bar.name for bar in band.bars] == known.names
    rows = [[tiny().row(label, "frame", length) for label in (AGX, OURS)] for length in (200, 600)]
    assert [band.default for band in bands] == pytest.approx(
        [agx.latency_s / ours.latency_s for agx, ours in rows]
        + [agx.energy_j / ours.energy_j for agx, ours in rows]
        + [1 / ours.latency_s for _, ours in rows]
    )
    gain = next(b for b in bands if b.name == "energy gain at 600")
    idle = gain.bars[-1]
    assert idle.name == "soc_idle"
    assert 1.05 < idle.high / idle.low < 15 / 4  # 4 to 15 W, a part of the baseline's power


def test_moving_nothing_changes_nothing_and_an_end_is_the_end_of_the_range() -> None:
    known, experiment = few_samples(), tiny().experiment
    assert unsure.moved(experiment, known, {}) == experiment
    fast = unsure.moved(experiment, known, {known.parameters[0].name: 1.0})
    assert fast.platforms["agx_orin_eager"].dram_bytes_per_s == 204.8e9
    cheap = unsure.moved(experiment, known, {"dram_read_bytes": 0.0})
    assert cheap.energy["vrex8"].actions["dram_read_bytes"].cost_pj == pytest.approx(40.0)


def test_encoder_passes_are_whole_and_move_the_frame() -> None:
    known, outcome = few_samples(), with_encoder()
    passes = known.parameters[-1]
    assert passes.targets == ("model.vision.images_per_frame",)

    def moved(quantile: float) -> Any:
        return unsure.moved(outcome.experiment, known, {passes.name: quantile})

    counts = [moved(q).model.vision.images_per_frame for q in (0.0, 0.4, 0.7, 1.0)]
    assert counts == [1, 2, 3, 4]
    default = unsure._headlines(outcome, outcome.experiment)
    assert unsure._headlines(outcome, moved(0.7)) == default
    fewer, more = (unsure._headlines(outcome, moved(q)) for q in (0.0, 1.0))
    assert fewer[-1] > default[-1] > more[-1]  # frames per second


def test_a_path_that_leads_nowhere_is_named() -> None:
    with pytest.raises(ValueError, match="nothing lies at 'nowhere'"):
        unsure.with_value(tiny().experiment.platforms["vrex8"], ["memory", "nowhere", "x"], 1.0)


def test_every_range_is_one_and_every_price_has_a_range_somewhere() -> None:
    known = unsure.load_ranges()
    tables = tiny().experiment.energy.values()
    for row in known.prices:
        assert any(row in unsure.ranges(table) for table in tables), row
    assert all(np.isfinite(p.at(0.5)) for p in known.parameters)


def test_tornado_and_comparison_are_drawn(tmp_path: Path) -> None:
    from resv_sim.reproduce.items import Bar, Tornado

    tornado = Tornado("speedup", "x", 7.0, (Bar("a", 6.0, 8.0), Bar("b", 7.1, 6.9)))
    two = tuple(Item("f", name, "x", 1.0, 2.0, -0.5, "prediction") for name in "ab")
    done = Reproduction("f", Figure("t", (), lambda _: Findings()), two, Findings(tornados=(tornado,)), ())
    assert [bar.span for bar in tornado.bars] == pytest.approx([2.0, 0.2])
    assert write_figures([done], tmp_path) == {"f": ["f", "f_errors"]}
    assert (tmp_path / "f_errors.svg").exists()


def test_every_fact_that_a_panel_marks_is_published() -> None:
    known = {f.item for f in published_facts().facts}
    shares = (ablation.SHARES, ablation.CLUSTERING, machine.SHARES, tables.SESSION_SHARES, tables.FIG4_SHARES)
    shares += (retrieval._marks("frame"), retrieval._marks("text"))
    marked = [*ablation.PUBLISHED.values(), *shares]
    assert {item for marks in marked for item in marks.values()} <= known


def test_no_two_facts_of_a_figure_share_a_name_and_no_panel_could_mark_the_wrong_one() -> None:
    names = [(f.figure, f.item, f.where.platform) for f in published_facts().facts]
    assert len(names) == len(set(names))


def test_an_ordering_is_open_without_the_policy_and_names_where_it_breaks() -> None:
    def verdict(policy: str, broken_at: int) -> tuple[str, str]:
        found = ordering("t", tiny(), (policy,), [200, 600], lambda _, length: length != broken_at)
        return found.verdict, found.detail

    assert verdict("nobody", 0) == ("open", "no policy nobody is built")
    assert verdict("resv", 0) == ("holds", "")
    assert verdict("resv", 600)[0] == "does not hold"
    assert "resv at" in verdict("resv", 600)[1]


def test_a_chain_holds_only_where_every_value_is_above_the_one_before() -> None:
    assert chain("t", {"a": 1.0, "b": 2.0, "c": 3.0}).verdict == "holds"
    broken = chain("t", {"a": 1.0, "b": 2.0, "c": 2.0})
    assert (broken.verdict, broken.detail) == ("does not hold", "a 1, b 2, c 2")


def test_every_published_ordering_of_frame_steps_has_a_verdict() -> None:
    found = frame_orderings(tiny(), AGX, OURS)
    assert {s.verdict for s in found} <= {"holds", "does not hold"}
    slower = next(s for s in found if "InfiniGen is" in s.text)
    assert slower.verdict == "holds"  # its frame steps are FlexGen's and keep partial keys for the answer
