"""Shows comparisons: rich tables for a terminal, JSON for programs, a section of docs/validation.md.

Errors are shown in percent and signed where a single row stands; nothing is rounded before it is compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from resv_sim.errors import OutputError
from resv_sim.validate.comparison import (
    Limit,
    Point,
    beyond,
    group,
    limit_of,
    mean_abs_error,
    meets,
    summarise,
)
from resv_sim.validate.notes import INTRODUCTION, NOTES, WHAT
from resv_sim.validate.schemas import MODELS

if TYPE_CHECKING:
    from rich.console import Console

# Tables small enough to show every row.
EVERY_ROW = ("link", "gpu", "energy")
LISTED = 12
SUMMARY_HEADINGS = ("table", "metric", "rows", "median", "p90", "worst", "asked", "worst row")
STAGE_HEADINGS = ("stage", "platform", "rows", "mean", "asked", "with context rows")
ROW_HEADINGS = ("table and metric", "row", "ours", "reference", "unit", "error", "role")
NUMBERS = ("rows", "median", "mean", "p90", "worst", "ours", "reference", "error")
OTHER_MODE = "if at 50 W"


def json_text(points: Sequence[Point]) -> str:
    """The list of summaries and nothing else."""
    return json.dumps([asdict(summary) for summary in summarise(points)], indent=1)


def print_report(console: Console, points: Sequence[Point], simulators: Sequence[Point]) -> None:
    """Every model's summary, the rows beyond its limits, and every row of the small tables."""
    from rich.box import SIMPLE
    from rich.table import Table as RichTable

    for section in sections(points, simulators):
        console.print(f"[bold]{WHAT[section.model]}[/bold]: {section.title}", highlight=False)
        table = RichTable(box=SIMPLE, show_edge=False, padding=(0, 1, 0, 0))
        for heading in section.headings[1:]:
            table.add_column(heading, justify="right" if heading in NUMBERS else "left", no_wrap=heading in NUMBERS)
        above = ""
        for first, *rest in section.lines:
            if first != above:
                table.add_row(f"[bold]{first}[/bold]", style="cyan")
            table.add_row(*rest)
            above = first
        console.print(table)
        console.print()


def markdown(points: Sequence[Point], simulators: Sequence[Point]) -> str:
    """The body of the section "Hardware models"."""
    parts = ["## Hardware models", "", INTRODUCTION]
    model = ""
    for section in sections(points, simulators):
        if section.model != model:
            model = section.model
            parts += ["", f"### {WHAT[model]}", "", NOTES[model]]
        parts += ["", f"{section.title.capitalize()}:", "", _line(section.headings)]
        parts += [_line("---:" if heading in NUMBERS else "---" for heading in section.headings)]
        parts += map(_line, section.lines)
    return "\n".join([*parts, ""])


@dataclass(frozen=True)
class Section:
    """A table of text. The first column names what the following rows belong to."""

    model: str
    title: str
    headings: tuple[str, ...]
    lines: list[list[str]]


def sections(points: Sequence[Point], simulators: Sequence[Point]) -> Iterator[Section]:
    """Everything that is shown, model by model."""
    for model in MODELS:
        mine = [point for point in points if point.model == model]
        if not mine:
            continue
        yield Section(model, "summary", SUMMARY_HEADINGS, [_summary_line(*item) for item in group(mine).items()])
        if model == "gpu":
            yield Section(model, "mean error of validation rows, all precisions", STAGE_HEADINGS, _stage_lines(mine))
        if model == "dram" and simulators:
            lines = [_summary_line(key, members, judged=False) for key, members in group(simulators).items()]
            yield Section(model, "how far two trusted simulators of one device differ", SUMMARY_HEADINGS, lines)
        if model in EVERY_ROW:
            lines = [_row_line(point) for point in mine if OTHER_MODE not in point.metric]
            yield Section(model, "every row", ROW_HEADINGS, lines)
        else:
            yield Section(model, "rows beyond what is asked", ROW_HEADINGS, _rows_beyond(mine))


