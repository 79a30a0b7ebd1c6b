"""Request-level DRAM: banks, bank groups, row buffers, command bus, refresh, write drain, channels.

`simulate` answers for a list of requests, `steady_state` for the gigabytes of a frame through a sampled window. A
controller reorders inside finite queues (FR-FCFS, open page). Knows no energy, no cache, no ECC, and does not forward
a queued write to a read of the same address.
"""

from dre_sim.dram.config import DramConfig
from dre_sim.dram.requests import DramRequests, DramResult, simulate
from dre_sim.dram.steady import AccessPattern, SteadyState, grid_pattern, steady_state

__all__ = [
    "AccessPattern",
    "DramConfig",
    "DramRequests",
    "DramResult",
    "SteadyState",
    "grid_pattern",
    "simulate",
    "steady_state",
]
