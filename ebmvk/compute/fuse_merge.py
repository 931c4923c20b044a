"""Loops that become one: a reader joins what it reads, row reductions with what comes before and
after them, and loops that read the same tensors.

Two loops can be one if no other node must run between them, if their points are the same (perhaps
in another shape), and if what one reads of the other is the element of the same point.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

from ebmvk.compute import expr
from ebmvk.compute.ir import Axis, Const, Expr, Load, Loop, Node, Program, Store, View
from ebmvk.compute.rewrite import (
    Limits,
    ancestors,
    full_rank,
    ordered,
    reads,
    reshaped_loop,
    same_points,
    tensors_of,
    without_dead,
    writes,
)  # fmt: skip

FEW = 32
"""A reduction with fewer rows takes in no loop that has many points: its workgroups are too few."""
SMALL = 1 << 14


class Merging:
    """A program's nodes while loops are joined, and the pairs that can't be."""

    def __init__(self, program: Program, limits: Limits) -> None:
        self.limits = limits
        self.returned = {view.tensor.id for view in program.outputs}
        self.nodes = ordered(program.nodes)
        self.before = ancestors(self.nodes)
        # The nodes are kept, so that no other object gets their ids.
        self.failed: dict[tuple[int, int], tuple[Node, Node]] = {}

    def attempt(self, first: int, second: int) -> int | None:
        """Joins two nodes if they can be; the position of the joined one."""
        a, b = self.nodes[first], self.nodes[second]
        key = (id(a), id(b))
        if key in self.failed:
            return None
        made = self._made(first, second)
        if made is None:
            self.failed[key] = (a, b)
            return None
        nodes = self.nodes
        self.nodes = ordered([*nodes[:first], *nodes[first + 1 : second], made, *nodes[second + 1 :]])
        self.before = ancestors(self.nodes)
        return next(position for position, node in enumerate(self.nodes) if node is made)

    def _made(self, first: int, second: int) -> Loop | None:
        a, b = self.nodes[first], self.nodes[second]
        if not isinstance(a, Loop) or not isinstance(b, Loop) or _between(self.before, first, second):
            return None
        made = joined(a, b, self.limits)
        if made is None:
            return None
        made = self._without_unused(first, second, made)
        most = max(self.limits.tensors, len(tensors_of(a)), len(tensors_of(b)))
        return made if len(tensors_of(made)) <= most else None

    def _without_unused(self, first: int, second: int, made: Loop) -> Loop:
        needed = set(self.returned)
        for position, node in enumerate(self.nodes):
            if position not in {first, second}:
                needed.update(view.tensor.id for view in reads(node))
        return replace(made, stores=tuple(store for store in made.stores if store.view.tensor.id in needed))


def merge(program: Program, limits: Limits) -> Program:
    """The program with loops joined until no two of them can be."""
    state = Merging(program, limits)
    _join_readers(state)
    _join_siblings(state, _sharing)
    _join_siblings(state, _alike)
    return without_dead(replace(program, nodes=state.nodes))


def _join_readers(state: Merging) -> None:
    position = 0
    while position < len(state.nodes):
        joined_at = _join_with_source(state, position)
        position = position + 1 if joined_at is None else joined_at


def _join_with_source(state: Merging, position: int) -> int | None:
    node = state.nodes[position]
    if not isinstance(node, Loop):
        return None
    writers = _writers(state.nodes)
    sources = {w for view in reads(node) for w in writers.get(view.tensor.id, ())} - {position}
    for source in sorted(sources, reverse=True):
        found = state.attempt(source, position)
        if found is not None:
            return found
    return None


def _writers(nodes: list[Node]) -> dict[int, list[int]]:
    writers: dict[int, list[int]] = defaultdict(list)
    for position, node in enumerate(nodes):
        for view in writes(node):
            writers[view.tensor.id].append(position)
    return writers


def _between(before: list[int], first: int, second: int) -> bool:
    """True if some node must run after the first and before the second."""
    middle = before[second] & ~(1 << first)
    while middle:
        position = middle.bit_length() - 1
        if position < first:
            return False
        if before[position] >> first & 1:
            return True
        middle &= ~(1 << position)
    return False


def joined(a: Loop, b: Loop, limits: Limits) -> Loop | None:
    """One loop that does what `a` and then `b` do; None if no loop can."""
    for parallel, reduced in _spaces(a, b):
        rows, terms = math.prod(parallel), math.prod(reduced)
        if reduced and rows < FEW and rows * terms > SMALL and not (a.reduced and b.reduced):
            continue
        first = reshaped_loop(full_rank(a), parallel, reduced)
        second = reshaped_loop(full_rank(b), parallel, reduced)
        if first is None or second is None:
            continue
        values = _fed(first, second)
        if values is None:
            continue
        made = Loop((*parallel, *reduced), len(reduced), (*first.stores, *values))
        size = sum(1 for v in expr.walk(*(s.value for s in made.stores)) if not isinstance(v, Const | Axis))
        if size <= limits.size:
            return made
    return None


def _spaces(a: Loop, b: Loop) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Index spaces for both: that of a reduction if there is one."""
    found = []
    for loop in (a, b):
        space = (loop.parallel, loop.shape[len(loop.parallel) :])
        if space not in found and (loop.reduced or not (a.reduced or b.reduced)):
            found.append(space)
    return found


