"""Traces on disk: what is written comes back, and what is not a trace is refused by name."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from resv.policies import ReSV, run_layer
from resv.trace import LayerTrace, ModelShape, Step
from resv.trace_file import RecordedTrace, TraceError, write_trace
from tests.shapes import TINY


class MadeTrace:
    """Six frames of five tokens; probes: the sixth frame, and a question that leaves no trace."""

    shape: ModelShape = TINY
    steps = tuple(Step("frame", 5 * i, 5) for i in range(6))
    probes = (Step("frame", 25, 5), Step("question", 30, 3, in_stream=False))
    n_tokens = 30

    def layer(self, layer: int, *, values: bool = True) -> LayerTrace:
        rng = np.random.default_rng(layer)
        heads, queries, dim = TINY.n_kv_heads, TINY.n_query_heads, TINY.head_dim

        def draw(n_heads: int, n: int) -> Any:
            return rng.standard_normal((n_heads, n, dim), dtype=np.float32)

        keys, vals = draw(heads, 30), draw(heads, 30)
        per_probe = [[draw(h, p.n_tokens) for p in self.probes] for h in (queries, queries, heads, heads)]
        true, predicted, step_keys, step_values = (tuple(x) for x in per_probe)
        return LayerTrace(
            layer,
            keys,
            vals if values else None,
            true,
            predicted if layer else None,
            step_keys,
            step_values if values else None,
        )

    def fingerprint(self) -> str:
        return "made"

    def describe(self) -> dict[str, object]:
        return {"made": "for a test"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "trace.safetensors"
    write_trace(path, MadeTrace())
    return path


def test_a_trace_stands_for_a_model_served_in_other_widths(file: Path) -> None:
    narrow = TINY.model_copy(update={"name": "narrow", "kv_bits": 8, "weight_bits": 4, "ffn": 3 * TINY.ffn})
    recorded, other = RecordedTrace(file), RecordedTrace(file, narrow)
    assert other.shape == narrow
    assert RecordedTrace(file, TINY).fingerprint() == recorded.fingerprint() != other.fingerprint()


@pytest.mark.parametrize("field", ["n_layers", "n_query_heads", "head_dim", "rope_theta"])
def test_a_model_whose_tensors_are_others_is_refused_by_field(file: Path, field: str) -> None:
    other = TINY.model_copy(update={field: 2 * getattr(TINY, field)})
    with pytest.raises(
        TraceError, match=rf"with {field} {getattr(TINY, field)}, but .* {field} {getattr(other, field)}"
    ):
        RecordedTrace(file, other)


def test_a_trace_comes_back_bit_for_bit(file: Path) -> None:
    got, want = RecordedTrace(file), MadeTrace()
    assert (got.shape, got.steps, got.probes, got.n_tokens) == (want.shape, want.steps, want.probes, 30)
    for layer in range(TINY.n_layers):
        a, b = got.layer(layer), want.layer(layer)
        np.testing.assert_array_equal(a.keys, b.keys)
        assert a.values is not None
        np.testing.assert_array_equal(a.values, b.values)
        assert (a.predicted_queries is None) == (layer == 0)
        for name in ("queries", "predicted_queries", "step_keys", "step_values"):
            for x, y in zip(getattr(a, name) or (), getattr(b, name) or (), strict=True):
                np.testing.assert_array_equal(x, y)
    assert got.describe()["made"] == "for a test"
    assert got.describe()["kind"] == "recorded"


def test_the_file_is_a_plain_safetensors_file(file: Path) -> None:
    tensors = load_file(file)
    assert tensors["layers.2.keys"].shape == (2, 30, 16)
    assert len(tensors) == 3 * (2 + 2 * 3) + 2 * 2


def test_a_policy_selects_the_same_from_the_file_as_from_the_source(file: Path) -> None:
    policy = ReSV(kind="resv")
    for trace in (RecordedTrace(file), MadeTrace()):
        layers = [run_layer(policy, trace, trace.layer(i)) for i in range(3)]
        masks = [sel.attended for layer in layers for sel in layer]
        if isinstance(trace, RecordedTrace):
            recorded = masks
    for a, b in zip(recorded, masks, strict=True):
        np.testing.assert_array_equal(a, b)


def test_values_are_read_and_written_only_when_asked_for(file: Path, tmp_path: Path) -> None:
    assert RecordedTrace(file).layer(1).values is not None
    keys_alone = RecordedTrace(file).layer(1, values=False)
    assert keys_alone.values is None
    assert keys_alone.step_values is None
    path = tmp_path / "keys.safetensors"
    write_trace(path, MadeTrace(), values=False)
    layer = RecordedTrace(path).layer(1)
    assert layer.values is None
    assert layer.step_values is None
    assert layer.predicted_queries is not None


def test_equal_files_have_equal_fingerprints_and_changed_ones_do_not(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    write_trace(other, MadeTrace())
    assert RecordedTrace(file).fingerprint() == RecordedTrace(other).fingerprint()
    data = bytearray(other.read_bytes())
    data[-1] ^= 1
    other.write_bytes(data)
    assert RecordedTrace(file).fingerprint() != RecordedTrace(other).fingerprint()


def test_half_precision_is_widened(file: Path) -> None:
    tensors, metadata = load_file(file), _metadata(file)
    half = {name: array.astype(np.float16) for name, array in tensors.items()}
    save_file(half, file, metadata)
    np.testing.assert_array_equal(RecordedTrace(file).layer(1).keys, half["layers.1.keys"].astype(np.float32))


def test_bf16_is_widened(file: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    tensors, metadata = load_file(file), _metadata(file)
    brain = {name: torch.from_numpy(array.copy()).bfloat16() for name, array in tensors.items()}
    save_torch(brain, str(file), metadata)
    np.testing.assert_array_equal(RecordedTrace(file).layer(0).keys, brain["layers.0.keys"].float().numpy())


def _metadata(file: Path) -> dict[str, str]:
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    metadata: dict[str, str] = json.loads(raw[8 : 8 + length])["__metadata__"]
    return metadata


Change = Callable[[dict[str, Any], dict[str, str]], None]


def _without(name: str) -> Change:
    return lambda tensors, _: tensors.pop(name)


def _with(name: str, array: Any) -> Change:
    return lambda tensors, _: tensors.update({name: array})


def _saying(key: str, text: str) -> Change:
    return lambda _, metadata: metadata.update({key: text})


FRAME = {"kind": "frame", "first_token": 0, "n_tokens": 5, "in_stream": True}


def _of_step(**given: object) -> Change:
    """The first step's fields, changed."""
    return _saying("steps", json.dumps([{**FRAME, **given}, *(asdict(step) for step in MadeTrace.steps[1:])]))


