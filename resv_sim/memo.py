"""A stage's results on disk, found again by the hash of what the stage read.

The functional stage of one layer is a few megabytes of arrays in one safetensors file: memory-mapped,
no pickle. A file is written under a temporary name and renamed, so a killed run leaves none half done.
A file that cannot be read is treated as absent and made again.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resv.selection import ClusterTable, ClusterUpdate, Counts, Fidelity, LayerSelection, ScoreRows

Arrays = dict[str, NDArray[Any]]

SCHEMA = 1
MASKS = ("attended", "resident", "candidates", "evicted")


def cache_directory() -> Path:
    """`$RESV_SIM_CACHE`, else the user's cache directory."""
    explicit = os.environ.get("RESV_SIM_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(explicit) if explicit else Path(base) / "resv-sim"


@cache
def code_fingerprint(package: str) -> str:
    """Hash of a package's sources: results of other code are other results."""
    root = Path(__file__).resolve().parent.parent / package
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def key_of(*parts: object) -> str:
    """Stable hash of JSON-like parts."""
    text = json.dumps([SCHEMA, *parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class Memo:
    """Arrays by key under one directory. `directory=None` remembers nothing."""

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory

    def holds(self, key: str) -> bool:
        """Whether something is stored under the key, readable or not."""
        path = self._path(key)
        return path is not None and path.exists()

    def load(self, key: str) -> Arrays | None:
        path = self._path(key)
        if path is None or not path.exists():
            return None
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            arrays: Arrays = load_file(path)
        except (OSError, SafetensorError):
            return None
        return arrays

    def store(self, key: str, arrays: Arrays) -> None:
        """Best effort: a full or read-only disk costs the next run time, not this one its result."""
        path = self._path(key)
        if path is None:
            return
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        temporary = path.with_suffix(f".{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, temporary)
            temporary.replace(path)
        except (OSError, SafetensorError):
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _path(self, key: str) -> Path | None:
        return None if self.directory is None else self.directory / key[:2] / f"{key}.safetensors"


# -- layer selections to arrays and back -----------------------------------------------------------------


def pack_layers(selections: tuple[LayerSelection, ...], fidelity: tuple[Fidelity, ...]) -> Arrays:
    """One layer's selections (one per probe) and their fidelity, as named arrays."""
    out: Arrays = {"layer": np.array([s.layer for s in selections], dtype=np.int64)}
    for p, sel in enumerate(selections):
        out[f"{p}.shape"] = np.array(sel.attended.shape, dtype=np.int64)
        for name in MASKS:
            if getattr(sel, name) is None:
                continue
            out[f"{p}.{name}"] = np.packbits(getattr(sel, name), axis=None)
        out[f"{p}.counts"] = np.array(list(asdict(sel.counts).values()), dtype=np.int64)
        out[f"{p}.sizes"] = np.array([len(sel.tables), len(sel.updates), len(sel.rows)], dtype=np.int64)
        for group in ("tables", "updates", "rows"):
            for i, item in enumerate(getattr(sel, group)):
                out.update({f"{p}.{group}.{i}.{f.name}": _to_disk(getattr(item, f.name)) for f in fields(item)})
    for p, fid in enumerate(fidelity):
        out.update({f"{p}.fidelity.{f.name}": getattr(fid, f.name) for f in fields(fid)})
    return out


def unpack_layers(arrays: Arrays) -> tuple[tuple[LayerSelection, ...], tuple[Fidelity, ...]]:
    """Inverse of `pack_layers`."""
    selections, fidelity = [], []
    for p, layer in enumerate(arrays["layer"]):
        heads, cached = (int(x) for x in arrays[f"{p}.shape"])
        masks = {
            name: np.unpackbits(arrays[f"{p}.{name}"], count=heads * cached).astype(bool).reshape(heads, cached)
            for name in MASKS
            if f"{p}.{name}" in arrays
        }
        n_tables, n_updates, n_rows = (int(x) for x in arrays[f"{p}.sizes"])
        names = [f.name for f in fields(Counts)]
        selections.append(
            LayerSelection(
                int(layer),
                counts=Counts(**dict(zip(names, (int(v) for v in arrays[f"{p}.counts"]), strict=True))),
                tables=tuple(_item(ClusterTable, arrays, f"{p}.tables.{i}") for i in range(n_tables)),
                updates=tuple(_item(ClusterUpdate, arrays, f"{p}.updates.{i}") for i in range(n_updates)),
                rows=tuple(_item(ScoreRows, arrays, f"{p}.rows.{i}") for i in range(n_rows)),
                **masks,
            )
        )
        if f"{p}.fidelity.{fields(Fidelity)[0].name}" in arrays:
            fidelity.append(_item(Fidelity, arrays, f"{p}.fidelity"))
    return tuple(selections), tuple(fidelity)


def _item(kind: Any, arrays: Arrays, prefix: str) -> Any:
    return kind(**{f.name: _from_disk(arrays[f"{prefix}.{f.name}"]) for f in fields(kind)})


def _to_disk(values: NDArray[Any]) -> NDArray[Any]:
    """Scores are bf16 values held in float32: their upper half is all there is."""
    if values.dtype == np.float32:
        return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)
    return values


def _from_disk(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values
