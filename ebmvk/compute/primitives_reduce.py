"""Reductions along axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ebmvk.compute import expr, views
from ebmvk.compute.ir import DType, Expr, View
from ebmvk.compute.lower import Lowering
from ebmvk.compute.primitives import NUMBERS, primitive


def axes_of(view: View, dims: Sequence[int] | int | None) -> list[int]:
    """Axes from 0 on, in order; all of them for None or an empty list."""
    rank = len(view.shape)
    if isinstance(dims, int):
        dims = [dims]
    return sorted(dim % rank for dim in dims) if dims and rank else list(range(rank))


def _rows(x: View, axes: Sequence[int]) -> tuple[View, int]:
    """The view with these axes last, and their number. A tensor without axes gets an axis of size
    1. Otherwise its reduction, merged into another loop, would run over that loop's axes."""
    kept = [a for a in range(len(x.shape)) if a not in axes]
    moved = views.with_axes(x, [*kept, *axes], [] if axes else [1])
    return moved, max(1, len(axes))


def reduced(
    low: Lowering, x: View, dims: Sequence[int] | int | None, value: Callable[[Expr], Expr], dtype: DType
) -> View:
    """A reduction of a view. Its result has the shape that the graph's node has."""
    moved, count = _rows(x, axes_of(x, dims))
    made = low.loop(moved.shape, value(expr.cast_to(expr.load(moved), dtype)), reduced=count)
    return low.reshaped(made, low.shape)


@primitive("sum.dim_IntList", "sum.default", dtypes=NUMBERS)
def sum_(low: Lowering, x: View, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> View:
    del keepdim, dtype
    return reduced(low, x, dim, lambda a: expr.reduce("sum", a), low.dtype)


@primitive("mean.dim", "mean.default", dtypes=("float32",))
def mean(low: Lowering, x: View, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> View:
    del keepdim, dtype
    count = math.prod(x.shape[a] for a in axes_of(x, dim))
    scale = expr.const(float(count), "float32")
    return reduced(low, x, dim, lambda a: expr.op("div", expr.reduce("sum", a), scale), "float32")


@primitive("prod.default", "prod.dim_int", dtypes=NUMBERS)
def prod(low: Lowering, x: View, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> View:
    del keepdim, dtype
    return reduced(low, x, dim, lambda a: expr.reduce("prod", a), low.dtype)


@primitive("amax.default", "amin.default", "max.default", "min.default", dtypes=NUMBERS)
def extreme(low: Lowering, x: View, dim: Any = None, keepdim: bool = False) -> View:
    del keepdim
    largest = "max" in low.name.split(".")[0]
    return reduced(low, x, dim, lambda a: expr.reduce("max" if largest else "min", a), low.dtype)


@primitive("any.default", "any.dim", "any.dims", "all.default", "all.dim", "all.dims")
def any_all(low: Lowering, x: View, dim: Any = None, keepdim: bool = False) -> View:
    del keepdim
    some = low.name.startswith("any")
    return reduced(low, x, dim, lambda a: expr.reduce("any" if some else "all", a), "bool")


@primitive("argmax.default", "argmin.default", dtypes=NUMBERS)
def arg_extreme(low: Lowering, x: View, dim: int | None = None, keepdim: bool = False) -> View:
    del keepdim
    largest = low.name.startswith("argmax")
    return reduced(low, x, dim, lambda a: expr.reduce("argmax" if largest else "argmin", a), x.tensor.dtype)


@primitive("max.dim", "min.dim", dtypes=NUMBERS)
def extreme_along(low: Lowering, x: View, dim: int, keepdim: bool = False) -> tuple[View, View]:
    del keepdim
    largest = low.name.startswith("max")
    shapes = [tuple(part.shape) for part in low.value]
    results = []
    for kinds, shape in zip((("max", "min"), ("argmax", "argmin")), shapes, strict=True):
        kind: Any = kinds[0 if largest else 1]
        moved, count = _rows(x, axes_of(x, dim))
        made = low.loop(moved.shape, expr.reduce(kind, expr.load(moved)), reduced=count)
        results.append(low.reshaped(made, shape))
    return results[0], results[1]
