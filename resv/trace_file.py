"""Recorded traces: one safetensors file, memory-mapped, one layer read at a time. Schema: docs/trace_format.md.

`write_trace` streams any `KVTrace` into a file, `RecordedTrace` is a `KVTrace` again. Reading checks names, types and
shapes when the file is opened, and values when a layer is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from resv.trace import STEP_KINDS, Float32, KVTrace, LayerTrace, ModelShape, Step

FORMAT, VERSION = "resv_sim_trace", 1
DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
LONGEST_HEADER_BYTES = 100_000_000  # the limit of the safetensors format
HASH_CHUNK_BYTES = 1 << 24


class TraceError(ValueError):
    """A file that is not a readable trace; says which file, which tensor and what was expected."""


# Fields of a shape that decide the tensors of a trace: their sizes, and what was turned into the keys.
_DECIDING = ("n_layers", "n_query_heads", "n_kv_heads", "head_dim", "rope_theta")


class _Entry(NamedTuple):
    """Where a tensor lies in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int


class RecordedTrace:
    """A trace file as a `KVTrace`. Values and predicted queries are optional in the file.

    shape : of the model that it is to stand for, where that is not the recorded one; what decides no tensor may differ,
    like widths in bits

    Raises `TraceError` where the file is missing, truncated, of another kind or version, where a tensor is missing,
    superfluous, of another type or shape than the header's steps say, or where `shape` differs in what decides tensors.
    """

    def __init__(self, path: Path | str, shape: ModelShape | None = None) -> None:
        self.path = Path(path)
        self._entries, metadata = _read_header(self.path)
        self.shape, self.steps, self.probes, self._source = _parse_metadata(self.path, metadata)
        self.n_tokens = self.steps[-1].first_token + self.steps[-1].n_tokens if self.steps else 0
        self.has_values = "layers.0.values" in self._entries
        self.has_predicted_queries = self.shape.n_layers > 1 and any(
            name.startswith("layers.1.predicted_queries.") for name in self._entries
        )
        self._check_tensors()
        self._stands_for = "" if shape in (None, self.shape) else self._taken_for(shape)
        self._fingerprint = ""

    def layer(self, layer: int, *, values: bool = True) -> LayerTrace:
        """Read one layer. Raises `TraceError` where a value is not finite, ValueError for a layer that is not there."""
        if not 0 <= layer < self.shape.n_layers:
            raise ValueError(f"layer {layer} is not among the {self.shape.n_layers} layers of {self.path}")
        take_values = values and self.has_values
        n = range(len(self.probes))

        def per_probe(what: str) -> tuple[Float32, ...]:
            return tuple(self._tensor(f"layers.{layer}.{what}.{p}") for p in n)

        return LayerTrace(
            layer=layer,
            keys=self._tensor(f"layers.{layer}.keys"),
            values=self._tensor(f"layers.{layer}.values") if take_values else None,
            queries=per_probe("queries"),
            predicted_queries=per_probe("predicted_queries") if self.has_predicted_queries and layer > 0 else None,
            step_keys=per_probe("step_keys"),
            step_values=per_probe("step_values") if take_values else None,
        )

    def fingerprint(self) -> str:
        """Hash of the whole file, and of the shape that it stands for where that is another."""
        if not self._fingerprint:
            digest = hashlib.sha256()
            with self.path.open("rb") as file:
                while chunk := file.read(HASH_CHUNK_BYTES):
                    digest.update(chunk)
            digest.update(self._stands_for.encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def describe(self) -> dict[str, object]:
        """What the recorder said of the source, and what the file holds."""
        return {
            **self._source,
            "kind": "recorded",
            "format_version": VERSION,
            "model": self.shape.name,
            "n_tokens": self.n_tokens,
            "dtype": self._entries["layers.0.keys"].dtype.lower(),
            "values": self.has_values,
            "predicted_queries": self.has_predicted_queries,
        }

    def _taken_for(self, shape: ModelShape) -> str:
        """Take another shape; returns what it adds to the fingerprint."""
        for field in _DECIDING:
            mine, other = getattr(self.shape, field), getattr(shape, field)
            if mine != other:
                raise TraceError(
                    f"{self.path}: recorded from {self.shape.name} with {field} {mine}, but the model {shape.name} has "
                    f"{field} {other}; set the model to the recorded one"
                )
        self.shape = shape
        return shape.model_dump_json()

    def _check_tensors(self) -> None:
        expected = dict(_tensor_shapes(self, self.has_values, self.has_predicted_queries))
        for name, shape in expected.items():
            entry = self._entries.get(name)
            if entry is None:
                raise TraceError(f"{self.path}: tensor {name} is missing; it should be {list(shape)}")
            if entry.dtype not in DTYPES:
                raise TraceError(f"{self.path}: tensor {name} is {entry.dtype}, allowed are {', '.join(DTYPES)}")
            if entry.shape != shape:
                raise TraceError(
                    f"{self.path}: tensor {name} has shape {list(entry.shape)}, the header's model and steps ask for "
                    f"{list(shape)}"
                )
        superfluous = sorted(self._entries.keys() - expected.keys())
        if superfluous:
            raise TraceError(f"{self.path}: tensor {superfluous[0]} is not part of format version {VERSION}")

    def _tensor(self, name: str) -> Float32:
        """Map one tensor and widen it to float32."""
        entry = self._entries[name]
        raw: NDArray[Any] = np.memmap(
            self.path, dtype=DTYPES[entry.dtype], mode="r", offset=entry.start, shape=entry.shape
        )
        if entry.dtype == "BF16":
            wide = (raw.astype(np.uint32) << 16).view(np.float32)
        else:
            wide = raw.astype(np.float32)
        if not np.isfinite(wide).all():
            raise TraceError(f"{self.path}: tensor {name} holds values that are not finite")
        return np.asarray(wide)


def write_trace(path: Path | str, trace: KVTrace, *, values: bool = True) -> None:
    """Write a trace in float32, layer by layer; the file appears when it is complete.

    Raises ValueError where the trace yields another shape than its steps say.
    """
    path = Path(path)
    first = trace.layer(0, values=values)
    with_values = values and first.values is not None
    later = trace.layer(1, values=False) if trace.shape.n_layers > 1 else None
    predicted = later is not None and later.predicted_queries is not None
    shapes = dict(_tensor_shapes(trace, with_values, predicted))
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            file.write(_header(trace, shapes))
            for layer in range(trace.shape.n_layers):
                tensors = _layer_tensors(trace.layer(layer, values=with_values), with_values, predicted)
                for name, array in tensors:
                    if array.shape != shapes[name]:
                        raise ValueError(f"{name} has shape {array.shape}, the trace's steps ask for {shapes[name]}")
                    file.write(np.ascontiguousarray(array, dtype="<f4").data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _tensor_shapes(trace: Any, values: bool, predicted: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes in file order."""
    shape: ModelShape = trace.shape
    heads, dim = shape.n_kv_heads, shape.head_dim
    for layer in range(shape.n_layers):
        prefix = f"layers.{layer}"
        yield f"{prefix}.keys", (heads, trace.n_tokens, dim)
        if values:
            yield f"{prefix}.values", (heads, trace.n_tokens, dim)
        for p, probe in enumerate(trace.probes):
            n = probe.n_tokens
            yield f"{prefix}.queries.{p}", (shape.n_query_heads, n, dim)
            if predicted and layer > 0:
                yield f"{prefix}.predicted_queries.{p}", (shape.n_query_heads, n, dim)
            yield f"{prefix}.step_keys.{p}", (heads, n, dim)
            if values:
                yield f"{prefix}.step_values.{p}", (heads, n, dim)


def _layer_tensors(made: LayerTrace, values: bool, predicted: bool) -> Iterator[tuple[str, Float32]]:
    """The arrays of one layer under the names of `_tensor_shapes`, in the same order."""
    prefix = f"layers.{made.layer}"
    yield f"{prefix}.keys", made.keys
    if values and made.values is not None:
        yield f"{prefix}.values", made.values
    for p, query in enumerate(made.queries):
        yield f"{prefix}.queries.{p}", query
        if predicted and made.predicted_queries is not None:
            yield f"{prefix}.predicted_queries.{p}", made.predicted_queries[p]
        yield f"{prefix}.step_keys.{p}", made.step_keys[p]
        if values and made.step_values is not None:
            yield f"{prefix}.step_values.{p}", made.step_values[p]


def _header(trace: KVTrace, shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """Length and JSON header of a safetensors file, padded to eight bytes."""
    entries: dict[str, object] = {
        "__metadata__": {
            "format": FORMAT,
            "version": str(VERSION),
            "model": trace.shape.model_dump_json(),
            "steps": json.dumps([asdict(s) for s in trace.steps]),
            "probes": json.dumps([asdict(s) for s in trace.probes]),
            "source": json.dumps(trace.describe(), default=str),
        }
    }
    at = 0
    for name, shape in shapes.items():
        n_bytes = 4 * int(np.prod(shape, dtype=np.int64))
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + n_bytes]}
        at += n_bytes
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _read_header(path: Path) -> tuple[dict[str, _Entry], dict[str, str]]:
    """Entries and metadata; the safetensors library judges whether header and data fit each other."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise TraceError(f"{path}: no such trace file")
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise TraceError(f"{path}: not a complete safetensors file ({error})") from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, LONGEST_HEADER_BYTES)))
    metadata = header.pop("__metadata__", {})
    data_start = 8 + length
    entries = {
        name: _Entry(e["dtype"], tuple(e["shape"]), data_start + e["data_offsets"][0]) for name, e in header.items()
    }
    return entries, metadata


