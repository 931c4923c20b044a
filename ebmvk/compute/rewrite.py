"""Functions that the passes over programs share: which nodes read and write a tensor, dead and
duplicate nodes, the order of nodes, and loops at the points of another loop."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from ebmvk.compute import expr, views
from ebmvk.compute.ir import Axis, Call, Expr, Load, LoadAt, Loop, Node, Program, Store, Tensor, View


@dataclass(frozen=True)
class Limits:
    """How large fused nodes may become.

    tensors: the most tensors that one loop reads or writes. size: the most different operations in
    a loop's expressions. block: the most words in a block of tensors that one loop updates.
    strided: True if products may write views that aren't dense.
    """

    tensors: int = 16
    size: int = 400
    block: int = 1 << 25
    strided: bool = True


def reads(node: Node) -> list[View]:
    """The views that a node reads."""
    if isinstance(node, Call):
        return list(node.inputs)
    known: list[View] | None = node.__dict__.get("_reads")
    if known is None:  # cached, because it is needed often and walks over all expressions
        known = [part.view for part in expr.loads(*(store.value for store in node.stores))]
        node.__dict__["_reads"] = known
    return known


def writes(node: Node) -> list[View]:
    """The views that a node fills."""
    return list(node.outputs) if isinstance(node, Call) else [store.view for store in node.stores]


def tensors_of(node: Node) -> set[Tensor]:
    return {view.tensor for view in (*reads(node), *writes(node))}


def _ids(node: Node) -> tuple[frozenset[int], frozenset[int]]:
    """The ids of the tensors that a node reads and writes. Cached, because the nodes are ordered
    again after each change."""
    known: tuple[frozenset[int], frozenset[int]] | None = node.__dict__.get("_ids")
    if known is None:
        known = tuple(frozenset(view.tensor.id for view in of(node)) for of in (reads, writes))  # type: ignore[assignment]
        node.__dict__["_ids"] = known
    assert known is not None
    return known


@dataclass
class Uses:
    """For each tensor (by id) the positions of the nodes that read and write it, and whether the
    program returns it."""

    readers: dict[int, list[int]]
    writers: dict[int, list[int]]
    returned: set[int]

    @staticmethod
    def of(program: Program) -> Uses:
        readers: dict[int, list[int]] = defaultdict(list)
        writers: dict[int, list[int]] = defaultdict(list)
        for position, node in enumerate(program.nodes):
            for number in dict.fromkeys(view.tensor.id for view in reads(node)):
                readers[number].append(position)
            for number in dict.fromkeys(view.tensor.id for view in writes(node)):
                writers[number].append(position)
        return Uses(readers, writers, {view.tensor.id for view in program.outputs})


def without_dead(program: Program) -> Program:
    """The program without stores and nodes that no output needs, and without unused constants."""
    needed = {view.tensor.id for view in program.outputs}
    kept: list[Node] = []
    for node in reversed(program.nodes):
        if isinstance(node, Loop):
            stores = tuple(store for store in node.stores if store.view.tensor.id in needed)
            if not stores:
                continue
            alive: Node = node if len(stores) == len(node.stores) else replace(node, stores=stores)
        elif any(view.tensor.id in needed for view in node.outputs):
            alive = node
        else:
            continue
        kept.append(alive)
        needed.update(view.tensor.id for view in reads(alive))
    constants = {tensor: data for tensor, data in program.constants.items() if tensor.id in needed}
    return replace(program, nodes=kept[::-1], constants=constants)


def without_copies_of_equals(program: Program) -> Program:
    """Keeps only the first of several nodes that compute the same values, each into new tensors."""
    known: dict[tuple[object, ...], tuple[View, ...]] = {}
    instead: dict[int, View] = {}
    nodes: list[Node] = []
    returned = {view.tensor.id for view in program.outputs}
    counts: dict[int, int] = defaultdict(int)
    for node in program.nodes:
        for view in writes(node):
            counts[view.tensor.id] += 1
    for old in program.nodes:
        node = substituted(old, instead)
        made = tuple(writes(node))
        alone = all(view == view.tensor.view() and counts[view.tensor.id] == 1 for view in made)
        if not alone or any(view.tensor.id in returned for view in made):
            nodes.append(node)
            continue
        if isinstance(node, Loop):
            key: tuple[object, ...] = ("loop", node.shape, node.reduced, *(id(store.value) for store in node.stores))
        else:
            key = ("call", node.name, node.inputs, node.constants, tuple(view.shape for view in made))
        if key in known:
            instead.update({mine.tensor.id: first for mine, first in zip(made, known[key], strict=True)})
        else:
            known[key] = made
            nodes.append(node)
    return replace(program, nodes=nodes)


def substituted(node: Node, instead: dict[int, View]) -> Node:
    """The node, changed to read other dense tensors of the same shape. instead: id of a tensor ->
    the whole view of the other tensor."""
    if not any(view.tensor.id in instead for view in reads(node)):
        return node

    def other(view: View) -> View:
        whole = instead.get(view.tensor.id)
        return view if whole is None else View(whole.tensor, view.shape, view.strides, view.offset + whole.offset)

    return with_views(node, other, lambda view: view)


def with_views(node: Node, read: Callable[[View], View], write: Callable[[View], View]) -> Node:
    """The node with its views replaced."""
    if isinstance(node, Call):
        return replace(
            node, inputs=tuple(read(view) for view in node.inputs), outputs=tuple(write(view) for view in node.outputs)
        )
    done: dict[int, Expr] = {}
    for value in expr.walk(*(store.value for store in node.stores)):
        if isinstance(value, Load):
            done[id(value)] = expr.load(read(value.view))
        elif isinstance(value, LoadAt):
            done[id(value)] = expr.load_at(read(value.view), [done[id(part)] for part in value.index])
        else:
            done[id(value)] = expr.rebuilt(value, lambda part: done[id(part)])
    stores = tuple(Store(write(store.view), done[id(store.value)]) for store in node.stores)
    return replace(node, stores=stores)


def ordered(nodes: Sequence[Node]) -> list[Node]:
    """The nodes, reordered only as needed so that each comes after the nodes that it reads from."""
    after: list[list[int]] = [[] for _ in nodes]
    waits = [0] * len(nodes)
    for first, others in _edges(nodes):
        after[first].extend(others)
        for other in others:
            waits[other] += 1
    ready = [position for position, count in enumerate(waits) if count == 0]
    heapq.heapify(ready)
    result: list[Node] = []
    while ready:
        position = heapq.heappop(ready)
        result.append(nodes[position])
        for other in after[position]:
            waits[other] -= 1
            if waits[other] == 0:
                heapq.heappush(ready, other)
    assert len(result) == len(nodes), "a cycle"
    return result


def _edges(nodes: Sequence[Node]) -> Iterable[tuple[int, list[int]]]:
    writers: dict[int, list[int]] = defaultdict(list)
    for position, node in enumerate(nodes):
        for number in _ids(node)[1]:
            writers[number].append(position)
    found: dict[int, set[int]] = defaultdict(set)
    for position, node in enumerate(nodes):
        for number in _ids(node)[0]:
            for writer in writers.get(number, ()):
                if writer != position:
                    found[writer].add(position)
    return [(first, sorted(others)) for first, others in found.items()]


# ------------------------------------------------------------------------------- other index spaces


def dense_strides(shape: Sequence[int]) -> tuple[int, ...]:
    return Tensor(-1, tuple(shape), "float32").view().strides


def seen_at(values: Sequence[Expr], store: View, load: View) -> list[Expr] | None:
    """Values of a loop without reductions, at the points whose results `load` reads after the loop
    has stored them through `store`. None if an index isn't linear there."""
    steps: list[views.Steps] | None = None
    done: dict[int, Expr] = {}
    for value in expr.walk(*values):
        if isinstance(value, Load):
            moved = views.restrided(store, load, value.view)
            if moved is None:
                return None
            done[id(value)] = expr.load(moved)
        elif isinstance(value, Axis):
            if store.shape[value.axis] == 1:
                done[id(value)] = expr.const(0, "int32")
                continue
            steps = steps or views.located(store.shape, store.strides, store.offset, load)
            if steps is None:
                return None
            done[id(value)] = _linear(steps[value.axis])
        else:
            done[id(value)] = expr.rebuilt(value, lambda part: done[id(part)])
    return [done[id(value)] for value in values]


