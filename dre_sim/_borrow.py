"""`borrow`: an array for use inside one kernel call, without reference counting.

Numba counts references atomically at every call between compiled functions. Where an event costs a handful of calls
that is most of the time; a borrowed array costs none. The caller of the kernel keeps the memory alive.
"""

from __future__ import annotations

from typing import Any

import numba
from numba.core import types
from numba.extending import intrinsic


def _borrow(typing_context: Any, array: types.Array) -> Any:
    """View of `array` (inside kernels only) that does not own its memory."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, args[0])
        view.meminfo = view.meminfo.type(None)
        view.parent = view.parent.type(None)
        return view._getvalue()

    return array(array), generate


def _same(array: Any) -> Any:
    return array


borrow: Any = _same if getattr(numba.config, "DISABLE_JIT", False) else intrinsic(_borrow)
