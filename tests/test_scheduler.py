"""Laws of the task graph: closed forms, capacity, order, determinism."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dre_sim.scheduler import DRAM, TaskGraph, max_min_shares


def test_tasks_on_one_resource_follow_each_other_in_program_order() -> None:
    g = TaskGraph()
    g.add("lxe", "a", 0, 5)
    g.add("lxe", "b", 0, 7)
    spans, end = g.run()
    assert [(s.what, s.start_ps, s.end_ps) for s in spans] == [("a", 0, 5), ("b", 5, 12)]
    assert end == 12


def test_a_dependent_task_starts_when_its_last_dependency_ends_and_not_before() -> None:
    g = TaskGraph()
    a = g.add("lxe", "a", 0, 5)
    b = g.add("hcu", "b", 0, 9)
    g.add("wtu", "c", 0, 1, (a, b))
    spans, end = g.run()
    assert next(s for s in spans if s.what == "c").start_ps == 9
    assert end == 10


def test_independent_tasks_on_two_resources_overlap() -> None:
    g = TaskGraph()
    g.add("lxe", "compute", 0, 100)
    g.add("link", "fetch", 0, 80)
    assert g.run()[1] == 100


def test_a_memory_bound_task_lasts_its_memory_time() -> None:
    g = TaskGraph()
    g.add("lxe", "linear", 0, 30, dram_ps=100, dram_bytes=64)
    spans, end = g.run()
    assert end == 100
    (dram,) = [s for s in spans if s.resource == DRAM]
    assert (dram.start_ps, dram.end_ps, dram.share, dram.n_bytes) == (0, 100, 1.0, 64)


def test_two_saturating_streams_take_twice_as_long_and_a_trickle_is_not_starved() -> None:
    g = TaskGraph()
    g.add("lxe", "weights", 0, 0, dram_ps=100)
    g.add("link", "fetch", 0, 0, dram_ps=100)
    assert g.run()[1] == 200

    g = TaskGraph()
    g.add("lxe", "weights", 0, 0, dram_ps=1000)
    g.add("link", "fetch", 0, 1000, dram_ps=20)
    spans, end = g.run()
    assert next(s for s in spans if s.what == "fetch" and s.resource == "link").end_ps == 1000
    assert end == 1020


def test_zero_work_passes_dependencies_on() -> None:
    g = TaskGraph()
    a = g.add("lxe", "a", 0, 4)
    nothing = g.add("wtu", "nothing", 0, 0, (a,))
    g.add("lxe", "b", 0, 4, (nothing,))
    assert g.run()[1] == 8


def test_forward_dependencies_and_negative_work_are_refused() -> None:
    g = TaskGraph()
    with pytest.raises(ValueError, match="depends on"):
        g.add("lxe", "a", 0, 1, (0,))
    with pytest.raises(ValueError, match="negative"):
        g.add("lxe", "a", 0, -1)
    with pytest.raises(ValueError, match="shared"):
        g.add(DRAM, "a", 0, 1)


@given(st.lists(st.floats(0.0, 1.0), max_size=8))
def test_max_min_shares_never_exceed_demand_or_capacity_and_waste_nothing(demands: list[float]) -> None:
    shares = max_min_shares(demands)
    assert all(s <= d + 1e-12 for s, d in zip(shares, demands, strict=True))
    assert sum(shares) <= 1 + 1e-9
    assert sum(shares) == pytest.approx(min(1.0, sum(demands)))


tasks = st.lists(
    st.tuples(
        st.sampled_from(["lxe", "link", "hcu"]),
        st.integers(0, 50),
        st.integers(0, 50),
        st.lists(st.integers(1, 5), max_size=2),
    ),
    max_size=25,
)


@given(tasks)
def test_any_graph_respects_exclusivity_capacity_dependencies_and_conserves_bytes(
    rows: list[tuple[str, int, int, list[int]]],
) -> None:
    g = TaskGraph()
    for i, (resource, duration, dram, back) in enumerate(rows):
        after = tuple({i - b for b in back if i - b >= 0})
        g.add(resource, f"{i}", 0, duration, after, dram_ps=dram, dram_bytes=dram * 7)
    spans, end = g.run()
    ends = {s.what: s.end_ps for s in spans if s.resource != DRAM}
    starts = {s.what: s.start_ps for s in spans if s.resource != DRAM}
    for i, (_, duration, dram, back) in enumerate(rows):
        if max(duration, dram) == 0:
            continue
        assert ends[f"{i}"] - starts[f"{i}"] >= max(duration, dram)
        for b in back:
            if i - b >= 0 and f"{i - b}" in ends:
                assert starts[f"{i}"] >= ends[f"{i - b}"]
        assert sum(s.n_bytes for s in spans if s.resource == DRAM and s.what == f"{i}") == dram * 7
    for resource in ("lxe", "link", "hcu"):
        own = sorted((s.start_ps, s.end_ps) for s in spans if s.resource == resource)
        assert all(a[1] <= b[0] for a, b in pairwise(own))
    edges = sorted({t for s in spans for t in (s.start_ps, s.end_ps)})
    for t in edges:
        assert sum(s.share for s in spans if s.resource == DRAM and s.start_ps <= t < s.end_ps) <= 1 + 1e-9
    assert end == max((s.end_ps for s in spans), default=0)


def test_the_same_graph_gives_the_same_spans() -> None:
    def build() -> TaskGraph:
        g = TaskGraph()
        for layer in range(20):
            a = g.add("lxe", "linear", layer, 100 + layer, dram_ps=170)
            g.add("link", "fetch", layer, 130, (a,), dram_ps=3)
        return g

    assert build().run() == build().run()
