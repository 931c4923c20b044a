"""Divides sums of rows by index, such as the gradient of an embedding, into dispatches.

The indices are sorted, and the rows of each index are added in the order of their places. There are
no atomics, so equal calls give equal bits. If there are many rows, a run of equal indices is added
up in parts, so that one frequent index costs no more than many rare ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ebmvk.compute import expr
from ebmvk.compute.dispatches import Dispatch, Fill, Fresh, Planned, packed
from ebmvk.compute.ir import WORD, Call, Loop, Store
from ebmvk.compute.row_kernels import sort

if TYPE_CHECKING:
    from ebmvk.engine.recording import Limits

SOURCE = ("source_offset", "source_row", "source_column")
PUSH = {
    "add_runs": ("count", "each", "width", "limit", *SOURCE, "sums_offset"),
    "add_parts": ("count", "each", "width", "limit", "sums_offset"),
}
"""The push constants of each kernel, in the order of shaders/kernels.toml."""

WHOLE = 2048  # with at most this many rows, one invocation may add up all of them
EACH = 64  # places in a part


ZEROED = ("zeroed", True)
"""The constant of a call whose output is 0 before it runs."""


def zeroed(call: Call) -> tuple[Loop, Call] | None:
    """The call as two nodes: a loop that writes zeros, which can share a dispatch with other loops,
    and a call that needs no zeros. None if there is nothing to add up."""
    (out,) = call.outputs
    if 0 in out.shape or 0 in call.inputs[0].shape or ZEROED in call.constants:
        return None
    zeros = Loop(out.shape, 0, (Store(out, expr.const(0.0, "float32")),))
    return zeros, replace(call, constants=(*call.constants, ZEROED))


def index_add(call: Call, limits: Limits, fresh: Fresh) -> Planned:
    """The sum of the rows with each index, added in the order of the rows.

    Inputs: source (n, d) float32 and index (n,) int32. Output: (N, d), dense. Rows that no index
    names are 0; rows whose index is below 0, or N or more, are left out. Constants: see ZEROED.
    """
    source, index = call.inputs
    out = call.outputs[0]
    (count, width), limit = source.shape, out.shape[0]
    if 0 in out.shape:
        return Planned()
    zero = Fill(out.tensor, WORD * out.offset, WORD * limit * width)
    if count == 0:
        return Planned((zero,))
    keys, order = fresh((count,), "uint32"), fresh((count,), "int32")
    ordered = Call("sort", (index,), (keys.view(), order.view()), (("unsigned", True),))
    steps = sort(ordered, limits, fresh).steps

    each = 0 if count <= WHOLE else max(EACH, -(-count // (limits.loop_rounds // 2)))
    chunks = -(-count // each) if each else count
    partial = fresh((2 * chunks if each else 1, width), "float32")
    group = min(limits.group, _width_of_group(width, limits))
    numbers = {"count": count, "each": each, "width": width, "limit": limit, "sums_offset": out.offset}
    at = {"source_offset": source.offset, "source_row": source.strides[0], "source_column": source.strides[1]}
    down = min(chunks, limits.groups_yz)
    groups = -(-width // group), down, -(-chunks // down)
    runs = Dispatch(
        "add_runs",
        group,
        (),
        (keys, order, source.tensor, partial, out.tensor),
        packed(PUSH["add_runs"], numbers | at),
        groups,
        float(count * width),
        WORD * (2 * count * width + 2 * count),
    )
    first = () if ZEROED in call.constants else (zero,)
    if not each:
        return Planned((*first, *steps, runs))
    push = packed(PUSH["add_parts"], numbers)
    parts = Dispatch("add_parts", group, (), (keys, partial, out.tensor), push, groups, 0.0, WORD * chunks * width)
    return Planned((*first, *steps, runs, parts))


def _width_of_group(width: int, limits: Limits) -> int:
    if limits.kind == "cpu":
        return limits.subgroup or 8
    return 64 if width <= 64 else 128
