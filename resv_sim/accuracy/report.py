"""A benchmark's files: CSV tables, one JSON with everything, the table as Markdown, and figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from resv_sim.accuracy.benchmark import Benchmark, BenchmarkResult
from resv_sim.accuracy.table import BLIND, AccuracyRow, PairRow, TaskRow
from resv_sim.provenance import provenance
from resv_sim.results import ResultRow
from resv_sim.writing import json_text

STAGES = {"both": "frame and text", "frame": "frame", "text": "text"}


def write_benchmark(result: BenchmarkResult, benchmark: Benchmark, folder: Path) -> None:
    """All files into `folder`, which exists and is empty."""
    from resv_sim.accuracy.figures import draw_benchmark

    figures = draw_benchmark(result, benchmark, folder / "figures")
    texts = {
        "accuracy.csv": _csv([f.name for f in fields(AccuracyRow)], map(_values, result.rows)),
        "tasks.csv": _csv([f.name for f in fields(TaskRow)], map(_values, result.tasks)),
        "pairs.csv": _csv([f.name for f in fields(PairRow)], map(_values, result.pairs)),
        "platforms.csv": _csv(
            ["n_frames", *(f.name for f in fields(ResultRow))],
            ((priced.n_frames, *_values(priced.row)) for priced in result.priced),
        ),
        "accuracy.json": result_json(result, benchmark),
        "summary.md": summary(result, benchmark, [figure.name for figure in figures]),
        "config.resolved.yaml": benchmark.experiment.as_yaml(),
    }
    if result.studies:
        texts["studies.csv"] = _studies(result)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    manifest = json_text(provenance(benchmark.experiment, [*files, "provenance.json"]))
    (folder / "provenance.json").write_text(manifest, encoding="utf-8", newline="\n")


def result_json(result: BenchmarkResult, benchmark: Benchmark) -> str:
    """Everything that was measured, and on what."""
    return json_text(
        {
            "benchmark": benchmark.experiment.name,
            "accuracy": benchmark.exam.model_dump(mode="json"),
            "policies": benchmark.experiment.plain()["policies"],
            "rows": [asdict(row) for row in result.rows],
            "tasks": [asdict(row) for row in result.tasks],
            "pairs": [asdict(row) for row in result.pairs],
            "platforms": [{"n_frames": priced.n_frames, **asdict(priced.row)} for priced in result.priced],
            "studies": [{"study": p.study, "names": dict(p.names), **asdict(p.row)} for p in result.studies],
            "notes": list(result.notes),
        }
    )


def _studies(result: BenchmarkResult) -> str:
    axes = list(dict.fromkeys(name for point in result.studies for name in point.names))
    header = ["study", *axes, *(f.name for f in fields(AccuracyRow))]
    rows = ((p.study, *(p.names.get(axis) for axis in axes), *_values(p.row)) for p in result.studies)
    return _csv(header, rows)


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([["" if value is None else value for value in row] for row in rows])
    return out.getvalue()


def _values(row: Any) -> list[Any]:
    return [getattr(row, field.name) for field in fields(row)]


# -- the table ----------------------------------------------------------------------------------------------


def cells(row: AccuracyRow, result: BenchmarkResult) -> dict[str, str]:
    """One line of the table, by column."""
    drop = 100 * row.accuracy_drop
    out = {
        "policy": row.policy,
        "stages": STAGES[row.stages],
        "frames": str(row.n_frames),
        "accuracy (%)": interval(row.accuracy, row.accuracy_low, row.accuracy_high),
        "drop (points), p": f"{drop:.1f}, {p_value(row.p_value)}",
        "narration (%)": interval(row.narration, row.narration_low, row.narration_high),
        "kept in frames (%)": percent(row.frame_kept),
        "kept in questions (%)": percent(row.text_kept),
        "fetched per frame (kB)": thousands(row.frame_fetched_bytes),
    }
    if row.policy == BLIND:
        out |= {"stages": "", "drop (points), p": f"{drop:.1f}"}
    for platform in dict.fromkeys(priced.row.platform for priced in result.priced):
        at = priced_row(result, row, platform)
        out[f"{platform} per frame"] = "" if at is None else f"{1e3 * at.latency_s:.3g} ms, {1e3 * at.energy_j:.3g} mJ"
    return out


def priced_row(result: BenchmarkResult, row: AccuracyRow, platform: str) -> ResultRow | None:
    """What a frame of a row's exam takes on a platform; None where its stages were not priced."""
    first = next((r.stages for r in result.rows if r.policy != BLIND), row.stages)
    if row.stages != first or row.policy == BLIND:
        return None
    found = [
        p.row
        for p in result.priced
        if (p.n_frames, p.row.policy, p.row.platform, p.row.stage) == (row.n_frames, row.policy, platform, "frame")
    ]
    return found[0] if found else None


def interval(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def thousands(value: float | None) -> str:
    return "" if value is None else f"{value / 1e3:.1f}"


def p_value(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def terminal_table(result: BenchmarkResult) -> Any:
    """For rich; stages and frames only where they differ."""
    from rich.table import Table

    lines = [cells(row, result) for row in result.rows]
    alike = {name for name in ("stages", "frames") if len({line[name] for line in lines[1:]}) == 1}
    shown = [name for name in lines[0] if name not in alike]
    table = Table(box=None, pad_edge=False)
    for name in shown:
        table.add_column(name, justify="left" if name in ("policy", "stages") else "right")
    for line in lines:
        table.add_row(*(line[name] for name in shown))
    return table


def markdown_table(lines: Sequence[dict[str, str]]) -> str:
    """Lines of equal columns."""
    header = list(lines[0])
    rows = [header, ["---"] * len(header), *([line[name] for name in header] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def task_table(result: BenchmarkResult) -> str:
    """Accuracy by task, one line per row of the table."""
    lines = []
    for row in result.rows:
        key = (row.policy, row.stages, row.n_frames)
        mine = [t for t in result.tasks if (t.policy, t.stages, t.n_frames) == key]
        stages = "" if row.policy == BLIND else STAGES[row.stages]
        line = {"policy": row.policy, "stages": stages, "frames": str(row.n_frames)}
        line |= {t.task: interval(t.accuracy, t.accuracy_low, t.accuracy_high) for t in mine}
        lines.append({**line, "speak": percent(row.speak), "silent": percent(row.silent)})
    return markdown_table(lines)


def tables(result: BenchmarkResult, benchmark: Benchmark) -> str:
    """What was measured, on what, as Markdown."""
    exam = benchmark.exam
    notes = "\n".join(f"- {note}" for note in result.notes)
    return (
        f"""{exam.n_streams} streams of {exam.n_frames} frames ({exam.level}, split {exam.split}, seeds \
{exam.first_seed} to {exam.seeds[-1]}), each asked {len(exam.tasks)} questions at {exam.moments} moments. Intervals: \
Wilson, 95 %. Drop and p-value: against '{benchmark.config.reference}' on the same questions, McNemar's exact test. \
Kept: attended / cached tokens. Latency and energy: mean frame step of the same run, of the embedded model in its own \
size.

{markdown_table([cells(row, result) for row in result.rows])}

By task, and narration of frames with something new (speak) and without (silent):

{task_table(result)}

{notes}
""".rstrip()
        + "\n"
    )


def summary(result: BenchmarkResult, benchmark: Benchmark, figures: Sequence[str]) -> str:
    """The page of a result folder."""
    pictures = "\n".join(f"![{name}](figures/{name}.png)" for name in figures)
    return f"# {benchmark.experiment.name}\n\n{tables(result, benchmark)}\n{pictures}\n"
