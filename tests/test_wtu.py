"""The WTU: its rescanning twin, closed forms, laws, and agreement with `resv.wicsum`."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dre_sim.wtu import (
    WtuConfig,
    heads_over_cores,
    segment_elements,
    simulate_wtu,
    wtu_cycles_over_cores,
)
from resv.wicsum import WicsumConfig, bucketed
from tests import naive_dre


def bf16(values):
    """Nearest bf16 values, halves to even, as float32."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def random_scores(rng, n_rows, n):
    kind = rng.integers(5)
    logits = rng.standard_normal((n_rows, n)) * rng.choice([0.1, 1.0, 4.0])
    if kind == 0:
        return bf16(logits + rng.choice([0.0, 1.0, -2.0]))
    if kind == 1:
        return bf16(rng.integers(0, 4, (n_rows, n)))
    if kind == 2:
        return bf16(logits * (logits > 0))  # with -0.0
    return bf16(np.exp(logits - logits.max(axis=1, keepdims=True)))


def random_case(rng):
    lanes = int(rng.choice([1, 2, 3, 4, 16, 64]))
    n_rows, n = int(rng.integers(1, 4)), int(rng.integers(1, 70))
    scores = random_scores(rng, n_rows, n)
    exponent = scores.min() >= 0 and rng.integers(2)
    wicsum = WicsumConfig(
        ratio=float(rng.choice([0.05, 0.3, 0.5, 0.9, 1.0])),
        buckets=int(rng.choice([1, 2, 7, 32])),
        edges="exponent" if exponent else "linear",
        mantissa_bits=int(rng.integers(0, 8)),
        score_bits=16 if exponent else int(rng.choice([1, 3, 8, 15, 16, 16])),
        exit=str(rng.choice(["bucket", "group", "none"])),
        group_size=lanes,
    )
    small = bool(rng.integers(2))
    config = WtuConfig(
        lanes=lanes,
        score_bytes=max(2 * lanes, 32) if small else 8192,
        count_bytes=max(2 * lanes, 64) if small else 8192,
        spill_bytes_per_cycle=int(rng.choice([1, 32, 100])),
    )
    return config, wicsum, scores, rng.integers(1, 50, n, dtype=np.int32)


def assert_same_as_twin(case):
    got, expected = simulate_wtu(*case), naive_dre.wtu(*case)
    assert {name: np.asarray(getattr(got, name)).tolist() for name in expected} == expected


@pytest.mark.parametrize("seed", range(8))
def test_selection_cycles_and_counts_are_those_of_the_rescanning_twin(seed):
    rng = np.random.default_rng(seed)
    for _ in range(120):
        assert_same_as_twin(random_case(rng))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 100, width=16), st.integers(1, 9)), min_size=1, max_size=20),
    st.floats(0.01, 1.0),
    st.integers(1, 33),
    st.sampled_from(["bucket", "group", "none"]),
    st.sampled_from([("linear", 16), ("linear", 5), ("exponent", 16)]),
)
def test_any_row_gives_what_the_twin_gives(row, ratio, buckets, exit_, held):
    scores = bf16([[score for score, _ in row]])
    counts = np.array([count for _, count in row], np.int32)
    wicsum = WicsumConfig(ratio=ratio, buckets=buckets, exit=exit_, edges=held[0], score_bits=held[1], group_size=4)
    assert_same_as_twin((WtuConfig(lanes=4), wicsum, scores, counts))


@pytest.mark.parametrize("seed", range(4))
def test_the_unit_selects_what_resv_selects(seed):
    rng = np.random.default_rng(1000 + seed)
    for _ in range(300):
        config, wicsum, scores, counts = random_case(rng)
        got = simulate_wtu(config, wicsum, scores, counts)
        mask, stats = bucketed(scores, counts, wicsum)
        assert np.array_equal(got.selected, mask.any(axis=0))
        assert np.array_equal(got.row_selected, stats.selected)
        assert np.array_equal(got.buckets_visited, stats.buckets_visited)
        assert got.elements_visited == stats.elements_visited.sum()


