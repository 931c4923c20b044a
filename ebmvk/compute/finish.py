"""Loops over the results of products, computed where the products store them.

A loop joins the product whose results it reads, if each of its points needs one result and no other
node must run between the two. The loop's generated code takes the place of the store in the
product's shipped kernel. So the product isn't loaded again, and is stored only if other nodes read
it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from ebmvk.compute import expr
from ebmvk.compute.codegen import Known, Writer
from ebmvk.compute.dispatches import Dispatch
from ebmvk.compute.donate import extent, overlap, reads, writes
from ebmvk.compute.emit import Generated
from ebmvk.compute.fuse_inline import work
from ebmvk.compute.graft import Graft
from ebmvk.compute.ir import Call, DType, Expr, Finished, Load, Loop, PlanNode, Store, Tensor, View
from ebmvk.compute.matmul import PUSH, matmul
from ebmvk.compute.points import write_point
from ebmvk.compute.reading import read
from ebmvk.compute.rewrite import dense_strides, reshaped_loop, same_points
from ebmvk.compute.share import Touch, meet, touches
from ebmvk.engine.recording import Limits, shipped

RESULT = 3
"""The binding of a product's result, the last one."""
LANES = frozenset({"matmul_lanes"})
"""Products whose workgroups are full subgroups."""
JOINABLE = frozenset(PUSH) - {"matmul_join"}
MOST = 64
"""The most work of a loop at a point, in simple operations. Drivers unroll a product's stores into
up to 64 copies, so this limits the code's size and compile time."""


def finished(nodes: Sequence[PlanNode], kept: Collection[int], limits: Limits) -> list[PlanNode]:
    """The nodes with loops moved into products, in an order with the same results.

    kept: ids of tensors that are needed after the nodes. The result depends only on the arguments.
    """
    result = list(nodes)
    for node in nodes:
        if isinstance(node, Call) and node.name == "matmul" and _one_dispatch(node, limits):
            _join(result, node, kept, limits)
    return result


def _join(nodes: list[PlanNode], call: Call, kept: Collection[int], limits: Limits) -> None:
    """Joins a product with a later loop, if there is a suitable one."""
    (out,) = call.outputs
    position = next(n for n, node in enumerate(nodes) if node is call)
    readers = [n for n, node in enumerate(nodes) if any(overlap(view, out) for view, _ in reads(node))]
    for reader in (reader for reader in readers if reader > position):
        node = nodes[reader]
        loop = _over(out, node) if isinstance(node, Loop) else None
        if loop is None:
            continue
        if out.tensor.id in kept or readers != [reader]:
            loop = replace(loop, stores=(Store(out, expr.load(out)), *loop.stores))
        made = Finished(call, loop)
        if not _possible(made, limits):
            continue
        between = [touch for other in nodes[position + 1 : reader] for touch in touches(other)]
        product = Touch(out.tensor.id, *extent(out), written=True)
        own = [touch for touch in touches(loop) if touch != product]
        if not meet(own, between):
            nodes[position] = made
            del nodes[reader]
            return
        if not meet(list(touches(call)), between):
            nodes[reader] = made
            del nodes[position]
            return


def _over(out: View, loop: Loop) -> Loop | None:
    """The loop, reshaped to the shape of a product's result. None if strides can't express this, or
    if a point of the loop reads another point's result."""
    made = reshaped_loop(loop, out.shape, ()) if not loop.reduced else None
    if made is None or any(overlap(store.view, out) for store in made.stores):
        return None
    values = [store.value for store in made.stores]
    for part in expr.loads(*values):
        if overlap(part.view, out) and not (isinstance(part, Load) and same_points(part.view, out)):
            return None

    def change(value: Expr) -> Expr | None:
        return expr.load(out) if isinstance(value, Load) and overlap(value.view, out) else None

    values = expr.rewrite(values, change)
    return replace(made, stores=tuple(Store(s.view, value) for s, value in zip(made.stores, values, strict=True)))


def _possible(node: Finished, limits: Limits) -> bool:
    tensors = {view.tensor for view in (*writes(node), *_loads(node))}
    written = {view.tensor for view in writes(node)}
    return (
        work(*(store.value for store in node.loop.stores)) <= MOST
        and RESULT + len(tensors) <= limits.bindings
        and written.isdisjoint(view.tensor for view in node.call.inputs)
    )


def _loads(node: Finished) -> Iterator[View]:
    yield from (view for view, _ in reads(node.loop) if view != node.call.outputs[0])


def _one_dispatch(call: Call, limits: Limits) -> bool:
    """True if the product is one dispatch of a kernel that stores each result once."""
    steps = _steps(call, limits)
    return len(steps) == 1 and steps[0].kernel in JOINABLE


def _steps(call: Call, limits: Limits) -> list[Dispatch]:
    """The product's dispatches if its result is dense."""
    (out,) = call.outputs
    dense = View(Tensor(-1, out.shape, "float32"), out.shape, dense_strides(out.shape), 0)

    def fresh(shape: tuple[int, ...], dtype: DType) -> Tensor:
        return Tensor(-2, shape, dtype)

    planned = matmul(replace(call, outputs=(dense,)), limits, fresh)
    return [step for step in planned.steps if isinstance(step, Dispatch)]


def kernel_of(node: Finished, limits: Limits) -> tuple[Dispatch, Generated]:
    """The dispatch of the product alone, to a dense result, and the dispatch of both."""
    (step,) = _steps(node.call, limits)
    reading = read(node.loop, node.call.outputs[0])
    module = Graft(shipped(step.kernel, step.kernel in LANES), RESULT)
    buffers = [
        module.buffer(RESULT + binding, tensor.dtype, writable=access != "r")
        for binding, (tensor, access) in enumerate(zip(reading.tensors, reading.access, strict=True))
    ]
    place, product = reading.graph.symbol("p"), reading.graph.symbol("v", "float32")

    def code(index: int, value: int) -> None:
        known: Known = {place.number: index, product.number: value}
        write_point(Writer(module, reading.graph, dict(enumerate(buffers))), reading, known, {})

    spirv = module.replace(code)
    tensors = (*step.tensors[:RESULT], *reading.tensors)
    return step, Generated(spirv, "r" * RESULT + reading.access, tensors, step.push, step.groups, step.group)
