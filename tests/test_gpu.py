"""GPU steps: conservation, exclusive resources, overlap, FlexGen streaming, ReSV in software, bad input."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dre_sim import gpu_kernels as kernels
from dre_sim import gpu_retrieval as retrieval
from dre_sim.breakdown import prediction_ps
from dre_sim.gpu import Gpu, GpuConfig, OutOfMemoryError, check_capacity, device_bytes
from dre_sim.lowering import dense_step
from dre_sim.statistics import OperatingPoint, statistics_step
from dre_sim.timeline import covered_ps
from dre_sim.workload import Cut, FetchWork, PredictMode, StepWork
from tests.gpu_platforms import A100, A100_EAGER, EAGER, ORIN, PAPER, PLATFORMS, full_step, milliseconds, resv_step
from tests.shapes import LLAMA3_8B, SEEING, TINY

STEPS: dict[str, Callable[[], StepWork]] = {
    "dense": lambda: dense_step(TINY, 4, 50),
    "full": lambda: full_step(LLAMA3_8B, 5000),
    "resv": lambda: resv_step(LLAMA3_8B, 5000, 0.2),
    "same_layer": lambda: resv_step(LLAMA3_8B, 5000, 0.2, "same_layer"),
    "decode": lambda: statistics_step(LLAMA3_8B, 1, 5000, OperatingPoint(ratio=0.03), kind="decode"),
}
CHANGES: list[dict[str, Any]] = [
    {},
    {"stack": "eager", "attention": "eager"},
    {"stack": "graph"},
    {"stack": "ggml"},
    {"fetch": "synchronous"},
    {"copy_path": "gather"},
]


def test_spans_of_one_resource_never_overlap() -> None:
    for make in STEPS.values():
        for changes in CHANGES:
            timeline = Gpu(ORIN.model_copy(update=changes)).simulate(make())
            for resource in set(timeline.resources()) - {"dram"}:
                assert all(a.end_ps <= b.start_ps for a, b in pairwise(timeline.on(resource)))


@pytest.mark.parametrize("config", [ORIN, A100], ids=["agx_orin", "a100"])
@pytest.mark.parametrize("step", STEPS)
def test_bytes_moved_are_bytes_counted(config: GpuConfig, step: str) -> None:
    work = STEPS[step]()
    timeline = Gpu(config).simulate(work)
    actions = timeline.actions
    assert sum(s.n_bytes for s in timeline.on("dram")) == actions["dram_read_bytes"] + actions["dram_write_bytes"]
    asked = sum(layer.fetch.link_bytes for layer in work.layers if layer.fetch)
    down, up = (sum(s.n_bytes for s in timeline.on(way)) for way in ("link", "link_up"))
    # The tier moves whole sectors.
    assert asked <= down
    assert actions.get("link_bytes", 0) == down + up
    assert actions["dram_write_bytes"] >= asked
    weights = sum(g.weight_bytes for g in (*work.vision, *work.head, *(g for la in work.layers for g in la.gemms)))
    assert actions["dram_read_bytes"] >= weights + sum(la.attention.kv_read_bytes for la in work.layers)
    assert actions["gpu_flops"] >= 2 * sum(g.macs for g in (*work.vision, *work.head))
    assert 0 < actions["gpu_busy_ps"] <= timeline.end_ps
    assert all(isinstance(count, int) for count in actions.values())


@pytest.mark.parametrize("step", STEPS)
def test_a_step_takes_at_least_its_bytes(step: str) -> None:
    timeline = Gpu(ORIN).simulate(STEPS[step]())
    moved = timeline.actions["dram_read_bytes"] + timeline.actions["dram_write_bytes"]
    assert timeline.end_ps >= moved / ORIN.dram_bytes_per_s * 1e12 - 1


@pytest.mark.parametrize("step", ["full", "resv", "same_layer"])
@pytest.mark.parametrize("config", [ORIN, PAPER, A100, EAGER, A100_EAGER], ids=PLATFORMS)
def test_overlapped_fetch_is_never_slower(config: GpuConfig, step: str) -> None:
    work = STEPS[step]()
    ahead, synchronous = (config.model_copy(update={"fetch": mode}) for mode in ("overlapped", "synchronous"))
    assert Gpu(ahead).simulate(work).end_ps <= Gpu(synchronous).simulate(work).end_ps


@settings(max_examples=20, deadline=None)
@given(
    kv_len=st.integers(100, 40_000),
    step=st.sampled_from(["full", "resv"]),
    field=st.sampled_from(["dram_bytes_per_s", "gemm_share", "dispatch_ps", "launch_ps", "copy_call_ps"]),
)
def test_better_hardware_is_never_slower(kv_len: int, step: str, field: str) -> None:
    work = full_step(LLAMA3_8B, kv_len) if step == "full" else resv_step(LLAMA3_8B, kv_len, 0.2)
    better = 0.5 if field.endswith("_ps") else 1.2
    value = type(getattr(ORIN, field))(getattr(ORIN, field) * better)
    faster = ORIN.model_copy(update={field: value})
    # A fetch that ends sooner takes its share of the memory sooner, perhaps from the kernels in the way.
    assert Gpu(faster).simulate(work).end_ps <= 1.005 * Gpu(ORIN).simulate(work).end_ps


def test_stacks_are_ordered() -> None:
    work = dense_step(LLAMA3_8B, 1, 100, kind="decode")
    eager, fused, graph = (
        milliseconds(ORIN.model_copy(update={"stack": s}), work) for s in ("eager", "fused", "graph")
    )
    assert graph <= fused < eager


def test_modules_launch_what_tinychat_launches() -> None:
    """A token: 6 kernels of vectors, 5 products, attention in 2; more tokens: 17 kernels of vectors. And the head."""
    modules = ORIN.model_copy(update={"stack": "modules"})
    for rows, vectors in ((1, 6), (32, 17)):
        work = dense_step(LLAMA3_8B, rows, 100, kind="question")
        assert Gpu(modules).simulate(work).actions["kernel_launches"] == 32 * (vectors + 5 + 2) + 1


def test_llama_cpp_launches_23_kernels_a_layer() -> None:
    work = dense_step(LLAMA3_8B, 1, 100, kind="decode")
    assert Gpu(A100.model_copy(update={"stack": "ggml"})).simulate(work).actions["kernel_launches"] == 32 * 23 + 1


@pytest.mark.parametrize(
    ("stack", "layer", "encoder"), [("eager", 32 + 7, 10), ("modules", 17 + 5, 3), ("fused", 4 + 4, 3), ("graph", 8, 3)]
)
def test_a_frame_launches_and_computes_what_its_stack_makes_of_it(stack: str, layer: int, encoder: int) -> None:
    """Three decoder layers, two of the encoder; the encoder's softmax is part of the kernel of its scores."""
    config = ORIN.model_copy(update={"stack": stack})
    work = dense_step(SEEING, 10, 100)
    timeline = Gpu(config).simulate(work)
    assert timeline.actions["kernel_launches"] == len(work.vision) + 2 * encoder + 3 * (layer + 2) + 1
    gemms = [*work.vision, *work.head, *(g for la in work.layers for g in la.gemms)]
    macs = sum(g.macs for g in gemms) + sum(la.attention.macs for la in work.layers)
    assert timeline.actions["gpu_flops"] == 2 * macs
    *products, vectors = (s for s in timeline.on("gpu") if s.what == "vision")
    assert len(products) == len(work.vision)
    elements = 2 * 20 * (4 * 48 + 96)
    alone = kernels.elementwise(config, elements, 2 * encoder)
    assert vectors.duration_ps == alone.busy_ps


