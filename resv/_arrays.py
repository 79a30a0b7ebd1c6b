"""Torch tensors in, torch tensors out; NumPy arrays in, NumPy arrays out.

A tensor is recognised without importing torch, so nothing here costs torch's import unless the caller
already uses it. Also the number format in which scores and representative keys are stored: bf16.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = Any
"""A NumPy array or a torch tensor; functions return the kind they were given."""


def is_tensor(x: object) -> bool:
    """Whether `x` is a torch tensor (or a subclass), decided by its type's module."""
    if type(x) is np.ndarray:
        return False
    return any(base.__module__.partition(".")[0] == "torch" for base in type(x).__mro__)


def namespace(x: Array) -> ModuleType:
    """The module, numpy or torch, whose functions take `x`. torch accepts `axis` and `keepdims` too."""
    return sys.modules["torch"] if is_tensor(x) else np


def to_numpy(x: Array) -> NDArray[Any]:
    """`x` as a NumPy array; no copy for a CPU tensor. bf16, which NumPy lacks, becomes float32."""
    if not is_tensor(x):
        return np.asarray(x)
    torch = sys.modules["torch"]
    x = x.detach()
    if x.dtype == torch.bfloat16:
        x = x.float()
    if x.dtype == torch.uint64:  # not every device copies unsigned integers
        return np.asarray(x.view(torch.int64).cpu().numpy().view(np.uint64))
    return np.asarray(x.cpu().numpy())


def like(result: NDArray[Any], template: Array) -> Array:
    """`result` as the kind of array `template` is, on the same device."""
    if not is_tensor(template):
        return result
    return sys.modules["torch"].from_numpy(np.ascontiguousarray(result)).to(template.device)


def in_float32(x: Array) -> Array:
    """`x` as float32; no copy where it already is."""
    return x.float() if is_tensor(x) else np.asarray(x, dtype=np.float32)


def round_bf16(x: Array) -> Array:
    """Finite values of `x` rounded to bf16, nearest with ties to even, held in float32."""
    if is_tensor(x):
        return x.to(sys.modules["torch"].bfloat16).float()
    from resv._float_kernels import round_to_bf16

    values = np.ascontiguousarray(x, dtype=np.float32)
    out = np.empty_like(values)
    round_to_bf16(values.reshape(-1).view(np.uint32), out.reshape(-1).view(np.uint32))
    return out
