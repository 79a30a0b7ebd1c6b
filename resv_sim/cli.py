"""The command line: run an experiment, list what is bundled, look at a trace file.

Everything heavy is imported when it is needed, so that `--help` answers at once. What the user can mend
ends in one paragraph on standard error and exit code 2; `--debug` shows the traceback instead.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from resv_sim.yaml_source import Node

COMMAND = "resv-sim"
_OF_EXPERIMENTS = ("out", "settings", "jobs", "scheduler", "resume", "no_cache")  # options that go with --config
LISTS = ("models", "policies", "platforms", "configs")


class FiniteFloat(click.FloatRange):
    """A range without infinity and without what is no number, which compares with nothing."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        return number if math.isfinite(number) else self.fail(f"{value} is no finite number.", param, ctx)


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", metavar="NAME_OR_PATH", help="Experiment: a YAML file, or the name of a bundled one.")
@click.option("--out", type=click.Path(path_type=Path), help="Output folder.  [default: results/<name>]")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Override one value; may repeat.")
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="Parallel workers.")
@click.option("--scheduler", metavar="ADDRESS", help="Run a sweep on the workers of a dask scheduler.")
@click.option("--resume", is_flag=True, help="Go on with a sweep that was interrupted.")
@click.option("--no-cache", is_flag=True, help="Compute every stage anew.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--version", is_flag=True, help="Show the version and exit.")
@click.pass_context
def main(
    context: click.Context,
    config: str | None,
    out: Path | None,
    settings: tuple[str, ...],
    jobs: int,
    scheduler: str | None,
    resume: bool,
    no_cache: bool,
    debug: bool,
    version: bool,
) -> None:
    """Simulate streaming video LLMs with KV-cache retrieval on edge accelerators.

    \b
    resv-sim --config orin_vs_dre.yaml
    resv-sim --config orin_vs_dre.yaml --set video.file=clip.mp4 --out results/clip
    """
    context.obj = debug
    if version:
        from resv_sim.provenance import version_text

        click.echo(f"{COMMAND} {version_text()}")
    elif context.invoked_subcommand is not None:
        if config is not None:
            raise click.UsageError(f"--config runs an experiment; drop it to use '{context.invoked_subcommand}'.")
        if misplaced := _given(context):
            raise click.UsageError(f"{misplaced} belongs to --config; '{context.invoked_subcommand}' would not see it.")
    elif config is None:
        if without := _given(context):
            raise click.UsageError(f"{without} needs an experiment: --config NAME_OR_PATH.")
        click.echo(context.get_help())
    else:
        with explained(debug):
            from resv_sim.config import load_tree

            tree, source = load_tree(config, settings)
            sweeps = tree.child("sweep") is not None and tree.child("benchmark") is None
            if (scheduler is not None or resume) and not sweeps:
                raise ValueError(
                    f"--{'resume' if resume else 'scheduler'} is for sweeps; {source} has no section 'sweep'"
                )
            if tree.child("benchmark") is not None:
                from resv_sim.accuracy import command

                command.run(config, (), settings, out, jobs, use_cache=not no_cache)
            elif sweeps:
                run_sweep(tree, source, out, jobs, scheduler, resume=resume, use_cache=not no_cache)
            else:
                run_experiment(config, settings, out, jobs, use_cache=not no_cache)


def _given(context: click.Context) -> str | None:
    """An option of an experiment that stands on the command line, None where there is none."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in _OF_EXPERIMENTS and source is ParameterSource.COMMANDLINE:
            return parameter.opts[0]
    return None


@main.command("list")
@click.argument("what", type=click.Choice(LISTS), required=False)
@click.pass_obj
def list_bundled(debug: bool, what: str | None) -> None:
    """List bundled models, policies, platforms or experiments (configs)."""
    with explained(debug):
        from resv_sim.config import descriptions

        for family in [what] if what else LISTS:
            if not what:
                click.echo(f"{family}:")
            entries = descriptions("" if family == "configs" else family)
            width = max((len(name) for name in entries), default=0)
            for name, text in entries.items():
                click.echo(f"  {name:<{width}}  {text}".rstrip())


@main.group()
def trace() -> None:
    """Record what a model's attention saw of a video; look at recorded traces."""