@pytest.mark.parametrize("copies", [0, 1, 2])
def test_every_staging_copy_reads_and_writes_what_arrives_once_more(copies: int) -> None:
    work = full_step(TINY, 5_000)
    timeline, direct = (
        Gpu(ORIN.model_copy(update={"staging_copies": n, "fetch": "synchronous"})).simulate(work) for n in (copies, 0)
    )
    arriving = sum(s.n_bytes for s in timeline.on("link"))
    for action in ("dram_read_bytes", "dram_write_bytes"):
        assert timeline.actions[action] - direct.actions[action] == copies * arriving
    assert sum(s.n_bytes for s in timeline.on("dram") if s.what == "fetch") == (1 + 2 * copies) * arriving


def test_modules_wait_for_their_own_host_time() -> None:
    """13 kernels a layer at `module_ps`; where a platform gives none, at that of an eager operator."""
    work = dense_step(LLAMA3_8B, 1, 4, kind="decode", n_layers=8)
    slow = A100.model_copy(update={"stack": "modules", "module_ps": 100_000_000})
    assert Gpu(slow).simulate(work).busy_ps("host") == (8 * 13 + 1) * 100_000_000
    unknown = slow.model_copy(update={"module_ps": None})
    assert Gpu(unknown).simulate(work).busy_ps("host") == (8 * 13 + 1) * A100.dispatch_ps


