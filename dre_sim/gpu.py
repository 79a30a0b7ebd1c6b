"""A GPU with an offload tier running a step: the baseline that V-Rex is measured against.

One stream of kernels fed by a host that launches ahead of it, a copy path from the offload tier, one shared
device memory. `full` is FlexGen streaming: every layer's cache comes over the link, one layer ahead
of the compute. `resv` runs prediction in software, on the host and the same stream. What overlaps is
decided by dependencies and resources in `scheduler.py`; what kernels cost is in `gpu_kernels.py`. Knows
no joule.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from dre_sim import gpu_kernels as kernels
from dre_sim import gpu_retrieval as retrieval
from dre_sim.gpu_kernels import GpuConfig, Kernel, PowerMode
from dre_sim.gpu_retrieval import SoftwareStage
from dre_sim.offload import FetchTiming
from dre_sim.scheduler import TaskGraph
from dre_sim.timeline import Timeline
from dre_sim.workload import Gemm, Int64, LayerWork, StepWork
from dre_sim.writeback import add_writeback

__all__ = ["Gpu", "GpuConfig", "OutOfMemoryError", "PowerMode", "check_capacity", "device_bytes"]

# Kernels of one decoder layer beside products and attention. Eager: norms 2·8, RoPE 10, cache 2, residuals 2,
# SwiGLU 2. Fused: norm with residual 2, RoPE with cache append 1, SwiGLU 1. Modules, counted in llm-awq d6e797a
# (tinychat/modules): norms 2, RoPE 2, cache append 3 and read back 2, residuals 2, SwiGLU 2, zero points of gate and
# up 4; one token at a time needs norms, residuals and SwiGLU alone. ggml, counted in llama.cpp's graph of build 2836:
# norms 4, RoPE 2, cache append 2, residuals 2, SwiGLU 2, softmax and the transposition behind attention.
VECTOR_LAUNCHES = {"eager": 32, "modules": 17, "fused": 4, "graph": 4, "ggml": 14}
MODULES_TOKEN_LAUNCHES = 6
# Separate products where a stack does not join q, k, v and gate, up.
APART = {"qkv": 3, "gate_up": 2}
GEMM_LAUNCHES = {"eager": APART, "ggml": APART, "modules": {"gate_up": 2}}
# Encoder layer: eager and ggml norms, residuals, GELU, transposes; fused norms and residuals.
VISION_LAUNCHES = {"eager": 10, "modules": 3, "fused": 3, "graph": 3, "ggml": 10}


class OutOfMemoryError(ValueError):
    """Weights and resident cache exceed the device memory."""


def device_bytes(work: StepWork) -> int:
    """Device memory that a step needs at least: weights, attended resident K and V, two fetch buffers.

    A lower bound: the token embedding and resident tokens that the step does not attend to are not in it.
    """
    products = [*work.vision, *work.head, *(g for layer in work.layers for g in layer.gemms)]
    weights = sum(g.weight_bytes for g in products)
    fetched = [layer.fetch.useful_bytes if layer.fetch else 0 for layer in work.layers]
    read = sum(layer.attention.kv_read_bytes for layer in work.layers)
    return weights + max(0, read - sum(fetched)) + 2 * max(fetched, default=0)


def check_capacity(name: str, capacity_bytes: int, needed_bytes: int) -> None:
    """Raises OutOfMemoryError with both numbers where `needed_bytes` exceed the device memory."""
    if needed_bytes > capacity_bytes:
        raise OutOfMemoryError(
            f"{name}: weights and resident KV cache need {needed_bytes / 1e9:.4g} GB of device memory, it "
            f"has {capacity_bytes / 1e9:.4g} GB; use a shorter cache, a smaller batch, fewer weight bits or "
            "offloading"
        )


class Gpu:
    """Simulates steps on one GPU. Stateless: the same work gives the same timeline."""

    def __init__(self, config: GpuConfig) -> None:
        self.config = config

    def simulate(self, work: StepWork) -> Timeline:
        """Schedule one step. Raises OutOfMemoryError where it does not fit into the device memory.

        The step ends with its last kernel: K and V that leave the device are written behind later steps.
        """
        check_capacity(self.config.name, self.config.memory_capacity_bytes, device_bytes(work))
        return _StepOnGpu(self.config, work).timeline()


class _StepOnGpu:
    """Builds the task graph of one step. `_stream` is the last kernel, `_host` the last launch."""

    def __init__(self, config: GpuConfig, work: StepWork) -> None:
        self.config = config
        self.work = work
        self.graph = TaskGraph()
        self.actions: Counter[str] = Counter()
        self.fetched: dict[int, tuple[int, ...]] = {}
        self._stream: tuple[int, ...] = ()
        self._host: tuple[int, ...] = ()
        self._host_held_ps = 0
        # Nothing is predicted in this step: what is fetched is known beforehand.
        self._known = work.predict == "none" or not any(layer.selects for layer in work.layers)

    def timeline(self) -> Timeline:
        """The whole step in order, then its spans, and what was counted on the way."""
        if self._known and self.config.fetch == "overlapped":
            self._fetch_after(-1)
        self._vision()
        if self._known and self.config.fetch == "flexgen":
            self._fetch_after(-1)
        for layer in self.work.layers:
            self._layer(layer)
        for g in self.work.head:
            self._kernel("lm_head", -1, kernels.gemm(self.config, g))
        spans, _ = self.graph.run()
        held_ps = sum(s.duration_ps for s in spans if s.resource == "gpu")
        dram_bytes = self.actions["dram_read_bytes"] + self.actions["dram_write_bytes"]
        self.actions["dram_activates"] = round(dram_bytes / self.config.dram_bytes_per_activate)
        # Priced at the clock of the highest mode: what switching draws falls with the clock.
        self.actions["gpu_busy_ps"] = round((held_ps - self._host_held_ps) * self.config.mode.gpu_scale)
        end_ps = max((s.end_ps for s in spans if s.what != "offload"), default=0)
        return Timeline(self.config.name, spans, dict(sorted(self.actions.items())), end_ps)

    # -- stages ---------------------------------------------------------------------------------------

    def _vision(self) -> None:
        scores = [g for g in self.work.vision if g.name == kernels.VISION_SCORES]
        for g in self.work.vision:
            cost = kernels.gemm if g.weight_bytes else kernels.encoder_attention
            self._kernel("vision", -1, cost(self.config, g))
        # Softmax is part of the encoder's attention kernels.
        elements = self.work.vision_vector_elements - sum(g.m * g.n for g in scores)
        if elements > 0:
            launches = max(1, len(scores)) * VISION_LAUNCHES[self.config.stack]
            self._kernel("vision", -1, kernels.elementwise(self.config, elements, launches))

    def _layer(self, layer: LayerWork) -> None:
        self._fetch_known(layer)
        one_token = self.config.stack == "modules" and layer.attention.rows == 1
        launches = MODULES_TOKEN_LAUNCHES if one_token else VECTOR_LAUNCHES[self.config.stack]
        vector = kernels.elementwise(self.config, layer.vector_elements, launches)
        append = kernels.stream(self.config, 0, layer.kv_write_bytes)
        self._kernel("vector", layer.layer, kernels.together([vector, append]))
        first, *others = layer.gemms
        self._gemm(first, layer.layer)
        self._predict_around(layer)
        self._attention(layer)
        for g in others:
            if g.name == "gate_up":
                self._between_halves(layer)
            self._gemm(g, layer.layer)
        add_writeback(self.graph, self.actions, self.config.offload, layer, self._stream, self.config.dram_ps)

    def _fetch_known(self, layer: LayerWork) -> None:
        """Fetches that no prediction releases: layer j + 1 while j computes, in two buffers.

        The synchronous variant loads j when j - 1 is done, and computes after it. In FlexGen's loop the host waits
        here for the kernels of j - 1 and the fetch of j, whatever released it.
        """
        if self._in_flexgens_loop(layer):
            self._stream += self.fetched.get(layer.layer, ())
            self._host += self._stream
        if self._known and self.config.fetch == "synchronous":
            self._fetch(layer)
        elif self._known:
            self._fetch_after(layer.layer)

    def _fetch_after(self, index: int) -> None:
        for target in self.work.layers[index + 1 : index + 2]:
            self._fetch(target)

    def _between_halves(self, layer: LayerWork) -> None:
        """FlexGen's loop: attention is over before the feed-forward half is launched; the fetch may go on."""
        if self._in_flexgens_loop(layer):
            self._host += self._stream

    def _in_flexgens_loop(self, layer: LayerWork) -> bool:
        """Without offloading there is no such loop."""
        return self.config.fetch == "flexgen" and layer.fetch is not None

    def _predict_around(self, layer: LayerWork) -> None:
        """Predictions made while this layer runs, and the fetches they release."""
        mode, index = self.work.predict, layer.layer
        if layer.prediction is not None:
            self._software(retrieval.cluster(self.config, layer.prediction), index)
        if self._known:
            return
        if mode == "same_layer" or index == 0:
            self._predict(layer)
        if mode == "next_layer" and index + 1 < len(self.work.layers):
            self._predict(self.work.layers[index + 1])

    def _predict(self, target: LayerWork) -> None:
        if target.prediction is not None and target.selects:
            self._software(retrieval.select(self.config, target.prediction), target.layer)
        self._fetch(target)

    def _attention(self, layer: LayerWork) -> None:
        """Waits for what the layer fetches; a selection is gathered into one run before it is read."""
        a = layer.attention
        self._stream += self.fetched.get(layer.layer, ())
        if layer.selects and a.chunk_bytes:
            self._kernel("attention", layer.layer, kernels.gather(self.config, a.kv_read_bytes, a.chunk_bytes))
        self._kernel("attention", layer.layer, kernels.attention(self.config, a, layer.softmax_elements))

    def _fetch(self, target: LayerWork) -> None:
        """A host collects what is selected, K and V in one call; memory that is not pinned it relays, K, then V."""
        if target.fetch is None:
            return
        self.fetched[target.layer] = ()
        if target.selects and self.config.copy_path == "host_gather":
            self._relay(target, target.fetch.extent_bytes, buffers=1)
        elif self.config.pageable:
            self._relay(target, target.fetch.extent_bytes, buffers=2)
        else:
            self._move(target, target.fetch.extent_bytes, self._stream)
        if self.config.fetch == "synchronous":
            self._stream += self.fetched[target.layer]
            self._host += self.fetched[target.layer]

    def _relay(self, target: LayerWork, extent_bytes: Int64, *, buffers: int) -> None:
        """The host copies extents to pinned buffers, each of which then crosses the link in one call.

        It has waited for the indices of a selection (`_software`), and launches nothing while it copies.
        """
        n_bytes, relay_ps = int(extent_bytes.sum()), self.config.offload.relayed_ps(extent_bytes)
        self.actions["host_dram_bytes"] += 2 * n_bytes
        for buffer in np.diff(np.arange(buffers + 1) * n_bytes // buffers):
            self._host = (self.graph.add("host", "fetch", target.layer, relay_ps // buffers, self._host),)
            self._move(target, np.array([buffer]), self._stream + self._host)

    def _move(self, target: LayerWork, extent_bytes: Int64, after: tuple[int, ...]) -> None:
        """Tier and link work in parallel on one list of extents.

        Reads of a drive are submitted ahead of the data; copies from host memory start one after the other.
        """
        config = self.config
        timing, duration_ps = self._moved(extent_bytes)
        self.actions.update(config.offload.fetch_actions(timing))
        if config.copy_threads:
            self.actions["host_copy_ps"] += config.copy_threads * duration_ps
        arriving = timing.payload_bytes
        staged = config.staging_copies * arriving
        self.actions["dram_write_bytes"] += arriving + staged
        self.actions["dram_read_bytes"] += staged
        dram_bytes = arriving + 2 * staged
        tier = self.graph.add(config.offload.kind, "fetch", target.layer, timing.tier_busy_ps, after)
        link = self.graph.add(
            "link",
            "fetch",
            target.layer,
            duration_ps,
            after,
            n_bytes=arriving,
            dram_ps=config.dram_ps(dram_bytes),
            dram_bytes=dram_bytes,
        )
        self.fetched[target.layer] += (tier, link)

    def _moved(self, extent_bytes: Int64) -> tuple[FetchTiming, int]:
        """What the tier does for a fetch, and how long it takes with the calls that start it."""
        config = self.config
        timing = config.offload.fetch(extent_bytes)
        call_ps = config.gather_chunk_ps if config.copy_path == "gather" else config.copy_call_ps
        calls_ps = extent_bytes.size * call_ps
        if config.offload.kind == "host_dram":
            calls_ps += timing.link_busy_ps
        return timing, max(timing.time_ps, calls_ps, config.copied_ps(timing.payload_bytes))

    # -- units ----------------------------------------------------------------------------------------

    def _gemm(self, g: Gemm, layer: int) -> None:
        launches = GEMM_LAUNCHES.get(self.config.stack, {}).get(g.name, 1)
        self._kernel("linear", layer, kernels.gemm(self.config, g, launches))

    def _kernel(self, what: str, layer: int, kernel: Kernel) -> None:
        """Launch from the host, which runs ahead, then run behind the stream's last kernel."""
        after = self._stream
        if self.config.host_ps:
            launch_ps = kernel.launches * self.config.host_ps
            self._host = (self.graph.add("host", what, layer, launch_ps, self._host),)
            after += self._host
        self._stream = (self._on_gpu(what, layer, kernel, kernel.busy_ps, after),)

    def _software(self, stage: SoftwareStage, layer: int) -> None:
        """Eager operators with synchronisations: the stream idles while the host dispatches."""
        after = self._stream + self._host
        host = self.graph.add("host", "prediction", layer, stage.host_ps, after)
        self._stream = (self._on_gpu("prediction", layer, stage.kernel, stage.duration_ps, after),)
        self._host = (host, *self._stream)
        self._host_held_ps += stage.host_ps

    def _on_gpu(self, what: str, layer: int, kernel: Kernel, duration_ps: int, after: tuple[int, ...]) -> int:
        self.actions["gpu_flops"] += kernel.flops
        self.actions["dram_read_bytes"] += kernel.read_bytes
        self.actions["dram_write_bytes"] += kernel.write_bytes
        self.actions["kernel_launches"] += kernel.launches
        return self.graph.add(
            "gpu",
            what,
            layer,
            duration_ps,
            after,
            dram_ps=self.config.dram_ps(kernel.dram_bytes),
            dram_bytes=kernel.dram_bytes,
        )
