"""A stream that goes on from its disk tier: policy states made anew from the stored keys.

What policies remember of queries is in no tier: `resume` says which states differ from those of a stream that was
never interrupted.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

from resv.huggingface.step import on_host
from resv.huggingface.stream import Landed, Stream
from resv.policies.infllm import InfLLMState
from resv.tiers.store import TieredStore

_INFLLM = (
    "infllm chooses a block's representatives by the attention they got, which no tier holds: after going on from a "
    "folder they are those of steps seen since"
)
_SAMPLED = 64  # elements of each weight that its fingerprint sees


def resume(stream: Stream, store: TieredStore) -> list[str]:
    """Take the steps that `store` holds and the stream has not seen into the stream; return notes for a reader."""
    fresh = [record for record in store.records if record.first_token >= stream.n_tokens]
    if not fresh:
        return []
    landed = [Landed(record.n_tokens, record.kind, record.grid) for record in fresh]
    stream.adopt(landed, lambda layer, first, end: on_host(store.keys(layer, first, end)))
    for layer in range(stream.shape.n_layers):
        held = np.stack([states[layer].residency()[0] for states in stream.states])
        store.restore(layer, torch.from_numpy(held))
    stream.tell_store()
    return [_INFLLM] if isinstance(stream.states[0][0], InfLLMState) else []


def weights_fingerprint(model: Any) -> str:
    """16 hex digits over the name, shape and first elements of every weight."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(weight.detach().flatten()[:_SAMPLED].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
