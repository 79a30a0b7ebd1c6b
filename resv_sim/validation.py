"""From a tree of values to a pydantic model, with errors that say where and what would have been right.

Knows pydantic and the tree; knows no field of any model. `ByKind` lets one field hold any model of a
registry, chosen by the key `kind`.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, ErrorDetails, core_schema

from resv_sim import library
from resv_sim.errors import ConfigError, hint
from resv_sim.library import dotted
from resv_sim.yaml_source import KeyPath, Node

Model = TypeVar("Model", bound=BaseModel)
# fmt: off
UNITS = frozenset((
    "bytes", "kb", "mb", "gb", "tb", "kib", "mib", "gib", "bits", "cycles", "ps", "ns", "us", "ms", "s", "hz",
    "khz", "mhz", "ghz", "pj", "nj", "uj", "mj", "j", "w", "mw", "mm2", "um2", "flops", "tflops", "tokens", "px",
    "per", "fps",
))
# fmt: on


@dataclass(frozen=True)
class ByKind:
    """Annotation of a field that takes any model of a registry: `kind` names it, the rest are its fields."""

    noun: str
    registry: Callable[[], Mapping[str, type[BaseModel]]]

    def model_for(self, data: object) -> type[BaseModel] | None:
        """The model that `data` means, or None where its kind is missing or unknown."""
        kind = data.get("kind") if isinstance(data, Mapping) else None
        return self.registry().get(kind) if isinstance(kind, str) else None

    def validate(self, data: object) -> BaseModel:
        known = self.registry()
        if isinstance(data, BaseModel):
            if type(data) in known.values():
                return data
            raise ValueError(f"{type(data).__name__} is not a {self.noun} ({', '.join(known)})")
        model = self.model_for(data)
        if not isinstance(data, Mapping) or "kind" not in data:
            raise ValueError(f"a {self.noun} is a mapping with a key 'kind', one of {', '.join(known)}")
        if model is None:
            kind = data["kind"]
            raise ValueError(f"no {self.noun} of kind '{kind}' ({', '.join(known)}).{hint(str(kind), known)}")
        fields = {key: value for key, value in data.items() if key != "kind" or "kind" in model.model_fields}
        return model.model_validate(fields)

    def dump(self, model: BaseModel) -> dict[str, Any]:
        kind = next(name for name, known in self.registry().items() if known is type(model))
        return {"kind": kind, **model.model_dump(mode="json")}

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.validate, serialization=core_schema.plain_serializer_function_ser_schema(self.dump)
        )


def validated(model: type[Model], tree: Node, prefix: KeyPath = ()) -> Model:
    """The model made from the tree. Raises `ConfigError` naming file, line, dotted path and what is allowed.

    `prefix` is where the tree lies in what the user wrote.
    """
    data = tree.plain()
    try:
        made = model.model_validate(data)
    except ValidationError as error:
        details = _most_telling(error.errors(include_url=False))
        others = len(details) - 1
        more = f" ({others} more like it in this configuration.)" if others else ""
        raise ConfigError(_explain(model, tree, data, prefix, details[0]) + more) from error
    for path, needed in _no_numbers(data, made):
        where = f"{tree.deepest(path).origin}: {dotted((*prefix, *path))}"
        raise ConfigError(f"{where} = {tree.deepest(path).value}: must be a {needed}.")
    return made


def _no_numbers(data: object, made: object, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Where pydantic took a truth value or infinity for a number, as it does of its own accord; and what is needed."""
    if isinstance(data, bool):
        if isinstance(made, (int, float)) and not isinstance(made, bool):
            yield path, "number, not a truth value"
    elif isinstance(made, float):
        if not math.isfinite(made):
            yield path, "finite number"
    elif isinstance(data, dict):
        for key, value in data.items():
            below = made.get(key) if isinstance(made, Mapping) else getattr(made, str(key), None)
            yield from _no_numbers(value, below, (*path, key))
    elif isinstance(data, list) and isinstance(made, (list, tuple)):
        for index, (value, below) in enumerate(zip(data, made, strict=False)):
            yield from _no_numbers(value, below, (*path, index))


def load(name_or_path: str, family: str, model: type[Model]) -> Model:
    """One file of a family as a model, without an experiment around it. Raises `ConfigError`."""
    return validated(model, library.resolved(name_or_path, family))


