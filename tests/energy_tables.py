"""The bundled price tables, read straight from their YAML, for tests of `energy_models`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml

from energy_models.tables import PriceTable

FOLDER = Path(__file__).parent.parent / "configs" / "energy"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def table_data(name: str) -> dict[str, Any]:
    """The file's mapping laid over that of its `base`, if it has one."""
    data: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    base = data.pop("base", None)
    return data if base is None else _overlaid(table_data(base), data)


@functools.cache
def bundled_table(name: str) -> PriceTable:
    return PriceTable.model_validate(table_data(name))


def _overlaid(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _overlaid(merged[key], value) if both else value
    return merged
