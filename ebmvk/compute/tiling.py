"""How a loop is cut into workgroups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ebmvk.errors import ArgumentError

GROUP = 256
"""The most invocations of a workgroup that a reduction uses, if there are many workgroups."""
ENOUGH = 64
"""The number of workgroups that keep a device busy."""
CPU_ROWS, CPU_LENGTH, CPU_GROUP = 64, 1024, 32
"""On a CPU, barriers cost more than contiguous reads save. So if there are at least this many rows
(or columns) of at most this length, each of them gets a single invocation."""


class Limits(Protocol):
    """What kernels need to know of a device; `engine.recording.Limits` has it."""

    @property
    def group(self) -> int:
        """The most invocations of a workgroup."""

    @property
    def groups(self) -> int:
        """The most workgroups of a dispatch in x. groups_yz: the most in y."""

    @property
    def groups_yz(self) -> int: ...

    @property
    def shared_bytes(self) -> int:
        """The most bytes of shared memory of a workgroup."""

    @property
    def bindings(self) -> int:
        """The most storage buffers of a kernel."""

    @property
    def kind(self) -> str:
        """cpu, integrated, discrete, virtual or other."""


@dataclass(frozen=True)
class Tile:
    """The shape of a workgroup over rows × reduced points.

    Attributes:
        across: rows of a workgroup, a power of 2.
        along: invocations that share a row, a power of 2.
        rows_first: True if neighbouring invocations work on neighbouring rows.
    """

    across: int
    along: int
    rows_first: bool

    @property
    def group(self) -> int:
        return self.across * self.along


def above(number: int) -> int:
    """The smallest power of 2 that is at least a number."""
    return 1 << max(number - 1, 0).bit_length()


def below(number: int) -> int:
    """The largest power of 2 that is at most a number; at least 1."""
    return 1 << max(number.bit_length() - 1, 0)


def tile(rows: int, length: int, *, rows_first: bool, words: int, limits: Limits) -> Tile:
    """A workgroup for `rows` reductions of `length` elements.

    words: the words of shared memory for each invocation.
    """
    room = below(min(limits.group, limits.shared_bytes // (12 * words)))
    few = rows < ENOUGH * (32 if rows_first else 1)
    most = min(room, 1024 if few else GROUP)
    small = min(room, 128)
    wanted = above((length + 3) // 4)  # at least four elements for each invocation
    if limits.kind == "cpu" and rows >= CPU_ROWS and length <= CPU_LENGTH:
        return Tile(min(CPU_GROUP, room), 1, True)
    if rows_first:
        across = min(above(rows), 32)
        along = min(wanted, (most if length >= 256 else small) // across)
        return Tile(min(above(rows), max(small // along, across)), along, True)
    along = min(wanted, most if length >= 1024 else small)
    return Tile(min(above(rows), max(small // along, 1)), along, along == 1)


def spread(groups: int, limits: Limits) -> tuple[int, int, int]:
    """Workgroups in x and y, at least as many as asked for."""
    if groups <= limits.groups:
        return groups, 1, 1
    y = -(-groups // limits.groups)
    if y > limits.groups_yz:
        raise ArgumentError(
            f"a loop needs {groups} workgroups, more than a dispatch can have",
            hint="Split the tensor into smaller parts.",
        )
    return -(-groups // y), y, 1
