"""Where configurations are found, and how one refers to another by name.

A reference is the name of a file in a family (a folder of `configs/`), or a mapping
with `base: NAME` whose other keys are laid over that file. Knows which keys hold references
(`REFERENCES`) and nothing else about what the files mean.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from resv.model_config import CONFIG_FILE, ModelConfigError, read_model_shape
from resv.trace_file import RecordedTrace, TraceError
from resv_sim.errors import ConfigError, hint
from resv_sim.yaml_source import KeyPath, Node, kind_of, read_value, read_yaml, shown

FAMILIES = ("models", "policies", "platforms", "memory", "link", "ssd", "energy")

# Files that say a model's shape and are no configuration of ours: a checkpoint's JSON, a recorded trace.
MODEL_FILES = (".json", ".safetensors")

# Files beside the experiments that are none: what was fitted, and what is not known well (`reproduce`).
BESIDE_EXPERIMENTS = {"calibration", "uncertainty"}

REFERENCES: Mapping[tuple[str, ...], str] = {
    ("model",): "models",
    ("model", "vision"): "models",
    ("policies", "*"): "policies",
    ("platforms", "*"): "platforms",
    ("platforms", "*", "memory"): "memory",
    ("platforms", "*", "offload", "memory"): "memory",
    ("platforms", "*", "offload", "link"): "link",
    ("platforms", "*", "offload", "ssd"): "ssd",
    ("platforms", "*", "energy"): "energy",
    ("energy", "*"): "energy",
}


def bundled_root() -> Path:
    """The folder of the configurations that come with the program: in the wheel, else in the checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def bundled(family: str = "") -> list[str]:
    """Names of the bundled configurations of a family; of the experiments when `family` is empty."""
    stems = {path.stem for path in (bundled_root() / family).glob("*.yaml")}
    return sorted(stems if family else stems - BESIDE_EXPERIMENTS)


def find(name: str, family: str = "", origin: str = "") -> Path:
    """The file meant by `name`: an existing path, else a bundled one. Raises `ConfigError`.

    Of the models it may also be a Hugging Face `config.json`, a folder that holds one, or a recorded trace.
    """
    given = Path(name)
    if family == "models" and (given / CONFIG_FILE).is_file():
        return given / CONFIG_FILE
    if family == "models" and given.suffix in MODEL_FILES and given.is_file():
        return given
    if given.suffix in {".yaml", ".yml"} and given.is_file():
        return given
    stem = name[: -len(given.suffix)] if given.suffix in {".yaml", ".yml"} else name
    known = bundled(family)
    if stem in known:
        return bundled_root() / family / f"{stem}.yaml"
    where = f"{origin}: " if origin else ""
    what = f"in the family '{family}'" if family else "among the bundled experiments"
    file = f".yaml file, {CONFIG_FILE}, folder with one or recorded trace" if family == "models" else ".yaml file"
    raise ConfigError(
        f"{where}no configuration '{name}': it is not an existing {file} and not {what} "
        f"({', '.join(known) or 'none'}).{hint(stem, known)}"
    )


def resolved(name_or_path: str, family: str) -> Node:
    """One file of a family with its references followed; the name of a price table stays a name."""
    path = find(name_or_path, family)
    root = next(pattern for pattern, known in REFERENCES.items() if known == family)
    return expand(_read(path), [known for known in FAMILIES if known != "energy" or family == "energy"], root)


def family_at(path: KeyPath) -> str | None:
    """The family that the value at `path` refers to, or None where it is not a reference."""
    for pattern, family in REFERENCES.items():
        if len(pattern) == len(path) and all(p in ("*", str(k)) for p, k in zip(pattern, path, strict=True)):
            return family
    return None


def expand(node: Node, families: Collection[str] = FAMILIES, path: KeyPath = ()) -> Node:
    """The tree with every reference into `families` replaced by what it refers to, overlays applied."""
    family = family_at(path)
    if family is not None and family in families:
        node = follow(node, path, family)
    if isinstance(node.value, dict):
        children = {key: expand(child, families, (*path, key)) for key, child in node.value.items()}
        return Node(children, node.origin)
    return node


