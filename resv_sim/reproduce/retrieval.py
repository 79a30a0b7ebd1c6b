"""Figs. 7 and 20 and Table II: how like keys hash alike, and how much ReSV retrieves in a COIN session."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from resv_sim.reproduce.items import Findings, Group, Panel, Statement, not_run
from resv_sim.reproduce.study import Outcome, Study

CALIBRATED = "The trace generator is calibrated on COIN's figures; these rows show how well it meets them."


def fig7(study: Study) -> Findings:
    """Hashed keys of layer 3 of the long stream."""
    return Findings(statistics=study.outcome("fig13_edge").result.trace_statistics, notes=(CALIBRATED,))


def fig20(study: Study) -> Findings:
    """Spread of the retrieval ratio over layers, and the share of the scores that the early exit visits."""
    session, long = study.outcome("table2"), study.outcome("fig13_edge")
    by_layer = _frame_ratios(session).mean(axis=1)
    return Findings(
        groups=(_group(session), Group(long.result.rows, long.baseline)),
        statistics=session.result.trace_statistics,
        missing={"rekv_over_resv_tokens": not_run("rekv")},
        notes=(CALIBRATED,),
        panels=(
            Panel(
                "Frame stage, average COIN session",
                "retrieval ratio",
                {"ReSV": {layer: float(ratio) for layer, ratio in enumerate(by_layer)}},
                x_label="layer",
            ),
        ),
    )


def table2(study: Study) -> Findings:
    """Retrieval ratios of the average session; accuracy is not run."""
    session = study.outcome("table2")
    return Findings(
        groups=(_group(session),),
        statements=(
            Statement("ReSV retrieves fewer tokens than ReKV, InfiniGen and InfiniGenP", "open", not_run("rekv")),
        ),
        notes=(CALIBRATED,),
    )


def _group(outcome: Outcome) -> Group:
    return Group(outcome.result.rows, outcome.baseline)


def _frame_ratios(outcome: Outcome) -> NDArray[np.float64]:
    """(L, H) of the session's frames."""
    return next(ratios for key, ratios in outcome.result.ratios.items() if key.stage == "frame")
