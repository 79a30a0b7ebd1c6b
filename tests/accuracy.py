"""A tiny untrained model and short exams for tests of the accuracy benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from resv.mini.model import MiniConfig, build_network
from resv.mini.weights import save_weights
from resv.policies.base import Policy
from resv_sim.accuracy import answering
from resv_sim.accuracy.config import AccuracyConfig

TINY = MiniConfig(
    n_layers=2, hidden=32, n_query_heads=2, n_kv_heads=1, head_dim=16, ffn=48, patch_hidden=24, max_positions=1600
)


def exam_config(**changes: Any) -> AccuracyConfig:
    """Three streams of 20 frames, asked at two moments; `changes` are fields."""
    return AccuracyConfig.model_validate({"n_streams": 3, "n_frames": 20, "moments": 2} | changes)


def tiny_weights(folder: Path) -> Path:
    """A weight file of the untrained model."""
    path = folder / "tiny.safetensors"
    save_weights(build_network(TINY, 3), path, {})
    return path


def policies_that_sit(monkeypatch: pytest.MonkeyPatch) -> list[Policy]:
    """The policies whose exams the model sits from now on in this process, in their order; a list that grows."""
    ran: list[Policy] = []
    whole = answering.answer_exam

    def told(model: Any, policy: Policy, *args: Any, **fields: Any) -> Any:
        ran.append(policy)
        return whole(model, policy, *args, **fields)

    monkeypatch.setattr(answering, "answer_exam", told)
    return ran
