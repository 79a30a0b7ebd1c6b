"""`attach`: a policy takes over the attention of a model's decoder, and gives it back.

One attention function is registered with transformers, once; which stream a call belongs to travels with the call. The
vision tower keeps its own attention. No weight and no forward of the model is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from resv.huggingface.families import Family, family_of, seconds_to_positions
from resv.huggingface.positions import cannot_move, effective, turns_by_index
from resv.huggingface.resume import resume
from resv.huggingface.step import Listener, RunningStep
from resv.huggingface.store import MemoryStore, StoreFactory
from resv.huggingface.stream import Stream
from resv.huggingface.versions import require_transformers
from resv.model_config import model_shape_from_config
from resv.policies.base import Policy
from resv.policies.flash_vstream import FlashVStream
from resv.policies.infllm import InfLLM
from resv.policies.oaken import Oaken
from resv.policies.rekv import ReKV
from resv.tiers.store import TieredStore
from resv.trace import ModelShape

if TYPE_CHECKING:
    from resv.huggingface.session import Session

NAME = "resv_sim"


def policy_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    resv_step: RunningStep | None = None,
    **ignored: object,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls; the mask it makes is not looked at."""
    if resv_step is None:
        raise RuntimeError(
            "a policy is attached to this model, so it runs through `attachment.new_stream().forward(...)`; it was "
            "called directly. Leave the `with resv.attach(...)` block to call it as before"
        )
    scale = module.head_dim**-0.5 if scaling is None else scaling
    return resv_step.attend(module.layer_idx, query, key, value, scale), None


class Attachment:
    """A model under a policy, while `attach` lasts.

    shape : of the model, bytes per element as it runs;  notes : what to know about this pair, for a reader of results
    positions : where attended tokens stand, as far as the model allows
    """

    def __init__(
        self, model: Any, policy: Policy, family: Family, store: StoreFactory, record: Listener | None
    ) -> None:
        self.model = model
        self.policy = policy
        self.family = family
        self.store = store
        self.record = record
        self.shape = shape_of(model)
        self.positions = effective(policy.positions, family.rotary(model), family.several_positions)
        self.notes = notes_of(policy, family, family.rotary(model), self.shape)
        self._streams: list[Stream] = []

    @property
    def device(self) -> torch.device:
        device: torch.device = self.family.decoder(self.model).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.family.decoder(self.model).dtype
        return dtype

    def new_stream(self, batch: int = 1, *, seconds_per_step: float | None = None) -> Stream:
        """An empty stream of `batch` items; on a folder that holds steps already, one that goes on behind them.

        seconds_per_step : from one frame step to the next, for models whose positions count time (Qwen2.5-VL)
        """
        stream = Stream(self, batch, seconds_per_step)
        self._streams.append(stream)
        if isinstance(stream.store, TieredStore):
            stream.notes = resume(stream, stream.store)
        return stream

    def session(self, **given: Any) -> Session:
        """Questions and answers over one video; see `Session` for what may be given."""
        from resv.huggingface.session import Session

        return Session(self, **given)

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Token ids (B, n) as embeddings (B, n, hidden)."""
        with torch.no_grad():
            return self.family.embed_tokens(self.model, ids.to(self.device))

    def encode_frame(self, frames: Tensor) -> Tensor:
        """Frames (B, H, W, 3) uint8, or preprocessed, as embeddings (B, n, hidden); see `Family.encode_frame`."""
        with torch.no_grad():
            return self.family.encode_frame(self.model, frames)

    def positions_per_step(self, seconds_per_step: float | None) -> float:
        """Temporal positions from one frame step to the next."""
        return seconds_to_positions(self.model, seconds_per_step)

    def run(self, running: RunningStep, embeds: Tensor, positions: Tensor) -> Tensor:
        """One pass of the decoder: hidden states (B, n, hidden). Called by `Stream.forward`."""
        decoder = self.family.decoder(self.model)
        batch = embeds.shape[0]
        ids = positions[:, None].expand(-1, batch, -1) if positions.ndim == 2 else positions.expand(batch, -1)
        with torch.no_grad():
            made = decoder(
                inputs_embeds=embeds.to(self.device, self.dtype),
                position_ids=ids.to(self.device),
                use_cache=False,
                resv_step=running,
            )
        hidden: Tensor = made.last_hidden_state
        return hidden

    def close(self) -> None:
        for stream in self._streams:
            stream.close()


@contextmanager
def attach(
    model: Any, policy: Policy, *, store: StoreFactory | None = None, record: Listener | None = None
) -> Iterator[Attachment]:
    """Run `model` under `policy` for the length of a `with` block.

    model : of a supported family (`families.FAMILIES`), in eval mode;  store : makes where the keys and values of each
    stream lie, all on the model's device where not given;  record : is told of every step, e.g. a `Recorder`

    Raises UnsupportedModelError or TransformersVersionError; ValueError where a policy is attached already or the model
    is in training mode.
    """
    _register()
    family = family_of(model)
    decoder = family.decoder(model)
    before = decoder.config._attn_implementation
    if before == NAME:
        raise ValueError(
            f"a policy is attached to this {type(model).__name__} already; leave its `with` block before the next"
        )
    if model.training:
        raise ValueError(f"this {type(model).__name__} is in training mode; call `model.eval()` first")
    attachment = Attachment(model, policy, family, MemoryStore if store is None else store, record)
    decoder.set_attn_implementation(NAME)
    hooks = _predict_queries(attachment)
    try:
        yield attachment
    finally:
        for hook in hooks:
            hook.remove()
        decoder.set_attn_implementation(before)
        attachment.close()


def shape_of(model: Any) -> ModelShape:
    """The model's shape; `kv_bits` and `weight_bits` are those of the type it runs in."""
    bits = 8 * model.dtype.itemsize
    return served_shape(model).model_copy(update={"kv_bits": bits, "weight_bits": bits})


