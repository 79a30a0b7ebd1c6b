"""Columns of the reference tables: what a field may hold, and what must agree within a row.

`SCHEMAS` is the list of kinds of tables. A new kind is one entry here and one comparison in a model's module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from resv_sim.errors import hint

ROLES = ("validate", "calibrate", "context")
Parse = Callable[[str], str | float]


@dataclass(frozen=True)
class Row:
    """One line of a table; values by column, numbers as float."""

    line: int
    values: Mapping[str, str | float]

    def number(self, column: str) -> float:
        value = self.values[column]
        if isinstance(value, str):
            raise TypeError(f"column {column} holds text")
        return value

    def count(self, column: str) -> int:
        return round(self.number(column))

    def text(self, column: str) -> str:
        return str(self.values[column])


def _number(text: str, low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> float:
    """A finite number in [low, high], or above `low`."""
    try:
        value = float(text)
    except ValueError:
        raise ValueError("must be a number") from None
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    if value < low or value > high or (above and value == low):
        raise ValueError(f"must be {'above' if above else 'at least'} {low:g}, at most {high:g}")
    return value


def _whole(text: str, low: float) -> float:
    value = _number(text, low)
    if value != round(value):
        raise ValueError("must be a whole number")
    return value


def _load(text: str) -> str | float:
    return text if text == "sat" else _number(text, 0, 1, above=True)


def _text(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    return text


def one_of(*words: str) -> Parse:
    return partial(_one_of, words=words)


def _one_of(text: str, words: tuple[str, ...]) -> str:
    if text not in words:
        raise ValueError(f"must be one of {', '.join(words)}.{hint(text, words)}")
    return text


def optional(parse: Parse) -> Parse:
    """An empty field is 0, for quantities that a row may lack."""
    return partial(_optional, parse=parse)


def _optional(text: str, parse: Parse) -> str | float:
    return parse(text) if text else 0.0


POSITIVE: Parse = partial(_number, low=0, above=True)
NOT_NEGATIVE: Parse = partial(_number, low=0)
COUNT: Parse = partial(_whole, low=1)
PATTERNS = ("seq", "rand64", "chunk", "stride", "mix90seq", "mix90chunk", "mix70chunk")


@dataclass(frozen=True)
class Schema:
    """What a table of one kind holds. `identity` returns (what, quotient that must be 1) pairs of a row."""

    model: str
    columns: Mapping[str, Parse]
    identity: Callable[[Row], Iterable[tuple[str, float]]] = lambda _: ()


def _ssd_identity(row: Row) -> Iterable[tuple[str, float]]:
    bandwidth = row.number("read_iops") * row.number("request_bytes")
    yield "read_bw_bytes_per_s over read_iops x request_bytes", row.number("read_bw_bytes_per_s") / bandwidth
    # Little's law: a closed loop holds its queue depth.
    seconds = row.number("read_iops") * row.number("read_lat_mean_us") * 1e-6
    seconds += row.number("write_iops") * row.number("write_lat_mean_us") * 1e-6
    yield "iops x mean latency (in us) over queue_depth", seconds / row.number("queue_depth")


_DRAM_RESULTS: dict[str, Parse] = {
    "bw_bytes_per_s": POSITIVE,
    "bw_frac_of_peak": partial(_number, low=0, high=1.02, above=True),
    "saturated": one_of("0", "1"),
    "lat_mean_ns": POSITIVE,
    "lat_p50_ns": POSITIVE,
    "lat_p99_ns": POSITIVE,
    "n_transactions": COUNT,
}
_DRAM_PATTERN: dict[str, Parse] = {
    "pattern": one_of(*PATTERNS),
    "map": one_of("page", "bgi"),
    "arg_bytes": COUNT,
    "load": _load,
}
_SOURCE: dict[str, Parse] = {"role": one_of(*ROLES), "source": _text}

SCHEMAS: dict[str, Schema] = {
    "dram_channel": Schema(
        "dram", {**_DRAM_PATTERN, "arrival": one_of("backlog", "fixed", "poisson"), **_DRAM_RESULTS}
    ),
    "dram_system": Schema(
        "dram", {"interleave_bytes": COUNT, **_DRAM_PATTERN, "window_bytes": NOT_NEGATIVE, **_DRAM_RESULTS}
    ),
    "ssd": Schema(
        "ssd",
        {
            "host": one_of("g3", "g4"),
            "tR_profile": one_of("u50", "tlc"),
            "pattern": one_of("rand", "seq"),
            "write_pct": partial(_number, low=0, high=100),
            "request_bytes": COUNT,
            "queue_depth": COUNT,
            "read_iops": POSITIVE,
            "read_bw_bytes_per_s": POSITIVE,
            "read_lat_mean_us": POSITIVE,
            "read_lat_p99_us": POSITIVE,
            "write_iops": NOT_NEGATIVE,
            "write_lat_mean_us": NOT_NEGATIVE,
            "n_requests": COUNT,
        },
        _ssd_identity,
    ),
    "link": Schema(
        "link",
        {
            "item": _text,
            "generation": one_of("3", "4", "5"),
            "lanes": one_of("1", "2", "4", "8", "16"),
            "mode": one_of("dma", "memcpy", "gather"),
            "extent_bytes": COUNT,
            "n_extents": COUNT,
            "payload_bytes_per_s": POSITIVE,
            **_SOURCE,
        },
    ),
    "gpu_measured": Schema(
        "gpu",
        {
            "item": _text,
            "platform": one_of("agx_orin", "a100"),
            "stage": one_of("decode", "prefill", "vision"),
            "layers": COUNT,
            "hidden": COUNT,
            "query_heads": COUNT,
            "kv_heads": COUNT,
            "head_dim": COUNT,
            "ffn": COUNT,
            "vocab": optional(COUNT),
            "weight_bits": one_of("4", "8", "16"),
            "head_bits": one_of("4", "8", "16"),
            "batch": COUNT,
            "rows": COUNT,
            "context_tokens": NOT_NEGATIVE,
            "logits": one_of("last", "all"),
            "stack": one_of("eager", "modules", "fused", "graph", "ggml"),
            "attention": one_of("eager", "fused"),
            "value": POSITIVE,
            "unit": one_of("ms", "s", "tok/s"),
            **_SOURCE,
        },
    ),
    "gpu_kernels": Schema(
        "gpu",
        {
            "item": _text,
            "platform": one_of("agx_orin", "a100"),
            "kernel": one_of("gemm", "read", "sort", "launch", "graph_launch"),
            "m": optional(COUNT),
            "k": optional(COUNT),
            "n": optional(COUNT),
            "n_bytes": optional(COUNT),
            "value": POSITIVE,
            "unit": one_of("TFLOPS", "GB/s", "GKey/s", "us"),
            **_SOURCE,
        },
    ),
    "energy": Schema(
        "energy",
        {
            "item": _text,
            "quantity": _text,
            "component": optional(_text),
            "capacity_bytes": optional(COUNT),
            "width_bits": optional(COUNT),
            "value": POSITIVE,
            "unit": _text,
            **_SOURCE,
        },
    ),
}
MODELS = ("dram", "ssd", "link", "gpu", "energy")
