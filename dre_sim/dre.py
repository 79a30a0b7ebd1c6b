"""The prediction of one layer on the DRE: HCU and WTU over all tables and KV heads of a `LayerSelection`.

Every run compares what the units select with what the policy selected and stops on a difference. Which of
it hides behind which other work is the scheduler's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dre_sim.hcu import HcuConfig, HcuResult, Match, simulate_hcu
from dre_sim.workload import DreJob
from dre_sim.wtu import (
    WicsumFields,
    WtuConfig,
    WtuResult,
    heads_over_cores,
    simulate_wtu,
    wtu_cycles_over_cores,
)
from resv.selection import ClusterTable, ClusterUpdate, LayerSelection


class DisagreementError(RuntimeError):
    """A unit's selection differs from the policy's: a defect of one of them, never of the input."""


class PredictionFields(Protocol):
    """The fields of a ReSV policy that the units work by."""

    @property
    def hash_bits(self) -> int: ...
    @property
    def hamming_threshold(self) -> int: ...
    @property
    def match(self) -> Match: ...
    @property
    def wicsum(self) -> WicsumFields: ...


def simulate_dre_layer(
    hcu: HcuConfig, wtu: WtuConfig, policy: PredictionFields, selection: LayerSelection, n_cores: int
) -> DreJob:
    """Cycles and actions of one layer's prediction on `n_cores` V-Rex cores. Source: docs/dre.md.

    Raises
    ------
    DisagreementError
        the units do not select what `selection` holds.
    ValueError
        inputs or fields a unit cannot take.
    """
    hcu_results = [
        _cluster(hcu, policy, table, update, n_cores if len(selection.tables) == 1 else 1)
        for table, update in zip(selection.tables, selection.updates, strict=True)
    ]
    wtu_results = [simulate_wtu(wtu, policy.wicsum, rows.scores, rows.token_counts) for rows in selection.rows]
    check_against(selection, hcu_results, wtu_results)
    return DreJob(
        hcu_cycles=heads_over_cores([result.cycles for result in hcu_results], n_cores),
        wtu_cycles=wtu_cycles_over_cores(wtu_results, n_cores * wtu.cores),
        hcu_chunks=sum(result.chunks_examined for result in hcu_results),
        hcu_updates=sum(result.updates for result in hcu_results),
        hcu_table_bytes=sum(result.tile_bytes_read for result in hcu_results),
        wtu_elements=sum(rows.scores.size for rows in selection.rows)
        + sum(result.elements_visited for result in wtu_results),
        wtu_rows=sum(result.n_rows for result in wtu_results),
        wtu_spills=sum(result.spills for result in wtu_results),
        wtu_union_words=sum(result.union_words for result in wtu_results),
        kvmu_lookups=sum(result.selected_count for result in wtu_results),
        wtu_spill_bytes=sum(result.spill_bytes for result in wtu_results),
    )


def check_against(
    selection: LayerSelection, hcu_results: Sequence[HcuResult], wtu_results: Sequence[WtuResult]
) -> None:
    """Compare the units' answers with the policy's.

    Raises
    ------
    DisagreementError
        naming layer, table or KV head and the first difference.
    """
    for number, (result, update) in enumerate(zip(hcu_results, selection.updates, strict=True)):
        got = table_indices(result.assignment, update.eligible, selection.tables[number].n_clusters)
        where = f"layer {selection.layer}, HC table {number}"
        token = _first_difference(where, got, update.assignment)
        if token is not None:
            raise DisagreementError(
                f"{where}: the HCU puts token {token} into cluster {got[token]}, "
                f"the policy into cluster {update.assignment[token]}"
            )
    for head, (wtu_result, rows) in enumerate(zip(wtu_results, selection.rows, strict=True)):
        where = f"layer {selection.layer}, KV head {head}"
        column = _first_difference(where, wtu_result.selected, rows.selected)
        if column is not None:
            keeps = "selects" if wtu_result.selected[column] else "leaves out"
            raise DisagreementError(
                f"{where}: the WTU {keeps} cluster {rows.candidates[column]} (column {column}), the policy does not"
            )


def table_indices(assignment: NDArray[np.int32], eligible: NDArray[np.int32], n_clusters: int) -> NDArray[np.int32]:
    """The HCU's positions among eligible clusters as cluster indices of the whole table."""
    founded = np.arange(n_clusters, n_clusters + len(assignment), dtype=np.int32)
    return np.concatenate([eligible, founded])[assignment]


def _cluster(
    hcu: HcuConfig, policy: PredictionFields, table: ClusterTable, update: ClusterUpdate, n_cores: int
) -> HcuResult:
    codes = table.codes[update.eligible]
    return simulate_hcu(hcu, policy.hash_bits, policy.hamming_threshold, policy.match, update.new_codes, codes, n_cores)


def _first_difference(where: str, got: NDArray[Any], expected: NDArray[Any]) -> int | None:
    if got.shape != expected.shape:
        raise DisagreementError(f"{where}: the unit answers for {got.shape}, the policy for {expected.shape}")
    differs = np.flatnonzero(got != expected)
    return int(differs[0]) if len(differs) else None
