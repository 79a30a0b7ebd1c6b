"""PCIe model against payload ceilings and measured copies, with the per-extent costs that the platforms use."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np

from dre_sim.gpu import GpuConfig
from dre_sim.link import LinkConfig, transfer
from resv_sim.validate.comparison import Point
from resv_sim.validate.schemas import Row
from resv_sim.validate.tables import Table
from resv_sim.validation import load


@cache
def extent_cost_ps() -> dict[str, int]:
    """What an extent adds in each mode; those of the bundled A100 for copies by its runtime and by a kernel."""
    gpu = load("a100", "platforms", GpuConfig)
    return {"dma": 0, "memcpy": gpu.copy_call_ps, "gather": gpu.gather_chunk_ps}


def cost(row: Row) -> float:
    return 1.0


def check(table: Table, row: Row) -> None:
    """Nothing beside the columns."""


def compare(table: Table, row: Row) -> Iterator[Point]:
    mode = row.text("mode")
    fields = {"generation": int(row.text("generation")), "lanes": int(row.text("lanes"))}
    link = LinkConfig.model_validate({"name": table.name, "transfer_ps": extent_cost_ps()[mode], **fields})
    result = transfer(link, np.full(row.count("n_extents"), row.count("extent_bytes"), np.int64))
    yield Point(
        "link",
        table.name,
        f"payload rate, {mode}",
        row.text("item"),
        result.payload_bytes * 1e12 / result.time_ps,
        row.number("payload_bytes_per_s"),
        "B/s",
        row.text("role"),
        row.text("source"),
    )
