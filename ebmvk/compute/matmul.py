"""Divides a matrix product into dispatches: chooses the tile and the number of parts of the sums.

The result is alpha a b + beta c for each matrix of a batch, with any strides. matmul_tiles.py
chooses the kernel and its tile. A small result with long sums would keep few workgroups busy, so
its sums are cut into parts of equal length. The parts are added in order. A loop, which can share a
dispatch with other loops (`parted`), adds a few parts; `matmul_join` adds more. All of this depends
only on the shapes and the device's limits, so equal calls give equal bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING

from ebmvk.compute import expr
from ebmvk.compute.dispatches import Axes, Dispatch, Fresh, Planned, packed, spread
from ebmvk.compute.ir import WORD, Call, Loop, Store, Tensor, View
from ebmvk.compute.matmul_tiles import Tile, chosen
from ebmvk.compute.rewrite import dense_strides

if TYPE_CHECKING:
    from ebmvk.engine.recording import Limits

BATCH = ("batch_0", "batch_1", "batch_2")
PLACE = (
    *("rows", "columns", "inner", "part", "batch_1", "batch_2"),
    *("a_offset", "a_row", "a_inner", *(f"a_{axis}" for axis in BATCH)),
    *("b_offset", "b_inner", "b_column", *(f"b_{axis}" for axis in BATCH)),
)
END = (
    *("c_offset", "c_row", "c_column", *(f"c_{axis}" for axis in BATCH)),
    *("result_offset", "result_row", "result_column", *(f"result_{axis}" for axis in BATCH)),
    *("alpha", "beta"),
)
PUSH = {
    "matmul_tiled": (*PLACE, *END),
    "matmul_lanes": (*PLACE, *END),
    "matmul_direct": (*PLACE, *END),
    "matmul_join": ("count", "parts", "rows", "columns", "batch_1", "batch_2", *END),
}
"""The push constants of each kernel, in the order of shaders/kernels.toml."""

JOIN_GROUP = 64
LOOPED = 8
"""A loop adds up at most this many parts."""


@dataclass(frozen=True)
class Product:
    """Sizes of a call after its axes are merged, with the operands' strides."""

    rows: int
    columns: int
    inner: int
    batch: Axes  # of a, b, c and result
    a: tuple[int, int]  # strides along rows and the inner axis
    b: tuple[int, int]  # along the inner axis and columns
    c: tuple[int, int] | None
    result: tuple[int, int]


def matmul(call: Call, limits: Limits, fresh: Fresh) -> Planned:
    """The result is alpha a b + beta c, summed in float32 with fused multiply-adds.

    Inputs: a (..., m, k), b (..., k, n) and, if it is added, c (..., m, n). Output: (..., m, n),
    whose elements don't overlap. All have the same leading axes; a stride of 0 repeats. Constants:
    alpha and beta, both 1 unless given. k = 0 gives beta c, or zeros.
    """
    return Planned(tuple(_steps(call, limits, fresh)))


def _steps(call: Call, limits: Limits, fresh: Fresh) -> Iterator[Dispatch]:
    product = _product(call)
    if 0 in (product.rows, product.columns, product.batch.count):
        return
    scale = {name: float(dict(call.constants).get(name, 1.0)) for name in ("alpha", "beta")}
    a, b = (view.tensor for view in call.inputs[:2])
    c = call.inputs[2].tensor if product.c else None
    result = call.outputs[0].tensor
    tensors = (a, b, c or a, result)
    for batch in product.batch.parts(3, limits.groups_yz):
        piece = _Piece(product, batch.padded(3), scale, tensors, limits)
        if product.inner == 0:
            yield piece.join(a, 0)
            continue
        tile, parts = chosen(product.rows, product.columns, product.inner, batch.count, limits)
        if parts == 1:
            yield piece.product(tile)
        else:
            partial = fresh((parts, batch.count, product.rows, product.columns), "float32")
            yield piece.partial(tile, parts, partial)
            yield piece.join(partial, parts)


def parted(call: Call, limits: Limits, fresh: Fresh) -> tuple[Call, Loop] | None:
    """A call that computes parts of a product's sums, and the loop that adds the parts up. None if
    there is one part, or if the product takes several dispatches."""
    result = call.outputs[0]
    whole = View(result.tensor, result.shape, dense_strides(result.shape), 0)
    parts = _parts(Call("matmul", call.inputs[:2], (whole,)), limits)
    if not 1 < parts <= LOOPED:
        return None
    partial = fresh((parts, *result.shape), "float32")
    size = math.prod(result.shape)
    of_parts = [expr.load(replace(whole, tensor=partial, offset=number * size)) for number in range(parts)]
    value = reduce(lambda a, b: expr.op("add", a, b), of_parts)
    scale = {name: expr.const(float(dict(call.constants).get(name, 1.0)), "float32") for name in ("alpha", "beta")}
    value = expr.op("mul", value, scale["alpha"])
    if len(call.inputs) > 2:
        value = expr.op("add", value, expr.op("mul", expr.load(call.inputs[2]), scale["beta"]))
    return Call("matmul_parts", call.inputs[:2], (partial.view(),)), Loop(result.shape, 0, (Store(result, value),))


def matmul_parts(call: Call, limits: Limits, _: Fresh) -> Planned:
    """Parts of the sums of a product, as `parted` divides them.

    Inputs: a (..., m, k), b (..., k, n). Output: (parts, ..., m, n), dense.
    """
    out = call.outputs[0]
    first = View(out.tensor, out.shape[1:], out.strides[1:], out.offset)
    product = _product(replace(call, outputs=(first,)))
    (batch,) = product.batch.parts(3, limits.groups_yz)
    tile, parts = chosen(product.rows, product.columns, product.inner, batch.count, limits)
    a, b = (view.tensor for view in call.inputs)
    piece = _Piece(product, batch.padded(3), {"alpha": 1.0, "beta": 0.0}, (a, b, a, out.tensor), limits)
    return Planned((piece.partial(tile, parts, out.tensor),))


