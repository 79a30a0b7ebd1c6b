"""The machines that a step can run on: `PLATFORMS`, from the `kind` of a configuration to its model."""

from __future__ import annotations

from dre_sim.gpu import Gpu, GpuConfig, OutOfMemoryError
from dre_sim.vrex import VRex, VRexConfig

PLATFORMS = {"vrex": (VRexConfig, VRex), "gpu": (GpuConfig, Gpu)}

__all__ = ["PLATFORMS", "OutOfMemoryError", "VRex", "VRexConfig"]
