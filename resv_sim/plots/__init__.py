"""Figures of a result: which ones, with what captions. Only this package knows matplotlib.

A figure is drawn where the result holds what it shows, and left out otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resv_sim.plots.style import RC, FigureFile, family, save
from resv_sim.progress import Progress
from resv_sim.results import ExperimentResult

if TYPE_CHECKING:
    from resv_sim.config import Experiment

Drawing = tuple[FigureFile, Callable[[], Any]]


def draw_figures(
    result: ExperimentResult, experiment: Experiment, folder: Path, progress: Progress
) -> list[FigureFile]:
    """Draw everything this result has data for into `folder`, as PNG and SVG."""
    import matplotlib

    drawings = list(_drawings(result, experiment))
    with matplotlib.rc_context(RC), progress.task("figures", len(drawings)) as advance:
        for file, draw in drawings:
            save(draw(), folder, file.name, experiment.report.figure_dpi)
            advance()
    return [file for file, _ in drawings]


def _drawings(result: ExperimentResult, experiment: Experiment) -> Iterator[Drawing]:
    yield from _over_length(result, experiment.baseline.label)
    yield from _fidelity(result)
    yield from _of_parts(result)
    policies = {row.policy for row in result.rows}
    for label, timeline in result.timelines.items():
        policy = label.partition(" ")[0].partition("+")[2]
        if family(policy, policies) == policy:
            yield _timeline(label, timeline, experiment.report.timeline_layers)
    sensitivity = [row for row in result.sensitivity if family(row.policy, policies) == row.policy]
    from resv_sim.plots.tornado import panels, tornado

    if panels(sensitivity):
        caption = "Energy gain when a price that is not known well takes any value of its range."
        file = FigureFile("sensitivity", "Energy gain over uncertain prices", caption)
        yield file, partial(tornado, sensitivity)


def _over_length(result: ExperimentResult, baseline: str) -> Iterator[Drawing]:
    from resv_sim.plots.curves import bars, latency, leading

    rows = leading(result.rows)
    if len({(row.stage, row.kv_len_tokens) for row in rows}) == len({row.stage for row in rows}):
        file = FigureFile("latency", "Latency", "Latency of one step of each stage.")
        yield file, partial(bars, rows, "latency_s", "latency (s)")
    else:
        caption = "Latency of one step over the cache length; open circles are the paper's figures."
        yield FigureFile("latency", "Latency", caption), partial(latency, rows, result.published)
    for column, title in (("speedup", "Speedup"), ("energy_gain", "Energy gain")):
        if any(getattr(row, column) is not None and row.label != baseline for row in rows):
            file = FigureFile(column, title, f"{title} over {baseline}, by cache length and stage.")
            yield file, partial(bars, rows, column, f"{title.lower()} (x)", baseline)


def _fidelity(result: ExperimentResult) -> Iterator[Drawing]:
    from resv_sim.plots import fidelity

    stages = fidelity.compared(result.rows)
    for stage in stages:
        caption = (
            f"What each policy keeps of full attention against what a {stage} step costs, at the longest cache. Points "
            "joined by a line are budgets of one policy."
        )
        file = FigureFile(f"fidelity_{stage}", f"Fidelity and cost, {stage} stage", caption)
        yield file, partial(fidelity.fidelity, result.rows, stage)
    if stages and len({row.kv_len_tokens for row in result.rows}) > 1:
        caption = "What each policy keeps of full attention over the cache length, the same on every platform."
        yield (
            FigureFile("fidelity_length", "Fidelity over the cache length", caption),
            partial(fidelity.kept_over_length, result.rows),
        )


def _of_parts(result: ExperimentResult) -> Iterator[Drawing]:
    from resv_sim.plots import parts

    policies = {row.policy for row in result.rows}
    breakdown = [row for row in result.breakdown if family(row.policy, policies) == row.policy]
    for stage in dict.fromkeys(row.stage for row in breakdown if row.exposed_s > 0):
        caption = f"Where the latency of a {stage} step is exposed; the latency stands on each bar."
        file = FigureFile(f"breakdown_{stage}", f"Latency breakdown, {stage} stage", caption)
        yield file, partial(parts.breakdown, breakdown, stage)
    dre = {name: areas for name, areas in result.areas.items() if set(parts.DRE_UNITS) & set(areas)}
    for platform, areas in dre.items():
        caption = f"Area of {platform} and power of one core; units of the retrieval engine in red."
        file = FigureFile(f"area_power_{platform}", f"Area and power, {platform}", caption)
        yield file, partial(parts.area_and_power, areas, result.dre_power)
    if result.ratios:
        ratios = [key for key in result.ratios if family(key.policy, policies) == key.policy]
        longest = {(key.policy, key.stage): key for key in sorted(ratios, key=lambda k: k.kv_len_tokens)}
        shown = {key: values for key, values in result.ratios.items() if key in longest.values()}
        caption = "Share of the candidate tokens that is retrieved, at the longest cache of each stage."
        file = FigureFile("retrieval_ratio", "Retrieval ratio by layer and head", caption)
        yield file, partial(parts.retrieval_ratios, shown)


def _timeline(label: str, timeline: Any, n_layers: int) -> Drawing:
    from resv_sim.plots.gantt import gantt

    name = "".join(c if c.isalnum() else "_" for c in label)
    caption = f"{label}: layers from the middle of the step; all of it is in timeline.json."
    file = FigureFile(f"timeline_{name}", f"Timeline, {label}", caption)
    return file, partial(gantt, timeline, label, n_layers)
