"""Laws of the V-Rex chip: bounds, overlap, capacity, conservation, monotonicity."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from dre_sim import lxe
from dre_sim.breakdown import exposed_ps
from dre_sim.lowering import dense_step
from dre_sim.lxe import dense_layer_bound, peak_flops
from dre_sim.platforms import PLATFORMS, OutOfMemoryError, VRex, VRexConfig
from dre_sim.scheduler import DRAM
from dre_sim.statistics import OperatingPoint, statistics_step
from dre_sim.workload import Cut, PredictMode, StepWork
from tests.bundled import platform
from tests.shapes import LLAMA3_8B, SEEING, TINY

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
        engines = chip.lxe.model_copy(update={"memory_port_bytes": port_bytes})
        return VRex(chip.model_copy(update={"lxe": engines})).simulate(work).end_ps * 1e-12

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


# -- what the units do ------------------------------------------------------------------------------------


def changed(work: StepWork, *, dre: dict[str, int] | None, layer: dict[str, int], **fields: Any) -> StepWork:
    """The step with other fields in all layers, their predictions and DRE jobs (None: without a DRE)."""
    layers = []
    for one in work.layers:
        p = one.prediction
        assert p is not None
        assert p.dre is not None
        job = None if dre is None else replace(p.dre, **dre)
        layers.append(replace(one, prediction=replace(p, dre=job, **fields), **layer))
    return replace(work, layers=tuple(layers))


def test_a_chip_counts_every_operation_and_byte_of_its_step() -> None:
    """Of cores with little SRAM, in which rows spill, tables change and K and V leave."""
    chip = platform("vrex8")
    chip = chip.model_copy(update={"lxe": chip.lxe.model_copy(update={"sram_bytes": 40 * 1024})})
    work = statistics_step(SEEING, 50, 3000, OperatingPoint(ratio=0.2, resident_tokens=500), batch=2)
    work = changed(
        work,
        dre={"wtu_spill_bytes": 70_001},
        layer={"offload_write_bytes": 40_960, "reorder_bytes": 90_001},
        table_read_bytes=3_003,
        table_write_bytes=5_005,
    )
    predictions = [layer.prediction for layer in work.layers if layer.prediction]
    jobs = [p.dre for p in predictions if p.dre]
    gemms = [*work.vision, *work.head, *(g for layer in work.layers for g in layer.gemms)]
    gemms += [g for p in predictions for g in (p.hash_gemm, p.query_gemm) if g]
    costs = [lxe.gemm(chip.lxe, g.m, g.k, g.n) for g in gemms]
    cached = [layer.attention for layer in work.layers]
    heads = [lxe.attention(chip.lxe, a.rows, a.group, a.head_dim, a.cached_tokens) for a in cached]
    assert min(cost.weight_passes for cost in heads) > 1
    arriving = sum(chip.offload.fetch(layer.fetch.extent_bytes).payload_bytes for layer in work.layers if layer.fetch)
    elementwise = work.vision_vector_elements + sum(layer.vector_elements for layer in work.layers)
    softmax, exps = sum(layer.softmax_elements for layer in work.layers), sum(p.exp_elements for p in predictions)
    scores_bytes = sum(p.score_read_bytes for p in predictions)
    read = sum(g.weight_bytes * cost.weight_passes for g, cost in zip(gemms, costs, strict=True))
    read += sum(a.kv_read_bytes * cost.weight_passes for a, cost in zip(cached, heads, strict=True)) + scores_bytes
    expected = {
        "dpe_macs": sum(g.macs for g in gemms) + sum(c.macs for c in heads) + sum(p.score_macs for p in predictions),
        "vpe_ops": 4 * elementwise + 5 * softmax + 3 * exps,
        "lxe_sram_bytes": sum(c.sram_read_bytes + c.sram_write_bytes for c in costs + heads) + 2 * scores_bytes,
        "hcu_chunks": sum(job.hcu_chunks for job in jobs),
        "hcu_updates": sum(job.hcu_updates for job in jobs),
        "hcu_table_bytes": sum(job.hcu_table_bytes for job in jobs),
        "wtu_elements": sum(job.wtu_elements for job in jobs),
        "wtu_rows": sum(job.wtu_rows for job in jobs),
        "wtu_union_words": sum(job.wtu_union_words for job in jobs),
        "kvmu_lookups": sum(job.kvmu_lookups for job in jobs),
        "link_bytes": arriving + 3 * 40_960,
        "dram_read_bytes": read + sum(j.hcu_table_bytes for j in jobs) + 3 * (3_003 + 70_001 + 40_960 + 45_000),
        "dram_write_bytes": arriving + sum(la.kv_write_bytes for la in work.layers) + 3 * (5_005 + 45_001),
    }
    assert all(expected.values())
    timeline = VRex(chip).simulate(work)
    assert {name: timeline.actions[name] for name in expected} == expected
    moved = sum(s.n_bytes for s in timeline.on(DRAM))
    assert moved == expected["dram_read_bytes"] + expected["dram_write_bytes"]
    assert moved / chip.memory.row_bytes < timeline.actions["dram_activates"] < moved / chip.memory.transaction_bytes


def test_units_of_a_chip_take_their_cycles_at_its_clock_one_behind_the_other() -> None:
    work = statistics_step(TINY, 40, 2000, POINT.model_copy(update={"predict": "same_layer", "resident_tokens": 100}))
    cycles = {"hcu_cycles": 70_001, "wtu_cycles": 50_003, "kvmu_lookups": 30_007}
    chip = platform("vrex8")
    timeline = VRex(chip).simulate(changed(work, dre=cycles, layer={}))
    for layer in range(TINY.n_layers):
        (hcu,), (wtu,), (kvmu,), (link,) = (
            [s for s in timeline.on(unit) if s.layer == layer] for unit in ("hcu", "wtu", "kvmu", "link")
        )
        hashed, scored = (s for s in timeline.on("lxe") if s.layer == layer and s.what == "prediction")
        assert [s.duration_ps for s in (hcu, wtu, kvmu)] == [1250 * n for n in cycles.values()]
        (attention,) = (s for s in timeline.on("lxe") if s.layer == layer and s.what == "attention")
        p, a = work.layers[layer].prediction, work.layers[layer].attention
        assert p is not None
        scores = lxe.attention_scores_cycles(chip.lxe, p.score_rows // 2, p.score_depth, p.clusters, 2)
        assert scored.duration_ps == 1250 * (scores + lxe.vector(chip.lxe, p.exp_elements, 3).cycles)
        products = lxe.attention(chip.lxe, a.rows, a.group, a.head_dim, a.cached_tokens).cycles
        softmax = lxe.vector(chip.lxe, work.layers[layer].softmax_elements, 5).cycles
        assert attention.duration_ps == 1250 * (products + softmax)
        assert hashed.end_ps == hcu.start_ps
        assert hcu.end_ps == scored.start_ps
        assert scored.end_ps == wtu.start_ps
        assert wtu.end_ps == kvmu.start_ps
        assert kvmu.end_ps == link.start_ps


def test_tables_and_rows_that_spill_take_their_time_in_memory() -> None:
    """Bytes that no unit hides: a table read and rows written over, read back at the memory's rate or slower."""
    chip = platform("vrex8")
    work = statistics_step(TINY, 10, 2000, POINT.model_copy(update={"predict": "same_layer", "resident_tokens": 100}))
    bytes_ = {"hcu": 9_000_000, "wtu": 6_000_000}
    dre = {"hcu_table_bytes": 4_000_000, "wtu_spill_bytes": bytes_["wtu"]}
    work = changed(work, dre=dre, layer={}, table_read_bytes=2_000_000, table_write_bytes=3_000_000)
    timeline = VRex(chip).simulate(work)
    for unit, n_bytes in bytes_.items():
        for span in timeline.on(unit):
            assert 1.0 <= span.duration_ps * 1e-12 * chip.memory.peak_bytes_per_s / n_bytes < 1.3
            (memory,) = [s for s in timeline.on(DRAM) if s.start_ps == span.start_ps and s.what == "prediction"]
            assert (memory.end_ps, memory.n_bytes) == (span.end_ps, n_bytes)


