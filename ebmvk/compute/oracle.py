"""The oracle: programs run in numpy, in float64 or float32, one node after another.

It defines what a program means, and the tests of the kernels compare with it. `compare` looks for
the first node whose results on a device differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided

from ebmvk.compute import expr
from ebmvk.compute.donate import reads, writes
from ebmvk.compute.ir import (
    Axis,
    Batch,
    Call,
    Const,
    DType,
    Expr,
    Finished,
    Load,
    LoadAt,
    Loop,
    Node,
    Op,
    PlanNode,
    Program,
    Reduce,
    Tensor,
    View,
)
from ebmvk.compute.oracle_ops import MEANING, first_of
from ebmvk.engine import library
from ebmvk.errors import ArgumentError

Array = np.ndarray[Any, Any]
Values = dict[int, Array]
"""The elements of each tensor, as a flat array, by the tensor's id."""


def numpy_type(dtype: DType, floats: type[np.floating[Any]]) -> Any:
    return {"float32": floats, "int32": np.int32, "uint32": np.uint32, "bool": np.bool_}[dtype]


def seen(values: Values, view: View) -> Array:
    """The elements of a view, as a numpy view of the tensor's elements."""
    if 0 in view.shape:  # no node writes a tensor without elements
        return np.zeros(view.shape, numpy_type(view.tensor.dtype, np.float64))
    flat = values[view.tensor.id]
    strides = tuple(stride * flat.itemsize for stride in view.strides)
    return as_strided(flat[view.offset :], view.shape, strides)


def run(
    program: Program, leaves: Sequence[Array], floats: type[np.floating[Any]] = np.float64, keep: Values | None = None
) -> list[Array]:
    """The outputs of a program, by position.

    Args:
        leaves: an array for each of `program.leaves`, of the leaf's shape.
        floats: np.float64 or np.float32, the type of all arithmetic on floats.
        keep: receives the elements of all tensors, by id.
    """
    values: Values = {} if keep is None else keep
    values.update(start(program, leaves, floats))
    for node in program.nodes:
        run_node(node, values, floats)
    return [np.array(seen(values, view)) for view in program.outputs]


def start(program: Program, leaves: Sequence[Array], floats: type[np.floating[Any]]) -> Values:
    """The values before the first node runs: inputs and constants."""
    if len(leaves) != len(program.leaves):
        raise ArgumentError(
            f"the program takes {len(program.leaves)} arrays, got {len(leaves)}", hint="Pass one array for each leaf."
        )
    values: Values = {}
    for tensor in program.inputs:
        values[tensor.id] = empty(tensor, floats)
    for view, leaf in zip(program.leaves, leaves, strict=True):
        if tuple(leaf.shape) != view.shape:
            raise ArgumentError(
                f"a leaf has shape {leaf.shape}, not {view.shape}",
                hint="Pass arrays of the shapes with which the program was made.",
            )
        seen(values, view)[...] = leaf
    for tensor, data in program.constants.items():
        values[tensor.id] = np.asarray(data).astype(numpy_type(tensor.dtype, floats)).reshape(-1)
    return values


