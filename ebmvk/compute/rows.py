"""Writes kernels with reductions. In each stage, invocations walk along the rows; then the
workgroup combines their partial results. The last walk stores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from ebmvk.compute import reductions
from ebmvk.compute.codegen import Known, Writer
from ebmvk.compute.reading import Reading, Target
from ebmvk.compute.reductions import Reduction
from ebmvk.compute.spirv import Module, Op
from ebmvk.compute.tiling import Tile
from ebmvk.compute.values import Node, Value
from ebmvk.compute.workgroup import Ids, Workgroup

KEPT = 16
"""If an invocation has at most this many elements, they stay in registers between the stages."""
KEPT_LOADS = 48
UNROLL = 4


@dataclass(frozen=True)
class Part:
    """The part of each row that a workgroup works on, if several share a row.

    chunks: the number of workgroups that share a row. size: the elements of each part but the last.
    """

    chunks: int
    size: int


@dataclass(frozen=True)
class Slot:
    """An element of a row that an invocation works on. valid: if the element may lie beyond the
    row's end, the id of a bool that says whether it lies in the row; else None. An index beyond the
    end is clamped."""

    known: Known
    valid: int | None


@dataclass(frozen=True)
class Accumulator:
    """A reduction in a stage. enter: the nodes of an element's contribution, one for each part."""

    node: int
    reduction: Reduction
    enter: Ids


