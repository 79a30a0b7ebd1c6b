"""Asking aside: steps of a stream that are dropped again, or kept."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from resv.huggingface.families import Cursor
from resv.policies.base import PolicyState

if TYPE_CHECKING:
    from resv.huggingface.stream import Stream


class Mark(NamedTuple):
    """A stream as it was; see `Stream.mark`."""

    n_steps: int
    n_tokens: int
    states: list[list[PolicyState]]
    cursor: Cursor
    read: list[tuple[int, int]]


class Fork(AbstractContextManager["Fork"]):
    """Steps that are dropped again at the end of the block unless kept, and after an exception in any case."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._keeps = False

    def keep(self) -> None:
        """What ran, and what still runs in the block, stays."""
        self._keeps = True

    def __enter__(self) -> Fork:
        self._mark = self._stream.mark()
        self._stream._forks += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._stream._forks -= 1
        if kind is not None or not self._keeps:
            self._stream.rollback(self._mark)
