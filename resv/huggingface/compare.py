"""How far a policy takes a model from its full cache: the same embeddings under both, step by step.

Next-token distributions are compared between the two runs; attention mass and output error of a layer are against
full attention over the policy's own cache at original positions, so they do not pile up from layer to layer. Needs no
labels and no judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from resv.attention import fidelity_to, full_heads, restored_fidelity
from resv.huggingface.attach import attach
from resv.huggingface.families import Grid
from resv.huggingface.step import LayerEvent, Listener
from resv.huggingface.store import StoreFactory
from resv.huggingface.stream import Stream
from resv.policies.base import Policy
from resv.policies.full import Full
from resv.selection import Fidelity
from resv.trace import Step, StepKind

Float64 = NDArray[np.float64]


class StepInput(NamedTuple):
    """embeds : (B, n, hidden);  grid : of a frame's tokens, for models that need it"""

    embeds: Tensor
    kind: StepKind = "frame"
    grid: Grid | None = None


@dataclass(frozen=True)
class StepComparison:
    """One step. Means over batch items; per layer (L,) also over KV heads.

    kl_nats : KL divergence of the policy's next-token distribution from the full cache's, after the step's last token
    top1_agreement : share of items whose likeliest next token is the same
    attended_share : attended / cached tokens, 1 for an empty cache
    attention_mass_kept, topk_overlap, output_rel_error : see `resv.selection.Fidelity`
    """

    step: Step
    kl_nats: float
    top1_agreement: float
    attended_share: Float64
    attention_mass_kept: Float64
    topk_overlap: Float64
    output_rel_error: Float64


class _FidelityMeter:
    """Fidelity of every layer of the step that runs."""

    wants_predicted = False

    def __init__(self, policy: Policy, topk: int) -> None:
        self._policy, self._topk = policy, topk
        self.layers: list[tuple[float, Float64]] = []

    def on_layer(self, event: LayerEvent) -> None:
        if event.layer == 0:
            self.layers = []
        cached = event.cached()
        items = [self._fidelity(event, item, *(x[item] for x in cached)) for item in range(event.stream.batch)]
        means = [
            [one.attention_mass_kept.mean(), one.topk_overlap.mean(), one.output_rel_error.mean()] for one in items
        ]
        shares = [one.attended.mean() if one.n_cached else 1.0 for one in event.selections]
        self.layers.append((float(np.mean(shares)), np.mean(means, axis=0)))

    def _fidelity(self, event: LayerEvent, item: int, keys: NDArray[Any], values: NDArray[Any]) -> Fidelity:
        own = event.keys[item], event.values[item]
        full = full_heads(event.queries[item], keys, values, *own, self._topk)
        back = self._policy.read_back(event.stream.shape, keys, values) if keys.shape[1] else None
        return fidelity_to(full, event.selections[item].attended) if back is None else restored_fidelity(full, *back)

    def on_step(self, stream: Stream, step: Step) -> None:
        """Nothing to do."""

    def on_rollback(self, stream: Stream, n_steps: int) -> None:
        """Nothing to do."""


def compare(
    model: Any,
    policy: Policy,
    steps: Sequence[StepInput | tuple[Any, ...]],
    *,
    topk: int = 64,
    store: StoreFactory | None = None,
) -> tuple[StepComparison, ...]:
    """Run `steps` under the full cache and under `policy`, one `StepComparison` each.

    steps : `StepInput`, or (embeds, kind) tuples;  topk : of the overlap.  Raises as `attach` and `Stream.forward`.
    """
    inputs = [StepInput(*step) for step in steps]
    reference = [log_probabilities for _, log_probabilities in _run(model, Full(), inputs, None, None)]
    meter = _FidelityMeter(policy, topk)
    compared = []
    for full, (step, mine) in zip(reference, _run(model, policy, inputs, store, meter), strict=True):
        shares, means = zip(*meter.layers, strict=True)
        mass, overlap, error = np.array(means).T
        kl = (full.exp() * (full - mine)).sum(dim=-1).clamp(min=0).mean()
        agreement = (full.argmax(dim=-1) == mine.argmax(dim=-1)).double().mean()
        compared.append(StepComparison(step, float(kl), float(agreement), np.array(shares), mass, overlap, error))
    return tuple(compared)


def _run(
    model: Any, policy: Policy, inputs: Sequence[StepInput], store: StoreFactory | None, record: Listener | None
) -> Any:
    """Yield per step the step and the log-probabilities (B, V) of the next token."""
    with attach(model, policy, store=store, record=record) as attachment:
        stream = attachment.new_stream(len(inputs[0].embeds) if inputs else 1)
        stream.keep_selections = False
        for given in inputs:
            first = stream.n_tokens
            out = stream.forward(given.embeds, given.kind, grid=given.grid)
            yield Step(given.kind, first, given.embeds.shape[1]), out.last_logits.double().log_softmax(dim=-1).cpu()
