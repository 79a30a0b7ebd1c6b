"""WHICH TOKENS? Streams of keys and queries, retrieval policies, and what a policy selects.

Counts operations, tokens and bytes; knows no second and no joule. `resv.attach` runs a policy inside a Hugging Face
model; transformers is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resv.huggingface.attach import attach

__all__ = ["attach"]


def __getattr__(name: str) -> Any:
    if name == "attach":
        from resv.huggingface.attach import attach

        return attach
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
