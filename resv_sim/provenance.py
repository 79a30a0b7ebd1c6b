"""What made a result: version, revision, configuration, seed, tables. No dates and no machine's paths."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resv_sim.config import Experiment

DISTRIBUTION = "resv-sim"
LIBRARIES = ("numpy", "numba", "torch", "pydantic")


def version_text() -> str:
    """The installed version, or 'unknown' where the package was never installed."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown"


def git_revision() -> str:
    """Commit of the checkout the program runs from, '+' appended if it was changed; '' outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def provenance(experiment: Experiment, files: Sequence[str]) -> dict[str, object]:
    """Everything needed to make the same result again. `files` are what was written, below the folder."""
    return {
        "program": DISTRIBUTION,
        "version": version_text(),
        "git_revision": git_revision(),
        "experiment": experiment.name,
        "config_hash": experiment.config_hash(),
        "seed": experiment.trace.seed,
        "platforms": {label: config.name for label, config in experiment.platforms.items()},
        "price_tables": {label: table.name for label, table in experiment.energy.items()},
        "python": platform.python_version(),
        "libraries": {name: _library_version(name) for name in LIBRARIES},
        "files": sorted(files),
    }


def _library_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
