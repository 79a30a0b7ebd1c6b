"""Comparisons of the models: small subsets of the bundled tables, summaries by hand, threads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from resv_sim.progress import Progress
from resv_sim.validate import dram, energy, gpu, ssd, suite
from resv_sim.validate.comparison import LIMITS, Limit, Point, beyond, limit_of, meets, summarise
from resv_sim.validate.tables import REFERENCE, Table, read_table


def bundled(name: str, rows: slice = slice(None)) -> Table:
    table = read_table(REFERENCE / f"{name}.csv")
    return replace(table, rows=table.rows[rows])


def points(*tables: Table, jobs: int = 2) -> list[Point]:
    return suite.run(tables, jobs, Progress(quiet=True))


def point(ours: float, reference: float = 1.0, row: str = "row", role: str = "validate") -> Point:
    return Point("dram", "table", "saturated bandwidth", row, ours, reference, "B/s", role)


def test_a_summary_is_of_absolute_errors_and_names_the_worst_row() -> None:
    (summary,) = summarise([point(1.1, row="a"), point(0.7, row="b"), point(1.0, row="c")])
    assert (summary.n_rows, summary.worst_row) == (3, "b")
    assert summary.median_abs_error == pytest.approx(0.1)
    assert summary.p90_abs_error == pytest.approx(0.26)
    assert summary.worst_abs_error == pytest.approx(0.3)


def test_other_roles_are_summarised_apart() -> None:
    metrics = [s.metric for s in summarise([point(1.1), point(2.0, role="context"), point(1.0, role="calibrate")])]
    assert metrics == ["saturated bandwidth", "saturated bandwidth (context)", "saturated bandwidth (calibrate)"]


def test_a_limit_holds_for_the_group_and_lists_single_rows() -> None:
    group = [point(1.02), point(1.02), point(1.3), point(0.5)]
    assert not meets(Limit(0.1, median=0.1), group)
    assert meets(Limit(0.1, median=0.17), group)
    assert not meets(Limit(0.1, median=0.17, p90=0.2), group)
    assert not meets(Limit(0.1, mean=0.2), group)
    assert [p.ours for p in beyond(Limit(0.1), group)] == [0.5, 1.3]


def test_limits_are_found_by_model_and_first_word_of_the_metric() -> None:
    assert limit_of("gpu", "decode, agx_orin fp16") is LIMITS["gpu", "decode"]
    assert limit_of("ssd", "p99 latency") is LIMITS["ssd", "p99 latency"]
    assert limit_of("dram", "p99 latency") is None


def test_lpddr5_rows_replay_within_what_is_asked() -> None:
    table = bundled("dram_lpddr5_6400_norefresh")
    found = points(table)
    for summary in summarise(found):
        assert summary.median_abs_error <= 0.03, summary
    metrics = {metric for p in found for metric in [p.metric]}
    assert metrics == {"saturated bandwidth", "full-queue mean latency", "unsaturated mean latency", "p99 latency"}


def test_latency_is_compared_where_the_memory_does_not_bound_and_bandwidth_where_it_does() -> None:
    table = bundled("dram_hbm2_2000_ramulator2", slice(0, 12))
    of_row = {row.line: {p.metric for p in dram.compare(table, row)} for row in table.rows}
    for row in table.rows:
        bounded = row.text("load") == "sat" or row.text("saturated") == "1"
        assert ("saturated bandwidth" in of_row[row.line]) == bounded
        assert ("p99 latency" in of_row[row.line]) == (row.text("saturated") == "0")


def test_the_result_does_not_depend_on_threads_nor_on_the_run() -> None:
    tables = [
        bundled("dram_lpddr5_6400_perbank", slice(0, 8)),
        bundled("ssd_read_tlc_g4", slice(0, 3)),
        bundled("link_copies"),
    ]
    once = points(*tables, jobs=1)
    assert points(*tables, jobs=1) == once
    assert points(*tables, jobs=4) == once


def test_a_memory_is_built_from_its_name() -> None:
    assert dram.memory_of("dram_lpddr5_6400").peak_bytes_per_s == pytest.approx(12.8e9)
    assert dram.memory_of("dram_system_lpddr5_6400_x16ch").peak_bytes_per_s == pytest.approx(204.8e9)
    assert dram.memory_of("dram_hbm2_2000_dramsim3").peak_bytes_per_s == pytest.approx(32e9)
    assert dram.memory_of("dram_lpddr5_6400_perbank_mine").refresh == "per_bank"
    assert dram.memory_of("dram_hbm2e_3024_q128").read_queue == 128


def test_two_simulators_are_compared_row_by_row() -> None:
    found = dram.between_simulators([bundled("dram_ddr4_3200_dramsim3"), bundled("dram_ddr4_3200_ramulator2")])
    bandwidth = [abs(p.error) for p in found if p.metric == "saturated bandwidth"]
    assert len(bandwidth) == 16
    assert 0.01 < float(np.median(bandwidth)) < 0.05
    assert dram.between_simulators([bundled("dram_ddr4_3200_dramsim3")]) == []


def test_ssd_rows_are_within_what_is_asked() -> None:
    for summary in summarise(points(bundled("ssd_read_tlc_g4"))):
        limit = limit_of("ssd", summary.metric)
        assert limit is not None
        assert limit.median is not None
        assert summary.median_abs_error <= limit.median, summary


def test_an_ssd_row_at_depth_1_is_a_sum_of_times() -> None:
    table = bundled("ssd_read_g3", slice(0, 1))
    bandwidth, mean, p99 = ssd.compare(table, table.rows[0])
    assert table.rows[0].count("queue_depth") == 1
    assert abs(mean.error) < 0.002
    assert abs(p99.error) < 0.002
    assert bandwidth.ours == pytest.approx(4096 / (mean.ours * 1e-6), rel=0.01)


def test_calibrated_kernels_come_back() -> None:
    found = [p for p in points(bundled("gpu_kernels")) if p.role == "calibrate"]
    assert len(found) == 7
    assert all(abs(p.error) < 0.02 for p in found), found


def test_gpu_decode_and_vision_on_orin() -> None:
    found = points(bundled("gpu_measured"))
    orin = [p for p in found if p.role == "validate" and "agx_orin" in p.metric]
    for stage, most in (("decode", 0.10), ("vision", 0.20)):
        errors = [abs(p.error) for p in orin if p.metric.startswith(stage)]
        assert float(np.mean(errors)) <= most, stage
    shown_again = {p.row for p in found if p.metric.endswith("if at 50 W")}
    assert shown_again == {p.row for p in orin}


def test_a_step_counts_the_weights_of_its_row() -> None:
    table = bundled("gpu_measured", slice(0, 1))
    work = gpu.step_work(table.rows[0])
    n_bytes = sum(g.weight_bytes for layer in work.layers for g in layer.gemms) + work.head[0].weight_bytes
    assert n_bytes == pytest.approx(15.01e9, rel=0.001)  # Llama-3-8B without its embedding


def test_energy_rows_by_construction_are_exact() -> None:
    found = points(bundled("energy_published"))
    exact = ("unit area", "unit power", "core area", "core power", "nameplate")
    assert all(abs(p.error) < 1e-3 for p in found if p.metric in exact)
    assert {p.metric.replace(" ", "_") for p in found} == set(energy.QUANTITIES)
