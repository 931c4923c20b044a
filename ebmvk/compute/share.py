"""Puts independent loops into one dispatch.

Sums whose results are needed much later, such as gradients of biases, can run beside other loops.
So a loop waits until a node needs its result, and then runs together with other waiting loops. A
loop that reads very little may also run earlier than its place, so it waits from there on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ebmvk.compute.donate import extent, reads, writes
from ebmvk.compute.emit import Needs, fit, needs
from ebmvk.compute.ir import Batch, Loop, PlanNode

if TYPE_CHECKING:
    from ebmvk.engine.recording import Limits

PATIENCE = 24
"""A loop waits for at most this many nodes. Its inputs must stay in memory until it runs."""
LITTLE = 256
"""A loop may run earlier than its place if its input tensors have at most this many bytes."""
MOST = 8
"""The most loops in a dispatch."""


@dataclass(frozen=True)
class Touch:
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
    touched: tuple[Touch, ...]
    position: int


def shared(nodes: Sequence[PlanNode], limits: Limits) -> list[PlanNode]:
    """The nodes in an order that gives the same results, with loops put into batches. The order
    depends only on the nodes and the limits."""
    waiting: list[_Waiting] = []
    result: list[PlanNode] = []
    for position, (node, touched) in enumerate(_early(nodes)):
        due = [own for own in waiting if position - own.position >= PATIENCE or meet(own.touched, touched)]
        result += _taken(due, waiting, limits)
        needed = needs(node, limits) if isinstance(node, Loop) else None
        if needed is not None and isinstance(node, Loop):
            waiting.append(_Waiting(node, needed, touched, position))
        else:
            result.append(node)
    return [*result, *_taken(list(waiting), waiting, limits)]


def _early(nodes: Sequence[PlanNode]) -> list[tuple[PlanNode, tuple[Touch, ...]]]:
    """Each node and what it touches. Loops that read little move up to `PATIENCE` places ahead."""
    result: list[tuple[PlanNode, tuple[Touch, ...]]] = []
    for node in nodes:
        touched = tuple(touches(node))
        place = len(result)
        if _reads_little(node):
            first = max(place - PATIENCE, 0)
            while place > first and not _reads_little(result[place - 1][0]) and not meet(result[place - 1][1], touched):
                place -= 1
        result.insert(place, (node, touched))
    return result


def _reads_little(node: PlanNode) -> bool:
    return isinstance(node, Loop) and sum(t.bytes for t in {view.tensor for view, _ in reads(node)}) <= LITTLE


def _taken(due: Sequence[_Waiting], waiting: list[_Waiting], limits: Limits) -> Iterator[PlanNode]:
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


def touches(node: PlanNode) -> Iterator[Touch]:
    """What a node reads, then what it writes."""
    for view, written in [*((view, False) for view, _ in reads(node)), *((view, True) for view in writes(node))]:
        yield Touch(view.tensor.id, *extent(view), written)


def meet(some: Sequence[Touch], others: Sequence[Touch]) -> bool:
    """True if one node writes what the other reads or writes."""
    return any(
        a.tensor == b.tensor and (a.written or b.written) and a.begin < b.end and b.begin < a.end
        for a in some
        for b in others
    )
