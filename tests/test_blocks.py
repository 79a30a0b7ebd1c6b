"""Blocks of tokens, rotation and selection kernels against evident twins."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resv._select_kernels import count_near_maximum, raise_topk
from resv.blocks import BlockBounds, BlockSums, largest
from resv.rope import rotated
from tests import naive_policies as naive
from tests.shapes import TINY


def keys(n, seed=0):
    return np.random.default_rng(seed).standard_normal((2, n, 16), dtype=np.float32)


def test_rotation_is_the_twins_and_turning_back_undoes_it():
    x, positions = keys(7), np.array([0, 3, 5, 90, 91, 4000, 40_000])
    turned = rotated(x, positions, TINY)
    expected = [[naive.turned(v, p, TINY.rope_theta) for v, p in zip(head, positions, strict=True)] for head in x]
    np.testing.assert_allclose(turned, expected, atol=2e-6)
    np.testing.assert_allclose(rotated(turned, -positions, TINY), x, atol=2e-6)


@pytest.mark.parametrize("unrotate", [False, True])
def test_sums_of_blocks_are_those_of_their_tokens_however_they_arrive(unrotate):
    x, block = keys(23), np.array([0] * 5 + [-1] * 3 + [1] * 9 + [2] * 6)
    at_once, in_parts = BlockSums(TINY, unrotate=unrotate), BlockSums(TINY, unrotate=unrotate)
    at_once.append(x, 0, block)
    for start, stop in ((0, 2), (2, 10), (10, 23)):
        in_parts.append(x[:, start:stop], start, block[start:stop])
    counts = np.array([5, 9, 6])
    assert np.array_equal(at_once.means(counts), in_parts.means(counts))
    plain = rotated(x, -np.arange(23), TINY) if unrotate else x
    expected = [plain[:, block == b].mean(axis=1) for b in range(3)]
    np.testing.assert_allclose(at_once.means(counts), expected, atol=1e-5)


def test_bounds_of_pages_hold_their_tokens_and_a_page_may_arrive_in_parts():
    x, bounds = keys(21), BlockBounds(TINY, 8)
    for start, stop in ((0, 3), (3, 17), (17, 21)):
        bounds.append(x[:, start:stop], start)
    for head in range(2):
        low, high = bounds.of(head, 3)
        for page in range(3):
            part = x[head, 8 * page : 8 * page + 8]
            assert np.array_equal(low[page], part.min(axis=0))
            assert np.array_equal(high[page], part.max(axis=0))


scores = st.lists(
    st.sampled_from([-3.5, -1.0, -0.0, 0.0, 1e-30, 0.25, 1.0, 7.0, 1e20]) | st.floats(-100, 100, width=32),
    min_size=1,
    max_size=40,
)


@given(row=scores, data=st.data())
def test_the_k_largest_are_marked_with_ties_to_the_lowest(row, data):
    k = data.draw(st.integers(0, len(row)))
    x = np.array([row], dtype=np.float32)  # -0 and +0 are equal, with different bits
    best = np.full(len(row), -np.inf, dtype=np.float32)
    raise_topk(x, x.view(np.int32), np.array([k]), np.array([0.5], dtype=np.float32), best)
    expected = set(naive.best(dict(enumerate(x[0].tolist())), k))
    assert set(np.flatnonzero(best > -np.inf).tolist()) == expected
    assert all(best[i] == x[0, i] + np.float32(0.5) for i in expected)
    assert set(largest(x[0], k).tolist()) == expected


@given(row=scores, distance=st.floats(0.0, 50.0, width=32))
def test_scores_near_the_maximum_are_counted(row, distance):
    x = np.array([row], dtype=np.float32)
    peak, counts = np.empty(1, np.float32), np.empty(1, np.int64)
    count_near_maximum(x, np.float32(distance), peak, counts)
    assert peak[0] == x.max()
    assert counts[0] == (x >= x.max() - np.float32(distance)).sum()
