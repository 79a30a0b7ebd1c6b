"""The GPU model against published measurements that nothing was fitted to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dre_sim.lowering import dense_step, vision_gemms, vision_vector_elements
from resv.trace import ModelShape, VisionShape
from tests.gpu_platforms import A100, ORIN, milliseconds
from tests.shapes import LLAMA3_8B, TINY


def shape(layers: int, hidden: int, heads: int, kv_heads: int, ffn: int, vocab: int, bits: int = 16) -> ModelShape:
    return ModelShape(
        name="measured",
        n_layers=layers,
        hidden=hidden,
        n_query_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=128,
        ffn=ffn,
        vocab=vocab,
        weight_bits=bits,
    )


EAGER = {"stack": "eager", "attention": "eager"}
MODULES = {"stack": "modules"}
# shape, changes of agx_orin, milliseconds per token (MIT TinyChat README, Embedl, Edge-LLM issue 60, ApxInf)
DECODE = [
    (shape(32, 4096, 32, 8, 14336, 128256), EAGER, 96.00),
    (shape(32, 4096, 32, 32, 11008, 32000), EAGER, 83.95),
    (shape(40, 5120, 40, 40, 13824, 32000), EAGER, 162.33),
    (shape(28, 3072, 24, 8, 8192, 128256), {}, 1000 / 25.64),
    (shape(36, 2560, 32, 8, 9728, 151936), {}, 1000 / 20.2),
    (shape(36, 2048, 16, 2, 11008, 151936), {}, 1000 / 27.2),
    (shape(36, 2560, 32, 8, 9728, 151936), {}, 55.2),
    (shape(32, 4096, 32, 8, 14336, 128256, 4), MODULES, 32.53),
    (shape(32, 4096, 32, 32, 11008, 32000, 4), MODULES, 25.94),
    (shape(40, 5120, 40, 40, 13824, 32000, 4), MODULES, 47.67),
    (shape(36, 4096, 32, 8, 12288, 151936, 4), {}, 1000 / 32.5),
    (shape(36, 2560, 32, 8, 9728, 151936, 4), {}, 1000 / 53.1),
    (shape(28, 2048, 16, 8, 6144, 151936, 4), {}, 1000 / 98.6),
]


def test_decode_on_orin_is_within_ten_per_cent_of_what_was_measured() -> None:
    """Mean over 13 rows of three groups; the vocabulary projection stays fp16 in the INT4 rows."""
    errors = []
    for model, changes, measured in DECODE:
        work = dense_step(model, 1, 64, kind="decode")
        head = replace(work.head[0], weight_bytes=2 * model.hidden * model.vocab)
        got = milliseconds(ORIN.model_copy(update=changes), replace(work, head=(head,)))
        errors.append(abs(got / measured - 1))
    assert float(np.mean(errors)) < 0.10
    assert max(errors) < 0.13


@pytest.mark.parametrize(("rows", "measured"), [(48, 107.1), (64, 108.8), (96, 114.1), (256, 206.0), (512, 399.0)])
def test_prefill_on_orin_in_fp16(rows: int, measured: float) -> None:
    """Llama-3-8B in Hugging Face, logits of every token (MIT TinyChat README)."""
    work = dense_step(LLAMA3_8B, rows, 0, kind="question")
    work = replace(work, head=(replace(work.head[0], m=rows),))
    assert milliseconds(ORIN.model_copy(update=EAGER), work) == pytest.approx(measured, rel=0.23)


# shape, rows, cached tokens, changes of agx_orin, milliseconds (MIT llm-awq README, TensorRT Edge-LLM 0.9.0)
INT4_PREFILL = [
    (shape(32, 4096, 32, 8, 14336, 128256, 4), 256, 0, MODULES, 166.0),
    (shape(32, 4096, 32, 8, 14336, 128256, 4), 1024, 0, MODULES, 623.0),
    (shape(32, 4096, 32, 8, 14336, 128256, 4), 32, 64, {**MODULES, "attention": "eager"}, 66.5),
    (shape(36, 4096, 32, 8, 12288, 151936, 4), 61, 0, {}, 65.7),
    (shape(36, 2560, 32, 8, 9728, 151936, 4), 57, 0, {}, 42.6),
    (shape(36, 4096, 32, 8, 12288, 151936, 4), 292, 0, {}, 225.1),
]


def test_int4_prefill_on_orin_is_within_twenty_per_cent_of_what_was_measured() -> None:
    """Few rows unpack the weights several times; TinyChat's modules wait for their host."""
    errors = []
    for model, rows, cached, changes, measured in INT4_PREFILL:
        work = dense_step(model, rows, cached, kind="question")
        head = replace(work.head[0], weight_bytes=2 * model.hidden * model.vocab)
        got = milliseconds(ORIN.model_copy(update=changes), replace(work, head=(head,)))
        errors.append(abs(got / measured - 1))
    assert float(np.mean(errors)) < 0.20
    assert max(errors) < 0.25


@pytest.mark.parametrize(("layers", "hidden", "ffn", "measured"), [(28, 1536, 8960, 22.25), (32, 2560, 6912, 23.53)])
def test_small_int4_models_in_tinychat_are_bound_by_their_host(
    layers: int, hidden: int, ffn: int, measured: float
) -> None:
    """NVILA-2B and VILA1.5-3B (MIT TinyChat README): far above what their weights take, at the host time of Fig. 16."""
    heads = hidden // 128
    work = dense_step(shape(layers, hidden, heads, heads, ffn, 32000, 4), 1, 300, kind="decode")
    assert milliseconds(ORIN, work) < 0.5 * measured
    assert milliseconds(ORIN.model_copy(update=MODULES), work) == pytest.approx(measured, rel=0.25)


# shape, stack, cached tokens, milliseconds per token on an A100 (MIT TinyChat README; GPU-Benchmarks-on-LLM-Inference)
A100_DECODE = [
    (shape(32, 4096, 32, 8, 14336, 128256, 4), "modules", 4, 6.29),
    (shape(32, 4096, 32, 32, 11008, 32000, 4), "modules", 4, 5.71),
    (shape(40, 5120, 40, 40, 13824, 32000, 4), "modules", 4, 7.90),
    (shape(32, 4096, 32, 8, 14336, 128256), "ggml", 256, 1000 / 54.84),
    (shape(32, 4096, 32, 8, 14336, 128256), "ggml", 4096, 1000 / 51.24),
]


@pytest.mark.parametrize(("model", "stack", "cached", "measured"), A100_DECODE)
def test_decode_on_a100_in_tinychat_and_llama_cpp(model: ModelShape, stack: str, cached: int, measured: float) -> None:
    work = dense_step(model, 1, cached, kind="decode")
    head = replace(work.head[0], weight_bytes=2 * model.hidden * model.vocab)
    got = milliseconds(A100.model_copy(update={"stack": stack}), replace(work, head=(head,)))
    assert got == pytest.approx(measured, rel=0.08)


def test_vision_encoder_on_orin() -> None:
    """A SigLIP2-Large class encoder on 1,060 patches: 39.0 ms (TensorRT Edge-LLM 0.9.0)."""
    vit = VisionShape(
        name="vit",
        n_layers=24,
        hidden=1024,
        ffn=4096,
        n_heads=16,
        n_patches=1060,
        patch_elements=1536,
        image_px=512,
    )
    work = replace(
        dense_step(TINY, 1, 1),
        layers=(),
        head=(),
        vision=vision_gemms(vit, 1, 265, 2048),
        vision_vector_elements=vision_vector_elements(vit, 1),
    )
    assert milliseconds(ORIN, work) == pytest.approx(39.0, rel=0.20)
