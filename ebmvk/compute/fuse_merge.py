"""Loops that become one: a reader joins what it reads, row reductions with what comes before and
after them, and loops that read the same tensors.

Two loops can be one if no other node must run between them, if their points are the same (perhaps
in another shape), and if what one reads of the other is the element of the same point.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace

from ebmvk.compute import expr
from ebmvk.compute.ir import Axis, Const, Expr, Load, LoadAt, Loop, Node, Program, Store, View
from ebmvk.compute.rewrite import (
    Limits, ancestors, full_rank, ordered, reads, reshaped_loop, same_points, tensors_of, without_dead, writes,
)  # fmt: skip

FEW = 32
"""A reduction with fewer rows takes in no loop that has many points: its workgroups are too few."""
SMALL = 1 << 14


def merge(program: Program, limits: Limits) -> Program:
    """The program with loops joined until no two of them can be."""
    nodes = ordered(program.nodes)
    nodes = _joined_readers(program, nodes, limits)
    nodes = _joined_siblings(program, nodes, limits, shared=True)
    nodes = _joined_siblings(program, nodes, limits, shared=False)
    return without_dead(replace(program, nodes=nodes))


def _joined_readers(program: Program, nodes: list[Node], limits: Limits) -> list[Node]:
    position = 0
    while position < len(nodes):
        joined = _join_with_source(program, nodes, position, limits)
        if joined is None:
            position += 1
        else:
            nodes, position = joined
    return nodes


def _join_with_source(
    program: Program, nodes: list[Node], position: int, limits: Limits
) -> tuple[list[Node], int] | None:
    node = nodes[position]
    if not isinstance(node, Loop):
        return None
    writers = _writers(nodes)
    sources = sorted({w for view in reads(node) for w in writers.get(view.tensor.id, ())} - {position}, reverse=True)
    if not any(isinstance(nodes[source], Loop) for source in sources):
        return None
    before = ancestors(nodes)
    for source in sources:
        joined = _attempt(program, nodes, before, source, position, limits)
        if joined is not None:
            return joined
    return None


def _writers(nodes: list[Node]) -> dict[int, list[int]]:
    writers: dict[int, list[int]] = defaultdict(list)
    for position, node in enumerate(nodes):
        for view in writes(node):
            writers[view.tensor.id].append(position)
    return writers


def _attempt(
    program: Program, nodes: list[Node], before: list[int], first: int, second: int, limits: Limits
) -> tuple[list[Node], int] | None:
    """The nodes with two of them joined, and where the joined one is."""
    a, b = nodes[first], nodes[second]
    if not isinstance(a, Loop) or not isinstance(b, Loop) or _between(before, first, second):
        return None
    made = joined(a, b, limits)
    if made is None:
        return None
    made = _without_unused(program, nodes, first, second, made)
    if len(tensors_of(made)) > max(limits.tensors, len(tensors_of(a)), len(tensors_of(b))):
        return None
    rest = [*nodes[:first], *nodes[first + 1 : second], made, *nodes[second + 1 :]]
    rest = ordered(rest)
    return rest, next(position for position, node in enumerate(rest) if node is made)


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


def _without_unused(program: Program, nodes: list[Node], first: int, second: int, made: Loop) -> Loop:
    needed = {view.tensor.id for view in program.outputs}
    for position, node in enumerate(nodes):
        if position not in {first, second}:
            needed.update(view.tensor.id for view in reads(node))
    return replace(made, stores=tuple(store for store in made.stores if store.view.tensor.id in needed))


def joined(a: Loop, b: Loop, limits: Limits) -> Loop | None:
    """One loop that does what `a` and then `b` do; None if there is none."""
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


def _joined_siblings(program: Program, nodes: list[Node], limits: Limits, *, shared: bool) -> list[Node]:
    """Loops joined that don't read each other: those that read a tensor of some size in common, or
    (not shared) small ones over the same points, to save dispatches."""
    while True:
        before = ancestors(nodes)
        for first, second in _pairs(nodes, shared=shared):
            if before[second] >> first & 1:
                continue
            made = _attempt(program, nodes, before, first, second, limits)
            if made is not None:
                nodes = made[0]
                break
        else:
            return nodes


def _pairs(nodes: list[Node], *, shared: bool) -> list[tuple[int, int]]:
    groups: dict[object, list[int]] = defaultdict(list)
    for position, node in enumerate(nodes):
        if not isinstance(node, Loop):
            continue
        if shared:
            for part in expr.loads(*(store.value for store in node.stores)):
                if isinstance(part, LoadAt) or math.prod(part.view.tensor.shape) > 1:
                    groups[part.view.tensor.id].append(position)
        elif node.reduced:
            groups[math.prod(node.parallel), math.prod(node.shape)].append(position)
    pairs = {}
    for members in groups.values():
        unique = sorted(set(members))
        for at, first in enumerate(unique):
            for second in unique[at + 1 : at + 9]:
                pairs[first, second] = True
    return sorted(pairs, key=lambda pair: (pair[1] - pair[0], pair))