def follow(node: Node, path: KeyPath, family: str, open_files: tuple[Path, ...] = ()) -> Node:
    """The mapping that the reference at `path` stands for, its chain of bases laid under it."""
    overlay = _as_overlay(node)
    base = overlay.value.get("base") if isinstance(overlay.value, dict) else None
    if base is None:
        return node
    if not isinstance(base.value, str):
        raise ConfigError(f"{base.origin}: {dotted(path)}.base must be a name, not {kind_of(base.value)}.")
    file = find(base.value, family, f"{base.origin}: {dotted(path)}")
    if file in open_files:
        chain = " -> ".join(shown(f) for f in (*open_files, file))
        raise ConfigError(f"{base.origin}: {dotted(path)} refers back to itself: {chain}.")
    below = follow(_read(file), path, family, (*open_files, file))
    rest = Node({key: child for key, child in overlay.value.items() if key != "base"}, overlay.origin)
    return overlaid(below, rest, path)


def _read(file: Path) -> Node:
    """The tree of a configuration, or of the model that a checkpoint's JSON or a trace describes."""
    if file.suffix not in MODEL_FILES:
        return read_yaml(file)
    try:
        shape = read_model_shape(file) if file.suffix == ".json" else RecordedTrace(file).shape
    except (ModelConfigError, TraceError) as error:
        raise ConfigError(f"{error}.") from error
    return _all_from(shape.model_dump(mode="json"), shown(file))


def _all_from(value: object, origin: str) -> Node:
    """Plain data as a tree, every value written at `origin`."""
    if isinstance(value, dict):
        return Node({key: _all_from(child, origin) for key, child in value.items()}, origin)
    if isinstance(value, list):
        return Node([_all_from(child, origin) for child in value], origin)
    return Node(value, origin)


def _as_overlay(node: Node) -> Node:
    return Node({"base": node}, node.origin) if isinstance(node.value, str) else node


def overlaid(base: Node, overlay: Node, path: KeyPath = ()) -> Node:
    """`overlay` over `base`: mappings merge key by key; anything else, or a base of its own, replaces."""
    if family_at(path) and isinstance(base.value, str) and isinstance(overlay.value, dict):
        base = _as_overlay(base)
    if not isinstance(base.value, dict) or not isinstance(overlay.value, dict) or "base" in overlay.value:
        return overlay
    merged = dict(base.value)
    for key, child in overlay.value.items():
        merged[key] = overlaid(merged[key], child, (*path, key)) if key in merged else child
    return Node(merged, overlay.origin if overlay.value else base.origin)


def with_override(tree: Node, setting: str) -> Node:
    """The tree with one `a.b=value` applied; the value is YAML, a list item is addressed by its index."""
    key, equals, text = setting.partition("=")
    if not equals or not key or not all(key.split(".")):
        raise ConfigError(f"--set {setting}: must be KEY=VALUE with a dotted key, like video.fps=10.")
    return with_value(tree, key, read_value(text, f"--set {key}"))


def with_value(tree: Node, key: str, value: Node) -> Node:
    """The tree with `value` at a dotted key; what is missing on the way there is made."""
    path: KeyPath = tuple(int(part) if part.isdigit() else part for part in key.split("."))
    return _replaced(tree, path, value, ())


def _replaced(node: Node, path: KeyPath, value: Node, done: KeyPath) -> Node:
    if not path:
        return value
    key, rest, here = path[0], path[1:], (*done, path[0])
    if isinstance(node.value, str) and family_at(done):
        node = _as_overlay(node)
    if node.value is None or isinstance(node.value, dict):
        children: dict[str, Node] = dict(node.value or {})
        below = children.get(str(key), Node(None, value.origin))
        children[str(key)] = _replaced(below, rest, value, here)
        return Node(children, node.origin)
    if not isinstance(node.value, list):
        raise ConfigError(f"{value.origin}: {dotted(done)} is {kind_of(node.value)}; nothing lies below it.")
    if not isinstance(key, int) or key >= len(node.value):
        raise ConfigError(
            f"{value.origin}: {dotted(done)} is a list of {len(node.value)} items; "
            f"'{key}' must be an index from 0 to {len(node.value) - 1}."
        )
    items = list(node.value)
    items[key] = _replaced(items[key], rest, value, here)
    return Node(items, node.origin)


def dotted(path: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in path)
