"""Shapes from `config.json`: published checkpoints, transformers' own defaults, and what is refused and how."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dre_sim.lowering import vision_gemms
from resv.model_config import SUPPORTED, ModelConfigError, model_shape_from_config, read_model_shape
from resv.trace import ModelShape, VisionShape
from resv_sim.config import load_experiment
from resv_sim.errors import ConfigError
from resv_sim.validation import load

# Fields of published files that decide a shape.
LLAMA_3_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "rope_theta": 500000.0, "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}  # fmt: skip
QWEN2_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "max_window_layers": 28,
    "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4, "rope_theta": 1000000.0,
    "sliding_window": 131072, "use_sliding_window": False, "vocab_size": 152064,
}  # fmt: skip
ONEVISION_TOWER = {
    "hidden_size": 1152, "image_size": 384, "intermediate_size": 4304, "model_type": "siglip_vision_model",
    "num_attention_heads": 16, "num_hidden_layers": 26, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
LLAVA_ONEVISION_7B = {
    "model_type": "llava_onevision", "text_config": QWEN2_7B, "vision_config": ONEVISION_TOWER,
    "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
}  # fmt: skip
QWEN2_5_VL_7B = {
    "model_type": "qwen2_5_vl", "hidden_size": 3584, "intermediate_size": 18944, "max_window_layers": 28,
    "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4, "rope_theta": 1000000.0,
    "sliding_window": 32768, "use_sliding_window": False, "vocab_size": 152064,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {
        "depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
        "in_chans": 3, "out_hidden_size": 3584, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14,
        "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "temporal_patch_size": 2,
    },
}  # fmt: skip
SMOLVLM2_2B = {
    "model_type": "smolvlm", "scale_factor": 3,
    "text_config": {
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
        "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 64, "rope_theta": 130000.0,
        "vocab_size": 49280,
    },
    "vision_config": {
        "model_type": "smolvlm_vision", "hidden_size": 1152, "image_size": 384, "intermediate_size": 4304,
        "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14,
    },
}  # fmt: skip


def refused(**changes: Any) -> str:
    with pytest.raises(ModelConfigError) as caught:
        model_shape_from_config({**LLAMA_3_8B, **changes})
    return str(caught.value)


def checkpoint(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent="\t"), encoding="utf-8")
    return folder


# -- published checkpoints -------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "bundled"), [(LLAMA_3_8B, "llama3_8b"), (QWEN2_7B, "qwen2_7b")])
def test_a_bundled_decoder_is_what_its_published_file_gives(config: dict[str, Any], bundled: str) -> None:
    expected = load(bundled, "models", ModelShape)
    assert model_shape_from_config(config, bundled) == expected.model_copy(update={"vision": None})


def test_llava_onevision_pools_a_frame_to_196_tokens_after_projecting_its_patches() -> None:
    shape = model_shape_from_config(LLAVA_ONEVISION_7B)
    assert shape.tokens_per_frame == 196
    assert (shape.n_layers, shape.hidden, shape.n_kv_heads) == (28, 3584, 4)
    assert shape.vision == VisionShape(
        name="siglip_vision_model", n_layers=26, hidden=1152, ffn=4304, n_heads=16, n_patches=729, patch_elements=588,
        image_px=384, projector_layers=2, projector_tokens=729,
    )  # fmt: skip
    earlier = model_shape_from_config({**LLAVA_ONEVISION_7B, "vision_feature_layer": -2}).vision
    assert earlier is not None
    assert earlier.n_layers == 25


def test_qwen2_5_vl_merges_patches_of_two_frames() -> None:
    shape = model_shape_from_config(QWEN2_5_VL_7B, image_px=448)
    assert shape.tokens_per_frame == 256
    assert shape.vision is not None
    assert (shape.vision.n_patches, shape.vision.patch_elements) == (1024, 3 * 2 * 14 * 14)
    assert shape.vision.ffn * 2 == 3420 * 3
    assert shape.vision.projector_widths == (5120, 5120)
    nested = {"model_type": "qwen2_5_vl", "vision_config": QWEN2_5_VL_7B["vision_config"]}
    nested["text_config"] = {**QWEN2_5_VL_7B, "model_type": "qwen2_5_vl_text"}
    assert model_shape_from_config(nested) == shape
    with pytest.raises(ModelConfigError, match="450 must be a multiple of patch_size"):
        model_shape_from_config(QWEN2_5_VL_7B, image_px=450)


def test_smolvlm_shuffles_nine_patches_into_a_token() -> None:
    shape = model_shape_from_config(SMOLVLM2_2B)
    assert shape.tokens_per_frame == 81
    assert shape.vision is not None
    assert shape.vision.projector_widths == (9 * 1152,)
    twin = model_shape_from_config({**SMOLVLM2_2B, "model_type": "idefics3", "vision_config": None, "scale_factor": 7})
    assert twin.tokens_per_frame == 1
    with pytest.raises(ModelConfigError, match="scale_factor: 4 does not divide the 27 patches"):
        model_shape_from_config({**SMOLVLM2_2B, "scale_factor": 4})


@pytest.mark.parametrize("config", [LLAVA_ONEVISION_7B, QWEN2_5_VL_7B, SMOLVLM2_2B], ids=lambda c: c["model_type"])
def test_a_projector_lowers_to_its_own_widths_and_rows(config: dict[str, Any]) -> None:
    shape = model_shape_from_config(config)
    assert shape.vision is not None
    projector = [
        g for g in vision_gemms(shape.vision, 1, shape.tokens_per_frame, shape.hidden) if g.name == "projector"
    ]
    rows = shape.vision.projector_tokens or shape.tokens_per_frame
    widths = {"llava_onevision": (1152, 3584, 3584), "qwen2_5_vl": (5120, 5120, 3584), "smolvlm": (10368, 2048)}
    expected = widths[config["model_type"]]
    assert [(g.m, g.k, g.n) for g in projector] == [(rows, a, b) for a, b in pairwise(expected)]


# -- defaults --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in SUPPORTED if kind not in ("llava_onevision", "smolvlm", "idefics3")])
def test_a_decoder_without_fields_has_transformers_defaults(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    ours = model_shape_from_config({"model_type": kind, "sliding_window": None})
    theirs = transformers.AutoConfig.for_model(kind).get_text_config()
    heads = theirs.num_attention_heads
    assert ours.n_layers == theirs.num_hidden_layers
    assert (ours.hidden, ours.ffn, ours.vocab) == (theirs.hidden_size, theirs.intermediate_size, theirs.vocab_size)
    assert (ours.n_query_heads, ours.n_kv_heads) == (heads, theirs.num_key_value_heads)
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or theirs.hidden_size // heads)
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    saved = {**transformers.AutoConfig.for_model(kind).to_dict(), "sliding_window": None}
    assert model_shape_from_config(saved) == ours


@pytest.mark.parametrize("kind", ["llava_onevision", "smolvlm", "idefics3"])
@pytest.mark.parametrize("given", [None, {"num_hidden_layers": 5}], ids=["absent", "partial"])
def test_a_tower_without_fields_has_transformers_defaults(kind: str, given: dict[str, int] | None) -> None:
    transformers = pytest.importorskip("transformers")
    ours = model_shape_from_config({"model_type": kind, "vision_config": given, "scale_factor": 7}).vision
    theirs = transformers.AutoConfig.for_model(kind, **({"vision_config": dict(given)} if given else {})).vision_config
    assert ours is not None
    assert (ours.n_layers, ours.hidden) == (theirs.num_hidden_layers, theirs.hidden_size)
    assert (ours.ffn, ours.n_heads) == (theirs.intermediate_size, theirs.num_attention_heads)
    assert (ours.image_px, ours.n_patches) == (theirs.image_size, (theirs.image_size // theirs.patch_size) ** 2)
    saved = transformers.AutoConfig.for_model(kind, vision_config=theirs.to_dict()).to_dict()
    assert model_shape_from_config({**saved, "scale_factor": 7}).vision == ours


def test_rope_theta_is_found_where_files_of_different_ages_keep_it() -> None:
    plain = {key: value for key, value in LLAMA_3_8B.items() if key != "rope_theta"}
    assert model_shape_from_config(plain).rope_theta == 10_000.0
    assert model_shape_from_config({**plain, "rope_parameters": {"rope_theta": 7.0}}).rope_theta == 7.0
    assert model_shape_from_config({**plain, "rope_scaling": {"rope_theta": 8.0}}).rope_theta == 8.0


# -- refused ---------------------------------------------------------------------------------------------


def test_an_unsupported_model_is_refused_with_the_supported_ones() -> None:
    for message in (refused(model_type="gpt2"), refused(model_type=None)):
        assert "llama, llava_onevision, mistral" in message
    assert "model_type 'gpt2' is not supported" in refused(model_type="gpt2")
    assert "no field 'model_type'" in refused(model_type=None)
    with pytest.raises(ModelConfigError, match=r"text_config.model_type 'phi' is not supported"):
        model_shape_from_config({**SMOLVLM2_2B, "text_config": {"model_type": "phi"}})
    with pytest.raises(ModelConfigError, match=r"vision_config.model_type 'clip_vision_model' is not supported here"):
        model_shape_from_config({"model_type": "llava_onevision", "vision_config": {"model_type": "clip_vision_model"}})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": "4096"}, "hidden_size: '4096' must be a whole number from 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: 0 must be a whole number"),
        ({"vocab_size": None}, "vocab_size: None must be a whole number"),
        ({"num_key_value_heads": 5}, "n_query_heads (32) must be a multiple of n_kv_heads (5)"),
        ({"model_type": "mistral"}, "sliding_window: some layers attend to a window only"),
        ({"use_sliding_window": True}, "sliding_window: some layers"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types: some layers"),
        ({"quantization_config": {"quant_method": "x"}}, "quantization_config: no field 'bits'"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], words: str) -> None:
    assert words in refused(**changes)


def test_layers_above_the_windows_and_removed_windows_are_full() -> None:
    assert model_shape_from_config({**QWEN2_7B, "use_sliding_window": True}).n_layers == 28
    assert model_shape_from_config({**LLAMA_3_8B, "model_type": "mistral", "sliding_window": None}).n_layers == 32
    for config in (LLAMA_3_8B, LLAVA_ONEVISION_7B, QWEN2_5_VL_7B, SMOLVLM2_2B):
        shape = model_shape_from_config({**config, "quantization_config": {"bits": 4}})
        assert shape.weight_bits == 4
        assert shape.vision is None or shape.vision.weight_bits == 16


# -- files and experiments -------------------------------------------------------------------------------


def test_a_shape_is_named_by_its_file_or_folder(tmp_path: Path) -> None:
    plain = checkpoint(tmp_path / "my-model", LLAMA_3_8B)
    assert read_model_shape(plain) == read_model_shape(plain / "config.json")
    assert read_model_shape(plain).name == "my-model"
    cached = checkpoint(tmp_path / "models--owner--Nice-8B" / "snapshots" / "0123abcd", LLAMA_3_8B)
    assert read_model_shape(cached).name == "Nice-8B"
    signed = checkpoint(tmp_path / "other", {**LLAMA_3_8B, "_name_or_path": "owner/Llama-3-8B"})
    assert read_model_shape(signed).name == "Llama-3-8B"


@pytest.mark.parametrize(
    ("text", "words"), [("{", "cannot be read as JSON"), ("[]", "must be an object of fields"), ("{}", "no field 'mod")]
)
def test_a_file_that_is_no_model_is_an_error_that_names_it(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelConfigError, match=words) as caught:
        read_model_shape(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("tail", ["", "config.json"])
def test_an_experiment_takes_a_model_by_its_checkpoint(tmp_path: Path, tail: str) -> None:
    folder = checkpoint(tmp_path / "llava", LLAVA_ONEVISION_7B)
    settings = [f"model={folder / tail}", "model.tokens_per_frame=49"]
    model = load_experiment("orin_vs_dre", settings)[0].model
    assert model == read_model_shape(folder).model_copy(update={"tokens_per_frame": 49})


def test_an_experiment_with_a_bad_checkpoint_is_one_clear_error(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "gpt", {"model_type": "gpt2"})
    with pytest.raises(ConfigError, match=r"config.json: model_type 'gpt2' is not supported; supported are gemma"):
        load_experiment("orin_vs_dre", [f"model={folder}"])
    with pytest.raises(
        ConfigError, match=r"no configuration '.*absent': it is not an existing .yaml file, config.json"
    ):
        load_experiment("orin_vs_dre", [f"model={tmp_path / 'absent'}"])
