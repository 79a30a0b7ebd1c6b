"""`scripts/compare_trained_trace.py`: recorded and synthetic traces meet the same statistics."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from resv.mini.model import MiniConfig, MiniModel, build_network
from resv_sim.validate.report import replace_section

SCRIPTS = Path(__file__).parent.parent / "scripts"
TINY = MiniConfig(
    n_layers=2, hidden=32, n_query_heads=4, n_kv_heads=2, head_dim=16, ffn=48, patch_hidden=24, max_positions=1600
)


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    sys.modules.pop("compare_trained_trace", None)
    import compare_trained_trace

    monkeypatch.setattr(compare_trained_trace, "LENGTHS", (100, 200))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield compare_trained_trace
    torch.set_num_threads(before)


def test_both_kinds_of_trace_have_every_statistic(script) -> None:
    model = MiniModel(build_network(TINY, 3).eval().requires_grad_(False))
    own = script.own_world(model, 0)
    assert [(probe.kind, probe.first_token) for probe in own.probes] == [
        ("question", 100), ("frame", 100), ("question", 200), ("frame", 200),
    ]  # fmt: skip
    assert own.n_tokens == 210
    shape = own.shape.model_copy(update={"tokens_per_frame": model.tokens_per_frame})
    mine = script.measure([own], range(2))
    synthetic = script.measure([script.synthetic(shape)], range(2))
    assert mine.keys() == synthetic.keys()
    for name, values in mine.items():
        assert np.isfinite(values).all(), name
        assert len(values) == (4 if "by KV head" in name else 2), name
    selected = [values for name, values in mine.items() if "selected" in name or "mass kept" in name]
    assert all(0 <= value <= 1 for values in selected for value in values)


def test_the_section_names_what_lies_outside(script) -> None:
    trained = {"a": [0.1, 0.3], "b": [1.0, 2.0]}
    columns = [
        script.Column("trained", trained),
        script.Column("elsewhere", trained),
        script.Column("generator", {"a": [0.2, 0.2], "b": [2.0, 4.0]}),
        script.Column("large", trained),
    ]
    text = script.section(columns, 3)
    assert "| a |  | 0.2 (0.1 .. 0.3) |" in text
    outside = text.partition("outside")[2]
    assert "- b: 3, the trained model 1.5 (1 .. 2)" in outside
    assert "- a" not in outside


def test_the_section_has_its_place() -> None:
    page = (SCRIPTS.parent / "docs" / "validation.md").read_text(encoding="utf-8")
    assert "<!-- begin generated: trained-model -->" in page


def test_a_section_of_any_page_is_replaced(tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- begin generated: mine -->\nold\n<!-- end generated: mine -->\nafter\n")
    replace_section(page, "mine", "new\n")
    assert page.read_text() == "before\n<!-- begin generated: mine -->\nnew\n<!-- end generated: mine -->\nafter\n"
    for path, name in ((page, "other"), (tmp_path / "none.md", "mine")):
        with pytest.raises(ValueError, match="marks"):
            replace_section(path, name, "x")
