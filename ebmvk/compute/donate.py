"""Results that replace arguments of the next run.

If nothing reads an argument's old value later, the result that replaces it is written over it.
Otherwise the result gets memory of its own and is copied at the end. `settle` decides this and
rewrites the program, so that later stages see an ordinary tensor that is read and written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ebmvk.compute import expr
from ebmvk.compute.ir import (
    Batch,
    Call,
    Expr,
    Finished,
    Load,
    LoadAt,
    Loop,
    Node,
    PlanNode,
    Program,
    Store,
    Tensor,
    View,
)


@dataclass(frozen=True)
class Settled:
    """A program with its donated results in place: once `copies` are done, each lies where the next
    run reads it.

    Attributes:
        nodes: run in this order.
        outputs: a dense view for each result, by position; it holds the result once the nodes
            have run. For a result that is written in place, this is the argument's view.
        copies: (from, to), dense views, copied after the nodes. No copy reads what another one
            writes.
        in_place: positions of the results that don't need a copy.
    """

    nodes: list[PlanNode]
    outputs: list[View]
    copies: list[tuple[View, View]]
    in_place: frozenset[int]


def settle(program: Program) -> Settled:
    """Decides which results are written over the arguments that they replace.

    Raises ValueError if a result doesn't fit its argument, or if two replace the same argument.
    """
    _check_donated(program)
    renamed = {old.id: new for old, new in _unions(program)}
    nodes: list[PlanNode] = [_renamed_node(node, renamed) for node in program.nodes]
    outputs = [_renamed(view, renamed) for view in program.outputs]
    targets = {position: program.leaves[leaf] for position, leaf in program.donated.items()}
    in_place = frozenset(position for position, target in targets.items() if same_place(outputs[position], target))
    overwritten = [target for position, target in targets.items() if position not in in_place]
    fresh = max((tensor.id for tensor in _tensors(program)), default=0) + 1
    for position, view in enumerate(outputs):
        lost = position not in in_place and any(overlap(view, target) for target in overwritten)
        if lost or not view.dense:
            tensor = Tensor(fresh, view.shape, view.tensor.dtype)
            fresh += 1
            nodes.append(Loop(view.shape, 0, (Store(tensor.view(), expr.load(view)),)))
            outputs[position] = tensor.view()
    copies = [(outputs[position], target) for position, target in targets.items() if position not in in_place]
    return Settled(nodes, outputs, copies, in_place)


def same_place(a: View, b: View) -> bool:
    """True if two views have the same elements in the same order."""
    return a.tensor == b.tensor and a.offset == b.offset and a.shape == b.shape and _steps(a) == _steps(b)


def extent(view: View) -> tuple[int, int]:
    """(begin, end): the range of positions in its tensor that a view's elements lie in."""
    if 0 in view.shape:
        return view.offset, view.offset
    ends = [stride * (size - 1) for size, stride in zip(view.shape, view.strides, strict=True)]
    return view.offset + sum(min(end, 0) for end in ends), view.offset + sum(max(end, 0) for end in ends) + 1


def overlap(a: View, b: View) -> bool:
    """True if the ranges from the first to the last element of each view intersect."""
    (begin, end), (first, last) = extent(a), extent(b)
    return a.tensor == b.tensor and begin < last and first < end


def reads(node: PlanNode) -> Iterator[tuple[View, bool]]:
    """The views that a node reads, each with True if a point of the loop reads only its own
    element."""
    if isinstance(node, Batch):
        for loop in node.loops:
            yield from reads(loop)
        return
    if isinstance(node, Finished):
        yield from reads(node.call)
        yield from ((view, False) for view, _ in reads(node.loop) if view != node.call.outputs[0])
        return
    if isinstance(node, Call):
        yield from ((view, False) for view in node.inputs)
        return
    for part in expr.loads(*(store.value for store in node.stores)):
        yield part.view, isinstance(part, Load) and not node.reduced


def writes(node: PlanNode) -> tuple[View, ...]:
    if isinstance(node, Batch):
        return tuple(view for loop in node.loops for view in writes(loop))
    if isinstance(node, Finished):
        return writes(node.loop)
    return node.outputs if isinstance(node, Call) else tuple(store.view for store in node.stores)


