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
    each computes every n-th point, with n invocations. number: the workgroup's number.

    Nodes that are the same at all points are computed before conditions and loops. There a driver
    can load once for all invocations; inside it would have to load again for each point.
    """
    points = reading.rows
    writer = Writer(module, reading.graph, dict(enumerate(buffers)))
    symbol = reading.graph.add(Node("symbol", (), "uint32", "p"))
    same: Known = {}
    writer.write(_without(reading, symbol), same, {})
    uint = module.type("uint32")

    def point(index: int) -> None:
        write_point(writer, reading, {symbol: index}, same)

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


def write_point(writer: Writer, reading: Reading, known: Known, outer: Known) -> None:
    """Computes all values of a point before storing them, because a store may overwrite a loaded
    element. known: ids of the graph's symbols. outer: ids of nodes that were written before."""
    writer.write(_needed(reading), known, outer)
    for target in reading.targets:
        index, value = (known[n] if n in known else outer[n] for n in (target.index, target.value))
        writer.store(target.binding, target.dtype, index, value)


def _needed(reading: Reading) -> list[int]:
    return reading.graph.closure([n for target in reading.targets for n in (target.index, target.value)])


def _without(reading: Reading, symbol: int) -> list[int]:
    """The nodes that don't depend on a symbol."""
    depends = {symbol}
    nodes = reading.graph.nodes
    numbers = _needed(reading)
    depends.update(n for n in numbers if nodes[n].op == "symbol")
    for number in numbers:
        if depends.intersection(nodes[number].args):
            depends.add(number)
    return [number for number in numbers if number not in depends]
