"""Index arithmetic of loops. Axes that can be walked as one axis are merged to save divisions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ebmvk.compute.values import Value

Sizes = tuple[int, ...]
Strides = tuple[int, ...]


def collapse(sizes: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[Sizes, list[Strides]]:
    """The same points with fewer axes: axes of size 1 go, and neighbours merge where all strides
    allow it.

    strides: for each view, its stride along each axis.
    """
    kept = [axis for axis, size in enumerate(sizes) if size != 1]
    merged: list[int] = []
    rows: list[list[int]] = [[] for _ in strides]
    for axis in kept:
        if merged and all(row[-1] == view[axis] * sizes[axis] for row, view in zip(rows, strides, strict=True)):
            merged[-1] *= sizes[axis]
            for row, view in zip(rows, strides, strict=True):
                row[-1] = view[axis]
        else:
            merged.append(sizes[axis])
            for row, view in zip(rows, strides, strict=True):
                row.append(view[axis])
    return tuple(merged), [tuple(row) for row in rows]


def order(sizes: Sequence[int], key: Sequence[int]) -> list[int]:
    """The axes in falling order of their stride in `key`. Axes of size 1 or stride 0 come first."""
    return sorted(range(len(sizes)), key=lambda axis: (-math.inf if key[axis] == 0 else -key[axis], axis))


def divide(x: Value, by: int) -> Value:
    """x // by for uint32."""
    if by == 1:
        return x
    return x >> (by.bit_length() - 1) if by & (by - 1) == 0 else x / by


def rest(x: Value, by: int) -> Value:
    """x % by for uint32."""
    return x & (by - 1) if by & (by - 1) == 0 else x % by


def multiply(x: Value, by: int) -> Value:
    if by == 1:
        return x
    return x << (by.bit_length() - 1) if by & (by - 1) == 0 else x * by


def address(flat: Value, sizes: Sequence[int], strides: Sequence[int]) -> Value | None:
    """Where the point with a flat row-major index lies, in elements; None if it is always 0."""
    own, (steps,) = collapse(sizes, [strides])
    result: Value | None = None
    inner = 1
    for position in reversed(range(len(own))):
        size, step = own[position], steps[position]
        if step:
            along = divide(flat, inner)
            along = along if position == 0 else rest(along, size)
            part = multiply(along, step)
            result = part if result is None else result + part
        inner *= size
    return result


def add(a: Value | None, b: Value | None) -> Value | None:
    """The sum of two addresses. None stands for 0."""
    if a is None or b is None:
        return b if a is None else a
    return a + b
