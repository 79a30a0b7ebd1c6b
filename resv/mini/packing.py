"""Training batches: streams with their questions packed into one sequence each.

Most questions are probes: they see the frames up to theirs and themselves, nothing sees them, so a dozen share one
pass over a stream. The others are turns: their words and answer stay in the stream and later tokens see them, as in
dialogue. Positions are those of a running stream; some streams are stretched by jumps between frames, so the model
meets the distances of streams eight times as long as the longest that it is trained on.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from resv.mini.streams import MiniStream, StreamConfig, make_stream
from resv.mini.tasks import Question
from resv.mini.vocabulary import COUNT_CAP, EMPTY, N_CELLS, N_KINDS, QUESTION_TOKENS
from resv.mini.world import Level, World

if TYPE_CHECKING:
    from resv.mini.recipe import TrainingConfig

Int64 = NDArray[np.int64]
_TOKENS_PER_FRAME = N_CELLS + 1
_TURN_TOKENS = QUESTION_TOKENS + 1  # a turn's answer stays in the stream, too
_IN_STREAM = -1
_LENGTH_KEY, _PACK_KEY, _TEMPO_KEY = 101, 102, 103  # tell these draws from those of the streams
_LATEST_FIRST_QUESTION = 0.75  # share of a stream; half of its questions or more concern much of it
IGNORED = -100  # a target that does not count; the value is that of torch's cross entropy


@dataclass(frozen=True)
class Batch:
    """B streams of T frames with Q questions, in S = 10·T + words slots: all frames' tokens first, then all words.

    frames (B, T, 48, 48, 3); words (B, W) token ids; positions (B, S); visible (B, S, S) bool, row sees column;
    answer_slots, answers (B, Q); narration (B, T), said at slot 10·t + 9; shown (B, T, 9), what each cell shows;
    recalled (B, T, 9), what it shows or showed last; times (B, T, 9), how often what it shows has appeared, or IGNORED
    """

    frames: NDArray[np.uint8]
    words: Int64
    positions: Int64
    visible: NDArray[np.bool_]
    answer_slots: Int64
    answers: Int64
    narration: Int64
    shown: Int64
    recalled: Int64
    times: Int64


def split(batch: Batch, n_parts: int) -> list[Batch]:
    """The batch in `n_parts` of as many streams each."""
    parts = {field.name: np.split(getattr(batch, field.name), n_parts) for field in fields(batch)}
    return [Batch(**{name: values[i] for name, values in parts.items()}) for i in range(n_parts)]


@dataclass(frozen=True)
class Sequence:
    """One stream of a batch: ranks count the tokens before a token as it sees them."""

    words: Int64
    positions: Int64
    visible: NDArray[np.bool_]
    answer_slots: Int64
    answers: Int64


def stretch(n_frames: int, max_positions: int, n_words: int, rng: np.random.Generator) -> Int64:
    """Positions added before every frame, (T,): few or many jumps, their sum log-uniform up to what is left."""
    room = max_positions - n_frames * _TOKENS_PER_FRAME - n_words
    jumps = np.zeros(n_frames, dtype=np.int64)
    if room <= _TOKENS_PER_FRAME:
        return jumps
    total = np.exp(rng.uniform(np.log(_TOKENS_PER_FRAME), np.log(room)))
    n_jumps = round(np.exp(rng.uniform(0.0, np.log(n_frames / 2))))
    at = rng.integers(1, n_frames, n_jumps)
    np.add.at(jumps, at, np.floor(total * rng.dirichlet(np.ones(len(at)))).astype(np.int64))
    return np.cumsum(jumps)


def pack(n_frames: int, turns: list[Question], probes: list[Question], jumps: Int64) -> Sequence:
    """Lay out one stream with its turns and probes, both in the order of their frames."""
    turn_frames = np.array([turn.frame for turn in turns], dtype=np.int64)
    frames = np.arange(n_frames)
    turns_before = np.searchsorted(turn_frames, frames)  # turns asked after an earlier frame
    first_rank = frames * _TOKENS_PER_FRAME + turns_before * _TURN_TOKENS
    rank = [(first_rank[:, None] + np.arange(_TOKENS_PER_FRAME)).ravel()]
    frame = [frames.repeat(_TOKENS_PER_FRAME)]
    group = [np.full(n_frames * _TOKENS_PER_FRAME, _IN_STREAM)]
    sees = [np.zeros(n_frames * _TOKENS_PER_FRAME, dtype=np.int64)]  # ranks of the stream that a probe sees
    words: list[int] = []
    slots, answers = [], []
    for index, question in enumerate([*turns, *probes]):
        is_turn = index < len(turns)
        n_before = index if is_turn else int(np.searchsorted(turn_frames, question.frame, side="right"))
        ids = (*question.ids, question.answer_id) if is_turn else question.ids
        start = (question.frame + 1) * _TOKENS_PER_FRAME + n_before * _TURN_TOKENS
        slots.append(n_frames * _TOKENS_PER_FRAME + len(words) + QUESTION_TOKENS - 1)
        answers.append(question.answer_id)
        words.extend(ids)
        rank.append(start + np.arange(len(ids)))
        frame.append(np.full(len(ids), question.frame))
        group.append(np.full(len(ids), _IN_STREAM if is_turn else index))
        sees.append(np.full(len(ids), 0 if is_turn else start))
    r, g, s = np.concatenate(rank), np.concatenate(group), np.concatenate(sees)
    visible = (g[None, :] == _IN_STREAM) & (r[None, :] < s[:, None])
    visible |= (g[None, :] == g[:, None]) & (r[None, :] <= r[:, None])
    positions = r + jumps[np.concatenate(frame)]
    return Sequence(np.array(words), positions, visible, np.array(slots), np.array(answers))


def _stream_of(config: TrainingConfig, step: int, index: int, n_frames: int, n_questions: int) -> MiniStream:
    """A stream of a step; after the beginning, some are hurried and crowded into few cells."""
    number = step * config.n_streams + index
    rng = np.random.default_rng([config.seed, step, _TEMPO_KEY, index])
    hurried = step >= config.hurry_after * config.steps and rng.random() < config.hurried_share
    return make_stream(
        StreamConfig(
            n_frames=n_frames,
            level=tuple(Level)[number % len(Level)],
            split="train",
            seed=(config.seed << 40) + number,
            n_questions=n_questions,
            questions_from=rng.uniform(0.0, _LATEST_FIRST_QUESTION),
            tasks=config.tasks,
            tempo=float(np.exp(rng.uniform(0.0, np.log(config.max_tempo)))) if hurried else 1.0,
            n_cells=int(rng.integers(config.fewest_cells, N_CELLS + 1)) if hurried else N_CELLS,
        )
    )


def last_shown(occupancy: NDArray[np.int8]) -> Int64:
    """What is in every cell in every frame, or was last, of (T, 9) kinds or -1; EMPTY where nothing ever was."""
    frames = np.arange(len(occupancy))[:, None]
    latest = np.maximum.accumulate(np.where(occupancy >= 0, frames, -1), axis=0)
    shown = np.take_along_axis(occupancy, np.maximum(latest, 0), axis=0).astype(np.int64)
    return np.where(latest < 0, EMPTY, shown)


def times_appeared(world: World) -> Int64:
    """How often what a cell shows has appeared up to its frame, capped, (T, 9); IGNORED where it shows nothing."""
    counts = np.zeros((len(world.occupancy), N_KINDS), dtype=np.int64)
    for event in world.events:
        if event.what == "appear":
            counts[event.frame :, event.kind] += 1
    times = np.take_along_axis(counts, np.maximum(world.occupancy, 0).astype(np.int64), axis=1)
    return np.where(world.occupancy < 0, IGNORED, np.minimum(times, COUNT_CAP))


def make_batch(config: TrainingConfig, step: int) -> Batch:
    """The batch of a step: a pure function of the configuration and the step."""
    rng = np.random.default_rng([config.seed, step, _LENGTH_KEY])
    n_frames, n_streams = int(rng.integers(config.min_frames, config.longest_frames(step) + 1)), config.n_streams
    n_turns = int(rng.integers(0, config.max_turns + 1)) if rng.random() < config.turn_share else 0
    n_probes = config.n_probes
    if step >= config.long_after * config.steps and rng.random() < config.long_share:
        n_frames = int(rng.integers(config.max_frames + 1, config.long_frames + 1))
        n_streams, n_probes = config.long_streams, config.long_probes
    streams = [_stream_of(config, step, i, n_frames, n_turns + n_probes) for i in range(n_streams)]
    packed = []
    for index, stream in enumerate(streams):
        rng = np.random.default_rng([config.seed, step, _PACK_KEY, index])
        chosen = set(rng.permutation(len(stream.questions))[:n_turns].tolist())
        turns = [question for i, question in enumerate(stream.questions) if i in chosen]
        probes = [question for i, question in enumerate(stream.questions) if i not in chosen]
        n_words = n_turns * _TURN_TOKENS + QUESTION_TOKENS
        jumps = np.zeros(n_frames, dtype=np.int64)
        if rng.random() < config.stretch_share:
            jumps = stretch(n_frames, config.model.max_positions, n_words, rng)
        packed.append(pack(n_frames, turns, probes, jumps))
    occupancy = np.stack([stream.world.occupancy for stream in streams]).astype(np.int64)
    return Batch(
        frames=np.stack([stream.frames for stream in streams]),
        words=np.stack([sequence.words for sequence in packed]),
        positions=np.stack([sequence.positions for sequence in packed]),
        visible=np.stack([sequence.visible for sequence in packed]),
        answer_slots=np.stack([sequence.answer_slots for sequence in packed]),
        answers=np.stack([sequence.answers for sequence in packed]),
        narration=np.array([stream.narration for stream in streams]),
        shown=np.where(occupancy < 0, EMPTY, occupancy),
        recalled=np.stack([last_shown(stream.world.occupancy) for stream in streams]),
        times=np.stack([times_appeared(stream.world) for stream in streams]),
    )
