"""The invocations of a workgroup: where each works, and how they combine their results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

from ebmvk.compute import reductions
from ebmvk.compute.codegen import Known, Writer
from ebmvk.compute.ir import DType
from ebmvk.compute.reductions import Reduction
from ebmvk.compute.spirv import INPUT, LOCAL_INDEX, WORKGROUP, WORKGROUP_ID, Module, Op
from ebmvk.compute.tiling import Tile, below
from ebmvk.compute.values import Graph

FAN = 16
"""At most this many partial results are combined in one step."""

Ids = tuple[int, ...]


def group_number(module: Module, groups: tuple[int, int, int]) -> int:
    """The workgroup's number among all workgroups of the dispatch."""
    uint = module.type("uint32")
    pointer = module.pointer(INPUT, uint)
    variable = module.built_in(WORKGROUP_ID)

    def part(axis: int) -> int:
        return module.emit(Op.LOAD, uint, module.emit(Op.ACCESS_CHAIN, pointer, variable, module.uint(axis)))

    if groups[1] == 1:
        return part(0)
    return module.emit(Op.I_ADD, uint, module.emit(Op.I_MUL, uint, part(1), module.uint(groups[0])), part(0))


def inline(module: Module, graph: Graph, results: Sequence[int], named: dict[str, int]) -> Ids:
    """Writes the results of another graph. named: the ids of its symbols."""
    known: Known = {}
    numbers = graph.closure(list(results))
    for number in numbers:
        node = graph.nodes[number]
        if node.op == "symbol":
            known[number] = named[node.extra]
    Writer(module, graph, {}).write(numbers, known, {})
    return tuple(known[number] for number in results)


@cache
def _finish(kind: str, dtype: DType, parts: tuple[DType, ...]) -> tuple[Graph, int]:
    graph = Graph()
    values = tuple(graph.symbol(f"a{k}", part) for k, part in enumerate(parts))
    return graph, reductions.result(kind, dtype, values).number


