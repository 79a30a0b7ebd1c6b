"""A small sweep for tests: a tiny model, a few settings that need the algorithm and a few that do not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from resv_sim.config import load_tree
from resv_sim.sweep.space import Sweep, sweep_of

# Runs a sweep without drawing it; figures take longer than the points of a tiny model.
DRIVER = """
import sys
from pathlib import Path
from resv_sim.config import load_tree
from resv_sim.sweep.job import run_sweep
from resv_sim.sweep.space import sweep_of

if __name__ == "__main__":
    config, out, jobs, scheduler = sys.argv[1:5]
    run_sweep(sweep_of(*load_tree(config)), Path(out), int(jobs), scheduler=scheduler or None,
              resume="--resume" in sys.argv, use_cache=True)
"""


def sweep_data(n_ratios: int = 3, **changes: Any) -> dict[str, Any]:
    """The sweep as plain data: 2 x n_ratios settings of the algorithm times 2 links; `changes` go into `sweep`."""
    ratios = [round(0.1 + 0.01 * i, 2) for i in range(n_ratios)]
    return {
        "name": "tiny_sweep",
        "model": "tiny",
        "workload": {"kind": "probes", "kv_lengths_tokens": [200], "stages": ["frame"]},
        "policies": {"full": {"base": "full", "recent_bytes": 0}, "resv": {"base": "resv", "recent_bytes": 0}},
        "platforms": {"agx_orin": "agx_orin", "vrex8": "vrex8"},
        "runs": [{"platform": "agx_orin", "policy": "full"}, {"platform": "vrex8", "policy": "resv"}],
        "baseline": {"platform": "agx_orin", "policy": "full"},
        "sweep": {
            "measure": {"platform": "vrex8", "policy": "resv"},
            "axes": {
                "hash_bits": {"set": {"policies.resv.hash_bits": [16, 32], "policies.resv.hamming_threshold": [4, 7]}},
                "ratio": {"path": "policies.resv.wicsum.ratio", "values": ratios},
                "link": {"path": "platforms.vrex8.offload.link", "values": ["pcie3_x4", "pcie4_x4"]},
            },
            "figures": ["speedup", "attention_mass_kept"],
            "published": {"hash_bits": 32, "ratio": ratios[-1], "link": "pcie3_x4"},
            **changes,
        },
    }


def write_sweep(folder: Path, data: dict[str, Any]) -> Path:
    """The sweep as a file."""
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def load_sweep(folder: Path, data: dict[str, Any]) -> Sweep:
    """The sweep as the program loads it."""
    return sweep_of(*load_tree(str(write_sweep(folder, data))))


def start(config: Path, out: Path, *, jobs: int = 1, scheduler: str = "", resume: bool = False) -> Any:
    """A process that runs the sweep."""
    driver = out.parent / "driver.py"  # workers are spawned, and import the main module from its file
    driver.write_text(DRIVER)
    command = [sys.executable, str(driver), str(config), str(out), str(jobs), scheduler]
    environment = {**os.environ, "RESV_SIM_CACHE": str(out.parent / f"cache_{out.name}")}
    return subprocess.Popen(
        [*command, *(["--resume"] if resume else [])],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: Any) -> None:
    """Wait for a process and require that it succeeded."""
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
