"""PCIe: packets, payload figures, per-transfer costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dre_sim.link import LinkConfig, LinkResult, transfer

CONFIGS = Path(__file__).parent.parent / "configs" / "link"


def load(name: str, **changes: Any) -> LinkConfig:
    fields = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    return LinkConfig(**(fields | changes))


@pytest.mark.parametrize(
    ("name", "raw", "payload"), [("pcie3_x4", 4.0, 3.282), ("pcie4_x4", 8.0, 6.564), ("pcie4_x16", 32.0, 26.256)]
)
def test_28_bytes_in_156_are_no_payload(name: str, raw: float, payload: float) -> None:
    link = load(name)
    assert link.raw_gb_per_s == raw
    assert link.payload_gb_per_s == pytest.approx(payload, abs=1e-3)


@pytest.mark.parametrize("efficiency", [1.0, 0.8])
def test_long_transfer_runs_at_the_payload_rate(efficiency: float) -> None:
    link = load("pcie3_x4", efficiency=efficiency)
    got = transfer(link, np.array([128 * 10**6]))
    assert got.payload_bytes * 1e3 / got.time_ps == pytest.approx(link.payload_gb_per_s)
    assert link.payload_gb_per_s == pytest.approx(efficiency * 4.0 * 128 / 156)
    assert transfer(load("pcie3_x4", latency_ps=5_000), np.array([], np.int64)) == LinkResult(0, 0, 0, 0, 0)


def test_latency_comes_once_and_the_cost_of_a_transfer_with_every_extent() -> None:
    extents = np.array([128, 4096, 1])
    plain = transfer(load("pcie3_x4"), extents)
    costly = transfer(load("pcie3_x4", latency_ps=5_000, transfer_ps=700), extents)
    assert costly.time_ps == plain.time_ps + 5_000 + 3 * 700


def test_each_extent_ends_in_a_packet_of_its_own() -> None:
    got = transfer(load("pcie3_x4"), np.array([128, 129, 1]))
    assert (got.n_tlps, got.payload_bytes, got.wire_bytes) == (4, 258, 258 + 4 * 28)
    assert got.time_ps == (258 + 4 * 28) * 250


def test_copy_calls_of_3_5_us_dominate_small_blocks_as_measured() -> None:
    # 1000 blocks each by cudaMemcpyAsync over PCIe 5.0 x16 (vLLM blog 2026-01-08, Fig. 4): GB/s by block size.
    link = LinkConfig(name="h100", generation=5, lanes=16, transfer_ps=3_500_000, efficiency=0.98)
    for kib, measured in ((4, 1.1), (8, 2.3), (64, 14.4), (1024, 44.4)):
        got = transfer(link, np.full(1000, kib * 1024))
        assert got.payload_bytes * 1e3 / got.time_ps == pytest.approx(measured, rel=0.1)


@given(sizes=st.lists(st.integers(1, 10**6), max_size=30), cost=st.integers(0, 10**7))
def test_bytes_are_conserved_and_more_is_never_faster(sizes: list[int], cost: int) -> None:
    extents = np.array(sizes, np.int64)
    link = load("pcie4_x4", transfer_ps=cost)
    got = transfer(link, extents)
    assert got.payload_bytes == sum(sizes)
    assert got.n_transactions == len(sizes)
    assert got.wire_bytes == got.payload_bytes + 28 * got.n_tlps
    assert got.time_ps >= transfer(link, extents[1:]).time_ps
    assert got.time_ps <= transfer(load("pcie3_x4", transfer_ps=cost), extents).time_ps


def test_bad_extents_and_links_are_refused() -> None:
    with pytest.raises(ValueError, match="extent of 0 bytes"):
        transfer(load("pcie3_x4"), np.array([4096, 0]))
    with pytest.raises(ValueError, match="generation"):
        load("pcie3_x4", generation=2)
    with pytest.raises(ValueError, match="efficiency"):
        load("pcie3_x4", efficiency=1.1)
