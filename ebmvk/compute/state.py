"""Arguments of programs that stay on the device between runs, by name.

Programs for different shapes, for example for the last batch or for evaluation, share them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebmvk.compute.ir import DType, Tensor, View
from ebmvk.engine.recording import Memory, Range, Recorder
from ebmvk.errors import ArgumentError, DeviceError

Array = NDArray[Any]

ON_HOST: dict[DType, Any] = {"float32": np.float32, "int32": np.int32, "uint32": np.uint32, "bool": np.bool_}
"""{type on the device: type on the host}. On the device a bool takes a word."""


@dataclass(frozen=True)
class Entry:
    """Where an argument lies in device memory. offset: in bytes."""

    memory: Memory
    offset: int
    shape: tuple[int, ...]
    dtype: DType


class Arena:
    """Memory for the intermediate results of programs that never run at the same time. It is
    allocated at its first use, with the size that the largest program announced so far needs."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._memory: Memory | None = None
        self.nbytes = 0

    def reserve(self, nbytes: int) -> None:
        """Announces a program that needs `nbytes` bytes."""
        self.nbytes = max(self.nbytes, nbytes)

    def memory(self, what: str) -> Memory:
        """The memory, with room for all programs announced so far. Raises OutOfMemory."""
        if self._memory is None or self._memory.nbytes < self.nbytes:
            self._memory = None  # frees the old memory first, unless a recording needs it
            self._memory = self._recorder.memory(self.nbytes, what)
        return self._memory


