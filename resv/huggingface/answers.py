"""What a session tells: a frame that was seen, an answer that was given. And greedy decoding, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import torch
from torch import Tensor

from resv.huggingface.stream import StepOutput, Stream
from resv.huggingface.text import TextCodec
from resv.tiers.layout import StepNote
from resv.tiers.store import TieredStore


@dataclass(frozen=True)
class FrameEvent:
    """A step of frames went through.

    index : of its last frame;  n_tokens : the cache after it, of each batch item
    encode_s, forward_s : vision tower and decoder; the first runs ahead in a thread of its own
    separator_probability : that the model stays silent; None where it is not asked
    """

    index: int
    timestamp_s: float
    n_tokens: int
    encode_s: float
    forward_s: float
    separator_probability: float | None = None
    kind: Literal["frame"] = "frame"


@dataclass(frozen=True)
class Answer:
    """What the model said of one batch item.

    question : None where it spoke unasked;  n_frames : seen by then;  n_prompt : tokens prefilled for the answer
    first_token_s : from the question to the first token's logits
    decode_s : of the `n_passes` behind it, one token of each; the last may be the ending one, which is no part of the
        answer, and of a batch all go on until the longest answer has ended
    ended : by itself, or at the most tokens allowed
    """

    question: str | None
    text: str
    token_ids: tuple[int, ...]
    timestamp_s: float
    n_frames: int
    n_prompt: int
    first_token_s: float
    decode_s: float
    n_passes: int
    ended: Literal["itself", "length"]
    item: int = 0
    kind: Literal["answer"] = "answer"

    @property
    def time_per_token_s(self) -> float:
        """Mean of the passes behind the first; 0 where there is none."""
        return self.decode_s / self.n_passes if self.n_passes else 0.0


@dataclass(frozen=True)
class Said:
    """token_ids : of each batch item, the ending token left out;  last_ids : (B, 1), not in the cache yet"""

    token_ids: list[list[int]]
    ended: list[bool]
    last_ids: Tensor
    n_prompt: int
    first_token_s: float
    decode_s: float
    n_passes: int


def run(stream: Stream, embeds: Tensor, note: StepNote) -> StepOutput:
    """One step of a stream, its store told what it is."""
    if isinstance(stream.store, TieredStore):
        stream.store.announce(note)
    return stream.forward(embeds, note.kind, grid=note.grid)


def say(stream: Stream, prompt: Tensor, codec: TextCodec, max_new_tokens: int, timestamp_s: float) -> Said:
    """Answer the prompt (B, n, hidden) greedily; its tokens and the answer's join the cache, save the last."""
    start = perf_counter()
    ids = _likeliest(run(stream, prompt, StepNote("question", timestamp_s)))
    first_token_s, start = perf_counter() - start, perf_counter()
    said: list[list[int]] = [[] for _ in range(stream.batch)]
    ended = [False] * stream.batch
    for n_passes in range(max_new_tokens):
        for item, token in enumerate(ids[:, 0].tolist()):
            ended[item] = ended[item] or token in codec.end_ids
            said[item] += [] if ended[item] else [token]
        if all(ended) or n_passes == max_new_tokens - 1:
            break
        ids = _likeliest(run(stream, embedded(stream, ids), StepNote("decode", timestamp_s)))
    return Said(said, ended, ids, prompt.shape[1], first_token_s, perf_counter() - start, n_passes)


def _likeliest(output: StepOutput) -> Tensor:
    """(B, 1)"""
    return output.last_logits.argmax(dim=-1, keepdim=True).cpu()


def embedded(stream: Stream, ids: Sequence[int] | Tensor) -> Tensor:
    """Token ids, the same for every batch item or (B, n), as embeddings (B, n, hidden)."""
    given = torch.as_tensor(ids, dtype=torch.int64)
    return stream.attachment.embed_tokens(given.expand(stream.batch, -1) if given.ndim == 1 else given)
