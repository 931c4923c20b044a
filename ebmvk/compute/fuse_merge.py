"""Joins loops: a reader with what it reads, row reductions with the loops before and after them,
and loops that read the same tensors.

Two loops can be joined if no other node must run between them, if their points are the same
(perhaps in another shape), and if each point of one reads only the same point's element of the
other.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from ebmvk.compute import expr
from ebmvk.compute.ir import WORD, Axis, Const, Expr, Load, Loop, Node, Program, Store, View
from ebmvk.compute.rewrite import (
    Limits,
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
"""A reduction with fewer rows isn't joined with a loop of many points, because its workgroups are
too few for them."""
SMALL = 1 << 14


class Merging:
    """A program's nodes while loops are joined, and the pairs that can't be.

    Each node has a number that never changes. order: the numbers, each after the nodes that it
    reads. places: the position of each number in the order. before, after: the nodes that must run
    before and after a node, with a bit for each number. readers, writers: the nodes that read and
    write each tensor, by the tensor's id.
    """

    def __init__(self, program: Program, limits: Limits) -> None:
        self.limits = limits
        self.returned = {view.tensor.id for view in program.outputs}
        self.nodes = ordered(program.nodes)
        self.order = list(range(len(self.nodes)))
        self.places = list(self.order)
        self.before, self.after = list(self.places), list(self.places)
        self.readers: dict[int, set[int]] = defaultdict(set)
        self.writers: dict[int, set[int]] = defaultdict(set)
        for number, node in enumerate(self.nodes):
            self._note(number, node)
        self._relate()
        # The nodes are kept, so that no other object gets their ids.
        self.failed: dict[tuple[int, int], tuple[Node, Node]] = {}

    def sources(self, number: int) -> set[int]:
        """The nodes that write what a node reads."""
        return {w for view in reads(self.nodes[number]) for w in self.writers[view.tensor.id]} - {number}

    def _relate(self) -> None:
        """Computes `before` and `after`."""
        for number in self.order:
            self.before[number] = self.after[number] = 0
            for source in self.sources(number):
                self.before[number] |= self.before[source] | 1 << source
        for number in reversed(self.order):
            for source in self.sources(number):
                self.after[source] |= self.after[number] | 1 << number

    def _note(self, number: int, node: Node) -> None:
        for view in reads(node):
            self.readers[view.tensor.id].add(number)
        for view in writes(node):
            self.writers[view.tensor.id].add(number)

    def has_failed(self, first: int, second: int) -> bool:
        return (id(self.nodes[first]), id(self.nodes[second])) in self.failed

    def attempt(self, first: int, second: int) -> bool:
        """Joins two nodes if possible; the joined node gets the second number."""
        if self.has_failed(first, second):
            return False
        made = self._made(first, second)
        if made is None:
            a, b = self.nodes[first], self.nodes[second]
            self.failed[id(a), id(b)] = (a, b)
            return False
        self._reorder(first, second)
        needed = (self.sources(first) | self.sources(second)) - {first, second}
        for number in (first, second):
            for view in reads(self.nodes[number]):
                self.readers[view.tensor.id].discard(number)
            for view in writes(self.nodes[number]):
                self.writers[view.tensor.id].discard(number)
        self.nodes[second] = made
        self._note(second, made)
        if self.sources(second) == needed:
            self._join_relations(first, second)
        else:  # one read a part of a block that the other writes, so now it needs no other part
            self._relate()
        return True

    def _reorder(self, first: int, second: int) -> None:
        """Moves the nodes that must run after the first node behind the second node."""
        begin, end = self.places[first], self.places[second]
        between = self.order[begin + 1 : end]
        later = [number for number in between if self.after[first] >> number & 1]
        earlier = [number for number in between if not self.after[first] >> number & 1]
        self.order[begin : end + 1] = [*earlier, second, *later]
        for place in range(begin, len(self.order)):
            self.places[self.order[place]] = place

    def _join_relations(self, first: int, second: int) -> None:
        gone, joined_bit = ~(1 << first), 1 << second
        before = (self.before[first] | self.before[second]) & gone
        after = (self.after[first] | self.after[second]) & ~joined_bit
        for number in _bits(before):
            self.after[number] = self.after[number] & gone | joined_bit | after
        for number in _bits(after):
            self.before[number] = self.before[number] & gone | joined_bit | before
        self.before[second], self.after[second] = before, after

    def _made(self, first: int, second: int) -> Loop | None:
        a, b = self.nodes[first], self.nodes[second]
        if not isinstance(a, Loop) or not isinstance(b, Loop) or self.after[first] & self.before[second]:
            return None
        made = joined(a, b, self.limits)
        if made is None:
            return None
        made = replace(made, stores=tuple(store for store in made.stores if self._needed(store, first, second)))
        most = max(self.limits.tensors, len(tensors_of(a)), len(tensors_of(b)))
        return made if len(tensors_of(made)) <= most else None

    def _needed(self, store: Store, first: int, second: int) -> bool:
        number = store.view.tensor.id
        return number in self.returned or bool(self.readers[number] - {first, second})


def _bits(mask: int) -> Iterator[int]:
    while mask:
        number = mask.bit_length() - 1
        yield number
        mask ^= 1 << number


def merge(program: Program, limits: Limits) -> Program:
    """The program with loops joined until no two of them can be joined."""
    state = Merging(program, limits)
    _join_readers(state)
    _join_siblings(state, _sharing)
    _join_siblings(state, _alike)
    return without_dead(replace(program, nodes=[state.nodes[number] for number in state.order]))


def _join_readers(state: Merging) -> None:
    place = 0
    while place < len(state.order):
        number = state.order[place]
        place = state.places[number] if _join_with_source(state, number) else place + 1


def _join_with_source(state: Merging, number: int) -> bool:
    node = state.nodes[number]
    if not isinstance(node, Loop):
        return False
    by_place = sorted(state.sources(number), key=lambda source: -state.places[source])
    return any(state.attempt(source, number) for source in by_place)


def joined(a: Loop, b: Loop, limits: Limits) -> Loop | None:
    """One loop that does the work of `a` and then `b`; None if no loop can."""
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
    """Index spaces to try for both loops; if one has reductions, its index space."""
    found = []
    for loop in (a, b):
        space = (loop.parallel, loop.shape[len(loop.parallel) :])
        if space not in found and (loop.reduced or not (a.reduced or b.reduced)):
            found.append(space)
    return found


def _fed(a: Loop, b: Loop) -> list[Store] | None:
    """The stores of `b`, which compute the results of `a` that they would load."""
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


def _join_siblings(state: Merging, groups_of: Callable[[Merging], Iterable[Iterable[int]]]) -> None:
    """Joins loops of one group that don't need each other."""
    while _join_one_pair(state, groups_of):
        pass


