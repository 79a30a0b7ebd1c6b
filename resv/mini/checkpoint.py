"""A training run between two steps, and the file it survives a kill in."""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass, field
from pathlib import Path

import torch

from resv.mini.model import MiniNetwork, build_network
from resv.mini.recipe import TrainingConfig


def make_optimiser(network: MiniNetwork, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW; only matrices decay."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))


@dataclass
class Run:
    """`step` steps are done. `curve` holds means over equal numbers of steps; `seconds` is the time all steps took."""

    config: TrainingConfig
    network: MiniNetwork
    optimiser: torch.optim.AdamW
    step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


def start(config: TrainingConfig, device: str = "cpu") -> Run:
    """A run before its first step."""
    network = build_network(config.model, config.seed).to(device)
    return Run(config, network, make_optimiser(network, config))


def save_checkpoint(run: Run, path: Path) -> None:
    """Write the run to `path`, whole or not at all."""
    part = path.with_suffix(".part")
    state = {
        "config": run.config.model_dump(mode="json"),
        "network": run.network.state_dict(),
        "optimiser": run.optimiser.state_dict(),
        "step": run.step,
        "curve": run.curve,
        "seconds": run.seconds,
        "torch_rng": torch.get_rng_state(),
    }
    torch.save(state, part)
    os.replace(part, path)


def load_checkpoint(path: Path, device: str = "cpu") -> Run:
    """The run as it was saved. Raises ValueError if the file is no checkpoint of this training."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        run = start(TrainingConfig.model_validate(state["config"]), device)
        run.network.load_state_dict(state["network"])
        run.optimiser.load_state_dict(state["optimiser"])
        run.step, run.curve, run.seconds = state["step"], state["curve"], state["seconds"]
        torch.set_rng_state(state["torch_rng"].cpu())
    except (OSError, RuntimeError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: not a checkpoint of this training: {error}") from error
    return run
