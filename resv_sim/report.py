"""The result in words and tables: `summary.md`, the self-contained `report.html`, the terminal's table.

Formats; computes nothing. One list of tables feeds the first two.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from resv_sim.plots.style import FigureFile, length_name, number
from resv_sim.results import ExperimentResult, ResultRow, sensitivity_ranges

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from resv_sim.config import Experiment

TEMPLATES = Path(__file__).resolve().parent / "templates"
HEADLINE = (
    ("label", "run", ""),
    ("kv_len_tokens", "cache", "length"),
    ("stage", "stage", ""),
    ("latency_s", "latency", "ms"),
    ("bound_s", "bound", "ms"),
    ("speedup", "speedup", "x"),
    ("energy_j", "energy", "J"),
    ("energy_gain", "energy gain", "x"),
    ("power_w", "power", "W"),
    ("retrieval_ratio", "retrieved", "%"),
    ("attention_mass_kept", "mass kept", "%"),
    ("link_bytes", "link", "MB"),
    ("prediction_s", "prediction", "ms"),
    ("exposed_fetch_s", "exposed fetch", "ms"),
)
SCALE = {"%": 100, "ms": 1000, "MB": 1e-6}
LONGEST_RUN = 23  # characters that a terminal of 80 columns has for a run
TERMINAL = ("run", "cache", "stage", "latency", "speedup", "energy", "energy gain", "retrieved")


@dataclass(frozen=True)
class Table:
    """A titled table of text; `numeric` columns are set flush right."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...]
    note: str = ""


def summary_markdown(result: ExperimentResult, experiment: Experiment, figures: Sequence[FigureFile]) -> str:
    """The report as Markdown, with the figures by reference."""
    lines = [f"# {experiment.name}", "", experiment.description.strip(), "", *_facts(experiment), ""]
    for table in tables(result, experiment):
        lines += [f"## {table.title}", "", *([table.note, ""] if table.note else []), *_markdown(table), ""]
    for title, items in _lists(result):
        lines += [f"## {title}", "", *[f"- {item}" for item in items], ""]
    lines += ["## Figures", ""]
    for figure in figures:
        lines += [f"![{figure.title}](figures/{figure.name}.png)", "", figure.caption, ""]
    return "\n".join(lines).rstrip() + "\n"