def test_rows_of_the_memory_are_opened_as_bytes_go_by() -> None:
    timeline = Gpu(ORIN).simulate(full_step(LLAMA3_8B, 5000))
    moved = timeline.actions["dram_read_bytes"] + timeline.actions["dram_write_bytes"]
    assert timeline.actions["dram_activates"] == round(moved / 1757)


def test_busy_time_is_counted_at_the_highest_clock() -> None:
    """What switching draws falls with the clock; the operations are the same."""
    work = dense_step(LLAMA3_8B, 512, 0, kind="question")
    fast, slow = (Gpu(ORIN.model_copy(update={"power_mode": m})).simulate(work) for m in ("maxn", "50w"))
    assert fast.actions["gpu_busy_ps"] == fast.busy_ps("gpu")
    assert slow.actions["gpu_busy_ps"] == round(0.637 * slow.busy_ps("gpu"))
    assert slow.actions["gpu_flops"] == fast.actions["gpu_flops"]


def test_a_host_that_cannot_keep_up_sets_the_pace() -> None:
    slow = ORIN.model_copy(update={"launch_ps": 10**9})
    timeline = Gpu(slow).simulate(dense_step(LLAMA3_8B, 1, 100, kind="decode"))
    paced = timeline.actions["kernel_launches"] * 10**9
    assert timeline.busy_ps("host") == paced
    assert paced < timeline.end_ps < 1.03 * paced


def test_power_modes_slow_down() -> None:
    work = full_step(LLAMA3_8B, 1000)
    times = [milliseconds(ORIN.model_copy(update={"power_mode": m}), work) for m in ("maxn", "50w", "30w", "15w")]
    assert times == sorted(times)
    assert times[-1] > 1.4 * times[0]


def test_batch_reads_the_weights_once() -> None:
    one, four = (Gpu(A100).simulate(dense_step(LLAMA3_8B, 10, 1000, batch, "question")).actions for batch in (1, 4))
    kv_bytes = 1010 * LLAMA3_8B.kv_bytes_per_token
    assert four["dram_read_bytes"] - one["dram_read_bytes"] == 3 * kv_bytes


# -- FlexGen ----------------------------------------------------------------------------------------------


def test_flexgen_at_40k_is_bound_by_the_link() -> None:
    """The cache of 40K tokens takes at least 1.31 s at the raw 4 GB/s, and compute hides under it."""
    work = full_step(LLAMA3_8B, 40_000)
    timeline = Gpu(PAPER).simulate(work)
    assert timeline.end_ps / 1e12 > 40_000 * 131_072 / 4e9
    busy = timeline.busy_ps("link")
    assert busy <= timeline.end_ps <= busy * 1.1


RELAY = A100_EAGER.model_copy(update={"fetch": "overlapped"})


