"""A model by name: a tiny one made here, a local folder, or an id of the hub. Nothing but weights is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from resv.huggingface.families import FAMILIES, UnsupportedModelError, family_of
from resv.huggingface.tiny import TINY_MODELS, tiny_model
from resv.huggingface.versions import require_transformers

DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("cpu", "cuda")


def load_model(name: str, *, device: str = "cpu", dtype: str = "float32") -> Any:
    """A model in eval mode, of a supported family.

    Raises UnsupportedModelError before any weight is read, ValueError where the folder or id is none or the device is
    not there, TransformersVersionError.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', and this machine or this torch has none; allowed here: cpu")
    wanted = getattr(torch, dtype)
    if name in TINY_MODELS:
        return tiny_model(name).to(device, wanted)
    transformers = require_transformers()
    if not Path(name).is_dir() and "/" not in name:
        raise ValueError(
            f"no model '{name}': give a folder, an id of the hub (owner/name), or {', '.join(TINY_MODELS)}"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"model '{name}' cannot be loaded: {error}") from error
    if config.model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"'{name}' is a model of type '{config.model_type}'; supported are {', '.join(FAMILIES)}"
        )
    has_vision = hasattr(config, "vision_config")
    auto = transformers.AutoModelForImageTextToText if has_vision else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(name, dtype=wanted).to(device).eval()
    model.name_or_path = name
    family_of(model)
    return model
