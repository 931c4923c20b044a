"""The operation `ebmvk::experts`: two-layer experts on rows that are sorted by expert.

How many rows an expert gets depends on the weights, so a step that runs as one program can't have
arrays of that size. Its arrays have a static size, `places`, that is large enough. A small table of
the groups' sizes stays on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from itertools import accumulate

import torch
from torch import Tensor

from ebmvk.engine.library import operation
from ebmvk.model import tiles

_ROUND = 8
"""The room of a group is a multiple of this number of rows, and of a `_PARTS`-th of the mean group
size. oneDNN compiles a kernel for each new number of rows, which takes as long as several
products."""
_PARTS = 32
_MOST_EVEN = 1.03
"""All groups get equal room if that takes at most this many times as many places: one batched
product costs less than several products."""


def _multiple(pairs: int, experts: int) -> int:
    """The room of a group is a multiple of this. pairs: the number of (row, choice) pairs."""
    return max(1, pairs // (_ROUND * _PARTS * experts)) * _ROUND


def places(pairs: int, experts: int) -> int:
    """The most places that the groups of `pairs` (row, choice) pairs can have."""
    return int(_MOST_EVEN * (pairs + experts * _multiple(pairs, experts)))


@dataclass(frozen=True)
class _Groups:
    """The order of rows that are sorted by expert, in groups with spare places.

    N rows have A choices each. room: number of places of each group; R is their sum. row: (R,)
    int64, the row at each place; 0 at a spare place. place: (A N,) int64, the places of all rows
    for their first choice, then for their second choice, and so on.
    """

    room: list[int]
    row: Tensor
    place: Tensor

    @classmethod
    def of(cls, chosen: Tensor, experts: int) -> _Groups:
        """chosen: (A, N) int64, the experts of each row."""
        every, rows = chosen.flatten(), chosen.shape[1]
        order, sizes = torch.argsort(every, stable=True), torch.bincount(every, minlength=experts).tolist()
        multiple = _multiple(len(every), experts)
        room = [-(-size // multiple) * multiple for size in sizes]
        if max(room) * experts <= _MOST_EVEN * sum(room):
            room = [max(room)] * experts
        begins = [0, *accumulate(room)][:-1]
        places = torch.cat([torch.arange(b, b + n, device=order.device) for b, n in zip(begins, sizes, strict=True)])
        row = order.new_zeros(sum(room)).index_copy_(0, places, order % rows if len(chosen) > 1 else order)
        return cls(room, row, torch.empty_like(order).index_copy_(0, order, places))

    @property
    def even(self) -> bool:
        """True if all groups have the same room."""
        return len(set(self.room)) == 1

    def spread(self, x: Tensor, into: Tensor | None = None) -> Tensor:
        """(R, d): the rows of x (N, d) at their places, perhaps written to `into`."""
        return torch.index_select(x, 0, self.row, out=into)

    def weighted(self, placed: Tensor, weights: Tensor) -> Tensor:
        """Multiply each place of `placed` (R, d) by the weight (A, N) of its row and choice, in the
        same memory. Spare places become 0."""
        return placed.mul_(weights.new_zeros(len(placed)).index_copy_(0, self.place, weights.flatten())[:, None])

    def collected(self, placed: Tensor, choices: int) -> Tensor:
        """(A, N, ...): the places of each row, from (R, ...)."""
        return placed.index_select(0, self.place).view(choices, -1, *placed.shape[1:])

    def products(self, rows: Tensor, matrices: Tensor, into: Tensor | None = None) -> Tensor:
        """Each group times its own matrix: rows (R, d), matrices (E, d, e) -> (R, e), perhaps
        written to `into`."""
        found = rows.new_empty(len(rows), matrices.shape[2]) if into is None else into
        if self.even:
            shape = len(matrices), self.room[0]
            torch.bmm(rows.view(*shape, rows.shape[1]), matrices, out=found.view(*shape, found.shape[1]))
            return found
        for group, matrix, own in zip(
            torch.split(rows, self.room), matrices, torch.split(found, self.room), strict=True
        ):
            torch.mm(group, matrix, out=own)
        return found

    def gradients(self, grads: Tensor, rows: Tensor) -> Tensor:
        """Gradients (E, e, d) of W, where `products` used W^T.

        grads: (R, e), of the products; rows: (R, d).
        """
        if self.even:
            grads, rows = (part.view(len(self.room), self.room[0], part.shape[1]) for part in (grads, rows))
            return torch.bmm(grads.mT, rows)
        found = rows.new_empty(len(self.room), grads.shape[1], rows.shape[1])
        for grad, own, into in zip(torch.split(grads, self.room), torch.split(rows, self.room), found, strict=True):
            torch.mm(grad.t(), own, out=into)
        return found


def reference(
    x: Tensor, weights: Tensor, chosen: Tensor, up: Tensor, down: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The operation `ebmvk::experts` in plain torch: every expert on every place.

    Args:
        x: (N, input). weights, chosen: (A, N), shares and numbers of the experts of each row. up:
            (E, hidden, input). down: (E, output, hidden).

    Returns:
        y (N, output) = sum_a weights_a down_e max(up_e x, 0)^2 with e = chosen_a, and what
        `ebmvk::experts_backward` needs: the rooms of the groups (E,) int64; the row at each of
        P = `places` places (P,) and the place of each row and choice (A N,), both int64; the rows
        (P, input), max(up x, 0) and its square (P, hidden), and the square's product with `down`
        (P, output). The order of the places is the implementation's own.
    """
    (active, rows), kinds = chosen.shape, len(up)
    every = chosen.flatten()
    order = torch.sort(every, stable=True).indices
    room = (every[:, None] == torch.arange(kinds, device=x.device)).sum(0)
    place = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=x.device))
    spare = places(len(every), kinds) - len(every)
    row = torch.nn.functional.pad(order % rows, (0, spare))
    of = _mask(room, len(row))
    placed = x.index_select(0, row)
    positive = (torch.einsum("pi,ehi->eph", placed, up).relu() * of).sum(0)
    hidden = positive.square()
    found = (torch.einsum("ph,eoh->epo", hidden, down) * of).sum(0)
    y = (found.index_select(0, place).view(active, rows, -1) * weights.to(x.dtype)[..., None]).sum(0)
    return y, room, row, place, placed, positive, hidden, found


