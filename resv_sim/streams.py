"""The streams of an experiment: one trace per member of the batch, and what the stream is like."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from resv.synthetic import build_trace
from resv.trace import KVTrace
from resv_sim.config import Experiment


@dataclass(frozen=True)
class Streams:
    """`notes` say what was skipped; `statistics` describe the first stream."""

    traces: tuple[KVTrace, ...]
    notes: tuple[str, ...]
    statistics: Mapping[str, object]


def make_streams(experiment: Experiment, advance: Callable[[], None]) -> Streams:
    """Build or open the traces. Raises VideoError, TraceError or ValueError where nothing can be probed."""
    if experiment.trace.recorded is not None:
        return _recorded(experiment, advance)
    traces, notes = [], []
    for index in range(experiment.workload.batch):
        trace = build_trace(
            experiment.model,
            experiment.video,
            experiment.trace.generator,
            experiment.workload.plan(),
            seed=experiment.trace.seed,
            batch_index=index,
        )
        traces.append(trace)
        notes += [f"stream {index}: {reason}" for reason in trace.skipped_lengths.values()]
        advance()
    if not traces[0].probes:
        raise ValueError(
            f"video: {traces[0].n_tokens} tokens are too few for every length in workload.kv_lengths_tokens "
            f"({', '.join(map(str, experiment.workload.kv_lengths_tokens))}). Use a longer clip, shorter lengths "
            "or video.loop: pingpong."
        )
    notes += _rounded(experiment, set(traces[0].skipped_lengths))
    return Streams(tuple(traces), tuple(dict.fromkeys(notes)), traces[0].describe())


def _rounded(experiment: Experiment, skipped: Collection[int]) -> list[str]:
    """A note on cache lengths that are no whole frames and were rounded down to them."""
    per_frame = experiment.model.tokens_per_frame
    changed = [
        f"{length} to {length // per_frame * per_frame}"
        for length in getattr(experiment.workload, "kv_lengths_tokens", ())
        if length % per_frame and length not in skipped
    ]
    if not changed:
        return []
    return [f"cache lengths rounded down to whole frames of {per_frame} tokens: {', '.join(changed)}"]


def _recorded(experiment: Experiment, advance: Callable[[], None]) -> Streams:
    from resv.trace_file import RecordedTrace, TraceError

    path = experiment.trace.recorded
    if experiment.workload.batch != 1:
        raise ValueError(
            f"workload.batch: {experiment.workload.batch} streams need as many traces; a recorded trace is one"
        )
    if path is None:
        raise TraceError("trace.recorded names no file")
    trace = RecordedTrace(path, experiment.model)
    advance()
    return Streams((trace,), (), trace.describe())
