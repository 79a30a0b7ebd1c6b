"""What one GPU kernel costs: `GpuConfig`, matrix products by shape, attention, element-wise, sort.

Every cost is a `Kernel`: FLOPs, device-memory bytes, and the time the kernel holds the GPU. A kernel takes
at least its bytes at the usable bandwidth and its FLOPs at the achieved rate, whichever is longer, and
the gap the device leaves between two kernels. Knows no step, no order and no overlap; see `gpu.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dre_sim.offload import OffloadTier
from dre_sim.workload import AttentionWork, Gemm

Precision = Literal["fp16", "int8"]
# eager: PyTorch operators (Hugging Face, FlexGen);  modules: PyTorch modules around hand-written kernels (TinyChat)
# fused: a compiled stack;  graph: the same, captured and replayed by the device;  ggml: llama.cpp of May 2024
Stack = Literal["eager", "modules", "fused", "graph", "ggml"]
# overlapped: layer j + 1 is fetched while j computes;  synchronous: nothing else happens during a fetch
# flexgen: as overlapped, but the host waits for the kernels after each half of a layer and for the fetch after each
# layer, as FlexGen's loop does (`generation_loop_overlap_single_batch`, --sep-layer, commit 004ffef). That code asks
# for the cache half a layer later; V-Rex (section VI-B) has its baselines prefetch from the attention before. The first
# layer's cache comes after the vision encoder, which is no part of the loop.
# Where a prediction decides what is fetched, the fetch starts behind it in all three.
FetchMode = Literal["overlapped", "synchronous", "flexgen"]

# memcpy: a call of the host per extent;  gather: a kernel reads host memory over the link
# host_gather: the host collects what a prediction selects in one buffer, which is then copied, as InfiniGen's released
# code does (commit 3754f52); what is known beforehand lies together already
CopyPath = Literal["memcpy", "gather", "host_gather"]

HALF_BYTES = 2
SLOWEST = 1e6  # of any rate, a second: below it times leave the range of integer picoseconds
# Name that the score product of a vision encoder carries in a `StepWork`.
VISION_SCORES = "vision_scores"
# Rows up to which AWQ's INT4 kernel takes blocks of so many rows by 128 columns (llm-awq d6e797a,
# quantization_new/gemm/gemm_cuda.cu); every block unpacks the weights of its columns anew.
QUANT_TILES = ((64, (16, 128)), (128, (32, 128)))
QUANT_TILE = (64, 128)
# Thread-block tiles that libraries instantiate for Ampere tensor cores (CUTLASS profiler defaults).
TILES = ((64, 64), (64, 128), (128, 64), (128, 128), (128, 256))
SPLIT_K = (1, 2, 4, 8)
# Multiply-accumulate steps lost to filling the pipeline of a tile: 4 stages of 32 (CUTLASS, Ampere default).
PIPELINE_FILL_K = 128
# Instructions per weight to unpack and scale an integer weight, two weights at a time (counted, AWQ kernels).
DEQUANT_OPS = {4: 2, 8: 1}
# Scale and zero point, fp16 each, per group of 128 weights (AWQ and GPTQ checkpoints).
QUANT_GROUP, QUANT_GROUP_BYTES = 128, 4
# fp16 element-wise work: read and write once where fused; eager PyTorch runs a Llama RMSNorm as eight kernels
# in fp32 (36 B an element), RoPE as ten (20 B), SwiGLU as two (5 B), residuals (6 B): 12 B on average.
# ggml holds activations in fp32, counted alike for Llama: norms 32, residuals 24 a hidden element, RoPE 8, SwiGLU 20.
ELEMENTWISE_BYTES = {"eager": 12, "modules": 4, "fused": 4, "graph": 4, "ggml": 11}
# llama.cpp's fp16 products with one row (ggml-cuda/dmmv.cu, build 2836): a warp a row keeps few bytes in flight, so
# that an SM takes so many a clock, and each kernel so long beside them. Both from two models on four H100 PCIe cards
# (114 SMs, 1.755 GHz): Llama-3-8B 64.0 and 70B 9.67 tokens/s, hops between cards from one card's 68.0
# (GPU-Benchmarks-on-LLM-Inference aa72e0e, tg512, build 2843); with 23 kernels a layer 1,544 GB/s and 156 us a layer.
GGML_ROW_BYTES_PER_CLOCK = 7.72
GGML_KERNEL_PS = 6_760_000
# Products of more rows go to cuBLAS, which takes and gives fp16: both sides are converted, read and written once.
GGML_CONVERSION_BYTES = 6
# Eager attention passes over the score matrix: product, scale, mask, softmax in fp32, cast, product.
EAGER_SCORE_BYTES = 24


class PowerMode(BaseModel):
    """Clock scales against the highest mode, and the power cap of the module."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpu_scale: float = Field(ge=0.001, le=1.0)
    memory_scale: float = Field(ge=0.001, le=1.0)
    power_w: float = Field(gt=0.0)


