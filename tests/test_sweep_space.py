"""Which points a sweep has, and what is refused before anything runs; fronts and shares of variance by closed forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from resv_sim.cli import main
from resv_sim.config import load_tree
from resv_sim.errors import ConfigError
from resv_sim.library import bundled
from resv_sim.sweep import fronts
from resv_sim.sweep.config import Axis, Constraint, LogRange, Range
from resv_sim.sweep.progress import SweepProgress
from resv_sim.sweep.space import point_at, points, sweep_of, validate_points
from tests.sweeps import load_sweep, sweep_data, write_sweep


def axis(data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The sweep with its `ratio` axis replaced."""
    data["sweep"]["axes"]["ratio"] = changes
    data["sweep"]["published"] = {}
    return data


def refused(tmp_path: Path, data: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as error:
        load_sweep(tmp_path, data)
    return str(error.value)


def test_a_grid_is_every_combination_the_last_axis_fastest(tmp_path: Path) -> None:
    sweep = load_sweep(tmp_path, sweep_data(3))
    found = points(sweep.config)
    assert [p.index for p in found] == list(range(12))
    assert found[0].names == {"hash_bits": 16, "ratio": 0.1, "link": "pcie3_x4"}
    assert found[1].names == {"hash_bits": 16, "ratio": 0.1, "link": "pcie4_x4"}
    assert found[-1].overrides == {
        "policies.resv.hash_bits": 32,
        "policies.resv.hamming_threshold": 7,
        "policies.resv.wicsum.ratio": 0.12,
        "platforms.vrex8.offload.link": "pcie4_x4",
    }
    assert len({p.id for p in found}) == 12
    assert [p.id for p in points(load_sweep(tmp_path, sweep_data(3)).config)] == [p.id for p in found]


def test_overrides_reach_the_experiment_through_references(tmp_path: Path) -> None:
    sweep = load_sweep(tmp_path, sweep_data(1))
    made = [experiment for _, experiment in validate_points(sweep, points(sweep.config))]
    assert [e.policies["resv"].hash_bits for e in made] == [16, 16, 32, 32]
    assert [e.platforms["vrex8"].offload.link.name for e in made] == ["pcie3_x4", "pcie4_x4"] * 2
    assert made[0].policies["full"] == sweep.base.policies["full"]


def test_a_price_is_a_field_of_its_platform(tmp_path: Path) -> None:
    table = load_sweep(tmp_path, sweep_data(1)).base.energy["vrex8"].model_dump(mode="json")
    name = next(key for key, value in table.items() if isinstance(value, dict))
    inner = next(iter(table[name]))
    where = f"platforms.vrex8.energy.{name}.{inner}"
    data = axis(sweep_data(), path=where, values=["x"])
    load_sweep(tmp_path, data)
    assert "Did you mean" in refused(tmp_path, axis(sweep_data(), path=f"platforms.vrex8.energy.{name}x", values=[1]))


def test_a_random_sweep_draws_its_budget_the_same_way_every_time(tmp_path: Path) -> None:
    data = axis(sweep_data(), path="policies.resv.wicsum.ratio", range={"start": 0.1, "stop": 0.4})
    data["sweep"] |= {"mode": "random", "budget": 40}
    sweep = load_sweep(tmp_path, data)
    found = points(sweep.config)
    assert len(found) == 40
    assert found == points(sweep.config)
    ratios = [float(p.names["ratio"]) for p in found]
    assert all(0.1 <= ratio <= 0.4 for ratio in ratios)
    assert len(set(ratios)) == 40
    assert np.histogram(ratios, bins=3, range=(0.1, 0.4))[0].min() > 5
    assert {p.names["hash_bits"] for p in found} == {16, 32}
    assert all(len(list(validate_points(sweep, [p]))) == 1 for p in found)


@pytest.mark.parametrize(
    ("changes", "drawn"),
    [
        ({"logrange": {"start": 1, "stop": 1000}}, range(1, 1001)),
        ({"range": {"start": 1, "stop": 4}}, range(1, 5)),
        ({"range": {"start": 1, "stop": 7, "step": 2}}, range(1, 8, 2)),
        ({"values": [3, 5, 9]}, (3, 5, 9)),
    ],
)
def test_a_random_sweep_draws_whole_numbers_from_all_of_a_range(
    tmp_path: Path, changes: dict[str, Any], drawn: range | tuple[int, ...]
) -> None:
    data = axis(sweep_data(), path="policies.resv.n_sink", **changes)
    data["sweep"] |= {"mode": "random", "budget": 300}
    found = points(load_sweep(tmp_path, data).config)
    values = [p.overrides["policies.resv.n_sink"] for p in found]
    assert values == [p.names["ratio"] for p in found]
    assert {type(value) for value in values} == {int}
    assert set(values) <= set(drawn)
    if len(drawn) < 10:
        assert min(values.count(value) for value in drawn) > 0.7 * 300 / len(drawn), "each is as likely"
    else:
        decades = np.histogram(np.log10(np.array(values, dtype=float)), bins=3, range=(0, 3))[0]
        assert decades.min() > 70, "every decade is as likely"


def test_a_search_asks_for_indices_of_values_and_for_numbers_of_ranges(tmp_path: Path) -> None:
    data = axis(sweep_data(), path="policies.resv.wicsum.ratio", range={"start": 0.1, "stop": 0.4})
    data["sweep"] |= {"mode": "random", "budget": 4}
    config = load_sweep(tmp_path, data).config
    found, again = (point_at(config, index, {"hash_bits": 1, "ratio": 0.25, "link": 0}) for index in (7, 8))
    assert found.names == {"hash_bits": 32, "ratio": 0.25, "link": "pcie3_x4"}
    assert found.overrides == {
        "policies.resv.hash_bits": 32,
        "policies.resv.hamming_threshold": 7,
        "policies.resv.wicsum.ratio": 0.25,
        "platforms.vrex8.offload.link": "pcie3_x4",
    }
    assert (found.index, again.overrides) == (7, found.overrides)
    assert found.id != again.id, "a design that is drawn twice is two points"


def test_ranges_include_both_ends() -> None:
    assert Range(start=1, stop=7, step=2).values() == (1, 3, 5, 7)
    assert Range(start=0.1, stop=0.3, step=0.1).values() == (0.1, 0.2, 0.3)
    assert LogRange(start=8, stop=64, points=4).values() == (8, 16, 32, 64)
    assert LogRange(start=0.001, stop=0.1, points=3).values() == (0.001, 0.01, 0.1)
    assert Axis(path="a", values=(1,)).discrete
    assert not Axis(path="a", range=Range(start=1, stop=2)).discrete


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"path": "policies.resv.wicsum.ratoi", "values": [0.1]},
            r"sweep.axes.ratio: 'policies.resv.wicsum.ratoi' is not a field: policies.resv.wicsum has no 'ratoi'. "
            "Did you mean 'ratio'?",
        ),
        ({"path": "policies.resvv.hash_bits", "values": [8]}, "policies has no 'resvv'. Did you mean 'resv'?"),
        ({"path": "name.x", "values": [8]}, "'name.x' is not a field: nothing lies below name."),
        ({"path": "policies.resv.n_sink", "range": {"start": 5, "stop": 1, "step": 1}}, "an empty range: start (5)"),
        ({"path": "policies.resv.n_sink", "logrange": {"start": 5, "stop": 1, "points": 3}}, "an empty range"),
        ({"path": "policies.resv.n_sink", "values": []}, "at least 1 item"),
        ({"path": "policies.resv.n_sink", "range": {"start": 1, "stop": 5}}, "a grid needs a step in a range"),
        ({"path": "policies.resv.n_sink", "range": {"start": 1, "stop": 5, "step": 0}}, "step is 0"),
        ({"path": "policies.resv.n_sink", "range": {"start": 8, "stop": float("inf"), "step": 1}}, "finite number"),
        ({"path": "policies.resv.n_sink", "range": {"start": 0, "stop": 8, "step": 1e-12}}, "more than 100000 values"),
        ({"path": "policies.resv.n_sink", "logrange": {"start": 1, "stop": 9, "points": 10**9}}, "equal to 100000"),
        ({"path": "policies.resv.n_sink", "values": [1, 1]}, "not all different"),
        ({"path": "policies.resv.n_sink"}, "one of values, range, logrange or set must be given, not none"),
        ({"values": [1]}, "path names the field"),
        ({"set": {"policies.resv.n_sink": [1, 2], "trace.seed": [1]}}, "equally many values"),
        ({"path": "policies.resv.hash_bits", "values": [8]}, "set by more than one axis"),
        ({"path": "policies.resv.n_sink", "value": [1]}, "Did you mean 'values'?"),
    ],
)
def test_a_wrong_axis_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in refused(tmp_path, axis(sweep_data(), **changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"constraints": ["fps > 2"]}, "must be COLUMN >= NUMBER or COLUMN <= NUMBER"),
        ({"constraints": ["fsp >= 2"]}, "Did you mean 'fps'?"),
        ({"constraints": ["fps >= two"]}, "'two' is not a finite number"),
        ({"constraints": ["fps >= nan"]}, "'nan' is not a finite number"),
        ({"figures": ["platform"]}, "'platform' is no number"),
        ({"measure": {"platform": "vrex8", "policy": "full"}}, "no run 'vrex8+full'"),
        ({"measure": {"platform": "vrex8", "policy": "resv", "stage": "decode"}}, "not in workload.stages (frame)"),
        ({"measure": {"platform": "vrex8", "policy": "resv", "kv_len_tokens": 7}}, "not in workload.kv_lengths"),
        ({"mode": "random"}, "need a budget"),
        ({"mode": "search", "budget": 5}, "belong together"),
        ({"published": {"hash_bit": 3}}, "Did you mean 'hash_bits'?"),
        ({"axes": {"fps": {"path": "video.fps", "values": [1]}}, "published": {}}, "is a column of results.csv"),
        ({"axes": {}, "published": {}}, "at least 1 item"),
    ],
)
def test_a_wrong_section_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in refused(tmp_path, sweep_data(**changes))


