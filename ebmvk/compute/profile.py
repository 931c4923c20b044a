"""Measures the time and the memory of a program, for each kernel and for each line of the step.

The program is recorded a second time, with a pair of the device's time stamps around each node. So
the nodes' times may not add up to the time of the whole program, where kernels may overlap.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from ebmvk.compute import expr
from ebmvk.compute.compiled import Compiled
from ebmvk.compute.ir import Batch, Call, Finished, Loop, PlanNode, Reduce
from ebmvk.compute.plan import Plan
from ebmvk.compute.state import Array
from ebmvk.errors import DeviceError

ROUNDS = 3
"""The number of measured runs of the second recording, after one run that isn't measured. The
median is reported."""

PRODUCTS = ("matmul", "matmul_parts", "matmul with a loop")
"""Kinds of kernels that count as matrix products, with the operations fused into them. A loop that
adds up the parts of a product's sums doesn't count as one."""
_PLACE = re.compile(r"(?P<operation>\S+) at (?P<file>.+?):(?P<line>\d+): (?P<code>.*)", re.DOTALL)


@dataclass(frozen=True)
class Kernel:
    """One node of a program, which takes one dispatch or a few.

    kind: what the node does, for example "matmul" or "loop with sums". operation: the operation of
    torch that made its first result. line: the line of the step that called the operation, as
    "file:line: code"; fused nodes come from several lines. seconds: time on the device. flops:
    number of operations; a function such as exp counts as one. bytes: the least number of bytes
    that must be read and written.
    """

    kind: str
    operation: str
    line: str
    seconds: float
    flops: float
    bytes: float
    dispatches: int


@dataclass(frozen=True)
class Block:
    """A tensor that lives during a step. line: as in `Kernel`. offset: bytes from the beginning of
    the arena. first, last: numbers of the nodes that write it first and read it last."""

    line: str
    offset: int
    nbytes: int
    first: int
    last: int


@dataclass(frozen=True)
class Profile:
    """What one run of a program takes.

    kernels: in order. blocks: the tensors of the arena, which intermediate results share. nbytes:
    bytes on the device by region. seconds: time of the whole run without time stamps, including the
    wait.
    """

    kernels: Sequence[Kernel]
    blocks: Sequence[Block]
    nbytes: Mapping[str, int]
    seconds: float

    @property
    def busy(self) -> float:
        """Seconds of all kernels."""
        return sum(kernel.seconds for kernel in self.kernels)


def profile(program: Compiled, fed: Mapping[int, Array], rounds: int = ROUNDS) -> Profile:
    """Measure a program. The values that it keeps on the device stay the same.

    fed: as for `Compiled.run`.

    Raises:
        DeviceError: the device has no clock, or failed. OutOfMemory: the device has no room for
            a second recording.
    """
    timed = Compiled(
        program.recorder, program.program, names=program.names, fed=program.fed, plan=program.plan,
        state=program.state, arena=program.arena, segment_seconds=0.0,
    )  # fmt: skip
    kept = {name: array.copy() for name, array in program.read(program.changed).items()}
    try:
        whole = [program.run(fed).ran.seconds for _ in range(rounds + 1)][1:]
        stamps = [timed.run(fed).ran.segment_seconds for _ in range(rounds + 1)][1:]
    finally:
        program.write(kept)
    medians = [statistics.median(each) for each in zip(*stamps, strict=True)]
    if not any(medians):
        raise DeviceError("the device has no clock for its own work", hint="profile on another device")
    # After the last cut only transfers to the host follow.
    seconds = {end: took for (end, _), took in zip(program.plan.segments(0.0), medians, strict=False)}
    kernels = [
        Kernel(
            kind(step.node),
            *origin(program.origin(number)),
            seconds.get(number, 0.0),
            step.lowered.flops,
            float(step.lowered.nbytes),
            len(step.lowered.steps),
        )
        for number, step in enumerate(program.plan.steps)
    ]
    nbytes = {str(region): own for region, own in program.plan.nbytes.items()}
    return Profile(kernels, blocks(program.plan), nbytes, statistics.median(whole))


def kind(node: PlanNode) -> str:
    """What a node does, in few words."""
    if isinstance(node, Call):
        return node.name
    if isinstance(node, Finished):
        return "matmul with a loop"
    if isinstance(node, Batch):
        return "loops together"
    return "loop with sums" if _reduces(node) else "loop"


def origin(text: str) -> tuple[str, str]:
    """(operation, "file:line: code") from a text of `origins.origin_of`. Most of the file's folders
    are left out."""
    found = _PLACE.fullmatch(text)
    if not found:
        return text, ""
    file = "/".join(PurePath(found["file"]).parts[-2:])
    return found["operation"], f"{file}:{found['line']}: {found['code']}"


def blocks(plan: Plan) -> list[Block]:
    """The arena's tensors, in the order in which they are first written."""
    first: dict[int, int] = {}
    nbytes: dict[int, int] = {}
    for number, step in enumerate(plan.steps):
        for tensor in step.tensors:
            if tensor.id in plan.last_use:
                first.setdefault(tensor.id, number)
                nbytes[tensor.id] = tensor.bytes
    return [
        Block(
            origin(plan.program.origins.get(tensor, ""))[1],
            plan.places[tensor].offset,
            nbytes[tensor],
            number,
            min(plan.last_use[tensor], len(plan.steps) - 1),
        )
        for tensor, number in first.items()
    ]


def by(kernels: Iterable[Kernel], name: str) -> dict[str, list[Kernel]]:
    """Kernels grouped by an attribute, the group that takes longest first."""
    groups: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        groups.setdefault(getattr(kernel, name), []).append(kernel)
    return dict(sorted(groups.items(), key=lambda group: -sum(kernel.seconds for kernel in group[1])))


def _reduces(loop: Loop) -> bool:
    return any(isinstance(value, Reduce) for value in expr.walk(*(store.value for store in loop.stores)))