def _fed(a: Loop, b: Loop) -> list[Store] | None:
    """The stores of `b` with what it reads of `a`'s results computed in place of loaded."""
    made: dict[int, list[Store]] = defaultdict(list)
    for store in a.stores:
        made[store.view.tensor.id].append(store)
    replaced: dict[int, Expr] = {}
    for part in expr.loads(*(store.value for store in b.stores)):
        stores = made.get(part.view.tensor.id)
        if stores is None:
            continue
        value = _value_at(stores, part, a) if isinstance(part, Load) else None
        if value is None:
            return None
        replaced[id(part)] = value
    if any(view.tensor.id in {s.view.tensor.id for s in b.stores} for view in reads(a)):
        return None
    values = expr.rewrite([store.value for store in b.stores], lambda value: replaced.get(id(value)))
    return [Store(store.view, value) for store, value in zip(b.stores, values, strict=True)]


def _value_at(stores: list[Store], part: Load, a: Loop) -> Expr | None:
    for store in stores:
        view = store.view
        if len(view.shape) != len(part.view.shape):
            view = View(view.tensor, a.shape, (*view.strides, *(0,) * a.reduced), view.offset)
        if same_points(view, part.view):
            return store.value
    return None


# ----------------------------------------------------------------------------------------- siblings


def _join_siblings(state: Merging, groups_of: Callable[[Merging], dict[object, list[int]]]) -> None:
    """Joins loops of one group that don't need each other."""
    while _join_one_pair(state, groups_of):
        pass


def _join_one_pair(state: Merging, groups_of: Callable[[Merging], dict[object, list[int]]]) -> bool:
    pairs = {}
    for members in groups_of(state).values():
        unique = sorted(set(members))
        for at, first in enumerate(unique):
            for second in unique[at + 1 : at + 9]:
                pairs[first, second] = True
    for first, second in sorted(pairs, key=lambda pair: (pair[1] - pair[0], pair)):
        if not state.before[second] >> first & 1 and state.attempt(first, second) is not None:
            return True
    return False


def _sharing(state: Merging) -> dict[object, list[int]]:
    """Loops that read the same tensor, of more than one element."""
    groups: dict[object, list[int]] = defaultdict(list)
    for position, node in enumerate(state.nodes):
        if isinstance(node, Loop):
            for view in reads(node):
                if math.prod(view.tensor.shape) > 1:
                    groups[view.tensor.id].append(position)
    return groups


def _alike(state: Merging) -> dict[object, list[int]]:
    """Small loops over equally many points: reductions, and those of a few elements."""
    groups: dict[object, list[int]] = defaultdict(list)
    for position, node in enumerate(state.nodes):
        if isinstance(node, Loop) and (node.reduced or math.prod(node.shape) <= FEW):
            size = sum(view.tensor.bytes for view in reads(node))
            if size <= state.limits.apart // 4:
                groups[math.prod(node.parallel), math.prod(node.shape)].append(position)
    return groups
