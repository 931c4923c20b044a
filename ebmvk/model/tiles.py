"""The operations `ebmvk::experts` and `ebmvk::experts_backward` as a compiled step computes them.

Rows are sorted by expert and cut into tiles of equally many places, each of one expert. The number
of tiles is a bound that depends on shapes alone: every expert leaves at most one tile incomplete.
Everything is a product of tiles, a sum by expert, or a gather through tables that are computed from
`chosen`; nothing waits for the sizes of the groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

TILES = 4
"""The number of full tiles that an expert has on average. More tiles waste fewer places, but each
tile holds a copy of its expert's matrices while it is multiplied."""


def height(pairs: int, experts: int) -> int:
    """The number of places of a tile. pairs: the number of (row, choice) pairs."""
    return max(1, -(-pairs // (TILES * experts)))


def count(pairs: int, experts: int) -> int:
    """The largest number of tiles that are needed for this number of pairs (row, choice): each
    expert leaves at most one tile incomplete."""
    size = height(pairs, experts)
    return (pairs + experts * (size - 1)) // size


def _tables(chosen: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """(of, pair, place) of chosen (A, N): the expert of each tile; the (choice, row) at each place,
    counted along `chosen`, or -1 at a spare place; and the place of each (choice, row)."""
    every = chosen.flatten()
    pairs, device = len(every), chosen.device
    size, tiles = height(pairs, experts), count(pairs, experts)
    kinds, order = torch.sort(every, stable=True)
    rows = (every[:, None] == torch.arange(experts, device=device)).sum(0)
    full = (rows + (size - 1)) // size  # tiles of each expert
    end, last = full.cumsum(0), rows.cumsum(0)
    begin, first = end - full, last - rows  # where an expert's tiles begin, and its rows in `order`
    tile = torch.arange(tiles, device=device)
    of = (tile[:, None] >= end).sum(1).clamp_max(experts - 1)
    within = (tile - begin.index_select(0, of))[:, None] * size + torch.arange(size, device=device)
    there = within < rows.index_select(0, of)[:, None]
    at = (first.index_select(0, of)[:, None] + within).clamp(0, pairs - 1)
    pair = torch.where(there, order.index_select(0, at.flatten()).view(tiles, size), -1).flatten()
    sorted_place = torch.arange(pairs, device=device) + (size * begin - first).index_select(0, kinds)
    place = sorted_place.index_select(0, torch.sort(order).indices)  # the inverse of a permutation
    return of, pair, place


def _tiled(x: Tensor, of: Tensor) -> Tensor:
    """(tiles, places of a tile, d) of x (P, d)."""
    return x.view(len(of), -1, x.shape[1])


def experts(
    x: Tensor, weights: Tensor, chosen: Tensor, up: Tensor, down: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`grouped.reference` by tiles. In place of the rooms it returns the expert of each tile, and
    in place of the rows (P,) the (choice, row) of each place."""
    (active, n), kinds = chosen.shape, len(up)
    of, pair, place = _tables(chosen, kinds)
    rows = x.index_select(0, pair.clamp_min(0) % n)
    positive = torch.bmm(_tiled(rows, of), up.index_select(0, of).mT).relu().flatten(0, 1)
    hidden = positive.square()
    found = torch.bmm(_tiled(hidden, of), down.index_select(0, of).mT).flatten(0, 1)
    each = found.index_select(0, place).view(active, n, -1)
    return (each * weights.to(x.dtype)[..., None]).sum(0), of, pair, place, rows, positive, hidden, found


def experts_backward(
    grad: Tensor, weights: Tensor, up: Tensor, down: Tensor, of: Tensor, pair: Tensor, place: Tensor, rows: Tensor,
    positive: Tensor, hidden: Tensor, found: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`grouped.reference_backward` for what `experts` returns."""
    (active, n), at = weights.shape, pair.clamp_min(0)
    placed = grad.index_select(0, at % n)
    of_weights = (placed * found).sum(-1).to(weights.dtype).index_select(0, place).view(active, n)
    share = torch.where(pair >= 0, weights.flatten().index_select(0, at), 0.0).to(grad.dtype)
    placed = placed * share[:, None]
    of_down = _by_expert(placed, hidden, of, down)
    pull = torch.bmm(_tiled(placed, of), down.index_select(0, of)).flatten(0, 1) * (2 * positive)
    of_up = _by_expert(pull, rows, of, up)
    of_rows = torch.bmm(_tiled(pull, of), up.index_select(0, of)).flatten(0, 1)
    return of_rows.index_select(0, place).view(active, n, -1).sum(0), of_weights, of_up, of_down


def _by_expert(grads: Tensor, rows: Tensor, of: Tensor, like: Tensor) -> Tensor:
    """(E, e, d): the sums of grads^T rows over the tiles of each expert."""
    each = torch.bmm(_tiled(grads, of).mT, _tiled(rows, of)).flatten(1)
    return torch.zeros_like(like).flatten(1).index_add(0, of, each).view(like.shape)
