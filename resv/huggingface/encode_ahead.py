"""The vision tower in a thread of its own, a bounded number of steps ahead of the decoder. Order is kept."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TypeVar

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_POLL_S = 0.05  # how soon a thread whose consumer is gone notices


class _End:
    """The last entry: everything is encoded, or it ended with an error."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def encode_ahead(encode: Callable[[_In], _Out], items: Iterable[_In], depth: int) -> Generator[_Out]:
    """`encode` of each item in order, at most `depth` finished ones waiting.

    An error of `items` or `encode` is raised after what came before it. The thread ends with the iterator.
    """
    ready: Queue[_Out | _End] = Queue(maxsize=depth)
    unwanted = Event()

    def put(entry: _Out | _End) -> None:
        while not unwanted.is_set():
            try:
                ready.put(entry, timeout=_POLL_S)
                return
            except Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(encode(item))
                if unwanted.is_set():
                    return
            put(_End())
        except BaseException as error:
            put(_End(error))

    thread = Thread(target=work, name="encode-ahead", daemon=True)
    thread.start()
    try:
        while True:
            entry = _next(ready)
            if isinstance(entry, _End):
                if entry.error is not None:
                    raise entry.error
                return
            yield entry
    finally:
        unwanted.set()
        thread.join()


def _next(ready: Queue[_Out | _End]) -> _Out | _End:
    while True:
        try:
            return ready.get(timeout=_POLL_S)
        except Empty:
            continue
