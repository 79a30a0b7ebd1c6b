"""Retrieval policies, one file each. A new one is a class, a line in `POLICIES` and a YAML file."""

from resv.policies.base import Policy, PolicyState, run_layer
from resv.policies.full import Full
from resv.policies.resv import ReSV
from resv.policies.topk import TopK

__all__ = ["POLICIES", "Full", "Policy", "PolicyState", "ReSV", "TopK", "run_layer"]

POLICIES: dict[str, type[Policy]] = {
    "resv": ReSV,
    "full": Full,
    "topk": TopK,
}
