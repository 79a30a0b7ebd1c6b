"""What the steps of an exam would take on each platform: recorded selections through the main job's hardware stage.

The model is the embedded one, in its own size: its weights fit caches and its frames have ten tokens, so platforms
differ by what they pay per operation and per fetch, not by what an 8B model would make them pay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from resv.trace import ModelShape, Step
from resv_sim import pipeline
from resv_sim.accuracy.answering import Answers
from resv_sim.config import Experiment, Session
from resv_sim.functional import LayerOutcome
from resv_sim.hardware import layer_on_platform
from resv_sim.progress import Progress
from resv_sim.results import ResultRow
from resv_sim.rows import Point, stage_means


@dataclass(frozen=True)
class _Run:
    """As much of a `KVTrace` as the hardware stage looks at."""

    shape: ModelShape
    probes: tuple[Step, ...]


def platform_points(experiment: Experiment, policy: str, shape: ModelShape, answers: Answers) -> list[Point]:
    """A point per platform that runs the policy and per stage: means over the recorded steps.

    policy : its label in the experiment, whose selections `answers` holds;  shape : of the model that made them
    """
    mine = experiment.model_copy(update={"model": shape, "workload": Session()})
    config = mine.policies[policy]
    run = _Run(shape, answers.steps)
    points: list[Point] = []
    for pair in mine.runs:
        if pair.policy != policy:
            continue
        layers = []
        for chosen in answers.selections:
            placed = layer_on_platform(mine.platforms[pair.platform], config, run, chosen)  # type: ignore[arg-type]
            layers.append(pipeline.Layer(({policy: LayerOutcome(chosen, ())},), {pair.label: (placed,)}))
        found, _ = pipeline.run_points(mine, pair, [run], layers, "", Progress(quiet=True))  # type: ignore[list-item]
        points += found
    return points


def mean_rows(points: Sequence[Point]) -> list[ResultRow]:
    """One row per run and stage: means over the streams that were recorded."""
    runs = dict.fromkeys(point.row.label for point in points)
    return [mean.row for run in runs for mean in stage_means([p for p in points if p.row.label == run])]
