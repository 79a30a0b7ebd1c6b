"""How far a run is: a bar on a terminal after two seconds, one line per finished probe elsewhere."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

Advance = Callable[[], None]


class Progress:
    """Tells whoever waits how far the run is. `quiet` says nothing at all.

    Writes to `stream` (default: standard error), so that standard output holds the result alone.
    """

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None, delay_s: float = 2.0) -> None:
        self._quiet = quiet
        self._stream = stream or sys.stderr
        self._delay_s = delay_s
        self._terminal = not quiet and self._stream.isatty()

    @contextmanager
    def task(self, what: str, total: int) -> Iterator[Advance]:
        """A job of `total` equal parts; the block calls what it is given once per finished part."""
        if not self._terminal:
            yield lambda: None
            return
        bar = self._bar()
        handle = bar.add_task(what, total=total)
        show = threading.Timer(self._delay_s, bar.start)
        show.daemon = True
        show.start()
        try:
            yield lambda: bar.advance(handle)
        finally:
            show.cancel()
            show.join()
            bar.stop()

    def finished(self, what: str) -> None:
        """One probe is done; a line where there is no bar to show it."""
        if not self._quiet and not self._terminal:
            print(what, file=self._stream, flush=True)

    def of_parts(self) -> Progress:
        """For the runs of a longer job: the same bars, no line per probe."""
        return Progress(quiet=not self._terminal, stream=self._stream, delay_s=self._delay_s)

    def _bar(self) -> Bar:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        return Bar(*columns, console=Console(file=self._stream), transient=True)
