"""`resv-sim stream`: questions about a video while it comes in, by a model under a policy.

Analysing and answering may be two processes that share a disk tier. Prints one line per event; computes nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from resv.features import PATCH_PX
from resv.huggingface.answers import Answer
from resv.huggingface.attach import Attachment, attach, shape_of
from resv.huggingface.families import family_of
from resv.huggingface.load import load_model
from resv.huggingface.resume import weights_fingerprint
from resv.huggingface.session import Event, Frame, Session, SessionConfig
from resv.huggingface.text import prompts_for, text_codec
from resv.huggingface.versions import TransformersVersionError
from resv.policies.base import Policy
from resv.policies.rekv import ReKV
from resv.tiers.config import Tiers
from resv.tiers.errors import TierError
from resv.tiers.store import TieredStore, tiered
from resv.video import VideoConfig, duration_s, read_frames
from resv_sim import library
from resv_sim.config import PolicyField
from resv_sim.errors import ConfigError
from resv_sim.validation import validated
from resv_sim.yaml_source import Node, read_value

Echo = Callable[[str], None]
Role = Literal["both", "analyse", "answer"]
_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?|nan|inf|infinity)"
_LEAST_PX, _MOST_PX = 64, 768  # sides that frames are read at; the largest is `VideoConfig`'s
_ANY_SIZE_PX = 448  # assumed, for encoders that take any size (Qwen2.5-VL): 16 x 16 tokens


@dataclass(frozen=True)
class StreamJob:
    """asks : "SECONDS: question", or a question alone for the end;  settings, limits : KEY=VALUE

    limits : fields of `Tiers`;  n_frames : None = to the end of the file
    """

    model: str
    video: Path | None
    asks: tuple[str, ...]
    policy: str
    settings: tuple[str, ...]
    fps: float
    n_frames: int | None
    tier: Path | None
    role: Role
    limits: tuple[str, ...]
    max_new_tokens: int
    dialogue: Literal["policy", "kept", "dropped"]
    resize: bool
    device: str
    dtype: str


class _Chosen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: PolicyField


def policy_of(name: str, settings: tuple[str, ...]) -> Policy:
    """A bundled policy or one from a file, with KEY=VALUE laid over it. Raises `ConfigError`."""
    tree = library.resolved(name, "policies")
    for setting in settings:
        tree = library.with_override(tree, setting)
    policy: Policy = validated(_Chosen, Node({"policy": tree}, tree.origin)).policy
    return policy


def model_of(name: str, device: str, dtype: str) -> Any:
    """`load_model`, a wrong version of transformers being the user's to mend. Raises `ConfigError` for it."""
    try:
        return load_model(name, device=device, dtype=dtype)
    except TransformersVersionError as error:
        raise ConfigError(str(error)) from error


def questions_of(asks: tuple[str, ...]) -> list[tuple[float, str]]:
    """(seconds, question) in order; without a time a question is asked at the end. Raises `ConfigError`."""
    found = []
    for ask in asks:
        timed = re.fullmatch(rf"\s*({_NUMBER})\s*:(.*)", ask, re.DOTALL | re.IGNORECASE)
        seconds, text = (float(timed[1]), timed[2]) if timed else (math.inf, ask)
        if timed and not 0 <= seconds < math.inf:
            raise ConfigError(f"--ask {ask!r}: seconds are {timed[1]}; allowed: a finite number from 0")
        if not re.search(r"\w", text):
            raise ConfigError(f'--ask {ask!r}: must be "SECONDS: question", like "10.0: what is on the table?"')
        found.append((seconds, text.strip()))
    return sorted(found, key=lambda question: question[0])


def check_times(questions: Iterable[tuple[float, str]], file: Path | None, fps: float, n_frames: int | None) -> None:
    """Raise `ConfigError` for a question that comes after the end of the stream, as far as its length is known."""
    length_s = math.inf if file is None else duration_s(file)
    end_s = math.inf if math.isinf(length_s) else math.ceil(length_s * fps - 1e-6) / fps  # every frame has its time
    if n_frames is not None:
        end_s = min(end_s, n_frames / fps)
    for seconds, text in questions:
        if end_s < seconds < math.inf:
            raise ConfigError(
                f'--ask "{seconds:g}: {text}": the stream ends at {end_s:g} s; without seconds a question is asked then'
            )


def run_stream(job: StreamJob, echo: Echo, tell: Echo, *, as_json: bool) -> None:
    """Run the stream; `echo` takes the lines of events, `tell` what else there is to know.

    Raises `ConfigError` or what the parts raise. Where a tier is full, questions are answered from the frames before,
    and then the error is raised.
    """
    questions = questions_of(job.asks)
    _check(job, questions)
    policy, tiers = policy_of(job.policy, job.settings), _tiers(job)
    model = model_of(job.model, job.device, job.dtype)
    codec = text_codec(model)
    prompts = prompts_for(model, codec)
    if isinstance(policy, ReKV) and not policy.n_init:
        policy = policy.model_copy(update={"n_init": len(codec.encode(prompts.opening))})
    if tiers is not None and isinstance(policy, ReKV) and "copies_bytes" not in tiers.model_fields_set:
        tiers = tiers.model_copy(update={"copies_bytes": policy.cached_frames * _frame_bytes(model)})
    store = None if tiers is None else tiered(tiers, weights_fingerprint(model))
    config = SessionConfig(fps=job.fps, max_new_tokens=job.max_new_tokens, dialogue=job.dialogue, resize=job.resize)
    with attach(model, policy, store=store) as attachment:
        session = Session(attachment, config=config, codec=codec, prompts=prompts)
        for note in session.notes:
            tell(f"Note: {note}")
        for event in _events(job, session, questions):
            echo(_as_json(event) if as_json else _as_text(event))
        summary = _summary(attachment, session)
        if as_json:
            echo(json.dumps(summary))
        else:
            tell(", ".join(f"{name}: {value}" for name, value in summary.items() if name != "kind"))


