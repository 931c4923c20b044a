"""A program on a device: its memory, its kernels, and one recording that runs all of it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ebmvk.compute.donate import writes
from ebmvk.compute.ir import Program, Tensor, View
from ebmvk.compute.lowering import Kernel, Launch, Lower, lower
from ebmvk.compute.plan import Plan, Region, make_plan
from ebmvk.compute.state import Array, State, on_host, words
from ebmvk.engine.recording import POISON, Memory, Ran, Range, Recorder
from ebmvk.errors import EbmvkError, OutOfMemory


@dataclass(frozen=True)
class Result:
    """A run: the results that it brought to the host, by position, and what it did."""

    outputs: dict[int, Array]
    ran: Ran


class Compiled:
    """A program that is ready to run. Every run is one wait.

    Leaves that aren't fed stay on the device, in `state`, between runs and between programs. Write
    them before the first run.

    Args:
        recorder: the device.
        program: the program.
        names: of the leaves, by position; by default their numbers.
        fed: positions of the leaves that each run gets from the host; by default those that no
            result replaces.
        fetched: positions of the results that each run brings to the host; by default those that
            replace no leaf.
        state: arguments on this device that other programs have, too.
        arena: memory for intermediate results that another program may use in its own runs. It is
            used if it is large enough.
        alias: intermediate results share memory; see `plan.make_plan`.
        poison: for tests: fills memory with NaN before it is written and after its last use.
        lower: for tests: makes kernels of nodes.

    Attributes:
        plan: places, sizes and segments.

    Raises:
        OutOfMemory: no room on the device; the message has the planned bytes.
        ArgumentError: a tensor or a kernel is more than the device allows.
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
        arena: Memory | None = None,
        alias: bool = True,
        poison: bool = False,
        lower: Lower = lower,
    ) -> None:
        self.recorder = recorder
        self.program = program
        self.state = State(recorder) if state is None else state
        self.names = [str(i) for i in range(len(program.leaves))] if names is None else list(names)
        if len(set(self.names)) != len(program.leaves):
            raise ValueError(f"{len(program.leaves)} leaves need as many different names")
        self.plan: Plan = make_plan(program, recorder.limits, fed=fed, fetched=fetched, alias=alias, lower=lower)
        self.fed = self._fed_leaves(fed)
        self._lock = threading.Lock()
        self._memories = self._allocate(arena)
        self._kept = self._place_kept()
        self._block = np.zeros(self.plan.nbytes["fed"], np.uint8)
        self._results = np.zeros(self.plan.nbytes["results"], np.uint8)
        self._uploads: dict[int, int] = {}  # slot of a leaf that is alone
        self._downloads: dict[int, tuple[int, Array]] = {}  # slot and words of a result that is alone
        self._block_slot = self._results_slot = -1
        self._record = recorder.recording()
        self._build(poison)
        self._write_constants()

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
        self.state.require(self._kept_names())
        with self._lock:
            uploads = self._arrays(fed)
            downloads = dict(self._downloads.values())
            if self._results_slot >= 0:
                downloads[self._results_slot] = self._results
            try:
                ran = self._record.run(uploads, downloads)
            except EbmvkError:
                if not self._record.intact:
                    self.state.lose(self.names[leaf] for leaf in self.program.donated.values())
                raise
            return Result({position: self._output(position) for position in self.plan.fetched}, ran)

    def write(self, arrays: Mapping[str, Array]) -> int:
        """Writes kept arguments; see `State.write`."""
        return self.state.write(arrays)

    def read(self, names: Sequence[str] | None = None) -> dict[str, Array]:
        """Reads kept arguments; see `State.read`."""
        return self.state.read(names)

    def output(self, position: int) -> Array:
        """A result of the last run that was fetched or replaces an argument.

        Raises:
            ValueError: its memory may have been used again.
        """
        view = self.plan.settled.outputs[position] if position not in self.program.donated else self._target(position)
        if self.plan.places[view.tensor.id].region == "arena":
            raise ValueError(f"result {position} was not fetched")
        array = np.empty(view.shape, np.uint32)
        memory, offset, _ = self._range(view)
        memory.read([(offset, array)])
        return on_host(array, view.tensor.dtype)

    @property
    def arena(self) -> Memory:
        """The memory for intermediate results."""
        return self._memories["arena"]

    @property
    def nbytes(self) -> int:
        """Planned bytes on the device, arguments included."""
        return self.plan.peak_bytes

    # ---------------------------------------------------------------------------------- building

    def _fed_leaves(self, fed: Collection[int] | None) -> tuple[int, ...]:
        donated = set(self.program.donated.values())
        return tuple(i for i in range(len(self.program.leaves)) if (i in fed if fed is not None else i not in donated))

    def _allocate(self, arena: Memory | None) -> dict[Region, Memory]:
        step, plan = self.recorder.alignment, self.plan
        memories: dict[Region, Memory] = {}
        regions: tuple[Region, ...] = ("fed", "constants", "results")
        for region in regions:
            memories[region] = self.recorder.memory(max(plan.nbytes[region], step), f"a program's region '{region}'")
        size = max(plan.nbytes["arena"], step)
        if arena is not None and arena.nbytes >= size:
            memories["arena"] = arena
        else:
            memories["arena"] = self.recorder.memory(size, f"a program's arena of {plan.peak_bytes} bytes in all")
        return memories

    def _place_kept(self) -> dict[int, tuple[Memory, int]]:
        kept = [tensor for tensor in self.program.inputs if self.plan.places[tensor.id].region == "kept"]
        leaves: dict[Tensor, list[tuple[str, View]]] = {}
        for name, view in zip(self.names, self.program.leaves, strict=True):
            leaves.setdefault(view.tensor, []).append((name, view))
        return self.state.place(kept, leaves)

    def _kept_names(self) -> list[str]:
        return [name for i, name in enumerate(self.names) if i not in self.fed]

    def _target(self, position: int) -> View:
        return self.program.leaves[self.program.donated[position]]

    def _whole(self, tensor: Tensor) -> Range:
        place = self.plan.places[tensor.id]
        memory, offset = self._kept.get(tensor.id) or (self._memories[place.region], place.offset)
        return memory, offset, tensor.bytes

    def _range(self, view: View) -> Range:
        memory, offset, _ = self._whole(view.tensor)
        return memory, offset + 4 * view.offset, 4 * int(np.prod(view.shape, dtype=np.int64))

    def _build(self, poison: bool) -> None:
        record, plan = self._record, self.plan
        if plan.nbytes["fed"]:
            self._block_slot = record.upload((self._memories["fed"], 0, plan.nbytes["fed"]))
        for leaf in self.fed:
            view = self.program.leaves[leaf]
            if plan.places[view.tensor.id].region != "fed":
                self._uploads[leaf] = record.upload(self._range(view))
        if poison:
            for region in ("arena", "results"):
                record.fill((self._memories[region], 0, plan.nbytes[region]), POISON)
        self._add_steps(poison)
        for source, target in plan.settled.copies:
            record.copy(self._range(source), self._range(target))
        if plan.nbytes["results"]:
            self._results_slot = record.download((self._memories["results"], 0, plan.nbytes["results"]))
        for position in plan.fetched:
            view = plan.settled.outputs[position]
            if plan.places[view.tensor.id].region != "results":
                self._downloads[position] = (record.download(self._range(view)), np.empty(view.shape, np.uint32))
        record.finish()

    def _add_steps(self, poison: bool) -> None:
        cuts = dict(self.plan.segments())
        freed: dict[int, list[Tensor]] = {}
        if poison:
            freed = self._freed()
        for number, step in enumerate(self.plan.steps):
            what = self._origin(number)
            for part in step.lowered.steps:
                if isinstance(part, Launch):
                    ranges = [self._whole(tensor) for tensor in part.tensors]
                    self._record.kernel(self._module(part.kernel), ranges, part.push, part.groups, what)
                else:
                    memory, offset, _ = self._whole(part.tensor)
                    self._record.fill((memory, offset + part.offset, part.nbytes), part.word)
            for tensor in freed.get(number, ()):
                self._record.fill(self._whole(tensor), POISON)
            if number in cuts:
                self._record.cut(cuts[number])

    def _freed(self) -> dict[int, list[Tensor]]:
        """Tensors of the arena by the step after which nobody needs them."""
        freed: dict[int, list[Tensor]] = {}
        seen: set[int] = set()
        for step in self.plan.steps:
            for tensor in (*(view.tensor for view in writes(step.node)), *step.lowered.scratch):
                if tensor.id in self.plan.last_use and tensor.id not in seen:
                    seen.add(tensor.id)
                    freed.setdefault(self.plan.last_use[tensor.id], []).append(tensor)
        return freed

    def _origin(self, number: int) -> str:
        names = (self.program.origins.get(view.tensor.id) for view in writes(self.plan.steps[number].node))
        return next((name for name in names if name), f"node {number}")

    def _module(self, kernel: Kernel) -> Any:
        if not kernel.spirv:
            return self.recorder.kernel(kernel.name, kernel.group, kernel.constants)
        return self.recorder.module(
            kernel.spirv, kernel.access, kernel.push_words, kernel.group, kernel.constants, name=kernel.name
        )

    def _write_constants(self) -> None:
        pieces = []
        for tensor, value in self.program.constants.items():
            array = words(f"constant {tensor.id}", np.asarray(value), tensor.shape, tensor.dtype)
            pieces.append((self.plan.places[tensor.id].offset, array))
        self._memories["constants"].write(pieces)

    # ------------------------------------------------------------------------------ host's arrays

    def _arrays(self, fed: Mapping[int, Array]) -> dict[int, Array]:
        uploads: dict[int, Array] = {} if self._block_slot < 0 else {self._block_slot: self._block}
        if set(fed) != set(self.fed):
            raise ValueError(f"leaves {sorted(self.fed)} are fed, got {sorted(fed)}")
        for leaf, array in fed.items():
            view = self.program.leaves[leaf]
            made = words(self.names[leaf], array, view.shape, view.tensor.dtype)
            if leaf in self._uploads:
                uploads[self._uploads[leaf]] = made
            else:
                begin = self.plan.places[view.tensor.id].offset + 4 * view.offset
                self._block[begin : begin + made.nbytes] = made.reshape(-1).view(np.uint8)
        return uploads

    def _output(self, position: int) -> Array:
        view = self.plan.settled.outputs[position]
        if position in self._downloads:
            return on_host(self._downloads[position][1].copy(), view.tensor.dtype)
        begin = self.plan.places[view.tensor.id].offset + 4 * view.offset
        size = 4 * int(np.prod(view.shape, dtype=np.int64))
        part = self._results[begin : begin + size].copy().view(np.uint32)
        return on_host(part.reshape(view.shape), view.tensor.dtype)


class Cache:
    """Compiled programs by key, the ones used least recently dropped first.

    Args:
        most: the number of programs to keep.
    """

    def __init__(self, most: int = 16) -> None:
        self.most = most
        self._kept: OrderedDict[Hashable, Compiled] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Compiled]) -> Compiled:
        """The program of a key, made if it isn't there. If memory runs out, all others are dropped
        first and it is tried again."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        made = None
        try:
            made = make()
        except OutOfMemory:
            if not self._kept:
                raise
        if made is None:  # outside of `except`, where the error would keep what the first try allocated
            self._kept.clear()
            made = make()
        self._kept[key] = made
        while len(self._kept) > self.most:
            self._kept.popitem(last=False)
        return made

    def __len__(self) -> int:
        return len(self._kept)
