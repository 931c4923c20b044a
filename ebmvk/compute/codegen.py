"""Writes the nodes of a graph as instructions of a module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ebmvk.compute.ir import DType
from ebmvk.compute.math import graph_of
from ebmvk.compute.spirv import STORAGE_BUFFER, Module, Op
from ebmvk.compute.values import RAW, Graph, Node

Known = dict[int, int]
"""The result of each node that is written, by the node's number."""


class Writer:
    """Nodes of one graph in one module.

    buffers: the variable of each binding.
    """

    def __init__(self, module: Module, graph: Graph, buffers: Mapping[int, int]) -> None:
        self.module = module
        self.graph = graph
        self.buffers = buffers

    def write(self, numbers: Iterable[int], into: Known, outer: Known) -> None:
        """Writes, in order, the nodes that are in neither `into` nor `outer`. Adds them to `into`.
        The block where the values of `outer` were computed must dominate this one."""
        for number in numbers:
            if number not in into and number not in outer:
                node = self.graph.nodes[number]
                arguments = [into[a] if a in into else outer[a] for a in node.args]
                into[number] = self._instruction(node, arguments)

    def _instruction(self, node: Node, arguments: list[int]) -> int:
        module = self.module
        raw = RAW.get(node.op)
        if raw is not None:
            kind = module.type(node.dtype)
            if node.op == "UMulHigh":
                pair = module.emit(raw.number, module.pair(), *arguments)
                return module.emit(Op.COMPOSITE_EXTRACT, kind, pair, 1)
            if raw.kind == "extended":
                return module.extend(raw.number, kind, *arguments)
            result = module.emit(raw.number, kind, *arguments)
            if raw.exact:
                module.exact(result)
            return result
        if node.op == "const":
            return module.constant(node.dtype, node.extra)
        if node.op == "load":
            return module.load(STORAGE_BUFFER, self.buffers[node.extra], node.dtype, arguments[0])
        assert node.op == "call", node
        return module.emit(
            Op.FUNCTION_CALL, module.type("float32"), function(module, node.extra, len(arguments)), *arguments
        )

    def store(self, binding: int, dtype: DType, index: int, value: int) -> None:
        self.module.store(STORAGE_BUFFER, self.buffers[binding], dtype, index, value)


def function(module: Module, name: str, arity: int) -> int:
    """A function of math.py in a module."""
    made = module.made(name)
    if made is not None:
        return made
    graph, result = graph_of(name, arity)
    numbers = graph.closure([result])
    for number in numbers:  # the functions that this function calls come first
        node = graph.nodes[number]
        if node.op == "call":
            function(module, node.extra, len(node.args))

    def body(parameters: list[int]) -> int:
        known: Known = {}
        for number in numbers:
            node = graph.nodes[number]
            if node.op == "symbol":
                known[number] = parameters[int(node.extra)]
        Writer(module, graph, {}).write(numbers, known, {})
        return known[result]

    return module.function(name, arity, body)