@pytest.mark.parametrize(
    "config",
    [ORIN, RELAY, RELAY.model_copy(update={"dram_bytes_per_s": 2e10})],
    ids=["drive", "relay", "relay, slow kernels"],
)
def test_flexgen_loads_one_layer_ahead_in_two_buffers(config: GpuConfig) -> None:
    timeline = Gpu(config).simulate(full_step(LLAMA3_8B, 20_000))
    fetch = {s.layer: s for s in reversed(timeline.on("link"))}
    attention = {s.layer: s for s in timeline.on("gpu") if s.what == "attention"}
    layer_end = {s.layer: s.end_ps for s in timeline.on("gpu") if s.what == "linear"}
    for layer in range(2, 32):
        assert fetch[layer].start_ps >= layer_end[layer - 2]
        assert attention[layer].start_ps >= fetch[layer].end_ps
        assert fetch[layer].start_ps <= attention[layer - 1].start_ps


@pytest.mark.parametrize("step", ["full", "resv"])
def test_flexgens_loop_waits_after_each_half_of_a_layer(step: str) -> None:
    """The cache of layer j + 1 comes while j computes, or as soon as it is predicted; no half is launched early.

    The host waits for kernels after each half of a layer, for the fetch at the end of the layer alone.
    """
    work = full_step(LLAMA3_8B, 5_000) if step == "full" else resv_step(LLAMA3_8B, 5_000, 0.2)
    timeline = Gpu(ORIN.model_copy(update={"fetch": "flexgen"})).simulate(work)
    # The first of a layer's is its selection, made in the layer before; its own keys are clustered later.
    predicted = {s.layer: s.end_ps for s in reversed(timeline.on("gpu")) if s.what == "prediction"}
    fetch = {s.layer: s for s in timeline.on("link")}
    attention = {s.layer: s for s in timeline.on("gpu") if s.what == "attention"}
    linear = {n: [s for s in timeline.on("gpu") if s.what == "linear" and s.layer == n] for n in range(32)}
    launched = {n: [s for s in timeline.on("host") if s.what == "linear" and s.layer == n] for n in range(32)}
    vector = {s.layer: s for s in timeline.on("host") if s.what == "vector"}
    for layer in range(1, 32):
        _, output, gate_up, down = linear[layer - 1]
        assert output.start_ps >= attention[layer - 1].end_ps
        assert launched[layer - 1][2].start_ps >= output.end_ps
        assert predicted.get(layer, 0) <= fetch[layer].start_ps <= attention[layer - 1].start_ps
        assert gate_up.start_ps <= fetch[layer].end_ps
        assert vector[layer].start_ps >= max(fetch[layer].end_ps, down.end_ps)


@pytest.mark.parametrize("kv_len", [200, 2_000, 20_000])
def test_flexgens_loop_is_never_faster_and_the_same_without_offloading(kv_len: int) -> None:
    waiting = PAPER.model_copy(update={"fetch": "flexgen"})
    ahead = PAPER.model_copy(update={"fetch": "overlapped"})
    resident = dense_step(LLAMA3_8B, 10, kv_len)
    for offloaded in (full_step(LLAMA3_8B, kv_len), resv_step(LLAMA3_8B, kv_len, 0.2)):
        assert milliseconds(waiting, offloaded) > milliseconds(ahead, offloaded)
    assert milliseconds(waiting, resident) == milliseconds(ahead, resident)


def test_a_step_without_predictions_fetches_as_flexgen_does_whatever_its_policy() -> None:
    known = full_step(LLAMA3_8B, 5_000)
    for mode in ("overlapped", "synchronous", "flexgen"):
        config = PAPER.model_copy(update={"fetch": mode})
        assert milliseconds(config, replace(known, predict="next_layer")) == milliseconds(config, known)


@pytest.mark.parametrize("rate", [1.0e9, 2.0e9])
def test_what_the_software_delivers_bounds_a_fetch_and_a_faster_one_changes_nothing(rate: float) -> None:
    work = full_step(LLAMA3_8B, 20_000)
    bounded = Gpu(EAGER.model_copy(update={"copy_bytes_per_s": rate})).simulate(work)
    for span in bounded.on("link"):
        assert span.duration_ps >= span.n_bytes / rate * 1e12 - 1
    free, fast = (Gpu(EAGER.model_copy(update={"copy_bytes_per_s": r})).simulate(work) for r in (None, 1e12))
    assert free.end_ps == fast.end_ps < bounded.end_ps
    assert free.actions["link_lane_ps"] == bounded.actions["link_lane_ps"]  # priced by its bytes, not by waiting


