"""GHMC: the oracle's trajectories and decisions, bit-for-bit laws, and the invariant law itself."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from op_problems import Candidates, candidates, nmse, schedule

from ebmvk.engine import Backend, LangevinResult, Schedule
from ebmvk.engine.reference import Reference


def run(backend: Backend, p: Candidates, s: Schedule, **more: float) -> LangevinResult:
    settings = {"seed": 5, "scheme": "ghmc", "leapfrogs": 3, **more}
    return backend.langevin(p.x, p.v, backend.points(p.points), *p.lists, s, **settings)  # type: ignore[arg-type]


def same_bits(a: LangevinResult, b: LangevinResult) -> bool:
    return torch.equal(a.x, b.x) and torch.equal(a.v, b.v)


# The last two with steps so large that about half of the trajectories are rejected.
@pytest.mark.parametrize(
    ("shape", "h"),
    [
        *(((0, 3, 4), 0.02), ((1, 1, 2), 0.1), ((2, 7, 3), 0.1), ((5, 8, 63), 0.05), ((7, 9, 640), 0.02)),
        *(((9, 20, 33), 0.4), ((6, 8, 65), 0.35)),
    ],
    ids=str,
)
def test_trajectories_match_the_oracle(backend: Backend, oracle: Reference, shape: tuple[int, ...], h: float) -> None:
    p, s = candidates(*shape), schedule(3, 0, 4, h=h)
    more = {"seed": 2**63 + 11, "first_step": 3, "first_chain": 9, "temperature": 0.7}
    got, want = run(backend, p, s, **more), run(oracle, p, s, **more)
    # Every decision agrees, because no dH here is within rounding of its bound.
    torch.testing.assert_close(got.diagnostics.acceptance.double(), want.diagnostics.acceptance)
    # 21 leapfrogs amplify roundings little; 5e-13 was measured.
    assert nmse(got.x, want.x) <= 1e-8
    assert nmse(got.v, want.v) <= 1e-8
    for name in ("energy", "kinetic_temperature"):
        assert nmse(getattr(got.diagnostics, name), getattr(want.diagnostics, name)) <= 1e-8, name
    if h >= 0.35:
        assert 0.1 < float(want.diagnostics.acceptance.mean()) < 0.9


@pytest.mark.parametrize("cut", [1, 7, 12, 20])
def test_two_calls_match_one_bit_for_bit(backend: Backend, cut: int) -> None:
    p, levels = candidates(3, 10, 33), schedule(12, 28, h=0.3)
    whole = run(backend, p, levels)
    first = replace(levels, steps=(min(cut, 12), max(0, cut - 12)))
    second = replace(levels, steps=(12 - first.steps[0], 28 - first.steps[1]))
    half = run(backend, p, first)
    assert same_bits(whole, run(backend, replace(p, x=half.x, v=half.v), second, first_step=cut))


def test_chains_dont_depend_on_their_batch(backend: Backend) -> None:
    if backend.name == "reference":
        pytest.skip("torch picks its product by shape, so the last bits of the reference may differ")
    p, s = candidates(11, 20, 70), schedule(6, 5, h=0.2)
    whole = run(backend, p, s)
    parts = [run(backend, p.rows(slice(a, b)), s, first_chain=a) for a, b in ((0, 1), (1, 6), (6, 11))]
    assert torch.equal(whole.x, torch.cat([part.x for part in parts]))
    assert torch.equal(whole.v, torch.cat([part.v for part in parts]))
    assert torch.equal(whole.diagnostics.acceptance, torch.cat([part.diagnostics.acceptance for part in parts]))


def test_a_rejected_trajectory_reverses_the_velocity(backend: Backend) -> None:
    """No friction, steps far too long: x stays and v is exactly reversed by each trajectory."""
    p = candidates(4, 12, 20, kappa=400.0)
    s = Schedule(torch.ones(1), torch.zeros(1), torch.tensor([3.0]), torch.zeros(1), (1,))
    # Start at the minimum of the energy with hardly any velocity; elsewhere dH is in the hundreds.
    p = replace(p, x=p.points[p.ids[:, 0]], v=1e-3 * p.v)
    p.logw[:, 0] = 50.0
    p = replace(p, v=(p.v - (p.v * p.x).sum(1, keepdim=True) * p.x).contiguous(), x=p.x.contiguous())
    got = run(backend, replace(p, v=100 * p.v), s)
    rejected = got.diagnostics.acceptance == 0
    assert bool(rejected.any())
    assert torch.equal(got.x[rejected], p.x[rejected])
    assert torch.equal(got.v[rejected], -(100 * p.v)[rejected])


def test_without_force_every_trajectory_is_accepted(backend: Backend) -> None:
    got = run(backend, candidates(5, 4, 33, kappa=0.0), schedule(20))
    assert bool((got.diagnostics.acceptance == 1).all())
    assert float(got.diagnostics.energy_error.max()) < 1e-4  # roundings of |v|^2 / 2 = 16


def test_the_stationary_distribution_is_von_mises_fisher(backend: Backend) -> None:
    """Compares the mean and variance of the cosine (model section 7), at steps at which unadjusted
    chains are visibly biased.
    """
    chains, d, kappa = 512, 3, 8.0
    p = candidates(chains, 1, d, n=1)
    p = replace(
        p,
        logw=torch.zeros(chains, 1),
        kappa=torch.full((chains, 1), kappa),
        log_background=torch.full((chains,), -torch.inf),
    )
    s = Schedule(torch.ones(1), torch.zeros(1), torch.tensor([0.45]), torch.tensor([1.5]), (400,))
    got = run(backend, p, s)
    assert 0.5 < float(got.diagnostics.acceptance.mean()) < 0.97
    t = (got.x @ p.points.T)[:, 0].double()
    mean = 1 / math.tanh(kappa) - 1 / kappa
    variance = 1 - mean * mean - 2 * mean / kappa
    # 5 standard errors of independent chains; the variance of a squared deviation is at most 9
    # variance^2 here.
    assert abs(float(t.mean()) - mean) < 5 * math.sqrt(variance / chains)
    assert abs(float((t - mean).square().mean()) - variance) < 5 * 3 * variance / math.sqrt(chains)


def test_an_unknown_scheme_or_bad_leapfrogs_are_refused(backend: Backend) -> None:
    from ebmvk.errors import ArgumentError

    p = candidates(2, 3, 4)
    for name, more in (
        ("scheme", {"scheme": "euler"}),
        ("leapfrogs", {"leapfrogs": 0}),
        ("leapfrogs", {"leapfrogs": 2.5}),
    ):
        with pytest.raises(ArgumentError, match=name):
            run(backend, p, schedule(1), **more)  # type: ignore[arg-type]
