"""Figures: every one a result has data for, none it has not, nothing empty, the same bytes twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dre_sim.timeline import Span, Timeline
from resv_sim.plots import draw_figures, fidelity
from resv_sim.plots.gantt import window
from resv_sim.plots.style import PALETTE, colours, length_name, number
from resv_sim.progress import Progress
from resv_sim.results import ExperimentResult
from tests.sample_results import sample_result, sample_rows, sample_timeline

SMALL: Any = SimpleNamespace(
    baseline=SimpleNamespace(label="agx_orin+full"), report=SimpleNamespace(figure_dpi=60, timeline_layers=2)
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


def test_fidelity_is_drawn_against_its_cost_where_more_than_three_policies_are_compared(tmp_path: Path) -> None:
    rows = tuple(
        replace(row, policy=f"p{i}", attention_mass_kept=0.2 * i, output_rel_error=0.1 * i, link_bytes=10**9 * i)
        for row in sample_rows((1_000, 40_000))
        for i in range(5)
    )
    few = tuple(row for row in rows if row.policy in ("p0", "p1", "p2"))
    unmeasured = tuple(replace(row, attention_mass_kept=None) for row in rows)
    for shown in (few, unmeasured):
        assert fidelity.compared(shown) == []
    assert fidelity.compared(rows) == ["frame", "decode"]
    figure = fidelity.fidelity(rows, "decode")
    links = {round(x) for line in figure.axes[0].get_lines() for x in line.get_xdata()}
    assert links == {0, 1000, 2000, 3000, 4000}
    names = {file.name for file in draw_figures(ExperimentResult(rows=rows), SMALL, tmp_path, QUIET)}
    assert {"fidelity_frame", "fidelity_decode"} <= names


def test_gains_are_left_out_where_only_the_baseline_ran(tmp_path: Path) -> None:
    rows = tuple(row for row in sample_rows((200, 600)) if row.label == "agx_orin+full")
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
    assert [length_name(n) for n in (350, 1000, 40_000)] == ["350", "1K", "40K"]
