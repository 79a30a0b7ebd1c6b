"""Settings to outcomes: each setting sits the exam once, in parts of 16 streams on any number of processes.

A part is remembered on disk by everything that it follows from, so a sweep that meets a setting again, or a table that
is made anew, runs no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resv.policies.base import Policy
from resv.policies.videollm_online import VideoLLMOnline
from resv.trace import ModelShape, Step, StepKind
from resv_sim.accuracy.config import AccuracyConfig
from resv_sim.accuracy.exam import Exam, make_exam
from resv_sim.config import Experiment
from resv_sim.errors import ConfigError
from resv_sim.memo import Arrays, Memo, code_fingerprint, key_of, pack_layers, unpack_layers
from resv_sim.rows import Point

if TYPE_CHECKING:
    from resv.mini.model import MiniModel
    from resv_sim.accuracy.answering import Answers

Int64 = NDArray[np.int64]
KINDS: tuple[StepKind, ...] = ("frame", "question", "decode")
STREAMS_PER_PART = 16  # keys and values of 16 streams of 200 frames take 160 MB


@dataclass(frozen=True)
class Setting:
    """One policy on one exam. `label` is what it is called, and its policy in the experiment where it is priced."""

    label: str
    policy: Policy
    config: AccuracyConfig


@dataclass(frozen=True)
class Outcome:
    """A setting's exam: token ids given (N, Q) and said (N, T), counts as in `Answers`, and its steps on platforms."""

    given: Int64
    said: Int64
    counts: Int64
    points: tuple[Point, ...] = ()


@dataclass(frozen=True)
class Part:
    """16 streams or fewer of one setting.

    priced : the experiment on whose platforms the recorded stream's steps are timed and priced;  record_every : frames
    """

    setting: Setting
    seeds: tuple[int, ...]
    priced: Experiment | None = None
    record_every: int | None = None


def parts_of(setting: Setting, priced: Experiment | None = None, record_every: int | None = None) -> list[Part]:
    """The parts of a setting, in order of their streams."""
    return [Part(setting, seeds, priced, record_every) for seeds in seed_groups(setting.config)]


def seed_groups(config: AccuracyConfig) -> list[tuple[int, ...]]:
    """The seeds of an exam, as its parts have them."""
    seeds = config.seeds
    return [tuple(seeds[i : i + STREAMS_PER_PART]) for i in range(0, len(seeds), STREAMS_PER_PART)]


def run_settings(
    settings: Sequence[Setting],
    memo: Memo,
    jobs: int,
    *,
    priced: Mapping[int, Experiment] | None = None,
    record_every: int | None = None,
    advance: Callable[[str], None] = lambda _: None,
) -> list[Outcome]:
    """Every setting's outcome, in order. `priced` : number of a setting -> experiment that times and prices it.

    Raises WeightsError or ConfigError; `advance` is told the label of every finished part.
    """
    experiments = priced or {}
    numbered = [
        (number, part)
        for number, setting in enumerate(settings)
        for part in parts_of(setting, experiments.get(number), record_every if number in experiments else None)
    ]
    # Parts of the same streams follow each other.
    numbered.sort(key=lambda item: (item[1].setting.config.n_frames, item[1].seeds))
    done: dict[int, Outcome] = {}
    with _workers(jobs, len(numbered)) as run:
        for index, outcome in run([part for _, part in numbered], memo):
            done[index] = outcome
            advance(numbered[index][1].setting.label)
    return [
        merged([done[i] for i, (number, _) in enumerate(numbered) if number == wanted])
        for wanted in range(len(settings))
    ]


def merged(outcomes: Sequence[Outcome]) -> Outcome:
    """Parts put together, in order."""
    return Outcome(
        np.concatenate([one.given for one in outcomes]),
        np.concatenate([one.said for one in outcomes]),
        np.sum([one.counts for one in outcomes], axis=0),
        tuple(point for one in outcomes for point in one.points),
    )


def run_part(part: Part, memo: Memo) -> Outcome:
    """One part, from what is remembered where it is."""
    import torch

    from resv_sim.accuracy.platforms import platform_points

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = _model(weights_path(part.setting.config))
        answers = _answers(part, model, memo)
        shape = _shape(model)
        points = [] if part.priced is None else platform_points(part.priced, part.setting.label, shape, answers)
    finally:
        torch.set_num_threads(n_threads)
    slim = [replace(point, timeline=None, work=None, bill=None) for point in points]  # type: ignore[arg-type]
    return Outcome(answers.given, answers.said, answers.counts, tuple(slim))


# -- workers ---------------------------------------------------------------------------------------------

Runner = Callable[[Sequence[Part], Memo], Iterable[tuple[int, Outcome]]]


@contextmanager
def _workers(jobs: int, n_parts: int) -> Iterator[Runner]:
    """What runs parts: this process for one job, else as many others."""
    if min(jobs, n_parts) <= 1:
        yield lambda parts, memo: ((i, run_part(part, memo)) for i, part in enumerate(parts))
        return
    with ProcessPoolExecutor(min(jobs, n_parts), mp_context=get_context("spawn"), initializer=_one_thread) as pool:

        def run(parts: Sequence[Part], memo: Memo) -> Iterator[tuple[int, Outcome]]:
            waiting = {pool.submit(run_part, part, memo): i for i, part in enumerate(parts)}
            try:
                for future in as_completed(waiting):
                    yield waiting[future], future.result()
            except BrokenExecutor as error:
                raise ConfigError("a worker died (killed, or out of memory); try fewer --jobs") from error
            finally:
                for future in waiting:
                    future.cancel()

        yield run


