"""The whole pipeline on a tiny model: same result at any number of workers, memo or not; conservation; sessions."""

import math
from collections.abc import Sequence
from dataclasses import astuple, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from dre_sim.dre import DisagreementError
from dre_sim.timeline import Span, Timeline
from dre_sim.workload import DreJob, FetchWork
from energy_models.pricing import ActionLine, Bill, StaticLine
from resv.selection import ClusterTable, Counts, Fidelity, LayerSelection, Selection
from resv.trace import Step
from resv_sim import hardware, pipeline, reporting, rows
from resv_sim.config import Experiment, load_experiment
from resv_sim.progress import Progress
from resv_sim.report import summary_markdown
from resv_sim.results import ExperimentResult
from resv_sim.writing import csv_text, result_data
from tests.sample_results import sample_row


def run(settings: Sequence[str] = (), jobs: int = 1, *, use_cache: bool = False) -> ExperimentResult:
    return pipeline.run(experiment(settings), Progress(quiet=True), jobs, use_cache=use_cache)


def experiment(settings: Sequence[str] = ()) -> Experiment:
    return load_experiment("quick.yaml", settings)[0]


@pytest.fixture(scope="module")
def result() -> ExperimentResult:
    return run()


def test_every_run_has_a_row_per_length_and_stage_with_finite_gains(result: ExperimentResult) -> None:
    assert len(result.rows) == 3 * 2 * 2
    base = [r for r in result.rows if r.label == "agx_orin+full"]
    assert all(r.speedup == 1.0 and r.energy_gain == 1.0 for r in base)
    assert all(r.latency_s > 0 and r.energy_j > 0 for r in result.rows)
    assert all(r.power_w * r.latency_s == pytest.approx(r.energy_j) for r in result.rows)


def test_parts_of_latency_and_energy_add_up_to_the_row(result: ExperimentResult) -> None:
    for row in result.rows:
        key = (row.platform, row.policy, row.kv_len_tokens, row.stage)
        parts = [b for b in result.breakdown if (b.platform, b.policy, b.kv_len_tokens, b.stage) == key]
        assert sum(b.exposed_s for b in parts) == pytest.approx(row.latency_s)
        assert sum(b.energy_j for b in parts) == pytest.approx(row.energy_j)
        split = (row.energy_compute_j, row.energy_dram_j, row.energy_link_j, row.energy_storage_j)
        assert sum(split) + row.energy_static_j == pytest.approx(row.energy_j)


def test_no_latency_is_below_its_bytes_over_the_bandwidth(result: ExperimentResult) -> None:
    assert all(row.latency_s >= row.bound_s for row in result.rows)


def test_full_streaming_moves_the_whole_cache_and_loses_nothing(result: ExperimentResult) -> None:
    model = experiment().model
    for row in result.rows:
        if row.policy == "full":
            assert row.fetched_bytes == row.kv_len_tokens * model.kv_bytes_per_token
            assert (row.retrieval_ratio, row.attention_mass_kept, row.output_rel_error) == (1.0, 1.0, 0.0)


def test_the_same_selection_is_timed_on_both_platforms(result: ExperimentResult) -> None:
    columns = ("retrieval_ratio", "fetched_tokens", "attention_mass_kept", "clusters")
    gpu = [[getattr(r, c) for c in columns] for r in result.rows if r.label == "agx_orin+resv"]
    vrex = [[getattr(r, c) for c in columns] for r in result.rows if r.label == "vrex8+resv"]
    assert gpu == vrex


def test_results_do_not_depend_on_workers_or_on_what_is_remembered(result: ExperimentResult) -> None:
    text = csv_text(result.rows)
    assert csv_text(run(jobs=3).rows) == text
    first, second = run(use_cache=True), run(use_cache=True)
    assert csv_text(first.rows) == csv_text(second.rows) == text
    assert first.trace_statistics == second.trace_statistics


