"""Residency and byte accounts: closed forms, and the checks that must stop a wrong policy."""

from dataclasses import replace

import numpy as np
import pytest

from resv.kv_cache import ConservationError, Ledger, OffloadTier, account, capacity_tokens, recent_window
from resv.selection import Counts, LayerSelection
from tests.shapes import LLAMA3_8B, TINY


def selection(attended, resident, candidates):
    return LayerSelection(1, *(np.array(m, dtype=bool) for m in (attended, resident, candidates)), counts=Counts())


def test_capacity_counts_whole_tokens_of_all_layers():
    assert capacity_tokens(LLAMA3_8B, 131_072 * 10) == 10
    assert capacity_tokens(LLAMA3_8B, 131_072 * 10 - 1) == 9
    assert capacity_tokens(LLAMA3_8B, None) is None


@pytest.mark.parametrize(("capacity", "expected"), [(None, 5), (0, 0), (3, 3), (5, 5), (9, 5)])
def test_the_last_tokens_are_resident(capacity, expected):
    window = recent_window(5, capacity)
    assert window.sum() == expected
    assert window.tolist() == sorted(window.tolist())


def test_every_byte_is_accounted_for_once():
    got = account(
        selection([[1, 1, 0, 1], [0, 0, 0, 1]], [[0, 0, 1, 1], [0, 0, 1, 1]], [[1, 1, 1, 0], [1, 1, 1, 0]]),
        TINY,
        n_new=3,
    )
    token = 2 * 16 * 2  # one KV head's key and value of 16 elements of 2 bytes
    assert (got.cached_bytes, got.resident_bytes, got.offloaded_bytes) == (8 * token, 4 * token, 4 * token)
    assert (got.attended_bytes, got.hit_bytes, got.fetched_bytes) == (4 * token, 2 * token, 2 * token)
    assert got.appended_bytes == 3 * 2 * token


def test_a_token_that_is_lost_or_a_mask_of_another_shape_is_caught():
    with pytest.raises(ConservationError, match="layer 1, KV head 0: token 1 is left out but was no candidate"):
        account(selection([[1, 0]], [[1, 1]], [[1, 0]]), TINY, 1)
    with pytest.raises(ConservationError, match="masks of unlike shape"):
        account(selection([[1, 0]], [[1]], [[1, 0]]), TINY, 1)


def test_the_ledger_books_what_leaves_and_refuses_what_comes_back():
    ledger = Ledger()
    ledger.append(10, resident=10)
    ledger.append(10, resident=12)
    assert (ledger.appended, ledger.offloaded, ledger.resident) == (20, 8, 12)
    with pytest.raises(ConservationError, match="5 tokens joined 12 resident and 0 evicted ones, after which 18"):
        ledger.append(5, resident=18)


def test_a_cache_larger_than_the_offload_tier_is_refused():
    tier = OffloadTier(kind="ssd", capacity_bytes=131_072 * 1000)
    tier.check_fits(LLAMA3_8B, 500, batch=2)
    with pytest.raises(ValueError, match=r"the ssd tier holds 131072000: .* at most 500 tokens per stream"):
        tier.check_fits(LLAMA3_8B, 501, batch=2)


def test_the_ledger_books_what_is_evicted_for_good():
    ledger = Ledger()
    ledger.append(10, resident=6, evicted=4)
    ledger.append(2, resident=5, evicted=7)
    assert (ledger.appended, ledger.offloaded, ledger.evicted, ledger.resident) == (12, 0, 7, 5)
    with pytest.raises(ConservationError, match="after which 6 are resident and 6 evicted"):
        ledger.append(0, resident=6, evicted=6)


def test_an_evicted_token_may_not_be_used():
    kept = np.tile(np.arange(6) >= 2, (2, 1))
    evicting = LayerSelection(0, kept, kept, kept, Counts(), evicted=~kept)
    booked = account(evicting, TINY, 1)
    assert booked.cached_bytes == booked.resident_bytes == TINY.kv_bytes(8)
    assert booked.offloaded_bytes == 0
    with pytest.raises(ConservationError, match="an evicted token is attended, resident or a candidate"):
        account(replace(evicting, evicted=kept), TINY, 1)


def test_a_quantised_cache_is_smaller_and_part_bytes_round_up():
    small = TINY.model_copy(update={"kv_bytes_factor": 0.3})
    assert TINY.kv_bytes(3) == 3 * 2 * 16 * 2
    assert small.kv_bytes(3) == 58  # 57.6
    assert small.kv_bytes_per_token_layer == 39  # 38.4
