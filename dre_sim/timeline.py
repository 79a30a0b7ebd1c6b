"""`Span`, `Timeline`: who was busy when, doing what. Times are integer picoseconds.

Overlap is what the scheduler (`scheduler.py`) computes from dependencies and shared resources, never
a factor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """A resource was held from `start_ps` to `end_ps`. `share` is the mean part of it, 1.0 = all of it."""

    resource: str
    start_ps: int
    end_ps: int
    what: str
    layer: int
    n_bytes: int = 0
    share: float = 1.0

    @property
    def duration_ps(self) -> int:
        return self.end_ps - self.start_ps


@dataclass(frozen=True)
class Timeline:
    """Spans of one step on one platform, and the action counts that will be priced.

    `actions` maps an action's name to its count (integers: MACs, bytes, chunks, ...). Names are the row
    names of `configs/energy/*.yaml`.
    """

    platform: str
    spans: tuple[Span, ...]
    actions: Mapping[str, int]
    end_ps: int

    def on(self, resource: str) -> tuple[Span, ...]:
        """Spans of one resource in order of start."""
        return tuple(s for s in self.spans if s.resource == resource)

    def resources(self) -> tuple[str, ...]:
        """Resources in order of first use."""
        return tuple(dict.fromkeys(s.resource for s in self.spans))

    def busy_ps(self, resource: str, what: Iterable[str] | None = None) -> int:
        """Time in which at least one span of `resource` (of the kinds in `what`) is open."""
        kinds = None if what is None else frozenset(what)
        return covered_ps((s.start_ps, s.end_ps) for s in self.on(resource) if kinds is None or s.what in kinds)


def covered_ps(intervals: Iterable[tuple[int, int]]) -> int:
    """Length of the union of half-open intervals."""
    total, reach = 0, -1
    for start, end in sorted(intervals):
        if end > reach:
            total += end - max(start, reach)
            reach = end
    return total
