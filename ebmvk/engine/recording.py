"""Programs of a caller's own kernels on a Vulkan device: memory, modules and recordings.

A recording is a list of commands over ranges of device memory, in the order in which they take
effect: kernels, copies, fills, and transfers from and to the host. It is recorded once and run many
times, each time with one wait. The barriers between commands come from the bytes that they touch.

    recorder = Recorder(Vulkan())
    memory = recorder.memory(1024)
    double = recorder.module(spirv, access="rw", group=64)
    record = recorder.recording()
    values = record.upload((memory, 0, 400))
    record.kernel(double, [(memory, 0, 400), (memory, 512, 400)], groups=(2, 1, 1))
    results = record.download((memory, 512, 400))
    record.finish()
    record.run({values: array}, {results: empty})

A ValueError of a method here is a mistake of the caller: a range outside its memory, a module that
isn't SPIR-V, or a wrong number of bindings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ebmvk.engine.vulkan import Vulkan
from ebmvk.engine.vulkan_devices import extension

if TYPE_CHECKING:
    from ebmvk import _vulkan

POISON = 0x7FC0DEAD
"""The word that fills memory whose contents nobody may use: a NaN."""

STAGING = 32 << 20
"""The most bytes that `Memory.write` and `Memory.read` move in one run."""


def arrange(tensors: Sequence[tuple[int, int, int]], alignment: int) -> tuple[list[int], int]:
    """Offsets of tensors in one allocation, and its size. Tensors of the same time don't overlap.

    Args:
        tensors: size in bytes, first and last step of each.
        alignment: of all offsets.
    """
    offsets, nbytes = extension().arrange(list(tensors), alignment)
    return offsets, nbytes


def shipped(kernel: str, subgroup: bool = False) -> bytes:
    """The SPIR-V of a kernel of shaders/kernels.toml, in float32.

    subgroup: the variant whose workgroups are full subgroups.
    """
    native = extension()
    variant = native.Variant.subgroup if subgroup else native.Variant.portable
    words: bytes = native.module_of(kernel, variant, native.Storage.float32)
    return words


@dataclass(frozen=True)
class Limits:
    """What a device allows, for those who make kernels and plan memory.

    Attributes:
        group: invocations of a workgroup.
        groups: workgroups of a dispatch in the first dimension; groups_yz: in each of the others.
        shared_bytes: shared memory of a workgroup.
        range_bytes: of one storage buffer that a kernel binds.
        bindings: storage buffers of a kernel.
        push_bytes: push constants.
        alignment: of offsets in memory, in bytes.
        subgroup: the size of subgroups; 0 if kernels can't rely on full ones.
        loop_rounds: the most rounds that all loops of an invocation may have together.
        kind: cpu, integrated, discrete, virtual or other.
    """

    group: int
    groups: int
    groups_yz: int
    shared_bytes: int
    range_bytes: int
    bindings: int
    push_bytes: int
    alignment: int
    subgroup: int
    loop_rounds: int
    kind: str


class Memory:
    """One allocation in device memory, freed with the object. Its contents are undefined at
    first."""

    def __init__(self, recorder: Recorder, nbytes: int, what: str) -> None:
        self._recorder = recorder
        self.what = what
        self.nbytes = nbytes
        with recorder._errors(f"{what} ({nbytes} bytes)"):
            self.native: _vulkan.Memory = recorder._engine.memory(nbytes)

    def write(self, pieces: Iterable[tuple[int, NDArray[Any]]]) -> int:
        """Copies arrays into the memory, each to its offset in bytes. Returns the bytes copied."""
        return self._move(pieces, up=True)

    def read(self, pieces: Iterable[tuple[int, NDArray[Any]]]) -> int:
        """Fills arrays from the memory, each from its offset in bytes. Returns the bytes copied."""
        return self._move(pieces, up=False)

    def _move(self, pieces: Iterable[tuple[int, NDArray[Any]]], *, up: bool) -> int:
        waiting: list[tuple[int, NDArray[np.uint8]]] = []
        room, moved = STAGING, 0
        for offset, array in pieces:
            at, rest = offset, _as_bytes(array)
            while rest.size:
                part, rest = rest[:room], rest[room:]
                waiting.append((at, part))
                at, room, moved = at + part.size, room - part.size, moved + part.size
                if room == 0:
                    self._run(waiting, up=up)
                    waiting, room = [], STAGING
        if waiting:
            self._run(waiting, up=up)
        return moved

    def _run(self, pieces: Sequence[tuple[int, NDArray[np.uint8]]], *, up: bool) -> None:
        record = self._recorder.recording()
        arrays = {}
        for offset, array in pieces:
            place = (self, offset, array.size)
            arrays[record.upload(place) if up else record.download(place)] = array
        record.finish()
        record.run(arrays if up else {}, {} if up else arrays)


Range = tuple[Memory, int, int]
"""A part of a memory: offset and size in bytes. Offsets that kernels bind are multiples of
`Limits.alignment`."""


@dataclass(frozen=True)
class Ran:
    """A run of a recording.

    Attributes:
        seconds: from the first submission to the end of the last.
        segment_seconds: of each segment on the device; 0 if the device has no clock.
        submissions: command submissions; one wait is for all of them.
        dispatches: kernels.
        copies: copies and fills, those from and to the host included.
        barriers: waits between commands of the device.
        bytes_up, bytes_down: copied from the host, and to it.
    """

    seconds: float
    segment_seconds: tuple[float, ...]
    submissions: int
    dispatches: int
    copies: int
    barriers: int
    bytes_up: int
    bytes_down: int


class Recording:
    """Commands that are recorded once and run many times; `Recorder.recording` makes one."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.native: _vulkan.Recording = recorder._engine.recording()
        self._copies = 0

    def kernel(
        self,
        module: _vulkan.Module,
        bindings: Sequence[Range],
        push: bytes = b"",
        groups: tuple[int, int, int] = (1, 1, 1),
        what: str = "",
    ) -> None:
        """Runs a kernel.

        Ranges may overlap only if the kernel just reads them. An empty range is allowed. A dispatch
        without workgroups is left out.

        Args:
            bindings: a range for each storage buffer of the module.
            push: push constants, whole words.
            groups: the number of workgroups in x, y and z.
            what: what this is, for messages.

        Raises:
            ArgumentError: a range or the workgroups are more than the device allows.
        """
        with self._recorder._errors(what or module.name):
            self.native.kernel(module, [_native(part) for part in bindings], push, groups)

    def copy(self, source: Range, target: Range) -> None:
        """Copies between ranges of equal size that don't overlap."""
        self.native.copy(_native(source), _native(target))
        self._count(source)

    def fill(self, target: Range, word: int) -> None:
        """Fills whole words with a word."""
        self.native.fill(_native(target), word)
        self._count(target)

    def upload(self, target: Range) -> int:
        """Copies from the host at this point of every run. Returns the slot for `run`."""
        slot = self.native.upload(_native(target))
        self._count(target)
        return slot

    def download(self, source: Range) -> int:
        """Copies to the host at this point of every run. Returns the slot for `run`."""
        slot = self.native.download(_native(source))
        self._count(source)
        return slot

    def cut(self, seconds: float = 0.0) -> None:
        """Ends a segment that probably takes `seconds`.

        A submission holds as many segments as take no longer than `Options.slice_seconds`, because
        drivers reset a device that works for too long. Later runs use the measured times.
        """
        self.native.cut(seconds)

    def finish(self, seconds: float = 0.0) -> None:
        """Ends the recording; nothing can be added afterwards.

        Args:
            seconds: the time that the commands since the last cut probably take.

        Raises:
            OutOfMemory: no memory for descriptors or for what is copied from or to the host.
        """
        with self._recorder._errors("recording commands"):
            self.native.finish(seconds)

    def run(
        self, uploads: Mapping[int, NDArray[Any]] | None = None, downloads: Mapping[int, NDArray[Any]] | None = None
    ) -> Ran:
        """Runs all commands and waits.

        Args:
            uploads: a contiguous array for every upload slot, of the slot's size in bytes.
            downloads: contiguous arrays to fill, for the download slots that are wanted.

        Raises:
            DeviceLost: the device failed; its memory is lost.
            OutOfMemory: the driver refused a submission. See `intact`.
        """
        with self._recorder._errors("running a program"):
            ran = self.native.run(dict(uploads or {}), dict(downloads or {}))
        return Ran(
            ran.seconds,
            tuple(ran.segment_seconds),
            ran.submissions,
            ran.dispatches,
            self._copies,
            ran.barriers,
            ran.bytes_up,
            ran.bytes_down,
        )

    def _count(self, part: Range) -> None:
        self._copies += part[2] > 0

    @property
    def intact(self) -> bool:
        """False if a run has failed after a part of it may have taken effect."""
        return self.native.intact

    @property
    def staging_bytes(self) -> int:
        """Host memory for uploads and downloads."""
        return self.native.staging_bytes

    @property
    def estimates(self) -> list[float]:
        """The seconds that each segment is expected to take."""
        return self.native.estimates