def test_copy_threads_are_busy_while_a_fetch_runs() -> None:
    timeline = Gpu(EAGER).simulate(full_step(LLAMA3_8B, 5_000))
    assert timeline.actions["host_copy_ps"] == EAGER.copy_threads * timeline.busy_ps("link") > 0
    alone = Gpu(EAGER.model_copy(update={"copy_threads": 0})).simulate(full_step(LLAMA3_8B, 5_000))
    assert alone.end_ps == timeline.end_ps
    assert "host_copy_ps" not in alone.actions


@pytest.mark.parametrize("step", ["full", "resv"])
def test_nothing_is_launched_or_computed_during_a_synchronous_fetch(step: str) -> None:
    timeline = Gpu(ORIN.model_copy(update={"fetch": "synchronous"})).simulate(STEPS[step]())
    working = [s for s in timeline.spans if s.resource in ("host", "gpu")]
    for fetch in timeline.on("link"):
        assert all(s.end_ps <= fetch.start_ps or s.start_ps >= fetch.end_ps for s in working)
    busy = timeline.busy_ps("link") + covered_ps((s.start_ps, s.end_ps) for s in working)
    assert timeline.end_ps == busy


@pytest.mark.parametrize(
    ("step", "chunk_bytes", "kernels_a_layer"), [("full", 512, 1), ("resv", 512, 2), ("resv", 0, 1)]
)
def test_only_a_selection_that_lies_in_chunks_is_gathered(step: str, chunk_bytes: int, kernels_a_layer: int) -> None:
    work = STEPS[step]()
    layers = (replace(la, attention=replace(la.attention, chunk_bytes=chunk_bytes)) for la in work.layers)
    timeline = Gpu(ORIN).simulate(replace(work, layers=tuple(layers)))
    attention = [s for s in timeline.on("gpu") if s.what == "attention"]
    assert len(attention) == kernels_a_layer * LLAMA3_8B.n_layers


def _copy_gb_per_s(extent_bytes: int, **changes: Any) -> float:
    work = full_step(TINY, 100)
    fetch = FetchWork(np.full(1000, extent_bytes, dtype=np.int64), 1000 * extent_bytes, 100)
    work = replace(work, layers=(replace(work.layers[0], fetch=fetch),))
    span = Gpu(A100.model_copy(update=changes)).simulate(work).on("link")[0]
    return 1000 * extent_bytes / span.duration_ps * 1000


def test_small_copies_are_bound_by_calls_and_a_gather_kernel_is_not() -> None:
    """4 KB blocks: about 1.1 GB/s by cudaMemcpyAsync, ten times that by a kernel (vLLM blog, Fig. 4)."""
    small, large = _copy_gb_per_s(4096, copy_path="memcpy"), _copy_gb_per_s(1 << 22, copy_path="memcpy")
    assert small == pytest.approx(1.1, rel=0.1)
    assert 7 * small < _copy_gb_per_s(4096, copy_path="gather")
    gathered = _copy_gb_per_s(1 << 22, copy_path="gather")
    assert large == pytest.approx(gathered, rel=0.05)