class Workgroup:
    """local: the invocation's number. x: the row of the workgroup that the invocation works on. y:
    the invocation's number in this row."""

    def __init__(self, module: Module, tile: Tile) -> None:
        self.module, self.tile = module, tile
        self.uint = module.type("uint32")
        self.local = module.emit(Op.LOAD, self.uint, module.built_in(LOCAL_INDEX))
        self.x, self.y = self._xy()
        self._arrays: dict[tuple[int, int, int, int], int] = {}
        self._stage = 0

    def op(self, number: int, a: int, b: int) -> int:
        """An instruction on two uint32."""
        return self.module.emit(number, self.uint, a, b)

    def add(self, a: int, number: int) -> int:
        return self.op(Op.I_ADD, a, self.module.uint(number)) if number else a

    def scaled(self, a: int, number: int) -> int:
        return self.op(Op.I_MUL, a, self.module.uint(number)) if number != 1 else a

    def _xy(self) -> tuple[int, int]:
        tile, zero = self.tile, self.module.uint(0)
        inner = tile.across if tile.rows_first else tile.along
        if inner == 1:
            fast, slow = zero, self.local
        elif inner == tile.group:
            fast, slow = self.local, zero
        else:
            fast = self.op(Op.BITWISE_AND, self.local, self.module.uint(inner - 1))
            slow = self.op(Op.SHIFT_RIGHT, self.local, self.module.uint(inner.bit_length() - 1))
        return (fast, slow) if tile.rows_first else (slow, fast)

    # ------------------------------------------------------------------------- partial results

    def identity(self, reduction: Reduction) -> Ids:
        pairs = zip(reduction.parts, reduction.identity, strict=True)
        return tuple(self.module.constant(dtype, bits) for dtype, bits in pairs)

    def combine(self, reduction: Reduction, a: Ids, b: Ids) -> Ids:
        named = {f"a{k}": value for k, value in enumerate(a)} | {f"b{k}": value for k, value in enumerate(b)}
        graph, results = reduction.combine
        return inline(self.module, graph, results, named)

    def pairwise(self, reduction: Reduction, terms: list[Ids]) -> Ids:
        """All terms combined into one, neighbours first."""
        while len(terms) > 1:
            pairs = zip(terms[::2], terms[1::2], strict=False)
            terms = [self.combine(reduction, a, b) for a, b in pairs] + terms[len(terms) & ~1 :]
        return terms[0]

    def finish(self, kind: str, dtype: DType, parts: Ids, reduction: Reduction) -> int:
        """The value of a reduction."""
        graph, result = _finish(kind, dtype, reduction.parts)
        return inline(self.module, graph, [result], {f"a{k}": value for k, value in enumerate(parts)})[0]

    # --------------------------------------------------------------------------- the whole row

    def add_up(self, reduces: Sequence[Reduction], parts: Sequence[Ids]) -> list[Ids]:
        """For each reduction, the result of a row, from its invocations' partial results. All of
        them get the result. If more than FAN share a row, this takes two steps of equal length."""
        along = self.tile.along
        if along == 1:
            return list(parts)
        few = along if along <= FAN else below(math.isqrt(along))
        self._put(0, reduces, parts, self.local)
        if few < along:
            with self.module.when(
                self.module.emit(Op.U_LESS_THAN, self.module.type("bool"), self.y, self.module.uint(few))
            ):
                some = [self._collect(0, k, r, along // few, few, self.y) for k, r in enumerate(reduces)]
                self._put(1, reduces, some, self._place(self.y, few), barrier=False)
            self.module.barrier()
        level = int(few < along)
        results = [self._collect(level, k, r, few, 1, self.module.uint(0)) for k, r in enumerate(reduces)]
        self._stage += 1
        return results

    def _place(self, y: int, along: int) -> int:
        """The index in a shared array that has `along` values for each row."""
        tile = self.tile
        if tile.across == 1:
            return y
        if tile.rows_first:
            return self.op(Op.I_ADD, self.scaled(y, tile.across), self.x)
        return self.op(Op.I_ADD, self.scaled(self.x, along), y)

    def _array(self, level: int, k: int, part: int) -> int:
        """A shared array. Two sets of arrays take turns, because invocations may still read one set
        when the next stage writes."""
        key = (self._stage % 2, level, k, part)
        array = self._arrays.get(key)
        if array is None:
            length = self.tile.group if level == 0 else self.tile.across * below(math.isqrt(self.tile.along))
            array = self._arrays[key] = self.module.shared("uint32", length)
        return array

    def _put(
        self, level: int, reduces: Sequence[Reduction], parts: Sequence[Ids], place: int, *, barrier: bool = True
    ) -> None:
        module = self.module
        for k, (reduction, values) in enumerate(zip(reduces, parts, strict=True)):
            for part, (dtype, value) in enumerate(zip(reduction.parts, values, strict=True)):
                word = value if dtype in {"uint32", "bool"} else module.emit(Op.BITCAST, self.uint, value)
                stored: DType = "bool" if dtype == "bool" else "uint32"
                module.store(WORKGROUP, self._array(level, k, part), stored, place, word)
        if barrier:
            module.barrier()

    def _collect(self, level: int, k: int, reduction: Reduction, count: int, step: int, first: int) -> Ids:
        """The result of `count` values of this row, from `first` on, in steps of `step`."""
        terms = []
        for n in range(count):
            place = self._place(self.add(first, n * step), count * step)
            terms.append(tuple(self._get(level, k, part, dtype, place) for part, dtype in enumerate(reduction.parts)))
        return self.pairwise(reduction, terms)

    def _get(self, level: int, k: int, part: int, dtype: DType, place: int) -> int:
        stored: DType = "bool" if dtype == "bool" else "uint32"
        word = self.module.load(WORKGROUP, self._array(level, k, part), stored, place)
        return word if dtype in {"uint32", "bool"} else self.module.emit(Op.BITCAST, self.module.type(dtype), word)
