"""Prediction in software on a GPU: operators, host synchronisations and kernels of one layer.

The algorithms as eager PyTorch would run them. ReSV's clustering is sequential, a token's cluster is visible to
the next token, so every token costs its own short chain of operators and one synchronisation; policies without
HC tables update what they keep per frame, page or token in one go. The count of operators follows the
algorithms (docs/dre.md); what one operator costs the host is `GpuConfig.dispatch_ps`, the only fitted figure
here. The GPU work of each operator is counted as well.
"""

from __future__ import annotations

from dataclasses import dataclass

from dre_sim import gpu_kernels as kernels
from dre_sim.gpu_kernels import GpuConfig, Kernel
from dre_sim.workload import PredictionWork

# Eager operators. Hash: product, sign, bit weights, pack.
HASH_OPS = 4
# A new token: XOR, popcount, minimum, compare, branch on the host; then join (count, mean: 3, member list)
# or found (code, mean, count, member list).
TOKEN_OPS = 10
# Predicted query: norm in fp32 (8), projection, RoPE on the queries (5), two views copied.
QUERY_OPS = 16
# Threshold: product, scale, row maximum, subtract, exp, times count, row sum, times ratio, sort, gather the
# counts, products, cumulative sum, compare, shift by one, scatter back, union over the rows.
THRESHOLD_OPS = 16
# Without HC tables: a block's mean, a page's bounds or new partial keys: slice, reduce or product, write.
UPDATE_OPS = 3
# Largest k (ReKV: frames, Quest: pages, an oracle: tokens): product, top-k, scatter to a mask, union over the rows.
# All near a row's maximum (InfiniGen): product, scale, row maximum, subtract, compare, count, mean over the heads,
# cap (synchronises), top-k, scatter to a mask, union.
CUT_OPS = {"wicsum": THRESHOLD_OPS, "topk": 4, "threshold": 11}
# Per choice, lengths differ: clusters to token mask, minus resident, indices (synchronises), K, V.
HEAD_OPS = 5
# Passes over the score matrix in fp32, read and write: the operators above less product, sort or top-k, and union.
SCORE_PASS_BYTES = 8
SCORE_PASSES = {"wicsum": 13, "topk": 1, "threshold": 6}
# Top-k reads the scores once per digit of 8 bits (radix selection, PyTorch's mbtopk); nothing is sorted.
TOPK_PASSES, TOPK_PASS_BYTES = 4, 4


@dataclass(frozen=True)
class SoftwareStage:
    """A synchronous run of eager operators: the host dispatches for `host_ps`, the kernels take `kernel`."""

    host_ps: int
    kernel: Kernel

    @property
    def duration_ps(self) -> int:
        """Host and device alternate at every synchronisation, so their times add up."""
        return self.host_ps + self.kernel.busy_ps


def cluster(config: GpuConfig, p: PredictionWork) -> SoftwareStage:
    """Hash the step's new keys and cluster them, one token after the other; or update what else is kept of them."""
    if p.tables == 0:
        ops = UPDATE_OPS if p.table_write_bytes else 0
        update = kernels.stream(config, p.table_read_bytes, p.table_write_bytes)
        return SoftwareStage(ops * config.dispatch_ps, update)
    ops = HASH_OPS * (p.hash_gemm is not None) + TOKEN_OPS * p.new_tokens
    work = [
        kernels.elementwise(config, p.comparisons, TOKEN_OPS * p.new_tokens, kernels.HALF_BYTES),
        kernels.stream(config, p.table_read_bytes, p.table_write_bytes),
    ]
    if p.hash_gemm is not None:
        work.append(kernels.gemm(config, p.hash_gemm, HASH_OPS))
    return SoftwareStage(ops * config.dispatch_ps, kernels.together(work))


def select(config: GpuConfig, p: PredictionWork) -> SoftwareStage:
    """Score with the (predicted) query, cut each row, list tokens."""
    scores = p.score_rows * p.clusters
    ops = CUT_OPS[p.cut] + HEAD_OPS * p.kv_heads
    passes = SCORE_PASSES[p.cut]
    work = [
        kernels.product(config, 2 * p.score_macs, p.score_read_bytes),
        kernels.elementwise(config, scores, passes, passes * SCORE_PASS_BYTES),
        kernels.sort(config, scores)
        if p.cut == "wicsum"
        else kernels.elementwise(config, scores, TOPK_PASSES, TOPK_PASSES * TOPK_PASS_BYTES),
        kernels.elementwise(config, p.clusters * p.kv_heads, HEAD_OPS * p.kv_heads, SCORE_PASS_BYTES),
    ]
    if p.query_gemm is not None:
        ops += QUERY_OPS
        work.append(kernels.gemm(config, p.query_gemm, QUERY_OPS))
    return SoftwareStage(ops * config.dispatch_ps, kernels.together(work))
