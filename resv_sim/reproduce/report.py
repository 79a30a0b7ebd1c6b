"""What `resv-sim reproduce` leaves: figures, reproduce.md, a section of docs/validation.md.

Formats; computes only medians of errors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from resv_sim.config import load_experiment
from resv_sim.plots.style import RC, number, save
from resv_sim.published import published_facts
from resv_sim.reproduce import Reproduction
from resv_sim.reproduce.items import Item
from resv_sim.reproduce.study import paper_experiment
from resv_sim.reproduce.uncertainty import load_ranges

GOAL = 0.15
# The figures that the goal is about, the server platform among them (Fig. 13).
HEADLINE_FIGURES = ("fig13", "fig14", "fig16", "fig18")
FIGURE_DPI = 150
STATEMENT_HEADER = ("figure", "the paper says", "here it", "where, or how far")


def write_figures(done: Sequence[Reproduction], folder: Path) -> dict[str, list[str]]:
    """Draw every figure as PNG and SVG; returns the names of the files of each."""
    import matplotlib

    from resv_sim.plots.paper import comparison, panels, tornados

    published = published_facts()
    drawn: dict[str, list[str]] = {}
    with matplotlib.rc_context(RC):
        for r in done:
            names = drawn.setdefault(r.name, [])
            if r.findings.panels:
                save(
                    panels(r.findings.panels, published.facts, published.kv_lengths_tokens), folder, r.name, FIGURE_DPI
                )
                names.append(r.name)
            if r.findings.tornados:
                save(tornados(r.findings.tornados), folder, r.name, FIGURE_DPI)
                names.append(r.name)
            if sum(item.error is not None for item in r.items) > 1:
                name = f"{r.name}_errors"
                save(comparison(r.items, f"{r.name}: {r.figure.title}"), folder, name, FIGURE_DPI)
                names.append(name)
    return drawn


def markdown(done: Sequence[Reproduction], drawn: dict[str, list[str]]) -> str:
    """The whole report."""
    parts = ["# The figures of V-Rex (HPCA 2026, arXiv 2512.12284), reproduced", *_summary(done, "##")]
    for r in done:
        parts += _figure(r, drawn.get(r.name, []), "##")
    return "\n\n".join(parts) + "\n"


def section(done: Sequence[Reproduction]) -> str:
    """The body of the section "The paper's figures": the report without its pictures."""
    introduction = (
        "Written by `resv-sim reproduce all --markdown docs/validation.md`; with pictures by `resv-sim reproduce all`. "
        f"Experiments: `configs/paper/`, state `{inputs_hash()}` (experiments with every default filled in, published "
        "facts, ranges of what is not known)."
    )
    parts = ["## The figures of V-Rex (HPCA 2026, arXiv 2512.12284)", introduction, *_summary(done, "###")]
    for r in done:
        parts += _figure(r, (), "###")
    return "\n\n".join(parts)


def inputs_hash() -> str:
    """12 hex digits over everything that the figures are made from, the code aside."""
    experiments = (load_experiment(str(path))[0] for path in sorted(paper_experiment("x").parent.glob("*.yaml")))
    read = [published_facts().model_dump_json(), load_ranges().model_dump_json()]
    text = "\n".join([*(experiment.config_hash() for experiment in experiments), *read])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def item_row(item: Item) -> list[str]:
    """Item, ours, published, unit, error, role as text."""
    ours = "" if item.ours is None else number(item.ours)
    error = "" if item.error is None else f"{100 * item.error:+.1f} %"
    name = f"{item.item} ({item.reason})" if item.reason else item.item
    return [name, ours, number(item.published), item.unit, error, item.role.replace("_", " ")]


def median_error(items: Sequence[Item]) -> float | None:
    """Median absolute error over predictions; None without any."""
    errors = [abs(item.error) for item in items if item.role == "prediction" and item.error is not None]
    return median(errors) if errors else None


def _summary(done: Sequence[Reproduction], level: str) -> Iterator[str]:
    yield (
        "Error is ours / published - 1. A *calibration* row has set a constant of a model or of the trace generator, a "
        "*prediction* has not. What is *not run* says why."
    )
    rows = []
    for r in done:
        if not r.items:
            continue
        count = {role: sum(i.role == role for i in r.items) for role in ("calibration", "prediction", "not_run")}
        error = median_error(r.items)
        rows.append(
            [r.name, r.figure.title, *map(str, count.values()), "" if error is None else f"{100 * error:.1f} %"]
        )
    header = ("figure", "", "calibration", "predictions", "not run", "median absolute error of predictions")
    yield f"{level} Summary\n\n" + text_table(header, rows)
    headline = [item for r in done if r.name in HEADLINE_FIGURES for item in r.items]
    error = median_error(headline)
    if error is not None:
        met = "met" if error <= GOAL else "missed"
        n = sum(item.role == "prediction" for item in headline)
        yield (
            f"Over the {n} predictions of {', '.join(f for f in HEADLINE_FIGURES if any(r.name == f for r in done))} "
            f"(the server platform included) the median absolute error is **{100 * error:.1f} %**; the goal of "
            f"{100 * GOAL:.0f} % is {met}."
        )
    statements = [(r.name, s.text, s.verdict, s.detail) for r in done for s in r.findings.statements]
    if statements:
        yield f"{level} What is said without a number\n\n" + text_table(STATEMENT_HEADER, statements)


def _figure(r: Reproduction, drawn: Sequence[str], level: str) -> Iterator[str]:
    yield f"{level} {r.name}: {r.figure.title}"
    if r.items:
        yield text_table(("item", "ours", "published", "unit", "error", "role"), [item_row(item) for item in r.items])
    for shown in r.findings.tables:
        yield text_table(shown.header, shown.rows)
    for note in r.findings.notes:
        yield f"Note: {note}"
    for contradiction in r.contradictions:
        yield f"The paper contradicts itself here: {contradiction.text}"
    for name in drawn:
        yield f"![{name}](figures/{name}.png)"
