"""What a `config.json` that lacks a field means: the defaults of transformers' configuration classes, by `model_type`.

source: transformers 5.23, configuration_*.py of each family; tests/test_model_config.py compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_DECODER = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "rope_theta": 10_000.0,
    "sliding_window": 4096,
    "use_sliding_window": False,
    "max_window_layers": 0,
}
_QWEN = {
    **_DECODER,
    "num_key_value_heads": 32,
    "intermediate_size": 22_016,
    "vocab_size": 151_936,
    "max_window_layers": 28,
}
DECODERS: Mapping[str, Mapping[str, Any]] = {
    "llama": {**_DECODER, "intermediate_size": 11_008, "vocab_size": 32_000},
    "mistral": {
        **_DECODER,
        "num_key_value_heads": 8,
        "intermediate_size": 14_336,
        "vocab_size": 32_000,
        "use_sliding_window": True,  # it has no such field: a window that is given is used
    },
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": 128},
    "gemma": {
        **_DECODER,
        "hidden_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "intermediate_size": 24_576,
        "vocab_size": 256_000,
    },
    "qwen2_5_vl_text": {
        **_DECODER,
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "rope_theta": 1_000_000.0,
        "intermediate_size": 29_568,
        "vocab_size": 152_064,
        "max_window_layers": 80,
    },
}
SIGLIP = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
}
ONEVISION_TOWER = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
IDEFICS_TOWER = {**SIGLIP, "hidden_size": 1152, "num_attention_heads": 16, "patch_size": 32}
QWEN_TOWER = {
    "depth": 32,
    "hidden_size": 3584,
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
