"""Strided views: applies torch's view operations, and composes views with a loop's stores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ebmvk.compute.ir import Tensor, View


def on_meta(view: View) -> torch.Tensor:
    """A tensor without data that has the strides of a view."""
    storage = torch.empty(max(1, view.tensor.bytes // 4), device="meta")
    return storage.as_strided(view.shape, view.strides, view.offset)


def of_meta(tensor: Tensor, meta: torch.Tensor) -> View:
    return View(tensor, tuple(meta.shape), tuple(meta.stride()), int(meta.storage_offset()))


def through(view: View, function: Callable[[torch.Tensor], object]) -> list[View]:
    """The views that a view operation of torch gives. Raises RuntimeError if torch needs a copy."""
    made = function(on_meta(view))
    results = [part for part in (made if isinstance(made, list | tuple) else [made]) if isinstance(part, torch.Tensor)]
    return [of_meta(view.tensor, result) for result in results]


def broadcast(view: View, shape: Sequence[int]) -> View:
    """The view repeated to a shape, as torch broadcasts."""
    lead = len(shape) - len(view.shape)
    strides = [0] * lead
    for size, stride, target in zip(view.shape, view.strides, list(shape)[lead:], strict=True):
        strides.append(stride if size == target and size != 1 else 0)
        if size not in {1, target}:
            raise RuntimeError(f"{view.shape} can't be broadcast to {tuple(shape)}")
    return View(view.tensor, tuple(shape), tuple(strides), view.offset)


def with_axes(view: View, axes: Sequence[int], repeats: Sequence[int] = ()) -> View:
    """The view with its axes in another order, then repeated along new last axes."""
    shape = (*(view.shape[axis] for axis in axes), *repeats)
    strides = (*(view.strides[axis] for axis in axes), *(0 for _ in repeats))
    return View(view.tensor, shape, strides, view.offset)


@dataclass(frozen=True)
class Steps:
    """The index along one axis of a store at which a load's element lies: start + the sum over the
    load's axes a of by[a] * (the load's index along a)."""

    start: int
    by: tuple[int, ...]


def located(sizes: Sequence[int], strides: Sequence[int], offset: int, load: View) -> list[Steps] | None:
    """For each axis of a store, its index as a function of the load's index. None if an index isn't
    linear, or if the load reads elements that the store doesn't write.

    The store has distinct addresses. An address is read as a number with mixed digits: one digit,
    the index, for each axis, the largest stride first. index = start + by . i holds for all i if
    each digit's sum stays below the axis's size.
    """
    order = sorted((a for a in range(len(sizes)) if sizes[a] != 1), key=lambda a: -strides[a])
    count = len(load.shape)
    steps = [Steps(0, (0,) * count) for _ in sizes]
    rest = load.offset - offset
    moves = [stride if size != 1 else 0 for size, stride in zip(load.shape, load.strides, strict=True)]
    for a in order:
        stride = strides[a]
        start, rest = divmod(rest, stride)
        by = [move // stride for move in moves]
        moves = [move % stride for move in moves]
        last = start + sum(step * (size - 1) for step, size in zip(by, load.shape, strict=True))
        if start < 0 or last >= sizes[a]:
            return None
        steps[a] = Steps(start, tuple(by))
    return None if rest or any(moves) else steps


def restrided(store: View, load: View, leaf: View) -> View | None:
    """`leaf`, a view in the loop that stores through `store`, seen at the points of `load`, which
    reads the stored elements. None if that isn't a strided view.

    leaf: has the store's shape.
    """
    sizes, into, of = _merged(store, leaf)
    steps = located(sizes, into, store.offset, load)
    if steps is None:
        return None
    offset = leaf.offset + sum(step.start * stride for step, stride in zip(steps, of, strict=True))
    strides = tuple(
        sum(step.by[a] * stride for step, stride in zip(steps, of, strict=True)) for a in range(len(load.shape))
    )
    return View(leaf.tensor, load.shape, strides, offset)


def _merged(store: View, leaf: View) -> tuple[list[int], list[int], list[int]]:
    """Sizes and strides of both views, with neighbouring axes merged if contiguous in both."""
    sizes: list[int] = []
    into: list[int] = []
    of: list[int] = []
    for size, a, b in zip(store.shape, store.strides, leaf.strides, strict=True):
        if size == 1:
            continue
        if sizes and into[-1] == a * size and of[-1] == b * size:
            sizes[-1] *= size
            into[-1], of[-1] = a, b
        else:
            sizes.append(size)
            into.append(a)
            of.append(b)
    return sizes, into, of


def overlaps(view: View) -> bool:
    """True if two elements of the view may lie at the same place in memory."""
    reach = 0
    for stride, size in sorted((s, n) for s, n in zip(view.strides, view.shape, strict=True) if n != 1):
        if stride <= reach:
            return True
        reach += stride * (size - 1)
    return False
