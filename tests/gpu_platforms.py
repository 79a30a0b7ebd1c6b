"""Bundled GPU platforms and steps that several GPU tests use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dre_sim.gpu import Gpu, GpuConfig
from dre_sim.lowering import dense_step
from dre_sim.offload import OffloadTier
from dre_sim.statistics import OperatingPoint, statistics_step
from dre_sim.workload import FetchWork, PredictMode, StepWork
from resv.trace import ModelShape

CONFIGS = Path(__file__).parent.parent / "configs"
PLATFORMS = ("agx_orin", "agx_orin_paper", "a100", "agx_orin_eager")


def read(family: str, name: str) -> dict[str, Any]:
    values = yaml.safe_load((CONFIGS / family / f"{name}.yaml").read_text(encoding="utf-8"))
    assert isinstance(values, dict)
    return values


def platform(name: str, **changes: Any) -> GpuConfig:
    """A bundled platform, the names in its offload tier followed, fields changed."""
    fields = read("platforms", name)
    if base := fields.pop("base", None):
        fields = {**read("platforms", base), **fields}
    tier = dict(fields.pop("offload"))
    for family in ("ssd", "link", "memory"):
        if isinstance(tier.get(family), str):
            tier[family] = read(family, tier[family])
    return GpuConfig(**{**fields, "offload": OffloadTier(**tier), **changes})


ORIN, PAPER, A100, EAGER = (platform(name) for name in PLATFORMS)


def full_step(shape: ModelShape, kv_len: int, n_new: int = 10) -> StepWork:
    """FlexGen: the whole cache is fetched, K and V of a layer in one extent each."""
    step = dense_step(shape, n_new, kv_len)
    token_bytes = shape.kv_bytes_per_token_layer
    fetch = FetchWork(np.full(2, kv_len * token_bytes // 2), kv_len * token_bytes, kv_len * shape.n_kv_heads)
    return replace(step, layers=tuple(replace(layer, fetch=fetch) for layer in step.layers), policy="full")


def resv_step(shape: ModelShape, kv_len: int, ratio: float, predict: PredictMode = "next_layer") -> StepWork:
    return statistics_step(shape, 10, kv_len, OperatingPoint(ratio=ratio, predict=predict))


def milliseconds(config: GpuConfig, work: StepWork) -> float:
    return Gpu(config).simulate(work).end_ps / 1e9
