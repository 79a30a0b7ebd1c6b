"""What leaves the device after a layer: the same task on every platform with an offload tier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from dre_sim.offload import OffloadTier
from dre_sim.scheduler import TaskGraph
from dre_sim.workload import LayerWork


def add_writeback(
    graph: TaskGraph,
    actions: Counter[str],
    tier: OffloadTier,
    layer: LayerWork,
    after: Sequence[int],
    dram_ps: Callable[[int], int],
) -> None:
    """Write K and V to the tier over the other direction of the link; nobody waits for it.

    `dram_ps` gives the memory occupancy of a number of bytes; counts go into `actions`.
    """
    n_bytes, moved = layer.offload_write_bytes, layer.reorder_bytes
    actions["dram_read_bytes"] += n_bytes + moved // 2
    actions["dram_write_bytes"] += moved - moved // 2
    if n_bytes + moved == 0:
        return
    timing = tier.write(n_bytes)
    actions.update(tier.write_actions(timing))
    graph.add(
        "link_up",
        "offload",
        layer.layer,
        timing.time_ps,
        after,
        n_bytes=n_bytes,
        dram_ps=dram_ps(n_bytes + moved),
        dram_bytes=n_bytes + moved,
    )
