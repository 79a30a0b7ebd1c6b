"""A folder of results that appears whole or not at all.

Files are written into a hidden folder inside the output folder (the same file system, so that moving is
renaming) and moved into place at the end; what an earlier run left there and this one does not make is
removed. A failing run leaves what was there before; a hidden folder that a killed one left goes with the next run.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from resv_sim.errors import OutputError

MANIFEST = "provenance.json"
SWEEP_STATE = "sweep.json"  # a folder with it is a sweep's, whose points no other run may write among
_PREFIX = ".partial-"


class OutputFolder:
    """`with OutputFolder(path) as folder:` write into `folder.partial`, then `folder.commit()`.

    Entering raises `OutputError` where the folder cannot be written or holds a sweep, before any work is done.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> OutputFolder:
        if (self.path / SWEEP_STATE).exists():
            raise OutputError(f"'{self.path}' holds a sweep: choose another folder with --out.")
        self._made = [p for p in (self.path, *self.path.parents) if not p.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._make_partial()
        except OSError as error:
            self._remove_made()
            raise OutputError(
                f"cannot write results into '{self.path}': {error.strerror or error}. "
                "Choose a folder that can be written with --out."
            ) from error
        return self

    def commit(self) -> None:
        """Move every written file into place, the manifest last, and drop files of an earlier run."""
        fresh = sorted(p.relative_to(self.partial) for p in self.partial.rglob("*") if p.is_file())
        stale = [name for name in self._earlier() if name not in fresh]
        for name in sorted(fresh, key=lambda name: (str(name) == MANIFEST, name)):
            target = self.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (self.partial / name).replace(target)
        for name in stale:
            (self.path / name).unlink(missing_ok=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.partial, ignore_errors=True)
        os.close(self._lock)
        if error is not None:
            self._remove_made()

    def _make_partial(self) -> None:
        """The hidden folder, locked for as long as this run lives; what a killed run left of its own is removed."""
        mine = _opened(self.path)
        try:
            _locked(mine, wait=True)  # nobody may take a folder for a dead run's before it is locked
            for left in self.path.glob(f"{_PREFIX}*"):
                held = _opened(left)
                if _locked(held):
                    shutil.rmtree(left, ignore_errors=True)
                os.close(held)
            self.partial = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self.path))
            self._lock = _opened(self.partial)
            _locked(self._lock)
        finally:
            os.close(mine)

    def _remove_made(self) -> None:
        """Take back the folders that entering made, as far as they are empty."""
        for made in self._made:
            try:
                made.rmdir()
            except OSError:
                return

    def _earlier(self) -> list[Path]:
        """Files that the last run into this folder wrote, below the folder."""
        try:
            names = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))["files"]
            paths = [Path(name) for name in names]
        except (OSError, ValueError, KeyError, TypeError):
            return []
        return [path for path in paths if not path.is_absolute() and ".." not in path.parts]


def _opened(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)


def _locked(folder: int, *, wait: bool = False) -> bool:
    """Whether an open folder could be locked: nobody else has it, and the file system knows locks."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
