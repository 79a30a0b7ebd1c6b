"""`resv-sim trace record`: what the attention of a model saw of a video, as a trace file for the simulator.

A session runs the model under a policy, and a `Recorder` beside it keeps keys, values and queries. Questions and
answers stay in the cache, so that they are part of the stream. Knows neither the format nor what a policy does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from resv.huggingface.attach import Attachment, attach, served_shape
from resv.huggingface.recording import Recorder
from resv.huggingface.session import Session, SessionConfig
from resv.mini.model import MiniModel
from resv.mini.picture import FRAME_PX
from resv.mini.streams import StreamConfig, make_stream
from resv.mini.tasks import Question
from resv.mini.weights import load_mini
from resv.trace import Step
from resv.trace_file import write_trace
from resv.video import VideoConfig, read_frames
from resv_sim.errors import ConfigError
from resv_sim.progress import Progress
from resv_sim.stream import check_times, model_of, policy_of, questions_of, side_px

MINI = "mini"
Echo = Callable[[str], None]


@dataclass(frozen=True)
class RecordJob:
    """video : None renders one;  n_frames : None = to the end of the file
    asks : "SECONDS: question", or a question alone for the end
    probe_every : frame steps from one whose queries are kept to the next; those of questions and answers always are
    """

    model: str
    video: Path | None
    output: Path
    policy: str
    settings: tuple[str, ...]
    fps: float
    n_frames: int | None
    asks: tuple[str, ...]
    max_new_tokens: int
    probe_every: int
    values: bool
    device: str
    dtype: str


class EveryNth:
    """Of the frame steps every n-th, beginning with the first; of the others all. As `probe` of a `Recorder`."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._numbers: dict[int, int] = {}  # of frame steps, by their first token

    def __call__(self, step: Step) -> bool:
        number = self._numbers.setdefault(step.first_token, len(self._numbers)) if step.kind == "frame" else 0
        return number % self._n == 0


def run_record(job: RecordJob, echo: Echo) -> None:
    """Run the stream and write the file, which appears when it is complete; temporary files lie beside it.

    Raises `ConfigError`, or what model, video, policy and trace raise.
    """
    folder = job.output.parent
    if not folder.is_dir():
        raise ConfigError(f"--output {job.output}: there is no folder {folder}")
    if job.model == MINI and job.asks:
        raise ConfigError(f"--ask: '{MINI}' knows its own words only; without --video it is asked what its streams ask")
    if job.output.is_dir():
        raise ConfigError(f"--output {job.output}: is a folder; name a file in it, like trace.safetensors")
    check_times(questions_of(job.asks), job.video, job.fps, job.n_frames)
    policy = policy_of(job.policy, job.settings)
    mini = load_mini() if job.model == MINI else None
    model = mini.llm if mini is not None else model_of(job.model, job.device, job.dtype)
    with closing(Recorder(probe=EveryNth(job.probe_every), folder=folder)) as recorder:
        with attach(model, policy, record=recorder) as attachment:
            steps = _session_steps(job, attachment, echo) if mini is None else _mini_steps(job, mini, attachment)
            with Progress().task("steps", job.n_frames or 0) as advance:
                for _ in steps:
                    advance()
        trace = recorder.trace()
        # What is simulated is the model as it is served, not this run in float32.
        served = served_shape(model)
        trace.shape = trace.shape.model_copy(update={"kv_bits": served.kv_bits, "weight_bits": served.weight_bits})
        write_trace(job.output, trace, values=job.values)
    n_frames = sum(step.kind == "frame" for step in trace.steps)
    echo(f"{job.output}: {trace.n_tokens} tokens, {n_frames} frame steps, {len(trace.probes)} probes")
    echo(f"resv-sim --config CONFIG --set trace.recorded={job.output} --set model={job.output}")


def _session_steps(job: RecordJob, attachment: Attachment, echo: Echo) -> Iterator[object]:
    """Run a session; yields after every step of it."""
    config = SessionConfig(fps=job.fps, max_new_tokens=job.max_new_tokens, dialogue="kept")
    session = Session(attachment, config=config)
    for note in session.notes:
        echo(f"Note: {note}")
    file = None if job.video is None else str(job.video)
    video = VideoConfig(file=file, fps=job.fps, size_px=side_px(attachment.model))
    frames = islice(read_frames(video, same_size=True), job.n_frames)
    yield from session.stream(frames, questions_of(job.asks))


def _mini_steps(job: RecordJob, mini: MiniModel, attachment: Attachment) -> Iterator[object]:
    """Frames of a file, or a stream of the model's own world with its questions."""
    asked: dict[int, list[Question]] = {}
    if job.video is None:
        own = make_stream(StreamConfig(n_frames=job.n_frames or 0))
        frames = own.frames
        for question in own.questions:
            asked.setdefault(question.frame, []).append(question)
    else:
        video = VideoConfig(file=str(job.video), fps=job.fps, size_px=FRAME_PX)
        frames = np.stack(list(islice(read_frames(video, same_size=True), job.n_frames)))
    stream = attachment.new_stream()
    for t, embeds in enumerate(mini.encode(frames[None])[0]):
        yield stream.forward(embeds[None], "frame")
        for question in asked.get(t, []):
            stream.forward(mini.embed(question.ids), "question")