def empty(tensor: Tensor, floats: type[np.floating[Any]]) -> Array:
    """The elements of a tensor that nothing has written yet: NaN, so that a read is noticed."""
    made = np.zeros(tensor.bytes // 4, numpy_type(tensor.dtype, floats))
    if tensor.dtype == "float32":
        made.fill(np.nan)
    elif tensor.dtype != "bool":
        made.fill(2**30 + 1)
    return made


def written(node: PlanNode) -> list[View]:
    """The views that a node fills."""
    return list(writes(node))


def read(node: PlanNode) -> list[View]:
    """The views that a node reads."""
    return [view for view, _ in reads(node)]


def run_node(node: PlanNode, values: Values, floats: type[np.floating[Any]]) -> None:
    if isinstance(node, Batch):
        for loop in node.loops:
            run_node(loop, values, floats)
        return
    if isinstance(node, Finished):
        run_node(node.call, values, floats)
        run_node(node.loop, values, floats)
        return
    for view in written(node):
        if view.tensor.id not in values:
            values[view.tensor.id] = empty(view.tensor, floats)
    with np.errstate(all="ignore"):
        if isinstance(node, Call):
            inputs = [seen(values, view) for view in node.inputs]
            results = CALLS[node.name](inputs, node) if node.name in CALLS else _own(inputs, node)
        else:
            results = _run_loop(node, values, floats)
    for view, result in zip(written(node), results, strict=True):
        seen(values, view)[...] = result


def _run_loop(loop: Loop, values: Values, floats: type[np.floating[Any]]) -> list[Array]:
    done: dict[int, Array] = {}
    for value in expr.walk(*(store.value for store in loop.stores)):
        done[id(value)] = _evaluate(value, loop, values, done, floats)
    results = []
    for store in loop.stores:
        result = done[id(store.value)]
        if loop.reduced and len(store.view.shape) == len(loop.parallel):
            # The value doesn't change along the reduced axes, so any of their points will do. It
            # isn't spread over these axes, because they may have no points (a sum of nothing).
            least = (*loop.parallel, *(1,) * loop.reduced)
            spread = np.broadcast_to(result, np.broadcast_shapes(np.shape(result), least))
            result = spread.reshape((*loop.parallel, -1))[..., 0]
        results.append(np.array(np.broadcast_to(result, store.view.shape)))
    return results


def _evaluate(value: Expr, loop: Loop, values: Values, done: dict[int, Array], floats: type[np.floating[Any]]) -> Array:
    """The value at all points; axes along which it doesn't change may have size 1."""
    if isinstance(value, Const):
        return np.asarray(value.value, numpy_type(value.dtype, floats))
    if isinstance(value, Axis):
        shape = [1] * len(loop.shape)
        shape[value.axis] = loop.shape[value.axis]
        return np.arange(loop.shape[value.axis], dtype=np.int32).reshape(shape)
    if isinstance(value, Load):
        return _thin(seen(values, value.view), value.view, len(loop.shape))
    if isinstance(value, LoadAt):
        index = np.broadcast_arrays(*(done[id(part)] for part in value.index)) if value.index else []
        return np.asarray(seen(values, value.view)[tuple(index)])
    if isinstance(value, Op):
        args = [done[id(arg)] for arg in value.args]
        return _apply(value, args, numpy_type(value.dtype, floats))
    return _reduce(value, done[id(value.of)], loop, floats)


def _thin(array: Array, view: View, rank: int) -> Array:
    """The array with size 1 along repeated axes, and with as many axes as the loop."""
    cut = tuple(
        slice(0, 1) if stride == 0 and size else slice(None)
        for stride, size in zip(view.strides, view.shape, strict=True)
    )
    thin = array[cut]
    return thin.reshape((*thin.shape, *(1 for _ in range(rank - array.ndim))))


def _apply(value: Op, args: list[Array], target: Any) -> Array:
    if value.name == "cast":
        (source,) = args
        if target is np.bool_:
            return np.asarray(source != 0)
        if source.dtype.kind == "f" and target in {np.int32, np.uint32}:
            source = np.nan_to_num(np.trunc(source), nan=0.0, posinf=0.0, neginf=0.0).astype(np.int64)
        return source.astype(target)
    if value.name == "bitcast":
        word = {"float32": np.float32, "int32": np.int32, "uint32": np.uint32}[value.dtype]
        four = args[0].astype(np.float32) if args[0].dtype.kind == "f" else args[0]
        return np.ascontiguousarray(four).view(word).astype(target)
    return np.asarray(MEANING[value.name](*args)).astype(target, copy=False)


def _reduce(value: Reduce, array: Array, loop: Loop, floats: type[np.floating[Any]]) -> Array:
    axes = tuple(range(len(loop.parallel), len(loop.shape)))
    shape = list(array.shape) if array.ndim else [1] * len(loop.shape)
    shape[len(loop.parallel) :] = loop.shape[len(loop.parallel) :]
    full = np.broadcast_to(array, shape)
    target = numpy_type(value.dtype, floats)
    kept = (*shape[: len(loop.parallel)], *(1 for _ in axes))
    if value.kind in {"argmax", "argmin"}:
        return first_of(full, loop.reduced, largest=value.kind == "argmax").astype(target).reshape(kept)
    functions: dict[str, Callable[..., Any]] = {
        "sum": np.sum, "prod": np.prod, "max": np.max, "min": np.min, "any": np.any, "all": np.all,
    }  # fmt: skip
    extra = {"dtype": target} if value.kind in {"sum", "prod"} and target is not np.bool_ else {}
    if 0 in full.shape and value.kind in {"max", "min"}:
        return np.zeros(kept, target)
    return np.asarray(functions[value.kind](full, axis=axes, **extra)).astype(target, copy=False).reshape(kept)


# ------------------------------------------------------------------------------------------ calls


def _constant(node: Call, name: str, default: float) -> float:
    return dict(node.constants).get(name, default)


def _matmul(inputs: list[Array], node: Call) -> list[Array]:
    product = np.matmul(inputs[0], inputs[1])
    alpha, beta = _constant(node, "alpha", 1), _constant(node, "beta", 1)
    if alpha != 1:
        product = product * product.dtype.type(alpha)
    if len(inputs) == 3 and beta != 0:
        product = product + (inputs[2] if beta == 1 else inputs[2] * product.dtype.type(beta))
    return [product]


def _index_add(inputs: list[Array], node: Call) -> list[Array]:
    rows, index = inputs
    sums = np.zeros(node.outputs[0].shape, rows.dtype)
    kept = index >= 0
    np.add.at(sums, index[kept], rows[kept])
    return [sums]


def _scan_sum(inputs: list[Array], node: Call) -> list[Array]:
    del node
    return [np.cumsum(inputs[0], axis=-1, dtype=inputs[0].dtype)]


def _sort(inputs: list[Array], node: Call) -> list[Array]:
    """A stable sort: ties go to the lower position. NaN counts as the largest."""
    (values,) = inputs
    if _constant(node, "descending", False):
        reverse = np.argsort(values[..., ::-1], axis=-1, kind="stable")[..., ::-1]
        order = values.shape[-1] - 1 - reverse
    else:
        order = np.argsort(values, axis=-1, kind="stable")
    return [np.take_along_axis(values, order, -1), order.astype(np.int32)]


def _topk(inputs: list[Array], node: Call) -> list[Array]:
    largest = bool(_constant(node, "largest", True))
    values, order = _sort(inputs, Call("sort", node.inputs, node.outputs, (("descending", largest),)))
    count = node.outputs[0].shape[-1]
    return [values[..., :count], order[..., :count]]


def _own(inputs: list[Array], node: Call) -> list[Array]:
    """The reference of an operation of torch.library that is a kernel."""
    found = next(operation for operation, kernel in library.KERNELS.items() if kernel == node.name)
    results = library.reference_of(found)(*(torch.from_numpy(np.array(array)) for array in inputs))
    return [part.numpy() for part in (results if isinstance(results, tuple | list) else [results])]


CALLS: dict[str, Callable[[list[Array], Call], list[Array]]] = {
    "matmul": _matmul,
    "index_add": _index_add,
    "scan_sum": _scan_sum,
    "sort": _sort,
    "topk": _topk,
}


# --------------------------------------------------------------------------------------- bisection


@dataclass(frozen=True)
class Difference:
    """The first node of a program whose results differ from the oracle's."""

    position: int
    node: Node
    tensor: Tensor
    origin: str
    where: tuple[int, ...]
    got: float
    expected: float

    def __str__(self) -> str:
        kind = self.node.name if isinstance(self.node, Call) else f"a loop over {self.node.shape}"
        return (
            f"node {self.position} ({kind}; {self.origin}): element {self.where} of tensor {self.tensor.id} "
            f"{self.tensor.shape} is {self.got!r}, expected {self.expected!r}"
        )


def compare(
    program: Program,
    run: Callable[[Program, Sequence[Array]], Mapping[int, Array]],
    leaves: Sequence[Array],
    tolerance: float = 1e-4,
) -> Difference | None:
    """The first node whose results differ from the oracle's, or None.

    Each node is computed in float64 from the inputs that it had on the device. So an error counts
    only at the node that makes it.

    Args:
        run: runs the program and returns the elements of all its tensors, flat, by id.
        tolerance: largest error allowed, relative to the largest finite expected value of a view.
    """
    device = run(program, leaves)
    for position, node in enumerate(program.nodes):
        values: Values = {}
        for view in (*read(node), *written(node)):
            array = np.asarray(device[view.tensor.id]).reshape(-1)
            values[view.tensor.id] = array.astype(numpy_type(view.tensor.dtype, np.float64))
        got = [np.array(seen(values, view)) for view in written(node)]
        run_node(node, values, np.float64)
        for view, found in zip(written(node), got, strict=True):
            worst = _worst(found, np.array(seen(values, view)), tolerance)
            if worst is not None:
                origin = program.origins.get(view.tensor.id, "origin unknown")
                return Difference(position, node, view.tensor, origin, *worst)
    return None


def _worst(got: Array, expected: Array, tolerance: float) -> tuple[tuple[int, ...], float, float] | None:
    if not got.size:
        return None
    a, b = got.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        scale = max(np.max(np.abs(b[np.isfinite(b)]), initial=0.0), 1e-30)
        error = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b) / scale)
    error = np.where(np.isnan(error), np.inf, error)
    at = np.unravel_index(int(np.argmax(error)), error.shape)
    if error[at] <= tolerance:
        return None
    return tuple(int(i) for i in at), float(a[at]), float(b[at])
