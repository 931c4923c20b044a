"""Integrated information of systems with known answers; the cut found against all cuts."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from ebmvk.model.integration import chance, information, integrated_information, phi, weakest_bipartition

F64 = torch.float64


def covariance(n: int, seed: int, rank: int | None = None) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(n, rank or n + 2, generator=g, dtype=F64)
    return a @ a.T + 0.3 * torch.eye(n, dtype=F64)


def all_cuts(c: Tensor) -> dict[tuple[bool, ...], float]:
    n = len(c)
    parts = [(True, *rest) for rest in itertools.product([True, False], repeat=n - 1) if not all(rest)]
    return {part: float(information(c, torch.tensor(part))) for part in parts}


@pytest.mark.parametrize("n", [2, 3, 5, 8, 10])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rank", [None, 2])
def test_the_cut_found_is_the_weakest_of_all_cuts(n: int, seed: int, rank: int | None) -> None:
    c = covariance(n, seed, rank)
    part = weakest_bipartition(c)
    assert 0 < int(part.sum()) < n
    assert float(information(c, part)) == pytest.approx(min(all_cuts(c).values()), abs=1e-10)


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("n", [2, 4, 7])
def test_phi_of_equally_correlated_units_is_exact(n: int, rho: float) -> None:
    """The weakest cut is one unit against the rest; its squared multiple correlation has a closed
    form."""
    c = torch.full((n, n), rho, dtype=F64).fill_diagonal_(1)
    r2 = rho**2 * (n - 1) / (1 + (n - 2) * rho)
    part = weakest_bipartition(c)
    assert float(information(c, part)) == pytest.approx(-math.log(1 - r2) / 2, abs=1e-12)
    if rho:
        assert min(int(part.sum()), n - int(part.sum())) == 1


def test_two_independent_systems_are_cut_apart() -> None:
    """Strong ties within, none between: the cut is the border, and PHI is 0."""
    c = torch.block_diag(covariance(4, 0), covariance(5, 1))
    shuffle = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    part = weakest_bipartition(c[shuffle][:, shuffle])
    assert float(information(c[shuffle][:, shuffle], part)) == pytest.approx(0, abs=1e-12)
    assert len(set(part[shuffle < 4].tolist())) == 1
    assert len(set(part[shuffle >= 4].tolist())) == 1


def test_a_chain_is_cut_at_its_weakest_link() -> None:
    """x_{i+1} = a_i x_i + noise, all of variance 1: a link has -log(1 - a^2)/2 nats."""
    links = [0.9, 0.8, 0.2, 0.7]
    c = torch.eye(5, dtype=F64)
    for i, j in itertools.combinations(range(5), 2):
        c[i, j] = c[j, i] = math.prod(links[i:j])
    part = weakest_bipartition(c)
    assert part.tolist() in ([True, True, True, False, False], [False, False, False, True, True])
    assert float(information(c, part)) == pytest.approx(-math.log(1 - 0.2**2) / 2, abs=1e-12)


def test_shuffling_units_removes_their_integration() -> None:
    g = torch.Generator().manual_seed(0)
    common = torch.randn(20_000, 1, generator=g, dtype=F64)
    x = common + torch.randn(20_000, 6, generator=g, dtype=F64)
    shuffled = torch.stack([x[torch.randperm(len(x), generator=g), i] for i in range(6)], dim=1)
    # Equally correlated by 1/2: R^2 = 5/12.
    assert float(phi(x)) == pytest.approx(5 / 12, abs=0.02)
    assert float(integrated_information(x)) == pytest.approx(-math.log(7 / 12) / 2, abs=0.02)
    assert float(phi(shuffled)) < 2e-3
    assert float(phi(x * torch.logspace(-3, 3, 6, dtype=F64) + 5)) == pytest.approx(float(phi(x)), abs=1e-6)


def test_a_constant_unit_is_cut_off() -> None:
    """Its gradient is finite."""
    x = torch.randn(300, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    x[:, 1:] += x[:, :1]
    x[:, 2] = 0.7
    x.requires_grad_()
    found = phi(x)
    found.backward()
    assert float(found.detach()) == pytest.approx(0, abs=1e-6)
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())


def test_phi_stays_below_one_and_has_a_gradient() -> None:
    x = torch.randn(50, 1, dtype=F64, generator=torch.Generator().manual_seed(0)).expand(-1, 5).clone()
    assert 0.99 < float(phi(x)) < 1  # five copies of one unit
    x = torch.randn(200, 5, dtype=F64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    small = x[:40].detach().requires_grad_()
    assert torch.autograd.gradcheck(phi, (small,), eps=1e-6, atol=1e-5)


def _mixed(signal: float, cross: float) -> Tensor:
    """Covariance of two pairs of units: `signal` within each pair, `cross` between any two of
    different pairs."""
    c = torch.full((4, 4), cross, dtype=F64)
    c[0, 1] = c[1, 0] = c[2, 3] = c[3, 2] = signal
    return c.fill_diagonal_(1)


def _exactly(c: Tensor) -> Tensor:
    """64 samples whose correlations are those of c to rounding."""
    x = torch.randn(64, len(c), dtype=F64, generator=torch.Generator().manual_seed(3))
    white = torch.linalg.qr(x - x.mean(0))[0]
    return white @ torch.linalg.cholesky(c).T


def test_phi_rises_with_information_where_the_weakest_cut_changes_size() -> None:
    """Two pairs, tied ever closer: the weakest cut is first between the pairs, then one unit
    against the rest."""
    ties = torch.linspace(0.05, 0.69, 65).tolist()
    sizes, shares, nats = [], [], []
    for tie in ties:
        x = _exactly(_mixed(0.7, tie))
        part = weakest_bipartition(_mixed(0.7, tie))
        sizes.append(min(int(part.sum()), 4 - int(part.sum())))
        shares.append(float(phi(x)))
        nats.append(float(integrated_information(x)))
    assert set(sizes) == {1, 2}
    steps = [b - a for a, b in itertools.pairwise(shares)]
    assert all((b > a) == (d > 0) for (a, b), d in zip(itertools.pairwise(nats), steps, strict=True))
    assert max(map(abs, steps)) < 0.05  # no jump


@pytest.mark.parametrize("samples", [64, 1024])
def test_independent_units_have_some_phi_by_chance(samples: int) -> None:
    """The multiple correlation of one unit with 15 others is 15 / (n - 1) on average; PHI takes the
    weakest cut."""
    g = torch.Generator().manual_seed(5)
    found = [torch.randn(samples, 16, dtype=F64, generator=g) for _ in range(20)]
    each = torch.stack([1 - 1 / torch.linalg.inv(torch.corrcoef(x.T)).diagonal() for x in found])
    assert float(each.mean()) == pytest.approx(chance(16, samples), rel=0.1)
    assert 0 < max(float(phi(x)) for x in found) < chance(16, samples)
