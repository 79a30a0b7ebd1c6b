"""Where attended tokens stand for rotary embedding, for policies that move them (`Policy.positions`).

Cached keys are rotated to where they stood. Only distances matter, so a key is moved by turning it further, and the
step's own queries and keys stay where they are. Frequencies are the model's; with several positions per token (M-RoPE)
or frequencies that change with the length there is no such turn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resv.policies.base import Positions
from resv.rope import frequencies
from resv.trace import ModelShape

Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

_CHANGING = ("dynamic", "longrope")  # rope types of transformers whose frequencies depend on the length so far


class Turns:
    """Turns keys and queries by whole positions, with the model's frequencies (D/2,), radians per token.

    Sines and cosines are looked up: a step turns many keys by few different amounts.
    """

    def __init__(self, frequencies: Tensor) -> None:
        self._frequencies = frequencies.detach().float()
        self._cosines = self._sines = self._frequencies.new_zeros((0, len(frequencies)))

    def turned(self, x: Tensor, shifts: Int64) -> Tensor:
        """x (B, H, n, D) moved on by `shifts` (B or 1, H or 1, n) positions, negative ones back.

        Pairs are those of rotate_half: element i with i + D/2.
        """
        self._look_ahead(int(np.abs(shifts).max(initial=0)) + 1)
        steps = torch.from_numpy(shifts).to(x.device)
        shape = (*shifts.shape, len(self._frequencies))
        cosine = self._cosines.index_select(0, steps.abs().flatten()).view(shape)
        sine = self._sines.index_select(0, steps.abs().flatten()).view(shape) * steps.sign()[..., None]
        low, high = x.float().chunk(2, dim=-1)
        return torch.cat([low * cosine - high * sine, high * cosine + low * sine], dim=-1).to(x.dtype)

    def _look_ahead(self, n: int) -> None:
        if n > len(self._cosines):
            steps = torch.arange(2 * n, dtype=torch.float64, device=self._frequencies.device)
            angles = steps[:, None] * self._frequencies.double()
            self._cosines, self._sines = angles.cos().float(), angles.sin().float()


def shifts_in_a_row(indices: Int64, positions: Int64, first_new: int) -> Int64:
    """How far each attended token moves so that they stand in a row right before the step, at first_new - m ...

    indices : (B, H, m) attended tokens, -1 = padding;  positions : (S,) of all cached tokens.
    (B, H, m), or (1, 1, m) where all items and heads agree.
    """
    counts = (indices >= 0).sum(axis=-1, keepdims=True)
    places = first_new - counts + np.arange(indices.shape[-1])
    shifts = np.where(indices >= 0, places - positions[indices], 0)
    if (shifts == shifts[:1, :1]).all():
        shifts = shifts[:1, :1]
    return np.asarray(shifts)


def cannot_move(rotary: Any, several_positions: bool) -> str:
    """Why attended tokens keep their positions in this model; empty where they can be moved."""
    if several_positions:
        return "tokens have several positions (M-RoPE), for which a new order is undefined"
    if getattr(rotary, "rope_type", "default") in _CHANGING:
        return f"rotary frequencies change with the length ({rotary.rope_type})"
    return ""


def turns_by_index(rotary: Any, several_positions: bool, shape: ModelShape) -> bool:
    """Whether token i is turned by i times `resv.rope.frequencies`, as policies that turn keys back assume."""
    plain = torch.from_numpy(frequencies(shape)).float()
    inverse = rotary.inv_freq.float().cpu()
    return not several_positions and inverse.shape == plain.shape and torch.allclose(inverse, plain, rtol=1e-4)


def effective(declared: Positions, rotary: Any, several_positions: bool) -> Positions:
    """What a policy's positions become in this model."""
    return "original" if cannot_move(rotary, several_positions) else declared
