"""V-Rex: a chip of LXE cores with a DRE, one memory and one offload tier.

`VRex.simulate` turns a `StepWork` into a `Timeline`: the order of one layer is docs/dre.md, "Order of
one layer"; what overlaps is decided by dependencies and shared resources alone. The GPU is in `gpu.py`.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache, partial
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from dre_sim import lxe as lxe_model
from dre_sim.dram import AccessPattern, DramConfig, steady_state
from dre_sim.gpu import check_capacity, device_bytes
from dre_sim.hcu import HcuConfig
from dre_sim.kvmu import KvmuConfig
from dre_sim.lxe import LxeConfig
from dre_sim.offload import OffloadTier
from dre_sim.scheduler import TaskGraph
from dre_sim.timeline import Timeline
from dre_sim.workload import AttentionWork, FetchWork, Gemm, LayerWork, PredictionWork, StepWork
from dre_sim.writeback import add_writeback
from dre_sim.wtu import WtuConfig

# Passes of the vector engine over the scores where no DRE unit cuts them: a merge sort's are as many as the number of
# columns has bits (0 here); the k-th largest of 16-bit scores is bisected bit by bit, then marked; InfiniGen also
# takes the maximum and counts. Assumed: the paper gives its engine no sorter.
CUT_PASSES = {"wicsum": 0, "topk": 17, "threshold": 19}


class VRexConfig(BaseModel):
    """A V-Rex chip (V-Rex, HPCA 2026, arXiv 2512.12284, section VI-A and Table I)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["vrex"] = "vrex"
    name: str
    description: str = ""
    lxe: LxeConfig = LxeConfig()
    hcu: HcuConfig = HcuConfig()
    wtu: WtuConfig = WtuConfig()
    kvmu: KvmuConfig = KvmuConfig()
    memory: DramConfig
    memory_capacity_bytes: int = Field(gt=0)
    offload: OffloadTier
    energy: str = Field(description="name of the price table in configs/energy")


class VRex:
    """Simulates steps on one chip. Stateless: the same work gives the same timeline."""

    def __init__(self, config: VRexConfig) -> None:
        self.config = config

    def simulate(self, work: StepWork) -> Timeline:
        """Schedule one step. Raises OutOfMemoryError where weights, resident KV and reuse regions exceed the memory.

        The step ends with its last compute; K and V that leave the device are written behind later steps.
        """
        kvmu = self.config.kvmu
        reuse_bytes = work.batch * kvmu.reuse_bytes if kvmu.reuse == "lru" else 0
        check_capacity(self.config.name, self.config.memory_capacity_bytes, device_bytes(work) + reuse_bytes)
        return _StepOnVRex(self.config, work).timeline()


