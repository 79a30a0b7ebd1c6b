"""Bundled configurations as the program loads them, for tests of single packages."""

from functools import cache
from typing import Any

from dre_sim.platforms import PLATFORMS
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
