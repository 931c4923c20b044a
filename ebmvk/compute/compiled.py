"""A program on a device: its memory, its kernels, and a recording that runs all of it."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ebmvk.compute.donate import writes
from ebmvk.compute.ir import Program, Tensor, View
from ebmvk.compute.lowering import Kernel, Launch, Lower, lower
from ebmvk.compute.plan import SEGMENT_SECONDS, Plan, Region, make_plan
from ebmvk.compute.sequence import Sequence as InSequence
from ebmvk.compute.sequence import Slots
from ebmvk.compute.state import Arena, Array, State, on_host, words
from ebmvk.engine.recording import POISON, Memory, Ran, Range, Recorder, Recording
from ebmvk.errors import OutOfMemory


@dataclass(frozen=True)
class Result:
    """What a run returns: the results brought to the host, by position, and what the run did."""

    outputs: dict[int, Array]
    ran: Ran


class Compiled:
    """A program that is ready to run. Each run waits for the device once. Several programs can also
    run with one wait: see `sequence`.

    Leaves (arguments) that aren't fed stay on the device, in `state`, between runs and between
    programs. Write them before the first run.

    Args:
        recorder: the device.
        program: the program.
        names: names of the leaves, by position; by default their numbers.
        fed: positions of the leaves that each run gets from the host; by default those that no
            result replaces.
        fetched: positions of the results that each run brings to the host; by default those that
            replace no leaf.
        state: arguments on this device that the program shares with other programs.
        arena: memory for intermediate results; other programs use it in their own runs.
        alone: False if the program only runs in sequences, so that it needs no own recording.
        alias: whether intermediate results share memory; see `plan.make_plan`.
        poison: for tests: fills memory with NaN before it is written and after its last use.
        lower: for tests: makes kernels of nodes.
        plan: an earlier plan that `make_plan` made of the same program and arguments.
        segment_seconds: see `Plan.segments`.

    Attributes:
        plan: places, sizes and segments.

    Raises:
        OutOfMemory: the device has too little memory; the message has the planned bytes.
        ArgumentError: a tensor or a kernel is larger than the device allows.
    """

    def __init__(
        self,
        recorder: Recorder,
        program: Program,
        *,
        names: Sequence[str] | None = None,
        fed: Collection[int] | None = None,
        fetched: Collection[int] | None = None,
        state: State | None = None,
        arena: Arena | None = None,
        alone: bool = True,
        alias: bool = True,
        poison: bool = False,
        lower: Lower = lower,
        plan: Plan | None = None,
        segment_seconds: float = SEGMENT_SECONDS,
    ) -> None:
        self.recorder = recorder
        self.program = program
        self.state = State(recorder) if state is None else state
        self.names = [str(i) for i in range(len(program.leaves))] if names is None else list(names)
        if len(set(self.names)) != len(program.leaves):
            raise ValueError(f"{len(program.leaves)} leaves need as many different names")
        self.plan: Plan = plan or make_plan(
            program, recorder.limits, fed=fed, fetched=fetched, alias=alias, lower=lower
        )
        self.fed = self._fed_leaves(fed)
        self.arena = Arena(recorder) if arena is None else arena
        self.arena.reserve(max(self.plan.nbytes["arena"], recorder.alignment))
        self._poison, self._segment_seconds = poison, segment_seconds
        self._memories = self._allocate()
        self._kept = self._place_kept()
        self._write_constants()
        self._alone = self._sequence() if alone else None

    # ----------------------------------------------------------------------------------- running

    def run(self, fed: Mapping[int, Array]) -> Result:
        """Runs the program.

        Args:
            fed: an array for each leaf of `self.fed`, by position. Whole numbers may have 64 bits
                if their values fit 32.

        Raises:
            ArgumentError: a missing array, or one that doesn't fit its leaf.
            DeviceError: a kept argument has no value on the device.
            DeviceLost: the device failed.
        """
        self._alone = self._alone or self._sequence()
        (outputs,), _, ran = self._alone.run([fed])
        return Result(outputs, ran)

    def write(self, arrays: Mapping[str, Array]) -> int:
        """Writes kept arguments; see `State.write`."""
        return self.state.write(arrays)

    def read(self, names: Sequence[str] | None = None) -> dict[str, Array]:
        """Reads kept arguments; see `State.read`."""
        return self.state.read(names)

    def output(self, position: int) -> Array:
        """A result of the last run: one that was fetched, or one that replaces an argument.

        Raises:
            ValueError: the result was neither; its memory may have been used again.
        """
        view = self.plan.settled.outputs[position] if position not in self.program.donated else self._target(position)
        if self.plan.places[view.tensor.id].region == "arena":
            raise ValueError(f"result {position} was not fetched")
        array = np.empty(view.shape, np.uint32)
        memory, offset, _ = self._range(view)
        memory.read([(offset, array)])
        return on_host(array, view.tensor.dtype)

    @property
    def nbytes(self) -> int:
        """Planned bytes on the device, arguments included."""
        return self.plan.peak_bytes

    # ---------------------------------------------------------------------------------- building

    def _fed_leaves(self, fed: Collection[int] | None) -> tuple[int, ...]:
        donated = set(self.program.donated.values())
        return tuple(i for i in range(len(self.program.leaves)) if (i in fed if fed is not None else i not in donated))

    def _allocate(self) -> dict[Region, Memory]:
        regions: tuple[Region, ...] = ("fed", "constants", "results")
        sizes = {region: max(self.plan.nbytes[region], self.recorder.alignment) for region in regions}
        return {region: self.recorder.memory(size, f"a program's region '{region}'") for region, size in sizes.items()}

    def _sequence(self) -> InSequence:
        return InSequence([weakref.proxy(self)])  # a proxy, so that no reference cycle delays freeing memory

    def _place_kept(self) -> dict[int, tuple[Memory, int]]:
        kept = [tensor for tensor in self.program.inputs if self.plan.places[tensor.id].region == "kept"]
        leaves: dict[Tensor, list[tuple[str, View]]] = {}
        for name, view in zip(self.names, self.program.leaves, strict=True):
            leaves.setdefault(view.tensor, []).append((name, view))
        return self.state.place(kept, leaves)

    @property
    def kept(self) -> list[str]:
        """Names of the arguments that stay on the device."""
        return [name for i, name in enumerate(self.names) if i not in self.fed]

    @property
    def changed(self) -> list[str]:
        """Names of the arguments that a run changes."""
        program = self.program
        pairs = ((program.outputs[position], leaf) for position, leaf in program.donated.items())
        return [self.names[leaf] for view, leaf in pairs if view != program.leaves[leaf]]

    def _target(self, position: int) -> View:
        return self.program.leaves[self.program.donated[position]]

    def _whole(self, tensor: Tensor) -> Range:
        place = self.plan.places[tensor.id]
        memory, offset = self._kept.get(tensor.id) or (self._memories[place.region], place.offset)
        return memory, offset, tensor.bytes

    def _range(self, view: View) -> Range:
        memory, offset, _ = self._whole(view.tensor)
        return memory, offset + 4 * view.offset, 4 * int(np.prod(view.shape, dtype=np.int64))

    def record(self, record: Recording) -> Slots:
        """Adds a run of the program, with its own transfers, to a recording.

        Raises OutOfMemory if intermediate results don't fit; the message has the planned bytes.
        """
        plan = self.plan
        self._memories["arena"] = self.arena.memory(f"a program's arena of {plan.peak_bytes} bytes in all")
        block, alone = -1, {}
        if plan.nbytes["fed"]:
            block = record.upload((self._memories["fed"], 0, plan.nbytes["fed"]))
        for leaf in self.fed:
            view = self.program.leaves[leaf]
            if plan.places[view.tensor.id].region != "fed":
                alone[leaf] = record.upload(self._range(view))
        if self._poison:
            for region in ("arena", "results"):
                record.fill((self._memories[region], 0, plan.nbytes[region]), POISON)
        self._add_steps(record)
        for source, target in plan.settled.copies:
            record.copy(self._range(source), self._range(target))
        results, each = -1, {}
        if plan.nbytes["results"]:
            results = record.download((self._memories["results"], 0, plan.nbytes["results"]))
        for position in plan.fetched:
            view = plan.settled.outputs[position]
            if plan.places[view.tensor.id].region != "results":
                each[position] = (record.download(self._range(view)), np.empty(view.shape, np.uint32))
        return Slots(plan, self.names, self.fed, block, alone, results, each)

    def _add_steps(self, record: Recording) -> None:
        cuts = dict(self.plan.segments(self._segment_seconds))
        freed: dict[int, list[Tensor]] = {}
        if self._poison:
            freed = self._freed()
        for number, step in enumerate(self.plan.steps):
            what = self.origin(number)
            for part in step.lowered.steps:
                if isinstance(part, Launch):
                    ranges = [self._whole(tensor) for tensor in part.tensors]
                    record.kernel(self._module(part.kernel), ranges, part.push, part.groups, what)
                else:
                    memory, offset, _ = self._whole(part.tensor)
                    record.fill((memory, offset + part.offset, part.nbytes), part.word)
            for tensor in freed.get(number, ()):
                record.fill(self._whole(tensor), POISON)
            if number in cuts:
                record.cut(cuts[number])

    def _freed(self) -> dict[int, list[Tensor]]:
        """Tensors of the arena, by the number of the last step that needs them."""
        freed: dict[int, list[Tensor]] = {}
        seen: set[int] = set()
        for step in self.plan.steps:
            for tensor in (*(view.tensor for view in writes(step.node)), *step.lowered.scratch):
                if tensor.id in self.plan.last_use and tensor.id not in seen:
                    seen.add(tensor.id)
                    freed.setdefault(self.plan.last_use[tensor.id], []).append(tensor)
        return freed

    def origin(self, number: int) -> str:
        """The operation that made the first result of a step of the plan, and its line."""
        names = (self.program.origins.get(view.tensor.id) for view in writes(self.plan.steps[number].node))
        return next((name for name in names if name), f"node {number}")

    def _module(self, kernel: Kernel) -> Any:
        if not kernel.spirv:
            return self.recorder.kernel(kernel.name, kernel.group, kernel.constants)
        return self.recorder.module(
            kernel.spirv, kernel.access, kernel.push_words, kernel.group, kernel.constants, kernel.subgroup, kernel.name
        )

    def _write_constants(self) -> None:
        pieces = []
        for tensor, value in self.program.constants.items():
            array = words(f"constant {tensor.id}", np.asarray(value), tensor.shape, tensor.dtype)
            pieces.append((self.plan.places[tensor.id].offset, array))
        self._memories["constants"].write(pieces)


class Cache:
    """Compiled programs by key. The least recently used programs are dropped first.

    Args:
        most: the number of programs to keep.
    """

    def __init__(self, most: int = 16) -> None:
        self.most = most
        self._kept: OrderedDict[Hashable, Compiled] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Compiled]) -> Compiled:
        """The program of a key, made if it isn't there. If memory runs out, all other programs are
        dropped and the program is made again."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        made = None
        try:
            made = make()
        except OutOfMemory:
            if not self._kept:
                raise
        if made is None:  # after `except`: inside, the error would hold the memory of the first try
            self._kept.clear()
            made = make()
        self._kept[key] = made
        while len(self._kept) > self.most:
            self._kept.popitem(last=False)
        return made

    def __len__(self) -> int:
        return len(self._kept)
