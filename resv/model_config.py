"""`ModelShape` of a model that nobody prepared, from the `config.json` of its Hugging Face checkpoint.

Reads plain JSON and needs no transformers. A field that a file lacks has the default of transformers' configuration
class of that `model_type`. Knows decoders whose every layer attends to the whole cache, alone or behind a vision tower;
refuses the others by name. Knows nothing of weights, processors or chat templates.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from resv._model_defaults import DECODERS, IDEFICS_TOWER, ONEVISION_TOWER, QWEN_TOWER, SIGLIP
from resv.trace import ModelShape, VisionShape

Config = Mapping[str, Any]

CONFIG_FILE = "config.json"
COMPUTE_BITS = 16  # assumed: bf16 or fp16, in which these models are served, whatever the checkpoint was saved in
DYNAMIC_IMAGE_PX = 448  # assumed: 256 tokens; Qwen2.5-VL's video processor allows 128 to 768 per frame


class ModelConfigError(ValueError):
    """A `config.json` that gives no `ModelShape`: what is missing or does not fit, and what would."""


def model_shape_from_config(config: Config, name: str = "", image_px: int = DYNAMIC_IMAGE_PX) -> ModelShape:
    """The shape of the model that a `config.json` describes.

    name : of the shape, `_name_or_path` or the model type where empty
    image_px : side of a square frame, for models that take any size (Qwen2.5-VL)

    A model without a vision tower has ten tokens a frame, as VideoLLM-online (CVPR 2024). In Qwen2.5-VL one frame step
    holds `temporal_patch_size` video frames. Raises ModelConfigError.
    """
    kind = config.get("model_type")
    if kind is None:
        raise ModelConfigError(f"no field 'model_type'; supported are {', '.join(SUPPORTED)}")
    if kind not in SUPPORTED:
        raise ModelConfigError(f"model_type '{kind}' is not supported; supported are {', '.join(SUPPORTED)}")
    known = name or Path(str(config.get("_name_or_path") or "")).name or kind
    try:
        if kind in DECODERS:
            return _decoder(config, kind, known)
        return _VIDEO_MODELS[kind](config, known, image_px)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "fields"
        raise ModelConfigError(f"{field}: {first['msg'].removeprefix('Value error, ')}") from error


def read_model_shape(path: Path) -> ModelShape:
    """As `model_shape_from_config`, of a file or of a folder with a `config.json`; its errors name the file."""
    file = path / CONFIG_FILE if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelConfigError(f"{file}: cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelConfigError(f"{file}: must be an object of fields, as a checkpoint's {CONFIG_FILE}")
    folder = file.absolute().parent
    if folder.parent.name == "snapshots":  # of the hub's cache: models--OWNER--NAME/snapshots/REVISION
        folder = Path(folder.parents[1].name.rpartition("--")[2])
    name = "" if config.get("_name_or_path") else folder.name
    try:
        return model_shape_from_config(config, name)
    except ModelConfigError as error:
        raise ModelConfigError(f"{file}: {error}") from error


# -- decoders --------------------------------------------------------------------------------------------


def _decoder(
    config: Config, kind: str, name: str, tokens_per_frame: int | None = None, vision: VisionShape | None = None
) -> ModelShape:
    """A decoder with gated feed-forward layers; GeGLU (Gemma) is as wide as SwiGLU."""
    if kind not in DECODERS:
        raise ModelConfigError(f"text_config.model_type '{kind}' is not supported; supported are {', '.join(DECODERS)}")
    defaults = DECODERS[kind]
    fields = {**defaults, **config}
    _refuse_windows(fields)
    heads, hidden = _count(fields, "num_attention_heads"), _count(fields, "hidden_size")
    frame = {} if tokens_per_frame is None else {"tokens_per_frame": tokens_per_frame}
    return ModelShape(
        name=name,
        n_layers=_count(fields, "num_hidden_layers"),
        hidden=hidden,
        n_query_heads=heads,
        n_kv_heads=heads if fields["num_key_value_heads"] is None else _count(fields, "num_key_value_heads"),
        head_dim=hidden // heads if fields["head_dim"] is None else _count(fields, "head_dim"),
        ffn=_count(fields, "intermediate_size"),
        vocab=_count(fields, "vocab_size"),
        rope_theta=_rope_theta(config, defaults),
        kv_bits=COMPUTE_BITS,
        weight_bits=_weight_bits(config),
        vision=vision,
        **frame,
    )


def _refuse_windows(fields: Config) -> None:
    """Layers that keep a window of the cache are no streaming cache that grows without end."""
    windowed = fields["max_window_layers"] < _count(fields, "num_hidden_layers")
    window = fields["use_sliding_window"] and windowed and fields["sliding_window"]
    if window or set(fields.get("layer_types") or ()) - {"full_attention"}:
        field = "sliding_window" if window else "layer_types"
        raise ModelConfigError(
            f"{field}: some layers attend to a window only, and a shape has full attention in every layer; "
            "remove the window (sliding_window: null) to simulate the model without it"
        )


def _rope_theta(config: Config, defaults: Config) -> float:
    """Where files of different ages keep it."""
    for holder in (config.get("rope_parameters"), config, config.get("rope_scaling")):
        if isinstance(holder, Mapping) and holder.get("rope_theta") is not None:
            return float(holder["rope_theta"])
    return float(defaults["rope_theta"])


def _weight_bits(config: Config) -> int:
    quantised = config.get("quantization_config")
    if not quantised:
        return COMPUTE_BITS
    if "bits" not in quantised:
        raise ModelConfigError("quantization_config: no field 'bits'; only checkpoints that state them are supported")
    return _count(quantised, "bits")


# -- video models ----------------------------------------------------------------------------------------


def _llava_onevision(config: Config, name: str, image_px: int) -> ModelShape:
    """Every frame is projected patch by patch and pooled by two: 27 x 27 patches -> 14 x 14 = 196 tokens.

    source: transformers, LlavaOnevisionModel.get_video_features and apply_pooling. The newline embedding that follows a
    video is left out: a stream has one video.
    """
    given = config.get("vision_config") or ONEVISION_TOWER
    kind = given.get("model_type", "siglip_vision_model")
    if kind != "siglip_vision_model":
        raise ModelConfigError(f"vision_config.model_type '{kind}' is not supported here; siglip_vision_model is")
    tower = {**SIGLIP, **given}
    side = _side(tower)
    layer = config.get("vision_feature_layer", -1)
    if not isinstance(layer, int):
        raise ModelConfigError(f"vision_feature_layer: {layer!r}; one layer is supported, not several")
    n_layers = _count(tower, "num_hidden_layers") + 1 + layer if layer < 0 else layer
    vision = _vit(kind, tower, n_layers=n_layers, projector_tokens=side**2, projector_layers=2)
    text = _text(config, "qwen2")
    return _decoder(text, text["model_type"], name, math.ceil(side / 2) ** 2, vision)


def _idefics3(config: Config, name: str, image_px: int) -> ModelShape:
    """Frames are not split: (image_size / patch_size)^2 / scale_factor^2 tokens each, 81 for SmolVLM2-2.2B.

    source: transformers, Idefics3Connector and SmolVLMConnector (pixel shuffle and one linear layer)
    """
    tower = {**IDEFICS_TOWER, **(config.get("vision_config") or {})}
    scale = _count({"scale_factor": 2, **config}, "scale_factor")
    side = _side(tower)
    if side % scale:
        raise ModelConfigError(f"scale_factor: {scale} does not divide the {side} patches of a side")
    width = _count(tower, "hidden_size") * scale**2
    vision = _vit(f"{config['model_type']}_vision", tower, projector_layers=1, projector_widths=(width,))
    text = _text(config, "llama")
    return _decoder(text, text["model_type"], name, (side // scale) ** 2, vision)


def _qwen2_5_vl(config: Config, name: str, image_px: int) -> ModelShape:
    """A step is `temporal_patch_size` frames of image_px x image_px: (image_px / 14)^2 patches, merged two by two.

    source: transformers, Qwen2_5_VLVisionConfig and Qwen2_5_VLPatchMerger. Every block counts full attention, where
    most attend within windows of 112 px; gated feed-forward layers have three matrices, a plain one of 3/2 the width
    has as many weights.
    """
    tower = {**QWEN_TOWER, **(config.get("vision_config") or {})}
    patch, merge = _count(tower, "patch_size"), _count(tower, "spatial_merge_size")
    if image_px % (patch * merge):
        raise ModelConfigError(f"image_px: {image_px} must be a multiple of patch_size * merge = {patch * merge}")
    frames, channels = _count(tower, "temporal_patch_size"), _count(tower, "in_channels")
    width = _count(tower, "hidden_size") * merge**2
    vision = VisionShape(
        name="qwen2_5_vl_vision",
        n_layers=_count(tower, "depth"),
        hidden=_count(tower, "hidden_size"),
        ffn=round(1.5 * _count(tower, "intermediate_size")),
        n_heads=_count(tower, "num_heads"),
        n_patches=(image_px // patch) ** 2,
        patch_elements=channels * frames * patch**2,
        image_px=image_px,
        projector_layers=2,
        projector_widths=(width, width),
        weight_bits=COMPUTE_BITS,
    )
    # Files of the hub hold the decoder's fields at the top.
    text = _text({**config, "text_config": config.get("text_config") or config}, "")
    return _decoder(text, "qwen2_5_vl_text", name, (image_px // (patch * merge)) ** 2, vision)


_VIDEO_MODELS: Mapping[str, Callable[[Config, str, int], ModelShape]] = {
    "llava_onevision": _llava_onevision,
    "qwen2_5_vl": _qwen2_5_vl,
    "smolvlm": _idefics3,
    "idefics3": _idefics3,
}
SUPPORTED = tuple(sorted((*DECODERS, *_VIDEO_MODELS)))


def _text(config: Config, default: str) -> Config:
    """The decoder's fields, `model_type` among them; whether its weights are quantised stands at the top."""
    text = {"model_type": default, **(config.get("text_config") or {})}
    return {**text, "quantization_config": config.get("quantization_config")}


def _vit(name: str, tower: Config, n_layers: int = 0, **projector: Any) -> VisionShape:
    """A SigLIP tower; `n_layers` of it run, 0 = all."""
    return VisionShape(
        name=name,
        n_layers=n_layers or _count(tower, "num_hidden_layers"),
        hidden=_count(tower, "hidden_size"),
        ffn=_count(tower, "intermediate_size"),
        n_heads=_count(tower, "num_attention_heads"),
        n_patches=_side(tower) ** 2,
        patch_elements=_count(tower, "num_channels") * _count(tower, "patch_size") ** 2,
        image_px=_count(tower, "image_size"),
        weight_bits=COMPUTE_BITS,
        **projector,
    )


def _side(tower: Config) -> int:
    return _count(tower, "image_size") // _count(tower, "patch_size")


def _count(fields: Config, field: str) -> int:
    value = fields[field]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelConfigError(f"{field}: {value!r} must be a whole number from 1")
    return value