def test_figure_9_selects_exactly_three_clusters():
    """V-Rex (HPCA 2026, arXiv 2512.12284), Fig. 9: total 95, threshold 76, sums 36, 60, 81."""
    scores = bf16([[8, 1, 9, 2, 7, 1]])
    counts = np.array([3, 4, 4, 3, 3, 4], np.int32)
    assert (scores[0] * counts).sum() == 95
    got = simulate_wtu(WtuConfig(), WicsumConfig(ratio=0.8), scores, counts)
    assert np.flatnonzero(got.selected).tolist() == [0, 2, 4]
    assert got.overshoot.tolist() == [0]


def test_cycles_of_one_row_by_hand():
    """100 clusters on 16 lanes: 7 groups and the tree's 6 cycles, then 7 + 1 a bucket."""
    scores, counts = bf16(np.full((1, 100), 1.0)), np.ones(100, np.int32)
    scores[0, 40] = 2.0
    for exit_, cycles, visited in (
        ("bucket", 13 + 8, 1),
        ("none", 13 + 32 * 8, 32),
        ("group", 13 + 3 + 6, 1),
    ):
        counts[40] = 1000
        got = simulate_wtu(WtuConfig(), WicsumConfig(exit=exit_), scores, counts)
        assert got.row_cycles.tolist() == [cycles]
        assert got.buckets_visited.tolist() == [visited]
        assert np.flatnonzero(got.selected).tolist() == [40]
    assert got.union_words == 2
    assert got.cycles == 13 + 3 + 6 + 2


def test_a_group_exit_does_not_select_later_groups_of_its_bucket():
    scores, counts = bf16(np.ones((1, 64))), np.ones(64, np.int32)
    got = simulate_wtu(WtuConfig(), WicsumConfig(exit="group"), scores, counts)
    assert got.selected_count == 32  # 16 do not exceed 19.2, 32 do
    assert got.elements_visited == 32
    assert simulate_wtu(WtuConfig(), WicsumConfig(), scores, counts).selected_count == 64


def test_a_sum_that_only_reaches_the_threshold_does_not_end_the_row():
    scores, counts = bf16([[4.0, 2.0, 2.0]]), np.ones(3, np.int32)
    at, below = (simulate_wtu(WtuConfig(), WicsumConfig(ratio=r), scores, counts) for r in (0.5, 0.49))
    assert (at.selected_count, below.selected_count) == (3, 1)


def test_a_row_without_positive_total_keeps_its_first_top_cluster_and_visits_no_bucket():
    scores, counts = bf16([[-3.0, -1.0, -1.0]]), np.ones(3, np.int32)
    got = simulate_wtu(WtuConfig(), WicsumConfig(), scores, counts)
    assert got.selected.tolist() == [False, True, False]
    assert (got.buckets_visited[0], got.row_cycles[0], got.elements_visited) == (0, 1 + 6, 0)


def test_a_ratio_of_one_selects_everything_after_the_last_bucket():
    rng = np.random.default_rng(3)
    scores, counts = bf16(np.exp(rng.standard_normal((20, 500)))), rng.integers(1, 60, 500, dtype=np.int32)
    for edges in ("linear", "exponent"):
        got = simulate_wtu(WtuConfig(), WicsumConfig(ratio=1.0, edges=edges), scores, counts)
        assert (got.row_selected == 500).all()
        assert (got.buckets_visited == 32).all()


def test_a_row_of_zeros_of_either_sign_is_one_bucket_of_exponent_edges():
    scores, counts = bf16([[-0.0, 0.0, -0.0]]), np.ones(3, np.int32)
    fields = WicsumConfig(edges="exponent", ratio=1.0, buckets=4)
    got = simulate_wtu(WtuConfig(), fields, scores, counts)
    assert (got.selected_count, got.buckets_visited[0]) == (3, 4)
    assert simulate_wtu(WtuConfig(), fields.model_copy(update={"ratio": 0.3}), scores, counts).selected_count == 1