@pytest.mark.parametrize(("cut", "passes"), [("wicsum", 10), ("topk", 17), ("threshold", 19)])
def test_without_a_dre_the_vector_engine_compares_codes_and_cuts_rows(cut: Cut, passes: int) -> None:
    """A row of 1,000 scores is sorted in as many passes as 1,000 has bits, or bisected; 512 lanes, four cycles more."""
    work = statistics_step(TINY, 10, 2000, POINT.model_copy(update={"predict": "same_layer", "resident_tokens": 100}))
    work = changed(work, dre=None, layer={}, cut=cut, clusters=1000, comparisons=123_456, exp_elements=0)
    timeline = VRex(platform("vrex8")).simulate(work)
    assert not {"hcu", "wtu", "kvmu"} & set(timeline.resources())
    rows = 10 * TINY.n_query_heads
    for layer in range(TINY.n_layers):
        _, compared, _, chosen = (s for s in timeline.on("lxe") if s.layer == layer and s.what == "prediction")
        assert compared.duration_ps == 1250 * (-(-123_456 // 512) + 4)
        assert chosen.duration_ps == 1250 * (-(-rows * 1000 * passes // 512) + 4)
    elementwise = 4 * sum(layer.vector_elements for layer in work.layers)
    softmax = 5 * sum(layer.softmax_elements for layer in work.layers)
    cuts = TINY.n_layers * (123_456 + rows * 1000 * passes)
    assert timeline.actions["vpe_ops"] == elementwise + softmax + cuts


def test_what_is_kept_without_clusters_is_made_by_the_vector_engine_before_it_is_scored() -> None:
    """A policy without HC tables: 16-bit elements of means, bounds or partial keys, four operations each."""
    work = statistics_step(TINY, 10, 2000, POINT.model_copy(update={"predict": "same_layer", "resident_tokens": 100}))
    bare, kept = (
        VRex(platform("vrex8")).simulate(
            changed(work, dre=None, layer={}, hash_gemm=None, tables=0, table_read_bytes=n, table_write_bytes=2 * n)
        )
        for n in (0, 51_200)
    )
    assert kept.actions["vpe_ops"] - bare.actions["vpe_ops"] == TINY.n_layers * 4 * 51_200
    assert kept.actions["dram_read_bytes"] - bare.actions["dram_read_bytes"] == TINY.n_layers * 51_200
    assert kept.actions["dram_write_bytes"] - bare.actions["dram_write_bytes"] == TINY.n_layers * 2 * 51_200
    for layer in range(TINY.n_layers):
        update, scored, _ = (s for s in kept.on("lxe") if s.layer == layer and s.what == "prediction")
        assert update.duration_ps >= 1250 * (4 * 51_200 // 512 + 4)
        assert update.end_ps == scored.start_ps


@pytest.mark.parametrize("name", ["vrex8", "agx_orin", "a100"])
def test_what_leaves_goes_up_the_link_behind_its_layer_and_nobody_waits_for_it(name: str) -> None:
    """Reordering reads its bytes and writes them again, what leaves is read once; the last write outlasts the step."""
    config = platform(name)
    work = statistics_step(TINY, 10, 2000, POINT.model_copy(update={"resident_tokens": 100}))
    stays, leaves, reorders = (
        simulate(config, changed(work, dre={}, layer={"offload_write_bytes": sent, "reorder_bytes": moved}))
        for sent, moved in ((0, 0), (400_000_000, 0), (0, 90_001))
    )
    assert not stays.on("link_up")
    for layer, up in enumerate(leaves.on("link_up")):
        last = max(s.end_ps for s in leaves.spans if s.layer == layer and s.what == "linear")
        assert up.start_ps == (last if layer == 0 else leaves.on("link_up")[layer - 1].end_ps)
        assert up.duration_ps >= config.offload.write(400_000_000).time_ps
        assert sum(s.n_bytes for s in leaves.on(DRAM) if s.what == "offload" and s.layer == layer) == up.n_bytes
    assert [s.n_bytes for s in leaves.on("link_up")] == [400_000_000] * 3
    assert leaves.end_ps < leaves.on("link_up")[-1].end_ps
    for timeline, read, written, sent in ((leaves, 400_000_000, 0, 400_000_000), (reorders, 45_000, 45_001, 0)):
        more = {"dram_read_bytes": 3 * read, "dram_write_bytes": 3 * written, "link_bytes": 3 * sent}
        assert {a: timeline.actions[a] - stays.actions[a] for a in more} == more
        assert sum(s.n_bytes for s in timeline.on(DRAM) if s.what == "offload") == 3 * (read + written)
