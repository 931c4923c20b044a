"""topk against the oracle, and against a sort for ties."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_problems import nmse, unit

from ebmvk.engine import Backend
from ebmvk.engine.reference import Reference

# (B, N, d, k): empty, one, primes, around tiles of 6, 12 rows and 8, 16, 32 points; k = N.
SHAPES = [
    (0, 5, 3, 2),
    (1, 1, 2, 1),
    (3, 7, 3, 7),
    (7, 31, 63, 5),
    (12, 32, 64, 32),
    (13, 33, 65, 9),
    (5, 127, 640, 64),
    (31, 128, 64, 65),
    (2, 129, 65, 129),
    (67, 1009, 20, 64),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("affine", [False, True], ids=["plain", "scale+bias"])
def test_topk_matches_the_oracle(backend: Backend, oracle: Reference, shape: tuple[int, ...], affine: bool) -> None:
    b, n, d, k = shape
    g = torch.Generator().manual_seed(b + n + d)
    queries, points = 3 * torch.randn(b, d, generator=g), unit(n, d, generator=g)
    extra = {"scale": torch.rand(n, generator=g), "bias": torch.randn(n, generator=g)} if affine else {}
    got = backend.topk(queries, backend.points(points), k, **extra)
    want = oracle.topk(queries, oracle.points(points), k, **extra)
    assert got.scores.shape == got.ids.shape == (b, k)
    assert got.ids.dtype == torch.int64
    # float32 products of 640 terms; 1e-13 was measured.
    assert nmse(got.scores, want.scores) <= 1e-9
    # Ids may differ only where scores tie within rounding, so compare what the ids stand for, in
    # float64.
    exact = queries.double() @ points.double().T
    exact = exact * extra["scale"] + extra["bias"] if affine else exact
    assert nmse(exact.gather(1, got.ids), want.scores) <= 1e-9
    assert all(len(set(row)) == k for row in got.ids.tolist())


def test_ties_go_to_the_lower_id(backend: Backend) -> None:
    # Five distinct rows among 200: nearly every rank is a tie. The product is exact, so are the
    # ties.
    points = torch.eye(8)[torch.arange(200) % 5]
    queries = torch.tensor([[5.0, 3.0, 4.0, 1.0, 2.0, 0, 0, 0], [1.0, 1.0, 1.0, 1.0, 1.0, 0, 0, 0]])
    got = backend.topk(queries, backend.points(points), 101)
    scores = queries @ points.T
    values, ids = torch.sort(scores, dim=1, descending=True, stable=True)
    assert torch.equal(got.ids.cpu(), ids[:, :101])
    assert torch.equal(got.scores.cpu(), values[:, :101])


def test_points_with_bias_minus_infinity_come_last(backend: Backend) -> None:
    points = unit(40, 6, generator=torch.Generator().manual_seed(0))
    bias = torch.zeros(40)
    bias[::2] = -torch.inf
    got = backend.topk(points[:3], backend.points(points), 25, bias=bias)
    assert bool((got.ids[:, :20] % 2 == 1).all())
    assert bool(torch.isinf(got.scores[:, 20:]).all())
    assert got.ids[:, 20:].tolist() == [[0, 2, 4, 6, 8]] * 3


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_sorted_points_match_a_sort(backend: Backend, order: str) -> None:
    """Ascending scores push every point into a running selection, descending ones only the
    first."""
    angle = torch.linspace(3.0, 0.1, 700) if order == "ascending" else torch.linspace(0.1, 3.0, 700)
    points = torch.stack((angle.cos(), angle.sin()), dim=1)
    got = backend.topk(torch.tensor([[1.0, 0.0]]), backend.points(points), 64)
    best = range(699, 635, -1) if order == "ascending" else range(64)
    assert got.ids[0].tolist() == list(best)


def test_rows_do_not_depend_on_the_batch(backend: Backend) -> None:
    g = torch.Generator().manual_seed(3)
    queries, points = torch.randn(29, 65, generator=g), backend.points(unit(301, 65, generator=g))
    whole = backend.topk(queries, points, 17)
    parts = [backend.topk(queries[a:b].contiguous(), points, 17) for a, b in ((0, 1), (1, 14), (14, 29))]
    if backend.name == "reference":
        pytest.skip("torch picks its product by shape, so the last bits of the reference may differ")
    assert torch.equal(whole.scores, torch.cat([part.scores for part in parts]))
    assert torch.equal(whole.ids, torch.cat([part.ids for part in parts]))


@pytest.mark.parametrize("d", [1, 3, 5, 639, 640, 641])
@pytest.mark.parametrize("n", [1, 15, 16, 17, 33, 71])
def test_few_rows_have_the_bits_of_many(cpu_kernels: Any, n: int, d: int) -> None:
    """For up to 8 rows the CPU kernels read panels (of 8, 16 or 32 points) where they are; for more
    rows they transpose them first.
    """
    g = torch.Generator().manual_seed(100 * n + d)
    queries, points = torch.randn(29, d, generator=g).numpy(), unit(n, d, generator=g).numpy()
    scale, bias = torch.randn(n, generator=g).numpy(), torch.randn(n, generator=g).numpy()
    before = cpu_kernels.target()
    try:
        for target in cpu_kernels.targets():
            cpu_kernels.use_target(target)
            scores, ids, _ = cpu_kernels.topk(queries, points, n, scale, bias, None)
            for rows in range(1, 10):
                few, few_ids, _ = cpu_kernels.topk(queries[-rows:], points, n, scale, bias, None)
                assert (few == scores[-rows:]).all(), (target, rows)
                assert (few_ids == ids[-rows:]).all(), (target, rows)
    finally:
        cpu_kernels.use_target(before)


def test_update_replaces_the_rows(backend: Backend) -> None:
    g = torch.Generator().manual_seed(4)
    old, new, query = unit(9, 5, generator=g), unit(9, 5, generator=g), unit(2, 5, generator=g)
    points = backend.points(old)
    points.update(new)
    assert torch.equal(backend.topk(query, points, 9).ids, backend.topk(query, backend.points(new), 9).ids)
    kept = backend.points(old)
    old.zero_()  # the backend has its own copy
    assert bool((backend.topk(query, kept, 1).scores != 0).all())
