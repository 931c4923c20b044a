"""Loops as kernels: `kernel_of` makes one dispatch of a loop, `kernels_of` as many as are fastest.

In a loop without reductions, each invocation computes one point, or several in turn. In a loop with
reductions, `along` invocations of a workgroup share a row, and `across` rows share the workgroup.
Sums are added in a fixed order, so the same module gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ebmvk.compute.ir import DType, Loop, Tensor
from ebmvk.compute.points import emit_points
from ebmvk.compute.reading import Reading, read
from ebmvk.compute.rows import Part, RowKernel, emit_rows, needed_stages
from ebmvk.compute.spirv import Module, Op
from ebmvk.compute.split import UNSHARED, Piece, part_of, split
from ebmvk.compute.tiling import Limits, Tile, spread, tile
from ebmvk.compute.workgroup import group_number
from ebmvk.errors import ArgumentError

Fresh = Callable[[tuple[int, ...], DType], Tensor]

POINT_GROUP = 128
POINT_GROUPS = 4096
"""Beyond this many workgroups each invocation takes several points."""


@dataclass(frozen=True)
class Generated:
    """A dispatch.

    Attributes:
        spirv: the module; its specialisation constant 0 must stay `group`.
        access: a letter for each binding: r (read), w (written), u (both).
        tensors: one for each binding, bound at its whole range; they must not overlap in memory.
        push: push constants, always empty.
        groups: workgroups in x, y and z.
        group: invocations of a workgroup.
    """

    spirv: bytes
    access: str
    tensors: tuple[Tensor, ...]
    push: bytes
    groups: tuple[int, int, int]
    group: int


def kernel_of(loop: Loop, limits: Limits) -> Generated:
    """A loop as one dispatch. Its parallel shape must have no size 0.

    Raises ArgumentError if an operation is unknown, types don't fit, or the loop has more tensors
    than a kernel may bind.
    """
    return _piece(Piece(loop), limits)


def kernels_of(loop: Loop, limits: Limits, fresh: Fresh) -> tuple[Generated, ...]:
    """The dispatches of a loop, to be run in order; none if the loop has nothing to store.

    fresh: makes a tensor for intermediate results of these dispatches.
    """
    if 0 in loop.parallel or (0 in loop.shape and all(len(s.view.shape) == len(loop.shape) for s in loop.stores)):
        return ()
    reading = read(loop)
    part = _part(reading, limits)
    pieces = split(loop, part, fresh) if part else [Piece(loop)]
    return tuple(_piece(piece, limits) for piece in pieces)


def _part(reading: Reading, limits: Limits) -> Part | None:
    stages = needed_stages(reading)
    kinds = {reading.graph.nodes[n].extra[0] for stage in stages for n in stage}
    if not stages or kinds & UNSHARED:
        return None
    return part_of(reading.rows, reading.length, _tile(reading, limits))


def _tile(reading: Reading, limits: Limits) -> Tile:
    words = max((2 * len(stage) for stage in needed_stages(reading)), default=1)
    return tile(reading.rows, reading.length, rows_first=reading.across, words=words, limits=limits)


def _piece(piece: Piece, limits: Limits) -> Generated:
    reading = read(piece.loop)
    _check(reading, limits)
    if _in_rows(piece.loop, reading):
        return _rows(reading, piece.part, limits)
    return _points(reading, limits)


def _check(reading: Reading, limits: Limits) -> None:
    if len(reading.tensors) > limits.bindings:
        raise ArgumentError(
            f"a loop reads and writes {len(reading.tensors)} tensors, but a kernel binds at most {limits.bindings}",
            hint="Split the loop in two.",
        )


def _buffers(module: Module, reading: Reading) -> list[int]:
    return [
        module.buffer(binding, tensor.dtype, writable=access != "r")
        for binding, (tensor, access) in enumerate(zip(reading.tensors, reading.access, strict=True))
    ]


def _points(reading: Reading, limits: Limits) -> Generated:
    group = min(POINT_GROUP, limits.group)
    groups = spread(_point_groups(reading, group), limits)
    module = Module(group)
    buffers = _buffers(module, reading)
    module.label()
    emit_points(module, reading, group, groups, buffers, group_number(module, groups))
    return Generated(module.finish(), reading.access, reading.tensors, b"", groups, group)


def _rows(reading: Reading, part: Part | None, limits: Limits) -> Generated:
    shape = _tile(reading, limits)
    groups = spread(-(-reading.rows // shape.across) * (part.chunks if part else 1), limits)
    module = Module(shape.group)
    buffers = _buffers(module, reading)
    module.label()
    emit_rows(RowKernel(module, reading, shape, groups, buffers, part, group_number(module, groups)), reading)
    return Generated(module.finish(), reading.access, reading.tensors, b"", groups, shape.group)


# ---------------------------------------------------------------------------- loops that share one


@dataclass(frozen=True)
class Needs:
    """What a loop of one dispatch needs from a kernel that it shares with other loops.

    Attributes:
        group: invocations of a workgroup; 0 if any number works.
        shared_bytes: the most shared memory that the loop uses.
        tensors: the tensors that the loop binds.
    """

    group: int
    shared_bytes: int
    tensors: frozenset[Tensor]


def needs(loop: Loop, limits: Limits) -> Needs | None:
    """What a loop needs; None if it isn't exactly one dispatch."""
    if 0 in loop.shape:
        return None
    reading = read(loop)
    if _part(reading, limits):
        return None
    tensors = frozenset(reading.tensors)
    stages = needed_stages(reading)
    if not _in_rows(loop, reading):
        return Needs(0, 0, tensors)
    shape = _tile(reading, limits)
    words = max((2 * len(stage) for stage in stages), default=0)
    return Needs(shape.group, 12 * words * shape.group if shape.along > 1 else 0, tensors)


