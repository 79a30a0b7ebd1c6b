"""Streaming questions and answers over one video: frames in as they come, questions at any time. Greedy decoding.

The style is the policy's (`styles.py`). Retrieval, of ReKV and every cache policy, encodes frames and answers from
what the policy selects; VideoLLM-online also decides after every frame whether to speak; Flash-VStream keeps frames
out of the language model until a question prefills its memory of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from math import isfinite
from time import perf_counter
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import interpolate

from resv.huggingface.answers import Answer, FrameEvent, Said
from resv.huggingface.attach import Attachment
from resv.huggingface.encode_ahead import encode_ahead
from resv.huggingface.resume import resume
from resv.huggingface.styles import style_of
from resv.huggingface.text import Prompts, TextCodec, prompts_for, text_codec
from resv.policies.flash_vstream import FlashVStream
from resv.tiers.layout import StepNote
from resv.tiers.store import TieredStore

Frame = NDArray[np.uint8]
Event = FrameEvent | Answer


class FrameError(ValueError):
    """A frame that does not fit the stream: which one, what it is, what is allowed."""


class SessionConfig(BaseModel):
    """dialogue : what becomes of a question and its answer in the cache. ReKV's release drops them, so no question
    knows of another; VideoLLM-online's keeps them. `policy`: as the policy's release, dropped for all others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dialogue: Literal["policy", "kept", "dropped"] = "policy"
    max_new_tokens: int = Field(default=100, ge=1, description="of an answer; 100 is VideoLLM-online's limit")
    frames_ahead: int = Field(default=8, ge=1, description="encoded steps that may wait for the decoder")
    fps: float = Field(default=1.0, gt=0, description="frames per second of video, for timestamps")
    resize: bool = Field(default=False, description="resize frames that differ from the first instead of refusing them")


@dataclass(frozen=True)
class _Group:
    """Frames of one step, (B, frames, H, W, 3), and the note for the store."""

    frames: Tensor
    index: int  # of the last one
    note: StepNote


