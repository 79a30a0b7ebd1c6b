"""A policy's state on disk and back: arrays in a safetensors file, plain values in its header. No pickle.

A file holds what a state has become, not what it was made of: it is loaded into an empty state of the same
policy, model and layer. Tensors come back as NumPy arrays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from resv._arrays import is_tensor, to_numpy
from resv.policies.base import PolicyState

_VERSION = 1
Arrays = dict[str, NDArray[Any]]


def save_state(state: PolicyState, path: Path) -> None:
    """Write `state` to `path`: under another name first, so that a killed writer leaves no half file."""
    from safetensors.numpy import save_file

    arrays: Arrays = {}
    header = {"version": _VERSION, "made_by": _made_by(state), "state": _packed(vars(state), "", arrays)}
    temporary = path.with_suffix(path.suffix + ".part")
    save_file(arrays, temporary, {"resv_state": json.dumps(header)})
    temporary.replace(path)


def load_state(state: PolicyState, path: Path) -> None:
    """Make the empty `state` what was saved.

    Raises ValueError where the file is no state, or one of another policy, model or layer.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get("resv_state", "{}"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a saved policy state ({error})") from error
    if header.get("version") != _VERSION:
        raise ValueError(f"{path}: not a policy state of version {_VERSION}")
    if header["made_by"] != _made_by(state):
        raise ValueError(f"{path}: saved by {header['made_by']}, cannot become {_made_by(state)}")
    _restore(state, header["state"], arrays)


def _made_by(state: PolicyState) -> dict[str, Any]:
    given = [value for value in vars(state).values() if isinstance(value, BaseModel)]
    return {"kind": type(state).__name__, "layer": state.layer, "given": [g.model_dump(mode="json") for g in given]}


def _packed(value: Any, name: str, arrays: Arrays) -> Any:
    """`value` as JSON, its arrays in `arrays`; parameters and types, which an empty state has too, are left out."""
    if isinstance(value, (BaseModel, type)):
        return None
    if is_tensor(value) or isinstance(value, np.ndarray):
        arrays[name] = np.ascontiguousarray(to_numpy(value))
        return {"array": name}
    if isinstance(value, (tuple, list)):
        items = [_packed(item, f"{name}.{i}", arrays) for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if isinstance(value, Mapping):
        pairs = [[key, _packed(item, f"{name}.{key}", arrays)] for key, item in value.items()]
        return {"dict": pairs}
    if isinstance(value, np.generic):
        return {"plain": value.item()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"plain": value}
    return {"object": _packed(vars(value), name, arrays)}


def _restore(target: object, packed: Mapping[str, Any], arrays: Arrays) -> None:
    for name, item in packed["dict"]:
        if item is not None:
            setattr(target, name, _unpacked(item, getattr(target, name, None), arrays))


def _unpacked(packed: Mapping[str, Any], present: Any, arrays: Arrays) -> Any:
    """The value; an object keeps its identity and takes what was saved of it."""
    (kind, content), *_ = packed.items()
    if kind == "array":
        return arrays[content]
    if kind in ("list", "tuple"):
        before = [*(present or ()), *[None] * len(content)]
        items = [_unpacked(item, before[i], arrays) for i, item in enumerate(content)]
        if hasattr(present, "_fields"):
            return type(present)(*items)
        return items if kind == "list" else tuple(items)
    if kind == "dict":
        return {key: _unpacked(item, None, arrays) for key, item in content}
    if kind == "object":
        _restore(present, content, arrays)
        return present
    return content
