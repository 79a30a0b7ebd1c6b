"""What `resv-sim validate` does: read, compare, show."""

from __future__ import annotations

from pathlib import Path

import click

from resv_sim.errors import ConfigError
from resv_sim.progress import Progress
from resv_sim.validate import dram, report, suite

SECTION = "hardware-models"


def validate(model: str, folder: Path | None, jobs: int, markdown: Path | None, *, as_json: bool) -> None:
    """Compare and print; progress goes to standard error.

    Raises, before anything is compared, TableError for a bad table, and ConfigError or OutputError for a page whose
    section would be incomplete or has no marks.
    """
    if markdown is not None:
        if model != "all":
            raise ConfigError("--markdown writes all models: resv-sim validate all --markdown FILE")
        report.check_section(markdown, SECTION)
    tables = suite.tables_for(model, folder)
    progress = Progress()
    points = suite.run(tables, jobs, progress)
    progress.finished(f"{len(points)} figures of {len(tables)} tables compared")
    simulators = dram.between_simulators(tables)
    if markdown is not None:
        report.replace_section(markdown, SECTION, report.markdown(points, simulators))
    if as_json:
        click.echo(report.json_text(points))
        return
    from rich.console import Console

    report.print_report(Console(), points, simulators)