def report_html(result: ExperimentResult, experiment: Experiment, figures: Sequence[FigureFile], folder: Path) -> str:
    """The report as one self-contained page; pictures are read from `folder` and embedded."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    pictures = [(figure, base64.b64encode((folder / f"{figure.name}.svg").read_bytes()).decode()) for figure in figures]
    return environment.get_template("report.html.j2").render(
        name=experiment.name,
        description=experiment.description,
        facts=_facts(experiment),
        tables=tables(result, experiment),
        lists=_lists(result),
        figures=pictures,
        config=experiment.as_yaml(),
    )


def tables(result: ExperimentResult, experiment: Experiment) -> list[Table]:
    """Every table that this result has rows for."""
    found = (
        headline(result.rows, experiment.baseline.label),
        _published(result),
        _uncertain_prices(result),
        _stream(result),
        _areas(result),
    )
    return [table for table in found if table.rows]


def headline(rows: Iterable[ResultRow], baseline: str) -> Table:
    """The main table: one line per run, cache length and stage."""
    header = tuple(f"{title} ({unit})" if unit not in ("", "length") else title for _, title, unit in HEADLINE)
    body = [tuple(_cell(getattr(row, name), unit) for name, _, unit in HEADLINE) for row in rows]
    note = f"Speedup and energy gain over {baseline}. Bound: bytes over bandwidth; no latency is below it."
    return _table("Results", header, body, note)


def _published(result: ExperimentResult) -> Table:
    header = ("figure", "item", "ours", "published", "unit", "error", "role")
    rows = [
        (p.figure, p.item, number(p.ours), number(p.published), p.unit, f"{100 * p.error:+.1f} %", p.role)
        for p in result.published
    ]
    note = "Error is ours / published - 1. A calibration row has set a constant; a prediction has not."
    return _table("Published figures and ours", header, rows, note)


def _uncertain_prices(result: ExperimentResult) -> Table:
    header = ("price", "values", "unit", "run", "cache", "stage", "energy gain (x)")
    rows = [
        (
            r.parameter,
            " / ".join(number(value) for value in r.values),
            r.unit,
            r.label,
            length_name(r.kv_len_tokens),
            r.stage,
            " / ".join(number(gain) for gain in r.gains),
        )
        for r in sensitivity_ranges(result.sensitivity)
    ]
    note = (
        "The energy gain over the baseline at other values of a price's range. Prices that move it by less than 1 % "
        "are left out; results.json has them all."
    )
    return _table("What uncertain prices do to the conclusion", header, rows, note)


def _stream(result: ExperimentResult) -> Table:
    plain = {name: v for name, v in result.trace_statistics.items() if not isinstance(v, Mapping)}
    rows = [(name, _value(value)) for name, value in plain.items()]
    return _table("The stream", ("statistic", "value"), rows)


def _areas(result: ExperimentResult) -> Table:
    rows = [
        (platform, unit, number(area), f"{100 * area / sum(parts.values()):.2f} %")
        for platform, parts in result.areas.items()
        for unit, area in parts.items()
    ]
    return _table("Area", ("platform", "unit", "area (mm2)", "share"), rows)


def terminal_table(rows: Sequence[ResultRow], experiment: Experiment) -> RichTable:
    """The main table for a terminal of 80 columns."""
    from rich.box import SIMPLE
    from rich.table import Table as RichTable

    table = RichTable(box=SIMPLE, show_edge=False, padding=0, title=experiment.name, title_justify="left")
    columns = [column for column in HEADLINE if column[1] in TERMINAL]
    for _, title, unit in columns:
        words = f"{title} ({unit})" if unit not in ("", "length") else title
        justify: Literal["left", "right"] = "right" if unit else "left"
        table.add_column(words.replace(" ", "\n", 1), justify=justify, no_wrap=True)
    for row in rows:
        run, *cells = (_cell(getattr(row, name), unit) for name, _, unit in columns)
        table.add_row(run if len(run) <= LONGEST_RUN else run.replace("+", "\n+"), *cells)
    return table


def _cell(value: object, unit: str) -> str:
    if value is None:
        return ""
    if unit == "length" and isinstance(value, int):
        return length_name(value)
    if isinstance(value, (int, float)):
        return number(SCALE.get(unit, 1) * value)
    return str(value)


def _value(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)


def _facts(experiment: Experiment) -> list[str]:
    from resv_sim.provenance import git_revision, version_text

    revision = git_revision()
    source = str(experiment.trace.recorded or experiment.video.file or "rendered default video")
    return [
        f"Model {experiment.model.name}, batch {experiment.workload.batch}, source: {Path(source).name}, "
        f"seed {experiment.trace.seed}.",
        f"Made by resv-sim {version_text()}{f' at {revision[:12]}' if revision else ''}, "
        f"configuration {experiment.config_hash()}.",
    ]


def _lists(result: ExperimentResult) -> list[tuple[str, tuple[str, ...]]]:
    return [(title, items) for title, items in (("Assumptions", result.assumptions), ("Notes", result.notes)) if items]


def _table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> Table:
    body = tuple(tuple(row) for row in rows)
    numeric = tuple(bool(body) and all(_is_number(row[i]) for row in body) for i in range(len(header)))
    return Table(title, tuple(header), body, numeric, note)


def _is_number(text: str) -> bool:
    return not text or text[0] in "+-0123456789"


def _markdown(table: Table) -> list[str]:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    rule = "|" + "|".join("---:" if numeric else "---" for numeric in table.numeric) + "|"
    return [line(table.header), rule, *(line(row) for row in table.rows)]
