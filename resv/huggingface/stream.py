"""A stream of steps through a model under a policy: frames, questions, decoded tokens, one forward pass each.

Every batch item has its own policy states, one per layer; all items take steps of the same lengths. A step that fails
leaves the stream as it was. Knows no text and no video.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resv.huggingface.accounts import StreamBytes, StreamTiming
from resv.huggingface.families import Cursor, Grid
from resv.huggingface.fork import Fork, Mark
from resv.huggingface.positions import Turns
from resv.huggingface.step import RunningStep
from resv.kv_cache import Ledger, account
from resv.policies.base import CacheReader
from resv.selection import LayerSelection
from resv.trace import STEP_KINDS, ModelShape, Step, StepKind

if TYPE_CHECKING:
    from resv.huggingface.attach import Attachment


_TOKENS_AT_ONCE = 16_384  # of one layer, as float32: 32 MB for a model of 4 KV heads of 128


class Landed(NamedTuple):
    """A step that ran before, in another process."""

    n_tokens: int
    kind: StepKind
    grid: Grid | None = None


def _runs(steps: Sequence[Landed]) -> Iterator[list[Landed]]:
    """Consecutive steps of at most `_TOKENS_AT_ONCE` tokens together, at least one."""
    run: list[Landed] = []
    n_tokens = 0
    for step in steps:
        if run and n_tokens + step.n_tokens > _TOKENS_AT_ONCE:
            yield run
            run, n_tokens = [], 0
        run.append(step)
        n_tokens += step.n_tokens
    yield run


class StepOutput(NamedTuple):
    """hidden : (B, N, hidden), what the decoder's last norm gives"""

    hidden: Tensor
    attachment: Attachment

    @property
    def logits(self) -> Tensor:
        """(B, N, V), computed when asked for."""
        with torch.no_grad():
            return self.attachment.family.logits(self.attachment.model, self.hidden)

    @property
    def last_logits(self) -> Tensor:
        """(B, V) of the step's last token."""
        with torch.no_grad():
            return self.attachment.family.logits(self.attachment.model, self.hidden[:, -1:])[:, 0]


