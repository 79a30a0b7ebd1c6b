"""Every file of a result folder. Deterministic: the same result gives the same bytes."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resv_sim.chrome_trace import trace_events
from resv_sim.progress import Progress
from resv_sim.results import ExperimentResult, ResultRow

if TYPE_CHECKING:
    from resv_sim.config import Experiment


def write_results(
    result: ExperimentResult, experiment: Experiment, folder: Path, progress: Progress | None = None
) -> None:
    """All files of one run into `folder`, which exists and is empty."""
    from resv_sim.plots import draw_figures
    from resv_sim.provenance import provenance
    from resv_sim.report import report_html, summary_markdown

    figures = draw_figures(result, experiment, folder / "figures", progress or Progress(quiet=True))
    texts = {
        "results.csv": csv_text(result.rows),
        "results.json": json_text(result_data(result)),
        "timeline.json": json_text(trace_events(result.timelines), indent=None),
        "config.resolved.yaml": experiment.as_yaml(),
        "summary.md": summary_markdown(result, experiment, figures),
        "report.html": report_html(result, experiment, figures, folder / "figures"),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    files = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
    manifest = json_text(provenance(experiment, [*files, "provenance.json"]))
    (folder / "provenance.json").write_text(manifest, encoding="utf-8", newline="\n")


def csv_text(rows: Sequence[ResultRow]) -> str:
    """The rows as CSV; floats in the shortest form that reads back equal, None as an empty cell.

    Raises ArithmeticError for a number that is not finite: it is a mistake upstream, never a result.
    """
    names = [field.name for field in fields(ResultRow)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        values = astuple(row)
        for name, value in zip(names, values, strict=True):
            if isinstance(value, float) and not math.isfinite(value):
                raise ArithmeticError(
                    f"{name} is {value} for {row.label} at {row.kv_len_tokens} tokens, {row.stage} stage"
                )
        writer.writerow([_cell(value) for value in values])
    return out.getvalue()


def _cell(value: object) -> str:
    if value is None:
        return ""
    return repr(float(value)) if isinstance(value, float) else str(value)


def result_data(result: ExperimentResult) -> dict[str, object]:
    """The whole result but for the timelines, as JSON types."""
    return {
        "rows": [asdict(row) for row in result.rows],
        "breakdown": [asdict(row) for row in result.breakdown],
        "retrieval_ratios": [
            {**asdict(key), "layer_by_kv_head": np.asarray(values).tolist()} for key, values in result.ratios.items()
        ],
        "area_mm2": {platform: dict(parts) for platform, parts in result.areas.items()},
        "dre_power_w": dict(result.dre_power),
        "trace_statistics": dict(result.trace_statistics),
        "published": [asdict(row) for row in result.published],
        "sensitivity": [asdict(row) for row in result.sensitivity],
        "assumptions": list(result.assumptions),
        "notes": list(result.notes),
    }


def json_text(data: Mapping[str, object], indent: int | None = 1) -> str:
    """JSON with keys in the order given; NumPy scalars become numbers. Refuses NaN and infinities."""
    return json.dumps(data, indent=indent, allow_nan=False, default=_plain, ensure_ascii=False) + "\n"


def _plain(value: object) -> object:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"cannot write a {type(value).__name__} as JSON")
