"""One writer per folder, and temporary folders that do not outlive their process for long.

A lock is held by an open file, so it ends with its process however that ends; the process id is only for messages.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from resv.tiers.errors import FolderInUseError

LOCK = "writer.lock"


class WriterLock:
    """Held from construction to `release`. Raises `FolderInUseError` where another writer holds it."""

    def __init__(self, folder: Path) -> None:
        self._fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise FolderInUseError(
                f"'{folder}' is being written by process {holder}; a folder has one writer and many readers: "
                "open it for reading, or wait"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def temporary_root() -> Path:
    return Path(tempfile.gettempdir()) / f"resv-tiers-{os.getuid()}"


def temporary_folder() -> tuple[Path, WriterLock]:
    """A new locked folder, after those that dead processes left behind are removed."""
    root = temporary_root()
    root.mkdir(mode=0o700, exist_ok=True)
    with (root / ".lock").open("wb") as guard:  # a folder just made is not yet locked: nobody may sweep meanwhile
        fcntl.flock(guard, fcntl.LOCK_EX)
        remove_stale(root)
        folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=root))
        return folder, WriterLock(folder)


def remove_stale(root: Path) -> list[Path]:
    """Remove the folders below `root` that no living process holds; the caller keeps others from making one."""
    removed = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        try:
            lock = WriterLock(folder)
        except (FolderInUseError, FileNotFoundError):  # the second: its process has just removed it
            continue
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()
        removed.append(folder)
    return removed
