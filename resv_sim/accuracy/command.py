"""`resv-sim accuracy`: load a benchmark, run it, write its folder, print its table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

import click

from resv_sim.accuracy.benchmark import Benchmark, benchmark_of, run_benchmark
from resv_sim.accuracy.report import result_json, tables, terminal_table, write_benchmark
from resv_sim.config import load_tree
from resv_sim.memo import Memo, cache_directory
from resv_sim.output import OutputFolder
from resv_sim.validate.report import check_section, replace_section

_FILE_WIDTH = 200  # characters of a table that goes to no terminal


def run(
    config: str,
    policies: Sequence[str],
    settings: Sequence[str],
    out: Path | None,
    jobs: int,
    *,
    markdown: Path | None = None,
    studies: bool = False,
    use_cache: bool = True,
    as_json: bool = False,
) -> None:
    """Raises ValueError or a subclass on what the user can mend."""
    if markdown is not None:
        check_section(markdown, "accuracy")
    tree, source = load_tree(config, settings)
    benchmark = benchmark_of(tree, source, policies)
    click.echo(f"{benchmark.experiment.name}: {source}", err=True)
    with OutputFolder(out or Path("results") / benchmark.experiment.name) as folder:
        start = perf_counter()
        result = run_benchmark(
            benchmark, Memo(cache_directory() if use_cache else None), jobs, studies=studies, advance=_told(benchmark)
        )
        click.echo(f"{perf_counter() - start:.0f} s", err=True)
        write_benchmark(result, benchmark, folder.partial)
        folder.commit()
    if markdown is not None:
        replace_section(markdown, "accuracy", tables(result, benchmark))
    if as_json:
        click.echo(result_json(result, benchmark), nl=False)
        return
    from rich.console import Console

    console = Console()
    wide = console if console.is_terminal else Console(width=_FILE_WIDTH)
    wide.print(terminal_table(result))
    for note in result.notes:
        console.print(f"Note: {note}", highlight=False, markup=False)
    console.print(f"Results in {folder.path}", highlight=False, markup=False, soft_wrap=True)


def as_settings(
    frames: int | None,
    streams: int | None,
    level: str | None,
    seed: int | None,
    stages: str | None,
    weights: str | None,
) -> list[str]:
    """Options as overrides of the file's values."""
    exam = {"n_frames": frames, "n_streams": streams, "level": level, "first_seed": seed, "weights": weights}
    out = [f"accuracy.{name}={value}" for name, value in exam.items() if value is not None]
    return [*out, f"benchmark.stages=[{stages}]"] if stages is not None else out


def _told(benchmark: Benchmark) -> Callable[[str], None]:
    done = 0

    def tell(label: str) -> None:
        nonlocal done
        done += 1
        print(f"{label}: part {done} done", file=sys.stderr, flush=True)

    return tell
