"""Writes results where they are needed. Products fill views of larger tensors, so that no copy
follows. Tensors that the same formula updates lie in one block, so that one loop updates them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ebmvk.compute import expr, views
from ebmvk.compute.fuse_merge import joined
from ebmvk.compute.ir import Axis, Call, Const, Expr, Load, LoadAt, Loop, Node, Program, Store, Tensor, View
from ebmvk.compute.rewrite import Limits, Uses, dense_strides, ordered, reads, with_views, without_dead, writes

ALIGNED = 64
"""Each member of a block begins at a multiple of this many words. Other programs bind a member
alone, and devices may require offsets that are multiples of 256 bytes."""


def direct(program: Program, limits: Limits) -> Program:
    """The program without loops that only copy inputs of a kernel or results of a product."""
    if not limits.strided:
        return program
    nodes: list[Node] = list(program.nodes)
    uses = Uses.of(program)
    copies = {
        store.view.tensor.id: store
        for node in nodes
        if isinstance(node, Loop) and not node.reduced
        for store in node.stores
        if isinstance(store.value, Load) and len(uses.writers[store.view.tensor.id]) == 1
    }
    for position, node in enumerate(nodes):
        if isinstance(node, Call):
            nodes[position] = _from_sources(node, copies)
    program = without_dead(replace(program, nodes=nodes))
    return _to_targets(program)


def _batches(views_of: Sequence[View], batch: int) -> list[tuple[int, int]]:
    """Ways to write a batch as two axes, suggested by the sizes of some views."""
    found: dict[tuple[int, int], None] = {}
    for view in views_of:
        for size in view.shape:
            if size > 1 and batch % size == 0 and batch != size:
                found[size, batch // size] = None
                found[batch // size, size] = None
    return list(found)


def _split(call: Call, batch: tuple[int, int]) -> Call:
    """A batched product with its batch as two axes."""

    def split(view: View) -> View:
        stride = view.strides[0]
        return View(view.tensor, (*batch, *view.shape[1:]), (stride * batch[1], stride, *view.strides[1:]), view.offset)

    return replace(call, inputs=tuple(map(split, call.inputs)), outputs=tuple(map(split, call.outputs)))


def _from_sources(call: Call, copies: dict[int, Store]) -> Call:
    """The call, changed to read the originals in place of their copies."""
    found = [copies[view.tensor.id] for view in call.inputs if view.tensor.id in copies]
    if not found:
        return call
    ways = [call]
    if call.name == "matmul" and len(call.outputs[0].shape) == 3:
        shapes = [store.value.view for store in found if isinstance(store.value, Load)]
        ways += [_split(call, batch) for batch in _batches(shapes, call.outputs[0].shape[0])]
    best, most = call, 0
    for way in ways:
        inputs = [_source(view, copies) for view in way.inputs]
        count = sum(source is not None for source in inputs)
        if count > most:
            kept = tuple(source or view for source, view in zip(inputs, way.inputs, strict=True))
            best, most = replace(way, inputs=kept), count
    return best


def _source(view: View, copies: dict[int, Store]) -> View | None:
    store = copies.get(view.tensor.id)
    if store is None or not isinstance(store.value, Load) or store.value.dtype != view.tensor.dtype:
        return None
    return views.restrided(store.view, view, store.value.view)


def _to_targets(program: Program) -> Program:
    """The program in which products write directly where their results would be copied to."""
    nodes: list[Node] = list(program.nodes)
    uses = Uses.of(program)
    gone: dict[int, set[int]] = defaultdict(set)
    for position, node in enumerate(nodes):
        if not isinstance(node, Loop) or node.reduced:
            continue
        for number, store in enumerate(node.stores):
            writer = _only_writer(program, uses, position, store)
            if writer is None:
                continue
            call = nodes[writer]
            assert isinstance(call, Call)
            moved = _writing(call, store)
            if moved is not None:
                nodes[writer] = moved
                gone[position].add(number)
    kept: list[Node] = []
    for position, node in enumerate(nodes):
        if isinstance(node, Loop):
            left = tuple(store for number, store in enumerate(node.stores) if number not in gone[position])
            if left:
                kept.append(replace(node, stores=left))
        else:
            kept.append(node)
    return replace(program, nodes=ordered(kept))


def _only_writer(program: Program, uses: Uses, position: int, store: Store) -> int | None:
    """The product whose whole result a store copies, if nothing else reads it."""
    if not isinstance(store.value, Load):
        return None
    source = store.value.view
    number = source.tensor.id
    writers = uses.writers.get(number, [])
    if number in uses.returned or len(writers) != 1 or uses.readers[number] != [position]:
        return None
    node = program.nodes[position]
    assert isinstance(node, Loop)
    users = [view for view in reads(node) if view.tensor.id == number]
    call = program.nodes[writers[0]]
    whole = math.prod(source.shape) * 4 == source.tensor.bytes and not views.overlaps(source)
    alone = len(users) == 1 and sum(other.value is store.value for other in node.stores) == 1
    inside = sum(part is store.value for other in node.stores for part in expr.walk(other.value))
    return writers[0] if whole and alone and inside == 1 and isinstance(call, Call) and call.name == "matmul" else None


def _writing(call: Call, store: Store) -> Call | None:
    """The product, changed to write to the store's view. Its batch may become two axes."""
    assert isinstance(store.value, Load)
    source = store.value.view
    ways = [call]
    if len(call.outputs[0].shape) == 3:
        ways += [_split(call, batch) for batch in _batches([source], call.outputs[0].shape[0])]
    for way in ways:
        target = views.restrided(source, way.outputs[0], store.view)
        if target is not None and not views.overlaps(target):
            return replace(way, outputs=(target,))
    return None