def test_another_seed_is_another_result(result: ExperimentResult) -> None:
    assert csv_text(run(["trace.seed=1"]).rows) != csv_text(result.rows)


def test_ratio_one_selects_everything_and_equals_full_attention() -> None:
    rows = [r for r in run(["policies.resv.wicsum.ratio=1.0"]).rows if r.policy == "resv"]
    assert all(r.retrieval_ratio == 1.0 for r in rows)
    assert all(r.attention_mass_kept == pytest.approx(1.0, abs=1e-5) for r in rows)
    assert all(r.output_rel_error == pytest.approx(0.0, abs=1e-5) for r in rows)


def test_a_session_gives_one_row_per_stage_whose_power_is_its_energy_over_its_time() -> None:
    everyones = run(["workload={kind: session, frames: 20, question_tokens: 5, answer_tokens: 3}"]).rows
    rows = [r for r in everyones if r.label == "vrex8+resv"]
    assert [(r.stage, r.n_new_tokens) for r in rows] == [("frame", 10), ("question", 5), ("decode", 1)]
    assert rows[0].fps == pytest.approx(1 / rows[0].latency_s)
    assert rows[1].fps is None
    assert [r.power_w for r in everyones] == [pytest.approx(r.energy_j / r.latency_s, rel=1e-12) for r in everyones]


def test_a_stage_is_the_mean_of_its_steps_at_the_last_ones_cache_length() -> None:
    one = replace(sample_row("vrex8", "resv", 300, "frame"), latency_s=0.1, energy_j=2.0, fps=10.0, link_bytes=10)
    one = replace(one, retrieval_ratio=None, hcu_cycles=4, power_w=20.0)
    two = replace(one, kv_len_tokens=310, latency_s=0.4, energy_j=3.0, fps=2.5, link_bytes=16, retrieval_ratio=0.3)
    word = sample_row("vrex8", "resv", 320, "decode")
    parts: list[Any] = [({"fetch": 0.1}, {"dram": 2.0}), ({"linear": 0.4}, {"dram": 1.0, "link": 2.0}), ({}, {})]
    steps = [
        rows.Point(row, *both, timeline=Timeline(str(i), (), {}, 1), bill=cast(Any, None), work=cast(Any, None))
        for i, (row, both) in enumerate(zip((one, two, word), parts, strict=True))
    ]
    frame, decode = rows.stage_means(steps)
    got = frame.row
    assert (got.latency_s, got.energy_j, got.power_w) == pytest.approx((0.25, 2.5, 10.0))
    assert (got.fps, got.retrieval_ratio) == pytest.approx((4.0, 0.3))
    assert (got.link_bytes, got.hcu_cycles, got.kv_len_tokens, got.batch, got.seed) == (13, 4, 310, 1, 7)
    assert got.output_rel_error == pytest.approx(0.08)
    assert frame.exposed_s == pytest.approx({"fetch": 0.05, "linear": 0.2})
    assert frame.energy_j == pytest.approx({"dram": 1.5, "link": 1.0})
    assert frame.timeline is steps[1].timeline
    assert (decode.row.kv_len_tokens, decode.row.latency_s) == (320, word.latency_s)


def layer_selection(attended: list[list[int]], candidates: list[list[int]], **counts: int) -> LayerSelection:
    masks = (np.array(mask, dtype=bool) for mask in (attended, np.zeros_like(attended), candidates))
    return LayerSelection(0, *masks, Counts(**counts))


def table(counts: tuple[int, ...]) -> ClusterTable:
    zeros = np.zeros(len(counts), dtype=np.int32)
    codes, resident = zeros.astype(np.uint64), zeros.astype(bool)
    return ClusterTable(zeros, codes, np.array(counts, dtype=np.int32), resident, zeros, zeros)


