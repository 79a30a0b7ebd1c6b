"""HC tables against the slow twin, their timing edges, and what never changes."""

import numpy as np
import pytest

from resv.clustering import HashClusterTables
from tests import naive_resv as naive


def random_codes(seed, n_tables, n, hash_bits, n_centres=6):
    """Codes scattered around a few centres, so that tokens join, found and tie."""
    rng = np.random.default_rng(seed)
    top = np.uint64(2**hash_bits - 1)
    centres = rng.integers(0, 2**63, n_centres, dtype=np.uint64)
    codes = centres[rng.integers(0, n_centres, (n_tables, n))]
    for _ in range(rng.integers(0, 6)):
        codes = codes ^ (np.uint64(1) << rng.integers(0, hash_bits, (n_tables, n)).astype(np.uint64))
    return codes & top


def random_steps(rng, n):
    lengths = []
    while sum(lengths) < n:
        lengths.append(int(min(rng.integers(1, 12), n - sum(lengths))))
    return lengths


def assert_same(got, twins):
    for t, twin in enumerate(twins):
        table = got.snapshot(t)
        assert table.cluster_of_token.tolist() == twin.cluster_of_token
        assert table.codes.tolist() == [c["code"] for c in twin.clusters]
        assert table.token_counts.tolist() == [len(c["members"]) for c in twin.clusters]
        assert table.departure.tolist() == [c["departure"] for c in twin.clusters]
        assert table.last_append.tolist() == [c["members"][-1] for c in twin.clusters]
        assert np.array_equal(table.resident, table.departure < 0)
        assert got.eligible(t).tolist() == twin.eligible()
    assert got.comparisons == sum(twin.comparisons for twin in twins)


@pytest.mark.parametrize("match", ["nearest", "first"])
@pytest.mark.parametrize("code", ["leader", "majority"])
@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("hash_bits", [8, 32, 48, 64])
def test_tables_agree_with_their_slow_twin(match, code, freeze, hash_bits):
    for seed in range(12):
        rng = np.random.default_rng((seed, hash_bits))
        n_tables, n = int(rng.integers(1, 4)), int(rng.integers(1, 120))
        codes, steps = random_codes(seed, n_tables, n, hash_bits), random_steps(rng, n)
        threshold = int(rng.integers(1, min(hash_bits, 12)))
        capacity = None if seed % 3 == 0 else int(rng.integers(0, 60))
        options = {"match": match, "code": code}
        got = HashClusterTables(
            n_tables, hash_bits, threshold, capacity_tokens=capacity, freeze_on_offload=freeze, **options
        )
        twins = [naive.Table(hash_bits, threshold, freeze=freeze, **options) for _ in range(n_tables)]
        cut = len(steps) // 2
        for lengths, part in (
            (steps[:cut], codes[:, : sum(steps[:cut])]),
            (steps[cut:], codes[:, sum(steps[:cut]) :]),
        ):
            got.append(part, lengths)
            naive.cluster_stream(twins, part, lengths, None if capacity is None else capacity * n_tables)
            assert_same(got, twins)


@pytest.mark.parametrize("match", ["nearest", "first"])
def test_long_tables_agree_with_their_slow_twin(match):
    codes = np.random.default_rng(7).integers(0, 2**32, (1, 700), dtype=np.uint64)
    got, twin = HashClusterTables(1, 32, 9, match=match), naive.Table(32, 9, match)
    got.append(codes, [10] * 70)
    naive.cluster_stream([twin], codes, [10] * 70, None)
    assert got.n_clusters[0] > 300  # more than one chunk of the first-match search
    assert_same(got, [twin])


def append_one_by_one(codes, threshold, **options):
    tables = HashClusterTables(1, 8, threshold, **options)
    return tables.append(np.array([codes], dtype=np.uint64), [len(codes)])[0].tolist()


def test_a_token_joins_below_the_threshold_and_not_at_it():
    assert append_one_by_one([0b0000, 0b0011], 3) == [0, 0]
    assert append_one_by_one([0b0000, 0b0111], 3) == [0, 1]


def test_nearest_wins_ties_go_to_the_lowest_and_first_takes_the_lowest_below():
    near_and_far = [0b00000000, 0b11111111, 0b00111111]
    assert append_one_by_one(near_and_far, 7) == [0, 1, 1]
    assert append_one_by_one(near_and_far, 7, match="first") == [0, 1, 0]
    assert append_one_by_one([0b00000000, 0b11111111, 0b00001111], 5) == [0, 1, 0]


