"""Tiny models with random weights, one per supported family: the whole path runs with no download.

What they say means nothing; that every part fits the other is what they are for.
"""

from __future__ import annotations

from typing import Any

from resv.huggingface.versions import require_transformers

# Large weights, so that attention is not flat and a policy's choice shows; grouped queries and several layers.
_DECODER = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "initializer_range": 0.1,
}


def _llama(transformers: Any) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=8,
        **_DECODER,
    )
    return transformers.LlamaForCausalLM(config)


def _llava(transformers: Any) -> Any:
    vision = transformers.SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=56,
        patch_size=14,
        vision_use_head=False,
    )
    text = transformers.Qwen2Config(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        **_DECODER,
    )
    config = transformers.LlavaOnevisionConfig(
        vision_config=vision, text_config=text, image_token_index=250, video_token_index=251, tie_word_embeddings=False
    )
    return transformers.LlavaOnevisionForConditionalGeneration(config)


def _qwen25vl(transformers: Any) -> Any:
    text = {
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6},
        **_DECODER,
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 56,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
        "min_pixels": 56 * 56,
        "max_pixels": 84 * 84,
    }
    ids = {"image_token_id": 250, "video_token_id": 251, "vision_start_token_id": 252, "vision_end_token_id": 253}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def _smolvlm(transformers: Any) -> Any:
    text = {
        "model_type": "llama",
        "vocab_size": 256,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        **_DECODER,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    }
    config = transformers.SmolVLMConfig(
        text_config=text, vision_config=vision, scale_factor=2, image_token_id=250, tie_word_embeddings=False
    )
    return transformers.SmolVLMForConditionalGeneration(config)


TINY_MODELS = {"tiny-llama": _llama, "tiny-llava": _llava, "tiny-qwen2.5-vl": _qwen25vl, "tiny-smolvlm": _smolvlm}


def tiny_model(name: str, seed: int = 0) -> Any:
    """One of `TINY_MODELS` in eval mode, float32 on the CPU; the same seed gives the same weights.

    Raises ValueError for another name.
    """
    if name not in TINY_MODELS:
        raise ValueError(f"no tiny model '{name}'; allowed: {', '.join(TINY_MODELS)}")
    import torch

    transformers = require_transformers()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TINY_MODELS[name](transformers).eval()
    model.name_or_path = name
    return model
