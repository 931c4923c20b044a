"""Plans a program before anything runs: where its tensors lie on the device, and the order of its
nodes.

Tensors that only the program's own nodes use share an arena. Two of them may overlap there if one
is last used before the other is first written. Arguments that stay between runs, constants and
results lie outside the arena.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ebmvk.compute.donate import Settled, extent, reads, settle, writes
from ebmvk.compute.finish import finished
from ebmvk.compute.index_add import zeroed
from ebmvk.compute.ir import Call, DType, PlanNode, Program, Tensor, View
from ebmvk.compute.lowering import Fresh, Launch, Lower, Lowered, lower
from ebmvk.compute.matmul import parted
from ebmvk.compute.share import shared
from ebmvk.engine.recording import Limits, arrange
from ebmvk.errors import ArgumentError

Region = Literal["fed", "kept", "constants", "results", "arena"]
REGIONS: tuple[Region, ...] = ("fed", "kept", "constants", "results", "arena")

SEGMENT_SECONDS = 0.1
"""The time that a segment may take at the low speeds assumed below. Drivers reset a device that
works for about 2 s without a pause."""

SPEED = {"cpu": 2e9, "discrete": 5e10}
"""{kind of device: FLOP/s that even a slow device of this kind reaches}. OTHER_SPEED is for all
other kinds."""
OTHER_SPEED = 1e10
BYTES_PER_FLOP = 0.25
"""The bytes that such a device moves in the time of one floating-point operation."""


@dataclass(frozen=True)
class Place:
    """Where a tensor is: a region and an offset in bytes."""

    region: Region
    offset: int


@dataclass(frozen=True)
class Step:
    """A node with its dispatches. seconds: its time on a slow device of this kind."""

    node: PlanNode
    lowered: Lowered
    seconds: float

    @property
    def tensors(self) -> Iterator[Tensor]:
        """The tensors that its kernels read or write; a tensor may come twice."""
        yield from (view.tensor for view in writes(self.node))
        yield from (view.tensor for view, _ in reads(self.node))
        yield from self.lowered.scratch


@dataclass(frozen=True)
class Plan:
    """A planned program.

    Attributes:
        settled: the program with donated results in place.
        steps: in order.
        places: the places of all tensors, by id.
        nbytes: the size of each region.
        last_use: for each tensor of the arena, by id, the number of the last step that needs it.
        fetched: positions of the results that a run brings to the host.
    """

    program: Program
    settled: Settled
    steps: tuple[Step, ...]
    places: Mapping[int, Place]
    nbytes: Mapping[Region, int]
    last_use: Mapping[int, int]
    fetched: tuple[int, ...]

    @property
    def peak_bytes(self) -> int:
        """The bytes of device memory in all regions."""
        return sum(self.nbytes.values())

    @property
    def dispatches(self) -> int:
        """Kernels, copies and fills between the uploads and downloads of a run."""
        return sum(len(step.lowered.steps) for step in self.steps) + len(self.settled.copies)

    def segments(self, most: float = SEGMENT_SECONDS) -> Iterator[tuple[int, float]]:
        """The number of the step that ends each segment, and the segment's seconds.

        most: the most seconds of a segment with several steps; 0 makes each step a segment.
        """
        seconds = 0.0
        for number, step in enumerate(self.steps):
            if seconds and seconds + step.seconds > most:
                yield number - 1, seconds
                seconds = 0.0
            seconds += step.seconds
        if self.steps:
            yield len(self.steps) - 1, seconds


def make_plan(
    program: Program,
    limits: Limits,
    *,
    fed: Collection[int] | None = None,
    fetched: Collection[int] | None = None,
    alias: bool = True,
    lower: Lower = lower,
) -> Plan:
    """Plans a program.

    Args:
        fed: positions of the leaves that the host writes before each run; by default those that no
            result replaces. The others stay on the device.
        fetched: positions of the results that each run brings to the host; by default those that
            replace no leaf.
        alias: whether tensors of the arena share memory. False is for tests: the bits are the same.
        lower: the function that makes kernels of nodes.

    Raises:
        ArgumentError: a tensor is larger than what a kernel can bind on the device.
        ValueError: the program isn't sound: a tensor is read before it is written, a view leaves
            its tensor, or a result doesn't fit the argument that it replaces.
    """
    if fed is None:
        fed = set(range(len(program.leaves))) - set(program.donated.values())
    if fetched is None:
        fetched = set(range(len(program.outputs))) - set(program.donated)
    settled = settle(program)
    check(program, settled)
    fresh = _fresh(program, settled)
    nodes = [part for node in settled.nodes for part in _parted(node, limits, fresh)]
    nodes = finished(nodes, _kept(program, settled), limits)
    settled = replace(settled, nodes=shared(nodes, limits))
    steps = _lowered(settled, limits, lower, fresh)
    lives = _lives(settled, steps, fetched, own=set(program.inputs) | set(program.constants))
    results = _result_tensors(program, settled, fetched)
    regions: dict[Region, list[Tensor]] = {
        "fed": _fed_tensors(program, fed),
        "constants": list(program.constants),
        "results": results,
    }
    regions["kept"] = [tensor for tensor in program.inputs if tensor not in regions["fed"]]
    apart = {tensor.id for tensors in regions.values() for tensor in tensors}
    places: dict[int, Place] = {}
    nbytes: dict[Region, int] = {}
    for region, tensors in regions.items():
        nbytes[region] = _in_a_row(region, tensors, limits.alignment, places)
    temporary = {tensor: life for tensor, life in lives.items() if tensor.id not in apart}
    if alias:
        sizes = [(tensor.bytes, first, last) for tensor, (first, last) in temporary.items()]
        offsets, nbytes["arena"] = arrange(sizes, limits.alignment)
        places.update({t.id: Place("arena", at) for t, at in zip(temporary, offsets, strict=True)})
    else:
        nbytes["arena"] = _in_a_row("arena", list(temporary), limits.alignment, places)
    last_use = {tensor.id: last for tensor, (_, last) in temporary.items()}
    plan = Plan(program, settled, steps, places, nbytes, last_use, tuple(sorted(fetched)))
    _check_ranges(plan, limits)
    return plan


def check(program: Program, settled: Settled) -> None:
    """Raises ValueError unless every view lies in its tensor and nothing is read before it is
    written."""
    written = set(program.inputs) | set(program.constants)
    for number, node in enumerate(settled.nodes):
        for view, _ in reads(node):
            _check_view(view, number)
            if view.tensor not in written:
                raise ValueError(f"node {number} reads tensor {view.tensor.id} before it is written")
        for view in writes(node):
            _check_view(view, number)
            if view.tensor in program.constants:
                raise ValueError(f"node {number} writes a constant, tensor {view.tensor.id}")
            written.add(view.tensor)
    for position, view in enumerate(settled.outputs):
        _check_view(view, len(settled.nodes))
        if view.tensor not in written and 0 not in view.shape:  # nothing writes an empty result
            raise ValueError(f"no node writes result {position}")
    for view in program.leaves:
        _check_view(view, -1)
        if view.tensor not in program.inputs or not view.dense:
            raise ValueError(f"a leaf isn't a dense view of an input: tensor {view.tensor.id}")


def _check_view(view: View, number: int) -> None:
    begin, end = extent(view)
    if begin < 0 or end > view.tensor.bytes // 4:
        raise ValueError(f"node {number} uses elements {begin} to {end} of tensor {view.tensor.id} {view.tensor.shape}")


def _parted(node: PlanNode, limits: Limits, fresh: Fresh) -> Sequence[PlanNode]:
    """The node, or the nodes that take its place."""
    if isinstance(node, Call) and node.name == "matmul":
        return parted(node, limits, fresh) or (node,)
    if isinstance(node, Call) and node.name == "index_add":
        return zeroed(node) or (node,)
    return (node,)


def _kept(program: Program, settled: Settled) -> set[int]:
    """Tensors that are needed after the nodes, by id."""
    views = (*settled.outputs, *(source for source, _ in settled.copies))
    return {tensor.id for tensor in (*program.inputs, *program.constants)} | {view.tensor.id for view in views}


def _fresh(program: Program, settled: Settled) -> Fresh:
    """A function that makes new tensors for the program."""
    known = [tensor.id for tensor in (*program.inputs, *program.constants)]
    known += [view.tensor.id for node in settled.nodes for view in writes(node)]
    last = max(known, default=0)

    def fresh(shape: tuple[int, ...], dtype: DType) -> Tensor:
        nonlocal last
        last += 1
        return Tensor(last, shape, dtype)

    return fresh


def _lowered(settled: Settled, limits: Limits, lower: Lower, fresh: Fresh) -> tuple[Step, ...]:
    speed = SPEED.get(limits.kind, OTHER_SPEED)
    steps = []
    for node in settled.nodes:
        lowered = lower(node, limits, fresh)
        seconds = max(lowered.flops / speed, lowered.nbytes / (BYTES_PER_FLOP * speed))
        steps.append(Step(node, lowered, seconds))
    return tuple(steps)


def _lives(
    settled: Settled, steps: tuple[Step, ...], fetched: Collection[int], own: Collection[Tensor]
) -> dict[Tensor, tuple[int, int]]:
    """The first and the last step that uses each tensor, without inputs and constants."""
    lives: dict[Tensor, tuple[int, int]] = {}

    def touch(tensor: Tensor, number: int) -> None:
        if tensor not in own:
            lives[tensor] = (lives.get(tensor, (number, number))[0], number)

    for number, step in enumerate(steps):
        for tensor in step.tensors:
            touch(tensor, number)
    for position in fetched:
        touch(settled.outputs[position].tensor, len(steps))
    for source, _ in settled.copies:
        touch(source.tensor, len(steps))
    return lives


def _fed_tensors(program: Program, fed: Collection[int]) -> list[Tensor]:
    """Inputs of which the host writes every leaf before each run."""
    kept = {leaf.tensor for number, leaf in enumerate(program.leaves) if number not in fed}
    written = {leaf.tensor for number, leaf in enumerate(program.leaves) if number in fed}
    return [tensor for tensor in program.inputs if tensor in written - kept]


def _result_tensors(program: Program, settled: Settled, fetched: Collection[int]) -> list[Tensor]:
    """Tensors that hold only results, so that one copy can bring them all to the host."""
    own = set(program.inputs) | set(program.constants)
    found: dict[Tensor, None] = {}
    for position in sorted(fetched):
        view = settled.outputs[position]
        if view.tensor not in own and extent(view) == (0, view.tensor.bytes // 4):
            found[view.tensor] = None
    return list(found)


def _in_a_row(region: Region, tensors: list[Tensor], alignment: int, places: dict[int, Place]) -> int:
    end = 0
    for tensor in tensors:
        places[tensor.id] = Place(region, end)
        end += -(-tensor.bytes // alignment) * alignment
    return end


def _check_ranges(plan: Plan, limits: Limits) -> None:
    bound = {t for step in plan.steps for part in step.lowered.steps if isinstance(part, Launch) for t in part.tensors}
    known = plan.program.origins
    for tensor in sorted(bound, key=lambda t: (t.id not in known, t.id)):  # first those with a line of the step
        if tensor.bytes > limits.range_bytes:
            origin = known.get(tensor.id, f"tensor {tensor.id}")
            raise ArgumentError(
                f"{origin} {tensor.shape} has {tensor.bytes} bytes, and a kernel of this device can bind "
                f"{limits.range_bytes}",
                hint="use a smaller batch, or a smaller vocabulary or model",
            )
