"""Writes kernels without reductions: each invocation computes one point, or several in turn."""

from __future__ import annotations

from collections.abc import Sequence

from ebmvk.compute.codegen import Known, Writer
from ebmvk.compute.reading import Reading
from ebmvk.compute.spirv import LOCAL_INDEX, Module, Op
from ebmvk.compute.values import Node


def emit_points(
    module: Module, reading: Reading, group: int, groups: tuple[int, int, int], buffers: Sequence[int], number: int
) -> None:
    """The body of a kernel over `reading.rows` points. If there are fewer invocations than points,
    each computes every n-th point, with n invocations. number: the workgroup's number."""
    graph, points = reading.graph, reading.rows
    writer = Writer(module, graph, dict(enumerate(buffers)))
    symbol = graph.add(Node("symbol", (), "uint32", "p"))
    numbers = graph.closure([n for target in reading.targets for n in (target.index, target.value)])
    uint = module.type("uint32")

    def point(index: int) -> None:
        known: Known = {symbol: index}
        writer.write(numbers, known, {})
        for target in reading.targets:
            writer.store(target.binding, target.dtype, known[target.index], known[target.value])

    def body(index: int, _: list[int]) -> list[int]:
        point(index)
        return []

    local = module.emit(Op.LOAD, uint, module.built_in(LOCAL_INDEX))
    index = module.emit(Op.I_ADD, uint, module.emit(Op.I_MUL, uint, number, module.uint(group)), local)
    total = groups[0] * groups[1] * group
    if total == points:
        point(index)
    elif total > points:
        with module.when(module.emit(Op.U_LESS_THAN, module.type("bool"), index, module.uint(points))):
            point(index)
    else:
        module.loop(index, module.uint(points), module.uint(total), [], body)