def test_no_candidates_cost_nothing():
    empty = simulate_wtu(WtuConfig(), WicsumConfig(), np.empty((4, 0), np.float32), np.empty(0, np.int32))
    assert (empty.cycles, empty.n_rows, empty.selected_count) == (0, 4, 0)


@pytest.fixture(scope="module")
def cases():
    rng = np.random.default_rng(9)
    return [random_case(rng) for _ in range(300)]


def test_exit_none_selects_what_bucket_does_and_is_never_faster(cases):
    for config, wicsum, scores, counts in cases:
        with_exit, without = (
            simulate_wtu(config, wicsum.model_copy(update={"exit": e}), scores, counts) for e in ("bucket", "none")
        )
        assert np.array_equal(with_exit.selected, without.selected)
        assert (without.row_cycles >= with_exit.row_cycles).all()


def test_twice_the_lanes_are_never_slower_on_rows_longer_than_the_lanes(cases):
    rows = 0
    for config, wicsum, scores, counts in cases:
        if scores.shape[1] <= config.lanes:
            continue
        wicsum = wicsum.model_copy(update={"exit": "bucket"})
        narrow, wide = (
            simulate_wtu(WtuConfig(lanes=w), wicsum, scores, counts) for w in (config.lanes, 2 * config.lanes)
        )
        assert (wide.row_cycles <= narrow.row_cycles).all()
        rows += len(scores)
    assert rows > 100


def test_whole_buckets_contain_the_exact_prefix(cases):
    """The prefix in exact arithmetic; scores of 16 bits that are not negative."""
    rows = 0
    for config, wicsum, scores, counts in cases:
        if wicsum.score_bits < 16 or scores.min() < 0 or wicsum.exit == "group" or wicsum.ratio == 1.0:
            continue
        got = simulate_wtu(config, wicsum, scores, counts)
        for r, row in enumerate(scores.astype(float)):
            order = sorted(range(len(row)), key=lambda i: (-row[i], i))
            limit = Fraction(wicsum.ratio * float((row * counts).sum()))
            running, prefix = Fraction(0), 0
            while prefix < len(row) and running <= limit:
                running += Fraction(row[order[prefix]]) * int(counts[order[prefix]])
                prefix += 1
            assert got.selected[order[:prefix]].all()
            if got.buckets_visited[r]:
                assert got.overshoot[r] == got.row_selected[r] - prefix >= 0
                rows += 1
    assert rows > 100


def test_a_row_that_does_not_fit_is_read_from_memory_at_every_pass():
    """48 clusters, 2 + 2 bytes each, memories of 32; a pass brings 192 bytes at 32 a cycle: 6 > 3 groups."""
    scores, counts = bf16(np.ones((2, 48))), np.ones(48, np.int32)
    config = WtuConfig(score_bytes=64, count_bytes=64)
    assert segment_elements(config, 16) == 32
    got = simulate_wtu(config, WicsumConfig(), scores, counts)
    assert got.row_cycles.tolist() == [6 + 6 + (6 + 1)] * 2
    assert (got.spills, got.spill_bytes) == (2, 2 * (96 + 2 * 192))
    fits = simulate_wtu(config, WicsumConfig(), scores[:, :32], counts[:32])
    assert (fits.spills, fits.spill_bytes) == (0, 0)


def test_fewer_score_bits_hold_longer_rows():
    config = WtuConfig()
    assert (segment_elements(config, 16), segment_elements(config, 8)) == (4096, 4096)
    assert segment_elements(WtuConfig(count_bytes=16384), 8) == 8192


