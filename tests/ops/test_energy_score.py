"""energy_score against the oracle, and its own laws."""

from __future__ import annotations

import pytest
import torch
from op_problems import Candidates, candidates, nmse

from ebmvk.engine import Backend
from ebmvk.engine.reference import Reference

# (B, K, d, N): empty, one, primes; around blocks of 8 candidates and chunks of 16, 32 coordinates.
SHAPES = [
    (0, 3, 4, 5),
    (1, 1, 2, 1),
    (2, 7, 3, 5),
    (5, 8, 31, 127),
    (3, 9, 33, 128),
    (7, 64, 640, 129),
    (13, 65, 65, 97),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kappa", [0.0, 5.0, 3000.0])
def test_results_match_the_oracle(backend: Backend, oracle: Reference, shape: tuple[int, ...], kappa: float) -> None:
    p = candidates(*shape, kappa=kappa)
    got = backend.energy_score(p.x, backend.points(p.points), *p.lists)
    want = oracle.energy_score(p.x, oracle.points(p.points), *p.lists)
    # At kappa = 3000 a logit in float32 is off by 2e-4; so is, relatively, a small responsibility.
    tolerance = 1e-9 if kappa <= 5 else 1e-6
    for name in ("energy", "score", "responsibilities", "background"):
        assert nmse(getattr(got, name), getattr(want, name)) <= tolerance, name


def test_responsibilities_sum_to_one_and_the_score_is_tangent(backend: Backend) -> None:
    p = candidates(23, 64, 65)
    got = backend.energy_score(p.x, backend.points(p.points), *p.lists)
    total = got.responsibilities.sum(1) + got.background
    torch.testing.assert_close(total, torch.ones(23), rtol=0, atol=2e-6)  # 65 roundings of float32
    # Relative to |sum rho kappa mu| <= 40
    assert float((got.score * p.x).sum(1).abs().max()) < 1e-5
    assert bool((got.responsibilities[::2, 32] == 0).all())
    assert bool((got.background[::3] == 0).all())


def test_a_weight_far_below_the_rest_changes_nothing(backend: Backend, oracle: Reference) -> None:
    """Whole blocks of negligible candidates, before and after the one that counts."""
    p = candidates(4, 64, 40)
    p.logw.fill_(-200.0)
    p.logw[:, 37] = 3.0
    p.log_background.fill_(-torch.inf)
    got = backend.energy_score(p.x, backend.points(p.points), *p.lists)
    want = oracle.energy_score(p.x, oracle.points(p.points), *p.lists)
    assert nmse(got.energy, want.energy) <= 1e-9
    assert nmse(got.score, want.score) <= 1e-9
    torch.testing.assert_close(got.responsibilities[:, 37], torch.ones(4))


def test_the_score_is_the_slope_of_the_energy(backend: Backend) -> None:
    p = candidates(6, 12, 20, kappa=8.0)
    points = backend.points(p.points)
    direction = p.v / p.v.norm(dim=1, keepdim=True)
    h = 1e-2
    ahead, behind = (backend.expmap(p.x, s * h * direction) for s in (1, -1))
    energies = [backend.energy_score(x, points, *p.lists).energy for x in (ahead, behind)]
    slope = (energies[0] - energies[1]) / (2 * h)
    score = (backend.energy_score(p.x, points, *p.lists).score * direction).sum(1)
    # Central difference: h^2 kappa^3 / 6 at worst, and rounding 1e-6 / h.
    torch.testing.assert_close(-slope, score, rtol=0, atol=5e-3)


def test_rows_do_not_depend_on_the_batch(backend: Backend) -> None:
    if backend.name == "reference":
        pytest.skip("torch picks its product by shape, so the last bits of the reference may differ")
    p = candidates(11, 20, 70)
    points = backend.points(p.points)

    def run(part: Candidates) -> torch.Tensor:
        return backend.energy_score(part.x, points, *part.lists).score

    split = torch.cat([run(p.rows(slice(0, 4))), run(p.rows(slice(4, 11)))])
    assert torch.equal(run(p), split)