def test_a_host_collects_what_is_selected_and_copies_what_is_known_as_it_lies() -> None:
    """One call a layer instead of one per cluster, and two more passes over host memory; FlexGen's step is the same."""
    collecting, calling = (A100.model_copy(update={"copy_path": path}) for path in ("host_gather", "memcpy"))
    assert milliseconds(collecting, full_step(LLAMA3_8B, 5_000)) == milliseconds(calling, full_step(LLAMA3_8B, 5_000))
    work = statistics_step(LLAMA3_8B, 10, 5_000, OperatingPoint(ratio=0.2, tokens_per_cluster=1))
    collected, called = (Gpu(config).simulate(work) for config in (collecting, calling))
    assert called.busy_ps("link") > 5 * collected.busy_ps("link")
    assert collected.actions["link_bytes"] == called.actions["link_bytes"]
    assert collected.actions["host_dram_bytes"] == 3 * called.actions["host_dram_bytes"]
    with pytest.raises(ValueError, match="host_gather of agx_orin collects from host memory, not from ssd"):
        GpuConfig.model_validate(ORIN.model_dump() | {"copy_path": "host_gather"})


def test_flexgen_relays_k_then_v_of_host_memory_that_is_not_pinned() -> None:
    """The host's thread copies (FlexGen 004ffef, general_copy): V while K crosses the link, and launches nothing."""
    work = full_step(LLAMA3_8B, 20_000)
    timeline = Gpu(A100_EAGER).simulate(work)
    layer_bytes = work.layers[0].fetch.link_bytes  # type: ignore[union-attr]
    for layer in range(1, 32):
        relay_k, relay_v = (s for s in timeline.on("host") if s.what == "fetch" and s.layer == layer)
        k, v = (s for s in timeline.on("link") if s.layer == layer)
        first = next(s for s in timeline.on("host") if s.what == "vector" and s.layer == layer - 1)
        assert relay_k.end_ps == relay_v.start_ps == k.start_ps
        assert v.start_ps == max(k.end_ps, relay_v.end_ps)
        assert first.start_ps >= relay_v.end_ps
        assert relay_k.duration_ps + relay_v.duration_ps == pytest.approx(
            A100_EAGER.offload.relayed_ps(np.array([layer_bytes])), abs=2
        )
        assert k.n_bytes + v.n_bytes == layer_bytes


@pytest.mark.parametrize("kv_len", [200, 5_000, 40_000])
def test_pinned_memory_is_faster_and_moves_the_same_bytes_over_the_link(kv_len: int) -> None:
    work = full_step(LLAMA3_8B, kv_len)
    relayed, pinned = (
        Gpu(A100_EAGER.model_copy(update={"pageable": pageable})).simulate(work) for pageable in (True, False)
    )
    assert pinned.end_ps < relayed.end_ps
    for action in ("link_bytes", "dram_write_bytes", "dram_read_bytes", "kernel_launches"):
        assert pinned.actions[action] == relayed.actions[action]
    assert relayed.actions["host_dram_bytes"] == 3 * pinned.actions["host_dram_bytes"]


def test_a_host_that_collects_a_selection_waits_for_it_and_launches_nothing_meanwhile() -> None:
    work = statistics_step(LLAMA3_8B, 10, 5_000, OperatingPoint(ratio=0.2, tokens_per_cluster=1))
    timeline = Gpu(A100_EAGER).simulate(work)
    for layer in range(1, 32):
        [collected] = (s for s in timeline.on("host") if s.what == "fetch" and s.layer == layer)
        [copied] = (s for s in timeline.on("link") if s.layer == layer)
        selected = next(s for s in timeline.on("gpu") if s.what == "prediction" and s.layer == layer)
        assert selected.end_ps <= collected.start_ps
        assert collected.end_ps == copied.start_ps
        attention = next(s for s in timeline.on("host") if s.what == "attention" and s.layer == layer - 1)
        assert attention.start_ps >= collected.end_ps


@pytest.mark.parametrize(("base", "changes"), [(ORIN, {}), (A100, {"copy_path": "gather"})])
def test_only_host_memory_that_its_host_copies_can_be_pageable(base: GpuConfig, changes: dict[str, Any]) -> None:
    with pytest.raises(
        ValidationError, match=f"pageable of {base.name} .* goes with offload.kind host_dram and copy_path"
    ):
        GpuConfig.model_validate(base.model_dump() | {"pageable": True} | changes)


# -- ReSV in software -------------------------------------------------------------------------------------


