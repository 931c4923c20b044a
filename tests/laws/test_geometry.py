"""Geometry of the sphere: round trips, isometry, accuracy against mpmath, gradients at 0/0."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ebmvk.sphere.geometry import dist, expmap, logmap, proju, projx, transp

DIMENSIONS = st.sampled_from([2, 3, 5, 64, 640])
SEEDS = st.integers(0, 2**32 - 1)
# Angles over the whole range, both ends included up to the dtype's resolution.
ANGLES = st.one_of(st.floats(0, 3.14), st.sampled_from([0.0, 1e-12, 1e-8, 1e-5, 0.03, 0.032, math.pi - 1e-3]))
LAWS = settings(max_examples=60, deadline=None)


def _frame(d: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A point and a unit tangent vector at it, batched (3, d)."""
    g = torch.Generator().manual_seed(seed)
    x = projx(torch.randn(3, d, generator=g, dtype=torch.float64))
    u = projx(proju(x, torch.randn(3, d, generator=g, dtype=torch.float64)))
    u = projx(proju(x, u))
    return x.to(dtype), u.to(dtype)


@LAWS
@given(DIMENSIONS, SEEDS, ANGLES)
def test_log_inverts_exp(d: int, seed: int, angle: float) -> None:
    x, u = _frame(d, seed, torch.float64)
    y = expmap(x, angle * u)
    # y carries a rounding error of 1e-16, which near the antipode turns the direction by 1e-16 /
    # (pi - angle).
    tolerance = 1e-14 * (1 + 1 / (math.pi - angle))
    torch.testing.assert_close(logmap(x, y), angle * u, rtol=0, atol=tolerance)
    torch.testing.assert_close(dist(x, y), torch.full((3,), angle, dtype=torch.float64), rtol=0, atol=1e-14)
    torch.testing.assert_close(y.norm(dim=-1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-14)


@LAWS
@given(DIMENSIONS, SEEDS, ANGLES)
def test_float32_stays_close_to_float64(d: int, seed: int, angle: float) -> None:
    x, u = _frame(d, seed, torch.float64)
    y = expmap(x, angle * u).float()
    x32, u32 = x.float(), u.float()
    # 6e-8 per rounding over sqrt(d) coordinates at worst; the plain acos would be off by 1e-2 at
    # small angles.
    assert (dist(x32, y).double() - dist(x32.double(), y.double())).abs().max() < 5e-7
    assert (logmap(x32, y).norm(dim=-1) - dist(x32, y)).abs().max() < 2e-6
    torch.testing.assert_close(expmap(x32, angle * u32).double(), y.double(), rtol=0, atol=2e-6)


def test_dist_of_a_point_to_itself_and_to_its_antipode() -> None:
    x, _ = _frame(640, 0, torch.float32)
    assert dist(x, x).abs().max() == 0
    torch.testing.assert_close(dist(x, -x), torch.full((3,), math.pi))


@pytest.mark.parametrize("angle", [1e-9, 1e-4, 0.5, 3.0, math.pi - 1e-6])
def test_dist_against_mpmath(angle: float) -> None:
    x, u = _frame(5, 3, torch.float64)
    y = projx(expmap(x, angle * u))
    with mpmath.workdps(50):
        for one, other, got in zip(x.tolist(), y.tolist(), dist(x, y).tolist(), strict=True):
            a, b = (mpmath.matrix(row) / mpmath.norm(mpmath.matrix(row)) for row in (one, other))
            want = 2 * mpmath.atan2(mpmath.norm(a - b), mpmath.norm(a + b))
            # Rounding of y itself is 1e-16 absolute; distances below 1 keep that.
            assert abs(got - want) < 2e-15 * max(1, float(want))


@LAWS
@given(DIMENSIONS, SEEDS, st.floats(0, 3.1))
def test_transport_is_an_isometry_that_moves_geodesics_along(d: int, seed: int, angle: float) -> None:
    x, u = _frame(d, seed, torch.float64)
    _, w = _frame(d, seed, torch.float64)
    w = proju(x, w + torch.roll(x, 1, -1))
    y = expmap(x, angle * u)
    # 1 + x.y is inaccurate because both points are rounded
    tolerance = 1e-13 / (math.pi - angle)
    moved_u, moved_w = transp(x, y, u), transp(x, y, w)
    for moved in (moved_u, moved_w):
        assert (moved * y).sum(-1).abs().max() < tolerance
    torch.testing.assert_close((moved_u * moved_w).sum(-1), (u * w).sum(-1), rtol=0, atol=tolerance)
    torch.testing.assert_close(moved_w.norm(dim=-1), w.norm(dim=-1), rtol=0, atol=tolerance)
    torch.testing.assert_close(moved_u, math.cos(angle) * u - math.sin(angle) * x, rtol=0, atol=tolerance)
    torch.testing.assert_close(transp(y, x, moved_w), w, rtol=0, atol=tolerance)


@LAWS
@given(DIMENSIONS, SEEDS)
def test_projections_are_idempotent(d: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x = projx(torch.randn(2, 3, d, generator=g, dtype=torch.float64))
    u = proju(x, torch.randn(2, 3, d, generator=g, dtype=torch.float64))
    torch.testing.assert_close(projx(x), x, rtol=0, atol=1e-15)
    torch.testing.assert_close(proju(x, u), u, rtol=0, atol=1e-13)
    assert (x * u).sum(-1).abs().max() < 1e-13


def test_gradients_are_finite_at_the_singular_points() -> None:
    for dtype in (torch.float32, torch.float64):
        base, _ = _frame(4, 1, dtype)
        for y in (base, -base, base + torch.finfo(dtype).eps):
            x = base.clone().requires_grad_()
            other = y.clone().requires_grad_()
            u = torch.zeros_like(base).requires_grad_()
            total = expmap(x, u).sum() + logmap(x, other).sum() + dist(x, other).sum() + transp(x, other, u).sum()
            for gradient in torch.autograd.grad(total, (x, other, u)):
                assert torch.isfinite(gradient).all()
    assert torch.isfinite(torch.autograd.grad(projx(z := torch.zeros(1, 3, requires_grad=True)).sum(), z)[0]).all()


@pytest.mark.parametrize("angle", [0.0, 1e-6, 0.0316, 0.0317, 1.0, 3.0])
def test_gradients_against_differences(angle: float) -> None:
    """At 0 and on both sides of the switch to Taylor series; difference quotients are good to
    1e-6."""
    x, u = _frame(3, 2, torch.float64)
    y = expmap(x, angle * u)
    assert torch.autograd.gradcheck(expmap, (x.requires_grad_(), (angle * u).requires_grad_()), atol=1e-6)
    assert torch.autograd.gradcheck(logmap, (x, y.detach().requires_grad_()), atol=1e-5, eps=1e-7)
