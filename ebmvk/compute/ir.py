"""The program between torch and the kernels: dense tensors, strided views of them, and nodes.

A node reads views and writes views. Almost all nodes are loops: they compute expressions, which may
contain reductions, at each point of an index space. Everything else (products, sums by index,
sorts) is a `Call` of a kernel by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

DType = Literal["float32", "int32", "uint32", "bool"]
"""Types on the device, 4 bytes each. torch's int64 is int32 here; a bool is a word of 0 or 1."""
WORD = 4


@dataclass(frozen=True)
class Tensor:
    """Dense rows of a program, row-major. `id` is unique in its program."""

    id: int
    shape: tuple[int, ...]
    dtype: DType

    @property
    def bytes(self) -> int:
        return WORD * math.prod(self.shape)

    def view(self) -> View:
        """The whole tensor as a view."""
        strides: list[int] = []
        step = 1
        for size in reversed(self.shape):
            strides.append(step)
            step *= size
        return View(self, self.shape, tuple(reversed(strides)), 0)


@dataclass(frozen=True)
class View:
    """Elements of a tensor, as in torch.as_strided: strides and offset are in elements. A stride of
    0 repeats elements."""

    tensor: Tensor
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @property
    def dense(self) -> bool:
        """True if the elements lie one after another in row-major order."""
        step = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != step:
                return False
            step *= size
        return True


# ----------------------------------------------------------------------------------- expressions


class _Once:
    """The hash of an expression, computed once. Otherwise a shared subexpression would be hashed
    again at each of its uses."""

    def __hash__(self) -> int:
        known = self.__dict__.get("_hash")
        if known is None:
            values = tuple(getattr(self, name) for name in self.__dataclass_fields__)  # type: ignore[attr-defined]
            known = hash((type(self).__name__, values))
            self.__dict__["_hash"] = known
        return int(known)


@dataclass(frozen=True)
class Load(_Once):
    """The element of a view at the loop's index. The view has the loop's shape. If it doesn't
    change along the reduced axes, it may have the shape of the parallel axes."""

    __hash__ = _Once.__hash__

    view: View

    @property
    def dtype(self) -> DType:
        return self.view.tensor.dtype


@dataclass(frozen=True)
class LoadAt(_Once):
    """The element of a view at a computed index, which is one int32 expression for each axis of the
    view. Each must lie in range."""

    __hash__ = _Once.__hash__

    view: View
    index: tuple[Expr, ...]

    @property
    def dtype(self) -> DType:
        return self.view.tensor.dtype


@dataclass(frozen=True)
class Const(_Once):
    """A number, as a float, an int or a bool."""

    __hash__ = _Once.__hash__

    value: float | int | bool
    dtype: DType


@dataclass(frozen=True)
class Axis(_Once):
    """The loop's index along an axis, an int32."""

    __hash__ = _Once.__hash__

    axis: int
    dtype: DType = "int32"


@dataclass(frozen=True)
class Op(_Once):
    """A function of expressions, by a name of `ops.OPS`."""

    __hash__ = _Once.__hash__

    name: str
    args: tuple[Expr, ...]
    dtype: DType


@dataclass(frozen=True)
class Reduce(_Once):
    """A reduction over the loop's reduced axes. The result is the same at all of their points."""

    __hash__ = _Once.__hash__

    kind: Literal["sum", "prod", "max", "min", "any", "all", "argmax", "argmin"]
    of: Expr
    dtype: DType


Expr = Load | LoadAt | Const | Axis | Op | Reduce


# ----------------------------------------------------------------------------------------- nodes


@dataclass(frozen=True)
class Store:
    """An expression and the view that it fills. The view has the loop's shape, or the shape of its
    parallel axes if the expression doesn't change along the reduced axes."""

    view: View
    value: Expr


@dataclass(frozen=True)
class Loop:
    """Computes its stores at each point of `shape`, whose last `reduced` axes are those that
    `Reduce` runs over."""

    shape: tuple[int, ...]
    reduced: int
    stores: tuple[Store, ...]

    def __repr__(self) -> str:
        """A text without the expressions. They share parts, so their whole text could be huge."""
        return f"Loop(shape={self.shape}, reduced={self.reduced}, {len(self.stores)} stores)"

    @property
    def parallel(self) -> tuple[int, ...]:
        return self.shape[: len(self.shape) - self.reduced]


@dataclass(frozen=True)
class Call:
    """A kernel by name (`kernels.KERNELS`), with views in and out and constants."""

    name: str
    inputs: tuple[View, ...]
    outputs: tuple[View, ...]
    constants: tuple[tuple[str, int | float | bool], ...] = ()


Node = Loop | Call


@dataclass(frozen=True)
class Batch:
    """Independent loops in one dispatch. Only plans have batches."""

    loops: tuple[Loop, ...]


@dataclass(frozen=True)
class Finished:
    """A product and a loop over its results, in one dispatch: the loop runs where the product would
    store. Only plans have these nodes.

    loop: has the shape of the call's result, and no reductions. If it loads from the view that the
    call fills, it gets the product itself. The product is stored only if the loop stores it.
    """

    call: Call
    loop: Loop


PlanNode = Loop | Call | Batch | Finished


@dataclass
class Program:
    """Nodes in order. Tensors that are neither inputs nor constants live in the arena.

    inputs: written by the host before each run, or donated state. constants: values that never
    change, uploaded once. outputs: what the step returns, by position; a view, because a result
    may be a view of an input.

    leaves: the arguments of the step, by position: dense views of `inputs`. Several arguments may
    share an input, each at an offset of its own. donated: position of an output -> position of the
    leaf that it replaces in the next run. origins: id of a tensor -> the operation that made it and
    the line of the step that called it. placed: positions of leaves whose place another program has
    fixed, so that they can't become parts of a block here.
    """

    inputs: list[Tensor] = field(default_factory=list)
    constants: dict[Tensor, object] = field(default_factory=dict)  # numpy arrays
    nodes: list[Node] = field(default_factory=list)
    outputs: list[View] = field(default_factory=list)
    leaves: list[View] = field(default_factory=list)
    donated: dict[int, int] = field(default_factory=dict)
    origins: dict[int, str] = field(default_factory=dict)
    placed: frozenset[int] = frozenset()
