"""The model card: what the shipped weights were measured to do, as numbers and as a page.

Numbers are kept with the weights and the page is written from them, so neither is ever typed by hand.
"""

from __future__ import annotations

import itertools
import platform
from collections.abc import Iterable
from pathlib import Path
from string import Template
from typing import Any

from resv.mini.checkpoint import Run
from resv.mini.evaluation import evaluate
from resv.mini.model import MiniModel
from resv.mini.recipe import TrainingConfig
from resv.mini.scoring import Score
from resv.mini.streams import MiniStream, StreamConfig, make_stream
from resv.mini.tasks import BlindBaseline
from resv.mini.vocabulary import TASKS
from resv.mini.world import LEVELS, Level

LENGTHS = (16, 32, 64, 128, 256, 512, 1024)  # frames; the recipe trains on up to 128
THRESHOLDS = (0.0, 0.5, 0.725, 0.9)  # of the narration; 0.725 is VideoLLM-online's demo
_QUESTIONS = 40  # per stream, in its last quarter, so that the length is that of what must be remembered
_QUESTIONS_FROM = 0.75
_COLUMNS = (*(task.value for task in TASKS), "speak", "silent")
_TEMPLATE = Path(__file__).parent / "data" / "card_template.md"
Numbers = dict[str, list[int]]  # task or narration: [right, asked]


def card_config(n_frames: int, level: Level, seed: int) -> StreamConfig:
    """The streams that the card is measured on: split `test`, seeds from 0 on."""
    return StreamConfig(
        n_frames=n_frames, level=level, split="test", seed=seed, n_questions=_QUESTIONS, questions_from=_QUESTIONS_FROM
    )


def card_streams(n_frames: int, level: Level, n_streams: int) -> Iterable[MiniStream]:
    """`n_streams` of them, made one by one."""
    return (make_stream(card_config(n_frames, level, seed)) for seed in range(n_streams))


def _plain(scores: dict[str, Score]) -> Numbers:
    return {name: [score.right, score.asked] for name, score in scores.items()}


def blind_scores(n_frames: int, level: Level, n_streams: int) -> dict[str, Score]:
    """What the best constant answer per task reaches on the card's streams; chosen on as many training streams."""
    configs = [card_config(n_frames, level, seed).model_copy(update={"split": "train"}) for seed in range(n_streams)]
    baseline = BlindBaseline.fit(itertools.chain.from_iterable(make_stream(c).questions for c in configs))
    total: dict[str, Score] = {}
    for stream in card_streams(n_frames, level, n_streams):
        for question in stream.questions:
            right = Score(int(baseline.answer(question) == question.answer_id), 1)
            total[question.task.value] = total.get(question.task.value, Score(0, 0)) + right
    return total


def _compared_lengths(recipe: TrainingConfig) -> tuple[int, int]:
    """The training length and eight times that."""
    return recipe.long_frames, 8 * recipe.long_frames


def _accuracy(model: MiniModel, recipe: TrainingConfig, n_streams: int, lengths: tuple[int, ...]) -> dict[str, Any]:
    wanted = {level: set(_compared_lengths(recipe)) for level in Level}
    wanted[Level.MEDIUM] |= set(lengths)
    return {
        level.value: {str(n): _plain(evaluate(model, card_streams(n, level, n_streams))) for n in sorted(numbers)}
        for level, numbers in wanted.items()
    }


def _narrated_length(recipe: TrainingConfig) -> int:
    """Four times the training length: the thresholds repeat the longest passes."""
    return 4 * recipe.long_frames


def _narration(model: MiniModel, n_frames: int, n_streams: int) -> dict[str, Numbers]:
    """Scores of the narration alone per threshold, on hard streams."""
    table = {}
    for threshold in THRESHOLDS:
        scores = evaluate(model, card_streams(n_frames, Level.HARD, n_streams), threshold)
        table[str(threshold)] = _plain({name: scores[name] for name in _COLUMNS[-2:]})
    return table