def fit(parts: Sequence[Needs], limits: Limits) -> bool:
    """True if loops can share a kernel."""
    groups = {part.group for part in parts if part.group}
    tensors = frozenset[Tensor]().union(*(part.tensors for part in parts))
    memory = sum(part.shared_bytes for part in parts)
    return len(groups) <= 1 and len(tensors) <= limits.bindings and memory <= limits.shared_bytes


def kernel_of_all(loops: Sequence[Loop], limits: Limits) -> Generated:
    """One dispatch of loops that `fit`. Each loop gets a range of the workgroups for itself."""
    readings = [read(loop) for loop in loops]
    shapes = [
        _tile(reading, limits) if _in_rows(loop, reading) else None
        for loop, reading in zip(loops, readings, strict=True)
    ]
    group = max((shape.group for shape in shapes if shape), default=min(POINT_GROUP, limits.group))
    counts = [
        -(-reading.rows // shape.across) if shape else _point_groups(reading, group)
        for reading, shape in zip(readings, shapes, strict=True)
    ]
    groups = spread(sum(counts), limits)
    access: dict[Tensor, str] = {}
    for reading in readings:
        for tensor, letter in zip(reading.tensors, reading.access, strict=True):
            access[tensor] = letter if access.get(tensor, letter) == letter else "u"
    module = Module(group)
    buffers = {
        tensor: module.buffer(binding, tensor.dtype, writable=letter != "r")
        for binding, (tensor, letter) in enumerate(access.items())
    }
    module.label()
    number, first = group_number(module, groups), 0
    for reading, shape, count in zip(readings, shapes, counts, strict=True):
        own = module.emit(Op.I_SUB, module.type("uint32"), number, module.uint(first))  # wraps for other loops
        bound = [buffers[tensor] for tensor in reading.tensors]
        with module.when(module.emit(Op.U_LESS_THAN, module.type("bool"), own, module.uint(count))):
            if shape:
                emit_rows(RowKernel(module, reading, shape, (count, 1, 1), bound, None, own), reading)
            else:
                emit_points(module, reading, group, (count, 1, 1), bound, own)
        first += count
    return Generated(module.finish(), "".join(access.values()), tuple(access), b"", groups, group)


def _in_rows(loop: Loop, reading: Reading) -> bool:
    return loop.reduced > 0 and bool(needed_stages(reading) or reading.length != 1)


def _point_groups(reading: Reading, group: int) -> int:
    return min(-(-reading.rows // group), POINT_GROUPS)
