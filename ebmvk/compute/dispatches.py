"""The steps of a kernel's call, and the axes that strided operands share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ebmvk.compute.ir import DType, Tensor, View

Fresh = Callable[[tuple[int, ...], DType], Tensor]
"""Makes a scratch tensor, which lives for one call."""


@dataclass(frozen=True)
class Dispatch:
    """One run of a kernel of shaders/kernels.toml.

    Attributes:
        kernel: its name. group: invocations of a workgroup. constants: values of the constants that
            the manifest lists under `specialise`.
        tensors: one for each binding, bound as a whole.
        push: push constants.
        groups: the number of workgroups.
        flops: the number of additions and multiplications.
        bytes: the least number of bytes that must be moved.
    """

    kernel: str
    group: int
    constants: tuple[int, ...]
    tensors: tuple[Tensor, ...]
    push: bytes
    groups: tuple[int, int, int]
    flops: float = 0.0
    bytes: int = 0


@dataclass(frozen=True)
class Fill:
    """Writes `word` to `nbytes` bytes of a tensor from `offset` on, both multiples of 4."""

    tensor: Tensor
    offset: int
    nbytes: int
    word: int = 0

    @property
    def flops(self) -> float:
        return 0.0

    @property
    def bytes(self) -> int:
        return self.nbytes


@dataclass(frozen=True)
class Planned:
    """The steps of a call, in order. Each step may read what earlier steps wrote."""

    steps: tuple[Dispatch | Fill, ...] = ()

    @property
    def flops(self) -> float:
        return sum(step.flops for step in self.steps)

    @property
    def bytes(self) -> int:
        return sum(step.bytes for step in self.steps)


def packed(order: Sequence[str], values: Mapping[str, int | float]) -> bytes:
    """Push constants in the manifest's order: an int as uint32, a float as float32."""
    words = [values[name] for name in order]
    kinds = [np.float32 if isinstance(word, float) else np.uint32 for word in words]
    return b"".join(kind(word).tobytes() for kind, word in zip(kinds, words, strict=True))


def power_of_two(value: int) -> int:
    """The least power of two that is at least `value`."""
    return 1 << max(value - 1, 0).bit_length()


def spread(count: int, most: int) -> tuple[int, int, int]:
    """Workgroups in x and y, at least `count`, at most `most` in x."""
    return min(count, most), -(-count // most), 1


# ------------------------------------------------------------------------------- strided batches


@dataclass
class Axes:
    """Axes that several operands share, outermost first: sizes, and strides of each operand."""

    sizes: list[int]
    strides: dict[str, list[int]]
    offsets: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, views: Mapping[str, View], kept: int) -> Axes:
        """All axes of the views except the last `kept`."""
        first = next(iter(views.values()))
        count = len(first.shape) - kept
        strides = {name: list(view.strides[:count]) for name, view in views.items()}
        return cls(list(first.shape[:count]), strides, {name: view.offset for name, view in views.items()})

    def merged(self) -> Axes:
        """The same elements in the same order with as few axes as possible."""
        sizes: list[int] = []
        strides: dict[str, list[int]] = {name: [] for name in self.strides}
        for axis, size in enumerate(self.sizes):
            if size == 1:
                continue
            fits = bool(sizes) and all(mine[axis] * size == strides[name][-1] for name, mine in self.strides.items())
            if fits:
                sizes[-1] *= size
            else:
                sizes.append(size)
            for name, mine in self.strides.items():
                strides[name][len(sizes) - 1 :] = [mine[axis]]
        return Axes(sizes, strides, dict(self.offsets))

    def parts(self, axes: int, most: int) -> Iterator[Axes]:
        """Pieces with at most `axes` axes and at most `most` points each."""
        if len(self.sizes) <= axes and math.prod(self.sizes) <= most:
            yield self
            return
        inner = math.prod(self.sizes[1:])
        step = max(most // inner, 1) if len(self.sizes) <= axes and inner <= most else 1
        for first in range(0, self.sizes[0], step):
            offsets = {name: at + first * self.strides[name][0] for name, at in self.offsets.items()}
            sizes = [min(step, self.sizes[0] - first), *self.sizes[1:]]
            strides = {name: list(mine) for name, mine in self.strides.items()}
            if step == 1:
                sizes, strides = sizes[1:], {name: mine[1:] for name, mine in strides.items()}
            yield from Axes(sizes, strides, offsets).parts(axes, most)

    def padded(self, axes: int) -> Axes:
        """The same points with axes of size 1 in front, so that there are `axes` axes."""
        more = axes - len(self.sizes)
        strides = {name: [0] * more + mine for name, mine in self.strides.items()}
        return Axes([1] * more + self.sizes, strides, dict(self.offsets))

    @property
    def count(self) -> int:
        return math.prod(self.sizes)
