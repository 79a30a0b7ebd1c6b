"""Bundled configurations as the program loads them, for tests of single packages."""

from functools import cache
from typing import Any

from dre_sim.platforms import PLATFORMS
from energy_models.tables import PriceTable
from resv_sim.library import FAMILIES, expand
from resv_sim.yaml_source import Node


@cache
def platform(name: str, **overlay: Any) -> Any:
    """The validated config model of a bundled platform."""
    tree = expand(Node({"platforms": Node({"x": Node(name, "test")}, "test")}, "test"), FAMILIES)
    data = tree.plain()["platforms"]["x"]
    data["energy"] = name
    config, _ = PLATFORMS[data["kind"]]
    return config.model_validate({**data, **overlay})


@cache
def price_table(platform_name: str) -> PriceTable:
    """The price table that a bundled platform names."""
    tree = Node({"platforms": Node({"x": Node(platform_name, "test")}, "test")}, "test")
    data: dict[str, Any] = expand(tree, FAMILIES).plain()["platforms"]["x"]["energy"]
    return PriceTable.model_validate(data)
