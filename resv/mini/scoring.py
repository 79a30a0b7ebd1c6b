"""Shares of right answers with confidence intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

_Z_95 = 1.959964  # two-sided 95 % of the normal distribution


@dataclass(frozen=True)
class Score:
    """`right` of `asked`."""

    right: int
    asked: int

    @property
    def accuracy(self) -> float:
        """NaN where nothing was asked."""
        return self.right / self.asked if self.asked else math.nan

    def interval(self, z: float = _Z_95) -> tuple[float, float]:
        """Wilson's score interval, 95 % by default (Wilson 1927); (0, 1) where nothing was asked."""
        if not self.asked:
            return 0.0, 1.0
        n, p = self.asked, self.accuracy
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return centre - half if self.right else 0.0, centre + half if self.right < n else 1.0

    def __add__(self, other: Score) -> Score:
        return Score(self.right + other.right, self.asked + other.asked)