def test_columns_of_a_row_from_two_streams_by_hand() -> None:
    """Two KV heads; the second stream's second head has nothing to choose from."""
    near = layer_selection(
        [[1, 1, 1, 0], [1, 0, 0, 0]],
        [[0, 1, 1, 1], [1, 1, 1, 1]],
        score_elements=40,
        selected_prefix_elements=12,
        exact_prefix_elements=10,
    )
    far = layer_selection(
        [[1, 1, 1, 1], [1, 1, 1, 1]],
        [[1, 1, 1, 1], [0, 0, 0, 0]],
        score_elements=10,
        selected_prefix_elements=3,
        exact_prefix_elements=2,
    )
    near, far = (replace(one, tables=tuple(map(table, of))) for one, of in ((near, [(1, 3)]), (far, [(2, 1, 1), (4,)])))
    fidelity = [
        Fidelity(*(np.array(v) for v in ([m, m + 0.1], [0.5, 0.7], [e, 0.2]))) for m, e in ((0.8, 0.1), (0.6, 0))
    ]
    step = Step("frame", 4, 1)
    streams = [Selection("resv", step, (layer,), (of,)) for layer, of in zip((near, far), fidelity, strict=True)]
    assert rows.retrieval_ratios(streams).tolist() == [pytest.approx([(2 / 3 + 1) / 2, (1 / 4 + 0) / 2])]
    actions = (
        ActionLine("dpe", "dpe_macs", 10**12, 2.0, "dpe"),
        ActionLine("dram", "dram_read_bytes", 10**12, 3.0, "dram"),
        ActionLine("link", "link_bytes", 10**12, 4.0, "link", scale=0.5),
        ActionLine("ssd", "ssd_read_bytes", 10**12, 5.0, "ssd"),
        ActionLine("host_dram", "host_dram_bytes", 10**12, 6.0, "host_dram"),
    )
    bill = Bill("vrex8", "t", 0.5, actions, (StaticLine("dram", 8.0, 0.5, "idle"),), 22.0)
    fetch = FetchWork(np.array([4096, 512, 512]), useful_bytes=600, n_tokens=5)
    work: Any = SimpleNamespace(
        kv_len_tokens=4,
        batch=2,
        kind="frame",
        n_new=10,
        layers=[
            SimpleNamespace(fetch=fetch, prediction=SimpleNamespace(dre=DreJob(7, 3, *[0] * 8))),
            SimpleNamespace(fetch=None, prediction=SimpleNamespace(dre=DreJob(5, 9, *[0] * 8))),
            SimpleNamespace(fetch=None, prediction=None),
        ],
    )
    spans = (
        Span("lxe", 0, 3 * 10**11, "linear", 0),
        Span("hcu", 0, 10**11, "prediction", 0),
        Span("link", 10**11, 10**12 // 2, "fetch", 0),
    )
    timeline = Timeline(
        "vrex8", spans, {"dram_read_bytes": 300, "dram_write_bytes": 100, "link_bytes": 5120}, 10**12 // 2
    )
    context = rows.PointContext("e", "vrex8", "resv", "m", 3, "hash", "rev", 15.0, 1000.0)
    row = rows.make_point(context, work, streams, timeline, bill).row
    assert (row.latency_s, row.fps, row.power_w) == (0.5, 2.0, 44.0)
    assert (row.dram_bytes, row.bound_s) == (400, 0.4)
    assert (row.link_bytes, row.link_transactions, row.fetched_tokens, row.fetched_bytes) == (5120, 3, 5, 600)
    assert row.retrieval_ratio == pytest.approx((5 / 6 + 1 / 8) / 2)
    assert (row.attention_mass_kept, row.topk_overlap, row.output_rel_error) == pytest.approx((0.75, 0.6, 0.125))
    assert (row.elements_visited_share, row.overshoot) == pytest.approx((15 / 50, 15 / 12 - 1))
    assert (row.clusters, row.tokens_per_cluster) == pytest.approx((2.0, 12 / 6))
    assert (row.hcu_cycles, row.wtu_cycles) == (12, 12)
    assert (row.prediction_s, row.exposed_fetch_s) == pytest.approx((0.1, 0.2))
    split = (row.energy_compute_j, row.energy_dram_j, row.energy_link_j, row.energy_storage_j, row.energy_static_j)
    assert split == pytest.approx((2.0, 3.0, 2.0, 11.0, 4.0))
    assert row.trace_kind == "trace"
    given = rows.make_point(context, SimpleNamespace(**{**vars(work), "kind": "decode"}), (), timeline, bill).row
    assert (given.trace_kind, given.fps, given.retrieval_ratio, given.overshoot) == ("statistics", None, None, None)
    lost = replace(fidelity[0], output_rel_error=np.array([math.nan, 0.2]))
    unknown = rows.make_point(context, work, [replace(streams[0], fidelity=(lost,))], timeline, bill).row
    assert (unknown.attention_mass_kept, unknown.output_rel_error) == (pytest.approx(0.85), None)


def test_a_batch_shares_weights_and_multiplies_the_cache() -> None:
    one, two = (
        run(["runs=[{platform: agx_orin, policy: full}]"]),
        run(["runs=[{platform: agx_orin, policy: full}]", "workload.batch=2"]),
    )
    for a, b in zip(one.rows, two.rows, strict=True):
        assert b.fetched_bytes == 2 * a.fetched_bytes
        assert a.dram_bytes < b.dram_bytes < 2 * a.dram_bytes + 1
        assert b.batch == 2


def test_a_unit_that_selects_something_else_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    true_job = hardware.simulate_dre_layer

    def other(hcu: Any, wtu: Any, policy: Any, selection: Any, cores: int) -> Any:
        rows = tuple(replace(r, selected=~r.selected) for r in selection.rows)
        return true_job(hcu, wtu, policy, replace(selection, rows=rows), cores)

    monkeypatch.setattr(hardware, "simulate_dre_layer", other)
    with pytest.raises(DisagreementError, match="KV head"):
        run()


def test_prices_move_the_gain_of_the_first_stage_from_the_rows_own_at_the_shortest_and_longest_cache() -> None:
    got = run(["workload.kv_lengths_tokens=[200, 400, 600]"])
    rows_of = {(r.label, r.kv_len_tokens): r for r in got.rows if r.stage == "frame" and r.label != "agx_orin+full"}
    by_price: dict[Any, list[float]] = {}
    for r in got.sensitivity:
        assert r.stage == "frame"
        key = (r.parameter, f"{r.platform}+{r.policy}", r.kv_len_tokens)
        by_price.setdefault(key, []).append(r.energy_gain)
    assert {key[1:] for key in by_price} == {key for key in rows_of if key[1] != 400}
    for key, (low, default, high) in by_price.items():
        assert default == pytest.approx(rows_of[key[1:]].energy_gain)
        assert min(low, high) <= default <= max(low, high)


def test_a_price_that_a_power_mode_has_no_room_for_is_left_out_and_the_run_stays() -> None:
    """15 W of the AGX Orin: at the high end of its range what it draws idle, with its memory, is above that."""
    moved = {
        mode: {row.parameter for row in run([f"platforms.agx_orin.power_mode={mode}"]).sensitivity}
        for mode in ("maxn", "15w")
    }
    assert moved["maxn"] - moved["15w"] == {"soc_idle"}
    assert "dram_read_bytes" in moved["15w"]


def test_a_cache_larger_than_the_offload_tier_is_refused_before_anything_runs() -> None:
    with pytest.raises(ValueError, match=r"platforms\.vrex8\.offload.*the tier holds 1000"):
        run(["platforms.vrex8.offload.capacity_bytes=1000"])


def test_a_point_that_does_not_fit_the_device_is_noted_and_the_others_stay() -> None:
    got = run(["platforms.vrex8.memory_capacity_bytes=100000"])
    assert not [r for r in got.rows if r.platform == "vrex8"]
    assert [r for r in got.rows if r.platform == "agx_orin"]
    assert any("vrex8+resv" in note and "it has 0.0001 GB" in note for note in got.notes)


def test_hardware_fields_change_cycles_but_not_the_selection(result: ExperimentResult) -> None:
    narrow = run(["platforms.vrex8.wtu.lanes=8", "platforms.vrex8.hcu.bits_per_cycle=8"])
    for a, b in zip(result.rows, narrow.rows, strict=True):
        assert a.retrieval_ratio == b.retrieval_ratio
        if a.platform == "vrex8":
            assert a.wtu_cycles is not None
            assert b.wtu_cycles is not None
            assert b.wtu_cycles > a.wtu_cycles
            assert (a.area_mm2 or 0) > (b.area_mm2 or 0)
        else:
            assert astuple(replace(a, config_hash="")) == astuple(replace(b, config_hash=""))


def test_algorithm_fields_change_the_selection(result: ExperimentResult) -> None:
    got = run(["policies.resv.wicsum.ratio=0.6"])
    pairs = [(a, b) for a, b in zip(result.rows, got.rows, strict=True) if a.label == "vrex8+resv"]
    assert all((b.retrieval_ratio or 0) > (a.retrieval_ratio or 0) for a, b in pairs)


def test_where_everything_is_on_the_device_a_note_says_why_nothing_is_retrieved() -> None:
    got = run(["policies.resv.recent_bytes=100000000", "policies.resv.recent=exempt"])
    assert all(r.retrieval_ratio is None for r in got.rows if r.policy == "resv")
    assert any("retrieves nothing at 200, 600 tokens: the whole cache is on the device" in note for note in got.notes)
    sinks = run(["policies.resv.n_sink=1000"])
    assert any("retrieves nothing at 200, 600 tokens: no cached token competes" in note for note in sinks.notes)


def test_policies_with_nothing_to_choose_from_share_a_note() -> None:
    device = ["policies.{}.recent_bytes=100000000", "policies.{}.recent=exempt"]
    rivals = ["policies.other=topk", "runs.1.policy=other"]
    got = run([*rivals, *(setting.format(name) for name in ("resv", "other") for setting in device)])
    notes = [note for note in got.notes if "nothing at" in note]
    assert len(notes) == 1
    assert "Policies other, resv retrieve nothing at 200, 600 tokens" in notes[0]


def test_a_cache_that_is_empty_needs_no_note(result: ExperimentResult) -> None:
    empty = [replace(row, kv_len_tokens=0, retrieval_ratio=None) for row in result.rows]
    points: list[Any] = [SimpleNamespace(row=row) for row in empty]
    assert list(reporting.resident_notes(experiment(), points)) == []


def test_a_policy_that_needs_a_trained_model_leaves_a_warning_in_every_result() -> None:
    plain = run()
    assert not any(note.startswith("Warning") for note in plain.notes)
    settings = ["policies.memory=flash_vstream", "runs.1.policy=memory"]
    warned = run(settings)
    (warning,) = [note for note in warned.notes if note.startswith("Warning")]
    assert "memory needs a model trained or calibrated for it, and keys and queries are synthetic" in warning
    assert warning in result_data(warned)["notes"]  # type: ignore[operator]
    assert warning in summary_markdown(warned, experiment(settings), [])


def test_the_spread_over_layers_is_resvs_whatever_else_ran(result: ExperimentResult) -> None:
    got = run(["policies.other=rekv_vrex", "runs.1.policy=other"])
    for name in ("layer_ratio_min", "layer_ratio_max"):
        assert got.trace_statistics[name] == result.trace_statistics[name]


def test_a_length_that_is_no_whole_frames_is_rounded_with_a_note() -> None:
    found = run(["workload.kv_lengths_tokens=[205,300]", "workload.stages=[frame]"])
    assert {row.kv_len_tokens for row in found.rows} == {200, 300}
    assert "cache lengths rounded down to whole frames of 10 tokens: 205 to 200" in found.notes
