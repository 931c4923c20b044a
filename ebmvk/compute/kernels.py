"""The kernels that a `Call` of a program may name, and how each is planned.

`KERNELS[name](call, limits, fresh)` gives the steps of a call on a device with these limits;
`fresh` makes scratch tensors. The result depends only on the call's shapes, strides and constants
and on the limits. No output may share memory with an input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ebmvk.compute.dispatches import Dispatch, Fill, Fresh, Planned
from ebmvk.compute.index_add import index_add
from ebmvk.compute.ir import Call
from ebmvk.compute.matmul import matmul, matmul_parts
from ebmvk.compute.matrices import inverse, weakest_cut
from ebmvk.compute.row_kernels import scan_sum, sort, topk

if TYPE_CHECKING:
    from ebmvk.engine.recording import Limits

__all__ = ["KERNELS", "Dispatch", "Fill", "Fresh", "Planned"]

KERNELS: dict[str, Callable[[Call, Limits, Fresh], Planned]] = {
    "matmul": matmul,
    "matmul_parts": matmul_parts,
    "index_add": index_add,
    "inverse": inverse,
    "scan_sum": scan_sum,
    "sort": sort,
    "topk": topk,
    "weakest_cut": weakest_cut,
}
