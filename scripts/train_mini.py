"""Make the weights of the mini model, and its card.

    python scripts/train_mini.py train --out runs/mini [--steps N] [--seed N] [--threads N] [--resume] [--device cuda]
    python scripts/train_mini.py export --out runs/mini          # weights of the newest checkpoint into the package
    python scripts/train_mini.py card --out runs/mini            # measure them; numbers into the weights, and the page

`train` saves a checkpoint every `--every` steps; after a kill, the same command with `--resume` goes on and ends with
the same weights as an uninterrupted run on that machine. It exports at its end into the folder of `--out`. `--steps`
changes the schedule, too, so a shorter run is not the beginning of a longer one.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from resv.mini.card import LENGTHS, measure, render_card
from resv.mini.checkpoint import Run, load_checkpoint, save_checkpoint, start
from resv.mini.recipe import TrainingConfig
from resv.mini.training import train
from resv.mini.weights import SHIPPED, WeightsError, load_mini, save_weights

CHECKPOINT = "checkpoint.pt"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train, and export at the end")
    training.add_argument("--steps", type=int, help="length of the schedule")
    training.add_argument("--seed", type=int)
    training.add_argument("--threads", type=int, default=4, help="changes the time only; four parts make a step")
    training.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    training.add_argument("--resume", action="store_true", help="go on from the checkpoint, with its recipe")
    training.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    training.add_argument("--tiny", action="store_true", help="a model and batches for trying the command out")
    export = commands.add_parser("export", help="write the weights of the newest checkpoint")
    card = commands.add_parser("card", help="measure weights and write the model card beside them")
    card.add_argument("--streams", type=int, default=24, help="per length and level")
    card.add_argument("--longest", type=int, default=max(LENGTHS), help="frames of the longest streams")
    for command in (training, export, card):
        command.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    for command in (export, card):
        command.add_argument("--weights", type=Path, default=SHIPPED, help="by default those in the package")
    return parser.parse_args(arguments)


def tiny_recipe() -> TrainingConfig:
    """Seconds of training: for trying out, not for use."""
    return TrainingConfig.model_validate(
        {
            "model": {"n_layers": 2, "hidden": 32, "n_query_heads": 2, "n_kv_heads": 1, "head_dim": 16, "ffn": 64}
            | {"patch_hidden": 32},
            "steps": 40,
            "n_streams": 4,
            "n_shards": 2,
            "n_probes": 4,
            "max_frames": 12,
            "long_frames": 16,
            "long_streams": 2,
            "warmup_steps": 5,
        }
    )


def begin(args: argparse.Namespace) -> Run:
    """The run to go on with: of the checkpoint with --resume, else a new one. Raises ValueError."""
    path = args.out / CHECKPOINT
    changes = {name: value for name in ("steps", "seed") if (value := getattr(args, name)) is not None}
    if args.resume:
        run = load_checkpoint(path, args.device)
        changed = {name: value for name, value in changes.items() if value != getattr(run.config, name)}
        if changed:
            raise ValueError(f"{path}: was begun with another recipe than {changed}; leave these options out")
        return run
    if path.exists():
        raise ValueError(f"{path}: exists; go on with it by --resume, or name another --out")
    recipe = tiny_recipe() if args.tiny else TrainingConfig()
    return start(TrainingConfig.model_validate(recipe.model_dump() | changes), args.device)


def run_training(args: argparse.Namespace) -> None:
    run = begin(args)
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"{run.network.n_parameters():,} parameters, {run.config.steps} steps from {run.step} on, {args.device}")
    for point in train(run, args.threads, args.every):
        save_checkpoint(run, args.out / CHECKPOINT)
        shown = " ".join(f"{name} {value:.3f}" for name, value in point.items() if name != "step")
        print(f"step {point['step']:.0f} {run.seconds:.0f} s {shown}", flush=True)
    save_weights(run.network, args.out / SHIPPED.name, {})
    print(f"wrote {args.out / SHIPPED.name}")


def run_export(args: argparse.Namespace) -> None:
    run = load_checkpoint(args.out / CHECKPOINT)
    args.weights.parent.mkdir(parents=True, exist_ok=True)
    save_weights(run.network, args.weights, {})
    print(f"wrote {args.weights}, {args.weights.stat().st_size:,} bytes, after {run.step} of {run.config.steps} steps")


def run_card(args: argparse.Namespace) -> None:
    run = load_checkpoint(args.out / CHECKPOINT)
    model = load_mini(args.weights)
    card = measure(model, run, args.streams, tuple(n for n in LENGTHS if n <= args.longest))
    save_weights(model.network, args.weights, {"card": json.dumps(card)})
    page = args.weights.parent / "MODEL_CARD.md"
    page.write_text(render_card(card, load_mini(args.weights).metadata["sha256"]), encoding="utf-8")
    print(f"wrote {page}")


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    try:
        {"train": run_training, "export": run_export, "card": run_card}[args.command](args)
    except (WeightsError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