@trace.command()
@click.option(
    "--model", required=True, metavar="NAME", help="A folder, an id of the hub, tiny-llava and the like, mini."
)
@click.option("--video", type=click.Path(path_type=Path), metavar="FILE", help="A video.  [default: a rendered one]")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The trace file, .safetensors.")
@click.option("--policy", default="full", show_default=True, metavar="NAME_OR_PATH", help="Bundled, or a YAML file.")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Override one field of the policy.")
@click.option("--fps", type=FiniteFloat(min=0, min_open=True), default=2.0, show_default=True, help="Frames/s.")
@click.option("--frames", "n_frames", type=click.IntRange(min=1), help="Stop after this many.  [default: all]")
@click.option(
    "--ask", "asks", metavar="'[SECONDS: ]QUESTION'", multiple=True, help="Ask then, or at the end; may repeat."
)
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=20, show_default=True, help="Of an answer.")
@click.option("--probe-every", type=click.IntRange(min=1), default=1, show_default=True, help="Frames between probes.")
@click.option("--values/--no-values", default=True, show_default=True, help="Keep values, for output errors.")
@click.option("--device", type=click.Choice(("cpu", "cuda")), default="cpu", show_default=True)
@click.option("--dtype", type=click.Choice(("float32", "bfloat16", "float16")), default="float32", show_default=True)
@click.pass_obj
def record(debug: bool, /, **fields: Any) -> None:
    """Record a stream inside a model.

    \b
    resv-sim trace record --model tiny-llava --video clip.mp4 -o trace.safetensors
    resv-sim --config quick.yaml --set trace.recorded=trace.safetensors --set model=trace.safetensors
    """
    with explained(debug):
        from resv_sim.record import RecordJob, run_record

        if fields["video"] is None and fields["n_frames"] is None:
            raise ValueError("the rendered video never ends: say how many --frames, or give a --video")
        run_record(RecordJob(**fields), click.echo)


@trace.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_obj
def info(debug: bool, file: Path) -> None:
    """Show what a trace file holds."""
    with explained(debug):
        from resv.trace_file import RecordedTrace

        recorded = RecordedTrace(file)
        shape = recorded.shape
        heads = f"{shape.n_kv_heads} KV heads, {shape.n_query_heads} query heads of {shape.head_dim}"
        click.echo(f"model: {shape.name} ({shape.n_layers} layers, {heads})")
        click.echo(f"tokens: {recorded.n_tokens} in {len(recorded.steps)} steps")
        click.echo(f"probes: {', '.join(f'{p.kind} at {p.first_token}' for p in recorded.probes) or 'none'}")
        click.echo(f"fingerprint: {recorded.fingerprint()}")
        for key, value in recorded.describe().items():
            click.echo(f"{key}: {value}")


@trace.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_obj
def check(debug: bool, file: Path) -> None:
    """Read all of a trace file and check it against the schema."""
    with explained(debug):
        from resv.trace_file import RecordedTrace
        from resv_sim.progress import Progress

        recorded = RecordedTrace(file)
        with Progress().task("layers", recorded.shape.n_layers) as advance:
            for layer in range(recorded.shape.n_layers):
                recorded.layer(layer)
                advance()
        click.echo(f"{file}: {recorded.shape.n_layers} layers of {recorded.n_tokens} tokens, every one as it should be")


@main.command()
@click.argument("model", type=click.Choice(("dram", "ssd", "link", "gpu", "energy", "all")), default="all")
@click.option("--json", "as_json", is_flag=True, help="Print summaries as JSON and nothing else.")
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR", help="Compare with the CSV tables of DIR.")
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="Parallel workers.")
@click.option("--markdown", type=click.Path(path_type=Path), metavar="FILE", help="Rewrite the section of FILE.")
@click.pass_obj
def validate(debug: bool, model: str, as_json: bool, data: Path | None, jobs: int, markdown: Path | None) -> None:
    """Compare the hardware models with simulators, measurements and published figures."""
    with explained(debug):
        from resv_sim.validate import command

        command.validate(model, data, jobs, markdown, as_json=as_json)


