"""VideoLLM-online (CVPR 2024, commit e2c78ec): a streaming protocol over a full cache that stays on the device."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from resv.policies.full import Full
from resv.trace import ModelShape


class VideoLLMOnline(Full):
    """Everything is kept and attended to; after each frame the model speaks or feeds the separator and stays silent.

    A trace expresses the cache; its frames count `model.tokens_per_frame` tokens, so a stream in LIVE's template is
    one with `separator_tokens` more per frame. Silence needs logits, which a trace has not: `next_token` is the rule.
    """

    trained: ClassVar[bool] = True  # to stay silent: the separator's probability means nothing in another model

    kind: Literal["videollm_online"] = "videollm_online"  # type: ignore[assignment]
    recent_bytes: None = None
    separator_tokens: int = Field(default=1, ge=0, description="fed between frames")
    silence_threshold: float = Field(
        default=0.725, ge=0, le=1, description="least probability of the separator that keeps the model silent"
    )

    def cache_bytes(self, shape: ModelShape, fps: float, seconds: float, batch: int = 1) -> float:
        """Keys and values of a stream of frames with their separators."""
        tokens = fps * seconds * (shape.tokens_per_frame + self.separator_tokens)
        return batch * tokens * shape.kv_bytes_per_token

    def next_token(self, logits: NDArray[np.floating], separator: int) -> int:
        """The token after a frame, from its last logits (V,): the separator is silence, anything else begins an answer.

        A separator less likely than the threshold is ruled out; of what is left, the likeliest.
        """
        weights = np.exp(logits.astype(np.float64) - logits.max())
        if weights[separator] < self.silence_threshold * weights.sum():
            weights[separator] = 0.0
        return int(weights.argmax())
