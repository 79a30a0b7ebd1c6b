"""Intrinsics for the kernels of the memories: `borrow`, an array as bare memory, and `lowest`, the lowest set bit.

Numba passes an array as seven values, counts references to it, and looks at the sign of every index. Where an event
costs a few hundred accesses that is most of the time; bare memory costs none of it, and checks nothing. The caller
of the kernel keeps the memory alive. The kernels' functions are inlined by force for the same reason: LLVM would
pass their tuples of constants, some 30 values, at every call. Without compilation both are plain Python.
"""

from __future__ import annotations

from typing import Any

import numba
from numba.core import types
from numba.extending import intrinsic


def _borrow(typing_context: Any, array: types.Array) -> Any:
    """The elements of `array` (inside kernels only), in order, under indices from 0 on."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.make_array(signature.args[0])(context, builder, args[0]).data

    pointer: Any = types.CPointer
    return pointer(array.dtype)(array), generate


def _lowest(typing_context: Any, mask: types.Integer) -> Any:
    """Position of the lowest set bit of `mask`, which is not 0."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], context.get_constant(types.boolean, True))

    return types.int64(types.int64), generate


def _elements(array: Any) -> Any:
    return array.reshape(-1)


def _lowest_plain(mask: int) -> int:
    return (int(mask) & -int(mask)).bit_length() - 1


_PLAIN = getattr(numba.config, "DISABLE_JIT", False)
borrow: Any = _elements if _PLAIN else intrinsic(_borrow)
lowest: Any = _lowest_plain if _PLAIN else intrinsic(_lowest)
