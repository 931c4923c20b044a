"""Exact top-k through 8-bit scores: it has the bits of float32, and falls back if its bound proves
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from op_problems import unit
from torch import Tensor

from ebmvk.engine import select


@pytest.fixture(params=["amx", "vnni", "avx2"])
def kernels(cpu_kernels: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The extension with one of the 8-bit products in use."""
    kernel, target = cpu_kernels.coarse_kernel(), cpu_kernels.target()
    if request.param not in cpu_kernels.coarse_kernels():
        pytest.skip(f"this processor has no 8-bit dot products of kind {request.param}")
    if request.param == "avx2" and "AVX2" in cpu_kernels.targets():
        cpu_kernels.use_target("AVX2")  # it is used only there
    cpu_kernels.use_coarse_kernel(request.param)
    try:
        if not cpu_kernels.use_coarse():
            pytest.skip(f"no instruction set for 8-bit dot products of kind {request.param}")
        yield cpu_kernels
    finally:
        cpu_kernels.use_coarse_kernel(kernel)
        cpu_kernels.use_target(target)


def both(
    kernels: Any, queries: Tensor, points: Tensor, k: int, scale: Tensor | None = None, bias: Tensor | None = None
) -> int:
    """Assert equal bits, and return the number of rows that the bound didn't prove."""
    arrays = [None if t is None else t.numpy() for t in (scale, bias)]
    coarse = kernels.CoarsePoints(points.numpy())
    scores, ids, _ = kernels.topk(queries.numpy(), points.numpy(), k, *arrays, None)
    found, found_ids, unproved = kernels.topk(queries.numpy(), points.numpy(), k, *arrays, coarse)
    assert (found_ids == ids).all()
    assert (found == scores).all()
    return int(unproved)


