"""A stage's results on disk, found again by the hash of what the stage read.

The functional stage of one layer is a few megabytes of arrays in one safetensors file: memory-mapped,
no pickle. A file is written under a temporary name and renamed, so a killed run leaves none half done.
A file that cannot be read is treated as absent and made again. The folder stays within a limit: what was used least
recently goes. Any number of processes may store, load and remove at the same time.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from resv.selection import ClusterTable, ClusterUpdate, Counts, Fidelity, LayerSelection, ScoreRows
from resv_sim.errors import ConfigError

Arrays = dict[str, NDArray[Any]]

SCHEMA = 1
MASKS = ("attended", "resident", "candidates", "evicted")
LIMIT_GB = 4.0  # two or three full-size sweeps; a setting of Llama-3-8B takes 8 MB at 10,000 tokens
# Measuring the folder takes as long as storing some ten entries, so one store in this many does it.
_STORES_PER_LOOK = 32
_TRIM_TO = 0.9  # of the limit, so that not every look removes something
_STALE_S = 3600  # an unfinished file this old belongs to a process that was killed


def cache_directory() -> Path:
    """`$RESV_SIM_CACHE`, else the user's cache directory."""
    explicit = os.environ.get("RESV_SIM_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(explicit) if explicit else Path(base) / "resv-sim"
    if folder.exists() and not folder.is_dir():
        _warn_of_file(folder)
    return folder


@cache
def _warn_of_file(folder: Path) -> None:
    print(f"resv-sim: warning: {folder} is a file, not the folder of a cache: nothing is remembered", file=sys.stderr)


def cache_limit_bytes() -> int:
    """`$RESV_SIM_CACHE_GB`, else `LIMIT_GB`, in bytes. Raises `ConfigError` where it is no size."""
    text = os.environ.get("RESV_SIM_CACHE_GB", str(LIMIT_GB))
    try:
        limit_gb = float(text)
    except ValueError:
        limit_gb = math.nan
    if not 0 <= limit_gb < math.inf:
        raise ConfigError(f"RESV_SIM_CACHE_GB is '{text}'; allowed: a number of gigabytes from 0")
    return int(limit_gb * 1e9)


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


class _Entry(NamedTuple):
    used_ns: int
    size_bytes: int
    path: Path


class Memo:
    """Arrays by key under one directory. `directory=None` remembers nothing; a limit of None is the user's."""

    def __init__(self, directory: Path | None, limit_bytes: int | None = None) -> None:
        self.directory = directory
        self.limit_bytes = cache_limit_bytes() if limit_bytes is None else limit_bytes

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
        with suppress(OSError):  # it may be gone by now, or belong to somebody else
            os.utime(path)
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
        if zlib.crc32(key.encode()) % _STORES_PER_LOOK == 0:
            self.trim(self.limit_bytes)

    def size_bytes(self) -> int:
        """Bytes of everything stored."""
        return sum(entry.size_bytes for entry in self._entries())

    def trim(self, limit_bytes: int) -> None:
        """Where more is stored than the limit, remove what was used least recently until there is room again."""
        entries = sorted(self._entries())
        size_bytes = sum(entry.size_bytes for entry in entries)
        if size_bytes <= limit_bytes:
            return
        for entry in entries:
            if size_bytes <= _TRIM_TO * limit_bytes:
                return
            with suppress(OSError):
                entry.path.unlink(missing_ok=True)
            size_bytes -= entry.size_bytes

    def _entries(self) -> Iterator[_Entry]:
        """All that is stored. Files that a killed process did not finish are removed on the way."""
        if self.directory is None:
            return
        now = time.time()
        for path in self.directory.glob("[0-9a-f][0-9a-f]/*"):
            with suppress(OSError):  # another process may have removed it
                status = path.stat()
                if path.suffix == ".safetensors":
                    yield _Entry(status.st_mtime_ns, status.st_size, path)
                elif path.suffix == ".part" and now - status.st_mtime > _STALE_S:
                    path.unlink()

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
