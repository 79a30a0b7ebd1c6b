"""What `resv-sim validate` does: read, compare, show."""

from __future__ import annotations

from pathlib import Path

import click

from resv_sim.progress import Progress
from resv_sim.validate import dram, report, suite


def validate(model: str, folder: Path | None, jobs: int, markdown: Path | None, *, as_json: bool) -> None:
    """Compare and print. Raises TableError for a bad table; progress goes to standard error."""
    tables = suite.tables_for(model, folder)
    progress = Progress()
    points = suite.run(tables, jobs, progress)
    progress.finished(f"{len(points)} figures of {len(tables)} tables compared")
    simulators = dram.between_simulators(tables)
    if markdown is not None:
        report.write_section(markdown, "hardware-models", report.markdown(points, simulators))
    if as_json:
        click.echo(report.json_text(points))
        return
    from rich.console import Console

    report.print_report(Console(), points, simulators)