def _parse_metadata(
    path: Path, metadata: Mapping[str, str]
) -> tuple[ModelShape, tuple[Step, ...], tuple[Step, ...], dict[str, object]]:
    if metadata.get("format") != FORMAT:
        raise TraceError(f"{path}: a safetensors file, but not a trace: its metadata has no format '{FORMAT}'")
    if metadata.get("version") != str(VERSION):
        raise TraceError(f"{path}: format version {metadata.get('version')}; this program reads version {VERSION}")
    try:
        shape = ModelShape.model_validate_json(metadata["model"])
        entries = {what: json.loads(metadata[f"{what}s"]) for what in ("step", "probe")}
        source = dict(json.loads(metadata.get("source", "{}")))
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        text = " ".join(str(error).split())
        raise TraceError(f"{path}: metadata cannot be read as model, steps and probes ({text})") from error
    steps, probes = (_read_steps(path, what, entries[what]) for what in ("step", "probe"))
    _check_steps(path, steps, probes)
    return shape, steps, probes, source


def _read_steps(path: Path, what: str, entries: object) -> tuple[Step, ...]:
    """`what` is step or probe. Raises `TraceError` with the entry and the field."""
    if not isinstance(entries, list):
        raise TraceError(f"{path}: {what}s is {entries!r}; allowed: a list of objects")
    steps = []
    for i, entry in enumerate(entries):
        if wrong := _wrong_in(entry):
            raise TraceError(f"{path}: {what} {i}: {wrong}")
        steps.append(Step(**entry))
    return tuple(steps)


