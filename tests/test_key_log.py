"""Keys that a policy keeps to score: parts are joined and nobody sees it."""

from copy import deepcopy

import numpy as np
import pytest

from resv.policies.window import KeyLog
from tests.shapes import TINY


@pytest.mark.parametrize(
    "lengths", [[1] * 300, [10] * 120, [3, 700, 1, 1, 2, 600, 600, 5]], ids=["ones", "tens", "mixed"]
)
def test_scores_and_tokens_are_of_all_keys_in_order(lengths):
    rng = np.random.default_rng(0)
    keys = rng.normal(size=(TINY.n_kv_heads, sum(lengths), TINY.head_dim)).astype(np.float32)
    rows = rng.normal(size=(4, TINY.head_dim)).astype(np.float32)
    log = KeyLog(TINY)
    for part in np.split(keys, np.cumsum(lengths)[:-1], axis=1):
        log.append(part)
    for start, stop in ((0, sum(lengths)), (7, 250), (299, 300)):
        np.testing.assert_array_equal(log.tokens(start, stop), keys[:, start:stop])
    for n in (0, 1, 255, sum(lengths)):
        np.testing.assert_allclose(log.scores(1, rows, n), rows @ keys[1, :n].T, atol=1e-4)


def test_a_copy_goes_its_own_way():
    keys = np.random.default_rng(0).normal(size=(TINY.n_kv_heads, 9, TINY.head_dim)).astype(np.float32)
    log = KeyLog(TINY)
    log.append(keys[:, :4])
    copy = deepcopy(log)
    log.append(keys[:, 4:])
    copy.append(-keys[:, 4:])
    np.testing.assert_array_equal(log.tokens(0, 9), keys)
    np.testing.assert_array_equal(copy.tokens(0, 9), np.concatenate([keys[:, :4], -keys[:, 4:]], axis=1))
