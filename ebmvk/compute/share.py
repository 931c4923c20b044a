"""Puts independent loops into one dispatch.

Sums whose results are needed much later, such as gradients of biases, can run beside other loops.
So a loop waits until a node needs its result, and then runs together with other waiting loops.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ebmvk.compute.donate import extent, reads, writes
from ebmvk.compute.emit import Needs, fit, needs
from ebmvk.compute.ir import Batch, Loop, Node

if TYPE_CHECKING:
    from ebmvk.engine.recording import Limits

PATIENCE = 24
"""A loop waits for at most this many nodes. Its inputs must stay in memory until it runs."""
MOST = 8
"""The most loops in a dispatch."""


@dataclass(frozen=True)
class _Touch:
    """A part of a tensor that a node reads or writes: words from `begin` to `end`."""

    tensor: int
    begin: int
    end: int
    written: bool


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A loop that waits since the node at this position, where it could have run."""

    loop: Loop
    needs: Needs
    touched: tuple[_Touch, ...]
    position: int


def shared(nodes: Sequence[Node | Batch], limits: Limits) -> list[Node | Batch]:
    """The nodes in an order that gives the same results, with loops put into batches. The order
    depends only on the nodes and the limits."""
    waiting: list[_Waiting] = []
    result: list[Node | Batch] = []
    for position, node in enumerate(nodes):
        touched = tuple(_touches(node))
        due = [own for own in waiting if position - own.position >= PATIENCE or _meet(own.touched, touched)]
        result += _taken(due, waiting, limits)
        needed = needs(node, limits) if isinstance(node, Loop) else None
        if needed is not None and isinstance(node, Loop):
            waiting.append(_Waiting(node, needed, touched, position))
        else:
            result.append(node)
    return [*result, *_taken(list(waiting), waiting, limits)]


def _taken(due: Sequence[_Waiting], waiting: list[_Waiting], limits: Limits) -> Iterator[Node | Batch]:
    """Takes the loops that must run now, and others that fit beside them, out of `waiting`."""
    for first in due:
        if first not in waiting:
            continue
        waiting.remove(first)
        together = [first]
        for other in [*(own for own in due if own in waiting), *(own for own in waiting if own not in due)]:
            if len(together) < MOST and fit([*(own.needs for own in together), other.needs], limits):
                together.append(other)
                waiting.remove(other)
        together.sort(key=lambda own: own.position)
        yield Batch(tuple(own.loop for own in together)) if len(together) > 1 else first.loop


def _touches(node: Node | Batch) -> Iterator[_Touch]:
    for view, written in [*((view, False) for view, _ in reads(node)), *((view, True) for view in writes(node))]:
        yield _Touch(view.tensor.id, *extent(view), written)


def _meet(some: Sequence[_Touch], others: Sequence[_Touch]) -> bool:
    """True if one node writes what the other reads or writes."""
    return any(
        a.tensor == b.tensor and (a.written or b.written) and a.begin < b.end and b.begin < a.end
        for a in some
        for b in others
    )
