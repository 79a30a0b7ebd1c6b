"""`scripts/train_mini.py` from a first step to a model card, in the small."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from resv.mini.weights import load_mini

SCRIPT = Path(__file__).parent.parent / "scripts" / "train_mini.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_mini", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def trained(script, tmp_path_factory):
    out = tmp_path_factory.mktemp("mini")
    script.main(
        ["train", "--tiny", "--steps", "6", "--every", "3", "--threads", "1", "--device", "cpu", "--out", str(out)]
    )
    return out


def test_training_leaves_a_checkpoint_and_weights(trained):
    assert sorted(path.name for path in trained.iterdir()) == ["checkpoint.pt", "mini.safetensors"]
    assert load_mini(trained / "mini.safetensors").card() == {}


def test_a_run_is_neither_overwritten_nor_resumed_as_another(script, trained):
    with pytest.raises(SystemExit, match=r"checkpoint\.pt: exists; go on with it by --resume"):
        script.main(["train", "--tiny", "--out", str(trained)])
    with pytest.raises(SystemExit, match=r"begun with another recipe than \{'steps': 9\}"):
        script.main(["train", "--resume", "--steps", "9", "--device", "cpu", "--out", str(trained)])
    with pytest.raises(SystemExit, match="not a checkpoint"):
        script.main(["export", "--out", str(trained / "elsewhere")])


def test_the_card_is_written_beside_the_weights_it_measures(script, trained, tmp_path):
    weights = tmp_path / "here" / "mini.safetensors"
    script.main(["export", "--out", str(trained), "--weights", str(weights)])
    script.main(["card", "--out", str(trained), "--weights", str(weights), "--streams", "1", "--longest", "16"])
    card = load_mini(weights).card()
    assert card["recipe"]["steps"] == 6
    assert list(card["accuracy"]["medium"]) == ["16", "128"]
    assert "# Model card" in (weights.parent / "MODEL_CARD.md").read_text(encoding="utf-8")