def _one_thread() -> None:
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(1)


# -- one part --------------------------------------------------------------------------------------------


def weights_path(config: AccuracyConfig) -> Path:
    """The weight file that is meant."""
    from resv.mini.weights import SHIPPED

    return SHIPPED if config.weights is None else config.weights


@lru_cache(maxsize=2)
def _model(path: Path) -> MiniModel:
    from resv.mini.weights import load_mini

    return load_mini(path)


@lru_cache(maxsize=2)
def _exam(config_json: str, seeds: tuple[int, ...]) -> Exam:
    return make_exam(AccuracyConfig.model_validate_json(config_json), seeds)


def exam_of(config: AccuracyConfig, seeds: tuple[int, ...]) -> Exam:
    """The exam of these streams; the last few are kept. What does not concern the exam is left out of its key."""
    plain = config.model_copy(update={"stages": "both", "recent_tokens": None, "weights": None, "n_streams": 1})
    return _exam(plain.model_dump_json(), seeds)


def model_shape(config: AccuracyConfig) -> ModelShape:
    """The shape of the model that sits the exam. Raises WeightsError."""
    return _shape(_model(weights_path(config)))


def attachment_notes(config: AccuracyConfig, policy: Policy) -> list[str]:
    """What to know about a policy in the model that sits the exam."""
    from resv.huggingface.attach import attach
    from resv_sim.accuracy.answering import question_kind

    if isinstance(policy, VideoLLMOnline):
        return []  # its note is that the model must be trained to stay silent, which this one is
    with attach(_model(weights_path(config)).llm, policy) as attachment:
        notes = list(attachment.notes)
    if question_kind(policy) == "decode":
        notes.append(f"{policy.kind} selects in decode steps alone; here it does so in the question, read as one")
    return notes


def _shape(model: MiniModel) -> ModelShape:
    from resv.huggingface.attach import shape_of
    from resv_sim.accuracy.answering import stored_shape

    named = {"name": "mini", "tokens_per_frame": model.tokens_per_frame}
    return stored_shape(shape_of(model.llm)).model_copy(update=named)


def on_device(policy: Policy, shape: ModelShape, recent_tokens: int | None) -> Policy:
    """The policy with room for `recent_tokens` on the device, where it offloads at all."""
    if recent_tokens is None or policy.recent_bytes is None:
        return policy
    return policy.model_copy(update={"recent_bytes": recent_tokens * shape.kv_bytes_per_token})


def _answers(part: Part, model: MiniModel, memo: Memo) -> Answers:
    from resv_sim.accuracy.answering import answer_exam, check_length

    config = part.setting.config
    check_length(model, config.n_frames)
    policy = on_device(part.setting.policy, _shape(model), config.recent_tokens)
    key = _key(part, policy, model)
    known = memo.load(key)
    if known is not None:
        return _unpacked(known)
    exam = exam_of(config, part.seeds)
    answers = answer_exam(
        model,
        policy,
        exam,
        stages=config.stages,
        silence_threshold=config.silence_threshold,
        record_every=part.record_every,
    )
    memo.store(key, _packed(answers))
    return answers


def _key(part: Part, policy: Policy, model: MiniModel) -> str:
    asked = part.setting.config.model_dump(mode="json", exclude={"n_streams", "first_seed", "weights"})
    weights = model.metadata.get("sha256", "")
    fields = policy.model_dump(mode="json")
    code = code_fingerprint("resv"), _own_code()
    return key_of("accuracy", code, weights, asked, part.seeds, fields, part.record_every)


@cache
def _own_code() -> str:
    """What of this package decides an outcome."""
    folder = Path(__file__).parent
    return key_of(*((folder / name).read_text(encoding="utf-8") for name in ("answering.py", "exam.py")))


def _packed(answers: Answers) -> Arrays:
    steps = [[KINDS.index(step.kind), step.first_token, step.n_tokens] for step in answers.steps]
    out: dict[str, Any] = {"given": answers.given, "said": answers.said, "counts": answers.counts}
    out["steps"] = np.array(steps, dtype=np.int64).reshape(len(steps), 3)
    for layer, chosen in enumerate(answers.selections):
        out.update({f"layer.{layer}/{name}": values for name, values in pack_layers(chosen, ()).items()})
    return out


def _unpacked(arrays: Arrays) -> Answers:
    from resv_sim.accuracy.answering import Answers

    steps = tuple(
        Step(KINDS[kind], int(first), int(n), in_stream=KINDS[kind] == "frame") for kind, first, n in arrays["steps"]
    )
    by_layer: dict[int, Arrays] = {}
    for name, values in arrays.items():
        head, slash, rest = name.partition("/")
        if slash:
            by_layer.setdefault(int(head.removeprefix("layer.")), {})[rest] = values
    layers = tuple(unpack_layers(by_layer[layer])[0] for layer in sorted(by_layer))
    return Answers(arrays["given"], arrays["said"], arrays["counts"], steps, layers)