class _StepOnVRex:
    """Builds the task graph of one step. `fetched` holds what a layer's attention waits for: fetch, or choice."""

    def __init__(self, config: VRexConfig, work: StepWork) -> None:
        self.config = config
        self.work = work
        self.graph = TaskGraph()
        self.actions: Counter[str] = Counter()
        self.fetched: dict[int, int] = {}
        # The layers of a step repeat a few shapes.
        self._gemm_cost = lru_cache(maxsize=None)(partial(lxe_model.gemm, config.lxe))

    def timeline(self) -> Timeline:
        """The whole step in order, then its spans, and what was counted on the way."""
        start = self._vision()
        if self.work.predict == "none":
            self._prefetch_known(0, ())
        previous = start
        for layer in self.work.layers:
            previous = self._layer(layer, previous)
        for gemm in self.work.head:
            previous = self._gemm(gemm, "lm_head", -1, (previous,))
        spans, _ = self.graph.run()
        end_ps = max(s.end_ps for s in spans if s.what != "offload")
        return Timeline(self.config.name, spans, dict(sorted(self.actions.items())), end_ps)

    # -- stages ---------------------------------------------------------------------------------------

    def _vision(self) -> int:
        """Encoder and projector; returns the task the first layer waits for."""
        last = self.graph.add("lxe", "vision", -1, 0)
        vector = self.work.vision_vector_elements
        for i, gemm in enumerate(self.work.vision):
            last = self._gemm(gemm, "vision", -1, (last,), vector if i == 0 else 0)
        return last

    def _layer(self, layer: LayerWork, previous: int) -> int:
        index = layer.layer
        qkv, *others = layer.gemms
        first = self._gemm(qkv, "linear", index, (previous,), layer.vector_elements, layer.kv_write_bytes)
        self._predict_around(layer, first, previous)
        waits = (first,) if index not in self.fetched else (first, self.fetched[index])
        last = self._attention(layer, waits)
        for gemm in others:
            last = self._gemm(gemm, "linear", index, (last,))
        add_writeback(self.graph, self.actions, self.config.offload, layer, (last,), self._dram_ps)
        return last

    def _predict_around(self, layer: LayerWork, first: int, previous: int) -> None:
        """Predictions made while this layer runs, and the fetches they release."""
        index = layer.layer
        clustered = self._cluster(layer, first)
        if self.work.predict == "none":
            self._prefetch_known(index + 1, (previous,))
            return
        if self.work.predict == "same_layer" or index == 0:
            self._predict(layer, first, clustered)
        if self.work.predict == "next_layer" and index + 1 < len(self.work.layers):
            self._predict(self.work.layers[index + 1], previous, clustered)

    def _prefetch_known(self, index: int, after: tuple[int, ...]) -> None:
        """Without a prediction the fetch list is known: stream one layer ahead, as FlexGen does."""
        if index < len(self.work.layers):
            fetch = self.work.layers[index].fetch
            if fetch is not None:
                self.fetched[index] = self._fetch(fetch, index, after)

    def _cluster(self, layer: LayerWork, after: int) -> int:
        """Hash the new keys and cluster them; returns the task after which the HC table is up to date."""
        p = layer.prediction
        if p is None:
            return after
        if p.hash_gemm is not None:
            after = self._gemm(p.hash_gemm, "prediction", layer.layer, (after,))
        if p.tables == 0:
            return self._update(p, layer.layer, after)
        if p.dre is None:
            # Without a DRE the vector engine compares codes: one operation per cluster and new token.
            return self._vector("prediction", layer.layer, p.comparisons, (after,))
        self.actions["hcu_chunks"] += p.dre.hcu_chunks
        self.actions["hcu_table_bytes"] += p.dre.hcu_table_bytes
        self.actions["hcu_updates"] += p.dre.hcu_updates
        self.actions["dram_read_bytes"] += p.dre.hcu_table_bytes + p.table_read_bytes
        self.actions["dram_write_bytes"] += p.table_write_bytes
        return self.graph.add(
            "hcu",
            "prediction",
            layer.layer,
            self._cycles_ps(p.dre.hcu_cycles),
            (after,),
            dram_ps=self._dram_ps(p.dre.hcu_table_bytes + p.table_read_bytes)
            + self._dram_ps(p.table_write_bytes, write=True),
            dram_bytes=p.dre.hcu_table_bytes + p.table_read_bytes + p.table_write_bytes,
        )

    def _update(self, p: PredictionWork, layer: int, after: int) -> int:
        """What a policy without HC tables keeps of new keys, on the vector engine: means, bounds or partial keys."""
        if p.table_write_bytes == 0:
            return after
        vector = lxe_model.vector(self.config.lxe, p.table_write_bytes // 2, lxe_model.ELEMENTWISE_OPS)
        self.actions["vpe_ops"] += vector.ops
        read_bytes, write_bytes = p.table_read_bytes, p.table_write_bytes
        return self._on_lxe("prediction", layer, vector.cycles, (after,), read_bytes, write_bytes=write_bytes)

    def _predict(self, target: LayerWork, query: int, clustered: int) -> None:
        """Score, threshold and fetch for `target`, whose attention waits for the fetch, or for the choice itself.

        Runs in the layer before it under `next_layer`.
        """
        p = target.prediction
        if p is None or not p.selects:
            self._prefetch_known(target.layer, (query,))
            return
        waits: tuple[int, ...] = (query, clustered)
        if p.query_gemm is not None:
            waits = (self._gemm(p.query_gemm, "prediction", target.layer, (query,)), clustered)
        selected = self._threshold(p, target.layer, self._scores(p, target.layer, waits))
        fetch = target.fetch
        self.fetched[target.layer] = self._fetch(fetch, target.layer, (selected,)) if fetch is not None else selected

    def _scores(self, p: PredictionWork, layer: int, after: tuple[int, ...]) -> int:
        """Queries times representative keys on the LXE, exponentials on the VPE."""
        rows = p.score_rows // max(1, p.kv_heads)
        cycles = lxe_model.attention_scores_cycles(self.config.lxe, rows, p.score_depth, p.clusters, p.kv_heads)
        self.actions["dpe_macs"] += p.score_macs
        vector = lxe_model.vector(self.config.lxe, p.exp_elements, lxe_model.EXP_OPS)
        self.actions["vpe_ops"] += vector.ops
        self.actions["lxe_sram_bytes"] += 2 * p.score_read_bytes
        return self._on_lxe("prediction", layer, cycles + vector.cycles, after, p.score_read_bytes)

    def _threshold(self, p: PredictionWork, layer: int, after: int) -> int:
        """WTU and the KVMU's look-ups, or a sort or selection on the vector engine where there is no DRE."""
        if p.dre is None:
            passes = CUT_PASSES[p.cut] or max(1, p.clusters.bit_length())
            return self._vector("prediction", layer, p.score_rows * p.clusters * passes, (after,))
        self.actions["wtu_elements"] += p.dre.wtu_elements
        self.actions["wtu_rows"] += p.dre.wtu_rows
        self.actions["wtu_union_words"] += p.dre.wtu_union_words
        self.actions["kvmu_lookups"] += p.dre.kvmu_lookups
        self.actions["dram_read_bytes"] += p.dre.wtu_spill_bytes
        after = self.graph.add(
            "wtu",
            "prediction",
            layer,
            self._cycles_ps(p.dre.wtu_cycles),
            (after,),
            dram_ps=self._dram_ps(p.dre.wtu_spill_bytes),
            dram_bytes=p.dre.wtu_spill_bytes,
        )
        return self.graph.add("kvmu", "prediction", layer, self._cycles_ps(p.dre.kvmu_lookups), (after,))

    def _attention(self, layer: LayerWork, after: tuple[int, ...]) -> int:
        """QK^T, softmax and PV. DPE and VPE take turns: softmax needs a finished row."""
        a: AttentionWork = layer.attention
        gemm = lxe_model.attention(self.config.lxe, a.rows, a.group, a.head_dim, a.cached_tokens)
        vector = lxe_model.vector(self.config.lxe, layer.softmax_elements, lxe_model.SOFTMAX_OPS)
        self.actions["dpe_macs"] += gemm.macs
        self.actions["vpe_ops"] += vector.ops
        self.actions["lxe_sram_bytes"] += gemm.sram_read_bytes + gemm.sram_write_bytes
        read_bytes = a.kv_read_bytes * gemm.weight_passes
        cycles = gemm.cycles + vector.cycles
        return self._on_lxe("attention", layer.layer, cycles, after, read_bytes, a.chunk_bytes)

    def _fetch(self, fetch: FetchWork, layer: int, after: tuple[int, ...]) -> int:
        """Offload tier and link work in parallel; what arrives is written to device memory.

        Without a KVMU a host submits extent by extent, ahead of the data.
        """
        timing = self.config.offload.fetch(fetch.extent_bytes)
        submitted_ps = fetch.extent_bytes.size * self.config.kvmu.submit_ps
        self.actions.update(self.config.offload.fetch_actions(timing))
        arriving = timing.payload_bytes
        self.actions["dram_write_bytes"] += arriving
        self.graph.add(self.config.offload.kind, "fetch", layer, timing.tier_busy_ps, after)
        return self.graph.add(
            "link",
            "fetch",
            layer,
            max(timing.time_ps, submitted_ps),
            after,
            n_bytes=arriving,
            dram_ps=self._dram_ps(arriving, write=True),
            dram_bytes=arriving,
        )

    # -- units ----------------------------------------------------------------------------------------

    def _gemm(
        self,
        gemm: Gemm,
        what: str,
        layer: int,
        after: tuple[int, ...],
        vector_elements: int = 0,
        write_bytes: int = 0,
    ) -> int:
        """One matrix product streaming its weights; element-wise work rides along on the VPE."""
        cost = self._gemm_cost(gemm.m, gemm.k, gemm.n)
        vector = lxe_model.vector(self.config.lxe, vector_elements, lxe_model.ELEMENTWISE_OPS)
        weight_bytes = gemm.weight_bytes * cost.weight_passes
        self.actions["dpe_macs"] += gemm.macs
        self.actions["vpe_ops"] += vector.ops
        self.actions["lxe_sram_bytes"] += cost.sram_read_bytes + cost.sram_write_bytes
        read_bytes = weight_bytes + gemm.activation_bytes
        cycles = max(cost.cycles, vector.cycles)
        return self._on_lxe(what, layer, cycles, after, read_bytes, write_bytes=write_bytes)

    def _on_lxe(
        self,
        what: str,
        layer: int,
        cycles: int,
        after: tuple[int, ...],
        read_bytes: int,
        chunk_bytes: int = 0,
        write_bytes: int = 0,
    ) -> int:
        """Engine work that streams from memory: as fast as engines, memory ports and memory allow."""
        self.actions["dram_read_bytes"] += read_bytes
        self.actions["dram_write_bytes"] += write_bytes
        taken = lxe_model.port_cycles(self.config.lxe, read_bytes)
        return self.graph.add(
            "lxe",
            what,
            layer,
            self._cycles_ps(max(cycles, taken)),
            after,
            dram_ps=self._dram_ps(read_bytes, chunk_bytes) + self._dram_ps(write_bytes, write=True),
            dram_bytes=read_bytes + write_bytes,
        )

    def _vector(self, what: str, layer: int, ops: int, after: tuple[int, ...]) -> int:
        vector = lxe_model.vector(self.config.lxe, ops, 1)
        self.actions["vpe_ops"] += vector.ops
        return self.graph.add("lxe", what, layer, self._cycles_ps(vector.cycles), after)

    def _cycles_ps(self, cycles: int) -> int:
        return -(-cycles * 10**12 // round(self.config.lxe.frequency_hz))

    def _dram_ps(self, n_bytes: int, chunk_bytes: int = 0, *, write: bool = False) -> int:
        """Memory occupancy of a transfer at the steady-state bandwidth of its access pattern."""
        if n_bytes == 0:
            return 0
        pattern = AccessPattern(chunk_bytes=chunk_bytes, write_share=1.0 if write else 0.0)
        state = steady_state(self.config.memory, pattern)
        self.actions["dram_activates"] += round(n_bytes * state.activates_per_byte)
        return -(-n_bytes * 10**12 // int(state.bandwidth_bytes_per_s))
