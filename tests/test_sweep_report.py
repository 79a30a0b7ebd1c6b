"""What a sweep shows: tables, figures, the page in a real browser, explanations."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from resv_sim.cli import main
from resv_sim.config import load_experiment
from resv_sim.errors import ConfigError, OutputError
from resv_sim.memo import Memo
from resv_sim.sweep import figures
from resv_sim.sweep.config import Constraint
from resv_sim.sweep.evaluate import Evaluated, evaluate
from resv_sim.sweep.explain import explanation
from resv_sim.sweep.report import published_point, rows_of, summary, write_report
from resv_sim.sweep.space import Sweep, points
from resv_sim.sweep.store import SweepStore
from resv_sim.sweep.tables import write_tables
from tests.chromium import Chromium, executable
from tests.sweeps import load_sweep, sweep_data

needs_chromium = pytest.mark.skipif(executable() is None, reason="Debian's chromium is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def sweep(folder: Path) -> Sweep:
    return load_sweep(folder, sweep_data(4, constraints=["fps >= 2", "attention_mass_kept >= 0.01"]))


@pytest.fixture(scope="module")
def records(folder: Path, sweep: Sweep) -> list[dict[str, Any]]:
    """A finished sweep in the folder, one of its points failed."""
    todo = points(sweep.config)
    results = evaluate(Memo(folder / "memo"), [(point.index, sweep.experiment(point)) for point in todo])
    results[5] = Evaluated(5, error="ValueError: </script> is not a number")
    with SweepStore(folder, sweep, "models", resume=False) as store:
        for point, result in zip(todo, results, strict=True):
            store.add(point, result)
        store.write_state(len(todo))
        found = store.records()
    write_tables(folder, found, list(sweep.config.axes))
    write_report(sweep, found, folder)
    return found


def test_tables_hold_every_row_of_every_point_and_the_failures(folder: Path, records: list[dict[str, Any]]) -> None:
    from pyarrow import parquet

    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (len(records) - 1)
    assert [row["point"] for row in rows if row["policy"] == "resv"] == [str(i) for i in range(16) if i != 5]
    assert rows[0]["link"] == "pcie3_x4"
    table = parquet.read_table(folder / "results.parquet")
    assert table.column_names == list(rows[0])
    assert table["latency_s"].to_pylist() == [float(row["latency_s"]) for row in rows]
    assert "5," in (folder / "failures.csv").read_text().splitlines()[1]


def test_the_summary_says_what_failed_what_is_best_and_what_decides(
    sweep: Sweep, records: list[dict[str, Any]]
) -> None:
    text = summary(sweep, records)
    assert "16 points, 1 failed. Measured: vrex8+resv, frame at the longest cache." in text
    assert "15 of 15 keep fps >= 2, attention_mass_kept >= 0.01." in text
    best = max(rows_of(sweep, records), key=lambda row: row["speedup"])
    assert f"at point {best['point']} (hash_bits={best['hash_bits']}, ratio={best['ratio']}" in text
    assert re.search(r"Variance of speedup explained by one axis alone: .*ratio \d+ %", text)


def test_the_published_point_is_the_one_with_its_values(sweep: Sweep, records: list[dict[str, Any]]) -> None:
    rows = rows_of(sweep, records)
    star = published_point(sweep, rows)
    assert {axis: next(r for r in rows if r["point"] == star)[axis] for axis in sweep.config.axes} == dict(
        sweep.config.published
    )


def test_figures_are_drawn_for_axes_pairs_fronts_and_shares(folder: Path, records: list[dict[str, Any]]) -> None:
    names = {path.stem for path in (folder / "figures").glob("*.png")}
    assert {"over_speedup", "pairs_speedup", "fronts", "parallel", "explained"} <= names


@pytest.mark.parametrize("published", [None, 0])
def test_a_caption_names_the_star_where_there_is_one(
    sweep: Sweep, records: list[dict[str, Any]], published: int | None
) -> None:
    drawings = figures._drawings(sweep, rows_of(sweep, records), published)
    captions = [file.caption for file, _ in drawings if file.name == "fronts"]
    assert ["star" in caption for caption in captions] == [published is not None]


def test_panels_are_laid_out_without_gaps_where_that_can_be() -> None:
    layouts = {}
    for n in (1, 2, 3, 4, 5, 6, 10):
        figure, panels = figures._panels(n, 2.0, 2.0, most=5)
        layouts[n] = panels[0].get_gridspec().get_geometry()
        assert [panel.get_visible() for panel in figure.axes] == [i < n for i in range(len(figure.axes))]
    assert layouts == {1: (1, 1), 2: (1, 2), 3: (1, 3), 4: (1, 4), 5: (1, 5), 6: (2, 3), 10: (2, 5)}
    assert figures._panels(4, 2.0, 2.0)[1][0].get_gridspec().get_geometry() == (2, 2)


def test_a_front_is_drawn_through_points_that_keep_the_constraints() -> None:
    rows = [{"point": i, "latency_s": 1.0 + i, "energy_j": 9.0 - i, "fps": 1 / (1.0 + i)} for i in range(5)]
    for least_fps, on_front in ((0.0, 5), (0.3, 3), (2.0, 0)):
        limits = [Constraint("fps", ">=", least_fps)]
        (panel,) = figures.front_panels(rows, [("latency_s", "energy_j")], limits, None).axes
        assert sum(len(line.get_xdata()) for line in panel.get_lines()) == on_front
        assert len(panel.collections[0].get_offsets()) == 5


def test_the_page_needs_no_network_and_cannot_be_broken_by_an_error_text(
    folder: Path, records: list[dict[str, Any]]
) -> None:
    text = (folder / "report.html").read_text()
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?!data:)[^\s"'>]""", text)
    assert "url(" not in text
    assert "@import" not in text
    assert text.count("</script>") == 2
    assert "&lt;/script&gt; is not a number" in text


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with Chromium() as opened:
        yield opened


