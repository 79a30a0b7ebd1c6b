"""The HCU: its clocked twin, closed forms, laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dre_sim.hcu import HcuConfig, simulate_hcu
from tests import naive_dre


def codes(rng, n, hash_bits, flips=None):
    """Random codes; with `flips`, a few leaders and neighbours of theirs, so that many are near another."""
    top = (1 << hash_bits) - 1
    drawn = rng.integers(0, top, n, dtype=np.uint64, endpoint=True)
    if flips is None or n == 0:
        return drawn
    noise = np.zeros(n, np.uint64)
    for _ in range(flips):
        noise |= np.uint64(1) << rng.integers(0, hash_bits, n, dtype=np.uint64)
    return drawn[rng.integers(0, max(1, n // 4), n)] ^ noise


def random_case(rng):
    hash_bits = int(rng.integers(1, 65))
    config = HcuConfig(
        bits_per_cycle=int(rng.choice([1, 3, 7, 8, 16, 32, 64])),
        xor_accumulators=int(rng.choice([1, 2, 3, 8])),
        early_exit=bool(rng.integers(2)),
        tile_bytes=int(rng.choice([16, 40, 128, 4096])),
        current_bytes=int(rng.choice([8, 24, 128])),
        table_bytes_per_cycle=int(rng.choice([1, 5, 32])),
    )
    n, c = int(rng.integers(0, 7)), int(rng.integers(0, 24))
    drawn = codes(rng, n + c, hash_bits, flips=int(rng.integers(0, 5)))
    rng.shuffle(drawn)
    threshold = int(rng.integers(1, hash_bits + 1)) if rng.integers(2) else min(hash_bits, 7)
    match = "nearest" if rng.integers(2) else "first"
    return config, hash_bits, threshold, match, drawn[:n], drawn[n:], int(rng.choice([1, 1, 2, 3, 8]))


def assert_same_as_twin(*case):
    got, expected = simulate_hcu(*case), naive_dre.hcu(*case)
    assert got.assignment.tolist() == expected.pop("assignment")
    assert {name: getattr(got, name) for name in expected} == expected


@pytest.mark.parametrize("seed", range(8))
def test_selection_cycles_and_counts_are_those_of_the_clocked_twin(seed):
    rng = np.random.default_rng(seed)
    for _ in range(400):
        assert_same_as_twin(*random_case(rng))


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 64).flatmap(
        lambda b: st.tuples(
            st.just(b),
            st.integers(1, b),
            st.lists(st.integers(0, (1 << b) - 1), max_size=5),
            st.lists(st.integers(0, (1 << b) - 1), max_size=9),
        )
    ),
    st.sampled_from(["nearest", "first"]),
    st.integers(1, 64),
    st.integers(1, 4),
    st.booleans(),
    st.integers(1, 4),
)
def test_any_codes_give_what_the_twin_gives(algorithm, match, width, lanes, early_exit, n_cores):
    hash_bits, threshold, new, table = algorithm
    config = HcuConfig(
        bits_per_cycle=width, xor_accumulators=lanes, early_exit=early_exit, tile_bytes=16, current_bytes=16
    )
    arrays = np.array(new, np.uint64), np.array(table, np.uint64)
    assert_same_as_twin(config, hash_bits, threshold, match, *arrays, n_cores)


def test_one_token_against_two_full_tiles_takes_load_plus_two_chunks_a_code_plus_update():
    table = np.arange(1024, dtype=np.uint64)
    got = simulate_hcu(HcuConfig(early_exit=False), 32, 7, "nearest", table[:1], table)
    assert got.cycles == 2048 // 32 + 1024 * 2 + 1 + 2  # loading the other buffer is behind it
    assert got.tile_bytes_read == 4096
    assert (got.compare_cycles, got.chunks_examined, got.chunks_skipped) == (2048, 2048, 0)


def test_a_code_far_in_its_low_chunk_ends_after_one_chunk_at_the_threshold_not_below():
    table = np.zeros(1, np.uint64)
    for flipped, chunks in ((7, 1), (6, 2)):
        token = np.array([(1 << flipped) - 1], np.uint64)
        got = simulate_hcu(HcuConfig(), 32, 7, "nearest", token, table)
        assert got.chunks_examined == chunks
        assert got.founded == (flipped >= 7)


def test_the_next_tile_loads_behind_the_comparison_and_the_first_is_exposed():
    table = np.zeros(3, np.uint64)  # one code of 8 bytes a tile, one cycle to compare, eight to load
    config = HcuConfig(bits_per_cycle=64, tile_bytes=16, table_bytes_per_cycle=1, early_exit=False)
    got = simulate_hcu(config, 64, 7, "nearest", table[:1], table)
    assert got.cycles == 8 + max(1, 8) + max(1, 8) + 1 + 3


def test_a_frame_of_new_tokens_over_an_empty_table_only_pays_the_last_pass():
    tokens = np.array([0, 0xFFFF, 0xFFFF0000], np.uint64)
    got = simulate_hcu(HcuConfig(early_exit=False), 32, 7, "nearest", tokens, np.empty(0, np.uint64))
    assert got.assignment.tolist() == [0, 1, 2]
    assert got.cycles == 3 * 3 + (0 + 1 + 2) * 2
    on_eight = simulate_hcu(HcuConfig(early_exit=False), 32, 7, "nearest", tokens, np.empty(0, np.uint64), 8)
    assert on_eight.cycles == 3 * (3 + 3) + (0 + 1 + 1) * 2


def test_a_cluster_founded_by_a_token_is_visible_to_the_next_and_keeps_its_leaders_code():
    tokens = np.array([0, 0b111, 0b111111, 0b111111_111111], np.uint64)
    got = simulate_hcu(HcuConfig(), 32, 7, "nearest", tokens, np.empty(0, np.uint64))
    assert got.assignment.tolist() == [0, 0, 0, 1]  # the last is 6 from the third token, 12 from the leader


def test_ties_go_to_the_lowest_index_on_any_number_of_cores():
    table = np.array([0b11, 0b1, 0b10, 0b1], np.uint64)
    for n_cores in (1, 2, 3, 8):
        nearest = simulate_hcu(HcuConfig(), 32, 7, "nearest", np.zeros(1, np.uint64), table, n_cores)
        first = simulate_hcu(HcuConfig(), 32, 7, "first", np.zeros(1, np.uint64), table, n_cores)
        assert (nearest.assignment[0], first.assignment[0]) == (1, 0)


def test_more_tokens_than_the_current_memory_holds_read_the_table_once_per_batch():
    rng = np.random.default_rng(5)
    table, tokens = codes(rng, 50, 32), codes(rng, 33, 32)
    one = simulate_hcu(HcuConfig(current_bytes=132), 32, 7, "nearest", tokens, table)
    two = simulate_hcu(HcuConfig(current_bytes=128), 32, 7, "nearest", tokens, table)
    assert (one.tile_bytes_read, two.tile_bytes_read) == (200, 400)
    assert one.assignment.tolist() == two.assignment.tolist()
    assert two.cycles == one.cycles + -(-200 // 32)


@pytest.fixture(scope="module")
def cases():
    rng = np.random.default_rng(77)
    return [random_case(rng) for _ in range(400)]


def test_early_exit_never_changes_the_assignment_and_never_costs_cycles(cases):
    saved = 0
    for config, *rest in cases:
        off = simulate_hcu(config.model_copy(update={"early_exit": False}), *rest)
        on = simulate_hcu(config.model_copy(update={"early_exit": True}), *rest)
        assert on.assignment.tolist() == off.assignment.tolist()
        assert on.cycles <= off.cycles
        saved += off.cycles - on.cycles
    assert saved > 0


@pytest.mark.parametrize("early_exit", [False, True])
@pytest.mark.parametrize("field", ["bits_per_cycle", "xor_accumulators"])
def test_wider_chunks_and_more_accumulators_are_never_slower(cases, field, early_exit):
    saved = 0
    for config, *rest in cases:
        value = min(32, getattr(config, field))
        less, more = (
            simulate_hcu(config.model_copy(update={field: v, "early_exit": early_exit}), *rest)
            for v in (value, 2 * value)
        )
        assert more.cycles <= less.cycles
        assert more.assignment.tolist() == less.assignment.tolist()
        saved += less.cycles - more.cycles
    assert saved > 0


def test_the_answer_does_not_depend_on_the_hardware(cases):
    plain = HcuConfig(bits_per_cycle=64, early_exit=False)
    for config, bits, threshold, match, new, table, n_cores in cases:
        got = simulate_hcu(config, bits, threshold, match, new, table, n_cores)
        assert got.assignment.tolist() == simulate_hcu(plain, bits, threshold, match, new, table).assignment.tolist()


def test_chunks_examined_and_skipped_are_those_of_every_pair(cases):
    for config, bits, threshold, match, new, table, n_cores in cases:
        got = simulate_hcu(config, bits, threshold, match, new, table, n_cores)
        visible = [len(set(got.assignment[:t][got.assignment[:t] >= len(table)])) for t in range(len(new))]
        pairs = len(new) * len(table) + sum(visible)
        assert got.chunks_examined + got.chunks_skipped == pairs * -(-bits // config.bits_per_cycle)


def test_bad_input_is_named():
    good = np.zeros(2, np.uint64)
    for args, message in (
        ((0, 1, "nearest", good, good), "hash_bits is 0"),
        ((65, 7, "nearest", good, good), "hash_bits is 65"),
        ((32, 33, "nearest", good, good), "hamming_threshold is 33"),
        ((32, 7, "best", good, good), "match is 'best'"),
        ((32, 7, "nearest", good, good, 0), "n_cores is 0"),
        ((4, 2, "nearest", good + np.uint64(16), good), "new_codes: a code has bits above hash_bits"),
        ((32, 7, "nearest", good, good.astype(np.int64)), "cluster_codes must be"),
    ):
        with pytest.raises(ValueError, match=message):
            simulate_hcu(HcuConfig(), *args)
    with pytest.raises(ValidationError):
        HcuConfig(bits_per_cycle=0)