class Recorder:
    """Makes memory, modules and recordings on one device, which live as long as they are held.

    Args:
        backend: the device. Its other operations can be used at the same time.
    """

    def __init__(self, backend: Vulkan) -> None:
        self.backend = backend
        self._engine: _vulkan.Engine = backend._engine
        self._errors = backend._errors
        device = backend.capabilities
        self.limits = Limits(
            group=device.max_group_size,
            groups=device.max_groups,
            groups_yz=device.max_groups_yz,
            shared_bytes=device.max_shared_bytes,
            range_bytes=self._engine.storage_range,
            bindings=device.max_bindings,
            push_bytes=device.max_push_bytes,
            alignment=max(device.storage_alignment, 64),  # also a cache line
            subgroup=device.subgroup_size if self._engine.subgroups(device.subgroup_size) else 0,
            loop_rounds=device.loop_rounds,
            kind=device.type,
        )

    @property
    def alignment(self) -> int:
        """Offsets of ranges that kernels bind are multiples of this many bytes."""
        return self.limits.alignment

    @property
    def allocated(self) -> int:
        """Bytes of device memory that are held now, by anybody on this device."""
        return self._engine.allocated

    def memory(self, nbytes: int, what: str = "device memory") -> Memory:
        """One allocation.

        Args:
            what: what it is for, for messages.

        Raises:
            OutOfMemory: too little memory is free, or the device doesn't allow such a large piece.
        """
        return Memory(self, nbytes, what)

    def module(
        self,
        spirv: bytes,
        access: str,
        push_words: int = 0,
        group: int = 64,
        constants: Sequence[int] = (),
        subgroup: bool = False,
        name: str = "a generated kernel",
    ) -> _vulkan.Module:
        """A kernel from SPIR-V with the entry point "main". Equal modules are compiled once.

        Args:
            access: a letter for each storage buffer of set 0, from binding 0: r (read), w (written)
                or u (both).
            push_words: 32-bit push constants.
            group: the size of the workgroup in x, which is specialisation constant 0 if the module
                has that.
            constants: specialisation constants from number 1.
            subgroup: the kernel relies on full subgroups of size `Limits.subgroup`.
            name: for messages.

        Raises:
            ArgumentError: the module needs more than the device has.
        """
        with self._errors("making a kernel"):
            return self._engine.module(spirv, access, push_words, group, list(constants), subgroup, name)

    def kernel(self, name: str, group: int, constants: Sequence[int] = ()) -> _vulkan.Module:
        """A kernel of shaders/kernels.toml, in the variant that suits the device.

        Raises:
            ArgumentError: the device doesn't allow such a workgroup.
        """
        with self._errors("making a kernel"):
            return self._engine.kernel(name, group, list(constants))

    def recording(self) -> Recording:
        return Recording(self)


def _native(part: Range) -> tuple[_vulkan.Memory, int, int]:
    memory, offset, nbytes = part
    return memory.native, offset, nbytes


def _as_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The array's own bytes. Raises ValueError if it isn't contiguous."""
    if not array.flags.c_contiguous:
        raise ValueError("an array isn't contiguous")
    return array.reshape(-1).view(np.uint8)
