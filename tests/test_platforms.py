"""Laws of the V-Rex chip: bounds, overlap, capacity, conservation, monotonicity."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from dre_sim.breakdown import exposed_ps
from dre_sim.lowering import dense_step
from dre_sim.lxe import dense_layer_bound, peak_flops
from dre_sim.platforms import PLATFORMS, OutOfMemoryError, VRex, VRexConfig
from dre_sim.scheduler import DRAM
from dre_sim.statistics import OperatingPoint, statistics_step
from dre_sim.workload import PredictMode, StepWork
from tests.bundled import platform
from tests.shapes import LLAMA3_8B, TINY

POINT = OperatingPoint(ratio=0.15, resident_tokens=5_000)
NAMES = ("vrex8", "vrex48", "agx_orin", "agx_orin_eager", "agx_orin_paper", "a100", "a100_eager")


def simulate(config: object, work: StepWork):  # type: ignore[no-untyped-def]
    return PLATFORMS[config.kind][1](config).simulate(work)  # type: ignore[attr-defined]


def test_peaks_are_those_of_table_1() -> None:
    assert peak_flops(platform("vrex8").lxe) == pytest.approx(53.25e12, rel=1e-3)
    assert peak_flops(platform("vrex48").lxe) == pytest.approx(319.5e12, rel=1e-3)


@pytest.mark.parametrize("cached", [1024, 40_960])
def test_a_dense_layer_is_never_faster_than_its_bytes_over_the_pins_bandwidth(cached: int) -> None:
    config = platform("vrex8")
    work = dense_step(LLAMA3_8B, 10, cached, n_layers=1)
    work = replace(work, vision=(), vision_vector_elements=0, head=())
    bound = dense_layer_bound(LLAMA3_8B, 10, cached, config.memory.peak_bytes_per_s)
    assert bound.ps <= VRex(config).simulate(work).end_ps <= 1.25 * bound.ps


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["frame", "decode"])
def test_conservation_on_every_platform(name: str, kind: str) -> None:
    n_new = 10 if kind == "frame" else 1
    work = statistics_step(LLAMA3_8B, n_new, 20_000, POINT, kind=kind)  # type: ignore[arg-type]
    timeline = simulate(platform(name), work)
    fetched = sum(layer.fetch.link_bytes for layer in work.layers if layer.fetch)
    extents = sum(layer.fetch.extent_bytes.size for layer in work.layers if layer.fetch)
    on_link = sum(s.n_bytes for s in timeline.on("link"))
    assert timeline.actions["link_bytes"] == on_link
    assert fetched <= on_link <= fetched + 4096 * extents
    dram = sum(s.n_bytes for s in timeline.on(DRAM))
    moved = timeline.actions["dram_read_bytes"] + timeline.actions["dram_write_bytes"]
    assert moved == dram
    assert sum(exposed_ps(timeline).values()) == timeline.end_ps
    assert all(count >= 0 for count in timeline.actions.values())


@pytest.mark.parametrize("name", NAMES)
def test_no_resource_is_used_beyond_its_capacity(name: str) -> None:
    timeline = simulate(platform(name), statistics_step(LLAMA3_8B, 10, 20_000, POINT))
    for resource in timeline.resources():
        spans = sorted(timeline.on(resource), key=lambda s: s.start_ps)
        if resource != DRAM:
            assert all(a.end_ps <= b.start_ps for a, b in pairwise(spans))
            continue
        for at in {s.start_ps for s in spans}:
            assert sum(s.share for s in spans if s.start_ps <= at < s.end_ps) <= 1 + 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_latency_is_at_least_the_traffic_over_the_peak_bandwidth(name: str) -> None:
    config = platform(name)
    timeline = simulate(config, statistics_step(LLAMA3_8B, 10, 20_000, POINT))
    peak = config.memory.peak_bytes_per_s if isinstance(config, VRexConfig) else config.dram_bytes_per_s
    assert timeline.end_ps * 1e-12 >= sum(s.n_bytes for s in timeline.on(DRAM)) / peak


def test_prediction_and_fetch_overlap_compute_under_next_layer_and_not_under_same_layer() -> None:
    vrex = VRex(platform("vrex8"))
    ahead = vrex.simulate(statistics_step(LLAMA3_8B, 10, 20_000, POINT))
    same = vrex.simulate(statistics_step(LLAMA3_8B, 10, 20_000, POINT.model_copy(update={"predict": "same_layer"})))
    assert ahead.end_ps < same.end_ps
    fetches = [s for s in ahead.on("link") if s.layer == 5]
    compute = [s for s in ahead.on("lxe") if s.layer == 4 and s.what == "linear"]
    assert any(f.start_ps < c.end_ps and c.start_ps < f.end_ps for f in fetches for c in compute)
    exposed = exposed_ps(same)["fetch"]
    assert exposed >= 0.95 * same.busy_ps("link", ["fetch"])


def test_without_a_kvmu_the_host_sets_the_pace_of_small_extents() -> None:
    """A host that takes 3.5 us an extent is hidden behind large ones, and is what takes the time of small ones."""
    chip = platform("vrex8")
    assert isinstance(chip, VRexConfig)
    driven = chip.model_copy(update={"kvmu": chip.kvmu.model_copy(update={"submit_ps": 3_500_000})})
    for tokens, paced in ((64, False), (4, True)):
        work = statistics_step(LLAMA3_8B, 10, 20_000, POINT.model_copy(update={"tokens_per_cluster": tokens}))
        alone, with_host = (VRex(c).simulate(work) for c in (chip, driven))
        asked_ps = sum(3_500_000 * layer.fetch.extent_bytes.size for layer in work.layers if layer.fetch)
        assert with_host.busy_ps("link") == (asked_ps if paced else alone.busy_ps("link"))
        assert with_host.actions == alone.actions


@pytest.mark.parametrize("name", ["vrex8", "vrex48"])
def test_an_output_token_waits_for_the_ports_of_the_cores(name: str) -> None:
    chip = platform(name)
    assert isinstance(chip, VRexConfig)
    work = dense_step(LLAMA3_8B, 1, 1000, kind="decode")

    def end_s(port_bytes: float | None) -> float:
        lxe = chip.lxe.model_copy(update={"memory_port_bytes": port_bytes})
        return VRex(chip.model_copy(update={"lxe": lxe})).simulate(work).end_ps * 1e-12

    weights = sum(g.weight_bytes for g in (*work.head, *(g for layer in work.layers for g in layer.gemms)))
    taken_s = weights / (chip.lxe.cores * 26.6 * chip.lxe.frequency_hz)
    assert taken_s < end_s(26.6) < 1.02 * taken_s
    assert end_s(None) < 0.95 * end_s(26.6) < 0.95 * end_s(20.0)


def test_attention_starts_when_its_fetch_has_ended_and_not_before() -> None:
    timeline = VRex(platform("vrex8")).simulate(statistics_step(LLAMA3_8B, 10, 40_000, POINT))
    for layer in range(LLAMA3_8B.n_layers):
        (fetch,) = [s for s in timeline.on("link") if s.layer == layer]
        (attention,) = [s for s in timeline.on("lxe") if s.layer == layer and s.what == "attention"]
        assert attention.start_ps >= fetch.end_ps


def test_a_reuse_region_that_does_not_fit_is_refused() -> None:
    chip = platform("vrex8")
    work = statistics_step(LLAMA3_8B, 10, 20_000, POINT, batch=2)
    for reuse, size, fits in (("lru", 4 << 30, True), ("lru", 8 << 30, False), ("none", 8 << 30, True)):
        config = chip.model_copy(update={"kvmu": chip.kvmu.model_copy(update={"reuse": reuse, "reuse_bytes": size})})
        if fits:
            VRex(config).simulate(work)
            continue
        with pytest.raises(OutOfMemoryError, match="vrex8"):
            VRex(config).simulate(work)


def nothing_offloaded(ratio: float, predict: PredictMode = "next_layer") -> StepWork:
    """ReSV over a cache that is all on the device: of which a share is chosen, or which is attended to as it is."""
    work = statistics_step(LLAMA3_8B, 10, 5000, OperatingPoint(ratio=ratio, resident_tokens=4000, predict=predict))
    return replace(work, layers=tuple(replace(layer, fetch=None) for layer in work.layers))


@pytest.mark.parametrize("predict", ["next_layer", "same_layer"])
def test_attention_waits_for_what_chooses_among_tokens_on_the_device(predict: PredictMode) -> None:
    timeline = VRex(platform("vrex8")).simulate(nothing_offloaded(0.2, predict))
    for layer in range(LLAMA3_8B.n_layers):
        (looked_up,) = [s for s in timeline.on("kvmu") if s.layer == layer]
        (attention,) = [s for s in timeline.on("lxe") if s.layer == layer and s.what == "attention"]
        assert attention.start_ps >= looked_up.end_ps


@pytest.mark.parametrize("name", ["vrex8", "agx_orin", "agx_orin_eager", "a100"])
def test_new_keys_are_clustered_where_nothing_can_be_left_out(name: str) -> None:
    """Hash and HC table are work of every step; scores, threshold and look-ups are not."""
    work = replace(nothing_offloaded(0.2), predict="none")
    layers = [
        replace(one, prediction=one.prediction and replace(one.prediction, clusters=0, score_macs=0, query_gemm=None))
        for one in work.layers
    ]
    bare = [replace(one, prediction=None) for one in layers]
    kept, without = (simulate(platform(name), replace(work, layers=tuple(some))) for some in (layers, bare))
    predicted = [s for s in kept.spans if s.what == "prediction"]
    assert {s.layer for s in predicted} == set(range(LLAMA3_8B.n_layers))
    assert not {s.resource for s in predicted} & {"wtu", "kvmu"}
    assert kept.end_ps >= without.end_ps
    if name != "vrex8":  # ten tokens, one after the other, in software
        operators_ps = 104 * platform(name).dispatch_ps
        assert kept.end_ps - without.end_ps >= 0.9 * LLAMA3_8B.n_layers * operators_ps


@pytest.mark.parametrize("name", NAMES)
def test_more_to_fetch_more_new_tokens_and_larger_batches_are_never_faster(name: str) -> None:
    config = platform(name)

    def end(ratio: float = 0.15, n_new: int = 10, batch: int = 1) -> int:
        point = POINT.model_copy(update={"ratio": ratio})
        return int(simulate(config, statistics_step(LLAMA3_8B, n_new, 20_000, point, batch)).end_ps)

    assert end(0.05) <= end(0.15) <= end(0.6)
    assert end(n_new=5) <= end(n_new=10) <= end(n_new=40)
    assert end(batch=1) <= end(batch=2)


def test_a_slower_link_and_slower_memory_are_never_faster() -> None:
    work = statistics_step(LLAMA3_8B, 10, 40_000, POINT)
    config = platform("vrex8")
    narrow = config.offload.link.model_copy(update={"lanes": 2})
    slow_link = config.model_copy(update={"offload": config.offload.model_copy(update={"link": narrow})})
    memory = config.memory.model_copy(update={"n_channels": config.memory.n_channels // 2})
    slow_memory = config.model_copy(update={"memory": memory})
    fast = VRex(config).simulate(work).end_ps
    assert VRex(slow_link).simulate(work).end_ps > fast
    assert VRex(slow_memory).simulate(work).end_ps > fast


@pytest.mark.parametrize("name", NAMES)
def test_weights_and_cache_beyond_the_device_memory_are_refused_with_both_numbers(name: str) -> None:
    work = dense_step(LLAMA3_8B, 10, 1_000_000)
    with pytest.raises(OutOfMemoryError, match=r"GB of device memory, it has"):
        simulate(platform(name), work)


def test_a_known_fetch_list_streams_one_layer_ahead() -> None:
    work = statistics_step(TINY, 10, 20_000, OperatingPoint(ratio=1.0, predict="none"))
    timeline = VRex(platform("vrex8")).simulate(work)
    first = min(s.start_ps for s in timeline.on("link"))
    assert first == 0
    starts = [min(s.start_ps for s in timeline.on("link") if s.layer == i) for i in range(TINY.n_layers)]
    assert starts == sorted(starts)


def test_the_same_work_gives_the_same_timeline() -> None:
    work = statistics_step(LLAMA3_8B, 10, 10_000, POINT)
    config = platform("vrex8")
    one, two = VRex(config).simulate(work), VRex(config).simulate(work)
    assert one == two
    assert np.all([a == b for a, b in zip(one.spans, two.spans, strict=True)])
