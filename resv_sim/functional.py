"""The functional stage: policies over one layer of a trace, remembered by the hash of what it read.

Layers are independent, so this is what runs in parallel. Nothing here knows a platform.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from resv.attention import FullHead, fidelity_to, full_heads, restored_fidelity
from resv.hashing import cosine_hamming_correlation
from resv.policies import run_layers
from resv.policies.base import Policy
from resv.policies.resv import ReSV
from resv.selection import Fidelity, LayerSelection
from resv.trace import Float32, KVTrace, LayerTrace
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
    keys = {label: functional_key(trace, policy, layer, topk) for label, policy in policies.items()}
    known = {label: memo.load(key) for label, key in keys.items()}
    out = {label: LayerOutcome(*unpack_layers(arrays)) for label, arrays in known.items() if arrays is not None}
    missing = {label: policies[label] for label in policies if label not in out}
    if missing:
        arrays = trace.layer(layer, values=topk is not None)
        for label, outcome in _computed(trace, missing, arrays, topk).items():
            memo.store(keys[label], pack_layers(outcome.selections, outcome.fidelity))
            out[label] = outcome
    return {label: out[label] for label in policies}


def functional_key(trace: KVTrace, policy: Policy, layer: int, topk: int | None) -> str:
    """What one layer's outcome is remembered by: everything that it follows from."""
    fields = policy.model_dump(mode="json")
    return key_of("functional", code_fingerprint("resv"), trace.fingerprint(), fields, layer, topk)


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


def _computed(
    trace: KVTrace, policies: Mapping[str, Policy], arrays: LayerTrace, topk: int | None
) -> dict[str, LayerOutcome]:
    chosen = dict(zip(policies, run_layers(list(policies.values()), trace, arrays), strict=True))
    if topk is None:
        return {label: LayerOutcome(selections, ()) for label, selections in chosen.items()}
    restored = [_read_back(trace, arrays, policies[label]) for label in chosen]
    # Probe by probe, so that full attention is taken once and only one probe's is held.
    per_probe = [
        _fidelities(trace, arrays, p, [selections[p] for selections in chosen.values()], topk, restored)
        for p in range(len(trace.probes))
    ]
    fidelities = zip(*per_probe, strict=True) if per_probe else [()] * len(chosen)
    return {
        label: LayerOutcome(selections, tuple(mine))
        for (label, selections), mine in zip(chosen.items(), fidelities, strict=True)
    }


def _read_back(trace: KVTrace, arrays: LayerTrace, policy: Policy) -> tuple[Float32, Float32] | None:
    """Keys and values up to the last probe as the policy reads them; None where they come back as they were."""
    cached = max((probe.first_token for probe in trace.probes), default=0)
    # Without values the keys stand in for them: that something comes back altered is all that is asked then.
    values = arrays.keys if arrays.values is None else arrays.values
    return policy.read_back(trace.shape, arrays.keys[:, :cached], values[:, :cached])


def layer_fidelity(
    trace: KVTrace, arrays: LayerTrace, selections: Sequence[LayerSelection], topk: int
) -> tuple[Fidelity, ...]:
    """Every probe's selection beside full attention, with the true queries."""
    return tuple(_fidelities(trace, arrays, p, [sel], topk)[0] for p, sel in enumerate(selections))


def _fidelities(
    trace: KVTrace,
    arrays: LayerTrace,
    probe: int,
    selections: Sequence[LayerSelection],
    topk: int,
    restored: Sequence[tuple[Float32, Float32] | None] = (),
) -> list[Fidelity]:
    """Selections of one probe beside the same full attention; equal selections are compared once.

    restored : per selection, keys and values of the whole stream as its policy reads them back
    """
    heads = trace.shape.n_kv_heads
    full: tuple[FullHead, ...] | None = None
    known: dict[bytes, Fidelity] = {}
    out = []
    cached = trace.probes[probe].first_token
    for selection, stored in zip_longest(selections, restored):
        if stored is not None and cached:
            full = _full(trace, arrays, probe, topk) if full is None else full
            out.append(restored_fidelity(full, stored[0][:, :cached], stored[1][:, :cached]))
            continue
        if selection.attended.all():
            out.append(Fidelity(np.ones(heads), np.ones(heads), np.zeros(heads)))
            continue
        key = np.packbits(selection.attended).tobytes()
        if key not in known:
            full = _full(trace, arrays, probe, topk) if full is None else full
            known[key] = fidelity_to(full, selection.attended)
        out.append(known[key])
    return out


def _full(trace: KVTrace, arrays: LayerTrace, probe: int, topk: int) -> tuple[FullHead, ...]:
    cached = trace.probes[probe].first_token
    values = arrays.values[:, :cached] if arrays.values is not None else None
    step_values = arrays.step_values[probe] if arrays.step_values is not None else None
    return full_heads(
        arrays.queries[probe], arrays.keys[:, :cached], values, arrays.step_keys[probe], step_values, topk=topk
    )
