"""Figures: every one a result has data for, none it has not, nothing empty, the same bytes twice."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from dre_sim.timeline import Span, Timeline
from resv_sim.plots import curves, draw_figures, fidelity, parts
from resv_sim.plots.gantt import window
from resv_sim.plots.labels import label_ends, label_points
from resv_sim.plots.style import PALETTE, canvas, colours, family, length_name, looks, number
from resv_sim.plots.tornado import panels, tornado
from resv_sim.progress import Progress
from resv_sim.results import ExperimentResult, RatioKey, ResultRow, SensitivityRow
from tests.sample_results import sample_result, sample_rows, sample_timeline

SMALL: Any = SimpleNamespace(
    baseline=SimpleNamespace(label="agx_orin+flexgen_stream"), report=SimpleNamespace(figure_dpi=60, timeline_layers=2)
)
QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    draw_figures(sample_result(), SMALL, folder, QUIET)
    return folder


def test_every_kind_of_figure_is_drawn_as_png_and_svg(drawn: Path) -> None:
    names = {
        "latency", "speedup", "energy_gain", "breakdown_frame", "breakdown_decode", "area_power_vrex8",
        "retrieval_ratio", "timeline_vrex8_resv", "sensitivity",
    }  # fmt: skip
    assert {p.stem for p in drawn.glob("*.png")} == names
    assert {p.stem for p in drawn.glob("*.svg")} == names


def test_pictures_show_more_than_an_empty_canvas_and_keep_a_margin(drawn: Path) -> None:
    from matplotlib.image import imread

    for path in sorted(drawn.glob("*.png")):
        pixels = imread(path)[..., :3]
        ink = np.any(pixels < 0.99, axis=-1)
        assert 0.01 < ink.mean() < 0.95, path.name
        edges = np.concatenate([ink[0], ink[-1], ink[:, 0], ink[:, -1]])
        assert not edges.any(), f"{path.name} is cut off"
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20, path.name


def test_svg_files_hold_no_date_and_no_link_to_fetch(drawn: Path) -> None:
    for path in drawn.glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        assert "dc:date" not in text
        assert 'href="http' not in text


def test_a_result_with_rows_alone_still_has_its_curves(tmp_path: Path) -> None:
    result = ExperimentResult(rows=sample_rows((200,)))
    assert [f.name for f in draw_figures(result, SMALL, tmp_path, QUIET)] == ["latency", "speedup", "energy_gain"]


@pytest.fixture
def many_rows() -> tuple[ResultRow, ...]:
    """Five policies, of which p1 has a second budget, each on both platforms."""
    return tuple(
        replace(row, policy=p, attention_mass_kept=0.2 * i, output_rel_error=0.1 * i, link_bytes=10**9 * i)
        for row in sample_rows((1_000, 40_000))
        for i, p in enumerate(("p0", "p1", "p2", "p3", "p1-50"))
        if row.policy == "resv"
    )


def test_fidelity_is_drawn_against_its_cost_where_more_than_three_policies_are_compared(
    many_rows: tuple[ResultRow, ...], tmp_path: Path
) -> None:
    few = tuple(row for row in many_rows if row.policy in ("p0", "p1", "p2"))
    unmeasured = tuple(replace(row, attention_mass_kept=None) for row in many_rows)
    for shown in (few, unmeasured):
        assert fidelity.compared(shown) == []
    assert fidelity.compared(many_rows) == ["frame", "decode"]
    figure = fidelity.fidelity(many_rows, "decode")
    links = {round(x) for line in figure.axes[0].get_lines() for x in line.get_xdata()}
    assert links == {0, 1000, 2000, 3000, 4000}
    names = {file.name for file in draw_figures(ExperimentResult(rows=many_rows), SMALL, tmp_path, QUIET)}
    assert {"fidelity_frame", "fidelity_decode", "fidelity_length"} <= names


def test_budgets_of_a_policy_are_joined_in_the_figure_of_fidelity_and_left_out_of_the_others(
    many_rows: tuple[ResultRow, ...],
) -> None:
    axis = fidelity.fidelity(many_rows, "frame").axes[0]
    assert sorted(len(line.get_xdata()) for line in axis.get_lines()) == [1] * 6 + [2] * 2
    assert {text.get_text() for text in axis.texts} == {"p0", "p1", "p2", "p3"}
    assert {row.policy for row in curves.leading(many_rows)} == {"p0", "p1", "p2", "p3"}
    assert family("p1-50", {"p1", "p1-50"}) == "p1"
    assert family("p1-50", {"p1-50"}) == "p1-50"


def test_a_run_has_its_policys_colour_and_its_platforms_mark() -> None:
    look = looks([("a", "x"), ("a", "y"), ("b", "x"), ("a", "x-2")])
    assert look["a", "x"].colour == look["b", "x"].colour == look["a", "x-2"].colour != look["a", "y"].colour
    assert look["a", "x"].marker == look["a", "y"].marker != look["b", "x"].marker
    assert [look[run].name for run in (("a", "x"), ("b", "x"))] == ["x", "x, b"]
    assert len(set(colours(map(str, range(14))).values())) == 14


def test_names_at_the_ends_of_lines_keep_their_order_and_their_distance() -> None:
    figure = canvas(4, 3)
    axis = figure.subplots()
    axis.set_ylim(0, 10)
    label_ends(axis, [(9.9, "d", "k"), (5.0, "b", "k"), (1.0, "a", "k"), (9.9, "e", "k"), (5.1, "c", "k")], gap=0.06)
    places = {text.get_text(): text.get_position()[1] for text in axis.texts}
    assert sorted(places, key=lambda name: places[name]) == list("abcde")
    heights = sorted(places.values())
    assert min(b - a for a, b in pairwise(heights)) >= 0.06 - 1e-9
    assert heights[-1] <= 1.0
    assert places["a"] == pytest.approx(0.1)


def test_names_beside_points_lie_in_the_frame_and_on_nothing() -> None:
    figure = canvas(5, 4)
    axis = figure.subplots()
    points = [(0.5, 0.5), (0.53, 0.5), (0.56, 0.51), (1.0, 1.0), (0.0, 0.0)]
    axis.plot(*zip(*points, strict=True), "o")
    figure.draw_without_rendering()
    named = [(x, y, f"name{i}", "k") for i, (x, y) in enumerate(points)]
    label_points(axis, points, [*named, (1.0, 1.0, "same", "r")])
    figure.draw_without_rendering()
    assert [text.get_text() for text in axis.texts] == ["name0", "name1", "name2", "name3 = same", "name4"]
    frame = axis.get_window_extent()
    boxes = [Text.get_window_extent(text) for text in axis.texts]  # without their arrows
    marks = [axis.transData.transform(point) for point in points]
    for i, box in enumerate(boxes):
        middle = [(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2]
        assert frame.x0 <= middle[0] <= frame.x1
        assert frame.y0 <= middle[1] <= frame.y1
        assert not any(Bbox.intersection(box, other) for other in boxes[:i])
        assert not any(box.contains(*mark) for mark in marks)


def test_bars_reach_their_values_and_leave_the_baseline_out() -> None:
    rows = sample_rows((1_000, 40_000))
    figure = curves.bars(rows, "speedup", "speedup (x)", "agx_orin+flexgen_stream")
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert len(shown) == 4
    longest = [row.speedup for row in rows if row.stage == "frame" and row.kv_len_tokens == 40_000][1:]
    assert [bar.get_width() for bar in shown[1].patches] == longest
    assert max(longest) < shown[1].get_xlim()[1]


def test_of_many_lengths_a_sample_is_drawn_and_the_figure_says_so(tmp_path: Path) -> None:
    lengths = tuple(range(37, 37 + 60 * 40, 60))
    result = sample_result(lengths)
    draw_figures(result, SMALL, tmp_path, QUIET)  # a layout that does not fit would warn
    gains = curves.bars(result.rows, "speedup", "speedup (x)", "agx_orin+flexgen_stream")
    shown = [axis.get_title() for axis in gains.axes if axis.get_visible()]
    assert len(shown) == 2 * 8
    assert (shown[0], shown[7]) == (f"frame\n{lengths[0]}", f"frame\n{lengths[-1]}")
    assert gains.get_supxlabel().endswith("8 of 40 cache lengths")
    bars = parts.breakdown(result.breakdown, "frame")
    assert bars.get_suptitle() == "8 of 40 cache lengths"
    for figure in (bars, curves.latency(result.rows, ())):
        figure.draw_without_rendering()
        for axis in figure.axes:
            boxes = [label.get_window_extent() for label in axis.get_xticklabels()]
            assert len(boxes) > 2
            assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_an_empty_cache_has_no_place_on_a_logarithmic_axis() -> None:
    figure = curves.latency(sample_rows((0, 200, 600)), ())
    lines = [line for axis in figure.axes for line in axis.get_lines()]
    assert lines
    assert all(min(line.get_xdata()) > 0 for line in lines)


def test_totals_of_area_and_power_have_their_units() -> None:
    figure = parts.area_and_power({"dpe": 9.8, "hcu": 0.2}, {"dpe": 4.0, "hcu": 1.0})
    assert [axis.get_title() for axis in figure.axes] == [
        "DRE (red): 2.00 % of 10.0 mm²",
        "DRE (red): 20.00 % of 5.00 W",
    ]


def test_the_retrieval_figure_has_a_panel_per_policy_and_stage_on_one_scale() -> None:
    ratios = {RatioKey(p, 100, s): np.full((4, 2), 0.1) for p, s in (("a", "frame"), ("a", "decode"), ("b", "decode"))}
    figure = parts.retrieval_ratios(ratios)
    images = [image for axis in figure.axes if axis.get_visible() for image in axis.get_images()]
    assert len(images) == 3
    assert {(image.norm.vmin, image.norm.vmax) for image in images} == {(0, 100)}


def test_many_runs_share_one_tornado_with_a_bar_each() -> None:
    rows = [
        SensitivityRow(price, "W", value, "p", f"q{i}", 100, "frame", 1.0 + i + slope * value)
        for i in range(6)
        for price, slope in (("small", 0.1), ("large", 0.5))
        for value in (1.0, 2.0)
    ]
    figure = tornado(rows)
    assert len(figure.axes) == 1
    spans = [(round(bar.get_x(), 6), round(bar.get_x() + bar.get_width(), 6)) for bar in figure.axes[0].patches]
    assert spans == [(1.1 + i, 2.0 + i) for i in range(6)]
    assert all(text.get_text().endswith("large") for text in figure.axes[0].texts)


def test_prices_that_do_not_matter_at_the_longest_cache_draw_no_tornado() -> None:
    def rows(kv_len: int, slope: float) -> list[SensitivityRow]:
        return [SensitivityRow("a", "W", v, "p", "q", kv_len, "frame", 1.0 + slope * v) for v in (1.0, 2.0)]

    assert list(panels(rows(100, 0.5))) == [("p+q", "frame")]
    assert panels(rows(100, 0.5) + rows(200, 1e-9)) == {}
    assert panels([]) == {}


def test_gains_are_left_out_where_only_the_baseline_ran(tmp_path: Path) -> None:
    rows = tuple(row for row in sample_rows((200, 600)) if row.label == "agx_orin+flexgen_stream")
    assert [f.name for f in draw_figures(ExperimentResult(rows=rows), SMALL, tmp_path, QUIET)] == ["latency"]


def test_a_breakdown_of_joules_alone_is_no_latency_breakdown(tmp_path: Path) -> None:
    result = sample_result((200,))
    joules = tuple(replace(row, exposed_s=0.0) for row in result.breakdown)
    figures = draw_figures(ExperimentResult(rows=result.rows, breakdown=joules), SMALL, tmp_path, QUIET)
    assert not [f for f in figures if f.name.startswith("breakdown")]


def test_the_window_holds_the_middle_layers() -> None:
    start, end, layers = window(sample_timeline("p"), 2)
    assert layers == [1, 2]
    assert start == 2_500_000_000
    assert end == 3 * 2_500_000_000


def test_the_window_follows_the_engine_and_not_the_host_that_runs_ahead() -> None:
    spans = [Span("host", layer, layer + 1, "linear", layer) for layer in range(4)]
    spans += [Span("gpu", 100 * layer, 100 * layer + 50, "linear", layer) for layer in range(4)]
    assert window(Timeline("p", tuple(spans), {}, 350), 2) == (100, 250, [1, 2])


def test_the_window_of_a_step_without_layers_is_all_of_it() -> None:
    timeline = Timeline("p", (Span("lxe", 5, 9, "vision", -1), Span("lxe", 9, 30, "lm_head", -1)), {}, 30)
    assert window(timeline, 2) == (5, 30, [-1])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1.8, "1.80"), (0.12345, "0.123"), (99.96, "100"), (12345.6, "12346"), (0.001, "0.00100"),
     (5e-7, "5e-07"), (-2.5, "-2.50"), (1e9, "1e+09"), (9.999, "10.0")],
)  # fmt: skip
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_labels_get_colours_of_their_own_and_lengths_short_names() -> None:
    assert colours(["b", "a", "b"]) == {"b": PALETTE[0], "a": PALETTE[1]}
    assert [length_name(n) for n in (0, 350, 1000, 40_000)] == ["0", "350", "1K", "40K"]
