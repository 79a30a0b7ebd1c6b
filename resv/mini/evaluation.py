"""Accuracy with the full cache: all frames of a stream in one dense pass, then all its questions in another.

This is the reference that a retrieval policy is held against, and what the model card states. Policies themselves run
frame by frame elsewhere; with a full cache that gives the same answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from transformers import DynamicCache

from resv.mini.model import TOKENS_PER_FRAME, MiniModel
from resv.mini.packing import pack
from resv.mini.scoring import Score
from resv.mini.streams import MiniStream
from resv.mini.tasks import Question
from resv.mini.vocabulary import SILENT


@dataclass(frozen=True)
class StreamAnswers:
    """Token ids answered to a stream's questions, in their order, and said after each of its frames."""

    answers: tuple[int, ...]
    narration: tuple[int, ...]


def answer_stream(model: MiniModel, stream: MiniStream, threshold: float = 0.0) -> StreamAnswers:
    """Answers by the largest logit of the whole vocabulary, every question as if it were the only one.

    `threshold` is that of the narration (`MiniModel.narrate`).
    """
    n_frames = len(stream.frames)
    n_tokens = n_frames * TOKENS_PER_FRAME
    sequence = pack(n_frames, [], list(stream.questions), np.zeros(n_frames, dtype=np.int64))
    cache = DynamicCache(config=model.llm.config)
    with torch.no_grad():
        tokens = model.encode(stream.frames[None]).flatten(1, 2)
        states = model.llm.model(inputs_embeds=tokens, past_key_values=cache, use_cache=True).last_hidden_state[0]
        said = model.narrate(model.llm.lm_head(states[TOKENS_PER_FRAME - 1 :: TOKENS_PER_FRAME]), threshold)
        if not stream.questions:
            return StreamAnswers((), tuple(said.tolist()))
        asked = model.llm.model(
            inputs_embeds=model.embed(sequence.words.tolist()),
            attention_mask=torch.from_numpy(sequence.visible[n_tokens:])[None, None],
            position_ids=torch.from_numpy(sequence.positions[n_tokens:])[None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[0]
        answers = model.llm.lm_head(asked[sequence.answer_slots - n_tokens]).argmax(-1)
    return StreamAnswers(tuple(answers.tolist()), tuple(said.tolist()))


def score_answers(questions: Iterable[Question], answers: Iterable[int]) -> dict[str, Score]:
    """Per task, in the order in which tasks are first met."""
    scores: dict[str, Score] = {}
    for question, answer in zip(questions, answers, strict=True):
        right = Score(int(answer == question.answer_id), 1)
        scores[question.task.value] = scores.get(question.task.value, Score(0, 0)) + right
    return scores


def score_narration(target: Iterable[int], said: Iterable[int]) -> dict[str, Score]:
    """`speak`: frames with something new in which it was named; `silent`: frames without in which nothing was said."""
    scores = {"speak": Score(0, 0), "silent": Score(0, 0)}
    for wanted, got in zip(target, said, strict=True):
        scores["silent" if wanted == SILENT else "speak"] += Score(int(wanted == got), 1)
    return scores


def evaluate(model: MiniModel, streams: Iterable[MiniStream], threshold: float = 0.0) -> dict[str, Score]:
    """Scores of every task and of the narration over all streams."""
    total: dict[str, Score] = {}
    for stream in streams:
        given = answer_stream(model, stream, threshold)
        parts = (score_answers(stream.questions, given.answers), score_narration(stream.narration, given.narration))
        for name, score in (item for part in parts for item in part.items()):
            total[name] = total.get(name, Score(0, 0)) + score
    return total
