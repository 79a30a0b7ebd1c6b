"""Statistics of paired right and wrong answers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bool = NDArray[np.bool_]


class Paired(NamedTuple):
    """Two policies on the same questions.

    only_first, only_second : questions that one of them alone answered rightly;  p_value : exact, two-sided
    """

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: Bool, second: Bool) -> Paired:
    """McNemar's exact test of two lists of right (True) and wrong answers to the same questions (McNemar 1947).

    Under the null hypothesis a question that one of two alone answers rightly is as likely to be the first's as the
    second's. Questions of one stream are taken to be independent, as those of different ones.
    Raises ValueError where the lists differ in length.
    """
    if first.shape != second.shape:
        raise ValueError(f"{first.shape} answers cannot be paired with {second.shape}")
    only_first = int(np.count_nonzero(first & ~second))
    only_second = int(np.count_nonzero(second & ~first))
    n = only_first + only_second
    if n == 0:
        return Paired(0, 0, 1.0)
    from scipy.stats import binomtest

    return Paired(only_first, only_second, float(binomtest(only_first, n, 0.5).pvalue))
