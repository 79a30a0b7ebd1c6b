"""FlexGen (ICML 2023) carried over to streaming: the whole cache of every layer comes over the link in every step.

`full` with nothing kept on the device. FlexGen's schedule, the cache of layer j + 1 loading while layer j computes,
is what a platform does with a fetch list that no prediction has to release.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from resv.policies.full import Full


class FlexGenStream(Full):
    """Differs from FlexGen: a prefill there loads no cache, here every frame step does; weights stay on the device."""

    kind: Literal["flexgen_stream"] = "flexgen_stream"  # type: ignore[assignment]
    recent_bytes: int | None = Field(default=0, ge=0, description="0: percentages 100 0 0 100 100 0 of FlexGen")
