"""Attention over selections and the fidelity figures, against row-by-row float64."""

import numpy as np
import pytest
import torch

from resv.attention import fidelity, full_attention, light_attention, topk_indices
from tests import naive_resv as naive


def random_step(seed, n_heads=2, group=3, n_new=4, n_cached=30, dim=8):
    """Queries, strided (H, S, D) views of token-major keys and values, the step's own, and a selection."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    keys, values = (normal(n_cached, n_heads, dim).transpose(1, 0, 2) for _ in range(2))
    step_keys, step_values = normal(n_heads, n_new, dim), normal(n_heads, n_new, dim)
    queries = 2 * normal(n_heads * group, n_new, dim)
    return queries, keys, values, step_keys, step_values, rng.random((n_heads, n_cached)) < 0.4


@pytest.mark.parametrize("n_cached", [0, 1, 30])
@pytest.mark.parametrize("n_new", [1, 4])
def test_light_attention_agrees_with_its_slow_twin(n_cached, n_new):
    queries, keys, values, step_keys, step_values, attended = random_step(1, n_cached=n_cached, n_new=n_new)
    got = light_attention(queries, keys, values, attended, step_keys, step_values)
    expected = naive.attention(queries, keys, values, attended, step_keys, step_values)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_attending_to_everything_is_full_attention():
    queries, keys, values, step_keys, step_values, attended = random_step(2)
    light = light_attention(queries, keys, values, np.ones_like(attended), step_keys, step_values)
    np.testing.assert_array_equal(light, full_attention(queries, keys, values, step_keys, step_values))
    figures = fidelity(queries, keys, values, step_keys, step_values, np.ones_like(attended))
    assert figures.attention_mass_kept.tolist() == figures.topk_overlap.tolist() == [1.0, 1.0]
    assert figures.output_rel_error.tolist() == [0.0, 0.0]


def test_a_token_nobody_attends_to_changes_nothing():
    queries, keys, values, step_keys, step_values, attended = random_step(3)
    before = light_attention(queries, keys, values, attended, step_keys, step_values)
    keys, values = keys.copy(), values.copy()
    keys[~attended], values[~attended] = 99.0, -99.0
    np.testing.assert_array_equal(light_attention(queries, keys, values, attended, step_keys, step_values), before)


def test_a_new_token_does_not_see_the_ones_after_it():
    queries, keys, values, step_keys, step_values, attended = random_step(4)
    before = light_attention(queries, keys, values, attended, step_keys, step_values)
    step_keys[:, 2:], step_values[:, 2:] = 5.0, 5.0
    after = light_attention(queries, keys, values, attended, step_keys, step_values)
    np.testing.assert_allclose(after[:, :2], before[:, :2], atol=1e-6)
    assert not np.allclose(after[:, 2:], before[:, 2:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_give_tensors_of_the_same_values(dtype):
    arrays = random_step(5)
    tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in arrays]
    floats = [t.to(dtype) for t in tensors[:5]]
    got = light_attention(floats[0], floats[1], floats[2], tensors[5], floats[3], floats[4])
    rounded = [t.float().numpy() for t in floats]
    expected = light_attention(rounded[0], rounded[1], rounded[2], arrays[5], rounded[3], rounded[4])
    assert isinstance(got, torch.Tensor)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)
    figures = fidelity(*floats, tensors[5])
    np.testing.assert_allclose(figures.output_rel_error, fidelity(*rounded, arrays[5]).output_rel_error, rtol=1e-4)


@pytest.mark.parametrize("n_cached", [1, 30, 200])
def test_fidelity_agrees_with_its_slow_twins(n_cached):
    queries, keys, values, step_keys, step_values, attended = random_step(6, n_cached=n_cached)
    got = fidelity(queries, keys, values, step_keys, step_values, attended, topk=5)
    expected = naive.attention_mass(queries, keys, step_keys, attended)
    np.testing.assert_allclose(got.attention_mass_kept, expected, rtol=1e-5)
    full = naive.attention(queries, keys, values, np.ones_like(attended), step_keys, step_values)
    light = naive.attention(queries, keys, values, attended, step_keys, step_values)
    for h in range(2):
        rows = slice(3 * h, 3 * h + 3)
        error = np.linalg.norm(light[rows] - full[rows]) / np.linalg.norm(full[rows])
        assert got.output_rel_error[h] == pytest.approx(error, rel=1e-4)
        logits = queries[rows].reshape(-1, 8) @ keys[h].T
        hits = [np.mean([attended[h, t] for t in naive.topk(row, 5)]) for row in logits]
        assert got.topk_overlap[h] == pytest.approx(np.mean(hits))


def test_fidelity_without_values_and_with_an_empty_cache():
    queries, keys, values, step_keys, step_values, attended = random_step(7)
    figures = fidelity(queries, keys, None, step_keys, None, attended)
    assert np.isnan(figures.output_rel_error).all()
    assert (figures.attention_mass_kept < 1).all()
    none = fidelity(queries, keys[:, :0], values[:, :0], step_keys, step_values, attended[:, :0])
    assert none.attention_mass_kept.tolist() == none.topk_overlap.tolist() == [1.0, 1.0]
    assert none.output_rel_error.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("n", "k"), [(1, 1), (63, 64), (64, 64), (300, 1), (1000, 7), (20_000, 64)])
def test_topk_takes_the_heaviest_and_of_equals_the_lowest(n, k):
    rng = np.random.default_rng(n)
    zeros = np.copysign(0.0, rng.standard_normal(n))
    for row in (rng.standard_normal(n), np.round(rng.standard_normal(n)), np.zeros(n), zeros, -np.arange(n) - 1.0):
        got = topk_indices(row[None].astype(np.float32), k)[0]
        assert len(got) == min(n, k)
        assert set(got.tolist()) == naive.topk(row.astype(np.float32), k)


def test_heads_must_divide():
    queries, keys, values, step_keys, step_values, attended = random_step(8)
    with pytest.raises(ValueError, match="5 query heads cannot be shared evenly by 2 KV heads"):
        light_attention(queries[:5], keys, values, attended, step_keys, step_values)


def test_output_error_is_right_for_rows_that_kept_next_to_nothing() -> None:
    rng = np.random.default_rng(5)
    dim, cached = 16, 12
    queries = rng.standard_normal((1, 2, dim), dtype=np.float32)
    keys = rng.standard_normal((1, cached, dim), dtype=np.float32)
    keys[0, 3] = 400 * queries[0, 0]  # one key that outweighs all others by far more than float32 holds
    values = rng.standard_normal((1, cached, dim), dtype=np.float32)
    step_keys, step_values = (rng.standard_normal((1, 2, dim), dtype=np.float32) for _ in range(2))
    attended = np.ones((1, cached), bool)
    attended[0, 3] = False
    got = fidelity(queries, keys, values, step_keys, step_values, attended)
    full = full_attention(*(a.astype(np.float64) for a in (queries, keys, values, step_keys, step_values)))
    light = light_attention(queries, keys, values, attended, step_keys, step_values)
    want = np.linalg.norm(light - full) / np.linalg.norm(full)
    assert got.output_rel_error[0] == pytest.approx(want, rel=1e-4)
