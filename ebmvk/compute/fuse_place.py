"""Results that are written where they are needed: products fill views of larger tensors, so that
no copy follows; and tensors that are updated alike lie in one block, so that one loop does it."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace

from ebmvk.compute import expr, views
from ebmvk.compute.fuse_merge import joined
from ebmvk.compute.ir import Axis, Call, Const, Expr, Load, LoadAt, Loop, Node, Program, Store, Tensor, View
from ebmvk.compute.rewrite import Limits, Uses, dense_strides, ordered, reads, with_views, without_dead, writes

ALIGNED = 4
"""Words at which a member of a block begins."""


def direct(program: Program, limits: Limits) -> Program:
    """The program without loops that only copy a product's result to another place."""
    if not limits.strided:
        return program
    nodes: list[Node] = list(program.nodes)
    uses = Uses.of(program)
    gone: set[int] = set()
    for position, node in enumerate(nodes):
        if not isinstance(node, Loop) or node.reduced or len(node.stores) != 1:
            continue
        store = node.stores[0]
        if not isinstance(store.value, Load):
            continue
        source = store.value.view
        number = source.tensor.id
        writers = uses.writers.get(number, [])
        if number in uses.returned or len(writers) != 1 or uses.readers[number] != [position]:
            continue
        call = nodes[writers[0]]
        if not isinstance(call, Call) or call.name != "matmul" or math.prod(node.shape) * 4 != source.tensor.bytes:
            continue
        target = None if views.overlaps(source) else views.restrided(source, call.outputs[0], store.view)
        if target is None or views.overlaps(target):
            continue
        nodes[writers[0]] = replace(call, outputs=(target,))
        gone.add(position)
    kept = [node for position, node in enumerate(nodes) if position not in gone]
    return replace(program, nodes=ordered(kept))


# ------------------------------------------------------------------------------------------- blocks


@dataclass
class _Update:
    """A loop that updates tensors of one size, element by element.

    roles: its loads of whole tensors, in the order in which its expressions name them. outputs: the
    tensors that it fills. form: its expressions with a role's number in place of each load.
    """

    position: int
    loop: Loop
    roles: list[View]
    outputs: list[Tensor]
    form: tuple[object, ...]


def pack(program: Program, limits: Limits) -> Program:
    """The program with tensors that are updated by the same formula put into blocks."""
    program = _one_loop_each(program, limits)
    uses = Uses.of(program)
    groups: dict[tuple[object, ...], list[_Update]] = defaultdict(list)
    for position, node in enumerate(program.nodes):
        update = _update(program, uses, position, node)
        if update is not None:
            groups[update.form].append(update)
    for members in groups.values():
        for part in _parts(program, members, limits):
            if len(part) > 1:
                program = _packed(program, part)
    return without_dead(replace(program, nodes=ordered(program.nodes)))


def _one_loop_each(program: Program, limits: Limits) -> Program:
    """Loops that update a tensor and its moments, joined: those of one shape that share loads."""
    donated = {program.outputs[output].tensor.id for output in program.donated}
    nodes = list(program.nodes)
    groups: dict[object, list[int]] = defaultdict(list)
    leaves = {view.tensor.id for view in program.leaves}
    for position, node in enumerate(nodes):
        if isinstance(node, Loop) and not node.reduced and all(view.tensor.id in donated for view in writes(node)):
            whole = [v for v in reads(node) if v.tensor.id not in leaves and any(v.strides)]
            key = whole[0].tensor.id if whole else None
            if key is not None:
                groups[key].append(position)
    gone: set[int] = set()
    for members in groups.values():
        into = members[-1]
        for other in reversed(members[:-1]):
            first, second = nodes[other], nodes[into]
            assert isinstance(first, Loop)
            assert isinstance(second, Loop)
            made = joined(first, second, limits)
            if made is not None:
                nodes[into] = made
                gone.add(other)
    kept = [node for position, node in enumerate(nodes) if position not in gone]
    return replace(program, nodes=ordered(kept))


def _update(program: Program, uses: Uses, position: int, node: Node) -> _Update | None:
    if not isinstance(node, Loop) or node.reduced:
        return None
    returned = [view.tensor.id for view in program.outputs]
    donated = {program.outputs[output].tensor.id for output in program.donated}
    outputs: list[Tensor] = []
    for store in node.stores:
        tensor = store.view.tensor
        whole = store.view.dense and math.prod(store.view.shape) * 4 == tensor.bytes
        if not whole or tensor.id not in donated or uses.readers.get(tensor.id) or returned.count(tensor.id) != 1:
            return None
        outputs.append(tensor)
    roles: list[View] = []
    form = _form(node, roles)
    if form is None or any(not _movable(program, uses, view, node) for view in roles):
        return None
    if len({view.tensor.id for view in roles}) != len(roles):
        return None
    return _Update(position, node, roles, outputs, form)


def _form(loop: Loop, roles: list[View]) -> tuple[object, ...] | None:
    numbers: dict[int, int] = {}
    lines: list[object] = []
    for value in expr.walk(*(store.value for store in loop.stores)):
        numbers[id(value)] = len(lines)
        if isinstance(value, Load):
            if any(value.view.strides) or math.prod(value.view.tensor.shape) != 1:
                lines.append(("role", value.view.tensor.dtype))
                roles.append(value.view)
            else:
                lines.append(("same", value.view.tensor.id, value.view.offset))
        elif isinstance(value, Const):
            lines.append((value.dtype, repr(value.value)))
        elif isinstance(value, Axis | LoadAt):
            return None
        else:
            name = getattr(value, "name", "") or getattr(value, "kind", "")
            lines.append((type(value).__name__, name, value.dtype, *(numbers[id(p)] for p in expr.children(value))))
    lines.append(tuple(numbers[id(store.value)] for store in loop.stores))
    return tuple(lines)


