"""Computes pointwise results where they are used, in place of storing them.

A result joins its only reader. A cheap result, with at most one load, joins all of its readers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ebmvk.compute import expr
from ebmvk.compute.ir import Axis, Const, Expr, Load, LoadAt, Loop, Op, Program, Store
from ebmvk.compute.rewrite import Limits, Uses, seen_at, tensors_of, without_dead

FREE = frozenset({"cast", "neg", "abs", "where", "logical_not", "logical_and", "logical_or"})
CHEAP = 8
"""The most work that each reader may do again, in simple operations. A reader with at most
as many points as the result may do twice as much."""
SLOW = frozenset({
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "tanh", "atan", "atan2", "asin",
    "acos", "sinh", "cosh", "sigmoid", "erf", "erfc", "erfinv", "lgamma", "digamma", "pow",
})  # fmt: skip


def work(*values: Expr) -> int:
    """About how many simple operations an element takes."""
    total = 0
    for value in expr.walk(*values):
        if isinstance(value, Op):
            total += 8 if value.name in SLOW else 0 if value.name in FREE else 1
    return total


def inline(program: Program, limits: Limits) -> Program:
    """The program with pointwise results moved into their readers, as far as that pays."""
    nodes = list(program.nodes)
    uses = Uses.of(program)
    readers = {number: set(found) for number, found in uses.readers.items()}
    for position in range(len(nodes)):
        node = nodes[position]
        if not isinstance(node, Loop) or node.reduced or len(node.stores) != 1:
            continue
        store = node.stores[0]
        number = store.view.tensor.id
        if len(uses.writers[number]) != 1:
            continue
        targets = sorted(readers.get(number, ()))
        for target in _chosen(node, targets, nodes, number in uses.returned):
            moved = _moved(nodes[target], node, limits)
            if moved is None:
                continue
            nodes[target] = moved
            readers[number].discard(target)
            for part in expr.loads(store.value):
                readers.setdefault(part.view.tensor.id, set()).add(target)
    return without_dead(replace(program, nodes=nodes))


def _chosen(node: Loop, targets: list[int], nodes: Sequence[object], returned: bool) -> list[int]:
    """The readers that a result may join."""
    value = node.stores[0].value
    loops = [target for target in targets if isinstance(nodes[target], Loop)]
    found = expr.loads(value)
    cost = work(value)
    if not found and cost <= 2 * CHEAP:
        return loops
    points = max(1, math.prod(node.shape))
    alone = len(targets) == 1 and not returned
    wide = [part for part in found if isinstance(part, LoadAt) or any(part.view.strides)]
    chosen = []
    for target in loops:
        reader = nodes[target]
        assert isinstance(reader, Loop)
        again = math.prod(reader.shape) / points
        cheap = CHEAP if again > 1 else 2 * CHEAP  # storing and loading the result takes as long
        if (alone and (again <= 1 or cost <= 2 * CHEAP)) or (cost <= cheap and len(wide) <= 1):
            chosen.append(target)
    return chosen


def _moved(reader: object, node: Loop, limits: Limits) -> Loop | None:
    """The reader, changed to compute the result itself. None if strides can't express a view of the
    result's loop in the reader's shape."""
    assert isinstance(reader, Loop)
    store = node.stores[0]
    replaced: dict[int, Expr] = {}
    for part in expr.loads(*(other.value for other in reader.stores)):
        if part.view.tensor.id != store.view.tensor.id:
            continue
        found = seen_at([store.value], store.view, part.view) if isinstance(part, Load) else _gathered(store, part)
        if found is None:
            return None
        replaced[id(part)] = found[0]

    def change(value: Expr) -> Expr | None:
        return replaced.get(id(value))

    values = expr.rewrite([other.value for other in reader.stores], change)
    made = replace(reader, stores=tuple(Store(o.view, v) for o, v in zip(reader.stores, values, strict=True)))
    if len(tensors_of(made)) > max(limits.tensors, len(tensors_of(reader))):
        return None
    size = sum(1 for value in expr.walk(*values) if not isinstance(value, Const | Axis))
    return made if size <= limits.size else None


def _gathered(store: Store, part: LoadAt) -> list[Expr] | None:
    """A value at a computed index, if it is cheap and stored whole."""
    if (
        part.view != store.view
        or work(store.value) > CHEAP
        or any(isinstance(i, LoadAt) for i in expr.loads(*part.index))
    ):
        return None
    done: dict[int, Expr] = {}
    for value in expr.walk(store.value):
        if isinstance(value, Load):
            done[id(value)] = expr.load_at(value.view, part.index)
        elif isinstance(value, Axis):
            done[id(value)] = part.index[value.axis]
        else:
            done[id(value)] = expr.rebuilt(value, lambda p: done[id(p)])
    return [done[id(store.value)]]