def _dot(browser: Chromium, point: int) -> tuple[float, float]:
    """Where a point is on the screen."""
    browser.evaluate("document.getElementById('plot').scrollIntoView()")
    x, y = browser.evaluate(
        f"""(() => {{ const r = document.querySelector('circle[data-point="{point}"]').getBoundingClientRect();
        return [r.x + r.width / 2, r.y + r.height / 2]; }})()"""
    )
    return x, y


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_loads_hovers_filters_and_gives_the_experiment(
    folder: Path, sweep: Sweep, records: list[dict[str, Any]], browser: Chromium, width: int
) -> None:
    browser.events.clear()
    browser.open(folder / "report.html", width, 900)
    assert browser.evaluate("document.querySelectorAll('circle[data-point]').length") == 15
    assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "the page is too wide"
    assert browser.evaluate("document.body.textContent.includes('V-Rex as published')")

    # The front is drawn last where dots lie on each other, so take the dot that the browser says is on top.
    point = next(p for p in range(16) if p != 5 and _on_top(browser, p))
    browser.mouse("mouseMoved", *_dot(browser, point))
    tip = browser.evaluate("document.getElementById('tip').hidden ? '' : document.getElementById('tip').innerText")
    row = next(r for r in rows_of(sweep, records) if r["point"] == point)
    assert f"point {point}" in tip
    assert f"ratio: {row['ratio']}" in tip
    assert "speedup: " in tip

    for kind in ("mousePressed", "mouseReleased"):
        browser.mouse(kind, *_dot(browser, point))
    text = browser.evaluate("document.getElementById('yaml').textContent")
    path = folder / f"point_{width}.yaml"
    path.write_text(text)
    experiment, _ = load_experiment(str(path))
    original = sweep.experiment(points(sweep.config)[point])
    assert experiment.model_copy(update={"name": original.name}) == original

    _type(browser, "filter", "ratio >= 0.12, link = pcie4_x4")
    kept = sum(r["ratio"] >= 0.12 and r["link"] == "pcie4_x4" for r in rows_of(sweep, records))
    assert 0 < kept < 15
    assert browser.evaluate("document.getElementById('status').textContent") == f"{kept} of 15 points"
    assert browser.evaluate("document.querySelectorAll('circle[data-point]').length") == kept
    _type(browser, "filter", "ratoi >= 0.12")
    assert browser.evaluate("document.getElementById('status').textContent") == "no axis or column 'ratoi'"
    _type(browser, "filter", "")
    for select, value in (("x", "ratio"), ("y", "energy_j"), ("colour", "speedup")):
        _choose(browser, select, value)
    labels = browser.evaluate("[...document.querySelectorAll('#plot text')].map((t) => t.textContent)")
    assert {"ratio", "energy_j", "speedup:"} <= set(labels)

    shot = folder / f"page_{width}.png"
    browser.screenshot(shot)
    assert shot.stat().st_size > 10_000
    problems = [e for e in browser.events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert problems == []
    assert [url[:60] for url in asked if not url.startswith(("file:", "data:"))] == []


def _on_top(browser: Chromium, point: int) -> bool:
    x, y = _dot(browser, point)
    return bool(browser.evaluate(f"document.elementFromPoint({x}, {y})?.getAttribute('data-point') === '{point}'"))


def _type(browser: Chromium, element: str, text: str) -> None:
    browser.evaluate(
        f"""(() => {{ const e = document.getElementById({element!r}); e.value = {text!r};
        e.dispatchEvent(new Event('input')); }})()"""
    )


def _choose(browser: Chromium, element: str, value: str) -> None:
    browser.evaluate(
        f"""(() => {{ const e = document.getElementById({element!r}); e.value = {value!r};
        e.dispatchEvent(new Event('change')); }})()"""
    )


def test_a_panel_with_its_own_legend_has_its_own_colours() -> None:
    rows = [{"a": a, "b": b, "speedup": 10 * a + b} for a in range(3) for b in range(3)]
    own, others = figures.over_axes(rows, ["a", "b"], "speedup", True).axes
    assert own.get_legend() is not None
    colours = [{line.get_color() for line in panel.get_lines()} for panel in (own, others)]
    assert [len(found) for found in colours] == [3, 3]
    assert not colours[0] & colours[1]


# -- explain ----------------------------------------------------------------------------------------------


def test_explaining_a_point_adds_up_to_its_row(folder: Path, records: list[dict[str, Any]]) -> None:
    text = explanation(folder, "3")
    assert "hash_bits = 16, ratio = 0.11, link = pcie4_x4" in text
    shares = [float(x) for x in re.findall(r"([\d.]+) %$", text.partition("time: ")[2].partition("energy: ")[0], re.M)]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert shares == sorted(shares, reverse=True)
    assert explanation(folder / "results.csv", records[3]["id"][:6]) == text


def test_explaining_against_another_point_names_the_change_and_sorts_by_size(
    folder: Path, records: list[dict[str, Any]]
) -> None:
    text = explanation(folder, "3", "2")
    assert "link: pcie3_x4 -> pcie4_x4" in text
    assert "hash_bits" not in text
    changes = [abs(float(x)) for x in re.findall(r"^  \w+ +([+-][\d.]+) ms ", text, re.M)]
    assert changes == sorted(changes, reverse=True)
    assert changes
    assert "energy gain" in text


def test_explaining_against_the_baseline_compares_runs_of_the_same_point(
    folder: Path, records: list[dict[str, Any]]
) -> None:
    text = explanation(folder, "3", "baseline")
    assert "against point 3" in text
    assert "agx_orin+full" in text
    assert "gpu" in text


def test_what_cannot_be_explained_is_refused(folder: Path, records: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no point '99': give a number"):
        explanation(folder, "99")
    with pytest.raises(ConfigError, match="point 5 failed: ValueError"):
        explanation(folder, "5")
    with pytest.raises(OutputError, match="holds no sweep"):
        explanation(tmp_path, "0")
    with pytest.raises(ConfigError, match=r"no point 'ab': .*at least 4 characters"):
        explanation(folder, "ab")
    missing = CliRunner().invoke(main, ["explain", str(tmp_path / "nodir"), "0"])
    assert f"'{tmp_path / 'nodir'}' holds no sweep" in missing.stderr
    result = CliRunner().invoke(main, ["explain", str(tmp_path), "0"])
    assert result.exit_code == 2
    assert "resv-sim: error: " in result.stderr
    shown = CliRunner().invoke(main, ["explain", str(folder), "3", "2"])
    assert shown.exit_code == 0
    assert shown.stdout.startswith("point 3")
