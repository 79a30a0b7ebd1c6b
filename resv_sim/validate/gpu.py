"""GPU model against measured steps and kernels of many models. Nothing is fitted here.

Orin rows run in MAXN. Most of their authors do not state the power mode, so every such row is also shown as if it
had been taken at 50 W, as context.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

from dre_sim import gpu_kernels as kernels
from dre_sim.gpu import Gpu, GpuConfig
from dre_sim.lowering import dense_step, vision_gemms, vision_vector_elements
from dre_sim.workload import Gemm, StepWork
from resv.trace import ModelShape, StepKind, VisionShape
from resv_sim.validate.comparison import Point
from resv_sim.validate.schemas import Row
from resv_sim.validate.tables import Table, TableError
from resv_sim.validation import load

STAGES: dict[str, StepKind] = {"decode": "decode", "prefill": "question"}
SECONDS = {"ms": 1e-3, "s": 1.0}
# The encoder's table gives no patch embedding and projector: 16 x 16 patches of two RGB frames, four patches
# merged into one token of a 2,048-wide model (Qwen3-VL-2B, recalled). Both are below 2 % of the encoder.
PATCH_ELEMENTS, MERGED_PATCHES, PROJECTED = 1536, 4, 2048
OTHER_MODE = "50w"
# Unit of a kernel's value and the columns that give its size.
KERNELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "gemm": ("TFLOPS", ("m", "k", "n")),
    "read": ("GB/s", ("n_bytes",)),
    "sort": ("GKey/s", ("m",)),
    "launch": ("us", ()),
    "graph_launch": ("us", ()),
}


@cache
def platform(name: str) -> GpuConfig:
    """A bundled GPU platform."""
    return load(name, "platforms", GpuConfig)


def cost(row: Row) -> float:
    return 1000.0


def check(table: Table, row: Row) -> None:
    """Raises TableError for a shape that is none, or a kernel without its unit or a size it needs."""
    where = f"{table.file}:{row.line}"
    if table.kind == "gpu_measured":
        try:
            step_work(row)
        except ValueError as error:
            raise TableError(f"{where}: {error}") from error
        return
    unit, needed = KERNELS[row.text("kernel")]
    if row.text("unit") != unit:
        raise TableError(f"{where}: units do not match: {row.text('kernel')} is in {unit}, not {row.text('unit')!r}")
    missing = [name for name in needed if not row.count(name)]
    if missing:
        raise TableError(f"{where}: {row.text('kernel')} needs {', '.join(missing)}")


def compare(table: Table, row: Row) -> Iterator[Point]:
    """One point; a second one, as context, where the power mode of the measurement may have been another."""
    if table.kind == "gpu_kernels":
        yield _point(table, row, row.text("kernel"), _kernel_value(platform(row.text("platform")), row))
        return
    config = platform(row.text("platform"))
    config = config.model_copy(update={"stack": row.text("stack"), "attention": row.text("attention")})
    work = step_work(row)
    precision = "fp16" if row.text("weight_bits") == "16" else f"int{row.text('weight_bits')}"
    metric = f"{row.text('stage')}, {config.name} {precision}"
    yield _point(table, row, metric, _seconds(config, work))
    if OTHER_MODE in config.power_modes and row.text("role") == "validate":
        slower = _point(table, row, f"{metric}, if at 50 W", _seconds(_in_mode(config, OTHER_MODE), work))
        yield replace(slower, role="context")


def step_work(row: Row) -> StepWork:
    """The step that a row of measured steps describes."""
    if row.text("stage") == "vision":
        return _vision_work(row)
    shape = ModelShape(
        name=row.text("item"),
        n_layers=row.count("layers"),
        hidden=row.count("hidden"),
        n_query_heads=row.count("query_heads"),
        n_kv_heads=row.count("kv_heads"),
        head_dim=row.count("head_dim"),
        ffn=row.count("ffn"),
        vocab=row.count("vocab"),
        weight_bits=int(row.text("weight_bits")),
    )
    batch, rows = row.count("batch"), row.count("rows")
    work = dense_step(shape, rows, row.count("context_tokens"), batch, STAGES[row.text("stage")])
    head_bytes = shape.hidden * shape.vocab * int(row.text("head_bits")) // 8
    head_rows = batch * (rows if row.text("logits") == "all" else 1)
    return replace(work, head=(replace(work.head[0], m=head_rows, weight_bytes=head_bytes),))


def _vision_work(row: Row) -> StepWork:
    images, patches = row.count("batch"), row.count("rows")
    encoder = VisionShape(
        name=row.text("item"),
        n_layers=row.count("layers"),
        hidden=row.count("hidden"),
        ffn=row.count("ffn"),
        n_heads=row.count("query_heads"),
        n_patches=patches,
        patch_elements=PATCH_ELEMENTS,
        image_px=round(patches**0.5) * 16,
        weight_bits=int(row.text("weight_bits")),
    )
    return StepWork(
        kind="frame",
        batch=images,
        kv_len_tokens=0,
        n_new=patches // MERGED_PATCHES,
        predict="none",
        vision=vision_gemms(encoder, images, patches // MERGED_PATCHES, PROJECTED),
        vision_vector_elements=vision_vector_elements(encoder, images),
        layers=(),
        head=(),
        policy="dense",
    )


def _seconds(config: GpuConfig, work: StepWork) -> float:
    return Gpu(config).simulate(work).end_ps * 1e-12


def _in_mode(config: GpuConfig, mode: str) -> GpuConfig:
    return config.model_copy(update={"power_mode": mode})


def _point(table: Table, row: Row, metric: str, ours: float) -> Point:
    """Steps are compared as milliseconds, kernels in the unit of their row."""
    value, unit = row.number("value"), row.text("unit")
    if table.kind == "gpu_measured":
        tokens = row.number("batch") * row.number("rows")
        seconds = tokens / value if unit == "tok/s" else value * SECONDS[unit]
        ours, value, unit = ours * 1e3, seconds * 1e3, "ms"
    return Point("gpu", table.name, metric, row.text("item"), ours, value, unit, row.text("role"), row.text("source"))


def _kernel_value(config: GpuConfig, row: Row) -> float:
    kind = row.text("kernel")
    if kind == "gemm":
        m, k, n = (row.count(name) for name in ("m", "k", "n"))
        product = kernels.gemm(config, Gemm("product", m, k, n, k * n * kernels.HALF_BYTES))
        return product.flops / product.busy_ps
    if kind == "read":
        n_bytes = row.count("n_bytes")
        return n_bytes * 1e3 / config.dram_ps(n_bytes)
    if kind == "sort":
        return row.count("m") * 1e3 / kernels.sort(config, row.count("m")).busy_ps
    return (config.launch_ps if kind == "launch" else config.kernel_gap_ps) / 1e6