@pytest.mark.parametrize(
    ("sigma", "fields", "visited", "selected_pct"),
    [
        (1.0, {"edges": "linear"}, 27.0, 8.1),
        (1.0, {"edges": "exponent", "mantissa_bits": 1}, 1 + 5.7, 9.2),
        (1.0, {"edges": "exponent", "mantissa_bits": 2}, 1 + 10.8, 7.7),
        (2.0, {"edges": "linear"}, 24.3, 1.8),
        (2.0, {"edges": "exponent", "mantissa_bits": 1}, 1 + 4.9, 1.1),
    ],
)
def test_figures_of_the_units_page_on_normal_logits(sigma, fields, visited, selected_pct):
    """docs/dre.md, WTU: 1,250 clusters of geometric size, 32 tokens on average; ratio 0.3."""
    rng = np.random.default_rng(11)
    results = []
    for _ in range(20):
        logits = sigma * rng.standard_normal((100, 1250))
        scores = bf16(np.exp(logits - logits.max(axis=1, keepdims=True)))
        counts = rng.geometric(1 / 32, 1250).astype(np.int32)
        results.append(simulate_wtu(WtuConfig(), WicsumConfig(**fields), scores, counts))
    selected = np.concatenate([got.row_selected for got in results])
    exact = selected - np.concatenate([got.overshoot for got in results])
    assert np.mean([got.buckets_visited.mean() for got in results]) == pytest.approx(visited, rel=0.05)
    # In 1 % of the rows at sigma 2, linear buckets select everything: a mean of rare large values.
    tolerance = 0.35 if (sigma, fields["edges"]) == (2.0, "linear") else 0.07
    assert selected.mean() / 12.5 == pytest.approx(selected_pct, rel=tolerance)
    assert exact.mean() / 12.5 == pytest.approx({1.0: 6.5, 2.0: 0.95}[sigma], rel=0.06)


def test_heads_are_dealt_round_robin_and_a_core_works_its_own_off_one_after_the_other():
    assert heads_over_cores([5, 1, 2, 7], 2) == 8
    assert heads_over_cores([5, 1, 2, 7], 4) == 7
    assert heads_over_cores([5, 1, 2, 7], 100) == 7
    assert heads_over_cores([], 8) == 0


def test_rows_of_a_head_are_dealt_to_its_cores_and_masks_merged_pairwise():
    rng = np.random.default_rng(2)
    counts = np.ones(100, np.int32)
    heads = [simulate_wtu(WtuConfig(), WicsumConfig(), bf16(rng.random((7, 100))), counts) for _ in range(2)]
    assert wtu_cycles_over_cores(heads, 1) == sum(h.cycles for h in heads)
    assert wtu_cycles_over_cores(heads, 2) == max(h.cycles for h in heads)
    busiest = [max(int(h.row_cycles[u::3].sum()) + 2 * len(h.row_cycles[u::3]) for u in range(3)) for h in heads]
    assert wtu_cycles_over_cores(heads, 6) == max(busiest) + 2 * 2
    three_and_two = [busiest[0] + 4, max(int((heads[1].row_cycles[u::2] + 2).sum()) for u in range(2)) + 2]
    assert wtu_cycles_over_cores(heads, 5) == max(three_and_two)
    assert wtu_cycles_over_cores(heads, 10**6) == max(int(h.row_cycles.max()) + 2 for h in heads) + 3 * 2


def test_bad_input_is_named():
    scores, counts = bf16(np.ones((1, 4))), np.ones(4, np.int32)
    fine = WicsumConfig()
    for wicsum, rows, weights, message in (
        (fine, scores[0], counts, "scores must be"),
        (fine, scores.astype(np.float64), counts, "scores must be"),
        (fine, scores, counts[:3], "token_counts must be"),
        (fine, scores / 3, counts, "bf16 values"),
        (fine, scores * np.nan, counts, "finite"),
        (fine, scores, counts * 65536, "does not fit count_bits"),
        (fine, scores, -counts, "count_bits"),
        (WicsumConfig(edges="exponent"), -scores, counts, "not negative"),
        (WicsumConfig(selector="exact"), scores, counts, "selector is 'exact'"),
        (WicsumConfig(exit="group", group_size=8), scores, counts, "group_size is 8"),
    ):
        with pytest.raises(ValueError, match=message):
            simulate_wtu(WtuConfig(), wicsum, rows, weights)
    with pytest.raises(ValidationError, match="score_bytes is 8"):
        WtuConfig(score_bytes=8)
