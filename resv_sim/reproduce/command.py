"""`resv-sim reproduce`: runs figures, prints them as a table or as JSON, writes figures and reproduce.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from resv_sim.errors import ConfigError
from resv_sim.output import MANIFEST, OutputFolder
from resv_sim.progress import Progress
from resv_sim.reproduce import FIGURES, Reproduction, chosen, reproduce
from resv_sim.reproduce.report import item_row, markdown, median_error, section, write_figures
from resv_sim.reproduce.study import Study
from resv_sim.validate.report import check_section, replace_section

SECTION = "the-paper"


def run(
    figures: Sequence[str], out: Path | None, jobs: int, document: Path | None, *, use_cache: bool, as_json: bool
) -> None:
    """Raises ConfigError or OutputError, before anything is run: figures unknown, or a document not to be written."""
    names = chosen(figures)
    if document is not None:
        if len(names) < len(FIGURES):
            raise ConfigError("--markdown writes all figures: resv-sim reproduce all --markdown FILE")
        check_section(document, SECTION)
    study = Study(Progress(quiet=as_json), jobs, use_cache=use_cache)
    if out is None and (as_json or document is not None):
        done = reproduce(names, study)
        _finish(done, document, as_json=as_json)
        return
    with OutputFolder(out or Path("results") / "reproduce") as folder:
        done = reproduce(names, study)
        write(done, folder.partial)
        folder.commit()
    _finish(done, document, as_json=as_json)
    if not as_json:
        click.echo(f"Report in {folder.path / 'reproduce.md'}")


def _finish(done: Sequence[Reproduction], document: Path | None, *, as_json: bool) -> None:
    if document is not None:
        replace_section(document, SECTION, section(done))
    (_print_json if as_json else _print_table)(done)


def write(done: Sequence[Reproduction], folder: Path) -> None:
    """The report, its figures, the numbers as JSON, and the list of files."""
    drawn = write_figures(done, folder / "figures")
    (folder / "reproduce.md").write_text(markdown(done, drawn), encoding="utf-8", newline="\n")
    (folder / "reproduce.json").write_text(_json_text(done) + "\n", encoding="utf-8", newline="\n")
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    manifest = json.dumps({"files": [*files, MANIFEST]}, indent=1) + "\n"
    (folder / MANIFEST).write_text(manifest, encoding="utf-8", newline="\n")


def _json_text(done: Sequence[Reproduction]) -> str:
    return json.dumps([item.plain() for r in done for item in r.items], indent=1, allow_nan=False, ensure_ascii=False)


def _print_json(done: Sequence[Reproduction]) -> None:
    click.echo(_json_text(done))


def _print_table(done: Sequence[Reproduction]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for r in done:
        table = Table(box=SIMPLE, show_edge=False, title=f"{r.name}: {r.figure.title}", title_justify="left")
        for name, justify in zip(("item", "ours", "published", "unit", "error", "role"), "lrrlrl", strict=True):
            table.add_column(name, justify="right" if justify == "r" else "left")
        for item in r.items:
            table.add_row(*item_row(item))
        if r.items:
            console.print(table)
        for plain in r.findings.tables:
            shown = Table(*plain.header, box=SIMPLE, show_edge=False, title=f"{r.name}: {r.figure.title}")
            for row in plain.rows:
                shown.add_row(*row)
            console.print(shown)
        for statement in r.findings.statements:
            detail = f": {statement.detail}" if statement.detail else ""
            console.print(f"{statement.verdict}: {statement.text}{detail}", highlight=False, markup=False)
        for text in (*r.findings.notes, *(f"Contradiction: {c.text}" for c in r.contradictions)):
            console.print(f"Note: {text}", highlight=False, markup=False)
    error = median_error([item for r in done for item in r.items])
    if error is not None:
        console.print(f"Median absolute error over all predictions: {100 * error:.1f} %", highlight=False)
