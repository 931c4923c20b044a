"""Turns a node into dispatches on the device, of generated kernels or of kernels by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ebmvk.compute import expr
from ebmvk.compute.donate import reads, writes
from ebmvk.compute.ir import WORD, Batch, Call, DType, Finished, Loop, Node, Op, PlanNode, Reduce, Tensor, View
from ebmvk.engine.recording import Limits

Fresh = Callable[[tuple[int, ...], DType], Tensor]
"""Makes a tensor for intermediate results of one node."""


@dataclass(frozen=True)
class Kernel:
    """A generated kernel, as `Recorder.module` takes it. If `spirv` is empty, a kernel of
    shaders/kernels.toml with this name. subgroup: True if its workgroups are full subgroups."""

    name: str
    group: int
    constants: tuple[int, ...] = ()
    spirv: bytes = b""
    access: str = ""
    push_words: int = 0
    subgroup: bool = False


@dataclass(frozen=True)
class Launch:
    """A dispatch. tensors: one for each binding, bound as a whole."""

    kernel: Kernel
    tensors: tuple[Tensor, ...]
    push: bytes
    groups: tuple[int, int, int]


@dataclass(frozen=True)
class Blank:
    """Fills a part of a tensor with a word; offset and size are in bytes."""

    tensor: Tensor
    offset: int
    nbytes: int
    word: int


@dataclass(frozen=True)
class Lowered:
    """A node's steps, and what they cost.

    Attributes:
        scratch: tensors that only these steps use.
        flops: the number of floating-point operations.
        nbytes: the number of bytes read and written, as far as known.
    """

    steps: tuple[Launch | Blank, ...]
    scratch: tuple[Tensor, ...]
    flops: float
    nbytes: float


Lower = Callable[[PlanNode, Limits, Fresh], Lowered]


def lower(node: PlanNode, limits: Limits, fresh: Fresh) -> Lowered:
    """A node's steps, by `emit.kernels_of` or the table `kernels.KERNELS`."""
    scratch: list[Tensor] = []

    def make(shape: tuple[int, ...], dtype: DType) -> Tensor:
        scratch.append(fresh(shape, dtype))
        return scratch[-1]

    if isinstance(node, Batch):
        return _lower_batch(node, limits)
    if isinstance(node, Finished):
        return _lower_finished(node, limits)
    return (
        _lower_call(node, limits, make, scratch) if isinstance(node, Call) else _lower_loop(node, limits, make, scratch)
    )


def _lower_loop(loop: Loop, limits: Limits, fresh: Fresh, scratch: Sequence[Tensor]) -> Lowered:
    from ebmvk.compute.emit import kernels_of

    name = f"a loop over {'x'.join(map(str, loop.shape)) or 'one point'}"
    steps = tuple(
        Launch(
            Kernel(name, made.group, (), made.spirv, made.access, len(made.push) // WORD),
            made.tensors,
            made.push,
            made.groups,
        )
        for made in kernels_of(loop, limits, fresh)
    )
    return Lowered(steps, tuple(scratch), loop_flops(loop), node_bytes(loop))


def _lower_batch(batch: Batch, limits: Limits) -> Lowered:
    from ebmvk.compute.emit import kernel_of_all

    made = kernel_of_all(batch.loops, limits)
    kernel = Kernel(f"{len(batch.loops)} loops", made.group, (), made.spirv, made.access)
    launch = Launch(kernel, made.tensors, made.push, made.groups)
    return Lowered((launch,), (), sum(map(loop_flops, batch.loops)), sum(map(node_bytes, batch.loops)))


def _lower_finished(node: Finished, limits: Limits) -> Lowered:
    from ebmvk.compute.finish import LANES, kernel_of

    step, made = kernel_of(node, limits)
    name = f"{step.kernel} and a loop over {'x'.join(map(str, node.loop.shape))}"
    kernel = Kernel(
        name, made.group, step.constants, made.spirv, made.access, len(made.push) // WORD, step.kernel in LANES
    )
    launch = Launch(kernel, made.tensors, made.push, made.groups)
    return Lowered((launch,), (), step.flops + loop_flops(node.loop), finished_bytes(node))


def _lower_call(call: Call, limits: Limits, fresh: Fresh, scratch: Sequence[Tensor]) -> Lowered:
    from ebmvk.compute.kernels import KERNELS, Dispatch

    planned = KERNELS[call.name](call, limits, fresh)
    steps = tuple(
        Launch(Kernel(step.kernel, step.group, tuple(step.constants)), tuple(step.tensors), step.push, step.groups)
        if isinstance(step, Dispatch)
        else Blank(step.tensor, step.offset, step.nbytes, step.word)
        for step in planned.steps
    )
    return Lowered(steps, tuple(scratch), planned.flops, planned.bytes)


def loop_flops(loop: Loop) -> float:
    """The number of operations of a loop. Each function counts as one operation at each point."""
    values = expr.walk(*(store.value for store in loop.stores))
    return float(_count(loop.shape)) * max(1, sum(isinstance(value, Op | Reduce) for value in values))


def node_bytes(node: Node) -> float:
    """The bytes that a node must read and write at least, if it reads each element once."""
    read = {view: _distinct(view) for view, _ in reads(node)}
    return float(WORD * (sum(read.values()) + sum(_distinct(view) for view in writes(node))))


def finished_bytes(node: Finished) -> float:
    """As `node_bytes`, but without the product if it isn't stored."""
    (product,) = node.call.outputs
    loaded = sum(_distinct(view) for view in {view for view, _ in reads(node.loop)} - {product})
    return node_bytes(node.call) - WORD * _distinct(product) + WORD * (loaded + sum(map(_distinct, writes(node))))


def _distinct(view: View) -> int:
    return _count([size for size, stride in zip(view.shape, view.strides, strict=True) if stride or not size])


def _count(shape: Sequence[int]) -> int:
    points = 1
    for size in shape:
        points *= size
    return points
