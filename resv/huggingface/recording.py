"""Record a stream inside a model as a `KVTrace`: `attach(model, policy, record=Recorder())`.

Kept per layer: post-RoPE keys and values of the stream and, for probed steps, queries, predicted queries and the
step's own keys and values. A policy that replays the trace (`run_layer`) sees what the attached one saw, so with
every step probed it selects the same. One batch item of one stream; what a dropped fork did is dropped here too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol

import numpy as np

from resv.huggingface.step import LayerEvent
from resv.huggingface.stream import Stream
from resv.trace import Float32, LayerTrace, ModelShape, Step


class _Layer(NamedTuple):
    """Handles of one step's arrays in one layer; `queries` and `predicted` only where the step is probed."""

    keys: Any
    values: Any
    queries: Any = None
    predicted: Any = None


class _Entry(NamedTuple):
    step: Step
    is_probe: bool
    layers: tuple[_Layer, ...]


class _Shelf(Protocol):
    """Takes arrays and gives them back by a handle."""

    def put(self, layer: int, array: Float32) -> Any: ...

    def get(self, layer: int, handle: Any) -> Float32: ...


class _MemoryShelf:
    def put(self, layer: int, array: Float32) -> Float32:
        return array

    def get(self, layer: int, handle: Float32) -> Float32:
        return handle


class _FileShelf:
    """One file of float32 per layer, written at its end; a handle is (offset, shape)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, layer: int, array: Float32) -> tuple[int, tuple[int, ...]]:
        with self._path(layer).open("ab") as file:
            offset = file.tell()
            file.write(np.ascontiguousarray(array, dtype="<f4").data)
        return offset, array.shape

    def get(self, layer: int, handle: tuple[int, tuple[int, ...]]) -> Float32:
        offset, shape = handle
        n = int(np.prod(shape, dtype=np.int64))
        return np.fromfile(self._path(layer), dtype="<f4", count=n, offset=offset).reshape(shape)

    def _path(self, layer: int) -> Path:
        return self._folder / f"layer-{layer}.f32"


def every_step(step: Step) -> bool:
    return True


class Recorder:
    """Given to `attach(..., record=...)`, collects one stream.

    item : of the batch;  probe : which steps have their queries kept, all where not given
    folder : where arrays are kept in temporary files until `close`, in memory where not given
    """

    wants_predicted = True

    def __init__(
        self, *, item: int = 0, probe: Callable[[Step], bool] = every_step, folder: Path | str | None = None
    ) -> None:
        self._item = item
        self._probe = probe
        self._temporary = None if folder is None else TemporaryDirectory(prefix="resv-recording-", dir=folder)
        self._shelf: _Shelf = _MemoryShelf() if self._temporary is None else _FileShelf(Path(self._temporary.name))
        self._stream: Stream | None = None
        self._entries: list[_Entry] = []
        self._pending: list[_Layer] = []

    def on_layer(self, event: LayerEvent) -> None:
        self._follow(event.stream)
        if event.layer == 0:
            self._pending = []  # of a step that failed
        keep = {"keys": event.keys, "values": event.values}
        if self._probe(event.step):
            keep["queries"] = event.queries
            if event.predicted is not None:
                keep["predicted"] = event.predicted
        elif not event.step.in_stream:
            keep = {}
        handles = {name: self._shelf.put(event.layer, array[self._item]) for name, array in keep.items()}
        self._pending.append(_Layer(**{"keys": None, "values": None, **handles}))

    def on_step(self, stream: Stream, step: Step) -> None:
        self._entries.append(_Entry(step, self._probe(step), tuple(self._pending)))
        self._pending = []

    def on_rollback(self, stream: Stream, n_steps: int) -> None:
        if stream is self._stream:
            del self._entries[n_steps:]

    def trace(self) -> RecordedStream:
        """What was recorded so far; raises ValueError where no step has joined the stream."""
        if self._stream is None or not any(entry.step.in_stream for entry in self._entries):
            raise ValueError("nothing was recorded: no step has run in a stream of this attachment")
        return RecordedStream(self._stream, tuple(self._entries), self._shelf)

    def close(self) -> None:
        """Remove the temporary files; traces made of them cannot be read any more."""
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    def _follow(self, stream: Stream) -> None:
        if self._stream is None:
            if self._item >= stream.batch:
                raise ValueError(f"item is {self._item}, but the stream has a batch of {stream.batch}")
            self._stream = stream
        if stream is not self._stream:
            raise ValueError("a recorder records one stream; make another recorder, and attach anew, for the next")


class RecordedStream:
    """What a `Recorder` has, as a `KVTrace`; `write_trace` makes a file of it."""

    def __init__(self, stream: Stream, entries: tuple[_Entry, ...], shelf: _Shelf) -> None:
        self.shape: ModelShape = stream.shape
        self._entries, self._shelf = entries, shelf
        self.steps = tuple(entry.step for entry in entries if entry.step.in_stream)
        self.probes = tuple(entry.step for entry in entries if entry.is_probe)
        self.n_tokens = sum(step.n_tokens for step in self.steps)
        attachment = stream.attachment
        self._source: dict[str, object] = {
            "kind": "recorded in a model",
            "model": self.shape.name,
            "model_type": attachment.model.config.model_type,
            "policy": stream.policy.model_dump(mode="json"),
            "dtype": str(attachment.dtype).removeprefix("torch."),
            "notes": list(attachment.notes),
        }

    def layer(self, layer: int, *, values: bool = True) -> LayerTrace:
        if not 0 <= layer < self.shape.n_layers:
            raise ValueError(f"layer {layer} is not among the {self.shape.n_layers} layers of this recording")

        def get(name: str, entries: list[_Entry]) -> tuple[Float32, ...]:
            return tuple(self._shelf.get(layer, getattr(entry.layers[layer], name)) for entry in entries)

        stream = [entry for entry in self._entries if entry.step.in_stream]
        probed = [entry for entry in self._entries if entry.is_probe]
        return LayerTrace(
            layer=layer,
            keys=np.concatenate(get("keys", stream), axis=1),
            values=np.concatenate(get("values", stream), axis=1) if values else None,
            queries=get("queries", probed),
            predicted_queries=get("predicted", probed) if layer else None,
            step_keys=get("keys", probed),
            step_values=get("values", probed) if values else None,
        )

    def fingerprint(self) -> str:
        """Hash of the shape, the steps and all arrays."""
        digest = hashlib.sha256(f"{self.shape.model_dump_json()} {self.steps} {self.probes}".encode())
        for entry in self._entries:
            for layer, handles in enumerate(entry.layers):
                for handle in handles:
                    if handle is not None:
                        digest.update(np.ascontiguousarray(self._shelf.get(layer, handle)).data)
        return digest.hexdigest()

    def describe(self) -> dict[str, object]:
        return dict(self._source)
