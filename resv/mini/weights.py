"""The weight file: one safetensors file with half-precision values, whose metadata says what it is.

Metadata holds the version of the format, the words of the vocabulary, the model's configuration, the recipe, a SHA-256
of the values, and the measured accuracy (the numbers of the model card). Everything is checked on loading.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from resv.mini.model import MiniConfig, MiniModel, MiniNetwork
from resv.mini.vocabulary import words

FORMAT_VERSION = "1"
SHIPPED = Path(__file__).parent / "data" / "mini.safetensors"
_HOW_TO_MAKE = "scripts/train_mini.py train, then scripts/train_mini.py export, make it"
_SHARED = "llm.lm_head.weight"  # the same tensor as the word embedding; stored once


class WeightsError(ValueError):
    """A weight file that is missing, damaged, or of another version; the message says what to run."""


def _digest(tensors: Mapping[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(name.encode())
        sha.update(tensors[name].contiguous().numpy().tobytes())
    return sha.hexdigest()


def save_weights(network: MiniNetwork, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a network with its metadata, whole or not at all."""
    tensors = {
        name: value.detach().cpu().to(torch.float16).contiguous()
        for name, value in network.state_dict().items()
        if name != _SHARED
    }
    header = {
        **metadata,
        "format_version": FORMAT_VERSION,
        "vocabulary": json.dumps(words()),
        "model": network.config.model_dump_json(),
        "sha256": _digest(tensors),
    }
    part = path.with_suffix(".part")
    save_file(tensors, part, header)
    part.chmod(0o644)  # it was written for its owner alone
    os.replace(part, path)


def _check(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    version = metadata.get("format_version")
    if version != FORMAT_VERSION:
        raise WeightsError(f"{path}: format version {version}, this program reads {FORMAT_VERSION}: {_HOW_TO_MAKE}")
    if metadata.get("vocabulary") != json.dumps(words()):
        raise WeightsError(f"{path}: trained with another vocabulary than this program's: {_HOW_TO_MAKE} anew")
    if metadata.get("sha256") != _digest(tensors):
        raise WeightsError(f"{path}: values do not match their checksum, the file is damaged: {_HOW_TO_MAKE} anew")


def load_mini(path: Path = SHIPPED) -> MiniModel:
    """The model of a weight file, by default the shipped one, in float32 on the CPU, for inference.

    Raises `WeightsError` if the file is missing, damaged, or of another version.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such weight file: {_HOW_TO_MAKE}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise WeightsError(f"{path}: not a weight file ({error}): {_HOW_TO_MAKE}") from error
    _check(path, metadata, tensors)
    try:
        network = MiniNetwork(MiniConfig.model_validate_json(metadata["model"]))
        values = {name: value.float() for name, value in tensors.items()}
        network.load_state_dict({**values, _SHARED: values["llm.model.embed_tokens.weight"]})
    except (KeyError, ValidationError, RuntimeError) as error:
        raise WeightsError(f"{path}: does not fit this program's model ({error}): {_HOW_TO_MAKE} anew") from error
    return MiniModel(network.eval().requires_grad_(False), metadata)
