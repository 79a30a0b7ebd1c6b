"""The synthetic model's weights of one layer: projections, biases and per-head knobs, drawn from a seed.

Energy over the RoPE pairs is set here. Knows no token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resv.synthetic.config import GeneratorConfig
from resv.synthetic.latents import EXTRA, TEXT, TEXT_SHARE
from resv.trace import ModelShape

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_WEIGHTS_KEY = 11  # tells the draws of weights from the other draws of a seed
_FEWEST_PAIRS = 4  # RoPE pairs for the text mark, content and position


@dataclass(frozen=True)
class LayerWeights:
    """Arrays over channels have the KV heads' (H·D) or query heads' (H·G·D) channels side by side.

    key_projection, value_projection : (F, H·D);  key_bias, key_noise, value_noise : (H·D,)
    shared_query : (F, H·D), what the rows of a step and KV head have in common;  own_query : (F, H·G·D)
    query_bias, text_query : (H·G·D,), recency of exponent 1, and a logit of 1 with text keys
    gain : factor of the layer on what rows have in common
    sharpness, recency : (H·G,), factors of the query head on the stage's sharpness and on the recency exponent
    """

    key_projection: Float32
    key_bias: Float32
    key_noise: Float32
    value_projection: Float32
    value_noise: Float32
    shared_query: Float32
    own_query: Float32
    query_bias: Float32
    text_query: Float32
    gain: float
    sharpness: Float64
    recency: Float64


def rope_wavelengths(shape: ModelShape) -> Float64:
    """(D/2,) tokens per turn of each RoPE pair, fastest first."""
    exponent = 2.0 * np.arange(shape.head_dim // 2) / shape.head_dim
    return np.asarray(2 * np.pi * shape.rope_theta**exponent)


def rope_tables(shape: ModelShape, positions: NDArray[np.int64]) -> tuple[Float32, Float32]:
    """(cosine, sine), each (T, D/2): angles in float64, since float32 loses them beyond 10^5 tokens."""
    angles = positions[:, None] * (2 * np.pi / rope_wavelengths(shape))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _step(wavelengths: Float64, edge: float) -> Float64:
    """0 for wavelengths well below `edge`, 1 well above; half an octave wide, so that no pair count is special."""
    return np.asarray(1.0 / (1.0 + (edge / wavelengths) ** 4))


def content_energy(shape: ModelShape, generator: GeneratorConfig) -> Float64:
    """(D,) share of a head's content energy in each channel; sums to 1. The slowest pair has none: it marks text."""
    key = generator.key
    slow = _step(rope_wavelengths(shape), key.content_wavelength_tokens)
    slow[-1] = 0.0
    even = np.ones_like(slow)
    even[-1] = 0.0
    pairs = (1 - key.even_share) * slow / slow.sum() + key.even_share * even / even.sum()
    return np.tile(pairs / 2, 2)


def recency_kernel(shape: ModelShape, generator: GeneratorConfig) -> Float64:
    """(D/2,) weights of the pairs in sum(weight · cos(2 pi distance / wavelength)), which falls as -log(distance).

    Even over the logarithm of the wavelength between the two limits; the slope is 1 per e-fold of distance.
    """
    recency, wavelengths = generator.recency, rope_wavelengths(shape)
    band = _step(wavelengths, recency.shortest_tokens) * (1 - _step(wavelengths, recency.longest_tokens))
    return np.asarray(band * 2 * math.log(shape.rope_theta) / shape.head_dim)


def _bias_pair(shape: ModelShape, generator: GeneratorConfig, rng: np.random.Generator) -> tuple[Float32, Float32]:
    """Biases of keys (H·D,) and queries (H·G·D,) whose product over RoPE distance is the recency kernel.

    A pair's share of the key bias goes with the kernel and with the square root of the content's energy there: of
    all splits between key and query this lets the query's bias meet the least content.
    """
    kernel = recency_kernel(shape, generator)
    pair_content = content_energy(shape, generator)[: shape.head_dim // 2]
    share = kernel * np.sqrt(pair_content)
    in_key = np.sqrt(generator.key.bias_share * share / share.sum())
    in_query = np.divide(kernel, in_key, out=np.zeros_like(kernel), where=in_key > 0)
    phase = rng.uniform(0.0, 2 * np.pi, (shape.n_kv_heads, shape.head_dim // 2))
    turn = np.concatenate([np.cos(phase), np.sin(phase)], axis=1)
    key_bias = np.tile(math.sqrt(shape.head_dim) * in_key, 2) * turn
    query_bias = np.repeat(np.tile(in_query, 2) * turn, shape.group, axis=0)
    return key_bias.astype(np.float32).reshape(-1), query_bias.astype(np.float32).reshape(-1)


def draw_weights(shape: ModelShape, generator: GeneratorConfig, n_features: int, seed: int, layer: int) -> LayerWeights:
    """Weights of one layer for latents of unit length; keys have a mean square of about 1 per channel.

    Raises ValueError where the head dimension leaves no room for content, position and the text mark.
    """
    if shape.head_dim < 2 * _FEWEST_PAIRS:
        raise ValueError(f"head_dim {shape.head_dim}: the generator needs at least {2 * _FEWEST_PAIRS}")
    rng = np.random.default_rng([seed, _WEIGHTS_KEY, layer])
    heads, group, dim = shape.n_kv_heads, shape.group, shape.head_dim
    key, sharp, recency = generator.key, generator.sharpness, generator.recency
    content_share = 1 - key.bias_share - key.noise_share
    energy = content_energy(shape, generator)

    def projection(n_heads: int, channel_scale: Float64) -> Float32:
        draw = rng.standard_normal((n_features + EXTRA, n_heads, dim), dtype=np.float32)
        return (draw * channel_scale.astype(np.float32)).reshape(-1, n_heads * dim)

    # A query's random direction meets a key's: the logit's variance is query scale^2 · sum(energy^2) · share.
    query_scale = np.sqrt(energy / (content_share * np.sum(energy**2)))
    key_bias, query_bias = _bias_pair(shape, generator, rng)
    key_projection = projection(heads, np.sqrt(dim * content_share * energy))
    depth = layer / max(shape.n_layers - 1, 1)
    layer_gain = (1 + sharp.depth_gain * depth**sharp.depth_power) * math.exp(
        sharp.layer_jitter * rng.standard_normal()
    )
    text_key = key_projection.reshape(-1, heads, dim)[n_features + TEXT]
    text_key[:] = 0.0
    text_key[:, -1] = math.sqrt(dim * content_share)
    to_text = text_key / (content_share * math.sqrt(dim * TEXT_SHARE))
    ones = np.ones(dim)
    return LayerWeights(
        key_projection=key_projection,
        key_bias=key_bias,
        key_noise=np.full(heads * dim, math.sqrt(key.noise_share), dtype=np.float32),
        value_projection=projection(heads, math.sqrt(1 - generator.value_noise_share) * ones),
        value_noise=np.full(heads * dim, math.sqrt(generator.value_noise_share), dtype=np.float32),
        shared_query=projection(heads, query_scale),
        own_query=projection(heads * group, query_scale),
        query_bias=query_bias,
        text_query=np.repeat(to_text, group, axis=0).reshape(-1),
        gain=layer_gain,
        sharpness=np.exp(sharp.head_jitter * rng.standard_normal(heads * group)),
        recency=np.repeat(np.exp(recency.head_jitter * rng.standard_normal(heads)), group),
    )
