"""Knobs of the generator. Each says what it is in a trained model, and where its default comes from.

"Calibrated" means: set with `scripts/calibrate_trace.py` on the rendered video against figures that the paper
measured on COIN (V-Rex, HPCA 2026, arXiv 2512.12284); docs/validation.md shows target and result.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class KeyConfig(BaseModel):
    """What a key is made of: content, a bias common to all tokens of a head, and the token's own noise.

    Content and noise lie in the slow RoPE pairs, the bias in faster ones: trained models keep meaning in the low
    frequencies and position in the high ones (Barbero et al. 2024, "Round and Round We Go!").
    """

    model_config = _FROZEN

    content_wavelength_tokens: float = Field(
        default=300_000.0, gt=1, description="content lies in RoPE pairs slower than about this"
    )
    even_share: float = Field(
        default=0.02, ge=0, le=1, description="share of content and noise energy spread evenly over all pairs"
    )
    bias_share: float = Field(default=0.1, ge=0.001, lt=1, description="share of a key's energy in the bias")
    noise_share: float = Field(default=0.05, ge=0, lt=1, description="share of a key's energy in the noise")
    smoothing_s: float = Field(
        default=0.3, ge=0, description="time over which a token's content averages earlier frames"
    )

    @model_validator(mode="after")
    def _check(self) -> KeyConfig:
        if self.bias_share + self.noise_share >= 1:
            raise ValueError(
                f"bias_share ({self.bias_share}) + noise_share ({self.noise_share}) must leave room for content: "
                "their sum must be below 1"
            )
        return self


class SharpnessConfig(BaseModel):
    """Standard deviation of a query row's content logits over unlike tokens, in nats.

    Diffuse in early layers, sharp in late ones ("pyramidal information funnelling", Cai et al. 2024, PyramidKV). What
    sharpens with depth is what a step's rows have in common; `row_diversity` is the share (of energy, before the
    gain) that is a row's own, from its own token and query head.
    """

    model_config = _FROZEN

    frame: float = Field(default=0.5, ge=0, le=20)
    question: float = Field(default=1.5, ge=0, le=20)
    decode: float = Field(default=4.0, ge=0, le=20)
    row_diversity: float = Field(default=0.07, ge=0, le=1)
    depth_gain: float = Field(default=8.0, ge=0, le=100, description="the last layer is 1 + gain times as sharp")
    depth_power: float = Field(default=8.0, gt=0, le=20, description="how late in depth the gain sets in")
    layer_jitter: float = Field(default=0.2, ge=0, le=3, description="log-normal spread over layers")
    head_jitter: float = Field(default=0.3, ge=0, le=3, description="log-normal spread over query heads")


class RecencyConfig(BaseModel):
    """Attention falls as distance^-exponent between the two wavelengths.

    A bias shared by queries and keys, its energy even over the RoPE pairs in between, gives this by rotation alone.
    """

    model_config = _FROZEN

    exponent: float = Field(default=1.0, ge=0, le=10)
    text_exponent: float = Field(default=1.0, ge=0, le=10, description="likewise for question and decode queries")
    head_jitter: float = Field(default=0.2, ge=0, le=3, description="log-normal spread over KV heads")
    shortest_tokens: float = Field(default=40_000.0, gt=1)
    longest_tokens: float = Field(default=300_000.0, gt=1)

    @model_validator(mode="after")
    def _check(self) -> RecencyConfig:
        if self.longest_tokens <= self.shortest_tokens:
            raise ValueError(
                f"longest_tokens ({self.longest_tokens}) must be above shortest_tokens ({self.shortest_tokens})"
            )
        return self


class GeneratorConfig(BaseModel):
    """How a synthetic model turns features into keys, queries and values."""

    model_config = _FROZEN

    key: KeyConfig = KeyConfig()
    sharpness: SharpnessConfig = SharpnessConfig()
    recency: RecencyConfig = RecencyConfig()
    text_affinity: float = Field(
        default=6.0,
        ge=0,
        le=20,
        description="logits by which question and decode queries prefer text keys, in nats; image tokens get little "
        "attention from text (Chen et al. 2024, FastV)",
    )
    predicted_query_cosine: float = Field(
        default=0.95,
        ge=0,
        le=1,
        description="cosine of the query predicted one layer before to the true one; InfiniGen (OSDI 2024, Table 1) "
        "measured 0.89-0.97 between neighbouring layer inputs",
    )
    value_noise_share: float = Field(default=0.2, ge=0, le=1, description="share of a value's energy in noise")
