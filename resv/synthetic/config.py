"""Knobs of the generator. Each says what it is in a trained model, and where its default comes from.

"Calibrated" means: set with `scripts/calibrate_trace.py` on the rendered video against figures that the paper
measured on COIN (V-Rex, HPCA 2026, arXiv 2512.12284); docs/validation.md shows target and result.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class KeyConfig(BaseModel):
    """What a key is made of: content, a bias common to all tokens of a head, and the token's own noise.

    Content lies in the slow RoPE pairs, the bias in faster ones: trained models keep meaning in the low frequencies
    and position in the high ones (Barbero et al. 2024, "Round and Round We Go!"). With content spread evenly
    (`even_share: 1`) rotation makes like tokens unlike, and hardly any cluster.
    """

    model_config = _FROZEN

    content_wavelength_tokens: float = Field(
        default=300_000.0,
        gt=1,
        description="content lies in RoPE pairs slower than about this; calibrated: turns little within 40,000 tokens",
    )
    even_share: float = Field(
        default=0.02, ge=0, le=1, description="share of the content's energy that lies evenly in all pairs; assumed"
    )
    bias_share: float = Field(
        default=0.1, ge=0.001, lt=1, description="share of a key's energy in the bias; calibrated on correlation"
    )
    noise_share: float = Field(
        default=0.05, ge=0, lt=1, description="share of a key's energy in noise; calibrated on tokens per cluster"
    )
    smoothing_s: float = Field(
        default=0.3, ge=0, description="a token's content averages earlier frames over this time; assumed"
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
    """Standard deviation of a query row's content logits over unlike tokens, by stage, and how it varies.

    Diffuse in early layers, sharp in late ones ("pyramidal information funnelling", Cai et al. 2024, PyramidKV). What
    sharpens with depth is what a step's rows have in common.
    """

    model_config = _FROZEN

    frame_nats: float = Field(default=0.5, ge=0, le=20, description="calibrated on the frame stage's ratio and exit")
    question_nats: float = Field(default=1.5, ge=0, le=20, description="assumed: between frames and decoding")
    decode_nats: float = Field(default=6.0, ge=0, le=20, description="calibrated on the text stage's ratio")
    row_diversity: float = Field(
        default=0.07,
        ge=0,
        le=1,
        description="share of a query's content energy, before the layer's gain, that is its own by token and query "
        "head; the rows of a step and KV head have the rest in common; calibrated on the frame stage's ratio",
    )
    depth_gain: float = Field(
        default=12.0, ge=0, le=100, description="the last layer is 1 + gain times as sharp; calibrated, as depth_power"
    )
    depth_power: float = Field(
        default=8.0, gt=0, le=20, description="how late the gain sets in; calibrated on the layers' spread"
    )
    layer_jitter: float = Field(default=0.1, ge=0, le=3, description="log-normal spread over layers; calibrated")
    head_jitter: float = Field(default=0.2, ge=0, le=3, description="log-normal spread over query heads; assumed")


class RecencyConfig(BaseModel):
    """How attention falls with distance: as distance^-exponent, from a sixth of the shorter wavelength on.

    A bias shared by queries and keys, its energy even over the RoPE pairs between the two wavelengths, does this by
    rotation alone.
    """

    model_config = _FROZEN

    exponent: float = Field(
        default=1.1, ge=0, le=10, description="calibrated on the fall of the ratio from 10,000 to 40,000 tokens"
    )
    head_jitter: float = Field(default=0.2, ge=0, le=3, description="log-normal spread over KV heads; assumed")
    shortest_tokens: float = Field(default=40_000.0, gt=1, description="wavelength; calibrated, as the exponent")
    longest_tokens: float = Field(
        default=300_000.0, gt=1, description="wavelength; assumed: falls on to the end of a 40,000-token stream"
    )

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
    text_affinity_nats: float = Field(
        default=6.0,
        ge=0,
        le=20,
        description="by how much question and decode queries prefer text keys: image tokens get little attention from "
        "text (Chen et al. 2024, FastV); calibrated on the text stage's ratio",
    )
    predicted_query_cosine: float = Field(
        default=0.95,
        ge=0,
        le=1,
        description="cosine of the query predicted one layer before to the true one; InfiniGen (OSDI 2024, Table 1) "
        "measured 0.89-0.97 between neighbouring layer inputs",
    )
    value_noise_share: float = Field(default=0.2, ge=0, le=1, description="share of a value's energy in noise; assumed")