class RowKernel:
    """Writes one kernel.

    number: the workgroup's number among `groups`.
    part: given if several workgroups share a row. Each then stores to its own block of results.
    """

    def __init__(
        self,
        module: Module,
        reading: Reading,
        tile: Tile,
        groups: tuple[int, int, int],
        buffers: Sequence[int],
        part: Part | None,
        number: int,
    ) -> None:
        self.module, self.reading, self.tile, self.graph = module, reading, tile, reading.graph
        self.writer = Writer(module, self.graph, dict(enumerate(buffers)))
        self.bool = module.type("bool")
        self.row: Known = {}
        self._kept: list[Slot] | None = None
        self.part = part
        self.end = part.size if part else reading.length
        self.uneven = part is not None and reading.length % part.size != 0
        self.workgroup = Workgroup(module, tile)
        self._place(groups, number)

    def _place(self, groups: tuple[int, int, int], group: int) -> None:
        """Finds this invocation's row, clamped to the last row, and the part's first element."""
        module, work, rows = self.module, self.workgroup, self.reading.rows
        if self.part:
            blocks = module.uint(-(-rows // self.tile.across))
            chunk, group = work.op(Op.U_DIV, group, blocks), work.op(Op.U_MOD, group, blocks)
            self.first = work.scaled(chunk, self.part.size)
            self.block = work.scaled(chunk, rows)
        row = work.scaled(group, self.tile.across)
        row = row if self.tile.across == 1 else work.op(Op.I_ADD, row, work.x)
        self.row_valid: int | None = None
        if rows % self.tile.across or groups[1] > 1:
            last = module.uint(rows - 1)
            self.row_valid = module.emit(Op.U_LESS_THAN_EQUAL, self.bool, row, last)
            row = module.extend(38, work.uint, row, last)
        self.row[self._symbol("p")] = row

    def _symbol(self, name: str) -> int:
        return self.graph.add(Node("symbol", (), "uint32", name))

    # -------------------------------------------------------------------------------- slots

    def _slot(self, place: int, *, checked: bool) -> Slot:
        """The element at a place of this part of the row. checked: it may lie beyond the end."""
        module, work = self.module, self.workgroup
        index = work.op(Op.I_ADD, place, self.first) if self.part else place
        bounds = [(place, self.end)] if checked else []
        bounds += [(index, self.reading.length)] if self.uneven else []
        valid: int | None = None
        for value, bound in bounds:
            test = module.emit(Op.U_LESS_THAN, self.bool, value, module.uint(bound))
            valid = test if valid is None else module.emit(Op.LOGICAL_AND, self.bool, valid, test)
        if valid is not None:
            index = module.extend(38, work.uint, index, module.uint(self.reading.length - 1))
        return Slot({self._symbol("r"): index}, valid)

    def _straight(self, first: int, count: int) -> list[Slot]:
        """The elements of the rounds from `first` on."""
        along, work = self.tile.along, self.workgroup
        return [
            self._slot(work.add(work.y, k * along), checked=(k + 1) * along > self.end)
            for k in range(first, first + count)
        ]

    @property
    def rounds(self) -> int:
        return -(-self.end // self.tile.along)

    @property
    def looped(self) -> int:
        """The number of rounds that run in a loop; the others are written out."""
        if self.rounds <= KEPT and self.rounds * max(self.reading.loads, 1) <= KEPT_LOADS:
            return 0
        return self.end // self.tile.along // UNROLL * UNROLL

    def _rest(self) -> list[Slot]:
        """The elements after the loop's. Without a loop, they are kept for the next stages."""
        if self.looped:
            return self._straight(self.looped, self.rounds - self.looped)
        if self._kept is None:
            self._kept = self._straight(0, self.rounds)
        return self._kept

    def _loop(
        self, carried: Sequence[tuple[int, int]], body: Callable[[list[Slot], list[int]], list[int]]
    ) -> list[int]:
        """Writes the loop, with UNROLL rounds in each iteration."""
        module, work, along = self.module, self.workgroup, self.tile.along
        if not self.looped:
            return [first for _, first in carried]

        def inside(counter: int, values: list[int]) -> list[int]:
            base = work.op(Op.I_ADD, counter, work.y)
            slots = [self._slot(work.add(base, k * along), checked=False) for k in range(UNROLL)]
            return body(slots, values)

        end = module.uint(self.looped * along)
        return module.loop(module.uint(0), end, module.uint(UNROLL * along), carried, inside)

    # ------------------------------------------------------------------------------- stages

    def _prepare(self, roots: Sequence[int]) -> list[int]:
        """Writes the nodes that don't change along the row, and returns those that do."""
        numbers = self.graph.closure(list(roots))
        varies = self.graph.varies
        self.writer.write([n for n in numbers if not varies[n]], self.row, {})
        return [n for n in numbers if varies[n]]

    def stage(self, reduces: Sequence[int]) -> None:
        """Computes reductions whose elements are known."""
        accumulators = [self._accumulator(number) for number in reduces]
        varying = self._prepare([n for a in accumulators for n in a.enter])
        carried = [
            (self.module.type(dtype), value)
            for a in accumulators
            for dtype, value in zip(a.reduction.parts, self.workgroup.identity(a.reduction), strict=True)
        ]
        sums = self._loop(carried, lambda slots, values: self._gather(accumulators, varying, slots, values))
        sums = self._gather(accumulators, varying, self._rest(), sums)
        parts = _by_accumulator(accumulators, sums)
        results = self.workgroup.add_up([a.reduction for a in accumulators], parts)
        for a, result in zip(accumulators, results, strict=True):
            node = self.graph.nodes[a.node]
            self.row[a.node] = self.workgroup.finish(node.extra[0], node.dtype, result, a.reduction)

    def _accumulator(self, number: int) -> Accumulator:
        node = self.graph.nodes[number]
        found = reductions.reduction(*node.extra)
        of = Value(self.graph, node.args[0], self.graph.nodes[node.args[0]].dtype)
        parts = found.enter(of, Value(self.graph, self._symbol("r"), "uint32"))
        return Accumulator(number, found, tuple(part.number for part in parts))

    def _gather(
        self, accumulators: Sequence[Accumulator], varying: Sequence[int], slots: Sequence[Slot], before: list[int]
    ) -> list[int]:
        """The sums so far, plus the sums of more elements, which are first added to one another."""
        for slot in slots:
            self.writer.write(varying, slot.known, self.row)
        sums: list[int] = []
        for a, first in zip(accumulators, _by_accumulator(accumulators, before), strict=True):
            terms = [self._element(a, slot) for slot in slots]
            total = self.workgroup.pairwise(a.reduction, terms) if terms else first
            if terms and self.looped:
                total = self.workgroup.combine(a.reduction, first, total)
            sums += total
        return sums

    def _element(self, a: Accumulator, slot: Slot) -> Ids:
        values = tuple(slot.known[n] if n in slot.known else self.row[n] for n in a.enter)
        if slot.valid is None:
            return values
        others = self.workgroup.identity(a.reduction)
        return tuple(
            self.module.emit(Op.SELECT, self.module.type(dtype), slot.valid, value, other)
            for dtype, value, other in zip(a.reduction.parts, values, others, strict=True)
        )

    # ------------------------------------------------------------------------------- stores

    def store(self, targets: Sequence[Target]) -> None:
        """Writes the stores. All values of a point are computed before its first store, because a
        store may overwrite an element that is still to be loaded."""
        whole = [target for target in targets if target.whole]
        single = [target for target in targets if not target.whole]
        varying = self._prepare([n for target in whole for n in (target.index, target.value)])
        self._prepare([n for target in single for n in (target.index, target.value)])
        if whole:
            self._loop([], lambda slots, _: self._store_slots(whole, varying, slots))
            self._store_slots(whole, varying, self._rest())
        if single:
            first = None
            if self.tile.along > 1:
                first = self.module.emit(Op.I_EQUAL, self.bool, self.workgroup.y, self.module.uint(0))
            with self._when(first, self.row_valid):
                for target in single:
                    self._put(target, self.row)

    def _store_slots(self, targets: Sequence[Target], varying: Sequence[int], slots: Sequence[Slot]) -> list[int]:
        for slot in slots:
            self.writer.write(varying, slot.known, self.row)
        for slot in slots:
            with self._when(slot.valid, self.row_valid):
                for target in targets:
                    self._put(target, slot.known)
        return []

    def _when(self, *conditions: int | None) -> AbstractContextManager[None]:
        given = [condition for condition in conditions if condition is not None]
        if not given:
            return nullcontext()
        test = given[0] if len(given) == 1 else self.module.emit(Op.LOGICAL_AND, self.bool, *given)
        return self.module.when(test)

    def _put(self, target: Target, known: Known) -> None:
        index, value = (known[n] if n in known else self.row[n] for n in (target.index, target.value))
        if self.part:
            index = self.workgroup.op(128, index, self.block)
        self.writer.store(target.binding, target.dtype, index, value)


def _by_accumulator(accumulators: Sequence[Accumulator], flat: Sequence[int]) -> list[Ids]:
    """A list of the parts of all reductions, divided into a list for each reduction."""
    rest = list(flat)
    divided = []
    for a in accumulators:
        count = len(a.reduction.parts)
        divided.append(tuple(rest[:count]))
        rest = rest[count:]
    return divided


def needed_stages(reading: Reading) -> list[list[int]]:
    """The reductions that the stores need, by stage."""
    graph = reading.graph
    todo = [n for target in reading.targets for n in (target.index, target.value)]
    found: set[int] = set()
    while todo:
        reduces = {n for n in graph.closure(todo) if graph.nodes[n].op == "reduce"} - found
        found |= reduces
        todo = [graph.nodes[n].args[0] for n in reduces]
    stages: dict[int, list[int]] = {}
    for number in sorted(found):
        stages.setdefault(graph.stage[number], []).append(number)
    return [stages[stage] for stage in sorted(stages)]


def emit_rows(kernel: RowKernel, reading: Reading) -> None:
    """Writes the whole body of the kernel: one stage after another, then the stores."""
    for reduces in needed_stages(reading):
        kernel.stage(reduces)
    kernel.store(reading.targets)
