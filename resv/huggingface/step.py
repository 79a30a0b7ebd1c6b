"""One forward pass under a policy: what the attention function of every layer does.

Per layer: the policy selects, the store takes the step's keys and values, attention reads what was selected. What the
policies remember of a step they are told when all layers have run (`Stream.forward`), so that a pass that fails
half-way leaves no trace.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resv._arrays import to_numpy
from resv.huggingface.attention import attend, attend_two_queries, token_indices
from resv.huggingface.positions import shifts_in_a_row
from resv.policies.base import PolicyState, Recent
from resv.policies.infllm import InfLLM, InfLLMState
from resv.selection import Counts, LayerSelection
from resv.trace import Step

if TYPE_CHECKING:
    from resv.huggingface.stream import Stream

Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]

# Above this share of attended tokens a mask over the whole cache is cheaper than gathering them. Measured on a CPU: 64
# streams of 2 KV heads, D = 32, 1,000 tokens; a matter of speed alone.
_GATHER_BELOW = 0.8


class LayerEvent(NamedTuple):
    """What one layer did in a step, all batch items: float32 copies on the CPU. Seen by a `Listener`.

    queries, predicted : (B, H·G, N, D), post-RoPE; `predicted` as the layer before predicts, None for layer 0 or
        where nobody asked for it
    keys, values : (B, H, N, D), the step's own
    selections : one per batch item
    """

    stream: Stream
    step: Step
    layer: int
    queries: Float32
    predicted: Float32 | None
    keys: Float32
    values: Float32
    selections: tuple[LayerSelection, ...]

    def cached(self) -> tuple[Float32, Float32]:
        """Keys and values (B, H, S, D) of the tokens before the step."""
        keys, values = self.stream.store.full(self.layer)
        n = self.step.first_token
        return on_host(keys[:, :, :n]), on_host(values[:, :, :n])


class Listener(Protocol):
    """Told what happens in a stream, for recording and measuring."""

    wants_predicted: bool

    def on_layer(self, event: LayerEvent) -> None:
        """A layer has selected; its attention comes next."""
        ...

    def on_step(self, stream: Stream, step: Step) -> None:
        """All layers have run and, where the step is in the stream, its tokens have joined the cache."""
        ...

    def on_rollback(self, stream: Stream, n_steps: int) -> None:
        """All but the first `n_steps` steps were dropped again, probes counted as steps."""
        ...


def on_host(x: Tensor) -> Float32:
    """A tensor as a contiguous float32 array; a view of it where it already is one."""
    return np.asarray(x.detach().float().contiguous().cpu().numpy())


class RunningStep:
    """The context of one forward pass, which reaches the attention function as a keyword argument of the model."""

    def __init__(self, stream: Stream, step: Step, first_position: int) -> None:
        self.stream = stream
        self.step = step
        self.first_position = first_position
        self.queries: list[Float32] = []
        self.keys: list[Float32] = []
        self.selections: list[tuple[LayerSelection, ...]] = []
        self._predicted: dict[int, Float32] = {}
        self.policy_s = 0.0
        self.predict_s = 0.0

    @property
    def _acts(self) -> bool:
        return self.step.kind in self.stream.acts_in

    def predict(self, layer: int, attention: Any, hidden: Tensor, cosine: Tensor, sine: Tensor) -> None:
        """The query of a layer's `attention`, as the attention input of the layer before gives it."""
        start = perf_counter()
        self._predicted[layer] = on_host(projected_query(attention, hidden, cosine, sine))
        self.predict_s += perf_counter() - start

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention (B, N, H·G, D) of one layer; query (B, H·G, N, D), key and value (B, H, N, D), post-RoPE."""
        stream = self.stream
        self.queries.append(on_host(query))
        self.keys.append(on_host(key))
        predicted = self._predicted.pop(layer, None)
        selections = self._select(layer, predicted)
        self.selections.append(selections)
        stream.prefetch(layer + 1)
        if self.step.in_stream:
            stream.store.append(layer, key, value)
        if stream.listener is not None:
            made = (self.queries[-1], predicted, self.keys[-1], on_host(value), selections)
            stream.listener.on_layer(LayerEvent(stream, self.step, layer, *made))
        return self._attention(layer, query, key, value, selections, scaling).transpose(1, 2)

    def _select(self, layer: int, predicted: Float32 | None) -> tuple[LayerSelection, ...]:
        if not self._acts:
            recent = self.stream.policy.recent
            return tuple(_whole_cache(states[layer], recent) for states in self.stream.states)
        queries = self.queries[-1]
        if predicted is not None and self.stream.policy.predict == "next_layer":
            queries = predicted
        start = perf_counter()
        selections = tuple(
            states[layer].select(queries[item], self.keys[-1][item], self.step.kind)
            for item, states in enumerate(self.stream.states)
        )
        self.policy_s += perf_counter() - start
        return selections

    def _attention(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, chosen: tuple[LayerSelection, ...], scaling: float
    ) -> Tensor:
        stream = self.stream
        if not (stream.policy.lossy and self._acts and self.step.first_token):
            return attend(query, *self._everything(layer, key, value), None, scaling)
        if stream.readers:
            return attend(query, *self._restored(layer, key, value), None, scaling)
        attended = np.stack([selection.attended for selection in chosen])
        share = np.count_nonzero(attended) / attended.size
        if share == 1.0 and stream.positions != "clamped":
            return attend(query, *self._everything(layer, key, value), None, scaling)
        if share > _GATHER_BELOW and stream.positions == "original" and stream.store.on_device:
            return attend(query, *self._everything(layer, key, value), torch.from_numpy(attended), scaling)
        return self._gathered(layer, query, key, value, attended, scaling)

    def _everything(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Cached keys and values with the step's own behind them, (B, H, S + N, D)."""
        keys, values = self.stream.store.full(layer)
        if self.step.in_stream:
            return keys, values
        return torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)

    def _restored(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """As `_everything`, cached ones as the policy's storage gives them back; the step's own are exact."""
        stream, n = self.stream, self.step.first_token
        keys, values = (to_numpy(x[:, :, :n].float()) for x in stream.store.full(layer))
        start = perf_counter()
        back = [readers[layer].read(keys[item], values[item]) for item, readers in enumerate(stream.readers)]
        self.policy_s += perf_counter() - start
        read_keys, read_values = (torch.from_numpy(np.stack(part)).to(key) for part in zip(*back, strict=True))
        return torch.cat([read_keys, key], dim=2), torch.cat([read_values, value], dim=2)

    def _gathered(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, attended: Bool, scaling: float
    ) -> Tensor:
        """Attention over the attended tokens alone, moved where the policy moves them."""
        stream, chosen = self.stream, self.selections[layer]
        indices = token_indices(attended)
        if chosen[0].evicted is None:  # what is left of evicted ones is on the device
            stream.last_read[layer] = indices
        keys, values = stream.store.gather(layer, torch.from_numpy(indices))
        allowed = None if (indices >= 0).all() else torch.from_numpy(indices >= 0)
        if stream.positions == "clamped":
            return self._clamped(layer, query, key, value, indices, keys, values, scaling)
        if stream.positions != "original":
            shifts = shifts_in_a_row(indices, stream.token_positions, self.first_position)
            if shifts.any():
                keys = stream.turns.turned(keys, shifts)
        keys, values = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
        return attend(query, keys, values, allowed, scaling)

    def _clamped(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        indices: NDArray[np.int64],
        keys: Tensor,
        values: Tensor,
        scaling: float,
    ) -> Tensor:
        """Tokens before the window stand at one distance of every row, the window's where they stood."""
        stream, policy = self.stream, self.stream.policy
        assert isinstance(policy, InfLLM)
        n_local = policy.n_local
        states = [of_item[layer] for of_item in stream.states]
        starts = [state.window_start for state in states if isinstance(state, InfLLMState)]
        # The first tokens are in the window themselves until as many as it holds came after them.
        first_near = np.minimum(starts, max(0, self.step.first_token - n_local))
        is_distant = (indices >= 0) & (indices < first_near[:, None, None])
        keys = stream.turns.turned(keys, np.where(is_distant, -stream.token_positions[indices], 0))
        rows = n_local - 1 - (self.first_position + np.arange(query.shape[2]))
        distant = stream.turns.turned(query, rows[None, None])
        keys, values = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
        own = np.zeros((*indices.shape[:2], key.shape[2]), dtype=np.bool_)
        far = torch.from_numpy(np.concatenate([is_distant, own], axis=-1))
        return attend_two_queries(query, distant, keys, values, torch.from_numpy(indices >= 0), far, scaling)


def _whole_cache(state: PolicyState, recent: Recent) -> LayerSelection:
    """The whole cache of one layer, also what the policy would have dropped, as a step selects that it leaves alone."""
    resident, evicted = state.residency()
    every = np.ones_like(resident)
    offloads = evicted is None  # `recent` changes nothing for the others
    return LayerSelection(
        state.layer, every, resident, ~resident if recent == "exempt" and offloads else every, Counts()
    )


def projected_query(attention: Any, hidden: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """(B, H·G, N, D): the query that a layer's attention module makes of `hidden`, rotated."""
    query = attention.q_proj(hidden).view(*hidden.shape[:-1], -1, attention.head_dim)
    if hasattr(attention, "q_norm"):
        query = attention.q_norm(query)
    query = query.transpose(1, 2)
    low, high = query.chunk(2, dim=-1)
    rotated: Tensor = query * cosine[:, None] + torch.cat([-high, low], dim=-1) * sine[:, None]
    return rotated