def _linear(steps: views.Steps) -> Expr:
    total: Expr = expr.const(steps.start, "int32")
    for axis, by in enumerate(steps.by):
        if by:
            total = expr.op("add", total, expr.op("mul", expr.axis(axis), expr.const(by, "int32")))
    return total


def full_rank(loop: Loop) -> Loop:
    """The loop with all of its loads widened to all axes, with stride 0 along the reduced axes."""
    if not loop.reduced:
        return loop
    rank = len(loop.shape)

    def widened(view: View) -> View:
        if len(view.shape) == rank:
            return view
        return View(view.tensor, loop.shape, (*view.strides, *(0,) * loop.reduced), view.offset)

    values = expr.rewrite(
        [store.value for store in loop.stores],
        lambda value: expr.load(widened(value.view)) if isinstance(value, Load) else None,
    )
    stores = tuple(Store(store.view, value) for store, value in zip(loop.stores, values, strict=True))
    return replace(loop, stores=stores)


def reshaped_loop(loop: Loop, parallel: tuple[int, ...], reduced: tuple[int, ...]) -> Loop | None:
    """The loop over points of another shape, in the same row-major order. None if strides can't
    express one of its views in that shape.

    A loop without reductions may get reduced axes. If it has as many points as both groups of axes
    together, its last axes become the reduced axes. If it has only as many points as the parallel
    axes, its values stay the same along the reduced axes.
    """
    shape = (*parallel, *reduced)
    own_parallel, own_reduced = math.prod(loop.parallel), math.prod(loop.shape[len(loop.parallel) :])
    if loop.reduced:
        if (own_parallel, own_reduced) != (math.prod(parallel), math.prod(reduced)) or not reduced:
            return None
        narrow = False
    elif own_parallel == math.prod(shape):
        narrow = False
    elif own_parallel == math.prod(parallel):
        narrow = True
    else:
        return None
    # Stores of a reduction may have the parallel axes only, so these must be the same too.
    if loop.shape == shape and not narrow and (not loop.reduced or loop.parallel == parallel):
        return replace(loop, reduced=len(reduced))
    target = parallel if narrow else shape
    store = View(Tensor(-1, loop.shape, "float32"), loop.shape, dense_strides(loop.shape), 0)
    load = View(store.tensor, target, dense_strides(target), 0)
    values = seen_at([part.value for part in loop.stores], store, load)
    if values is None:
        return None
    if narrow and reduced:
        values = expr.rewrite(values, lambda value: _widened(value, shape, len(reduced)))
    stores = []
    for part, value in zip(loop.stores, values, strict=True):
        view = _reshaped_store(part.view, loop, parallel, shape, narrow=narrow)
        if view is None:
            return None
        stores.append(Store(view, value))
    return Loop(shape, len(reduced), tuple(stores))


def _widened(value: Expr, shape: tuple[int, ...], reduced: int) -> Expr | None:
    if isinstance(value, Load):
        view = value.view
        return expr.load(View(view.tensor, shape, (*view.strides, *(0,) * reduced), view.offset))
    return None


def _reshaped_store(
    view: View, loop: Loop, parallel: tuple[int, ...], shape: tuple[int, ...], *, narrow: bool
) -> View | None:
    small = loop.reduced and len(view.shape) == len(loop.parallel)
    target = parallel if small or narrow else shape
    source = loop.parallel if small else loop.shape
    store = View(Tensor(-1, source, "float32"), source, dense_strides(source), 0)
    load = View(store.tensor, target, dense_strides(target), 0)
    return views.restrided(store, load, View(view.tensor, source, view.strides, view.offset))


def same_points(a: View, b: View) -> bool:
    """True if two views of a tensor have the same shape and the same element at each point."""
    if a.tensor.id != b.tensor.id or a.shape != b.shape or a.offset != b.offset:
        return False
    return all(size == 1 or s == t for size, s, t in zip(a.shape, a.strides, b.strides, strict=True))