def measure(model: MiniModel, run: Run, n_streams: int, lengths: tuple[int, ...] = LENGTHS) -> dict[str, Any]:
    """All numbers of the card, of JSON types: `accuracy[level][frames][task]` is [right, asked]."""
    recipe = run.config
    compared = _compared_lengths(recipe)
    return {
        "parameters": model.network.n_parameters(),
        "recipe": recipe.model_dump(mode="json"),
        "machine": platform.processor() or platform.machine(),
        "training_seconds": round(run.seconds),
        "curve": run.curve,
        "streams": n_streams,
        "accuracy": _accuracy(model, recipe, n_streams, lengths),
        "blind": {str(n): _plain(blind_scores(n, Level.MEDIUM, n_streams)) for n in compared},
        "narration": _narration(model, _narrated_length(recipe), n_streams),
    }


def _cell(numbers: list[int] | None) -> str:
    if numbers is None or not numbers[1]:
        return "–"
    score = Score(*numbers)
    low, high = score.interval()
    return f"{100 * score.accuracy:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def _table(first: str, rows: Iterable[tuple[str, Numbers]], columns: tuple[str, ...]) -> str:
    lines = [f"| {first} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for name, row in rows]
    return "\n".join(lines)


def _curve(curve: list[dict[str, float]], n_points: int = 15) -> str:
    step = max(1, len(curve) // n_points)
    chosen = curve[step - 1 :: step]
    columns = ("loss", "answers_right", "narration_right", *(task.value for task in TASKS))
    lines = ["| step | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for point in chosen:
        shares = [f"{100 * point[c]:.1f}" if c in point else "–" for c in columns[1:]]
        lines.append(f"| {point['step']:.0f} | {point['loss']:.3f} | " + " | ".join(shares) + " |")
    return "\n".join(lines)


def _levels() -> str:
    names = tuple(type(LEVELS[Level.EASY]).model_fields)
    lines = ["| | " + " | ".join(Level) + " |", "|---" * (len(Level) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(f"{getattr(LEVELS[level], name):g}" for level in Level) + " |" for name in names
    ]
    return "\n".join(lines)


def render_card(card: dict[str, Any], sha256: str) -> str:
    """The page, in Markdown."""
    recipe = TrainingConfig.model_validate(card["recipe"])
    lengths = [str(n) for n in _compared_lengths(recipe)]
    accuracy: dict[str, dict[str, Numbers]] = card["accuracy"]
    by_level = [(f"{level}, {n} frames", rows[n]) for level, rows in accuracy.items() for n in lengths]
    blind = [(f"{n} frames", numbers) for n, numbers in card["blind"].items()]
    tables = {
        "levels": _levels(),
        "recipe": "\n".join(f"- `{name}`: {value}" for name, value in card["recipe"].items() if name != "model"),
        "curve": _curve(card["curve"]),
        "by_length": _table("frames", accuracy[Level.MEDIUM.value].items(), _COLUMNS),
        "by_level": _table("level", by_level, _COLUMNS),
        "blind": _table("medium", blind, tuple(task.value for task in TASKS)),
        "narration": _table("threshold", card["narration"].items(), _COLUMNS[-2:]),
    }
    numbers = {
        **recipe.model.model_dump(),
        "max_positions": f"{recipe.model.max_positions:,}",
        "rope_theta": f"{recipe.model.rope_theta:g}",
        "parameters": f"{card['parameters']:,}",
        "minutes": round(card["training_seconds"] / 60),
        "machine": card["machine"],
        "sha256": sha256,
        "n_levels": len(Level),
        "n_streams": card["streams"],
        "n_questions": _QUESTIONS,
        "first_max_frames": recipe.first_max_frames,
        "max_frames": recipe.max_frames,
        "long_frames": recipe.long_frames,
        "narrated_frames": _narrated_length(recipe),
    }
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(numbers, **tables)