def test_a_founded_cluster_is_visible_to_the_next_token_of_its_frame_and_keeps_the_leaders_code():
    # Each token is one bit from the one before; the fourth is three from the leader, so it founds.
    assert append_one_by_one([0b000, 0b001, 0b011, 0b111], 3) == [0, 0, 0, 1]


def test_the_majority_code_moves_at_the_end_of_a_step_only():
    tables = HashClusterTables(1, 8, 4, code="majority")
    tables.append(np.array([[0b000, 0b111, 0b111]], dtype=np.uint64), [3])
    assert tables.snapshot(0).codes.tolist() == [0b111]
    assert tables.append(np.array([[0b11111, 0b111111]], dtype=np.uint64), [2])[0].tolist() == [0, 0]


def test_the_cluster_with_the_oldest_last_append_leaves_whole_at_the_end_of_the_step():
    a, b, c = 0x00, 0x0F, 0xFF
    tables = HashClusterTables(1, 8, 2, capacity_tokens=4)
    tables.append(np.array([[a, b, a, b, a]], dtype=np.uint64), [4, 1])
    assert tables.snapshot(0).departure.tolist() == [-1, 0]  # b's last append, token 3, is the oldest
    assert tables.resident_tokens.tolist() == [3]
    tables.append(np.array([[b, c]], dtype=np.uint64), [2])
    assert tables.snapshot(0).cluster_of_token.tolist() == [0, 1, 0, 1, 0, 2, 3]  # b left: it is founded anew
    assert tables.snapshot(0).departure.tolist() == [1, 0, -1, -1]


def test_without_freezing_a_cluster_that_left_takes_members_which_are_not_resident():
    tables = HashClusterTables(1, 8, 2, capacity_tokens=1, freeze_on_offload=False)
    tables.append(np.array([[0x00, 0xFF, 0x00]], dtype=np.uint64), [2, 1])
    assert tables.snapshot(0).cluster_of_token.tolist() == [0, 1, 0]
    assert tables.snapshot(0).resident.tolist() == [False, True]
    assert tables.resident_tokens.tolist() == [1]


def test_capacity_is_shared_by_the_tables_of_a_layer():
    # Table 0 keeps one cluster of eight tokens alive; table 1 founds one per token, and its oldest go first.
    codes = np.array([[0] * 8, [1 << b for b in range(8)]], dtype=np.uint64)
    tables = HashClusterTables(2, 8, 1, capacity_tokens=6)
    tables.append(codes, [1] * 8)
    assert tables.resident_tokens.tolist() == [8, 4]


@pytest.mark.parametrize("capacity", [0, 7, 1000])
def test_no_token_is_lost_and_capacity_holds_after_every_step(capacity):
    codes = random_codes(3, 1, 200, 16)
    tables = HashClusterTables(1, 16, 4, capacity_tokens=capacity)
    for start in range(0, 200, 10):
        tables.append(codes[:, start : start + 10], [10])
        table = tables.snapshot(0)
        assert tables.resident_tokens[0] == table.token_counts[table.resident].sum() <= capacity
        assert table.token_counts.sum() == start + 10
        order = np.sort(table.departure[~table.resident])
        assert np.array_equal(order, np.arange(len(order)))


def test_a_copy_does_not_disturb_the_original():
    codes = random_codes(5, 1, 60, 32)
    tables = HashClusterTables(1, 32, 5)
    tables.append(codes[:, :30], [30])
    before = tables.snapshot(0)
    trial = tables.copy()
    trial.append(codes[:, 30:], [30])
    after = tables.snapshot(0)
    assert trial.n_tokens == 60
    assert all(np.array_equal(getattr(before, f), getattr(after, f)) for f in vars(before))


def test_codes_and_steps_must_fit():
    with pytest.raises(ValueError, match="sum of step_lengths"):
        HashClusterTables(1, 8, 2).append(np.zeros((1, 5), dtype=np.uint64), [3, 3])
    with pytest.raises(ValueError, match=r"expected \(2,"):
        HashClusterTables(2, 8, 2).append(np.zeros((1, 5), dtype=np.uint64), [5])
