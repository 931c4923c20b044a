"""Points spread over the ranks of a run, with an exact top-k, for very large stores.

Each rank keeps a contiguous part of the rows on its own backend. For a look-up, the first rank
sends the queries to all, each finds the k best of its part, and the first merges them. The result
is that of `Backend.topk` over all rows, in the same order. It is the same bit for bit if the
backend's score of a row doesn't depend on the other rows.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ebmvk.engine import checks
from ebmvk.engine.api import Backend, Points, Storage, TopK
from ebmvk.engine.select import select
from ebmvk.errors import ArgumentError
from ebmvk.ranks import Handler, Ranks

Parts = list[Tensor]


@dataclass(frozen=True)
class _Part:
    """A rank's rows of a store of n rows, starting at row `first`.

    points: None if the rank has no rows.
    """

    n: int
    first: int
    points: Points | None


class Shards:
    """One rank's parts of stores, and the work on them that the first rank can ask for.

    Args:
        opened: opens a backend by the name that `--device` takes.
    """

    def __init__(self, ranks: Ranks, opened: Callable[[str], Backend] = select) -> None:
        self.ranks, self._opened = ranks, opened
        self.backend: Backend | None = None
        self._parts: dict[int, _Part] = {}

    def handlers(self) -> Mapping[str, Handler]:
        """{name: what the first rank can tell this one to do}."""
        return {"open": self.open, "keep": self.keep, "topk": self.topk, "drop": self.drop}

    def open(self, device: str) -> None:
        """Open the backend that keeps the parts. Raises as `ebmvk.engine.select`."""
        self.backend = self._opened(device)

    def keep(self, key: int, n: int, d: int, dtype: str, storage: Storage, rows: Tensor | None = None) -> None:
        """Keep this rank's part of n rows, in place of an older part. rows: all rows (n, d); only
        at the first rank.
        """
        assert self.backend is not None
        own = self._part_of(rows, (n, d), dtype)
        first = min(n, self.ranks.rank * len(own))
        own = own[: n - first]
        if key in self._parts:
            points = self._parts[key].points
            if points is not None:
                points.update(own)
        else:
            self._parts[key] = _Part(n, first, self.backend.points(own, storage) if len(own) else None)

    def drop(self, key: int) -> None:
        """Forget a part."""
        del self._parts[key]

    def topk(
        self,
        key: int,
        shape: tuple[int, int],
        k: int,
        dtype: str,
        weights: Sequence[str],
        queries: Tensor | None = None,
        given: Mapping[str, Tensor] | None = None,
    ) -> tuple[Parts, Parts]:
        """Find the k best of this rank's part, and gather those of all ranks at the first one.

        shape: the shape of the queries. weights: which of scale and bias are in use. queries,
        given: the queries and the weights; only at the first rank.

        Returns:
            At the first rank, the scores and ids (B, k) of each rank. Parts of fewer than k rows
            are filled up with -inf and the number of all rows. Elsewhere, empty lists.
        """
        ranks, part, kind = self.ranks, self._parts[key], getattr(torch, dtype)
        asked = ranks.broadcast(torch.empty(shape, dtype=kind) if queries is None else queries.clone())
        own = {name: self._part_of(given[name] if given else None, (part.n,), dtype) for name in weights}
        scores, ids = torch.full((shape[0], k), -math.inf, dtype=kind), torch.full((shape[0], k), part.n)
        if part.points is not None:
            assert self.backend is not None
            here = {name: weight[: part.points.n].contiguous() for name, weight in own.items()}
            most = min(k, part.points.n)
            found = self.backend.topk(asked, part.points, most, **here)
            scores[:, :most], ids[:, :most] = found.scores.cpu(), found.ids.cpu() + part.first
        return ranks.gather(scores), ranks.gather(ids)

    def _part_of(self, whole: Tensor | None, shape: tuple[int, ...], dtype: str) -> Tensor:
        """This rank's part of a tensor of `shape` that the first rank has. All parts have one
        length; the last ones are filled up with zeros."""
        size = self.ranks.size
        length = -(-shape[0] // size)
        own = torch.empty(length, *shape[1:], dtype=getattr(torch, dtype))
        if whole is None:
            return self.ranks.scatter(own)
        full = torch.cat((whole, whole.new_zeros(size * length - shape[0], *shape[1:])))
        return self.ranks.scatter(own, torch.split(full, length))


class ShardedPoints:
    """Rows (n, d), spread over the ranks. Only top-k takes them."""

    def __init__(self, backend: _Sharded, key: int, points: Tensor, storage: Storage) -> None:
        self._backend, self._key = backend, key
        self.n, self.d = points.shape
        self.storage = storage
        self.nbytes = -(-points.nbytes // backend.ranks.size)  # on this rank

    def update(self, points: Tensor, *, first: int | None = None, ids: Tensor | None = None) -> None:
        if first is not None or ids is not None:
            raise ArgumentError(
                "some of the points can't be replaced, because they are spread over processes",
                hint="pass all rows to update()",
            )
        checks.points(checks.ANY, points, like=(self.n, self.d))
        self._backend.spread(self._key, points, self.storage)


class _Sharded:
    """The first rank's backend, with points and top-k over all ranks.

    All other operations are local.
    """

    def __init__(self, own: Backend, ranks: Ranks) -> None:
        self._own, self.ranks, self._shards = own, ranks, Shards(ranks)
        self._shards.backend = own
        self._keys, self._dropped = 0, list[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def points(self, points: Tensor, storage: Storage = "float32") -> ShardedPoints:
        checks.storage(storage)
        checks.points(checks.ANY, points)
        self._keys += 1
        self.spread(self._keys, points, storage)
        kept = ShardedPoints(self, self._keys, points, storage)
        # The ranks drop their parts before the next message, never during one.
        weakref.finalize(kept, self._dropped.append, self._keys)
        return kept

    def spread(self, key: int, points: Tensor, storage: Storage) -> None:
        """Make each rank keep its part of points (n, d)."""
        rows = points.detach().cpu().contiguous()
        how: dict[str, Any] = {"key": key, "n": len(rows), "d": rows.shape[1], "dtype": _name(rows), "storage": storage}
        with self.ranks.whole():
            self._drop()
            self.ranks.tell("keep", **how)
            self._shards.keep(**how, rows=rows)

    def topk(
        self, queries: Tensor, points: Points, k: int, *, scale: Tensor | None = None, bias: Tensor | None = None
    ) -> TopK:
        if not isinstance(points, ShardedPoints):
            return self._own.topk(queries, points, k, scale=scale, bias=bias)
        checks.operation("topk", checks.ANY, locals())
        asked = queries.detach().cpu().contiguous()
        weights = {"scale": scale, "bias": bias}
        given = {name: value.detach().cpu().contiguous() for name, value in weights.items() if value is not None}
        how: dict[str, Any] = {"key": points._key, "shape": [*asked.shape], "k": k, "dtype": _name(asked)}
        how["weights"] = [*given]
        with self.ranks.whole():
            self._drop()
            self.ranks.tell("topk", **how)
            scores, ids = self._shards.topk(**how, queries=asked, given=given)
        best = merged(torch.cat(scores, 1), torch.cat(ids, 1), k)
        return TopK(best.scores.to(queries.device), best.ids.to(queries.device))

    def _drop(self) -> None:
        while self._dropped:
            key = self._dropped.pop()
            self.ranks.tell("drop", key=key)
            self._shards.drop(key)


def merged(scores: Tensor, ids: Tensor, k: int) -> TopK:
    """The k best of candidates (B, K), K >= k: scores descending, equal scores in order of id."""
    ids, order = ids.sort(dim=1, stable=True)
    scores, best = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
    return TopK(scores[:, :k].contiguous(), ids.gather(1, best)[:, :k].contiguous())


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def sharded(own: Backend, ranks: Ranks, device: str) -> Backend:
    """The backend `own` with points spread over the ranks, each on its own `device`.

    With one rank it is `own` itself.

    The other ranks must follow with the handlers of `Shards`.
    """
    if ranks.size == 1:
        return own
    ranks.tell("open", device=device)
    return cast("Backend", _Sharded(own, ranks))
