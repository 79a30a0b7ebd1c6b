"""How far a sweep is, how fast, and how long it has to go: one line that a terminal overwrites, else one in a while."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class SweepProgress:
    """Counts finished points. The rate is that of this run; points done by an earlier one do not count into it."""

    def __init__(self, total: int, done: int, *, stream: TextIO | None = None, every_s: float = 5.0) -> None:
        self._total, self._before, self._done, self._failed = total, done, done, 0
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._every_s = 0.2 if self._terminal else every_s
        self._start = time.monotonic()
        self._shown = self._start

    def finished(self, *, failed: bool) -> None:
        """One more point is on disk."""
        self._done += 1
        self._failed += failed
        now = time.monotonic()
        if self._done == self._total or now - self._shown >= self._every_s:
            self._shown = now
            self._show(now - self._start)

    def _show(self, seconds: float) -> None:
        rate = (self._done - self._before) / max(seconds, 1e-9)
        left = (self._total - self._done) / rate
        failed = f", {self._failed} failed" if self._failed else ""
        text = f"{self._done}/{self._total} points{failed}, {rate:.2f}/s, {_duration(left)} left"
        if self._terminal:
            end = "\n" if self._done == self._total else ""
            print(f"\r\x1b[K{text}", end=end, file=self._stream, flush=True)
        else:
            print(text, file=self._stream, flush=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
