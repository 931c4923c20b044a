"""Operations that read or write at computed places, or join tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ebmvk.compute import expr, views
from ebmvk.compute.ir import Expr, View
from ebmvk.compute.lower import Lowering, Value
from ebmvk.compute.primitives import NUMBERS, primitive


def _wrapped(index: Expr, size: int) -> Expr:
    """An index that isn't negative. A negative index counts from the end."""
    zero = expr.const(0, "int32")
    return expr.where(expr.op("lt", index, zero), expr.op("add", index, expr.const(size, "int32")), index)


# ----------------------------------------------------------------------------------------- reading


@primitive("embedding.default", dtypes=("float32",))
def embedding(low: Lowering, weight: View, index: View, *options: Any, **more: Any) -> View:
    del options, more  # they are about the gradient
    shape = (*index.shape, weight.shape[1])
    row = low.element(views.with_axes(index, range(len(index.shape)), [weight.shape[1]]), shape)
    return low.loop(shape, expr.load_at(weight, [row, expr.axis(len(index.shape))]))


@primitive("gather.default")
def gather(low: Lowering, x: View, dim: int, index: View, sparse_grad: bool = False) -> View:
    del sparse_grad
    if not x.shape:
        return low.reshaped(x, low.shape)
    dim %= len(x.shape)
    inner = views.through(index, lambda meta: meta)[0]
    if index.shape[dim] == 1 and x.tensor.dtype == "float32" and x.shape[dim] > 0 and _same_rows(x, index, dim):
        return _picked(low, x, dim, index)
    places = [expr.load(inner) if a == dim else expr.axis(a) for a in range(len(x.shape))]
    return low.loop(index.shape, expr.load_at(x, places))


def _same_rows(x: View, index: View, dim: int) -> bool:
    return all(a == dim or x.shape[a] == index.shape[a] for a in range(len(x.shape)))


def _picked(low: Lowering, x: View, dim: int, index: View) -> View:
    """One element of each row, as a sum over the row with only one term that isn't 0. So it can be
    joined with other reductions of the row, such as the maximum in cross-entropy."""
    rest = [a for a in range(len(x.shape)) if a != dim]
    row = views.with_axes(x, [*rest, dim])
    place = views.broadcast(views.with_axes(index, [*rest, dim]), row.shape)
    chosen = expr.op("eq", expr.axis(len(rest)), expr.load(place))
    value = expr.reduce("sum", expr.where(chosen, expr.load(row), expr.const(0.0, "float32")))
    return low.reshaped(low.loop(row.shape, value, reduced=1), index.shape)


@primitive("index_select.default")
def index_select(low: Lowering, x: View, dim: int, index: View) -> View:
    dim %= max(1, len(x.shape))
    flat = low.reshaped(index, (math.prod(index.shape),))
    strides = tuple(flat.strides[0] if a == dim else 0 for a in range(len(low.shape)))
    place = expr.load(View(flat.tensor, low.shape, strides, flat.offset))
    return low.loop(low.shape, expr.load_at(x, [place if a == dim else expr.axis(a) for a in range(len(x.shape))]))


class Indexed:
    """Advanced indexing as torch defines it: x[i, j, :] with some axes whole. The indexed axes give
    one block of axes, in place if they are neighbours, else in front."""

    def __init__(self, low: Lowering, x: View, indices: Sequence[View | None]) -> None:
        self.axes = [a for a, index in enumerate(indices) if index is not None]
        given = [index for index in indices if index is not None]
        if any(index.tensor.dtype == "bool" for index in given):
            raise low.unsupported(
                "indexing by a mask, whose result has no fixed shape", "Use torch.where with the mask."
            )
        self.block = _broadcast_shapes([index.shape for index in given])
        neighbours = self.axes == list(range(self.axes[0], self.axes[-1] + 1))
        self.first = self.axes[0] if neighbours else 0
        self.whole = [a for a in range(len(x.shape)) if a not in self.axes]
        self.given = [views.broadcast(index, self.block) for index in given]
        self.sizes = [x.shape[a] for a in self.axes]
        before = [x.shape[a] for a in self.whole if self.first > a]
        after = [x.shape[a] for a in self.whole if self.first <= a] if neighbours else [x.shape[a] for a in self.whole]
        if not neighbours:
            before = []
        self.before = len(before)
        self.shape = (*before, *self.block, *after)

    def place(self, x: View) -> list[Expr]:
        """The index in x of the element at a point of `shape`."""
        places: list[Expr] = [expr.axis(0)] * len(x.shape)
        for number, axis in enumerate(self.whole):
            places[axis] = expr.axis(number if number < self.before else number + len(self.block))
        for axis, index, size in zip(self.axes, self.given, self.sizes, strict=True):
            after = len(self.shape) - self.before - len(self.block)
            strides = (*(0,) * self.before, *index.strides, *(0,) * after)
            places[axis] = _wrapped(expr.load(View(index.tensor, self.shape, strides, index.offset)), size)
        return places


