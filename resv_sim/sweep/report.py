"""A finished sweep for people: `report.html`, figures and the lines that the terminal shows.

The page is one file without a network: data as JSON, a small script that draws SVG. Computes nothing that
`fronts.py` does not.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from resv_sim import library
from resv_sim.plots.style import FigureFile, number
from resv_sim.sweep import fronts
from resv_sim.sweep.figures import draw_figures
from resv_sim.sweep.job import measured_row
from resv_sim.sweep.search import best
from resv_sim.sweep.space import Sweep
from resv_sim.sweep.store import write_whole
from resv_sim.yaml_source import Node, write_yaml

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
SHOWN = (
    "latency_s", "fps", "speedup", "energy_j", "energy_gain", "power_w", "area_mm2", "attention_mass_kept",
    "output_rel_error", "topk_overlap", "retrieval_ratio", "link_bytes", "dram_bytes", "link_transactions",
    "prediction_s", "exposed_fetch_s", "hcu_cycles", "wtu_cycles", "elements_visited_share", "overshoot", "clusters",
    "tokens_per_cluster",
)  # fmt: skip

Row = dict[str, Any]


def rows_of(sweep: Sweep, records: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The measured row of every point that has one, with `point`, `id` and the axes."""
    out = []
    for record in records:
        row = measured_row(record, sweep.config.measure)
        if row is not None:
            out.append({"point": record["point"], "id": record["id"], **record["names"], **row})
    return out


def published_point(sweep: Sweep, rows: Sequence[Row]) -> int | None:
    """The number of the point that has the paper's values, None where no or not all of them are in the sweep."""
    wanted = sweep.config.published
    if not wanted:
        return None
    return next((row["point"] for row in rows if all(row[axis] == value for axis, value in wanted.items())), None)


def write_report(sweep: Sweep, records: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Figures and `report.html` into the sweep's folder."""
    rows = rows_of(sweep, records)
    figures = draw_figures(sweep, rows, published_point(sweep, rows), folder / "figures")
    write_whole(folder / "report.html", _html(sweep, records, rows, figures, folder / "figures"))


def summary(sweep: Sweep, records: Sequence[Mapping[str, Any]]) -> str:
    """What a terminal shows: how many points, which are best, which axis decides."""
    return "\n".join(_summary(sweep, records))


def _summary(sweep: Sweep, records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    config, rows = sweep.config, rows_of(sweep, records)
    failed = [record for record in records if "error" in record]
    yield f"{len(records)} points, {len(failed)} failed. Measured: {config.measure.label}."
    for record in failed[:5]:
        yield f"  point {record['point']} failed: {record['error']}"
    if not rows:
        return
    kept = [row for row in rows if fronts.holds(row, config.limits)]
    if config.limits:
        yield f"{len(kept)} of {len(rows)} keep {', '.join(map(str, config.limits))}."
    for column in dict.fromkeys([*(config.search.objectives if config.search else ()), *config.figures[:2]]):
        yield from _best(column, kept, list(config.axes))
    if config.search is not None:
        numbers = best(config, {row["point"]: row for row in rows})
        yield f"Pareto front of {', '.join(config.search.objectives)}: points {', '.join(map(str, numbers)) or 'none'}."
        return  # a search does not visit its axes evenly
    for column in config.figures[:2]:
        shares = fronts.explained(rows, list(config.axes), column)
        told = [f"{axis} {100 * share:.0f} %" for axis, share in sorted(shares.items(), key=lambda s: -s[1])]
        yield f"Variance of {column} explained by one axis alone: {', '.join(told)}."


def _best(column: str, rows: Sequence[Row], axes: Sequence[str]) -> Iterator[str]:
    known = [row for row in rows if row[column] is not None]
    if known:
        sign = 1 if fronts.direction(column) == "minimize" else -1
        row = min(known, key=lambda r: (sign * r[column], r["point"]))
        where = ", ".join(f"{axis}={row[axis]}" for axis in axes)
        yield f"Best {column}: {number(row[column])} at point {row['point']} ({where})."


def _html(
    sweep: Sweep,
    records: Sequence[Mapping[str, Any]],
    rows: Sequence[Row],
    figures: Sequence[FigureFile],
    folder: Path,
) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    pictures = [(figure, base64.b64encode((folder / f"{figure.name}.png").read_bytes()).decode()) for figure in figures]
    return environment.get_template("sweep.html.j2").render(
        name=sweep.base.name,
        description=sweep.base.description,
        summary=list(_summary(sweep, records)),
        failed=[record for record in records if "error" in record],
        figures=pictures,
        # "<" could end the script element early; its escape means the same in JSON.
        data=json.dumps(page_data(sweep, rows), allow_nan=False).replace("<", "\\u003c"),
        script=(TEMPLATES / "sweep.js").read_text(encoding="utf-8"),
    )


def page_data(sweep: Sweep, rows: Sequence[Row]) -> dict[str, Any]:
    """What the page's script draws. A point is a list: number, id, axes in order, columns in order."""
    config = sweep.config
    wanted = dict.fromkeys([*config.figures, *(config.search.objectives if config.search else ()), *SHOWN])
    columns = [c for c in wanted if any(row[c] is not None for row in rows)]
    axes = list(config.axes)
    return {
        "name": sweep.base.name,
        "axes": [
            {"name": name, "values": list(axis.names()) if axis.discrete else None}
            for name, axis in config.axes.items()
        ],
        "columns": [{"name": name, "better": fronts.direction(name)} for name in columns],
        "points": [[row["point"], row["id"], *(row[a] for a in axes), *(row[c] for c in columns)] for row in rows],
        "constraints": list(config.constraints),
        "published": published_point(sweep, rows),
        "first": _first_pair(sweep, columns),
        "yaml": _yaml_template(sweep),
        "settings": {
            name: [list(s.values()) for s in axis.settings()] for name, axis in config.axes.items() if axis.set
        },
    }


def _first_pair(sweep: Sweep, columns: Sequence[str]) -> list[str]:
    """What the page shows when it opens: two objectives, or the first figure, against fidelity where that is drawn."""
    config = sweep.config
    fidelity = [c for c in config.figures if c == "attention_mass_kept"]
    wanted = [*(config.search.objectives if config.search else config.figures[:1]), *fidelity, *config.figures]
    return [c for c in dict.fromkeys(wanted) if c in columns][:2]


def _yaml_template(sweep: Sweep) -> str:
    """The experiment of any point: `'@axis:k@'` stands for the value of the axis's k-th path."""
    tree = sweep.tree
    for name, axis in sweep.config.axes.items():
        for k, path in enumerate(axis.paths):
            tree = library.with_value(tree, path, Node(f"@{name}:{k}@", "report"))
    return write_yaml({**tree.plain(), "name": f"{sweep.base.name}_point_@point@"})
