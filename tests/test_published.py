"""The packaged facts, and which of them a set of rows is compared with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from resv_sim.errors import ConfigError
from resv_sim.published import PublishedFacts, compare, published_facts
from resv_sim.results import PublishedComparison, ResultRow
from resv_sim.validation import validated
from resv_sim.yaml_source import Node, read_value
from tests.sample_results import LENGTHS, sample_row, sample_rows

BASELINE = ("agx_orin", "flexgen_stream")


def frame_rows(latencies_s: dict[int, float], **changes: object) -> list[ResultRow]:
    rows = [
        replace(sample_row("vrex8", "resv", length, "frame"), latency_s=latency)
        for length, latency in latencies_s.items()
    ]
    return [replace(row, **changes) for row in rows]  # type: ignore[arg-type]


def items(rows: list[ResultRow], words: str, baseline: tuple[str, str] = BASELINE) -> list[PublishedComparison]:
    return [c for c in compare(rows, baseline) if words in c.item]


def test_frame_latencies_are_compared_length_by_length_with_signed_errors() -> None:
    ours = dict(zip(LENGTHS, (0.121, 0.130, 0.180, 0.200, 0.508), strict=True))
    got = items(frame_rows(ours), "V-Rex8 frame latency")
    assert [c.published for c in got] == [0.121, 0.123, 0.198, 0.200, 0.254]
    assert [c.error for c in got] == pytest.approx([0.0, 7 / 123, -18 / 198, 0.0, 1.0])
    assert [c.role for c in got] == ["calibration", "prediction", "prediction", "prediction", "calibration"]
    assert [c.kv_len_tokens for c in got] == list(LENGTHS)
    assert {(c.column, c.stage) for c in got} == {("latency_s", "frame")}


def test_only_lengths_that_were_run_are_compared() -> None:
    assert [c.published for c in items(frame_rows({10_000: 0.2, 12_345: 9.0}), "frame latency")] == [0.198]


def test_a_range_is_compared_at_both_ends_and_only_over_the_whole_span() -> None:
    rows = frame_rows(dict.fromkeys(LENGTHS, 0.1), platform="vrex8")
    rows = [replace(row, speedup=gain) for row, gain in zip(rows, (2.0, 4.0, 1.1, 9.0, 3.0), strict=True)]
    low, high = items(rows, "frame speedup over AGX Orin")
    assert (low.ours, low.published, high.ours, high.published) == (1.1, 2.2, 9.0, 7.3)
    assert low.error == pytest.approx(-0.5)
    assert items(rows[:-1], "frame speedup over AGX Orin") == []


def test_ratios_are_compared_only_over_the_baseline_they_are_published_for() -> None:
    rows = frame_rows(dict.fromkeys(LENGTHS, 0.1))
    assert items(rows, "over AGX Orin", ("agx_orin_paper", "flexgen_stream"))
    assert not items(rows, "over AGX Orin", ("a100", "flexgen_stream"))
    assert not items(rows, "over AGX Orin", ("agx_orin", "resv"))


@pytest.mark.parametrize("change", [{"batch": 2}, {"policy": "rekv"}, {"stage": "question"}, {"model": "qwen2_7b"}])
def test_rows_of_another_setting_are_not_compared(change: dict[str, object]) -> None:
    assert items(frame_rows(dict.fromkeys(LENGTHS, 0.1), **change), "V-Rex8 frame") == []


def test_a_model_is_recognised_however_its_name_is_punctuated() -> None:
    rows = frame_rows({1000: 0.1}, model="Llama-3-8B")
    assert [c.published for c in items(rows, "V-Rex8 frame latency")] == [0.121]


def test_two_platforms_that_a_fact_may_mean_are_compared_one_by_one() -> None:
    one = sample_row("agx_orin", "resv", 40_000, "frame")
    got = items([one, replace(one, platform="agx_orin_paper", speedup=1.4)], "+ ReSV frame speedup")
    assert [("(agx_orin)" in c.item, "(agx_orin_paper)" in c.item) for c in got] == [(True, False), (False, True)]
    assert got[1].error == pytest.approx(-0.5)


def test_a_statistic_of_the_trace_is_compared_where_it_is_known() -> None:
    rows = list(sample_rows())
    with_it = compare(rows, BASELINE, {"hc_table_share": 0.0334})
    (found,) = [c for c in with_it if "HC table" in c.item]
    assert (found.ours, found.published) == (0.0334, 0.0167)
    assert found.error == pytest.approx(1.0)
    assert not [c for c in compare(rows, BASELINE, {}) if "HC table" in c.item]


def test_the_spread_over_layers_is_compared_at_coin_lengths_alone() -> None:
    statistics = {"layer_ratio_min": 0.05}

    def compared(length: int) -> list[float]:
        row = sample_row("vrex8", "resv", length, "frame")
        return [c.published for c in compare([row], BASELINE, statistics) if "retrieves least" in c.item]

    assert compared(350) == [0.042]
    assert compared(10_000) == []


def test_session_ratios_are_compared_at_coin_lengths_alone() -> None:
    def ratios(length: int) -> list[float]:
        row = replace(sample_row("vrex8", "resv", length, "frame"), retrieval_ratio=0.3)
        return [c.published for c in items([row], "retrieval ratio, frame")]

    assert ratios(350) == [0.327]
    assert ratios(1000) == []


def test_every_packaged_fact_has_a_figure_a_positive_value_and_a_role() -> None:
    for fact in published_facts().facts:
        numbers = [*fact.values, *(fact.range or ()), *([fact.value] if fact.value is not None else [])]
        assert numbers
        assert all(number > 0 for number in numbers)
        assert fact.figure
        assert fact.range is None or fact.range[0] < fact.range[1]


@pytest.mark.parametrize(
    ("fact", "words"),
    [
        ("{column: latency_s, value: 1, values: [1]}", "either a value, values or a range"),
        ("{column: latency_s, statistic: x, value: 1}", "either a column or a statistic"),
        ("{column: speed, value: 1}", "no column 'speed'"),
        ("{column: latency_s, values: [1, 2]}", "1 values are needed"),
    ],
)
def test_a_malformed_fact_is_refused(fact: str, words: str) -> None:
    entry = {"figure": "f", "item": "i", "unit": "s", "role": "prediction"}
    tree = Node(
        {
            **read_value("{paper: p, model: m, kv_lengths_tokens: [1000]}", "test").value,
            "facts": Node([Node({**read_value(str(entry), "t").value, **read_value(fact, "t").value}, "t")], "t"),
        },
        "test",
    )
    with pytest.raises(ConfigError, match=words):
        validated(PublishedFacts, tree)