@main.command()
@click.argument("figures", nargs=-1, metavar="[FIGURE|all]...")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON and nothing else.")
@click.option("--out", type=click.Path(path_type=Path), help="Output folder.  [default: results/reproduce]")
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="Parallel workers.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Rewrite the section of FILE.", metavar="FILE")
@click.option("--no-cache", is_flag=True, help="Compute every stage anew.")
@click.pass_obj
def reproduce(
    debug: bool,
    figures: tuple[str, ...],
    as_json: bool,
    out: Path | None,
    jobs: int,
    markdown: Path | None,
    no_cache: bool,
) -> None:
    """Reproduce figures and tables of the V-Rex paper: fig13, table3, ..., all."""
    with explained(debug):
        from resv_sim.reproduce import command

        command.run(figures, out, jobs, markdown, use_cache=not no_cache, as_json=as_json)


@main.command()
@click.option("--config", default="accuracy", show_default=True, metavar="NAME_OR_PATH", help="A benchmark's file.")
@click.option("--policy", "policies", metavar="P", multiple=True, help="Label, bundled policy or file; may repeat.")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Override one value; may repeat.")
@click.option("--frames", type=int, help="Frames of a stream.")
@click.option("--streams", type=int, help="Streams.")
@click.option("--level", metavar="LEVEL", help="easy, medium or hard.")
@click.option("--seed", type=int, help="Seed of the first stream.")
@click.option("--stages", metavar="S,...", help="both, frame, text: where policies retrieve; several with commas.")
@click.option("--weights", metavar="FILE", help="Other weights than the program's.")
@click.option("--studies", is_flag=True, help="Further stream lengths, and effects of single fields.")
@click.option("--markdown", type=click.Path(path_type=Path), metavar="FILE", help="Rewrite the section of FILE.")
@click.option("--out", type=click.Path(path_type=Path), help="Output folder.  [default: results/<name>]")
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="Parallel workers.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON and nothing else.")
@click.option("--no-cache", is_flag=True, help="Compute everything anew.")
@click.pass_obj
def accuracy(
    debug: bool,
    /,
    config: str,
    policies: tuple[str, ...],
    settings: tuple[str, ...],
    out: Path | None,
    jobs: int,
    studies: bool,
    markdown: Path | None,
    as_json: bool,
    no_cache: bool,
    **fields: Any,
) -> None:
    """Measure how accurate a trained model answers under each policy.

    \b
    resv-sim accuracy --policy resv --policy topk --frames 100 --streams 16
    """
    with explained(debug):
        from resv_sim.accuracy import command

        given = (*settings, *command.as_settings(**fields))
        command.run(
            config,
            policies,
            given,
            out,
            jobs,
            markdown=markdown,
            studies=studies,
            use_cache=not no_cache,
            as_json=as_json,
        )


@main.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.argument("point")
@click.argument("other", required=False)
@click.pass_obj
def explain(debug: bool, results: Path, point: str, other: str | None) -> None:
    """Say where a sweep point's time and energy go, and what changed against OTHER.

    RESULTS is a sweep's output folder; a point is its number or the start of its id, four characters or more, and OTHER
    may be 'baseline'.
    """
    with explained(debug):
        from resv_sim.sweep.explain import explanation

        click.echo(explanation(results, point, other))


@main.command()
@click.option("--clear", is_flag=True, help="Remove everything that is remembered.")
@click.option("--limit", "limit_gb", type=FiniteFloat(min=0), metavar="GB", help="Make it at most this large now.")
@click.pass_obj
def cache(debug: bool, clear: bool, limit_gb: float | None) -> None:
    """Show, shrink or empty the folder of remembered stages.

    It is $RESV_SIM_CACHE, and runs keep it within $RESV_SIM_CACHE_GB (4): what was used least recently goes.
    """
    with explained(debug):
        from resv_sim.memo import Memo, cache_directory

        memo = Memo(cache_directory())
        if clear or limit_gb is not None:
            memo.trim(0 if clear or limit_gb is None else int(limit_gb * 1e9))
        click.echo(f"{memo.directory}: {memo.size_bytes() / 1e9:.2f} GB, limit {memo.limit_bytes / 1e9:g} GB")


