"""YAML text to a tree whose every value remembers where it was written, and back.

Reads YAML 1.1 with the 1.2 rule for floats (`1e9` is a number). Refuses what hides mistakes: duplicate
keys, keys that are not text, merge keys, aliases. Knows no schema; see `config.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from resv_sim.errors import ConfigError

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Node:
    """A value and where it was written: `value` is a scalar, a dict of nodes or a list of nodes."""

    value: Any
    origin: str

    def plain(self) -> Any:
        """The same value as ordinary dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def child(self, key: str | int) -> Node | None:
        """The node under `key`, or None where there is none."""
        if isinstance(self.value, dict):
            return self.value.get(key)
        if isinstance(self.value, list) and isinstance(key, int) and 0 <= key < len(self.value):
            return self.value[key]  # type: ignore[no-any-return]
        return None

    def deepest(self, path: Sequence[str | int]) -> Node:
        """The node at `path`, or the last one that exists on the way there."""
        node = self
        for key in path:
            below = node.child(key)
            if below is None:
                return node
            node = below
        return node


class _Loader(yaml.SafeLoader):
    """The safe loader without aliases: a file that refers into itself has no plain tree."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.get_mark()
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not supported", problem_mark=mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """The safe dumper, quoting what `_Loader` would read as a number."""


_FLOAT = re.compile(
    r"""^(?:[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)
       |[-+]?(?:[0-9][0-9_]*)\.[0-9_]*
       |[-+]?\.[0-9_]+(?:[eE][-+]?[0-9]+)?
       |[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)
for _user in (_Loader, _Dumper):
    _user.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def shown(path: Path) -> str:
    """A path as users know it: relative to the current folder where it lies below it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def read_yaml(path: Path) -> Node:
    """The tree of a YAML file. Raises `ConfigError` with file and line for anything that is not a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{shown(path)}: cannot be read: {error}") from error
    return _file_tree(text, shown(path))


@lru_cache(maxsize=64)  # a sweep resolves the same few files for every point
def _file_tree(text: str, source: str) -> Node:
    tree = _parse(text, source, lines=True)
    if not isinstance(tree.value, dict):
        raise ConfigError(f"{source}: must be a mapping of keys to values, not {kind_of(tree.value)}.")
    return tree


def read_value(text: str, origin: str) -> Node:
    """The tree of one value given on the command line; every node has the same origin."""
    return _parse(text, origin, lines=False)


def write_yaml(data: object) -> str:
    """YAML text of plain data, keys in the order given."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def kind_of(value: object) -> str:
    """The YAML word for a value's type."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else "a list"
    return f"a {type(value).__name__}"


def _parse(text: str, source: str, *, lines: bool) -> Node:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return Node(None, source)
        return _tree(loader, root, source, root.start_mark.line if lines else None)
    except yaml.MarkedYAMLError as error:
        where = f"{source}:{error.problem_mark.line + 1}" if lines and error.problem_mark else source
        raise ConfigError(f"{where}: not valid YAML: {error.problem or error.context}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}.") from error
    finally:
        loader.dispose()


def _tree(loader: _Loader, node: yaml.Node, source: str, line: int | None) -> Node:
    """`line` counts from 0 and is the line of the key that the value belongs to; None = no lines."""
    origin = source if line is None else f"{source}:{line + 1}"
    if isinstance(node, yaml.MappingNode):
        return Node(_mapping(loader, node, source, lines=line is not None), origin)
    if isinstance(node, yaml.SequenceNode):
        items = node.value
        return Node([_tree(loader, i, source, None if line is None else i.start_mark.line) for i in items], origin)
    try:
        return Node(loader.construct_object(node), origin)
    except ValueError as error:
        raise ConfigError(f"{origin}: '{node.value}' is not a valid value: {error}.") from error


def _mapping(loader: _Loader, node: yaml.MappingNode, source: str, *, lines: bool) -> dict[str, Node]:
    result: dict[str, Node] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line if lines else None
        origin = source if line is None else f"{source}:{line + 1}"
        key = key_node.value
        if key_node.tag != "tag:yaml.org,2002:str":
            raise ConfigError(f"{origin}: the key {key!r} is not text; put it in quotes if it is meant.")
        if key in result:
            raise ConfigError(f"{origin}: the key '{key}' is given twice; keep one of them.")
        result[key] = _tree(loader, value_node, source, line)
    return result