# ------------------------------------------------------------------------------------------- blocks


@dataclass
class _Update:
    """A loop that updates tensors of one size, element by element.

    roles: its loads of whole tensors, in the order in which its expressions name them. outputs: the
    tensors that it fills. fixed: for each role, the argument whose part it reads, or None. form:
    its expressions, with each load replaced by the number of its role.
    """

    position: int
    loop: Loop
    roles: list[View]
    outputs: list[Tensor]
    fixed: list[Tensor | None]
    form: tuple[object, ...]


def pack(program: Program, limits: Limits) -> Program:
    """The program in which tensors that are updated by the same formula lie in blocks."""
    program = _one_loop_each(program, limits)
    uses = Uses.of(program)
    groups: dict[tuple[object, ...], list[_Update]] = defaultdict(list)
    for position, node in enumerate(program.nodes):
        update = _update(program, uses, position, node)
        if update is not None:
            groups[update.form].append(update)
    for members in groups.values():
        for part in _parts(program, members, limits):
            program = _packed(program, _still(program, part))
    return without_dead(replace(program, nodes=ordered([node for node in program.nodes if node is not _GONE])))


_GONE = Loop((0,), 0, ())
"""Takes the place of a loop that was joined with another loop, so that positions stay the same."""


def _still(program: Program, members: Sequence[_Update]) -> list[_Update]:
    """The members that still exist, as they are after other updates were put into blocks."""
    uses = Uses.of(program)
    found = [(_update(program, uses, m.position, program.nodes[m.position]), m) for m in members]
    return [now for now, before in found if now is not None and now.form == before.form]


def _one_loop_each(program: Program, limits: Limits) -> Program:
    """Joins loops that update a tensor and its moments: loops of which one reads what another
    writes, or that read the same gradient."""
    donated = {program.outputs[output].tensor.id for output in program.donated}
    inputs = {tensor.id for tensor in program.inputs}
    nodes: list[Node | None] = list(program.nodes)
    last: dict[int, int] = {}  # a tensor that one of these loops reads or writes -> the loop
    for position, node in enumerate(program.nodes):
        if not isinstance(node, Loop) or node.reduced or any(v.tensor.id not in donated for v in writes(node)):
            continue
        keys = {v.tensor.id for v in reads(node) if v.tensor.id not in inputs and any(v.strides)}
        keys |= {v.tensor.id for v in writes(node)}
        here = node
        for other in sorted({last[key] for key in keys if key in last}):
            first = nodes[other]
            made = joined(first, here, limits) if isinstance(first, Loop) else None
            if made is not None:
                here, nodes[other] = made, None
        nodes[position] = here
        for view in (*reads(here), *writes(here)):
            if view.tensor.id not in inputs and any(view.strides):
                last[view.tensor.id] = position
    return replace(program, nodes=ordered([node for node in nodes if node is not None]))


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
    if form is None or not roles or len({view.tensor.id for view in roles}) != len(roles):
        return None
    fixed = [_part_of(program, view) for view in roles]
    if any(own is None and not _movable(program, uses, view) for own, view in zip(fixed, roles, strict=True)):
        return None
    form += tuple(own and own.id for own in fixed)
    return _Update(position, node, roles, outputs, fixed, form)