def test_prediction_takes_the_published_share() -> None:
    """Calibration row (Fig. 16, AGX+ReSV at 40K): 48 % of a step 2.8 times faster than FlexGen's."""
    flexgen = Gpu(EAGER).simulate(full_step(LLAMA3_8B, 40_000)).end_ps
    # A seventh of what is offloaded is fetched, 5,120 tokens are not offloaded; here no two clusters lie together.
    point = OperatingPoint(ratio=0.14, resident_tokens=5_120)
    resv = Gpu(EAGER).simulate(statistics_step(LLAMA3_8B, 10, 40_000, point))
    assert prediction_ps(resv) == pytest.approx(0.48 * flexgen / 2.8, rel=0.05)
    assert flexgen / resv.end_ps == pytest.approx(2.8, rel=0.12)


def test_clustering_pays_for_every_token() -> None:
    prediction = resv_step(LLAMA3_8B, 5000, 0.2).layers[1].prediction
    assert prediction is not None
    stage = retrieval.cluster(ORIN, prediction)
    operators = retrieval.HASH_OPS + 10 * retrieval.TOKEN_OPS
    assert stage.host_ps == operators * ORIN.dispatch_ps
    assert stage.duration_ps == stage.host_ps + stage.kernel.busy_ps
    assert retrieval.cluster(ORIN, replace(prediction, new_tokens=20)).host_ps > 1.9 * stage.host_ps


@pytest.mark.parametrize("cut", ["topk", "threshold"])
def test_a_policy_without_tables_is_charged_for_no_clustering_and_no_sort(cut: Cut) -> None:
    clustered = resv_step(LLAMA3_8B, 5000, 0.2).layers[1].prediction
    assert clustered is not None
    rival = replace(clustered, cut=cut, tables=0, hash_gemm=None, table_read_bytes=0, table_write_bytes=4096)
    update = retrieval.cluster(ORIN, rival)
    assert update.host_ps == retrieval.UPDATE_OPS * ORIN.dispatch_ps
    assert (update.kernel.read_bytes, update.kernel.write_bytes) == (0, 4096)
    assert retrieval.cluster(ORIN, replace(rival, table_write_bytes=0)).duration_ps == 0
    ours, theirs = retrieval.select(ORIN, clustered), retrieval.select(ORIN, rival)
    choices = retrieval.HEAD_OPS * rival.kv_heads
    assert theirs.host_ps == (retrieval.CUT_OPS[cut] + choices + retrieval.QUERY_OPS) * ORIN.dispatch_ps
    assert theirs.duration_ps < ours.duration_ps
    shared = retrieval.select(ORIN, replace(rival, kv_heads=1))
    assert theirs.host_ps - shared.host_ps == retrieval.HEAD_OPS * (rival.kv_heads - 1) * ORIN.dispatch_ps


@pytest.mark.parametrize(
    ("cut", "operators", "score_bytes"),
    [("wicsum", 16, 13 * 4 + 4 * 8), ("topk", 4, 4 + 8), ("threshold", 11, 6 * 4 + 8)],
)
def test_a_selection_passes_over_scores_that_do_not_fit_in_l2(cut: Cut, operators: int, score_bytes: int) -> None:
    """Read and written: 4 B of a score in each pass of an operator, 8 B in each of a sort's; in all of top-k's, 8 B."""
    p = resv_step(LLAMA3_8B, 5000, 0.2).layers[1].prediction
    assert p is not None
    p = replace(p, cut=cut, clusters=100_000, query_gemm=None)
    stage, scores = retrieval.select(ORIN, p), 10 * 32 * 100_000
    assert stage.host_ps == (operators + 5 * 8) * ORIN.dispatch_ps
    assert stage.kernel.flops == 2 * p.score_macs
    assert stage.kernel.read_bytes == p.score_read_bytes + scores * score_bytes
    assert stage.kernel.write_bytes == scores * score_bytes


