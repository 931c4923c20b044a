"""A loop as a graph of values: expressions become nodes, views become bindings and addresses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

from ebmvk.compute.expr import children, walk
from ebmvk.compute.ir import Axis, Const, DType, Expr, Load, LoadAt, Loop, Reduce, Tensor, View
from ebmvk.compute.layout import Strides, add, address, collapse, multiply, order
from ebmvk.compute.ops import TYPED, operation
from ebmvk.compute.reductions import reduced_type
from ebmvk.compute.values import Graph, Value


@dataclass(frozen=True)
class Target:
    """A store as nodes. whole: True if it also has a value at each reduced point."""

    binding: int
    dtype: DType
    index: int
    value: int
    whole: bool


@dataclass(frozen=True)
class Reading:
    """A loop's graph. Its symbols are "p" and "r", the flat indices along the parallel and the
    reduced axes.

    Attributes:
        rows, length: the number of parallel and of reduced points.
        tensors: by binding. access: a letter for each tensor: r (read), w (written), u (both).
        across: True if neighbours in memory are neighbours along the parallel axes, False if along
            the reduced axes.
        loads: the number of loads that change along the reduced axes.
    """

    graph: Graph
    rows: int
    length: int
    targets: tuple[Target, ...]
    tensors: tuple[Tensor, ...]
    access: str
    across: bool
    loads: int


class _Reader:
    def __init__(self, loop: Loop, reduced: int, given: View | None = None) -> None:
        self.loop = loop
        self.given = given
        self.graph = Graph()
        self.parallel = len(loop.shape) - reduced
        self.expressions = list(walk(*(store.value for store in loop.stores)))
        self.bindings: dict[Tensor, int] = {}
        self.read: set[Tensor] = set()
        self._arrange()

    def _strides(self, view: View) -> Strides:
        """A view's strides along all axes of the loop."""
        return (*view.strides, *(0,) * (len(self.loop.shape) - len(view.shape)))

    def _unit(self, axis: int) -> Strides:
        return tuple(int(a == axis) for a in range(len(self.loop.shape)))

    def _is_load(self, expression: Expr) -> TypeGuard[Load]:
        return isinstance(expression, Load) and expression.view != self.given

    def _arrange(self) -> None:
        """Chooses the order of the parallel axes and merges axes for all views at once."""
        shape, parallel = self.loop.shape, self.parallel
        key = max((self._strides(store.view) for store in self.loop.stores), key=lambda s: sum(map(bool, s)))
        self.order = list(range(parallel)) if self.given else order(shape[:parallel], key[:parallel])
        vectors = [self._strides(store.view) for store in self.loop.stores]
        for expression in self.expressions:
            if self._is_load(expression):
                vectors.append(self._strides(expression.view))
            elif isinstance(expression, Axis):
                vectors.append(self._unit(expression.axis))
        distinct = list(dict.fromkeys(vectors))
        self.sizes, rows = collapse([shape[a] for a in self.order], [[v[a] for a in self.order] for v in distinct])
        self.reduced_sizes, columns = collapse(shape[parallel:], [v[parallel:] for v in distinct])
        self.rows = dict(zip(distinct, rows, strict=True))
        self.columns = dict(zip(distinct, columns, strict=True))

    def across(self) -> bool:
        """True if more loads are contiguous along the last parallel axis than along the last
        reduced axis."""
        balance = 0
        for expression in self.expressions:
            if self._is_load(expression):
                vector = self._strides(expression.view)
                row, column = self.rows[vector], self.columns[vector]
                if column and any(column):
                    balance += (bool(row) and row[-1] == 1) - (column[-1] == 1)
        return balance > 0

    def binding(self, tensor: Tensor) -> int:
        return self.bindings.setdefault(tensor, len(self.bindings))

    def _place(self, vector: Strides, offset: int) -> Value:
        """Offset plus the sum of index times stride."""
        graph = self.graph
        rows = address(graph.symbol("p"), self.sizes, self.rows[vector])
        place = add(rows, address(graph.symbol("r"), self.reduced_sizes, self.columns[vector]))
        if place is None:
            return graph.const(offset, "uint32")
        return place + offset if offset else place

    def _load(self, view: View, place: Value) -> Value:
        self.read.add(view.tensor)
        return self.graph.value("load", (place.number,), view.tensor.dtype, self.binding(view.tensor))

    def build(self) -> tuple[Target, ...]:
        values: dict[int, Value] = {}
        for expression in self.expressions:
            values[id(expression)] = self._value(expression, [values[id(child)] for child in children(expression)])
        return tuple(
            Target(
                self.binding(store.view.tensor),
                store.view.tensor.dtype,
                self._place(self._strides(store.view), store.view.offset).number,
                values[id(store.value)].number,
                len(store.view.shape) == len(self.loop.shape),
            )
            for store in self.loop.stores
        )

    def _value(self, expression: Expr, arguments: list[Value]) -> Value:
        if isinstance(expression, Load):
            if expression.view == self.given:
                return self.graph.symbol("v", expression.dtype)
            return self._load(expression.view, self._place(self._strides(expression.view), expression.view.offset))
        if isinstance(expression, LoadAt):
            return self._load(expression.view, self._gather(expression.view, arguments))
        if isinstance(expression, Const):
            return self.graph.const(expression.value, expression.dtype)
        if isinstance(expression, Axis):
            return self._place(self._unit(expression.axis), 0).as_int()
        if isinstance(expression, Reduce):
            extra = (expression.kind, reduced_type(expression))
            return self.graph.value("reduce", (arguments[0].number,), expression.dtype, extra)
        found = operation(expression.name)
        found.check([argument.dtype for argument in arguments], expression.dtype)
        return found.build(*arguments, *([expression.dtype] if expression.name in TYPED else []))

    def _gather(self, view: View, index: list[Value]) -> Value:
        place: Value | None = None
        for along, stride in zip(index, view.strides, strict=True):
            if stride:
                place = add(place, multiply(along.bits(), stride))
        if place is None:
            return self.graph.const(view.offset, "uint32")
        return place + view.offset if view.offset else place


def read(loop: Loop, given: View | None = None) -> Reading:
    """A loop's graph. If the loop has no reductions, and every store has a value at each point, all
    axes are parallel.

    given: a view whose loads become the symbol "v"; then "p" counts the points in row-major order.
    """
    reader = _Reader(loop, loop.reduced, given)
    plain = not any(isinstance(e, Reduce) for e in reader.expressions)
    if loop.reduced and plain and all(len(store.view.shape) == len(loop.shape) for store in loop.stores):
        reader = _Reader(loop, 0)
    targets = reader.build()
    written = {store.view.tensor for store in loop.stores}
    access = "".join(
        ("u" if tensor in reader.read else "w") if tensor in written else "r" for tensor in reader.bindings
    )
    graph = reader.graph
    loads = sum(node.op == "load" and varies for node, varies in zip(graph.nodes, graph.varies, strict=True))
    rows, length = 1, 1
    for size in reader.sizes:
        rows *= size
    for size in reader.reduced_sizes:
        length *= size
    return Reading(graph, rows, length, targets, tuple(reader.bindings), access, reader.across(), loads)
