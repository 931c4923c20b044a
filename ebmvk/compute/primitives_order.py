"""Running sums, sorting and the largest elements."""

from __future__ import annotations

import math
from typing import Any

from ebmvk.compute import expr, views
from ebmvk.compute.ir import View
from ebmvk.compute.lower import Lowering
from ebmvk.compute.primitives import NUMBERS, primitive


def _rows(low: Lowering, x: View, dim: int) -> tuple[View, list[int]]:
    """The view as (rows, n) with the axis last, and the order of axes that brings it there."""
    rank = len(x.shape)
    order = [a for a in range(rank) if a != dim % rank] + [dim % rank]
    moved = views.with_axes(x, order)
    return low.reshaped(moved, (math.prod(moved.shape[:-1]), moved.shape[-1])), order


def _back(low: Lowering, rows: View, order: list[int], shape: tuple[int, ...]) -> View:
    moved = low.reshaped(rows, tuple(shape[a] for a in order))
    return views.with_axes(moved, [order.index(a) for a in range(len(order))])


@primitive("cumsum.default", dtypes=NUMBERS)
def cumsum(low: Lowering, x: View, dim: int, **keywords: Any) -> View:
    del keywords
    if not x.shape:
        return low.pointwise(lambda a: a, x)
    x = low.pointwise(lambda a: a, x)
    rows, order = _rows(low, x, dim)
    return _back(low, low.call("scan_sum", [rows], [(rows.shape, low.dtype)])[0], order, low.shape)


def _alone(low: Lowering, x: View) -> tuple[View, View]:
    """Sorts a tensor without axes: its only number, at position 0."""
    return x, low.loop((), expr.const(0, "int32"))


@primitive("topk.default", dtypes=NUMBERS, limits="equal values: the lower position first")
def topk(
    low: Lowering, x: View, k: int, dim: int = -1, largest: bool = True, in_order: bool = True
) -> tuple[View, View]:
    del in_order
    if not x.shape and k == 1:
        return _alone(low, x)
    shape = tuple(low.value[0].shape)
    rows, order = _rows(low, x, dim)
    made: list[tuple[tuple[int, ...], Any]] = [((rows.shape[0], k), x.tensor.dtype), ((rows.shape[0], k), "int32")]
    values, places = low.call("topk", [rows], made, [("k", k), ("largest", largest)])
    return _back(low, values, order, shape), _back(low, places, order, shape)


@primitive("sort.default", "sort.stable", dtypes=NUMBERS, limits="always stable")
def sort(
    low: Lowering, x: View, dim: int = -1, descending: bool = False, stable: bool | None = None
) -> tuple[View, View]:
    del stable
    if not x.shape:
        return _alone(low, x)
    rows, order = _rows(low, x, dim)
    values, places = low.call(
        "sort", [rows], [(rows.shape, x.tensor.dtype), (rows.shape, "int32")], [("descending", bool(descending))]
    )
    return _back(low, values, order, x.shape), _back(low, places, order, x.shape)
