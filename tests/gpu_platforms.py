"""Bundled GPU platforms and steps that several GPU tests use."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dre_sim.gpu import Gpu, GpuConfig
from dre_sim.lowering import dense_step
from dre_sim.statistics import OperatingPoint, statistics_step
from dre_sim.workload import FetchWork, PredictMode, StepWork
from resv.trace import ModelShape
from tests.bundled import platform

PLATFORMS = ("agx_orin", "agx_orin_paper", "a100", "agx_orin_eager", "a100_eager")
ORIN, PAPER, A100, EAGER, A100_EAGER = (platform(name) for name in PLATFORMS)


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
