"""The functional stage: policies over one layer of a trace, remembered by the hash of what it read.

Layers are independent, so this is what runs in parallel. Nothing here knows a platform.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from resv.attention import fidelity
from resv.hashing import cosine_hamming_correlation
from resv.policies import run_layer
from resv.policies.base import Policy
from resv.policies.resv import ReSV
from resv.selection import Fidelity, LayerSelection
from resv.trace import KVTrace, LayerTrace
from resv_sim.config import Experiment
from resv_sim.memo import Memo, code_fingerprint, key_of, pack_layers, unpack_layers


@dataclass(frozen=True)
class LayerOutcome:
    """One layer of one stream under one policy: a selection per probe, and its fidelity if asked for."""

    selections: tuple[LayerSelection, ...]
    fidelity: tuple[Fidelity, ...]


def functional_layer(
    trace: KVTrace, policies: Mapping[str, Policy], layer: int, topk: int | None, memo: Memo
) -> dict[str, LayerOutcome]:
    """Every policy on one layer. The layer's arrays are made only if some result is not remembered.

    topk : heavy tokens per row for the fidelity figures, None to leave fidelity out
    """
    stream = trace.fingerprint()
    out: dict[str, LayerOutcome] = {}
    arrays: LayerTrace | None = None
    for label, policy in policies.items():
        key = key_of("functional", code_fingerprint("resv"), stream, policy.model_dump(mode="json"), layer, topk)
        known = memo.load(key)
        if known is None:
            if arrays is None:
                arrays = trace.layer(layer, values=topk is not None)
            outcome = _compute(trace, policy, arrays, topk)
            memo.store(key, pack_layers(outcome.selections, outcome.fidelity))
        else:
            outcome = LayerOutcome(*unpack_layers(known))
        out[label] = outcome
    return out


def correlation_statistics(trace: KVTrace, experiment: Experiment, memo: Memo) -> dict[str, object]:
    """Cosine similarity against Hamming distance of hashed keys in layer 3 (Fig. 7), for the first ReSV policy."""
    policy = next((p for p in experiment.policies.values() if isinstance(p, ReSV)), None)
    if policy is None:
        return {}
    layer = min(3, trace.shape.n_layers - 1)
    key = key_of("correlation", code_fingerprint("resv"), trace.fingerprint(), policy.hash_bits, policy.seed, layer)
    known = memo.load(key)
    if known is None:
        keys = trace.layer(layer, values=False).keys
        flat = np.ascontiguousarray(keys.transpose(1, 0, 2)).reshape(keys.shape[1], -1)
        value = cosine_hamming_correlation(flat, policy.hash_bits, seed=policy.seed)
        known = {"correlation": np.array([value])}
        memo.store(key, known)
    return {"cosine_hamming_correlation": abs(float(known["correlation"][0]))}


def _compute(trace: KVTrace, policy: Policy, arrays: LayerTrace, topk: int | None) -> LayerOutcome:
    selections = run_layer(policy, trace, arrays)
    if topk is None:
        return LayerOutcome(selections, ())
    return LayerOutcome(selections, layer_fidelity(trace, arrays, selections, topk))


def layer_fidelity(
    trace: KVTrace, arrays: LayerTrace, selections: Sequence[LayerSelection], topk: int
) -> tuple[Fidelity, ...]:
    """Every probe's selection beside full attention, with the true queries."""
    return tuple(_fidelity(trace, arrays, p, sel, topk) for p, sel in enumerate(selections))


def _fidelity(trace: KVTrace, arrays: LayerTrace, probe: int, selection: LayerSelection, topk: int) -> Fidelity:
    heads = trace.shape.n_kv_heads
    if selection.attended.all():
        return Fidelity(np.ones(heads), np.ones(heads), np.zeros(heads))
    cached = trace.probes[probe].first_token
    values = arrays.values[:, :cached] if arrays.values is not None else None
    step_values = arrays.step_values[probe] if arrays.step_values is not None else None
    return fidelity(
        arrays.queries[probe],
        arrays.keys[:, :cached],
        values,
        arrays.step_keys[probe],
        step_values,
        selection.attended,
        topk=topk,
    )