def test_clustering_without_a_hash_product_is_its_tokens_alone() -> None:
    p = resv_step(LLAMA3_8B, 5000, 0.2).layers[1].prediction
    assert p is not None
    assert p.hash_gemm is not None
    p = replace(p, table_read_bytes=300, table_write_bytes=500)
    hashed, bare = (retrieval.cluster(ORIN, replace(p, hash_gemm=g)) for g in (p.hash_gemm, None))
    assert (hashed.host_ps, bare.host_ps) == (104 * ORIN.dispatch_ps, 100 * ORIN.dispatch_ps)
    assert (hashed.kernel.flops, bare.kernel.flops) == (p.hash_gemm.flops, 0)
    assert (bare.kernel.read_bytes, bare.kernel.write_bytes) == (300, 500)
    assert hashed.kernel.read_bytes == 300 + p.hash_gemm.weight_bytes
    assert (bare.kernel.launches, hashed.kernel.launches) == (100, 104)


def test_selection_grows_with_the_clusters() -> None:
    small, large = (resv_step(LLAMA3_8B, kv, 0.2).layers[1].prediction for kv in (5000, 40_000))
    assert small is not None
    assert large is not None
    a, b = retrieval.select(ORIN, small), retrieval.select(ORIN, large)
    assert a.host_ps == b.host_ps
    assert a.kernel.busy_ps < b.kernel.busy_ps
    assert b.kernel.flops > 7 * (a.kernel.flops - 2 * 10 * 4096 * 4096)


@pytest.mark.parametrize("mode", ["next_layer", "same_layer"])
def test_fetch_waits_for_its_prediction_and_attention_for_its_fetch(mode: PredictMode) -> None:
    timeline = Gpu(ORIN).simulate(resv_step(LLAMA3_8B, 20_000, 0.2, mode))
    fetch = {s.layer: s for s in timeline.on("link")}
    attention = {s.layer: s for s in reversed(timeline.on("gpu")) if s.what == "attention"}
    for layer in range(2, 32):
        own = [s for s in timeline.on("gpu") if s.what == "prediction" and s.layer == layer]
        selection, clustering = own if mode == "next_layer" else reversed(own)
        assert clustering.end_ps <= attention[layer].start_ps
        assert selection.end_ps <= fetch[layer].start_ps
        assert fetch[layer].end_ps <= attention[layer].start_ps
        if mode == "next_layer":
            assert selection.end_ps <= attention[layer - 1].start_ps
        else:
            assert selection.start_ps >= attention[layer - 1].end_ps


def test_host_time_of_a_prediction_is_not_gpu_work() -> None:
    timeline = Gpu(ORIN).simulate(resv_step(LLAMA3_8B, 5000, 0.2))
    waiting = timeline.busy_ps("host", ["prediction"])
    assert timeline.busy_ps("gpu") - timeline.actions["gpu_busy_ps"] == waiting


# -- capacity and bad input -------------------------------------------------------------------------------


def test_a_cache_that_does_not_fit_is_refused_with_numbers() -> None:
    with pytest.raises(OutOfMemoryError, match=r"agx_orin_paper: .* need 41\.\d\d GB .* has 32 GB"):
        Gpu(PAPER).simulate(dense_step(LLAMA3_8B, 10, 40_000, batch=5))
    offloaded = full_step(LLAMA3_8B, 40_000)
    assert device_bytes(offloaded) < 17e9
    check_capacity("x", 10, 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"power_mode": "70w"}, "'70w' is not among the modes of agx_orin: maxn, 50w, 30w, 15w"),
        ({"peak_flops": {"int8": 1e12}}, "no rate for activation 'fp16'"),
        ({"dram_bytes_per_s": 0}, "greater than or equal to 1000000"),
        ({"stack": "onnx"}, "'eager', 'modules', 'fused', 'graph' or 'ggml'"),
        ({"colour": 1}, "Extra inputs"),
    ],
)
def test_bad_fields_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GpuConfig(**{**ORIN.model_dump(exclude={"offload"}), "offload": ORIN.offload, **changes})


def test_import_stays_light() -> None:
    code = "import sys, dre_sim.gpu; print([m for m in ('numba', 'torch', 'yaml') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
