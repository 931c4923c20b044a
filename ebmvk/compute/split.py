"""Splits long reductions of few rows into several loops: parts of the rows, then their sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ebmvk.compute.expr import children, rewrite, walk
from ebmvk.compute.ir import DType, Expr, Load, Loop, Reduce, Store, Tensor, View
from ebmvk.compute.rewrite import dense_strides
from ebmvk.compute.rows import Part
from ebmvk.compute.tiling import ENOUGH, Tile

Fresh = Callable[[tuple[int, ...], DType], Tensor]

WANTED = 128
"""The number of workgroups among which long rows are divided."""
ROUNDS = 128
"""A second dispatch pays if an invocation's loop has at least this many rounds."""
UNSHARED = frozenset({"argmax", "argmin"})


@dataclass(frozen=True)
class Piece:
    """A loop that is one dispatch. part: how workgroups share its rows; None if they don't."""

    loop: Loop
    part: Part | None = None


def part_of(rows: int, length: int, tile: Tile) -> Part | None:
    """How to divide each row among workgroups; None if one workgroup per row is as fast."""
    groups = -(-rows // tile.across)
    rounds = -(-length // tile.along)
    if groups >= ENOUGH or rounds < ROUNDS or tile.along == 1:
        return None
    chunks = min(-(-WANTED // groups), rounds // 8)
    unit = 4 * tile.along
    size = -(-length // (chunks * unit)) * unit
    chunks = -(-length // size)
    return Part(chunks, size) if chunks > 1 else None


def _dense(tensor: Tensor, shape: tuple[int, ...]) -> View:
    return View(tensor, shape, dense_strides(shape), 0)


def _depths(roots: list[Expr]) -> dict[int, list[Reduce]]:
    """Distinct reductions, by the depth of the reductions inside them."""
    depth: dict[int, int] = {}
    stages: dict[int, list[Reduce]] = {}
    for expression in walk(*roots):
        own = max((depth[id(child)] for child in children(expression)), default=0)
        depth[id(expression)] = own + isinstance(expression, Reduce)
        if isinstance(expression, Reduce) and expression not in stages.setdefault(own, []):
            stages[own].append(expression)
    return stages


def split(loop: Loop, part: Part, fresh: Fresh) -> list[Piece]:
    """The loop as pieces: for each stage of reductions, the parts and then their sums; at the end,
    the stores. Stores with one value per row are part of the piece with the last sums."""
    pieces: list[Piece] = []
    parallel, roots = loop.parallel, [store.value for store in loop.stores]
    single = all(len(store.view.shape) < len(loop.shape) for store in loop.stores)
    while reduces := _depths(roots).get(0):
        partial = {r: fresh((part.chunks, *parallel), _kept(r)) for r in reduces}
        stores = tuple(Store(_dense(tensor, parallel), _raw(r)) for r, tensor in partial.items())
        pieces.append(Piece(Loop(loop.shape, loop.reduced, stores), part))
        sums: dict[Reduce, Expr] = {r: _sum_of_parts(r, tensor, part, parallel) for r, tensor in partial.items()}
        if single and len(_depths(roots)) == 1:
            stores = tuple(Store(s.view, root) for s, root in zip(loop.stores, _exchanged(roots, sums), strict=True))
            return [*pieces, Piece(Loop((*parallel, part.chunks), 1, stores))]
        totals = {r: _dense(fresh(parallel, r.dtype), parallel) for r in reduces}
        stores = tuple(Store(totals[r], total) for r, total in sums.items())
        pieces.append(Piece(Loop((*parallel, part.chunks), 1, stores)))
        roots = _exchanged(roots, {r: Load(view) for r, view in totals.items()})
    stores = tuple(Store(store.view, root) for store, root in zip(loop.stores, roots, strict=True))
    return [*pieces, Piece(Loop(loop.shape, loop.reduced, stores))]


def _exchanged(roots: list[Expr], by: Mapping[Reduce, Expr]) -> list[Expr]:
    """The expressions with reductions replaced by other expressions."""
    return rewrite(roots, lambda part: by.get(part) if isinstance(part, Reduce) else None)


def _kept(reduce: Reduce) -> DType:
    return "bool" if reduce.kind in {"any", "all"} else reduce.dtype


def _raw(reduce: Reduce) -> Reduce:
    return replace(reduce, dtype=_kept(reduce))


def _sum_of_parts(reduce: Reduce, tensor: Tensor, part: Part, parallel: tuple[int, ...]) -> Expr:
    whole = _dense(tensor, (part.chunks, *parallel))
    view = View(tensor, (*parallel, part.chunks), (*whole.strides[1:], whole.strides[0]), 0)
    return Reduce(reduce.kind, Load(view), reduce.dtype)
