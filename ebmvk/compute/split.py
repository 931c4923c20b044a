"""Long reductions of few rows as several loops: parts of the rows first, then their sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ebmvk.compute.ir import DType, Expr, Load, LoadAt, Loop, Op, Reduce, Store, Tensor, View
from ebmvk.compute.reading import children, walk
from ebmvk.compute.rows import Part
from ebmvk.compute.tiling import Tile

Fresh = Callable[[tuple[int, ...], DType], Tensor]

ENOUGH = 64
"""Workgroups that keep a device busy: with fewer, long rows are shared."""
WANTED = 128
ROUNDS = 64
"""Rounds of an invocation's loop from which it is worth a second dispatch."""
UNSHARED = frozenset({"argmax", "argmin"})


@dataclass(frozen=True)
class Piece:
    """A loop that is one dispatch. part: how workgroups share its rows, if they do."""

    loop: Loop
    part: Part | None = None


def part_of(rows: int, length: int, tile: Tile) -> Part | None:
    """How to share the rows, or None if a workgroup for each is as good."""
    groups = -(-rows // tile.across)
    rounds = -(-length // tile.along)
    if groups >= ENOUGH or rounds < ROUNDS:
        return None
    chunks = min(-(-WANTED // groups), rounds // 8)
    unit = 4 * tile.along
    size = -(-length // (chunks * unit)) * unit
    chunks = -(-length // size)
    return Part(chunks, size) if chunks > 1 else None


def rewritten(root: Expr, known: dict[int, Expr]) -> Expr:
    """An expression with some objects replaced by others, by id."""
    for expression in walk([root]):
        if id(expression) in known:
            continue
        new = [known[id(child)] for child in children(expression)]
        if all(a is b for a, b in zip(new, children(expression), strict=True)):
            known[id(expression)] = expression
        elif isinstance(expression, Op):
            known[id(expression)] = replace(expression, args=tuple(new))
        elif isinstance(expression, LoadAt):
            known[id(expression)] = replace(expression, index=tuple(new))
        else:
            assert isinstance(expression, Reduce)
            known[id(expression)] = replace(expression, of=new[0])
    return known[id(root)]


def _dense(tensor: Tensor, shape: tuple[int, ...]) -> View:
    strides, step = [0] * len(shape), 1
    for axis in reversed(range(len(shape))):
        strides[axis] = step
        step *= shape[axis]
    return View(tensor, shape, tuple(strides), 0)


def _depths(roots: list[Expr]) -> dict[int, list[Reduce]]:
    """Distinct reductions by how many stand below them."""
    depth: dict[int, int] = {}
    stages: dict[int, list[Reduce]] = {}
    for expression in walk(roots):
        own = max((depth[id(child)] for child in children(expression)), default=0)
        depth[id(expression)] = own + isinstance(expression, Reduce)
        if isinstance(expression, Reduce) and expression not in stages.setdefault(own, []):
            stages[own].append(expression)
    return stages


def split(loop: Loop, part: Part, fresh: Fresh) -> list[Piece]:
    """The loop as pieces: for each stage of reductions the parts and their sums, then the stores."""
    pieces: list[Piece] = []
    parallel, roots = loop.parallel, [store.value for store in loop.stores]
    while reduces := _depths(roots).get(0):
        partial: dict[Reduce, Tensor] = {r: fresh((part.chunks, *parallel), _kept(r)) for r in reduces}
        stores = tuple(Store(_dense(tensor, parallel), _raw(r)) for r, tensor in partial.items())
        pieces.append(Piece(Loop(loop.shape, loop.reduced, stores), part))
        known: dict[int, Expr] = {}
        sums, loads = [], {}
        for r, tensor in partial.items():
            total = fresh(parallel, r.dtype)
            sums.append(Store(_dense(total, parallel), _sum_of_parts(r, tensor, part, parallel)))
            loads[r] = Load(_dense(total, parallel))
        for expression in walk(roots):
            if isinstance(expression, Reduce) and expression in loads:
                known[id(expression)] = loads[expression]
        pieces.append(Piece(Loop((*parallel, part.chunks), 1, tuple(sums))))
        roots = [rewritten(root, known) for root in roots]
    stores = tuple(Store(store.view, root) for store, root in zip(loop.stores, roots, strict=True))
    return [*pieces, Piece(Loop(loop.shape, loop.reduced, stores))]


def _kept(reduce: Reduce) -> DType:
    return "bool" if reduce.kind in {"any", "all"} else reduce.dtype


def _raw(reduce: Reduce) -> Reduce:
    return replace(reduce, dtype=_kept(reduce))


def _sum_of_parts(reduce: Reduce, tensor: Tensor, part: Part, parallel: tuple[int, ...]) -> Expr:
    whole = _dense(tensor, (part.chunks, *parallel))
    view = View(tensor, (*parallel, part.chunks), (*whole.strides[1:], whole.strides[0]), 0)
    return Reduce(reduce.kind, Load(view), reduce.dtype)