def _parts(call: Call, limits: Limits) -> int:
    """The number of parts of the sums; 1 if the call takes several dispatches anyway, or none."""
    product = _product(call)
    batches = list(product.batch.parts(3, limits.groups_yz))
    if len(batches) != 1 or 0 in (product.rows, product.columns, product.inner, product.batch.count):
        return 1
    return chosen(product.rows, product.columns, product.inner, product.batch.count, limits)[1]


def _product(call: Call) -> Product:
    views: dict[str, View] = dict(zip(("a", "b", "c"), call.inputs, strict=False)) | {"result": call.outputs[0]}
    (rows, inner), columns = views["a"].shape[-2:], views["b"].shape[-1]
    ends = {name: view.strides[-2:] for name, view in views.items()}
    batch = Axes.of(views, 2).merged()
    # Batches that share b are rows of one product.
    lines = [name for name in views if name != "b"]
    while batch.sizes and batch.strides["b"][-1] == 0:
        if any(batch.strides[name][-1] != rows * ends[name][0] for name in lines) and rows != 1:
            break
        if rows == 1:
            ends |= {name: (batch.strides[name][-1], ends[name][1]) for name in lines}
        rows *= batch.sizes.pop()
        for mine in batch.strides.values():
            mine.pop()
    c = (ends["c"][0], ends["c"][1]) if "c" in ends else None
    a, b, result = ((ends[name][0], ends[name][1]) for name in ("a", "b", "result"))
    return Product(rows, columns, inner, batch, a, b, c, result)


@dataclass(frozen=True)
class _Piece:
    """The part of a call that one dispatch can do."""

    whole: Product
    batch: Axes
    scale: dict[str, float]
    tensors: tuple[Tensor, ...]  # a, b, c and result
    limits: Limits

    @property
    def added(self) -> bool:
        return self.whole.c is not None and self.scale["beta"] != 0

    def product(self, tile: Tile) -> Dispatch:
        return self._tiles(tile, 1, self.tensors, self._ends(), self.added)

    def partial(self, tile: Tile, parts: int, partial: Tensor) -> Dispatch:
        """The dispatch that computes the parts of the sums, each part dense."""
        rows, columns = self.whole.rows, self.whole.columns
        _, middle, last = self.batch.sizes
        matrix = rows * columns
        strides = (matrix * last * middle, matrix * last, matrix)
        ends = self._ends() | _named("result", 0, {"row": columns, "column": 1}, strides)
        return self._tiles(tile, parts, (*self.tensors[:3], partial), ends | {"alpha": 1.0, "beta": 0.0}, False)

    def join(self, partial: Tensor, parts: int) -> Dispatch:
        count = self.batch.count * self.whole.rows * self.whole.columns
        values = {"count": count, "parts": parts, **self._sizes(), **self._ends()}
        return Dispatch(
            "matmul_join",
            JOIN_GROUP,
            (int(self.added),),
            (partial, *self.tensors[2:]),
            packed(PUSH["matmul_join"], values),
            spread(-(-count // JOIN_GROUP), self.limits.groups),
            float(count * (parts + 2)),
            WORD * count * (parts + 1 + self.added),
        )

    def _tiles(
        self, tile: Tile, parts: int, tensors: tuple[Tensor, ...], ends: dict[str, int | float], added: bool
    ) -> Dispatch:
        whole, count = self.whole, self.batch.count
        rows, columns, inner = whole.rows, whole.columns, whole.inner
        values = self._sizes() | ends | {"inner": inner, "part": -(-inner // parts)}
        for name, strides in (
            ("a", {"row": whole.a[0], "inner": whole.a[1]}),
            ("b", {"inner": whole.b[0], "column": whole.b[1]}),
        ):
            values |= _named(name, self.batch.offsets[name], strides, tuple(self.batch.strides[name]))
        down, across = -(-rows // tile.size[0]), -(-columns // tile.size[1])
        constants = tile.constants((rows, *whole.a), (columns, whole.b[1], whole.b[0]), added)
        moved = count * (rows * inner + inner * columns + rows * columns * (parts + added))
        return Dispatch(
            tile.kernel,
            tile.group,
            constants,
            tensors,
            packed(PUSH[tile.kernel], values),
            (down * across, parts, count),
            2.0 * count * rows * columns * inner,
            WORD * moved,
        )

    def _sizes(self) -> dict[str, int | float]:
        _, middle, last = self.batch.sizes
        return {"rows": self.whole.rows, "columns": self.whole.columns, "batch_1": middle, "batch_2": last}

    def _ends(self) -> dict[str, int | float]:
        values: dict[str, int | float] = dict(self.scale)
        for name, strides in (("c", self.whole.c), ("result", self.whole.result)):
            if strides:
                named = {"row": strides[0], "column": strides[1]}
                values |= _named(name, self.batch.offsets[name], named, tuple(self.batch.strides[name]))
            else:
                values |= _named(name, 0, {"row": 0, "column": 0}, (0, 0, 0))
        return values


def _named(name: str, offset: int, strides: dict[str, int], batch: tuple[int, ...]) -> dict[str, int]:
    named = {"offset": offset, **strides, **dict(zip(BATCH, batch, strict=True))}
    return {f"{name}_{key}": value for key, value in named.items()}