def test_a_value_that_a_field_refuses_is_named_with_its_point_and_its_axis_line(tmp_path: Path) -> None:
    sweep = load_sweep(tmp_path, axis(sweep_data(), path="policies.resv.wicsum.ratio", values=[0.3, 2.0]))
    lines = (tmp_path / "sweep.yaml").read_text().splitlines()
    line = lines.index("    ratio:") + 1
    with pytest.raises(ConfigError, match=rf"^point 2: .*sweep\.yaml:{line}: policies\.resv\.wicsum\.ratio = 2\.0: in"):
        list(validate_points(sweep, points(sweep.config)))


def test_options_of_sweeps_are_refused_elsewhere(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--config", "quick.yaml", "--resume"])
    assert result.exit_code == 2
    assert "--resume is for sweeps" in result.stderr
    path = write_sweep(tmp_path, axis(sweep_data(), path="policies.resv.n_sonk", values=[1]))
    result = CliRunner().invoke(main, ["--config", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "Did you mean 'n_sink'?" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [n for n in bundled() if n.startswith(("sweep_", "search_"))])
def test_every_point_of_a_bundled_sweep_is_an_experiment(name: str) -> None:
    sweep = sweep_of(*load_tree(name))
    found = list(validate_points(sweep, points(sweep.config))) if sweep.config.mode != "search" else []
    assert len({str(point.names) for point, _ in found}) == len(found)
    published = sweep.config.published
    if found and published:
        assert any(dict(point.names) | published == dict(point.names) for point, _ in found)


# -- fronts and shares ------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30))
def test_a_front_is_what_nobody_beats(costs: list[tuple[int, int]]) -> None:
    rows = {i: {"latency_s": a, "speedup": b} for i, (a, b) in enumerate(costs)}
    got = fronts.front(rows, {"latency_s": "minimize", "speedup": "maximize"})
    want = [i for i, (a, b) in enumerate(costs) if not any(x <= a and y >= b and (x < a or y > b) for x, y in costs)]
    assert got == want


def test_a_row_without_one_of_the_objectives_is_on_no_front() -> None:
    rows = {3: {"latency_s": 1.0, "fps": None}, 5: {"latency_s": 2.0, "fps": 4.0}, 7: {"latency_s": 3.0, "fps": 4.0}}
    assert fronts.front(rows, {"latency_s": "minimize", "fps": "maximize"}) == [5]
    assert fronts.front(rows, {"latency_s": "minimize"}) == [3]
    assert fronts.front({3: rows[3]}, {"fps": "maximize"}) == []


def test_rows_without_the_figure_explain_none_of_it() -> None:
    rows = [{"a": a, "y": y} for a, y in ((1, 2.0), (1, 4.0), (2, 6.0), (2, 8.0))]
    gaps = [{"a": 3, "y": None}, *rows, {"a": 2, "y": None}]
    assert fronts.explained(gaps, ["a"], "y") == fronts.explained(rows, ["a"], "y") == {"a": pytest.approx(4 / 5)}
    assert fronts.explained(gaps[:1], ["a"], "y") == {"a": 0.0}


def test_shares_of_variance_add_up_on_an_additive_grid() -> None:
    rows = [{"a": a, "b": b, "c": c, "y": 3.0 * a + b} for a in (0, 1) for b in (0, 1, 2) for c in "xy"]
    shares = fronts.explained(rows, ["a", "b", "c"], "y")
    part_a, part_b = 9 * np.var([0, 1]), np.var([0, 1, 2])
    assert shares["a"] == pytest.approx(part_a / (part_a + part_b))
    assert shares["a"] + shares["b"] == pytest.approx(1)
    assert shares["c"] == pytest.approx(0)
    assert fronts.explained(rows, ["a"], "b")["a"] == pytest.approx(0)
    assert fronts.explained([{"a": 1, "y": 5.0}, {"a": 2, "y": 5.0}], ["a"], "y") == {"a": 0.0}


def test_a_constraint_is_violated_by_how_far_it_is_missed() -> None:
    assert Constraint("fps", ">=", 2.0).violation(1.5) == 0.5
    assert Constraint("area_mm2", "<=", 16.0).violation(15.0) == -1.0
    assert Constraint("fps", ">=", 2.0).violation(None) == float("inf")
    bounds = [Constraint("fps", ">=", 2.0), Constraint("area_mm2", "<=", 16.0)]
    assert fronts.holds({"fps": 2.0, "area_mm2": 16.0}, bounds)
    assert not fronts.holds({"fps": 2.0, "area_mm2": 16.1}, bounds)
    assert not fronts.holds({"fps": 1.9, "area_mm2": 16.0}, bounds)


def test_progress_says_rate_and_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = SweepProgress(10, 4)
    now[0] += 10
    progress.finished(failed=False)
    now[0] += 10
    progress.finished(failed=True)
    assert capsys.readouterr().err.splitlines() == [
        "5/10 points, 0.10/s, 50 s left",
        "6/10 points, 1 failed, 0.10/s, 40 s left",
    ]