class State:
    """Named arguments in device memory. They are undefined until they are written.

    Attributes:
        entries: by name.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.entries: dict[str, Entry] = {}
        self._lost: set[str] = set()  # names to write before the next run

    def place(self, tensors: Sequence[Tensor], leaves: Mapping[Tensor, list[tuple[str, View]]]) -> dict[int, Spot]:
        """The places of a program's inputs, by id. Inputs with new names get new memory.

        Args:
            tensors: inputs that stay on the device.
            leaves: names and views of the arguments in each input.

        Raises:
            OutOfMemory: the device has too little memory for new arguments.
            ValueError: arguments that share an input in this program lie differently in the known
                memory, or have other shapes there.
        """
        places: dict[int, Spot] = {}
        new: list[Tensor] = []
        for tensor in tensors:
            known = self._known(tensor, leaves.get(tensor, []))
            if known is None:
                new.append(tensor)
            else:
                places[tensor.id] = known
        step = self.recorder.alignment
        ends = [-(-tensor.bytes // step) * step for tensor in new]
        if new:
            memory = self.recorder.memory(max(sum(ends), step), "weights and other arguments")
            offset = 0
            for tensor, size in zip(new, ends, strict=True):
                places[tensor.id] = (memory, offset)
                for name, view in leaves.get(tensor, []):
                    self.entries[name] = Entry(memory, offset + 4 * view.offset, view.shape, tensor.dtype)
                    self._lost.add(name)
                offset += size
        return places

    def _known(self, tensor: Tensor, leaves: list[tuple[str, View]]) -> Spot | None:
        found = [self.entries.get(name) for name, _ in leaves]
        if not any(found):
            return None
        bases = set()
        for entry, (name, view) in zip(found, leaves, strict=True):
            if entry is None or (entry.shape, entry.dtype) != (view.shape, tensor.dtype):
                was = "is unknown" if entry is None else f"is {entry.dtype} {entry.shape}"
                raise ValueError(f"argument {name} {was} on the device, and {tensor.dtype} {view.shape} here")
            bases.add((entry.memory, entry.offset - 4 * view.offset))
        ((memory, base), *others) = bases
        if others or base < 0 or base + tensor.bytes > memory.nbytes or base % self.recorder.alignment:
            raise ValueError(f"arguments {[name for name, _ in leaves]} lie in another order on the device")
        return memory, base

    def write(self, arrays: Mapping[str, Array]) -> int:
        """Copies arrays to the device. Returns the bytes copied.

        Raises:
            ArgumentError: an unknown name, a wrong shape or dtype, or a value that doesn't fit.
        """
        pieces: dict[Memory, list[tuple[int, Array]]] = {}
        for name, array in arrays.items():
            entry = self._entry(name)
            pieces.setdefault(entry.memory, []).append((entry.offset, words(name, array, entry.shape, entry.dtype)))
        moved = sum(memory.write(sorted(part, key=lambda piece: piece[0])) for memory, part in pieces.items())
        self.found(arrays)
        return moved

    def read(self, names: Iterable[str] | None = None) -> dict[str, Array]:
        """Copies arguments to the host: those named, or all.

        Raises:
            ArgumentError: an unknown name. DeviceError: values are undefined.
        """
        wanted = list(self.entries if names is None else names)
        self.require(wanted)
        made = {name: np.empty(self._entry(name).shape, np.uint32) for name in wanted}
        pieces: dict[Memory, list[tuple[int, Array]]] = {}
        for name, array in made.items():
            entry = self.entries[name]
            pieces.setdefault(entry.memory, []).append((entry.offset, array))
        for memory, part in pieces.items():
            memory.read(part)
        return {name: on_host(array, self.entries[name].dtype) for name, array in made.items()}

    def range(self, name: str) -> Range:
        """The part of device memory that holds an argument. Raises ArgumentError if the name is
        unknown."""
        entry = self._entry(name)
        return entry.memory, entry.offset, 4 * int(np.prod(entry.shape, dtype=np.int64))

    def words(self, name: str, array: Array) -> Array:
        """An array in the form that the device needs for an argument; see the function `words`."""
        entry = self._entry(name)
        return words(name, array, entry.shape, entry.dtype)

    def require(self, names: Iterable[str]) -> None:
        """Raises DeviceError unless all of these were written, and no later run failed halfway."""
        undefined = sorted(self._lost.intersection(names))
        if undefined:
            others = f" and {len(undefined) - 1} more" if len(undefined) > 1 else ""
            raise DeviceError(
                f"no values on the device for {undefined[0]}{others}",
                why="they were never written, or a run failed halfway",
                hint="write them again, for example from a checkpoint",
            )

    def lose(self, names: Iterable[str]) -> None:
        """Marks values as undefined."""
        self._lost.update(names)

    def found(self, names: Iterable[str]) -> None:
        """Marks values as written."""
        self._lost.difference_update(names)

    def _entry(self, name: str) -> Entry:
        entry = self.entries.get(name)
        if entry is None:
            raise ArgumentError(f"no argument is called {name}", hint="see `State.entries` for the names")
        return entry


Spot = tuple[Memory, int]
"""A memory and an offset in bytes."""


def words(name: str, array: Array, shape: tuple[int, ...], dtype: DType) -> Array:
    """An array in the form that the device needs: contiguous, with 4 bytes per element.

    Raises:
        ArgumentError: another shape, another kind of number, or a whole number that doesn't fit 32
            bits.
    """
    array = np.asarray(array)
    if array.shape != shape:
        raise ArgumentError(f"{name} has shape {array.shape}, not {shape}", hint="pass the shape that was compiled")
    if dtype == "bool" and array.dtype == np.bool_:
        return np.ascontiguousarray(array, np.uint32)
    whole = dtype in {"int32", "uint32"} and array.dtype.kind in "iu"
    if whole and array.size and array.dtype != ON_HOST[dtype]:
        low, high = int(array.min()), int(array.max())
        limits = np.iinfo(ON_HOST[dtype])
        if low < limits.min or high > limits.max:
            raise ArgumentError(
                f"{name} has values from {low} to {high}, which don't fit {dtype}",
                hint="whole numbers on the device have 32 bits",
            )
    if not whole and array.dtype != ON_HOST[dtype]:
        raise ArgumentError(f"{name} is {array.dtype}, not {dtype}", hint=f"convert it to {dtype}")
    return np.ascontiguousarray(array, ON_HOST[dtype])


def on_host(array: Array, dtype: DType) -> Array:
    """Words from the device, converted to the host's type."""
    found: Array = array != 0 if dtype == "bool" else array.view(ON_HOST[dtype])
    return found