def served_shape(model: Any) -> ModelShape:
    """As `shape_of`, with the widths that the model is served in, whatever it runs in here."""
    name = getattr(model, "name_or_path", "") or model.config.model_type
    return model_shape_from_config(model.config.to_dict(), str(name))


def notes_of(policy: Policy, family: Family, rotary: Any, shape: ModelShape) -> list[str]:
    """What a reader of this pair's results must know."""
    notes = []
    reason = cannot_move(rotary, family.several_positions)
    if policy.positions != "original" and reason:
        notes.append(f"{policy.kind} moves retrieved tokens, but {reason}: they keep their original positions")
    if _unrotates(policy) and not turns_by_index(rotary, family.several_positions, shape):
        notes.append(
            f"{policy.kind} looks at keys before rotation and takes token i to stand at position i with frequencies of "
            "the plain base; this model's tokens do not, so what it sees is approximate"
        )
    if isinstance(policy, FlashVStream):
        notes.append(
            "flash_vstream runs here as eviction of keys and values: tokens of frames that stand for a centroid stay. "
            "The original keeps pooled embeddings and prefills them before every question: Stream.reset, then "
            "Stream.forward of that memory"
        )
    if policy.trained:
        notes.append(
            f"{policy.kind} needs a model trained or calibrated for it; this one was not, so its answers say nothing "
            "of the published system"
        )
    return notes


def _unrotates(policy: Policy) -> bool:
    return isinstance(policy, FlashVStream | InfLLM | Oaken) or (
        isinstance(policy, ReKV) and policy.keys == "unrotated"
    )


def _register() -> None:
    """Make the attention function known to transformers; no mask function, so the model builds no mask."""
    require_transformers()
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, policy_attention)


def _predict_queries(attachment: Attachment) -> list[Any]:
    """Hooks by which each layer's attention input predicts the next layer's query; none where nobody asks for it."""
    policy, record = attachment.policy, attachment.record
    asks = policy.lossy and policy.predict == "next_layer" and policy.granularity != "element"
    if not asks and (record is None or not record.wants_predicted):
        return []
    attentions: list[Any] = [layer.self_attn for layer in attachment.family.layers(attachment.model)]
    hooks = []
    for layer, (attention, following) in enumerate(pairwise(attentions), start=1):

        def predict(
            module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], layer: int = layer, following: Any = following
        ) -> None:
            hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            if kwargs.get("resv_step") is not None:
                kwargs["resv_step"].predict(layer, following, hidden, *kwargs["position_embeddings"])

        hooks.append(attention.register_forward_pre_hook(predict, with_kwargs=True))
    return hooks
