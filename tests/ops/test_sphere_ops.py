"""Geometry of the sphere against the oracle, and where naive formulas fail."""

from __future__ import annotations

import math

import pytest
import torch
from op_problems import nmse, unit

from ebmvk.engine import Backend
from ebmvk.engine.reference import Reference

SHAPES = [(0, 3), (1, 2), (2, 3), (7, 63), (13, 64), (31, 65), (5, 640)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_match_the_oracle(backend: Backend, oracle: Reference, shape: tuple[int, int]) -> None:
    g = torch.Generator().manual_seed(sum(shape))
    x, y, u = unit(*shape, generator=g), unit(*shape, generator=g), torch.randn(*shape, generator=g)
    # Each is normalised in float32, so x and y are unit only to 1e-7; every formula is as far from
    # exact, too.
    pairs = {
        "projx": (backend.projx(3 * u), oracle.projx(3 * u)),
        "proju": (backend.proju(x, u), oracle.proju(x, u)),
        "expmap": (backend.expmap(x, u), oracle.expmap(x, u)),
        "logmap": (backend.logmap(x, y), oracle.logmap(x, y)),
        "transp": (backend.transp(x, y, u), oracle.transp(x, y, u)),
        "dist": (backend.dist(x, y), oracle.dist(x, y)),
    }
    for name, (got, want) in pairs.items():
        assert got.shape == want.shape, name
        assert nmse(got, want) <= 1e-9, name


def test_distances_next_to_zero_and_pi_are_accurate(backend: Backend) -> None:
    """In float32, acos(x.y) would give 1e-2 or 0 for all of the small distances."""
    angles = torch.tensor([0.0, 1e-6, 1e-4, 1e-2, 1.0, math.pi - 1e-2, math.pi])
    x = torch.zeros(len(angles), 5)
    x[:, 0] = 1
    y = torch.zeros_like(x)
    y[:, 0], y[:, 1] = angles.double().cos().float(), angles.double().sin().float()
    torch.testing.assert_close(backend.dist(x, y), angles, rtol=2e-5, atol=1e-7)


def test_logmap_undoes_expmap(backend: Backend) -> None:
    g = torch.Generator().manual_seed(0)
    x = unit(8, 40, generator=g)
    direction = backend.projx(backend.proju(x, torch.randn(8, 40, generator=g)))
    u = torch.tensor([0.0, 1e-5, 1e-3, 0.1, 0.5, 1.0, 2.0, 3.0])[:, None] * direction
    # y carries an error of 1e-7 per unit of itself, whatever |u|.
    torch.testing.assert_close(backend.logmap(x, backend.expmap(x, u)), u, rtol=2e-5, atol=2e-6)


def test_logmap_without_a_direction_is_zero(backend: Backend) -> None:
    x = unit(3, 7, generator=torch.Generator().manual_seed(0))
    assert bool((backend.logmap(x, x) == 0).all())
    assert bool(torch.isfinite(backend.logmap(x, -x)).all())


def test_transport_keeps_lengths_and_tangency(backend: Backend) -> None:
    g = torch.Generator().manual_seed(0)
    x, y = unit(9, 33, generator=g), unit(9, 33, generator=g)
    u = backend.proju(x, torch.randn(9, 33, generator=g))
    moved = backend.transp(x, y, u)
    torch.testing.assert_close(moved.norm(dim=1), u.norm(dim=1), rtol=1e-5, atol=0)
    assert float((moved * y).sum(1).abs().max()) < 1e-5


def test_projx_is_accurate_for_tiny_and_huge_rows(backend: Backend) -> None:
    x = torch.tensor([[3e-30, 4e-30], [3e30, 4e30]])
    torch.testing.assert_close(backend.projx(x), torch.tensor([[0.6, 0.8], [0.6, 0.8]]))