def _check(job: StreamJob, questions: list[tuple[float, str]]) -> None:
    if job.role != "both" and job.tier is None:
        raise ConfigError(f"--{job.role} needs the folder that the two processes share: --tier DIR")
    if job.role == "analyse" and questions:
        raise ConfigError("--analyse answers nothing: ask in another process with --answer --tier DIR")
    if job.tier is not None and job.tier.exists() and not job.tier.is_dir():
        raise ConfigError(f"--tier {job.tier}: is a file; a tier is a folder")
    if job.role != "answer":
        check_times(questions, job.video, job.fps, job.n_frames)
    if job.role == "answer" and not questions:
        raise ConfigError('--answer needs something to answer: --ask "what is on the table?"')


def _tiers(job: StreamJob) -> Tiers | None:
    given: dict[str, Node] = {}
    if job.tier is not None:
        given = {"folder": Node(str(job.tier), "--tier"), "read_only": Node(job.role == "answer", "--answer")}
    for limit in job.limits:
        key, equals, text = limit.partition("=")
        if not equals or key not in Tiers.model_fields or key in ("folder", "read_only"):
            allowed = ", ".join(name for name in Tiers.model_fields if name not in ("folder", "read_only"))
            raise ConfigError(f"--limit {limit}: must be KEY=VALUE with a key of {allowed}")
        given[key] = read_value(text, f"--limit {key}")
    return validated(Tiers, Node(given, "--limit")) if given else None


def _events(job: StreamJob, session: Session, questions: list[tuple[float, str]]) -> Iterator[Event]:
    n_asked, stopped = 0, None
    if job.role != "answer":
        try:
            for event in session.stream(_frames(job, session), questions):
                n_asked += isinstance(event, Answer) and event.question is not None
                yield event
        except TierError as error:
            stopped = error
    try:
        for n, (_, question) in enumerate(questions[n_asked:]):
            # An answer that is kept stands behind the frames: no frame fits before it.
            if n == 0 or not session.keeps_dialogue:
                session.refresh()
            answer = session.ask(question)
            yield from [answer] if isinstance(answer, Answer) else answer
    except TierError as error:
        raise (stopped or error) from None
    if stopped is not None:
        raise stopped


def side_px(model: Any) -> int:
    """Side that frames are read at: what the model's encoder takes, as far as frames can be read so."""
    side = getattr(getattr(model.config, "vision_config", None), "image_size", None) or _ANY_SIZE_PX
    return min(max(-(-side // PATCH_PX) * PATCH_PX, _LEAST_PX), _MOST_PX)


def _frame_bytes(model: Any) -> int:
    """Keys and values of one frame, all layers."""
    rows, columns = family_of(model).grid(model, side_px(model), side_px(model)) or (0, 0)
    return rows * columns * shape_of(model).kv_bytes_per_token


def _frames(job: StreamJob, session: Session) -> Iterator[Frame]:
    """Frames behind those that the session has already."""
    file = None if job.video is None else str(job.video)
    video = VideoConfig(file=file, fps=job.fps, size_px=side_px(session.attachment.model))
    return islice(read_frames(video, same_size=not job.resize), session.n_frames, job.n_frames)


def _as_json(event: Event) -> str:
    fields: dict[str, Any] = {"kind": event.kind, **asdict(event)}
    return json.dumps(fields, ensure_ascii=False)


def _as_text(event: Event) -> str:
    when = f"{event.timestamp_s:9.2f} s  "
    if not isinstance(event, Answer):
        line = f"{when}frame {event.index}: encode {_ms(event.encode_s)}, forward {_ms(event.forward_s)}"
        if event.separator_probability is None:
            return line
        return f"{line}, separator {event.separator_probability:.3f}"
    words = json.dumps(event.text, ensure_ascii=False)  # one line, whatever the model said
    asked = "unasked" if event.question is None else json.dumps(event.question, ensure_ascii=False)
    return (
        f"{when}{asked} -> {words} ({event.n_frames} frames, first token {_ms(event.first_token_s)}, "
        f"{len(event.token_ids)} tokens, {_ms(event.time_per_token_s)} each, ended by {event.ended})"
    )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"


def _summary(attachment: Attachment, session: Session) -> dict[str, Any]:
    """Where the keys and values are at the end."""
    store, size = session.cache.store, session.cache.store.size()
    told = {"kind": "cache", "frames": session.n_frames, "tokens": session.cache.n_tokens}
    told |= asdict(size)
    if isinstance(store, TieredStore):
        told |= {"copies_bytes": store.copies_bytes, "file_bytes": store.file_bytes}
    return told | {"forward_s": round(session.cache.timing.forward_s, 3)}
