"""Errors that are the user's to mend: each reads as one paragraph and ends the program with exit code 2.

Knows nothing of what went wrong where; `hint` is the shared "did you mean".
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A configuration that cannot be used: says where, what was wrong, and what is allowed."""


class FieldError(ValueError):
    """What a model finds wrong with a field below it: `path` leads there, so that the line is named."""

    def __init__(self, message: str, *path: str | int) -> None:
        super().__init__(message)
        self.path = path


class OutputError(ValueError):
    """A place where results cannot be written."""


def hint(wrong: str, allowed: Iterable[str]) -> str:
    """' Did you mean ...?' when something allowed looks like `wrong`, else the empty string."""
    close = difflib.get_close_matches(wrong, list(allowed), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""
