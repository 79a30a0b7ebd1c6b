"""InfiniGenP: InfiniGen's speculation in every step, as V-Rex (HPCA 2026, arXiv 2512.12284) compares with it."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from resv.policies.infinigen import InfiniGen
from resv.trace import StepKind


class InfiniGenP(InfiniGen):
    """Every new token of a frame or question speculates like a decode step; a KV head fetches the union.

    No code was released; the definition is ours. The union is capped at half of the candidates, the highest scores
    below their row's maximum first: V-Rex's Table II gives 50.8 % in frame steps.
    """

    runs_in: ClassVar[frozenset[StepKind]] = frozenset(("frame", "question", "decode"))

    kind: Literal["infinigenp"] = "infinigenp"
    union_cap: float = Field(default=0.5, gt=0, le=1, description="share of the candidates a KV head may take")
