"""k-means and approximate search against the exact top-k. The same seed gives the same result."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch
from op_problems import unit
from torch import Tensor

from ebmvk.engine import TopK
from ebmvk.engine.approximate import ApproximateIndex, kmeans, recall
from ebmvk.engine.reference import Reference
from ebmvk.errors import ArgumentError, DeviceError

N, D, CLUSTERS = 2000, 24, 40


@pytest.fixture(autouse=True)
def _with_two_threads() -> Iterator[None]:
    """FAISS takes as many threads as torch."""
    pytest.importorskip("faiss")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def clustered(n: int, seed: int) -> Tensor:
    """Unit rows around CLUSTERS directions, with a cosine of about .9. The directions are the same
    for any seed.
    """
    g = torch.Generator().manual_seed(seed)
    centres = unit(CLUSTERS, D, generator=torch.Generator().manual_seed(99))
    of = torch.randint(CLUSTERS, (n,), generator=g)
    return torch.nn.functional.normalize(centres[of] + 0.1 * torch.randn(n, D, generator=g), dim=1)


def exact(queries: Tensor, points: Tensor, k: int) -> TopK:
    reference = Reference(dtype=torch.float64)
    return reference.topk(queries, reference.points(points), k)


def test_kmeans_lowers_its_objective() -> None:
    x = clustered(N, 1)
    found = kmeans(x, CLUSTERS, rounds=8, seed=3)
    assert found.centroids.shape == (CLUSTERS, D)
    torch.testing.assert_close(found.centroids.norm(dim=1), torch.ones(CLUSTERS))
    assert len(found.objective) == 8
    assert found.objective[-1] < found.objective[0]
    assert all(after <= before + 1e-6 for before, after in zip(found.objective, found.objective[1:], strict=False))
    # The last figure belongs to the centroids before the last update; the returned ones are as good
    # or better.
    final = float((1 - (x @ found.centroids.T).amax(1)).mean())
    assert 0 < final <= found.objective[-1] + 1e-6


def test_kmeans_is_a_function_of_its_seed() -> None:
    x = clustered(N, 1)
    first, again, other = (kmeans(x, 7, rounds=3, seed=seed).centroids for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_as_many_clusters_as_points_give_the_points() -> None:
    x = clustered(9, 2)
    found = kmeans(x, 9)
    assert torch.equal(found.centroids, x)
    assert found.objective == (0.0,)


def test_search_finds_most_of_the_exact_neighbours() -> None:
    """A cluster's points lie in few lists: of 40 lists, one gives a recall of .958 and two give 1,
    as measured.
    """
    points, queries = clustered(N, 1), clustered(100, 2)
    index, truth = ApproximateIndex(points, lists=CLUSTERS, seed=3), exact(queries, points, 10)
    one, two = (index.search(queries, 10, probes=probes) for probes in (1, 2))
    assert 0.9 <= recall(one, truth) <= recall(two, truth)
    assert recall(two, truth) >= 0.98
    assert bool((two.scores[:, :-1] >= two.scores[:, 1:]).all())


def test_scores_are_the_dot_products_of_the_ids_found() -> None:
    points, queries = clustered(N, 1), 3 * clustered(50, 2)
    found = ApproximateIndex(points, seed=3).search(queries, 10, probes=4)
    assert found.ids.dtype == torch.int64
    truth = torch.einsum("bkd,bd->bk", points[found.ids].double(), queries.double())
    # A float32 sum of 24 products up to 3 has at most 24 roundings of 2^-24.
    assert float((found.scores.double() - truth).abs().max()) <= 24 * 3 * 2.0**-24


def test_all_lists_give_the_exact_answer_with_ties_by_lower_id() -> None:
    points = torch.cat([clustered(300, 1)] * 2)  # every score occurs twice
    queries = clustered(20, 2)
    index = ApproximateIndex(points, lists=12, seed=3)
    assert torch.equal(index.search(queries, 8, probes=12).ids, exact(queries, points, 8).ids)


def test_a_query_in_a_small_list_still_gets_k_points() -> None:
    points, queries = clustered(300, 1), clustered(20, 2)
    found = ApproximateIndex(points, lists=75, seed=3).search(queries, 300, probes=1)
    assert torch.equal(found.ids.sort(dim=1).values, torch.arange(300).expand(20, -1))


def test_the_index_is_a_function_of_its_seed() -> None:
    points, queries = clustered(N, 1), clustered(100, 2)
    first, again = (ApproximateIndex(points, seed=3).search(queries, 10, probes=1) for _ in range(2))
    assert torch.equal(first.ids, again.ids)
    assert torch.equal(first.scores, again.scores)


def test_recall_counts_ids_in_any_order() -> None:
    some = TopK(torch.zeros(1, 3), torch.tensor([[3, 1, 2]]))
    assert recall(some, TopK(torch.zeros(1, 3), torch.tensor([[1, 2, 3]]))) == 1
    assert recall(some, TopK(torch.zeros(1, 3), torch.tensor([[1, 9, 8]]))) == pytest.approx(1 / 3)


def test_bad_arguments_are_named() -> None:
    x = clustered(20, 1)
    index = ApproximateIndex(x, lists=4)
    for name, call in {
        "x": lambda: kmeans(2 * x, 3),
        "k": lambda: kmeans(x, 21),
        "rounds": lambda: kmeans(x, 3, rounds=0),
        "points": lambda: ApproximateIndex(x.double()),
        "lists": lambda: ApproximateIndex(x, lists=21),
        "probes": lambda: index.search(x, 3, probes=5),
        "queries": lambda: index.search(x * torch.nan, 3, probes=1),
    }.items():
        with pytest.raises(ArgumentError, match=f"^{name}\\b"):
            call()


def test_without_faiss_a_typed_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(DeviceError, match="needs FAISS"):
        kmeans(clustered(20, 1), 3)
