"""How a policy's original talks: what a frame and a question do to the stream. One class per style.

Knows embeddings and token ids; frames, files and timestamps are `session.py`.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from resv.huggingface.answers import Said, embedded, run, say
from resv.huggingface.stream import Stream
from resv.huggingface.text import LivePrompts, Prompts, TextCodec
from resv.huggingface.visual_memory import VisualMemory
from resv.policies.flash_vstream import FlashVStream
from resv.policies.videollm_online import VideoLLMOnline
from resv.tiers.layout import StepNote
from resv.tiers.store import TieredStore


@dataclass(frozen=True)
class Seen:
    """separator_probability : that the model stays silent, where it is asked;  said : what it said unasked"""

    forward_s: float
    separator_probability: float | None = None
    said: Said | None = None


class Retrieval:
    """Frames join the cache; a question is answered from what the policy selects.

    keeps : questions and answers stay in the cache. ReKV's release drops them: no question knows of another.
    """

    def __init__(self, stream: Stream, codec: TextCodec, prompts: Prompts, *, keeps: bool) -> None:
        self.stream = stream
        self.codec = codec
        self.prompts = prompts
        self.keeps = keeps

    def see(self, frame: Tensor, note: StepNote) -> Seen:
        """A step of frames (B, n, hidden)."""
        start = perf_counter()
        self._open()
        run(self.stream, frame, note)
        return Seen(perf_counter() - start)

    def ask(self, question: str, max_new_tokens: int, timestamp_s: float) -> Said:
        ids = self.codec.encode(self.prompts.question.format(question=question))
        return self._say(embedded(self.stream, ids), max_new_tokens, timestamp_s)

    def _say(self, prompt: Tensor, max_new_tokens: int, timestamp_s: float) -> Said:
        with nullcontext() if self.keeps else self.stream.fork():
            self._open()
            return say(self.stream, prompt, self.codec, max_new_tokens, timestamp_s)

    def _open(self) -> None:
        """What stands before the first frame."""
        ids = self.codec.encode(self.prompts.opening)
        if ids and not self.stream.n_tokens:
            run(self.stream, embedded(self.stream, ids), StepNote("question"))


class Live(Retrieval):
    """VideoLLM-online: after every frame the separator is silence, any other token begins an answer.

    What the model said last is fed with the next frame: the separator, or an answer's end and the bracket that opens
    a new run of frames. Differs from VideoLLM-online: a question behind an answer closes that answer first and no
    bracket, as in training, where the released demo leaves the end out. `opened` : whether a run of frames is open.
    """

    def __init__(
        self,
        stream: Stream,
        codec: TextCodec,
        prompts: Prompts,
        policy: VideoLLMOnline,
        *,
        keeps: bool,
        max_new_tokens: int,
        live: LivePrompts | None = None,
    ) -> None:
        super().__init__(stream, codec, prompts, keeps=keeps)
        if stream.batch != 1:
            raise ValueError(f"batch is {stream.batch}; videollm_online decides by itself when to speak, so it takes 1")
        self._policy = policy
        self._live = live or LivePrompts()
        self._max_new_tokens = max_new_tokens
        self._separator = codec.encode(self._live.separator)[0]
        self._opened = stream.n_tokens > 0
        self._ending: list[int] = []  # of the last answer, not in the cache yet

    def see(self, frame: Tensor, note: StepNote) -> Seen:
        start = perf_counter()
        self._open()
        ids = [self._separator] if self._opened else [*self._ending, *self.codec.encode(self._live.stream)]
        logits = self._run(embedded(self.stream, ids), frame, note)
        self._opened, self._ending = True, []
        probability = float(logits.softmax(dim=-1)[self._separator])
        forward_s = perf_counter() - start
        if self._policy.next_token(logits.numpy(), self._separator) == self._separator:
            return Seen(forward_s, probability)
        prompt = embedded(self.stream, self.codec.encode(self._live.unasked))
        return Seen(forward_s, probability, self._say(prompt, self._max_new_tokens, note.timestamp_s or 0.0))

    def ask(self, question: str, max_new_tokens: int, timestamp_s: float) -> Said:
        text = self._live.question.format(question=question)
        ids = self.codec.encode(text if self._opened else text.removeprefix("]"))
        return self._say(embedded(self.stream, [*self._ending, *ids]), max_new_tokens, timestamp_s)

    def _run(self, text: Tensor, frame: Tensor, note: StepNote) -> Tensor:
        """(V,) logits behind text and frame; one step, or two where text and frames count positions differently."""
        if self.stream.attachment.family.several_positions:
            run(self.stream, text, StepNote("question", note.timestamp_s))
            return run(self.stream, frame, note).last_logits[0].float().cpu()
        return run(self.stream, torch.cat([text, frame], dim=1), note).last_logits[0].float().cpu()

    def _say(self, prompt: Tensor, max_new_tokens: int, timestamp_s: float) -> Said:
        said = super()._say(prompt, max_new_tokens, timestamp_s)
        if self.keeps:
            self._opened, self._ending = False, said.last_ids[0].tolist()
        return said


class Memory(Retrieval):
    """Flash-VStream: frames join a bounded memory of embeddings, which every question prefills afresh."""

    def __init__(self, stream: Stream, codec: TextCodec, prompts: Prompts, policy: FlashVStream) -> None:
        super().__init__(stream, codec, prompts, keeps=False)
        if isinstance(stream.store, TieredStore):
            raise ValueError("flash_vstream keeps embeddings of frames and no keys or values: it takes no tiers")
        self.memory = VisualMemory(policy)

    def see(self, frame: Tensor, note: StepNote) -> Seen:
        start = perf_counter()
        self.memory.add(frame)
        return Seen(perf_counter() - start)

    def ask(self, question: str, max_new_tokens: int, timestamp_s: float) -> Said:
        self.stream.reset()
        opening = self.codec.encode(self.prompts.opening)
        asked = self.codec.encode(self.prompts.question.format(question=question))
        before = [embedded(self.stream, opening)] if opening else []
        prompt = torch.cat([*before, self.memory.tokens(), embedded(self.stream, asked)], dim=1)
        return say(self.stream, prompt, self.codec, max_new_tokens, timestamp_s)


def style_of(
    stream: Stream, codec: TextCodec, prompts: Prompts, *, keeps: bool | None, max_new_tokens: int
) -> Retrieval:
    """The style of a stream's policy; `keeps` None = what the policy's release does with questions and answers."""
    policy = stream.policy
    if isinstance(policy, FlashVStream):
        return Memory(stream, codec, prompts, policy)
    if isinstance(policy, VideoLLMOnline):
        return Live(stream, codec, prompts, policy, keeps=keeps is not False, max_new_tokens=max_new_tokens)
    return Retrieval(stream, codec, prompts, keeps=bool(keeps))