def _steps(view: View) -> tuple[int, ...]:
    return tuple(stride for size, stride in zip(view.shape, view.strides, strict=True) if size != 1)


def _check_donated(program: Program) -> None:
    if len(set(program.donated.values())) != len(program.donated):
        raise ValueError("two results replace the same argument")
    for position, leaf in program.donated.items():
        result, target = program.outputs[position], program.leaves[leaf]
        if result.shape != target.shape or result.tensor.dtype != target.tensor.dtype:
            raise ValueError(
                f"result {position} is {result.tensor.dtype} {result.shape} and replaces argument {leaf}, "
                f"{target.tensor.dtype} {target.shape}"
            )


def _unions(program: Program) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of a tensor that a node writes and the input whose memory the tensor can take."""
    own = set(program.inputs) | set(program.constants)
    pairs: dict[Tensor, set[Tensor]] = {}
    for position, leaf in program.donated.items():
        result, target = program.outputs[position], program.leaves[leaf]
        if result.tensor not in own:
            pairs.setdefault(result.tensor, set()).add(target.tensor)
    taken: set[Tensor] = set()
    for new, olds in pairs.items():
        old = min(olds, key=lambda tensor: tensor.id)
        if len(olds) == 1 and old not in taken and _can_replace(program, new, old):
            taken.add(old)
            yield new, old


def _can_replace(program: Program, new: Tensor, old: Tensor) -> bool:
    if new.shape != old.shape or new.dtype != old.dtype:
        return False
    pairs = {leaf: program.outputs[position] for position, leaf in program.donated.items()}
    for number, leaf in enumerate(program.leaves):
        if leaf.tensor == old:
            result = pairs.get(number)
            if result is None or not same_place(View(old, result.shape, result.strides, result.offset), leaf):
                return False
            if result.tensor != new:
                return False
    if any(view.tensor == old for view in program.outputs):
        return False  # the old value is a result, too
    written = [
        (i, View(old, view.shape, view.strides, view.offset))
        for i, node in enumerate(program.nodes)
        for view in writes(node)
        if view.tensor == new
    ]
    for i, node in enumerate(program.nodes):
        for view, own_index in reads(node):
            if view.tensor == old and not _read_in_time(i, view, own_index, written):
                return False
    return True


def _read_in_time(at: int, view: View, own_index: bool, written: Sequence[tuple[int, View]]) -> bool:
    """True if a read of the old value comes before every write of a new value over it. If one loop
    does both, each of its points must read only the element that it writes."""
    return all(
        at < when or (at == when and own_index and same_place(view, new)) for when, new in written if overlap(view, new)
    )


def _tensors(program: Program) -> Iterator[Tensor]:
    yield from program.inputs
    yield from program.constants
    for node in program.nodes:
        yield from (view.tensor for view in writes(node))


def _renamed(view: View, renamed: dict[int, Tensor]) -> View:
    new = renamed.get(view.tensor.id)
    return view if new is None else replace(view, tensor=new)


def _renamed_node(node: Node, renamed: dict[int, Tensor]) -> Node:
    touched = {view.tensor.id for view in writes(node)} | {view.tensor.id for view, _ in reads(node)}
    if touched.isdisjoint(renamed):
        return node
    if isinstance(node, Call):
        inputs, outputs = ([_renamed(view, renamed) for view in views] for views in (node.inputs, node.outputs))
        return replace(node, inputs=tuple(inputs), outputs=tuple(outputs))

    def change(value: Expr) -> Expr | None:
        if isinstance(value, Load) and value.view.tensor.id in renamed:
            return expr.load(_renamed(value.view, renamed))
        return None

    def change_computed(value: Expr) -> Expr | None:
        if isinstance(value, LoadAt) and value.view.tensor.id in renamed:
            return expr.load_at(_renamed(value.view, renamed), value.index)
        return None

    values = expr.rewrite([store.value for store in node.stores], change)
    values = expr.rewrite(values, change_computed)
    stores = [Store(_renamed(store.view, renamed), value) for store, value in zip(node.stores, values, strict=True)]
    return replace(node, stores=tuple(stores))
