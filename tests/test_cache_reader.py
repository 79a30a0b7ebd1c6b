"""Reading a growing quantised cache back step by step is reading it back at once."""

import numpy as np
import pytest

from resv.policies import POLICIES
from tests.shapes import TINY


@pytest.mark.parametrize("calibration_tokens", [5, 40, 2048])
def test_what_was_restored_before_is_what_would_be_restored_now(calibration_tokens):
    rng = np.random.default_rng(0)
    policy = POLICIES["oaken"](calibration_tokens=calibration_tokens)
    shape = (TINY.n_kv_heads, 90, TINY.head_dim)
    keys, values = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    reader = policy.reader(TINY)
    for n in (1, 4, 5, 6, 30, 40, 41, 41, 77, 90):
        at_once = policy.read_back(TINY, keys[:, :n], values[:, :n])
        for got, expected in zip(reader.read(keys[:, :n], values[:, :n]), at_once, strict=True):
            np.testing.assert_array_equal(got, expected)


def test_policies_that_store_what_they_are_given_have_no_reader():
    for kind, policy in POLICIES.items():
        assert (policy().reader(TINY) is None) == (kind != "oaken")