def _broadcast_shapes(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    import numpy as np

    return tuple(np.broadcast_shapes(*shapes))  # torch's imports sympy, which takes a second


@primitive("index.Tensor", limits="indices are integers, no masks")
def index_tensor(low: Lowering, x: View, indices: Sequence[View | None]) -> View:
    at = Indexed(low, x, indices)
    return low.loop(at.shape, expr.load_at(x, at.place(x)))


# ----------------------------------------------------------------------------------------- writing


@primitive("embedding_dense_backward.default", dtypes=("float32",), limits="no scaling by frequency")
def embedding_backward(
    low: Lowering, gradient: View, index: View, count: int, padding: int, by_frequency: bool
) -> View:
    if by_frequency:
        raise low.unsupported("an embedding that scales its gradient by frequency")
    rows = math.prod(index.shape)
    flat = low.reshaped(index, (rows,))
    if padding >= 0:
        absent = expr.const(-1, "int32")
        row = expr.load(flat)
        flat = low.loop((rows,), expr.where(expr.op("eq", row, expr.const(padding, "int32")), absent, row))
    source = low.reshaped(gradient, (rows, gradient.shape[-1]))
    return low.call("index_add", [source, flat], [((count, gradient.shape[-1]), "float32")])[0]


@primitive("index_put.default", "_unsafe_index_put.default", dtypes=NUMBERS,
           limits="indices are integers; of several values for one place, the last counts")  # fmt: skip
def index_put(low: Lowering, x: View, indices: Sequence[View | None], values: View, accumulate: bool = False) -> View:
    at = Indexed(low, x, indices)
    block, rest = math.prod(at.block), [x.shape[a] for a in at.whole]
    row = low.loop(at.block, _flat_row(at))
    rows = low.reshaped(row, (block,))
    source = views.broadcast(values, at.shape)
    lead = [*range(at.before, at.before + len(at.block))]
    moved = views.with_axes(source, [*lead, *(a for a in range(len(at.shape)) if a not in lead)])
    source = low.reshaped(moved, (block, math.prod(rest)))
    count = math.prod(at.sizes)
    if accumulate and x.tensor.dtype == "float32":
        made = low.call("index_add", [source, rows], [((count, math.prod(rest)), "float32")])[0]
    else:
        made = _scattered(low, source, rows, count, accumulate)
    # The result has the indexed axes first, so view it in the order of x's axes.
    order = [*at.axes, *at.whole]

    def as_x(view: View, sizes: Sequence[int]) -> View:
        moved = views.with_axes(low.reshaped(view, (*at.sizes, *sizes)), [order.index(a) for a in range(len(x.shape))])
        return views.broadcast(moved, x.shape)

    old, new = expr.load(x), expr.load(as_x(made, rest))
    if accumulate:
        return low.loop(x.shape, expr.op("add", old, new))
    named = expr.load(as_x(_last(low, rows, count), [1] * len(rest)))
    return low.loop(x.shape, expr.where(expr.op("ge", named, expr.const(0, "int32")), new, old))


def _flat_row(at: Indexed) -> Expr:
    """The row-major position of an index among the indexed axes."""
    flat: Expr = expr.const(0, "int32")
    for index, size in zip(at.given, at.sizes, strict=True):
        place = _wrapped(expr.load(index), size)
        flat = expr.op("add", expr.op("mul", flat, expr.const(size, "int32")), place)
    return flat


def _last(low: Lowering, rows: View, count: int) -> View:
    """For each of `count` places, the last position whose index is this place, or -1: (count,)."""
    size = rows.shape[0]
    each = View(rows.tensor, (count, size), (0, rows.strides[0]), rows.offset)
    here = expr.op("eq", expr.load(each), expr.axis(0))
    return low.loop((count, size), expr.reduce("max", expr.where(here, expr.axis(1), expr.const(-1, "int32"))), 1)


def _scattered(low: Lowering, source: View, rows: View, count: int, accumulate: bool) -> View:
    """Row r of the result is the last row of `source` whose index is r, or, with `accumulate`, the
    sum of these rows."""
    size, width = source.shape
    if accumulate:
        shape = (count, width, size)
        term = View(source.tensor, shape, (0, source.strides[1], source.strides[0]), source.offset)
        name = View(rows.tensor, shape, (0, 0, rows.strides[0]), rows.offset)
        here = expr.op("eq", expr.load(name), expr.axis(0))
        zero = expr.const(0, source.tensor.dtype)
        return low.loop(shape, expr.reduce("sum", expr.where(here, expr.load(term), zero)), 1)
    last = _last(low, rows, count)
    where = expr.load(View(last.tensor, (count, width), (last.strides[0], 0), last.offset))
    safe = expr.op("maximum", where, expr.const(0, "int32"))
    return low.loop((count, width), expr.load_at(source, [safe, expr.axis(1)]))


@primitive("scatter.src", "scatter.value", "scatter_add.default",
           limits="of several values for one place, the last counts; work: both lengths multiplied")  # fmt: skip
def scatter(low: Lowering, x: View, dim: int, index: View, source: Value) -> View:
    if not x.shape:  # like one axis of one element, for the index and the source too
        x, index = low.reshaped(x, (1,)), _row(low, index)
        source = _row(low, source) if isinstance(source, View) else source
        made = _scatter(low, x, 0, index, source, adds=low.name.startswith("scatter_add"))
        return low.reshaped(made, ())
    dim %= len(x.shape)
    return _scatter(low, x, dim, index, source, adds=low.name.startswith("scatter_add"))


def _row(low: Lowering, view: View) -> View:
    return view if view.shape else low.reshaped(view, (1,))


def _scatter(low: Lowering, x: View, dim: int, index: View, source: Value, *, adds: bool) -> View:
    """Each element of x reads the indices along its row and takes the last value sent to it, or
    adds all of them. Rows beyond those of `index` keep x."""
    rank, dtype = len(x.shape), low.dtype
    if 0 in index.shape:
        return x
    covered = _Covered(x, index, dim)
    sent = index.shape[dim]
    shape = (*x.shape, sent)
    named = expr.op("eq", covered.load(index, shape), expr.axis(dim))
    if covered.partial is not None:
        named = expr.op("logical_and", named, covered.partial)

    def value(reduced: bool) -> Expr:
        if not isinstance(source, View):
            return expr.const(source, dtype)  # type: ignore[arg-type]
        part = View(source.tensor, index.shape, source.strides, source.offset)
        return expr.cast_to(covered.load(part, shape if reduced else x.shape), dtype)

    if sent == 1:
        named = expr.op("eq", covered.load(index, x.shape), expr.axis(dim))
        if covered.partial is not None:
            named = expr.op("logical_and", named, covered.partial)
        old = expr.load(x)
        new = expr.op("add", old, value(False)) if adds else value(False)
        return low.loop(x.shape, expr.where(named, new, old))
    whole = View(x.tensor, shape, (*x.strides, 0), x.offset)
    if adds:
        total = expr.reduce("sum", expr.where(named, value(True), expr.const(0, dtype)))
        return low.loop(shape, expr.op("add", expr.load(whole), total), 1)
    last = low.loop(shape, expr.reduce("max", expr.where(named, expr.axis(rank), expr.const(-1, "int32"))), 1)
    place = expr.load(last)
    there = expr.op("ge", place, expr.const(0, "int32"))
    if not isinstance(source, View):
        return low.loop(x.shape, expr.where(there, expr.const(source, dtype), expr.load(x)))  # type: ignore[arg-type]
    at = [expr.op("maximum", place, expr.const(0, "int32")) if a == dim else covered.clamped(a) for a in range(rank)]
    part = View(source.tensor, index.shape, source.strides, source.offset)
    return low.loop(x.shape, expr.where(there, expr.cast_to(expr.load_at(part, at), dtype), expr.load(x)))


class _Covered:
    """`index` of a scatter may be smaller than x along the other axes."""

    def __init__(self, x: View, index: View, dim: int) -> None:
        self.sizes = index.shape
        self.dim = dim
        self.short = [a for a in range(len(x.shape)) if a != dim and index.shape[a] < x.shape[a]]
        self.partial: Expr | None = None
        for a in self.short:
            inside = expr.op("lt", expr.axis(a), expr.const(index.shape[a], "int32"))
            self.partial = inside if self.partial is None else expr.op("logical_and", self.partial, inside)

    def clamped(self, a: int) -> Expr:
        return (
            expr.op("minimum", expr.axis(a), expr.const(self.sizes[a] - 1, "int32"))
            if a in self.short
            else expr.axis(a)
        )

    def load(self, view: View, shape: tuple[int, ...]) -> Expr:
        """The element of `view` (of the index's shape) for a point of x and, along the last axis of
        `shape`, a position along `dim`."""
        rank = len(self.sizes)
        extra = len(shape) > rank
        if not self.short:
            strides = [0 if a == self.dim else view.strides[a] for a in range(rank)]
            if extra:
                strides.append(view.strides[self.dim])
            return expr.load(View(view.tensor, shape, tuple(strides), view.offset))
        position = expr.axis(rank) if extra else expr.const(0, "int32")
        return expr.load_at(view, [position if a == self.dim else self.clamped(a) for a in range(rank)])


# ----------------------------------------------------------------------------------------- joining


def _narrow(dim: int, start: int, size: int) -> Callable[[Any], Any]:
    return lambda meta: meta.narrow(dim, start, size)


@primitive("cat.default")
def cat(low: Lowering, parts: Sequence[View], dim: int = 0) -> View:
    parts = [part for part in parts if part.shape != (0,) or len(low.shape) == 1]
    dim %= len(low.shape)
    whole = low.tensor(low.shape, low.dtype).view()
    start = 0
    for part in parts:
        size = part.shape[dim]
        target = views.through(whole, _narrow(dim, start, size))[0]
        low.store(target, expr.cast_to(expr.load(part), low.dtype))
        start += size
    return whole


@primitive("constant_pad_nd.default")
def pad(low: Lowering, x: View, widths: Sequence[int], value: float = 0) -> View:
    rank = len(x.shape)
    before = [0] * rank
    for number in range(len(widths) // 2):
        before[rank - 1 - number] = widths[2 * number]
    places: list[Expr] = []
    inside: Expr = expr.const(True, "bool")
    for a in range(rank):
        place = expr.op("sub", expr.axis(a), expr.const(before[a], "int32"))
        if low.shape[a] != x.shape[a] or before[a]:
            place, here = _clamped(place, x.shape[a])
            inside = expr.op("logical_and", inside, here)
        places.append(place)
    if 0 in x.shape:
        return low.loop(low.shape, expr.const(value, low.dtype))
    return low.loop(low.shape, expr.where(inside, expr.load_at(x, places), expr.const(value, low.dtype)))


def _clamped(place: Expr, size: int) -> tuple[Expr, Expr]:
    """The nearest place inside 0..size - 1, and whether the place was inside."""
    zero, last = expr.const(0, "int32"), expr.const(size - 1, "int32")
    here = expr.op("logical_and", expr.op("ge", place, zero), expr.op("le", place, last))
    return expr.op("minimum", expr.op("maximum", place, zero), last), here


@primitive("slice_scatter.default", "select_scatter.default")
def slice_scatter(low: Lowering, x: View, source: View, dim: int = 0, start: Any = None, end: Any = None,
                  step: int = 1) -> View:  # fmt: skip
    dim %= len(x.shape)
    if low.name.startswith("select"):
        start = start % x.shape[dim]
        end, step = start + 1, 1
        source = views.through(source, lambda meta: meta.unsqueeze(dim))[0]
    start, end, step = slice(start, end).indices(x.shape[dim])[:2] + (step,)  # noqa: RUF005
    if 0 in source.shape:
        return x
    ahead = expr.op("sub", expr.axis(dim), expr.const(start, "int32"))
    steps = expr.const(step, "int32")
    place, inside = _clamped(expr.op("floordiv", ahead, steps), source.shape[dim])
    inside = expr.op("logical_and", inside, expr.op("ge", ahead, expr.const(0, "int32")))
    if step != 1:
        inside = expr.op("logical_and", inside, expr.op("eq", expr.op("mod", ahead, steps), expr.const(0, "int32")))
    value = expr.load_at(source, [place if a == dim else expr.axis(a) for a in range(len(x.shape))])
    return low.loop(x.shape, expr.where(inside, expr.cast_to(value, low.dtype), expr.load(x)))


@primitive("diagonal_scatter.default")
def diagonal_scatter(low: Lowering, x: View, source: View, offset: int = 0, dim1: int = 0, dim2: int = 1) -> View:
    """The diagonal is the last axis of `source`."""
    rank = len(x.shape)
    dim1, dim2 = dim1 % rank, dim2 % rank
    if 0 in source.shape:
        return x
    row, column = expr.axis(dim1), expr.axis(dim2)
    inside = expr.op("eq", expr.op("sub", column, row), expr.const(offset, "int32"))
    place, _ = _clamped(row if offset >= 0 else column, source.shape[-1])
    at = [expr.axis(a) for a in range(rank) if a not in {dim1, dim2}]
    value = expr.cast_to(expr.load_at(source, [*at, place]), low.dtype)
    return low.loop(x.shape, expr.where(inside, value, expr.load(x)))