def _summary_line(key: tuple[str, str, str], members: Sequence[Point], *, judged: bool = True) -> list[str]:
    model, table, metric = key
    summary = summarise(members)[0]
    limit = limit_of(model, metric) if judged and members[0].role == "validate" else None
    errors = (summary.median_abs_error, summary.p90_abs_error, summary.worst_abs_error)
    return [table, metric, str(summary.n_rows), *map(_percent, errors), _judgement(limit, members), summary.worst_row]


def _judgement(limit: Limit | None, members: Sequence[Point]) -> str:
    """What is asked and whether it holds, or nothing where nothing is asked of the group."""
    if limit is None or (limit.median is limit.p90 is limit.mean is None):
        return ""
    bounds = [f"{100 * bound:g} %" for bound in (limit.median, limit.p90) if bound is not None]
    asked = f"mean {100 * limit.mean:g} %" if limit.mean is not None else " / ".join(bounds)
    return f"{asked}: {'met' if meets(limit, members) else 'NOT met'}"


def _stage_lines(points: Sequence[Point]) -> list[list[str]]:
    """Decode, prefill and vision, all precisions together: what the limit on the mean is about.

    Beside it the mean with the context rows, so that the choice of role hides nothing.
    """
    stages: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        if OTHER_MODE not in point.metric and limit_of("gpu", point.metric):
            stage, platform = point.metric.split(", ")
            for where in (platform.split()[0], "all platforms"):
                stages.setdefault((stage, where), []).append(point)
    lines = []
    for (stage, where), members in sorted(stages.items()):
        valid = [point for point in members if point.role == "validate"]
        numbers = [str(len(valid)), _percent(mean_abs_error(valid))] if valid else ["0", ""]
        judged = _judgement(limit_of("gpu", stage), valid) if valid else ""
        lines.append([stage, where, *numbers, judged, f"{_percent(mean_abs_error(members))} of {len(members)}"])
    return lines


def _rows_beyond(points: Sequence[Point]) -> list[list[str]]:
    """The worst rows of each group; a last line says how many more there are."""
    lines: list[list[str]] = []
    for (model, table, metric), members in group(points).items():
        limit = limit_of(model, metric)
        far = beyond(limit, members) if limit else []
        lines += map(_row_line, far[:LISTED])
        if len(far) > LISTED:
            lines.append([f"{table}: {metric}", f"and {len(far) - LISTED} more of {len(members)}", *[""] * 5])
    return lines or [["none", *[""] * 6]]


def _row_line(point: Point) -> list[str]:
    values = f"{point.ours:.4g}", f"{point.reference:.4g}"
    error = f"{100 * point.error:+.1f} %"
    return [f"{point.table}: {point.metric}", point.row, *values, point.unit, error, point.role]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


# -- sections of pages ----------------------------------------------------------------------------------------


def replace_section(path: Path, name: str, body: str) -> None:
    """Replace what stands between the marks of one section of any Markdown file and leave the rest as it is.

    Sections stand between `<!-- begin generated: NAME -->` and `<!-- end generated: NAME -->`.
    Raises as `check_section`.
    """
    check_section(path, name)
    before, begin, rest = path.read_text(encoding="utf-8").partition(_begin(name))
    _, end, after = rest.partition(_end(name))
    path.write_text(f"{before}{begin}\n{body.strip()}\n{end}{after}", encoding="utf-8")


def check_section(path: Path, name: str) -> None:
    """Raise OutputError where the file is not there or lacks the marks of a section."""
    if not path.exists():
        raise OutputError(f"{path}: no such file, so it has no marks {_begin(name)} and {_end(name)}")
    _, begin, rest = path.read_text(encoding="utf-8").partition(_begin(name))
    if not begin or _end(name) not in rest:
        raise OutputError(f"{path}: the marks {_begin(name)} and {_end(name)} are not both there")


def _begin(name: str) -> str:
    return f"<!-- begin generated: {name} -->"


def _end(name: str) -> str:
    return f"<!-- end generated: {name} -->"