# (B, N, d, k): around tiles of 8 and 32 queries, strips of 128, panels of 32 points, quads and
# blocks of 64 coordinates; k = 1, 128 and near N.
SHAPES = [
    (1, 1, 2, 1),
    (5, 33, 3, 33),
    (32, 1024, 64, 64),
    (33, 1500, 65, 7),
    (25, 4001, 67, 64),
    (31, 4096, 640, 64),
    (2, 3000, 130, 128),
    (129, 2500, 63, 1),
    (9, 9000, 127, 128),
    (1030, 1100, 9, 5),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("affine", [False, True], ids=["plain", "scale+bias"])
def test_results_match_float32_bit_for_bit(kernels: Any, shape: tuple[int, ...], affine: bool) -> None:
    b, n, d, k = shape
    g = torch.Generator().manual_seed(b + n + d)
    queries = torch.randn(b, d, generator=g) * torch.logspace(-6, 6, b)[:, None]
    extra = (torch.randn(n, generator=g), torch.randn(n, generator=g)) if affine else (None, None)
    both(kernels, queries, unit(n, d, generator=g), k, *extra)


def test_random_rows_are_proved(kernels: Any) -> None:
    """Uniform points at d = 640, the hardest without structure: nothing may fall back."""
    g = torch.Generator().manual_seed(0)
    assert both(kernels, unit(24, 640, generator=g), unit(4096, 640, generator=g), 64) == 0


@pytest.mark.parametrize("d", [1, 2, 3, 31, 64, 100, 1000])
@pytest.mark.parametrize("signs", [1, 2, 3])
def test_codes_of_full_size_match_float32(kernels: Any, d: int, signs: int) -> None:
    """All coordinates have the largest codes, of few patterns of signs: the sums of products are as
    large as they can be, so that sums in 16 bits would wrap if their length weren't checked.

    Half of the rows have one huge coordinate instead, or random ones.
    """
    g = torch.Generator().manual_seed(d + signs)
    pattern = torch.randint(0, 2, (signs, d), generator=g) * 2.0 - 1.0
    points = pattern[torch.randint(signs, (900,), generator=g)] * torch.rand(900, 1, generator=g)
    queries = pattern[torch.randint(signs, (40,), generator=g)] * torch.rand(40, 1, generator=g)
    points[::4] = torch.randn(225, d, generator=g)
    points[1::4, d // 2] *= 1e3
    queries[::4] = torch.randn(10, d, generator=g)
    queries[1::4, d // 3] *= 1e3
    queries[2] *= -1
    both(kernels, queries, points, 11)


def test_many_rows_with_the_same_candidates_match_float32(kernels: Any) -> None:
    """From 256 rows on, candidates are scored by point instead of by row."""
    g = torch.Generator().manual_seed(13)
    points = unit(5003, 131, generator=g)
    scale, bias = 0.5 + torch.rand(5003, generator=g), torch.randn(5003, generator=g) / 50
    for b in (255, 256, 300):
        assert both(kernels, unit(b, 131, generator=g), points, 30, scale, bias) < b // 2


def test_points_within_the_bound_fall_back(kernels: Any) -> None:
    """8 bits can't tell these 4,000 points apart: every row must fall back, and be right."""
    g = torch.Generator().manual_seed(1)
    points = unit(1, 64, generator=g) + 1e-4 * torch.randn(4000, 64, generator=g)
    points = points / points.norm(dim=1, keepdim=True)
    assert both(kernels, unit(7, 64, generator=g), points, 32) == 7


def test_ties_between_copies_go_to_the_lower_id(kernels: Any) -> None:
    """Each of 40 rows occurs 50 times: ties go to the lower id although candidates come in any
    order."""
    g = torch.Generator().manual_seed(2)
    both(kernels, unit(9, 24, generator=g), unit(40, 24, generator=g).repeat(50, 1), 130)


def test_rows_that_break_the_bound_leave_the_others_proved(kernels: Any) -> None:
    """Every third query sees 3,000 points that differ by less than its bound; the others must not
    notice.
    """
    g = torch.Generator().manual_seed(8)
    near = unit(1, 96, generator=g)
    crowd = near + 1e-4 * torch.randn(3000, 96, generator=g)
    points = torch.cat((crowd / crowd.norm(dim=1, keepdim=True), unit(3000, 96, generator=g)))
    points = points[torch.randperm(6000, generator=g)].contiguous()
    queries = unit(50, 96, generator=g)
    queries[::3] = near + 0.01 * torch.randn(17, 96, generator=g)
    queries[1::3] -= (queries[1::3] @ near.T + 0.5) * near
    queries[2::3] -= (queries[2::3] @ near.T + 0.5) * near
    assert both(kernels, queries, points, 20) == 17


def test_sorted_points_match_float32(kernels: Any) -> None:
    """The best points come last, then first: no order may fool the sample that the first bars come
    from.
    """
    g = torch.Generator().manual_seed(9)
    points, queries = unit(20_000, 32, generator=g), unit(3, 32, generator=g)
    order = (points @ queries[0]).argsort()
    for rows in (points[order], points[order.flip(0)]):
        both(kernels, queries, rows.contiguous(), 64)


def test_zero_rows_match_float32(kernels: Any) -> None:
    """A point or a query of zeros has no step: all its scores are the bias, and they tie."""
    g = torch.Generator().manual_seed(10)
    points, queries = unit(3000, 40, generator=g), unit(6, 40, generator=g)
    points[::2] = 0
    queries[1] = 0
    both(kernels, queries, points, 30)
    both(kernels, queries, points, 30, torch.randn(3000, generator=g), torch.randn(3000, generator=g).round())


def test_scales_of_any_size_match_float32(kernels: Any) -> None:
    """Panels that mix points with scales of 1e-6, 1e6 and 0, of both signs."""
    g = torch.Generator().manual_seed(11)
    scale = torch.randn(5000, generator=g) * 10 ** torch.randint(-6, 7, (5000,), generator=g)
    scale[::7] = 0
    both(kernels, unit(20, 70, generator=g), unit(5000, 70, generator=g), 64, scale, torch.randn(5000, generator=g))


def test_nan_rows_fall_back(kernels: Any) -> None:
    """Without the argument checks: a row or a scale that is not finite proves nothing, and harms no
    other row.
    """
    g = torch.Generator().manual_seed(12)
    queries, points = unit(5, 48, generator=g), unit(2500, 48, generator=g)
    queries[2, 7] = torch.nan
    queries[4, 0] = torch.inf
    coarse = kernels.CoarsePoints(points.numpy())
    scores, ids, unproved = kernels.topk(queries.numpy(), points.numpy(), 9, None, None, coarse)
    want, want_ids, _ = kernels.topk(queries[::3].contiguous().numpy(), points.numpy(), 9, None, None, None)
    assert unproved == 2
    assert (ids[::3] == want_ids).all()
    assert (scores[::3] == want).all()


@pytest.mark.parametrize("value", [0.0, 1e-42, 1e-25, 1e30, 3e38])
def test_extreme_queries_match_float32(kernels: Any, value: float) -> None:
    g = torch.Generator().manual_seed(3)
    queries = torch.zeros(3, 32)
    queries[1, 5] = value
    queries[2] = value * unit(1, 32, generator=g)[0]
    both(kernels, queries, unit(2000, 32, generator=g), 16)


def test_extreme_points_match_float32(kernels: Any) -> None:
    """Points along the axes and points of scale 0. Nearly all have a bias of -inf, and the steps of
    their 8-bit codes differ widely."""
    g = torch.Generator().manual_seed(4)
    points = torch.cat((torch.eye(48), -torch.eye(48), unit(1500, 48, generator=g)))
    bias = torch.full((len(points),), -torch.inf)
    bias[::100] = 0.0
    queries = unit(6, 48, generator=g)
    both(kernels, queries, points, 40, None, bias)
    both(kernels, queries, points, 40, 1e20 * torch.ones(len(points)), None)


def test_the_number_of_threads_changes_no_bit(kernels: Any) -> None:
    g = torch.Generator().manual_seed(5)
    queries, points = unit(40, 96, generator=g), unit(3000, 96, generator=g)
    threads = kernels.threads()
    try:
        for count in (1, 2, 3, 5):
            kernels.set_threads(count)
            assert both(kernels, queries, points, 20) == 0
    finally:
        kernels.set_threads(threads)


def test_many_queries_use_a_coarse_copy_that_an_update_drops(kernels: Any) -> None:
    backend = select("cpu")
    g = torch.Generator().manual_seed(6)
    old, new, queries = unit(8192, 256, generator=g), unit(8192, 256, generator=g), unit(600, 256, generator=g)
    points = backend.points(old)
    few = backend.topk(queries[:3].contiguous(), points, 9)
    assert points._coarse is None  # type: ignore[attr-defined]  # not worth it yet
    many = backend.topk(queries, points, 9)
    assert points._coarse is not None  # type: ignore[attr-defined]
    assert torch.equal(few.scores, many.scores[:3])
    points.update(new)
    assert torch.equal(backend.topk(queries, points, 9).ids, backend.topk(queries, backend.points(new), 9).ids)


def test_other_instruction_sets_dont_use_coarse_copies(kernels: Any) -> None:
    """Rescoring has the bits of fused sums, so it must not be mixed with other sums."""
    before = kernels.target()
    try:
        kernels.use_target("plain")
        assert not kernels.use_coarse()
    finally:
        kernels.use_target(before)


def test_coarse_copies_can_always_be_switched_off(cpu_kernels: Any) -> None:
    """Whatever the processor has, "none" can be chosen, and then the coarse product is refused."""
    before = cpu_kernels.coarse_kernel()
    assert cpu_kernels.coarse_kernels()[-1] == "none"
    try:
        cpu_kernels.use_coarse_kernel("none")
        assert not cpu_kernels.use_coarse()
        with pytest.raises(ValueError, match="no coarse kernel"):
            cpu_kernels.use_coarse_kernel("abacus")
        assert cpu_kernels.coarse_kernel() == "none"
    finally:
        cpu_kernels.use_coarse_kernel(before)


def test_a_store_of_another_shape_is_refused(kernels: Any) -> None:
    g = torch.Generator().manual_seed(7)
    points, other = unit(2000, 8, generator=g), unit(1999, 8, generator=g)
    with pytest.raises(ValueError, match="coarse"):
        kernels.topk(points[:2].numpy(), points.numpy(), 3, None, None, kernels.CoarsePoints(other.numpy()))