def _most_telling(details: Iterable[ErrorDetails]) -> list[ErrorDetails]:
    """A misspelt key often comes with its right name missing: the misspelling first."""
    return sorted(details, key=lambda d: (d["type"] == "missing", d["type"] != "extra_forbidden"))


def _explain(model: type[BaseModel], tree: Node, data: object, prefix: KeyPath, detail: ErrorDetails) -> str:
    path = (*_path_in(data, detail["loc"]), *getattr(detail.get("ctx", {}).get("error"), "path", ()))
    origin = _named_in(tree.deepest(path), detail) or tree.deepest(path).origin
    where = ": ".join(part for part in (origin, dotted((*prefix, *path))) if part)
    owner = _model_at(model, data, path[:-1])
    if detail["type"] == "extra_forbidden" and owner:
        return f"{where}: unknown key. {_nearest(str(path[-1]), owner)}"
    if detail["type"] == "missing":
        field = owner.model_fields.get(str(path[-1])) if owner else None
        meaning = f" ({field.description})" if field and field.description else ""
        return f"{where}: must be given{meaning}."
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ").rstrip(".")
    given = detail["input"]
    shown = f" = {given!r}" if isinstance(given, (str, int, float, bool)) or given is None else ""
    text = message[0].lower() + message[1:] if message.startswith("Input") else message
    return f"{where}{shown}: {text}." if not text.endswith("?") else f"{where}{shown}: {text}"


def _named_in(node: Node, detail: ErrorDetails) -> str | None:
    """Where the field is written that an error of a whole mapping is about: one that its message names.

    Of several, one that was laid over the rest, which is what changed.
    """
    if detail["type"] != "value_error" or not isinstance(node.value, dict):
        return None
    words = set(re.findall(r"\w+", detail["msg"]))
    origins = [child.origin for key, child in node.value.items() if key in words]
    laid_over = [origin for origin in origins if not re.search(r":\d+$", origin)]
    return next(iter([*laid_over, *origins]), None)


def _nearest(key: str, owner: type[BaseModel]) -> str:
    """What an unknown key may have meant: the same name in another unit, or the closest name."""
    allowed = [*owner.model_fields, *getattr(owner, "BESIDE", ())]
    same_stem = [name for name in allowed if _stem(name) == _stem(key)]
    listing = f"Allowed here: {', '.join(allowed)}."
    if same_stem:
        return f"Did you mean '{same_stem[0]}'? The unit is part of the name. {listing}"
    return f"{hint(key, allowed).strip()} {listing}".strip()


def _stem(name: str) -> str:
    parts = name.split("_")
    while len(parts) > 1 and parts[-1] in UNITS:
        parts.pop()
    return "_".join(parts)


def _path_in(data: Any, loc: tuple[int | str, ...]) -> KeyPath:
    """`loc` without the tags that pydantic adds for members of a union; its last part may be absent."""
    path: list[str | int] = []
    for index, part in enumerate(loc):
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            if index < len(loc) - 1 or not isinstance(data, Mapping):
                continue
        path.append(part)
    return tuple(path)


def _model_at(model: type[BaseModel], data: object, path: KeyPath) -> type[BaseModel] | None:
    """The model that describes the mapping at `path`, found along the annotations."""
    current: Any = model
    for key in path:
        if isinstance(data, Mapping):
            data = data.get(key)
        elif isinstance(data, list) and isinstance(key, int):
            data = data[key]
        current = _step(current, key, data)
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None


def _step(annotation: Any, key: str | int, data: object) -> Any:
    """The annotation of what lies under `key`, resolved to a model where it can be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(str(key))
        return _resolved(field.annotation, field.metadata, data) if field else None
    arguments = [a for a in get_args(annotation) if a is not Ellipsis]
    return _resolved(arguments[-1], [], data) if arguments else None


def _resolved(annotation: Any, metadata: Iterable[Any], data: object) -> Any:
    for mark in metadata:
        if isinstance(mark, ByKind):
            return mark.model_for(data)
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *marks = get_args(annotation)
        return _resolved(inner, marks, data)
    if origin is Union or origin is types.UnionType:
        members = [a for a in get_args(annotation) if a is not type(None)]
        models = [_resolved(a, [], data) for a in members]
        return next((m for m in models if isinstance(m, type) and issubclass(m, BaseModel)), members[0])
    return annotation