class Stream:
    """Made by `Attachment.new_stream`; lives as long as its attachment.

    keep_selections : keep what the last step selected, and count the bytes it read. Off, a step costs less.
    acts_in : stages in which the policy selects; in the others a step attends to the whole cache
    notes : what to know of the results where the stream goes on from a folder
    """

    def __init__(self, attachment: Attachment, batch: int, seconds_per_step: float | None) -> None:
        if batch < 1:
            raise ValueError(f"batch is {batch}; allowed: at least 1")
        self.attachment = attachment
        self.batch = batch
        self.policy = attachment.policy
        self.shape: ModelShape = attachment.shape
        self.stored_shape = self.policy.stored_shape(self.shape)
        self.positions = attachment.positions
        self.turns = Turns(attachment.family.rotary(attachment.model).inv_freq)
        self.listener = attachment.record
        self.keep_selections = True
        self.acts_in: frozenset[StepKind] = frozenset(("frame", "question", "decode"))
        self._interval = attachment.positions_per_step(seconds_per_step)
        self.notes: list[str] = []
        self._forks = 0
        self._is_closed = False
        self.store = attachment.store(self.shape, batch, attachment.device, attachment.dtype)
        self._begin()

    def _begin(self) -> None:
        layers = range(self.shape.n_layers)
        self.states = [[self.policy.start(self.stored_shape, layer) for layer in layers] for _ in range(self.batch)]
        self.readers = self._new_readers()
        self.timing = StreamTiming()
        self.n_steps = 0  # taken and not dropped, probes included
        self.last_selections: tuple[tuple[LayerSelection, ...], ...] = ()
        self._cursor = Cursor()
        self._positions = np.zeros(64, dtype=np.int64)
        self._read = [(0, 0)] * self.batch  # bytes hit and fetched
        self.last_read: dict[int, NDArray[np.int64]] = {}  # per layer, tokens gathered in the last step

    def _new_readers(self) -> list[list[CacheReader]]:
        """Per batch item and layer, for policies that store with less precision; empty for the others."""
        made = [[self.policy.reader(self.shape) for _ in range(self.shape.n_layers)] for _ in range(self.batch)]
        readers = [[one for one in layers if one is not None] for layers in made]
        return readers if readers[0] else []

    @property
    def n_tokens(self) -> int:
        """Tokens of each batch item."""
        return self.states[0][-1].n_cached

    @property
    def token_positions(self) -> NDArray[np.int64]:
        """(S,) position of each token; the temporal one where there are several."""
        return self._positions[: self.n_tokens]

    @property
    def ledger(self) -> tuple[tuple[Ledger, ...], ...]:
        """Per batch item and layer, tokens that joined, left the device or were dropped."""
        return tuple(tuple(state.ledger for state in states) for states in self.states)

    def bytes(self, item: int = 0) -> StreamBytes:
        """What the policy's rule has where, for one batch item."""
        size = self.stored_shape.kv_bytes
        ledgers = self.ledger[item]
        hit, fetched = self._read[item]
        return StreamBytes(
            resident_bytes=sum(size(one.resident) for one in ledgers),
            offloaded_bytes=sum(size(one.offloaded) for one in ledgers),
            evicted_bytes=sum(size(one.evicted) for one in ledgers),
            hit_bytes=hit,
            fetched_bytes=fetched,
        )

    def forward(
        self,
        embeds: Tensor,
        stage: StepKind = "frame",
        *,
        positions: Tensor | None = None,
        grid: Grid | None = None,
        in_stream: bool = True,
    ) -> StepOutput:
        """Run one step.

        embeds : (B, n, hidden);  grid : rows and columns of a frame's tokens, for models with several positions per
        token, square where not given
        positions : (n,), (B, n) equal in all items, or (3, B, n) for such models; the family's where not given
        in_stream : whether the step's tokens join the cache; if not, it is a probe, which leaves the cache as it is

        Raises ValueError where shapes do not fit or there is no such stage; what a store raises (no room) passes
        through. In both cases the stream is as before the step.
        """
        self._check(embeds, stage)
        n_new = embeds.shape[1]
        given, cursor = self._place(n_new, stage, positions, grid)
        step = Step(stage, self.n_tokens, n_new, in_stream)
        running = RunningStep(self, step, int(given.reshape(-1, n_new)[0, 0]))
        start = perf_counter()
        try:
            hidden = self.attachment.run(running, embeds, given)
        except BaseException:
            self.last_read = {}
            self.store.truncate(step.first_token)
            raise
        self._remember(running)
        if in_stream:
            self._note_positions(given.reshape(-1, n_new)[0].numpy())
            self._cursor = cursor
        self.n_steps += 1
        self._count(running, perf_counter() - start)
        if self.listener is not None:
            self.listener.on_step(self, step)
        if in_stream and not self._forks:  # what is evicted is gone for good, and a fork may still be dropped
            self.tell_store()
        return StepOutput(hidden, self.attachment)

    def adopt(self, steps: Sequence[Landed], keys: Callable[[int, int, int], NDArray[np.float32]]) -> None:
        """Take in steps whose keys and values the store holds already, as if they had run after the others.

        keys : of (layer, first token, end), (B, H, n, D) after rotary embedding
        """
        start = self.n_tokens
        for layer in range(self.shape.n_layers):
            at = start
            for run in _runs(steps):
                n_new = sum(step.n_tokens for step in run)
                found = keys(layer, at, at + n_new)
                for item, states in enumerate(self.states):
                    lengths, kinds = [step.n_tokens for step in run], [step.kind for step in run]
                    states[layer].append(found[item], lengths, kinds)
                at += n_new
        positions = []
        for step in steps:
            given, self._cursor = self._place(step.n_tokens, step.kind, None, step.grid)
            positions.append(given.reshape(-1, step.n_tokens)[0].numpy())
        self._note_positions(np.concatenate(positions))

    def add_frame(self, frames: Tensor) -> StepOutput:
        """Encode frames (B, H, W, 3), or as many as the family takes in a step, and run them as one frame step."""
        family, model = self.attachment.family, self.attachment.model
        height, width = frames.shape[-2:] if frames.is_floating_point() else frames.shape[-3:-1]
        return self.forward(self.attachment.encode_frame(frames), "frame", grid=family.grid(model, height, width))

    def fork(self) -> Fork:
        """`with stream.fork() as aside:` what runs inside is dropped at the end, unless `aside.keep()` was called."""
        return Fork(self)

    def reset(self) -> None:
        """Forget everything: an empty cache and fresh policy states, as of a new stream.

        With `forward` of a whole memory this is how a method that prefixes embeddings to every question runs. What a
        folder held is gone, too; raises `TierError` where it is read only.
        """
        self.store.truncate(0)
        self.forget()

    def forget(self) -> None:
        """Fresh policy states over whatever the store holds, which is then to be taken in anew (`adopt`)."""
        self._begin()
        if self.listener is not None:
            self.listener.on_rollback(self, 0)

    def close(self) -> None:
        """Give back the store."""
        if not self._is_closed:
            self._is_closed = True
            self.store.close()

    def _check(self, embeds: Tensor, stage: StepKind) -> None:
        if self._is_closed:
            raise ValueError("this stream is closed: its attachment has ended, or `close` was called")
        expected = (self.batch, self.shape.hidden)
        if embeds.ndim != 3 or (embeds.shape[0], embeds.shape[2]) != expected or embeds.shape[1] == 0:
            raise ValueError(
                f"embeddings are {tuple(embeds.shape)}; allowed: (batch, tokens, hidden) with batch {self.batch}, "
                f"hidden {self.shape.hidden} and at least one token"
            )
        if stage not in STEP_KINDS:
            raise ValueError(f"stage is {stage!r}; allowed: {', '.join(STEP_KINDS)}")

    def _place(self, n_new: int, stage: StepKind, positions: Tensor | None, grid: Grid | None) -> tuple[Tensor, Cursor]:
        """Positions (n,) or (3, n) on the CPU, and the cursor behind them."""
        if positions is None:
            return self.attachment.family.step_positions(self._cursor, n_new, stage, grid, self._interval)
        several = self.attachment.family.several_positions
        allowed = [(n_new,), (self.batch, n_new), *([(3, self.batch, n_new)] if several else [])]
        if tuple(positions.shape) not in allowed:
            raise ValueError(f"positions are {tuple(positions.shape)}; allowed: {' or '.join(map(str, allowed))}")
        given = positions.cpu()
        items = given[None] if given.ndim == 1 else given
        if (items != items[..., :1, :]).any():
            raise ValueError("positions differ between batch items; allowed: the same in all")
        one = items[..., 0, :]
        one = one.expand(3, -1) if several and one.ndim == 1 else one
        return one, Cursor(int(one.max()) + 1)

    def _remember(self, running: RunningStep) -> None:
        """Tell the policies of the step they selected for, and add its tokens for good."""
        step = running.step
        start = perf_counter()
        for layer, (queries, keys, chosen) in enumerate(
            zip(running.queries, running.keys, running.selections, strict=True)
        ):
            for item, states in enumerate(self.states):
                states[layer].observe(step, queries[item], keys[item], chosen[item])
                if step.in_stream:
                    states[layer].append(keys[item], [step.n_tokens], [step.kind])
        running.policy_s += perf_counter() - start

    def tell_store(self) -> None:
        """What the policy holds on the device, and what is gone."""
        for layer in range(self.shape.n_layers):
            told = [states[layer].residency() for states in self.states]
            gone = [evicted for _, evicted in told if evicted is not None]
            if gone or not self.store.on_device:
                held = torch.from_numpy(np.stack([resident for resident, _ in told]))
                self.store.place(layer, held, torch.from_numpy(np.stack(gone)) if gone else None)

    def prefetch(self, layer: int) -> None:
        """Hint to the store what a layer will read: everything, or what the layer attended to in the last step."""
        if self.store.on_device or layer == self.shape.n_layers or not self.n_tokens:
            return
        indices = self.last_read.get(layer)
        if not self.policy.lossy or self.readers:
            indices = np.broadcast_to(np.arange(self.n_tokens), (self.batch, self.shape.n_kv_heads, self.n_tokens))
        if indices is not None:
            self.store.prefetch(layer, torch.from_numpy(np.array(indices)))

    def _note_positions(self, new: NDArray[np.int64]) -> None:
        stop = self.n_tokens
        if stop > len(self._positions):
            self._positions = np.concatenate([self._positions, np.zeros(max(stop, 64), dtype=np.int64)])
        self._positions[stop - len(new) : stop] = new

    def _count(self, running: RunningStep, forward_s: float) -> None:
        before = self.timing
        self.timing = StreamTiming(
            before.n_steps + 1,
            before.forward_s + forward_s,
            before.policy_s + running.policy_s,
            before.predict_s + running.predict_s,
        )
        if not self.keep_selections:
            self.last_selections = ()
            return
        self.last_selections = tuple(zip(*running.selections, strict=True))
        for item, layers in enumerate(self.last_selections):
            booked = [account(one, self.stored_shape, running.step.n_tokens) for one in layers]
            hit, fetched = self._read[item]
            hit, fetched = hit + sum(b.hit_bytes for b in booked), fetched + sum(b.fetched_bytes for b in booked)
            self._read[item] = hit, fetched

    def mark(self) -> Mark:
        """The stream as it is, for `rollback`, once. Costs a copy of the policies' states."""
        memo: dict[int, Any] = {id(x): x for x in (self.policy, self.shape, self.stored_shape)}
        return Mark(self.n_steps, self.n_tokens, deepcopy(self.states, memo), self._cursor, list(self._read))

    def rollback(self, mark: Mark) -> None:
        """Drop everything since `mark`."""
        self.n_steps, self.states = mark.n_steps, mark.states
        self._cursor, self._read = mark.cursor, mark.read
        self.last_selections, self.last_read = (), {}
        self.readers = self._new_readers()
        self.store.truncate(mark.n_tokens)
        if self.listener is not None:
            self.listener.on_rollback(self, mark.n_steps)