def _mask(room: Tensor, size: int) -> Tensor:
    """(E, P, 1) bool: which of P places belong to each group."""
    end = room.cumsum(0)[:, None]
    place = torch.arange(size, device=room.device)
    return ((place >= end - room[:, None]) & (place < end))[..., None]


def reference_backward(
    grad: Tensor, weights: Tensor, up: Tensor, down: Tensor, room: Tensor, row: Tensor, place: Tensor, rows: Tensor,
    positive: Tensor, hidden: Tensor, found: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The operation `ebmvk::experts_backward` in plain torch.

    grad: (N, output), of y. The other arguments are those that `reference` takes and returns.
    Returns the gradients of x (N, input), weights (A, N) in their dtype, up and down.
    """
    of, (active, n) = _mask(room, len(row)), weights.shape
    placed = grad.index_select(0, row)
    of_weights = (placed * found).sum(-1, dtype=weights.dtype).index_select(0, place).view(active, n)
    share = torch.zeros_like(found[:, 0]).scatter(0, place, weights.flatten().to(grad.dtype))
    placed = placed * share[:, None]
    of_down = torch.einsum("epo,ph->eoh", placed * of, hidden)
    pull = 2 * (torch.einsum("po,eoh->eph", placed, down) * of).sum(0) * positive
    of_up = torch.einsum("eph,pi->ehi", pull * of, rows)
    of_rows = (torch.einsum("ph,ehi->epi", pull, up) * of).sum(0)
    return of_rows.index_select(0, place).view(active, n, -1).sum(0), of_weights, of_up, of_down


def _grouped(
    x: Tensor, weights: Tensor, chosen: Tensor, up: Tensor, down: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`reference`, with one product for each group, over the rows of that group only."""
    active, kinds = len(chosen), len(up)
    groups, size = _Groups.of(chosen, kinds), places(chosen.numel(), kinds)
    used = len(groups.row)
    rows, positive, hidden, found = (x.new_empty(size, m) for m in (x.shape[1], up.shape[1], up.shape[1], len(down[0])))
    groups.spread(x, rows[:used])
    groups.products(rows[:used], up.mT, positive[:used]).relu_()
    torch.square(positive[:used], out=hidden[:used])
    groups.products(hidden[:used], down.mT, found[:used])
    y = _sum(groups.collected(found[:used], active).mul_(weights.to(x.dtype)[..., None]))
    row = groups.row.new_empty(size)
    row[:used] = groups.row
    return y, torch.tensor(groups.room, device=x.device), row, groups.place, rows, positive, hidden, found


def _grouped_backward(
    grad: Tensor, weights: Tensor, up: Tensor, down: Tensor, room: Tensor, row: Tensor, place: Tensor, rows: Tensor,
    positive: Tensor, hidden: Tensor, found: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`reference_backward` for the arrays of `_grouped`.

    Everything except the products takes one pass over all groups. A spare place holds a row like
    any other; only its gradient has to be zero.
    """
    sizes, active = room.tolist(), len(weights)
    used = sum(sizes)
    groups = _Groups(sizes, row[:used], place)
    rows, positive, hidden, found = (part[:used] for part in (rows, positive, hidden, found))
    grad = groups.spread(grad)
    of_weights = groups.collected((grad * found).sum(-1, dtype=weights.dtype), active)
    grad = groups.weighted(grad, weights.to(grad.dtype))
    of_down = groups.gradients(grad, hidden)
    # The factor 2 of the square's derivative is applied to `down`, the smallest of the factors.
    grad = groups.products(grad, 2 * down).mul_(positive)
    of_up = groups.gradients(grad, rows)
    return _sum(groups.collected(groups.products(grad, up), active)), of_weights, of_up, of_down


def _fake(
    x: Tensor, weights: Tensor, chosen: Tensor, up: Tensor, down: Tensor  # noqa: ARG001
) -> tuple[Tensor, ...]:  # fmt: skip
    size, out = places(chosen.numel(), len(up)), down.shape[1]
    shapes = (x.shape[1], up.shape[1], up.shape[1], out)
    return (
        x.new_empty(len(x), out),
        *(chosen.new_empty(n) for n in (len(up), size, chosen.numel())),
        *(x.new_empty(size, m) for m in shapes),
    )


def _fake_backward(
    grad: Tensor, weights: Tensor, up: Tensor, down: Tensor, room: Tensor, row: Tensor, place: Tensor, rows: Tensor,
    *_: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    del room, row, place
    return grad.new_empty(len(grad), rows.shape[1]), *map(torch.empty_like, (weights, up, down))


def _sum(terms: Tensor) -> Tensor:
    """The sum over the first dimension, added in order."""
    return reduce(torch.add, terms.unbind())


experts = operation(
    "experts(Tensor x, Tensor weights, Tensor chosen, Tensor up, Tensor down) -> (Tensor y, Tensor room, Tensor row, "
    "Tensor place, Tensor rows, Tensor positive, Tensor hidden, Tensor found)",
    reference=reference,
    fast=_grouped,
    fake=_fake,
    apart=tiles.experts,
)
experts_backward = operation(
    "experts_backward(Tensor grad, Tensor weights, Tensor up, Tensor down, Tensor room, Tensor row, Tensor place, "
    "Tensor rows, Tensor positive, Tensor hidden, Tensor found) -> (Tensor of_x, Tensor of_weights, Tensor of_up, "
    "Tensor of_down)",
    reference=reference_backward,
    fast=_grouped_backward,
    fake=_fake_backward,
    apart=tiles.experts_backward,
)