class GpuConfig(BaseModel):
    """A GPU platform with its software stack and offload tier. Rates are those of the highest power mode."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["gpu"] = "gpu"
    name: str
    description: str = ""
    energy: str = Field(description="name of the price table in configs/energy")

    sms: int = Field(gt=0)
    clock_hz: float = Field(ge=SLOWEST, description="of the SMs, boosted")
    peak_flops: dict[Precision, Annotated[float, Field(ge=SLOWEST)]] = Field(
        description="dense tensor-core peak by activation precision"
    )
    gemm_share: float = Field(ge=0.001, le=1.0, description="measured large product / peak")
    attention_share: float = Field(ge=0.001, le=1.0, description="fused attention / peak")
    fp32_flops: float = Field(ge=SLOWEST, description="CUDA cores: unpacking weights, matrix-vector products")
    dram_bytes_per_s: float = Field(ge=SLOWEST, description="usable, as a read kernel measures it")
    dram_bytes_per_activate: int = Field(gt=0, description="of the device memory, streaming; priced, not timed")
    memory_capacity_bytes: int = Field(gt=0)
    l2_bytes: int = Field(gt=0)
    l2_bytes_per_s: float = Field(ge=SLOWEST)

    stack: Stack = "fused"
    attention: Literal["eager", "fused"] = "fused"
    activation: Precision = "fp16"
    kernel_gap_ps: int = Field(ge=0, description="device idle between dependent kernels already queued")
    launch_ps: int = Field(ge=0, description="host time per launch from a compiled stack")
    dispatch_ps: int = Field(ge=0, description="host time per eager operator, its synchronisations included")
    module_ps: int | None = Field(
        default=None,
        ge=0,
        description="host time per kernel that PyTorch modules launch, calls that launch nothing included; dispatch_ps",
    )

    sort_keys_per_s: float = Field(ge=SLOWEST, description="radix sort of 32-bit keys")
    gather_overhead_bytes: int = Field(ge=0, description="device-memory bytes wasted per gathered chunk")
    copy_path: CopyPath = "memcpy"
    copy_call_ps: int = Field(ge=0, description="host time per asynchronous copy or read call")
    gather_chunk_ps: int = Field(ge=0, description="time per chunk of a kernel that gathers over the link")
    copy_bytes_per_s: float | None = Field(
        default=None,
        ge=SLOWEST,
        description="most that arrives from drive or host memory; what its link and tier allow",
    )
    pageable: bool = Field(
        default=False, description="host memory is not pinned: the host copies K, then V, to a pinned relay first"
    )
    copy_threads: int = Field(default=0, ge=0, description="of the host, busy while a fetch runs; priced, not timed")
    staging_copies: int = Field(default=0, ge=0, le=2, description="copies in device memory after a fetch")
    fetch: FetchMode = Field(default="overlapped", description="what a fetch may overlap with")
    offload: OffloadTier

    power_mode: str = "maxn"
    power_modes: dict[str, PowerMode]

    @model_validator(mode="after")
    def _check(self) -> GpuConfig:
        if self.power_mode not in self.power_modes:
            modes = ", ".join(self.power_modes)
            raise ValueError(f"power_mode {self.power_mode!r} is not among the modes of {self.name}: {modes}")
        if self.activation not in self.peak_flops:
            raise ValueError(f"peak_flops of {self.name} gives no rate for activation {self.activation!r}")
        if self.copy_path == "host_gather" and self.offload.kind != "host_dram":
            raise ValueError(
                f"copy_path host_gather of {self.name} collects from host memory, not from {self.offload.kind}"
            )
        if self.pageable and (self.offload.kind != "host_dram" or self.copy_path == "gather"):
            raise ValueError(
                f"pageable of {self.name} is a property of host memory that the host copies from; it goes with "
                "offload.kind host_dram and copy_path memcpy or host_gather, not with "
                f"{self.offload.kind} and {self.copy_path}"
            )
        return self

    @property
    def mode(self) -> PowerMode:
        return self.power_modes[self.power_mode]

    @property
    def host_ps(self) -> int:
        """Host time per kernel of the model's own stack; a captured graph is replayed by the device."""
        modules_ps = self.dispatch_ps if self.module_ps is None else self.module_ps
        known = {"fused": self.launch_ps, "ggml": self.launch_ps, "graph": 0, "modules": modules_ps}
        return known.get(self.stack, self.dispatch_ps)

    @property
    def gap_ps(self) -> int:
        """Time of a kernel beside its work."""
        return GGML_KERNEL_PS if self.stack == "ggml" else self.kernel_gap_ps

    def flops_per_s(self, share: float, precision: Precision | None = None) -> float:
        """`share` of the tensor cores' peak at the mode's clock, in the activations' precision where none is given."""
        return self.peak_flops[precision or self.activation] * share * self.mode.gpu_scale

    @property
    def cuda_flops_per_s(self) -> float:
        return self.fp32_flops * self.mode.gpu_scale

    @property
    def l2_per_s(self) -> float:
        return self.l2_bytes_per_s * self.mode.gpu_scale

    def dram_ps(self, n_bytes: int) -> int:
        """Time of a transfer with the device memory to itself."""
        return _ps(n_bytes, self.dram_bytes_per_s * self.mode.memory_scale)

    def copied_ps(self, n_bytes: int) -> int:
        """Least time in which drive or host memory and their software deliver so many bytes."""
        return _ps(n_bytes, self.copy_bytes_per_s) if self.copy_bytes_per_s else 0

    def spilled(self, n_bytes: int) -> int:
        """Bytes of an intermediate that reach device memory: none while producer and consumer fit in L2."""
        return n_bytes if 2 * n_bytes > self.l2_bytes else 0