def _part_of(program: Program, view: View) -> Tensor | None:
    """The argument of which a load reads one contiguous part; None if there isn't one."""
    whole = math.prod(view.shape) * 4 == view.tensor.bytes
    return view.tensor if view.dense and not whole and view.tensor in program.inputs else None


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


def _movable(program: Program, uses: Uses, view: View) -> bool:
    """True if the tensor of a load may be put into a block. It must be read whole. It is either an
    argument, whose order is fixed, or an intermediate result, whose order may change."""
    if views.overlaps(view) or math.prod(view.shape) * 4 != view.tensor.bytes or view.tensor in program.constants:
        return False
    if view.tensor in program.inputs:
        leaves = [number for number, leaf in enumerate(program.leaves) if leaf.tensor == view.tensor]
        return view.dense and len(leaves) == 1 and leaves[0] not in program.placed
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
    """Members in the order of the arguments, in parts, because a block mustn't be too long."""
    order = {view.tensor.id: number for number, view in enumerate(program.leaves)}
    members = sorted(members, key=lambda m: min(order.get(view.tensor.id, 1 << 30) for view in m.roles))
    parts: list[list[_Update]] = [[]]
    total = 0
    for member in members:
        size = padded(math.prod(member.loop.shape))
        if parts[-1] and total + size > limits.block:
            parts.append([])
            total = 0
        parts[-1].append(member)
        total += size
    return parts


def padded(size: int) -> int:
    """The number of words that a member of a block takes."""
    return -(-size // ALIGNED) * ALIGNED


def _packed(program: Program, members: list[_Update]) -> Program:
    """One loop for all members; their tensors become parts of blocks, one for each role."""
    if len(members) < 2:
        return program
    offsets = [0]
    for member in members:
        offsets.append(offsets[-1] + padded(math.prod(member.loop.shape)))
    total = offsets.pop()
    bases = _bases(members, offsets, total)
    if bases is None:
        return program
    fresh = 1 + max(_ids(program))
    first = members[0]
    dtypes = [view.tensor.dtype for view in first.roles] + [tensor.dtype for tensor in first.outputs]
    blocks = [Tensor(fresh + number, (total,), dtype) for number, dtype in enumerate(dtypes)]
    moved: dict[int, tuple[View, View]] = {}
    for member, offset in zip(members, offsets, strict=True):
        for block, view in zip(blocks, [*member.roles, *(t.view() for t in member.outputs)], strict=True):
            if view.tensor not in first.fixed:
                moved[view.tensor.id] = (view, View(block, view.shape, dense_strides(view.shape), offset))
    loop = _block_loop(first, blocks, bases, total)
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
        elif position in gone or node is _GONE:
            nodes.append(_GONE)
        else:
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


def _bases(members: Sequence[_Update], offsets: Sequence[int], total: int) -> list[int] | None:
    """Where each role's block begins in the argument that contains it; 0 if no argument does. None
    if the members' parts don't lie in the argument as in a block."""
    bases = []
    for role, tensor in enumerate(members[0].fixed):
        found = {member.roles[role].offset - offset for member, offset in zip(members, offsets, strict=True)}
        base = min(found)
        if tensor is not None and (len(found) > 1 or base < 0 or 4 * (base + total) > tensor.bytes):
            return None
        bases.append(0 if tensor is None else base)
    return bases


def _block_loop(first: _Update, blocks: list[Tensor], bases: Sequence[int], total: int) -> Loop:
    """The first member's loop over whole blocks."""
    of = {
        view.tensor.id: View(own or block, (total,), (1,), base)
        for view, block, own, base in zip(first.roles, blocks, first.fixed, bases, strict=False)
    }

    def change(value: Expr) -> Expr | None:
        if not isinstance(value, Load):
            return None
        block = of.get(value.view.tensor.id)
        if block is not None:
            return expr.load(block)
        return expr.load(View(value.view.tensor, (total,), (0,), value.view.offset))

    values = expr.rewrite([store.value for store in first.loop.stores], change)
    targets = blocks[len(first.roles) :]
    return Loop((total,), 0, tuple(Store(t.view(), value) for t, value in zip(targets, values, strict=True)))
