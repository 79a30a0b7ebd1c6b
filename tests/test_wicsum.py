"""Weighted cumulative sums: the paper's example, the slow twins, and what rounding may not change."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from resv._arrays import round_bf16
from resv.policies import ReSV
from resv.wicsum import WicsumConfig, bucketed, exact, threshold, transform_scores
from resv.wicsum import chosen as select_any
from tests import naive_resv as naive
from tests.shapes import TINY

# V-Rex (HPCA 2026, arXiv 2512.12284), Fig. 9: scores 9, 8, 7 with counts 4, 3, 3, weighted sum 95, ratio
# 0.8. The two low clusters are made up to that sum.
FIG9_SCORES = np.array([[2, 9, 1, 7, 8]], dtype=np.float32)
FIG9_COUNTS = np.array([5, 4, 4, 3, 3], dtype=np.int32)

CONFIGS = {
    "linear": {},
    "few buckets": {"buckets": 4},
    "one bucket": {"buckets": 1},
    "group": {"exit": "group", "group_size": 4},
    "group of one": {"exit": "group", "group_size": 1, "buckets": 5},
    "none": {"exit": "none"},
    "fixed point": {"score_bits": 5},
    "one bit": {"score_bits": 1, "buckets": 3},
    "exponent": {"edges": "exponent"},
    "exponent, fine": {"edges": "exponent", "mantissa_bits": 7, "buckets": 200, "exit": "group"},
}


def random_rows(seed, transform):
    rng = np.random.default_rng(seed)
    n_rows, n = int(rng.integers(1, 4)), int(rng.integers(1, 50))
    logits = rng.normal(rng.normal(), rng.choice([0.3, 1.0, 3.0]), (n_rows, n)).astype(np.float32)
    if seed % 5 == 0:
        logits = np.round(logits)  # ties, and rows whose scores are all equal
    counts = rng.integers(1, 40, n).astype(np.int32)
    return transform_scores(logits, 1, transform), counts


def chosen(mask):
    return [set(np.flatnonzero(row).tolist()) for row in mask]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("selector", ["exact", "bucketed"])
def test_scores_that_are_no_finite_numbers_are_refused_before_a_kernel_sees_them(value, selector):
    scores, counts = np.ones((3, 8), dtype=np.float32), np.ones(8, dtype=np.int64)
    scores[1, 5] = value
    config = WicsumConfig(selector=selector)
    message = f"the score in row 1, column 5 is {value}; allowed: finite numbers"
    entries = (threshold, select_any, bucketed) if selector == "bucketed" else (threshold, select_any)
    for entry in entries:
        with pytest.raises(ValueError, match=message):
            entry(scores, counts, config)
    with pytest.raises(ValueError, match=message):
        exact(scores, counts, 0.3)


@pytest.mark.parametrize("transform", ["softmax", "raw", "relu", "minshift"])
@pytest.mark.parametrize("brief", [False, True])
def test_resv_refuses_a_query_that_is_no_number(transform, brief):
    rng = np.random.default_rng(0)
    state = ReSV(wicsum={"score_transform": transform}).start(TINY, 0)
    keys = rng.normal(size=(TINY.n_kv_heads, 30, TINY.head_dim)).astype(np.float32)
    state.append(keys, [10, 10, 10])
    state.brief = brief
    queries = rng.normal(size=(TINY.n_query_heads, 4, TINY.head_dim)).astype(np.float32)
    queries[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="the score in row 6, column 0 is nan"):
        state.select(queries, keys[:, :4])


def test_the_papers_example_gives_exactly_three_clusters():
    assert (FIG9_SCORES * FIG9_COUNTS).sum() == 95
    assert chosen(exact(FIG9_SCORES, FIG9_COUNTS, 0.8)) == [{1, 3, 4}]
    mask, stats = bucketed(FIG9_SCORES, FIG9_COUNTS, WicsumConfig(ratio=0.8))
    assert chosen(mask) == [{1, 3, 4}]
    assert stats.selected.tolist() == stats.exact_prefix.tolist() == [3]


@pytest.mark.parametrize("transform", ["softmax", "raw", "relu", "minshift"])
@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.9, 1.0])
def test_exact_agrees_with_rational_arithmetic(transform, ratio):
    for seed in range(60):
        scores, counts = random_rows(seed, transform)
        expected = [naive.wicsum_exact(row, counts, ratio) for row in scores]
        assert chosen(exact(scores, counts, ratio)) == expected
        stats = bucketed(scores, counts, WicsumConfig(ratio=ratio))[1]
        assert stats.exact_prefix.tolist() == [len(row) for row in expected]


@pytest.mark.parametrize(
    ("name", "transform"),
    [
        (name, transform)
        for name, fields in CONFIGS.items()
        for transform in ("softmax", "raw", "relu", "minshift")
        if not (transform == "raw" and "edges" in fields)
    ],
)
def test_the_histogram_agrees_with_the_rescanning_order(name, transform):
    for seed in range(40):
        scores, counts = random_rows(seed, transform)
        config = WicsumConfig(ratio=[0.05, 0.3, 0.8, 1.0][seed % 4], score_transform=transform, **CONFIGS[name])
        mask, stats = bucketed(scores, counts, config)
        for r, row in enumerate(scores):
            selected, buckets, elements = naive.wicsum_bucketed(row, counts, config)
            assert set(np.flatnonzero(mask[r]).tolist()) == selected
            assert (stats.buckets_visited[r], stats.elements_visited[r]) == (buckets, elements)
            assert stats.selected[r] == len(selected)


def test_thousands_of_softmax_rows_agree_with_the_rescanning_order():
    rng = np.random.default_rng(11)
    scores = transform_scores(rng.normal(0, 2, (2000, 23)).astype(np.float32), 1, "softmax")
    counts = rng.integers(1, 64, 23).astype(np.int32)
    for config in (WicsumConfig(buckets=8), WicsumConfig(buckets=8, exit="group", group_size=4)):
        mask = bucketed(scores, counts, config)[0]
        assert chosen(mask) == [naive.wicsum_bucketed(row, counts, config)[0] for row in scores]


@pytest.mark.parametrize("edges", ["linear", "exponent"])
def test_whole_buckets_hold_the_exact_prefix_and_none_selects_what_bucket_does(edges):
    for seed in range(50):
        scores, counts = random_rows(seed, "softmax")
        mask, stats = bucketed(scores, counts, WicsumConfig(edges=edges))
        prefix = exact(scores, counts, 0.3)
        assert (mask >= prefix).all()
        assert np.array_equal(stats.overshoot, mask.sum(1) - prefix.sum(1))
        scanned, all_stats = bucketed(scores, counts, WicsumConfig(edges=edges, exit="none"))
        assert np.array_equal(scanned, mask)
        assert (all_stats.buckets_visited == 32).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_ratio_one_selects_everything_whatever_is_lost_by_rounding(name):
    rng = np.random.default_rng(4)
    # Scores over thirty orders of magnitude: a running sum reaches its total long before the last one.
    scores = round_bf16(np.exp(rng.uniform(-70, 0, (20, 300))))
    counts = rng.integers(1, 1000, 300).astype(np.int32)
    config = WicsumConfig(ratio=1.0, **CONFIGS[name])
    assert bucketed(scores, counts, config)[0].all()
    assert exact(scores, counts, 1.0).all()


def test_a_row_without_mass_selects_its_top_cluster_and_is_counted():
    scores = np.array([[-3, -1, -1, -2], [5, 1, 1, 1]], dtype=np.float32)
    counts = np.ones(4, dtype=np.int32)
    for selector in ("exact", "bucketed"):
        config = WicsumConfig(score_transform="raw", selector=selector)
        mask, stats = threshold(scores, counts, config)
        assert chosen(mask) == [{1}, {0}]
        assert stats.no_mass.tolist() == [True, False]


def test_a_sum_that_only_reaches_the_limit_goes_on():
    scores, counts = np.array([[4, 2, 2]], dtype=np.float32), np.ones(3, dtype=np.int32)
    assert chosen(exact(scores, counts, 0.5)) == [{0, 1}]
    assert chosen(bucketed(scores, counts, WicsumConfig(ratio=0.5))[0]) == [{0, 1, 2}]
    assert chosen(bucketed(scores, counts, WicsumConfig(ratio=0.49))[0]) == [{0}]


def test_a_constant_added_to_a_row_changes_softmax_scores_by_rounding_only():
    logits = np.random.default_rng(6).normal(0, 2, (10, 200)).astype(np.float32)
    one, other = (transform_scores(x, 64, "softmax") for x in (logits, logits + 8))
    assert one.max(axis=1).tolist() == [1.0] * 10
    np.testing.assert_allclose(one, other, rtol=2**-7)
    np.testing.assert_allclose(one, np.exp((logits - logits.max(1, keepdims=True)) / 8), rtol=2**-8)


def test_no_clusters_select_nothing():
    scores, counts = np.empty((3, 0), dtype=np.float32), np.empty(0, dtype=np.int32)
    for selector in ("exact", "bucketed"):
        mask, stats = threshold(transform_scores(scores, 8, "softmax"), counts, WicsumConfig(selector=selector))
        assert mask.shape == (3, 0)
        assert stats.selected.tolist() == stats.elements_visited.tolist() == [0, 0, 0]
        assert not stats.no_mass.any()


@pytest.mark.parametrize("selector", ["exact", "bucketed"])
@pytest.mark.parametrize("transform", ["softmax", "raw", "relu", "minshift"])
def test_tensors_give_tensors_of_the_same_selection(selector, transform):
    logits = np.random.default_rng(8).normal(0.5, 1, (6, 40)).astype(np.float32)
    counts = np.arange(1, 41, dtype=np.int32)
    config = WicsumConfig(selector=selector, score_transform=transform)
    tensor = transform_scores(torch.from_numpy(logits), 1, transform)
    mask = threshold(tensor, torch.from_numpy(counts), config)[0]
    assert mask.dtype == torch.bool
    assert np.array_equal(mask.numpy(), threshold(tensor.numpy(), counts, config)[0])
    np.testing.assert_allclose(tensor.numpy(), transform_scores(logits, 1, transform), rtol=2**-7)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ratio": 0.0}, "greater than 0"),
        ({"ratio": 1.01}, "less than or equal to 1"),
        ({"score_bits": 17}, "less than or equal to 16"),
        ({"edges": "exponent", "score_transform": "raw"}, "not negative"),
        ({"edges": "exponent", "score_bits": 8}, "score_bits is 8, allowed: 16"),
        ({"rato": 0.3}, "Extra inputs"),
    ],
)
def test_fields_out_of_range_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        WicsumConfig(**fields)


def test_shapes_and_signs_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"scores \(2, 3\) and token counts \(4,\)"):
        exact(np.ones((2, 3), np.float32), np.ones(4, np.int32), 0.3)
    with pytest.raises(ValueError, match="at least 0"):
        bucketed(np.array([[-1.0, 2.0]], np.float32), np.ones(2, np.int32), WicsumConfig(edges="exponent"))