def _movable(program: Program, uses: Uses, view: View, loop: Loop) -> bool:
    """True if the tensor of a load may be put into a block: it is read whole, and it is an argument
    (in order) or a result of the program's own, whose order may change."""
    if views.overlaps(view) or math.prod(view.shape) * 4 != view.tensor.bytes or view.tensor in program.constants:
        return False
    if view.tensor in program.inputs:
        return view.dense and sum(leaf.tensor == view.tensor for leaf in program.leaves) == 1
    if view.tensor.id in uses.returned or not uses.writers.get(view.tensor.id):
        return False
    if view.dense:
        return _placeable(program, uses, view)
    return _placeable(program, uses, view) and all(
        views.restrided(view, used, View(view.tensor, view.shape, dense_strides(view.shape), 0)) is not None
        for node in program.nodes
        for used in (*reads(node), *writes(node))
        if used.tensor.id == view.tensor.id
    )


def _placeable(program: Program, uses: Uses, view: View) -> bool:
    """True if the kernels that write a tensor can write it inside a block."""
    kinds = [program.nodes[position] for position in uses.writers[view.tensor.id]]
    return all(isinstance(node, Loop) or node.name in {"matmul", "index_add"} for node in kinds)


def _parts(program: Program, members: list[_Update], limits: Limits) -> list[list[_Update]]:
    """Members in the order of the arguments, cut where a block would be too long."""
    order = {view.tensor.id: number for number, view in enumerate(program.leaves)}
    members = sorted(members, key=lambda m: min(order.get(view.tensor.id, 1 << 30) for view in m.roles))
    parts: list[list[_Update]] = [[]]
    total = 0
    for member in members:
        size = _padded(math.prod(member.loop.shape))
        if parts[-1] and total + size > limits.block:
            parts.append([])
            total = 0
        parts[-1].append(member)
        total += size
    return parts


def _padded(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED


def _packed(program: Program, members: list[_Update]) -> Program:
    """One loop for all members; their tensors become parts of blocks, one for each role."""
    offsets = [0]
    for member in members:
        offsets.append(offsets[-1] + _padded(math.prod(member.loop.shape)))
    total = offsets.pop()
    fresh = 1 + max(_ids(program))
    first = members[0]
    dtypes = [view.tensor.dtype for view in first.roles] + [tensor.dtype for tensor in first.outputs]
    blocks = [Tensor(fresh + number, (total,), dtype) for number, dtype in enumerate(dtypes)]
    moved: dict[int, tuple[View, View]] = {}
    for member, offset in zip(members, offsets, strict=True):
        for block, view in zip(blocks, [*member.roles, *(t.view() for t in member.outputs)], strict=True):
            moved[view.tensor.id] = (view, View(block, view.shape, dense_strides(view.shape), offset))
    loop = _block_loop(first, blocks, total)
    gone = {member.position for member in members}
    last = max(gone)

    def placed(view: View) -> View:
        found = moved.get(view.tensor.id)
        if found is None:
            return view
        result = views.restrided(found[0], view, found[1])
        assert result is not None
        return result

    nodes: list[Node] = []
    for position, node in enumerate(program.nodes):
        if position == last:
            nodes.append(loop)
        if position not in gone:
            nodes.append(with_views(node, placed, placed))
    inputs = [tensor for tensor in program.inputs if tensor.id not in moved]
    of_inputs = {moved[t.id][1].tensor for t in program.inputs if t.id in moved}
    inputs += [block for block in blocks if block in of_inputs]
    origins = dict(program.origins)
    for block, tensor in zip(blocks, [v.tensor for v in first.roles] + first.outputs, strict=True):
        origins[block.id] = f"{origins.get(tensor.id, '')} and {len(members) - 1} more"
    return replace(
        program, nodes=nodes, inputs=inputs, origins=origins, outputs=[placed(view) for view in program.outputs],
        leaves=[placed(view) for view in program.leaves],
    )  # fmt: skip


def _ids(program: Program) -> set[int]:
    found = {tensor.id for tensor in (*program.inputs, *program.constants)}
    for node in program.nodes:
        found.update(view.tensor.id for view in (*reads(node), *writes(node)))
    return found | {view.tensor.id for view in (*program.outputs, *program.leaves)}


def _block_loop(first: _Update, blocks: list[Tensor], total: int) -> Loop:
    """The first member's loop over whole blocks."""
    of = {view.tensor.id: block for view, block in zip(first.roles, blocks, strict=False)}

    def change(value: Expr) -> Expr | None:
        if not isinstance(value, Load):
            return None
        block = of.get(value.view.tensor.id)
        if block is not None:
            return expr.load(block.view())
        return expr.load(View(value.view.tensor, (total,), (0,), value.view.offset))

    values = expr.rewrite([store.value for store in first.loop.stores], change)
    targets = blocks[len(first.roles) :]
    return Loop((total,), 0, tuple(Store(t.view(), value) for t, value in zip(targets, values, strict=True)))
