"""Spherical k-means and approximate search, through FAISS, for very many points.

`Backend.topk` looks at every point, so its cost grows with N. `ApproximateIndex` looks only at the
points in the nearest inverted lists (IVF). It pays off from about 100,000 points on, if most
queries' neighbours lie in few lists and a missed neighbour now and then does no harm. Never use it
where a result must be exact. `python -m bench.approximate` measures recall and speed against the
exact top-k: for 150,000 clustered points of dimension 640, k = 64 and 1,024 queries on two cores
(shared with other work), 4 of 1,549 lists found .998 of the neighbours, 2.2 to 2.9 times as fast as
the exact top-k; 16 lists found all of them, 1.1 to 1.2 times as fast; 64 lists were slower.

It uses IVF rather than a graph (HNSW) because its result depends on the seed alone; a graph built
by several threads differs each time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from ebmvk.engine import checks
from ebmvk.engine.api import TopK
from ebmvk.errors import ArgumentError, DeviceError, OutOfMemory

_MOST_PER_CENTROID = 256
"""Most points per centroid that k-means learns from, drawn by the seed. More points cost time and
hardly move a centroid.
"""


@dataclass(frozen=True)
class Clusters:
    """centroids: (k, d) unit rows. objective: at the start of each round, the mean of 1 - cosine to
    the nearest centroid, over the points learned from. It rises only if an empty cluster is split.
    """

    centroids: Tensor
    objective: tuple[float, ...]


def kmeans(x: Tensor, k: int, *, rounds: int = 10, seed: int = 0) -> Clusters:
    """Spherical k-means (Dhillon and Modha 2001). The same seed gives the same result.

    Args:
        x: (n, d) float32, unit rows, contiguous, on the CPU. If there are more than 256 k rows, a
            sample is used.
        k: 1 <= k <= n.

    Raises:
        ArgumentError: an argument isn't as above. DeviceError: FAISS isn't installed. OutOfMemory:
            memory ran out.
    """
    checks.NATIVE.tensor("x", x, (None, None), "(n, d)")
    checks.unit_rows("x", x)
    n, d = x.shape
    _within("k", k, 1, n)
    _within("rounds", rounds, 1, 10_000)
    if k == n:  # FAISS would copy the points, too, but report no objective
        return Clusters(x.detach().clone(), (0.0,))
    with _faiss("k-means") as faiss:
        trainer = faiss.Kmeans(
            d,
            k,
            niter=rounds,
            seed=seed % 2**31,
            spherical=True,
            min_points_per_centroid=1,
            max_points_per_centroid=_MOST_PER_CENTROID,
        )
        trainer.train(x.detach().numpy())
    used = min(n, k * _MOST_PER_CENTROID)
    centroids = torch.from_numpy(np.ascontiguousarray(trainer.centroids))
    return Clusters(
        torch.nn.functional.normalize(centroids, dim=1), tuple(1 - float(total) / used for total in trainer.obj)
    )


class ApproximateIndex:
    """Points (N, d) in inverted lists around the centroids of a k-means.

    It keeps a float32 copy of the rows.

    Args:
        points: (N, d) float32, unit rows, contiguous, on the CPU.
        lists: the number of lists; by default 4 sqrt(N), as FAISS advises, but at most N/4.

    Raises:
        ArgumentError: an argument isn't as above. DeviceError: FAISS isn't installed. OutOfMemory:
            memory ran out.
    """

    def __init__(self, points: Tensor, *, lists: int | None = None, seed: int = 0) -> None:
        checks.points(checks.NATIVE, points)
        self.n, self.d = (int(size) for size in points.shape)
        self.lists = lists if lists is not None else max(1, min(round(4 * math.sqrt(self.n)), self.n // 4))
        _within("lists", self.lists, 1, self.n)
        centroids = kmeans(points, self.lists, seed=seed).centroids
        with _faiss("building the index") as faiss:
            quantizer = faiss.IndexFlatIP(self.d)
            quantizer.add(centroids.numpy())
            self._index = faiss.IndexIVFFlat(quantizer, self.d, self.lists, faiss.METRIC_INNER_PRODUCT)
            self._index.train(centroids.numpy())  # the centroids are known; this only marks it as trained
            self._index.add(points.detach().numpy())

    def search(self, queries: Tensor, k: int, *, probes: int) -> TopK:
        """The k best of mu_n.q among the points of the `probes` lists nearest to each query;
        probes=lists is exact.

        If a query's lists hold fewer than k points, it looks into twice as many lists. Scores are
        float32 dot products; equal scores come in order of id.

        Args:
            queries: (B, d) float32, contiguous, on the CPU, of any length.
            k: 1 <= k <= N. probes: 1 <= probes <= lists.

        Raises:
            ArgumentError: an argument isn't as above. OutOfMemory: memory ran out.
        """
        given = {"queries": queries, "points": self, "k": k, "scale": None, "bias": None}
        checks.operation("topk", checks.NATIVE, given)
        _within("probes", probes, 1, self.lists)
        scores = torch.empty(len(queries), k)
        ids = torch.full((len(queries), k), -1)
        todo = torch.arange(len(queries))
        while len(todo):  # ends: all lists together hold N >= k, and no score of checked queries overflows
            scores[todo], ids[todo] = self._search(queries[todo], k, probes)
            todo = (ids < 0).any(1).nonzero()[:, 0]
            probes = min(2 * probes, self.lists)
        by_id = ids.argsort(dim=1)
        scores, ids = scores.gather(1, by_id), ids.gather(1, by_id)
        best = scores.argsort(dim=1, descending=True, stable=True)
        return TopK(scores.gather(1, best), ids.gather(1, best))

    def _search(self, queries: Tensor, k: int, probes: int) -> tuple[Tensor, Tensor]:
        with _faiss("approximate search") as faiss:
            found = self._index.search(queries.detach().numpy(), k, params=faiss.SearchParametersIVF(nprobe=probes))
        scores, ids = (torch.from_numpy(array) for array in found)
        return scores, ids


def recall(found: TopK, exact: TopK) -> float:
    """Share of the exact top-k's ids (B, k) that were found, in any order; in [0, 1]."""
    pairs = zip(found.ids.tolist(), exact.ids.tolist(), strict=True)
    return sum(len(set(some) & set(all_)) for some, all_ in pairs) / max(1, exact.ids.numel())


def _within(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ArgumentError(f"{name} is {value!r}, outside [{low}, {high}]", hint=f"keep {name} within this range")


@contextmanager
def _faiss(doing: str) -> Iterator[ModuleType]:
    """FAISS, on as many threads as torch uses.

    Imported here because it brings an OpenMP runtime of its own.
    """
    try:
        import faiss
    except ImportError as error:
        raise DeviceError(f"{doing} needs FAISS", why=str(error), hint="pip install faiss-cpu") from error
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield faiss
    except MemoryError as error:
        raise OutOfMemory(f"{doing} ran out of memory", hint="use fewer points, lists or queries at once") from error
