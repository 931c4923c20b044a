"""Programs on one device that run one after another in one submission, with one wait."""

from __future__ import annotations

import collections.abc
import threading
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ebmvk.compute.plan import Plan
from ebmvk.compute.state import Array, on_host, words
from ebmvk.engine.recording import Ran
from ebmvk.errors import EbmvkError

if TYPE_CHECKING:
    from ebmvk.compute.compiled import Compiled


class Slots:
    """The recording's slots through which a run of a program gets and returns arrays.

    Args:
        plan: the program's plan. names: names of its leaves, by position. fed: positions of the
            leaves that are fed.
        block: slot of the arrays that are uploaded together, or -1. alone: slots of the other
            arrays, by position of the leaf.
        results: slot of the results that are brought to the host together, or -1. each: slots and
            words of the other results, by position.
    """

    def __init__(
        self, plan: Plan, names: collections.abc.Sequence[str], fed: Collection[int], block: int,
        alone: Mapping[int, int], results: int, each: Mapping[int, tuple[int, Array]],
    ) -> None:  # fmt: skip
        self._plan, self._names, self._fed = plan, names, set(fed)
        self._block_slot, self._alone, self._results_slot, self._each = block, alone, results, each
        self._block = np.zeros(plan.nbytes["fed"], np.uint8)
        self._results = np.zeros(plan.nbytes["results"], np.uint8)

    def uploads(self, fed: Mapping[int, Array]) -> dict[int, Array]:
        """Arrays by slot. fed: an array for each leaf of `Compiled.fed`, by position.

        Raises ArgumentError for an array that doesn't fit its leaf.
        """
        found: dict[int, Array] = {} if self._block_slot < 0 else {self._block_slot: self._block}
        if set(fed) != self._fed:
            raise ValueError(f"expected arrays for the leaves {sorted(self._fed)}, got {sorted(fed)}")
        for leaf, array in fed.items():
            view = self._plan.program.leaves[leaf]
            made = words(self._names[leaf], array, view.shape, view.tensor.dtype)
            if leaf in self._alone:
                found[self._alone[leaf]] = made
            else:
                begin = self._plan.places[view.tensor.id].offset + 4 * view.offset
                self._block[begin : begin + made.nbytes] = made.reshape(-1).view(np.uint8)
        return found

    def downloads(self) -> dict[int, Array]:
        """Arrays to fill, by slot."""
        found = dict(self._each.values())
        if self._results_slot >= 0:
            found[self._results_slot] = self._results
        return found

    def outputs(self) -> dict[int, Array]:
        """The results of the last run, by position."""
        return {position: self._output(position) for position in self._plan.fetched}

    def _output(self, position: int) -> Array:
        plan = self._plan
        view = plan.settled.outputs[position]
        if position in self._each:
            return on_host(self._each[position][1].copy(), view.tensor.dtype)
        begin = plan.places[view.tensor.id].offset + 4 * view.offset
        size = 4 * int(np.prod(view.shape, dtype=np.int64))
        part = self._results[begin : begin + size].copy().view(np.uint32)
        return on_host(part.reshape(view.shape), view.tensor.dtype)


class Sequence:
    """Runs of programs that share a state, one after another; a program may occur several times.

    Args:
        programs: in order.
        given: names of kept arguments that each run gets from the host before its programs run.
        taken: names of kept arguments that each run brings to the host after its programs.

    Raises:
        OutOfMemory: the device has too little memory.
    """

    def __init__(
        self, programs: collections.abc.Sequence[Compiled], given: collections.abc.Sequence[str] = (),
        taken: collections.abc.Sequence[str] = (),
    ) -> None:  # fmt: skip
        first = programs[0]
        self._programs, self._state, self._lock = list(programs), first.state, threading.Lock()
        self.recording = first.recorder.recording()
        self._given = {name: self.recording.upload(self._state.range(name)) for name in given}
        self._parts = [program.record(self.recording) for program in programs]
        self._taken = {name: self.recording.download(self._state.range(name)) for name in taken}
        self.recording.finish()

    def run(
        self, fed: collections.abc.Sequence[Mapping[int, Array]], given: Mapping[str, Array] | None = None
    ) -> tuple[list[dict[int, Array]], dict[str, Array], Ran]:
        """Runs all programs.

        Args:
            fed: for each program, an array for each leaf of its `fed`, by position. Whole numbers
                may have 64 bits if their values fit 32.
            given: arrays for the kept arguments in the sequence's `given`, by name.

        Returns:
            The results of each program by position, the arguments taken, and what was done.

        Raises:
            ArgumentError: an array that doesn't fit.
            DeviceError: a kept argument has no value on the device.
            DeviceLost: the device failed.
        """
        given = given or {}
        self._state.require({name for program in self._programs for name in program.kept} - set(given))
        with self._lock:
            uploads = {self._given[name]: self._state.words(name, array) for name, array in given.items()}
            for part, own in zip(self._parts, fed, strict=True):
                uploads |= part.uploads(own)
            taken = {name: np.empty(self._state.entries[name].shape, np.uint32) for name in self._taken}
            downloads = {self._taken[name]: array for name, array in taken.items()}
            for part in self._parts:
                downloads |= part.downloads()
            try:
                ran = self.recording.run(uploads, downloads)
            except EbmvkError:
                if not self.recording.intact:
                    self._state.lose(name for program in self._programs for name in program.changed)
                    self._state.lose(given)
                raise
            self._state.found(given)
            found = {name: on_host(array, self._state.entries[name].dtype) for name, array in taken.items()}
            return [part.outputs() for part in self._parts], found, ran