@dataclass(frozen=True)
class Kernel:
    """One launch, or several alike. `busy_ps` is the time on the GPU with the memory to itself."""

    flops: int
    read_bytes: int
    write_bytes: int
    busy_ps: int
    launches: int = 1

    @property
    def dram_bytes(self) -> int:
        return self.read_bytes + self.write_bytes


def gemm(config: GpuConfig, g: Gemm, launches: int = 1) -> Kernel:
    """A product with streamed weights. Weight width is `weight_bytes` over k·n; below 16 bits it is unpacked.

    Compute is the fastest of the library's tiles (waves over the SMs, pipeline fill, L2 traffic, split K)
    and of a matrix-vector kernel on the CUDA cores; activations count only where they exceed L2. Four-bit weights
    have one tile for a number of rows, the one of AWQ's kernel. llama.cpp has its own kernel for one row of fp16
    weights, and converts what cuBLAS takes and gives for more.
    """
    bits = 8 * g.weight_bytes / (g.k * g.n)
    quantised = 0.0 < bits < 16.0
    weight_bytes = g.weight_bytes + (g.k * g.n // QUANT_GROUP * QUANT_GROUP_BYTES if quantised else 0)
    unpack = DEQUANT_OPS[4 if bits <= 4 else 8] if quantised and config.activation == "fp16" else 0
    tiles = (_quant_tile(g.m),) if unpack and bits <= 4 else TILES
    compute_ps = min(_vector_product_ps(config, g, unpack), *(_tiled_ps(config, g, tile, unpack) for tile in tiles))
    read = weight_bytes + g.activation_bytes + config.spilled(g.m * g.k * HALF_BYTES)
    ggml = config.stack == "ggml" and not quantised
    if ggml and g.m == 1:
        row_bytes_per_s = GGML_ROW_BYTES_PER_CLOCK * config.sms * config.clock_hz * config.mode.gpu_scale
        compute_ps = max(compute_ps, _ps(weight_bytes, row_bytes_per_s))
    kernel = _kernel(config, g.flops, read, config.spilled(g.m * g.n * HALF_BYTES), compute_ps, launches)
    if ggml and g.m > 1:
        converted = g.m * (launches * g.k + g.n)
        return together([kernel, elementwise(config, converted, 2 * launches, GGML_CONVERSION_BYTES)])
    return kernel


def attention(config: GpuConfig, a: AttentionWork, softmax_elements: int) -> Kernel:
    """Attention of one layer: one fused kernel and its reduction, or the chain of eager operators.

    Fused: query rows of a KV head are packed to tiles of 16, or 64 beyond 16, and K and V are read once.
    Eager: the cache is concatenated, K and V are repeated per query head, and the score matrix is
    written and read by every operator, what the mask discards included.
    """
    if config.attention == "fused":
        packed = a.rows * a.group
        padded = -(-packed // 16) * 16 if packed <= 16 else -(-packed // 64) * 64
        compute_ps = _ps(2 * a.macs * padded / packed, config.flops_per_s(config.attention_share, "fp16"))
        return _kernel(config, 2 * a.macs, a.kv_read_bytes, 0, compute_ps, 2)
    padded = -(-a.rows // 64) * 64 if a.rows > 1 else 1
    rate = config.flops_per_s(config.gemm_share, "fp16") if a.rows > 1 else config.cuda_flops_per_s
    macs = a.macs + 2 * a.head_dim * a.masked_scores
    compute_ps = _ps(2 * macs * padded / a.rows, rate)
    repeated = a.kv_read_bytes * a.group if a.group > 1 else 0
    scores = config.spilled((softmax_elements + a.masked_scores) * EAGER_SCORE_BYTES)
    read = 2 * a.kv_read_bytes + repeated + scores // 2
    return _kernel(config, 2 * a.macs, read, a.kv_read_bytes + repeated + scores // 2, compute_ps, 11)


def encoder_attention(config: GpuConfig, g: Gemm) -> Kernel:
    """One of the two products without weights of an encoder's attention, softmax with the scores."""
    fused = config.attention == "fused"
    share = config.attention_share if fused else config.gemm_share
    scores = g.m * g.n if g.name == VISION_SCORES and not fused else 0
    half = config.spilled(scores * EAGER_SCORE_BYTES) // 2
    return _kernel(config, g.flops, half, half, _ps(g.flops, config.flops_per_s(share, "fp16")), 1)


def elementwise(config: GpuConfig, elements: int, launches: int, bytes_per_element: int = 0) -> Kernel:
    """Norms, RoPE, activation functions, residuals: bytes at L2 or device-memory rate, no FLOPs counted."""
    n_bytes = elements * (bytes_per_element or ELEMENTWISE_BYTES[config.stack])
    spilled = launches * config.spilled(n_bytes // max(1, launches))
    l2_ps = _ps(n_bytes, config.l2_per_s)
    return _kernel(config, 0, spilled // 2, spilled // 2, l2_ps, launches)


def product(config: GpuConfig, flops: int, read_bytes: int) -> Kernel:
    """A batched product of two activations at the achieved rate, one operand read from device memory."""
    return _kernel(config, flops, read_bytes, 0, _ps(flops, config.flops_per_s(config.gemm_share, "fp16")), 1)


def stream(config: GpuConfig, read_bytes: int, write_bytes: int) -> Kernel:
    """Device-memory traffic of a kernel that is counted elsewhere: no launch of its own."""
    return _kernel(config, 0, read_bytes, write_bytes, 0, 0)


def gather(config: GpuConfig, n_bytes: int, chunk_bytes: int) -> Kernel:
    """Copy scattered chunks of device memory into one run; K and V apart, hence two launches."""
    chunks = -(-n_bytes // chunk_bytes)
    return _kernel(config, 0, n_bytes + chunks * config.gather_overhead_bytes, n_bytes, 0, 2)


def sort(config: GpuConfig, keys: int) -> Kernel:
    """Segmented radix sort of key-value pairs; four passes that read and write both (8-bit digits)."""
    n_bytes = config.spilled(keys * 8) * 4
    rate = config.sort_keys_per_s * min(config.mode.gpu_scale, config.mode.memory_scale)
    return _kernel(config, 0, n_bytes, n_bytes, _ps(keys, rate), 4)


def together(kernels: list[Kernel]) -> Kernel:
    """Kernels that run one after the other as one."""
    return Kernel(
        sum(k.flops for k in kernels),
        sum(k.read_bytes for k in kernels),
        sum(k.write_bytes for k in kernels),
        sum(k.busy_ps for k in kernels),
        sum(k.launches for k in kernels),
    )


def _kernel(config: GpuConfig, flops: int, read: int, write: int, compute_ps: int, launches: int) -> Kernel:
    busy_ps = max(compute_ps, config.dram_ps(read + write)) + launches * config.gap_ps
    return Kernel(flops, read, write, busy_ps, launches)


def _tiled_ps(config: GpuConfig, g: Gemm, tile: tuple[int, int], unpack: int) -> int:
    """Tensor-core kernel: tiles go over the SMs in waves, each at its SM's share of the chip."""
    rows, columns = tile
    sm_flops = config.flops_per_s(config.gemm_share) / config.sms
    sm_l2 = config.l2_per_s / config.sms
    step_s = max(2 * rows * columns / sm_flops, (rows + columns) * HALF_BYTES / sm_l2)
    sm_ops = config.cuda_flops_per_s / 2 / config.sms
    step_s += columns * unpack / sm_ops
    tiles = -(-g.m // rows) * -(-g.n // columns)
    steps = min(-(-tiles * s // config.sms) * (g.k / s + PIPELINE_FILL_K) for s in SPLIT_K)
    return round(steps * step_s * 1e12)


def _quant_tile(rows: int) -> tuple[int, int]:
    return next((tile for most, tile in QUANT_TILES if rows <= most), QUANT_TILE)


def _vector_product_ps(config: GpuConfig, g: Gemm, unpack: int) -> int:
    ops = g.flops + 2 * unpack * g.k * g.n
    return _ps(ops, config.cuda_flops_per_s)


def _ps(amount: float, per_s: float) -> int:
    return round(amount / per_s * 1e12)