@main.command()
@click.option("--model", required=True, metavar="NAME", help="A folder, an id of the hub, or tiny-llava and the like.")
@click.option("--video", type=click.Path(path_type=Path), metavar="FILE", help="A video.  [default: a rendered one]")
@click.option(
    "--ask", "asks", metavar="'[SECONDS: ]QUESTION'", multiple=True, help="Ask then, or at the end; may repeat."
)
@click.option("--policy", default="rekv", show_default=True, metavar="NAME_OR_PATH", help="Bundled, or a YAML file.")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Override one field of the policy.")
@click.option("--fps", type=FiniteFloat(min=0, min_open=True), default=0.5, show_default=True, help="Frames/s.")
@click.option("--frames", type=click.IntRange(min=1), help="Stop after this many.  [default: the file's end]")
@click.option("--tier", type=click.Path(path_type=Path), metavar="DIR", help="Disk tier that stays; go on with it.")
@click.option("--analyse", "role", flag_value="analyse", help="Only take frames into --tier.")
@click.option("--answer", "role", flag_value="answer", help="Only answer, from what another process has in --tier.")
@click.option("--limit", "limits", metavar="KEY=VALUE", multiple=True, help="Tiers: device_bytes, host_bytes, ...")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=100, show_default=True, help="Of an answer.")
@click.option(
    "--dialogue",
    type=click.Choice(("policy", "kept", "dropped")),
    default="policy",
    show_default=True,
    help="What the cache keeps of questions and answers.",
)
@click.option("--resize", is_flag=True, help="Take a video whose frames change their size.")
@click.option("--device", type=click.Choice(("cpu", "cuda")), default="cpu", show_default=True)
@click.option("--dtype", type=click.Choice(("float32", "bfloat16", "float16")), default="float32", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print events as lines of JSON.")
@click.pass_obj
def stream(debug: bool, /, role: Any, video: Path | None, frames: int | None, as_json: bool, **fields: Any) -> None:
    """Ask about a video while it comes in.

    \b
    resv-sim stream --model tiny-llava --video clip.mp4 --ask "10.0: what is on the table?"
    """
    with explained(debug):
        from resv_sim.stream import StreamJob, run_stream

        if video is None and frames is None and role != "answer":
            raise ValueError("the rendered video never ends: say how many --frames, or give a --video")
        job = StreamJob(video=video, n_frames=frames, role=role or "both", **fields)
        run_stream(job, click.echo, lambda line: click.echo(line, err=True), as_json=as_json)


@contextmanager
def explained(debug: bool) -> Iterator[None]:
    """Turn what the user can mend into one paragraph and exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        if debug:
            raise
        click.echo(f"{COMMAND}: error: {' '.join(str(error).split())}", err=True)
        sys.exit(2)


def run_sweep(
    tree: Node, source: str, out: Path | None, jobs: int, scheduler: str | None, *, resume: bool, use_cache: bool
) -> None:
    """Run or go on with a sweep, write its folder and print what came of it."""
    from resv_sim.sweep.job import run_sweep as run_all
    from resv_sim.sweep.report import summary, write_report
    from resv_sim.sweep.space import sweep_of

    sweep = sweep_of(tree, source)
    folder = out or Path("results") / sweep.base.name
    click.echo(f"{sweep.base.name}: {source}", err=True)
    try:
        records = run_all(sweep, folder, jobs, scheduler=scheduler, resume=resume, use_cache=use_cache)
    except KeyboardInterrupt:
        click.echo(f"{COMMAND}: interrupted; the same command with --resume goes on with {folder}", err=True)
        sys.exit(130)
    write_report(sweep, records, folder)
    click.echo(summary(sweep, records))
    click.echo(f"Results in {folder}")


def run_experiment(config: str, settings: tuple[str, ...], out: Path | None, jobs: int, *, use_cache: bool) -> None:
    """Load, run and write one experiment, and print its summary."""
    from resv_sim.config import load_experiment
    from resv_sim.output import OutputFolder
    from resv_sim.progress import Progress

    experiment, source = load_experiment(config, settings)
    click.echo(f"{experiment.name}: {source}", err=True)
    with OutputFolder(out or Path("results") / experiment.name) as folder:
        from resv_sim.pipeline import run
        from resv_sim.writing import write_results

        progress = Progress()
        result = run(experiment, progress, jobs, use_cache=use_cache)
        write_results(result, experiment, folder.partial, progress)
        folder.commit()
    from rich.console import Console

    from resv_sim.report import terminal_table

    console = Console()
    console.print(terminal_table(result.rows, experiment))
    for note in result.notes:
        console.print(f"Note: {note}", highlight=False, markup=False)
    console.print(f"Results in {folder.path}", highlight=False, markup=False, soft_wrap=True)
