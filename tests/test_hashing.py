"""Hash codes against the definition, tensors against arrays, and the likeness that codes keep."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resv._arrays import round_bf16
from resv.hashing import cosine_hamming_correlation, hamming_distance, hash_codes, hyperplanes
from tests import naive_resv as naive

CODES = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize("hash_bits", [1, 7, 8, 31, 32, 33, 64])
def test_codes_are_the_signs_of_the_projections(hash_bits):
    x = np.random.default_rng(hash_bits).standard_normal((3, 4, 12), dtype=np.float32)
    planes = hyperplanes(12, hash_bits, seed=5)
    codes = hash_codes(x, planes)
    assert codes.shape == (3, 4)
    assert codes.dtype == np.uint64
    expected = [[naive.hash_code(vector, planes) for vector in row] for row in x]
    assert codes.tolist() == expected


def test_a_projection_of_zero_gives_a_zero_bit():
    planes = np.array([[1.0, -1.0, 0.0]], dtype=np.float32)
    assert hash_codes(np.array([[0.0], [2.0], [-2.0]], dtype=np.float32), planes).tolist() == [
        0,
        0b001,
        0b010,
    ]


@pytest.mark.parametrize("hash_bits", [32, 64])
def test_tensors_give_the_codes_and_distances_of_arrays(hash_bits):
    x = np.random.default_rng(1).standard_normal((50, 16), dtype=np.float32)
    planes = hyperplanes(16, hash_bits, seed=0)
    codes, tensor = hash_codes(x, planes), hash_codes(torch.from_numpy(x), planes)
    assert tensor.dtype == torch.uint64
    assert tensor.numpy().tolist() == codes.tolist()
    distance = hamming_distance(tensor[:, None], tensor[None])
    assert torch.equal(distance, torch.from_numpy(hamming_distance(codes[:, None], codes[None]).astype(np.int64)))


@given(CODES, CODES)
def test_distance_counts_differing_bits(a, b):
    one, other = np.array([a], dtype=np.uint64), np.array([b], dtype=np.uint64)
    assert int(hamming_distance(one, other)[0]) == naive.hamming(a, b)
    assert int(hamming_distance(torch.from_numpy(one), torch.from_numpy(other))[0]) == naive.hamming(a, b)


def test_equal_seeds_give_equal_planes_and_others_do_not():
    assert np.array_equal(hyperplanes(8, 32, 3), hyperplanes(8, 32, 3))
    assert not np.array_equal(hyperplanes(8, 32, 3), hyperplanes(8, 32, 4))


def test_scaling_a_key_keeps_its_code_and_negating_it_flips_every_bit():
    x = np.random.default_rng(2).standard_normal((20, 32), dtype=np.float32)
    planes = hyperplanes(32, 32, seed=0)
    assert np.array_equal(hash_codes(4 * x, planes), hash_codes(x, planes))
    assert (hash_codes(-x, planes) ^ hash_codes(x, planes) == 2**32 - 1).all()


def test_hamming_distance_falls_with_cosine_and_more_bits_see_it_better():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((4, 1, 64)) + 0.7 * rng.standard_normal((4, 100, 64))
    x = x.reshape(400, 64).astype(np.float32)
    few, many = (cosine_hamming_correlation(x, bits, n_pairs=4000, seed=1) for bits in (4, 64))
    assert many < few < 0
    assert many < -0.8


@pytest.mark.parametrize("n_rows", [1, 5])
def test_pairs_that_are_all_alike_have_no_correlation(n_rows):
    with pytest.raises(ValueError, match="pair"):
        cosine_hamming_correlation(np.ones((n_rows, 8), dtype=np.float32), 32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hyperplanes(8, 65, 0), "hash_bits is 65; allowed: 1 to 64"),
        (lambda: hyperplanes(8, 0, 0), "hash_bits is 0"),
        (lambda: hyperplanes(0, 8, 0), "dim is 0"),
        (lambda: hash_codes(np.ones((2, 7), np.float32), hyperplanes(8, 4, 0)), "7 elements per vector"),
    ],
)
def test_wrong_sizes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@settings(deadline=None)  # the first call compiles
@given(st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**126), max_value=2.0**126))
def test_bf16_rounds_to_nearest_with_ties_to_even(x):
    expected = naive.bf16(x)
    assert float(round_bf16(np.array([x], dtype=np.float32))[0]) == expected
    assert float(round_bf16(torch.tensor([x], dtype=torch.float32))[0]) == expected


def test_bf16_ties_go_to_the_even_neighbour():
    # 1 + 2^-8 lies between 1 (even) and 1 + 2^-7; 1 + 3·2^-8 between 1 + 2^-7 and 1 + 2^-6 (even).
    x = np.array([1 + 2**-8, 1 + 3 * 2**-8], dtype=np.float32)
    assert round_bf16(x).tolist() == [1.0, 1 + 2**-6]
