"""Every picosecond has one cause, and they add up to the latency."""

from hypothesis import given
from hypothesis import strategies as st

from dre_sim.breakdown import exposed_ps, prediction_ps
from dre_sim.timeline import Span, Timeline, covered_ps


def test_compute_hides_what_runs_beside_it_and_the_rest_is_exposed() -> None:
    spans = (
        Span("lxe", 0, 10, "linear", 0),
        Span("link", 5, 25, "fetch", 1),
        Span("wtu", 2, 5, "prediction", 1),
        Span("lxe", 27, 30, "attention", 1),
        Span("dram", 0, 30, "linear", 0),
    )
    timeline = Timeline("t", spans, {}, 30)
    assert exposed_ps(timeline) == {"linear": 10, "fetch": 15, "idle": 2, "attention": 3}
    assert prediction_ps(timeline) == 3


def test_what_ends_after_the_step_is_cut_at_its_end() -> None:
    spans = (Span("gpu", 0, 8, "linear", 0), Span("link_up", 6, 20, "offload", 0))
    assert exposed_ps(Timeline("t", spans, {}, 10)) == {"linear": 8, "offload": 2}


spans = st.lists(
    st.tuples(st.sampled_from(["lxe", "link", "hcu"]), st.integers(0, 50), st.integers(0, 30)), max_size=12
)


@given(spans, st.integers(1, 60))
def test_causes_add_up_to_the_latency_and_agree_with_a_picosecond_by_picosecond_count(
    rows: list[tuple[str, int, int]], end: int
) -> None:
    made = tuple(Span(r, s, s + d, f"{r}-work", 0) for r, s, d in rows)
    exposed = exposed_ps(Timeline("t", made, {}, end))
    assert sum(exposed.values()) == end
    slow: dict[str, int] = {}
    for t in range(end):
        open_ = [s for s in made if s.start_ps <= t < s.end_ps]
        cause = min(open_, key=lambda s: (s.resource != "lxe", s.start_ps)).what if open_ else "idle"
        slow[cause] = slow.get(cause, 0) + 1
    assert exposed == slow


def test_covered_time_counts_overlaps_once() -> None:
    assert covered_ps([(0, 5), (3, 9), (20, 21)]) == 10
    assert covered_ps([]) == 0
