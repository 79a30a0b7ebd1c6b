"""What the report says beside the rows: assumptions, which timelines to show, how the gain moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dre_sim.platforms import VRexConfig
from dre_sim.timeline import Timeline
from energy_models.pricing import CapError
from energy_models.scaling import UnitParameters
from energy_models.sensitivity import Case, ranges, sensitivity
from resv_sim.config import Experiment
from resv_sim.hardware import prices
from resv_sim.results import RatioKey, SensitivityRow
from resv_sim.rows import Point

Parameters = Callable[[Experiment, str], UnitParameters | None]


def shown_timelines(points: Sequence[Point]) -> dict[str, Timeline]:
    """One step per run: a frame where there is one, at the longest cache."""
    out: dict[str, Timeline] = {}
    for label in dict.fromkeys(p.row.label for p in points):
        mine = [p for p in points if p.row.label == label]
        frames = [p for p in mine if p.row.stage == "frame"] or mine
        longest = max(frames, key=lambda p: p.row.kv_len_tokens)
        row = longest.row
        out[f"{label} {row.stage} at {row.kv_len_tokens} tokens"] = longest.timeline
    return out


def ratio_statistics(ratios: Mapping[RatioKey, NDArray[np.float64]]) -> dict[str, object]:
    """Spread of ReSV's retrieval ratio over layers in the frame stage at the shortest cache (Fig. 20)."""
    frames = {key: values for key, values in ratios.items() if key.stage == "frame" and np.any(values)}
    if not frames:
        return {}
    shortest = min(frames, key=lambda key: key.kv_len_tokens)
    by_layer = frames[shortest].mean(axis=1)
    return {"layer_ratio_min": float(by_layer.min()), "layer_ratio_max": float(by_layer.max())}


def assumptions(experiment: Experiment) -> Iterator[str]:
    """What the numbers rest on, one sentence each."""
    if experiment.trace.recorded is None:
        source = experiment.video.file or "the rendered default video"
        yield (
            f"Keys, queries and values are synthetic, made from {source}; the generator is calibrated on what "
            "the paper measured on COIN, not on a trained model."
        )
    for label in dict.fromkeys(r.platform for r in experiment.runs):
        config = experiment.platforms[label]
        text = " ".join(config.description.split()) or config.name
        yield f"{label}: {text.rstrip('.')}. Prices: {experiment.energy[label].name}."
    for label in dict.fromkeys(r.policy for r in experiment.runs):
        policy = experiment.policies[label]
        capacity = _capacity(policy.recent_bytes)
        yield f"Policy {label}: device capacity for the KV cache {capacity}; recent tokens: {policy.recent}."
    if any(isinstance(experiment.platforms[r.platform], VRexConfig) for r in experiment.runs):
        yield (
            "V-Rex streams every weight of a layer from memory once per step; what overlaps follows from "
            "dependencies and shared resources, not from a factor."
        )


def _capacity(recent_bytes: int | None) -> str:
    return "no limit" if recent_bytes is None else f"{recent_bytes} bytes"


def resident_notes(experiment: Experiment, points: Sequence[Point]) -> Iterator[str]:
    """Says where policies had nothing to choose from of what is cached, which otherwise is an empty cell."""
    alike: dict[tuple[tuple[int, ...], int | None, bool], list[str]] = {}
    nothing = [p.row for p in points if p.row.retrieval_ratio is None and p.row.kv_len_tokens]
    for label in dict.fromkeys(row.policy for row in nothing):
        empty = {row.kv_len_tokens for row in nothing if row.policy == label}
        policy = experiment.policies[label]
        alike.setdefault((tuple(sorted(empty)), policy.recent_bytes, policy.recent == "exempt"), []).append(label)
    for (lengths, device_bytes, exempt), labels in alike.items():
        who = f"Policy {labels[0]} retrieves" if len(labels) == 1 else f"Policies {', '.join(labels)} retrieve"
        why = (
            f"the whole cache is on the device ({_capacity(device_bytes)}) and exempt. Lower policies.{labels[0]}."
            "recent_bytes, or run coin_session.yaml, where every cached token competes, for ratios."
            if exempt
            else "no cached token competes, all are always attended."
        )
        yield f"{who} nothing at {', '.join(map(str, lengths))} tokens: {why}"


def training_warnings(experiment: Experiment) -> Iterator[str]:
    """Says which policies ran without the training or calibration that they were made with."""
    labels = [label for label in dict.fromkeys(r.policy for r in experiment.runs) if experiment.policies[label].trained]
    if not labels:
        return
    stream = "keys and queries are synthetic" if experiment.trace.recorded is None else "nothing says that this one was"
    needs = "needs" if len(labels) == 1 else "need"
    yield (
        f"Warning: {', '.join(labels)} {needs} a model trained or calibrated for it, and {stream}: latency, energy and "
        "bytes hold, what is kept of the attention is no measure of the policy."
    )


def sensitivity_rows(
    experiment: Experiment, points: Sequence[Point], parameters: Parameters
) -> Iterator[SensitivityRow]:
    """Energy gain over the baseline with each uncertain price at the ends of its range.

    For every other run, in the first stage, at the shortest and the longest cache. A price is left out where a power
    mode has no room for one of the ends.
    """
    base = {(p.row.kv_len_tokens, p.row.stage): p for p in points if p.row.label == experiment.baseline.label}
    for label in dict.fromkeys(p.row.label for p in points):
        mine = [p for p in points if p.row.label == label and p.row.stage == points[0].row.stage]
        if label == experiment.baseline.label or not mine:
            continue
        for p in mine[:1] + mine[1:][-1:]:
            reference = base.get((p.row.kv_len_tokens, p.row.stage))
            if reference is not None:
                yield from _moved(experiment, reference, p, parameters)


def _moved(experiment: Experiment, reference: Point, point: Point, parameters: Parameters) -> Iterator[SensitivityRow]:
    cases = [_case(experiment, p, parameters) for p in (reference, point)]
    known: dict[str, Any] = {**ranges(cases[0].table), **ranges(cases[1].table)}
    for name, values in known.items():
        try:
            gains = sensitivity(cases[0], cases[1], name)
        except CapError:
            continue
        for value, gain in zip(values, gains, strict=True):
            row = point.row
            yield SensitivityRow(
                name, _unit(cases, name), value, row.platform, row.policy, row.kv_len_tokens, row.stage, gain
            )


def _case(experiment: Experiment, point: Point, parameters: Parameters) -> Case:
    platform = point.row.platform
    return Case(
        point.timeline,
        prices(experiment.platforms[platform], experiment.energy[platform]),
        parameters(experiment, platform),
    )


def _unit(cases: Sequence[Case], name: str) -> str:
    row = next(c.table.rows()[name] for c in reversed(cases) if name in c.table.rows())
    return {"cost_pj": f"pJ {getattr(row, 'unit', '')}".strip(), "power_w": "W", "share": "1"}[row.VALUE]
