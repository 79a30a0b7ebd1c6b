"""Golden breakdowns: where time, energy and bytes of fixed operating points go, by component.

Statistics-driven, so that no floating-point library decides them: times, bytes and counts are compared exactly, joules
to 1e-9. `pytest tests/test_golden.py --update-golden` rewrites the file; the diff belongs in the review.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from dre_sim.breakdown import exposed_ps
from dre_sim.platforms import PLATFORMS, VRexConfig
from dre_sim.statistics import OperatingPoint, statistics_step
from energy_models.pricing import price
from resv_sim.hardware import unit_parameters
from tests.bundled import platform, price_table
from tests.shapes import LLAMA3_8B

GOLDEN = Path(__file__).parent / "golden" / "breakdowns.json"
POINTS = {
    "full": OperatingPoint(ratio=1.0, predict="none", tokens_per_cluster=20_000),
    "resv": OperatingPoint(ratio=0.15, resident_tokens=5_000),
    "resv same layer": OperatingPoint(ratio=0.15, resident_tokens=5_000, predict="same_layer"),
}
CASES = [
    f"{name} | {point} | {kind} | 20000"
    for name in ("vrex8", "vrex48", "agx_orin", "agx_orin_eager", "agx_orin_paper", "a100", "a100_eager")
    for point in POINTS
    for kind in ("frame", "decode")
]


def breakdown(case: str) -> dict[str, Any]:
    name, point, kind, cached = case.split(" | ")
    config = platform(name)
    work = statistics_step(LLAMA3_8B, 10 if kind == "frame" else 1, int(cached), POINTS[point], kind=kind)  # type: ignore[arg-type]
    timeline = PLATFORMS[config.kind][1](config).simulate(work)
    units = unit_parameters(config, []) if isinstance(config, VRexConfig) else None
    bill = price(timeline, price_table(name), units)
    return {
        "end_ps": timeline.end_ps,
        "exposed_ps": exposed_ps(timeline),
        "actions": dict(timeline.actions),
        "energy_j": bill.by_component(),
    }


@pytest.mark.parametrize("case", CASES)
def test_breakdown_is_the_golden_one(case: str, request: pytest.FixtureRequest) -> None:
    got = breakdown(case)
    if request.config.getoption("--update-golden"):
        known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        known = {k: v for k, v in {**known, case: got}.items() if k in CASES}
        GOLDEN.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")
        return
    want = json.loads(GOLDEN.read_text())[case]
    for part in ("end_ps", "exposed_ps", "actions"):
        assert got[part] == want[part], part
    assert got["energy_j"] == pytest.approx(want["energy_j"], rel=1e-9)


def test_no_case_is_left_over_from_an_earlier_set() -> None:
    assert set(json.loads(GOLDEN.read_text())) == set(CASES)