def _wrong_in(entry: object) -> str:
    """What is wrong with one entry of steps or probes, and what is allowed; empty where nothing is."""
    names = [field.name for field in fields(Step)]
    if not isinstance(entry, dict) or not set(entry) <= set(names):
        return f"{entry!r}; allowed: an object of {', '.join(names)}"
    for name in ("kind", "first_token", "n_tokens"):
        if name not in entry:
            return f"{name} is missing"
    if entry["kind"] not in STEP_KINDS:
        return f"kind is {entry['kind']!r}; allowed: {', '.join(STEP_KINDS)}"
    for name in ("first_token", "n_tokens"):
        if type(entry[name]) is not int:  # JSON's true is an int of Python
            return f"{name} is {entry[name]!r}; allowed: an integer"
    if type(entry.get("in_stream", True)) is not bool:
        return f"in_stream is {entry['in_stream']!r}; allowed: true or false"
    return ""


def _check_steps(path: Path, steps: tuple[Step, ...], probes: tuple[Step, ...]) -> None:
    at = 0
    for i, step in enumerate(steps):
        if step.first_token != at or step.n_tokens < 1:
            raise TraceError(
                f"{path}: step {i} covers tokens {step.first_token} to {step.first_token + step.n_tokens}, it should "
                f"start at {at} and hold at least one: steps tile the stream"
            )
        if not step.in_stream:
            raise TraceError(f"{path}: step {i}: in_stream is false; allowed: true, what is dropped again is a probe")
        at += step.n_tokens
    if not steps:
        raise TraceError(f"{path}: a trace needs at least one step")
    kinds = {(s.first_token, s.n_tokens): s.kind for s in steps}
    before = 0
    for i, probe in enumerate(probes):
        kind = kinds.get((probe.first_token, probe.n_tokens))
        if probe.in_stream and kind is None:
            raise TraceError(f"{path}: probe {i} is said to be in the stream, but no step is at {probe.first_token}")
        if probe.in_stream and kind != probe.kind:
            raise TraceError(f"{path}: probe {i}: kind is '{probe.kind}'; allowed: '{kind}', as of the step that it is")
        if not before <= probe.first_token <= at or probe.n_tokens < 1:
            raise TraceError(
                f"{path}: probe {i} at token {probe.first_token}; probes are ordered and lie within 0 to {at}"
            )
        before = probe.first_token