class Session:
    """One video, or a batch of them, through an attached model.

    A frame is (H, W, 3) uint8; for a batch, a list of them. Models that take two frames per step (Qwen2.5-VL) run
    when the second has come or a question is asked. On a `TieredStore` that holds frames already the session goes on
    behind them: `n_frames` says how many. `notes` says what to know of the results.
    """

    def __init__(
        self,
        attachment: Attachment,
        *,
        batch: int = 1,
        config: SessionConfig | None = None,
        codec: TextCodec | None = None,
        prompts: Prompts | None = None,
    ) -> None:
        self.config = config or SessionConfig()
        self.attachment = attachment
        self._per_step = attachment.family.frames_per_step
        if not self._per_step:
            raise ValueError(f"{type(attachment.model).__name__} takes no frames; allowed: a model with a vision tower")
        self.cache = attachment.new_stream(batch, seconds_per_step=self._per_step / self.config.fps)
        self.cache.keep_selections = False
        self.codec = codec or text_codec(attachment.model)
        is_memory = isinstance(attachment.policy, FlashVStream)  # as in the original, and not as eviction
        self.notes = [note for note in attachment.notes if not (is_memory and "eviction" in note)] + self.cache.notes
        self.n_frames = 0
        self.timestamp_s = 0.0  # of the last frame seen
        self._waiting: list[tuple[Tensor, float]] = []
        self._size: tuple[int, int] | None = None
        self._go_on()
        keeps = None if self.config.dialogue == "policy" else self.config.dialogue == "kept"
        wording = prompts or prompts_for(attachment.model, self.codec)
        limit = self.config.max_new_tokens
        self._style = style_of(self.cache, self.codec, wording, keeps=keeps, max_new_tokens=limit)

    def add_frame(self, frame: Frame | Sequence[Frame], timestamp_s: float | None = None) -> list[Event]:
        """Take one frame; what happened, nothing where the model waits for a second one.

        timestamp_s : number of the frame / fps where not given
        Raises FrameError; what a store raises (no room) passes through, and the frames before can still be asked about.
        """
        index = self.n_frames + len(self._waiting)
        now = index / self.config.fps if timestamp_s is None else timestamp_s
        self._waiting.append((self._checked(frame, index), now))
        return self._run_waiting() if len(self._waiting) == self._per_step else []

    def ask(self, question: str, max_new_tokens: int | None = None) -> Answer | list[Answer]:
        """Ask about the frames so far; of a batch, every item the same, one answer each.

        max_new_tokens : the configured ones where not given. Raises ValueError where it is below 1.
        """
        if max_new_tokens is not None and max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; allowed: at least 1")
        self._run_waiting()
        answers = self._ask(question, self.timestamp_s, max_new_tokens)
        return answers[0] if self.cache.batch == 1 else answers

    def stream(
        self, frames: Iterable[Frame | Sequence[Frame]], questions: Sequence[tuple[float, str]] = ()
    ) -> Iterator[Event]:
        """Take frames as they come, the vision tower running ahead, and ask questions (timestamp_s, text) in time.

        A question is asked when all frames up to its time have been seen and none behind it; those that are left when
        the frames end are asked then; infinity is a time, too.
        """
        yield from self._run_waiting()
        left = sorted(questions, key=lambda question: question[0])
        groups = self._groups(frames, [time_s for time_s, _ in left])
        with closing(encode_ahead(self._encode, groups, self.config.frames_ahead)) as encoded:
            for group, embeds, encode_s in encoded:
                while left and left[0][0] < (group.note.timestamp_s or 0.0):
                    time_s, question = left.pop(0)
                    yield from self._ask(question, time_s)
                yield from self._see(group, embeds, encode_s)
        for time_s, question in left:
            yield from self._ask(question, time_s if isfinite(time_s) else self.timestamp_s)

    def refresh(self) -> int:
        """Take in what another process has landed in a folder that is read only here; return how many frames there are.

        Raises `TierError` where this session has kept a dialogue: nothing can be taken in before it.
        """
        store = self.cache.store
        if isinstance(store, TieredStore) and store.tiers.read_only:
            if store.refresh() < self.cache.n_tokens:  # the writer has taken steps back
                self.cache.forget()
            self._go_on()
        return self.n_frames

    @property
    def keeps_dialogue(self) -> bool:
        """Whether questions and answers stay in the cache."""
        return self._style.keeps

    def close(self) -> None:
        """Give back the cache; a folder keeps what has landed in it."""
        self.cache.close()

    def _go_on(self) -> None:
        """Behind the steps that the store's folder holds and this session has not seen."""
        store = self.cache.store
        if isinstance(store, TieredStore):
            self.notes += [note for note in resume(self.cache, store) if note not in self.notes]
            frames = [record for record in store.records if record.kind == "frame"]
            self.n_frames = sum(record.n_frames for record in frames)
            self.timestamp_s = (frames[-1].timestamp_s or 0.0) if frames else 0.0

    def _groups(self, frames: Iterable[Frame | Sequence[Frame]], cuts: Sequence[float]) -> Iterator[_Group]:
        """Frames as the model takes them in steps; none stands on both sides of a cut (a timestamp)."""
        waiting: list[tuple[Tensor, float]] = []
        for index, frame in enumerate(frames, start=self.n_frames):
            now = index / self.config.fps
            if waiting and any(waiting[-1][1] <= cut < now for cut in cuts):
                yield self._group(waiting, index - 1)
                waiting = []
            waiting.append((self._checked(frame, index), now))
            if len(waiting) == self._per_step:
                yield self._group(waiting, index)
                waiting = []
        if waiting:
            yield self._group(waiting, index)

    def _group(self, waiting: list[tuple[Tensor, float]], index: int) -> _Group:
        family, model = self.attachment.family, self.attachment.model
        frames = torch.stack([frame for frame, _ in waiting], dim=1)
        grid = family.grid(model, *frames.shape[2:4]) if family.several_positions else None
        return _Group(frames, index, StepNote("frame", waiting[-1][1], grid, len(waiting)))

    def _run_waiting(self) -> list[Event]:
        if not self._waiting:
            return []
        group = self._group(self._waiting, self.n_frames + len(self._waiting) - 1)
        self._waiting = []
        return self._see(*self._encode(group))

    def _encode(self, group: _Group) -> tuple[_Group, Tensor, float]:
        start = perf_counter()
        embeds = self.attachment.encode_frame(group.frames)
        return group, embeds, perf_counter() - start

    def _see(self, group: _Group, embeds: Tensor, encode_s: float) -> list[Event]:
        seen = self._style.see(embeds, group.note)
        self.n_frames, self.timestamp_s = group.index + 1, group.note.timestamp_s or 0.0
        event = FrameEvent(
            index=group.index,
            timestamp_s=self.timestamp_s,
            n_tokens=self.cache.n_tokens,
            encode_s=encode_s,
            forward_s=seen.forward_s,
            separator_probability=seen.separator_probability,
        )
        return [event, *(self._answers(None, seen.said, self.timestamp_s) if seen.said else [])]

    def _ask(self, question: str, timestamp_s: float, max_new_tokens: int | None = None) -> list[Answer]:
        limit = self.config.max_new_tokens if max_new_tokens is None else max_new_tokens
        said = self._style.ask(question, limit, timestamp_s)
        return self._answers(question, said, timestamp_s)

    def _answers(self, question: str | None, said: Said, timestamp_s: float) -> list[Answer]:
        return [
            Answer(
                question=question,
                text=self.codec.decode(ids),
                token_ids=tuple(ids),
                timestamp_s=timestamp_s,
                n_frames=self.n_frames,
                n_prompt=said.n_prompt,
                first_token_s=said.first_token_s,
                decode_s=said.decode_s,
                n_passes=said.n_passes,
                ended="itself" if said.ended[item] else "length",
                item=item,
            )
            for item, ids in enumerate(said.token_ids)
        ]

    def _checked(self, frame: Frame | Sequence[Frame], index: int) -> Tensor:
        """(B, H, W, 3) uint8. Raises FrameError."""
        items = [frame] if isinstance(frame, np.ndarray) else list(frame)
        if len(items) != self.cache.batch:
            raise FrameError(f"frame {index}: {len(items)} pictures for a batch of {self.cache.batch}")
        return torch.stack([torch.from_numpy(self._sized(item, index)) for item in items])

    def _sized(self, picture: Frame, index: int) -> Frame:
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise FrameError(f"frame {index} is {picture.shape} of {picture.dtype}; allowed: (H, W, 3) of uint8, RGB")
        size = (picture.shape[0], picture.shape[1])
        self._size = self._size or size
        if size == self._size:
            return picture
        if not self.config.resize:
            raise FrameError(
                f"frame {index} is {size[0]} x {size[1]} pixels, the frames before it {self._size[0]} x "
                f"{self._size[1]}: a stream keeps its size. Set resize to have later frames resized to the first"
            )
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
        resized = interpolate(pixels, self._size, mode="bilinear", antialias=True).round().to(torch.uint8)
        return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())