DAMAGE: list[tuple[Change, str]] = [
    (_without("layers.1.keys"), r"layers\.1\.keys is missing"),
    (_without("layers.2.step_keys.1"), r"layers\.2\.step_keys\.1 is missing"),
    (_with("layers.0.keys", np.zeros((2, 29, 16), np.float32)), r"layers\.0\.keys has shape \[2, 29, 16\]"),
    (_with("layers.0.keys", np.zeros((2, 30, 16), np.int32)), r"layers\.0\.keys is I32, allowed are F32, F16, BF16"),
    (_with("extra", np.zeros(3, np.float32)), r"extra is not part of format version 1"),
    (_saying("format", "something"), r"not a trace"),
    (_saying("version", "9"), r"format version 9; this program reads version 1"),
    (_saying("model", "{}"), r"metadata cannot be read"),
    (_saying("steps", json.dumps([FRAME, FRAME])), r"step 1 covers tokens 0 to 5, it should start at 5"),
    (_saying("steps", "[]"), r"at least one step"),
    (_saying("probes", json.dumps([{**FRAME, "first_token": 99}])), r"probe 0"),
    (_saying("steps", '{"kind": "frame"}'), r"steps is \{'kind': 'frame'\}; allowed: a list"),
    (_saying("steps", "[5]"), r"step 0: 5; allowed: an object of kind, first_token, n_tokens, in_stream"),
    (_of_step(kind="frames"), r"step 0: kind is 'frames'; allowed: frame, question, decode"),
    (_of_step(kind=["frame"]), r"step 0: kind is \['frame'\]; allowed: frame, question, decode"),
    (_of_step(n_tokens=5.0), r"step 0: n_tokens is 5\.0; allowed: an integer"),
    (_of_step(first_token=False), r"step 0: first_token is False; allowed: an integer"),
    (_of_step(in_stream=1), r"step 0: in_stream is 1; allowed: true or false"),
    (_of_step(in_stream=False), r"step 0: in_stream is false; allowed: true"),
    (_of_step(length=5), r"step 0: .*'length': 5.*; allowed: an object of kind"),
    (_saying("steps", '[{"kind": "frame", "first_token": 0}]'), r"step 0: n_tokens is missing"),
    (_saying("probes", json.dumps([{**FRAME, "kind": "qestion"}])), r"probe 0: kind is 'qestion'; allowed: frame, q"),
    (_saying("probes", json.dumps([{**FRAME, "kind": "question"}])), r"probe 0: kind is 'question'; allowed: 'frame'"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGE)
def test_a_file_that_breaks_the_schema_is_refused_by_name(file: Path, change: Change, message: str) -> None:
    tensors, metadata = load_file(file), _metadata(file)
    change(tensors, metadata)
    save_file(tensors, file, metadata)
    with pytest.raises(TraceError, match=message) as caught:
        RecordedTrace(file)
    assert str(file) in str(caught.value)


def test_values_that_are_not_finite_are_refused_with_their_tensor(file: Path) -> None:
    tensors, metadata = load_file(file), _metadata(file)
    tensors["layers.2.keys"] = tensors["layers.2.keys"].copy()
    tensors["layers.2.keys"][0, 3, 1] = np.nan
    save_file(tensors, file, metadata)
    trace = RecordedTrace(file)
    trace.layer(1)
    with pytest.raises(TraceError, match=r"layers\.2\.keys holds values that are not finite"):
        trace.layer(2)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file_is_refused(file: Path, keep: int) -> None:
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(TraceError, match="not a complete safetensors file"):
        RecordedTrace(file)


def test_a_file_of_another_kind_and_one_that_is_not_there_are_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "picture.safetensors"
    foreign.write_bytes(b"\x89PNG\r\n\x1a\n" * 50)
    with pytest.raises(TraceError, match="not a complete safetensors file"):
        RecordedTrace(foreign)
    weights = tmp_path / "weights.safetensors"
    save_file({"w": np.zeros(3, np.float32)}, weights)
    with pytest.raises(TraceError, match="not a trace"):
        RecordedTrace(weights)
    with pytest.raises(TraceError, match="no such trace file"):
        RecordedTrace(tmp_path / "missing.safetensors")


def test_a_layer_that_is_not_there_is_refused(file: Path) -> None:
    with pytest.raises(ValueError, match="layer 3 is not among the 3 layers"):
        RecordedTrace(file).layer(3)


def test_a_failing_write_leaves_nothing_behind(tmp_path: Path) -> None:
    class Broken(MadeTrace):
        def layer(self, layer: int, *, values: bool = True) -> LayerTrace:
            if layer == 2:
                raise OSError("disk full")
            return super().layer(layer, values=values)

    path = tmp_path / "trace.safetensors"
    path.write_text("an earlier one")
    with pytest.raises(OSError, match="disk full"):
        write_trace(path, Broken())
    assert [p.name for p in tmp_path.iterdir()] == ["trace.safetensors"]
    assert path.read_text() == "an earlier one"