def _join_one_pair(state: Merging, groups_of: Callable[[Merging], Iterable[Iterable[int]]]) -> bool:
    places, order = state.places, state.order
    pairs: set[tuple[int, int]] = set()
    for members in groups_of(state):
        near = sorted(places[number] for number in members)
        pairs.update((first, second) for at, first in enumerate(near) for second in near[at + 1 : at + 9])
    numbered = (
        (order[first], order[second]) for first, second in sorted(pairs, key=lambda pair: (pair[1] - pair[0], pair))
    )
    return any(not state.before[second] >> first & 1 and state.attempt(first, second) for first, second in numbered)


def _sharing(state: Merging) -> Iterable[Iterable[int]]:
    """Groups of loops that read the same tensor of more than one element."""
    groups: dict[int, set[int]] = defaultdict(set)
    for number in state.order:
        node = state.nodes[number]
        if isinstance(node, Loop):
            for view in reads(node):
                if view.tensor.bytes > WORD:
                    groups[view.tensor.id].add(number)
    return groups.values()


def _alike(state: Merging) -> Iterable[Iterable[int]]:
    """Groups of loops over the same number of points that read little: reductions, and loops over a
    few elements. Loops that read more share a dispatch (share.py), each with its own workgroups,
    because one loop would have to keep all of their sums at once."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number in state.order:
        node = state.nodes[number]
        if isinstance(node, Loop) and (node.reduced or math.prod(node.shape) <= FEW):
            size = sum(view.tensor.bytes for view in reads(node))
            if size <= WORD * SMALL:
                groups[math.prod(node.parallel), math.prod(node.shape)].append(number)
    return groups.values()
