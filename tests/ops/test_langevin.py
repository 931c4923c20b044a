"""langevin: the oracle's trajectories under the same noise, and what must hold bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from op_problems import Candidates, candidates, nmse, schedule, unit

from ebmvk.engine import Backend, LangevinResult, Schedule
from ebmvk.engine.reference import Reference


def run(backend: Backend, p: Candidates, s: Schedule, **more: float) -> LangevinResult:
    return backend.langevin(p.x, p.v, backend.points(p.points), *p.lists, s, **{"seed": 5, **more})  # type: ignore[arg-type]


def same_bits(a: LangevinResult, b: LangevinResult) -> bool:
    return torch.equal(a.x, b.x) and torch.equal(a.v, b.v)


@pytest.mark.parametrize(
    "shape", [(0, 3, 4), (1, 1, 2), (2, 7, 3), (5, 8, 63), (3, 65, 64), (4, 64, 65), (7, 9, 640)], ids=str
)
def test_trajectories_match_the_oracle(backend: Backend, oracle: Reference, shape: tuple[int, ...]) -> None:
    p = candidates(*shape)
    s = schedule(4, 0, 5)
    more = {"seed": 2**63 + 11, "first_step": 3, "first_chain": 9, "temperature": 0.7}
    got, want = run(backend, p, s, **more), run(oracle, p, s, **more)
    # Nine steps amplify roundings little; 1e-13 was measured.
    assert nmse(got.x, want.x) <= 1e-9
    assert nmse(got.v, want.v) <= 1e-9
    for name in ("energy", "kinetic_temperature", "acceptance"):
        assert nmse(getattr(got.diagnostics, name), getattr(want.diagnostics, name)) <= 1e-9, name
    # A difference of energies of size (d - 1) T / 2 and kappa, each with a relative error of 1e-6.
    error = (got.diagnostics.energy_error.double() - want.diagnostics.energy_error).abs()
    assert not error.numel() or float(error.max()) <= 2e-6 * (shape[2] + 40)


@pytest.mark.parametrize("cut", [1, 7, 60, 100])
def test_two_calls_match_one_bit_for_bit(backend: Backend, cut: int) -> None:
    """This holds for cuts before and after a change of level, which is after 60 of 200 steps."""
    p = candidates(3, 10, 33)
    whole = run(backend, p, schedule(60, 140))
    levels = schedule(60, 140)
    first = replace(levels, steps=(min(cut, 60), max(0, cut - 60)))
    second = replace(levels, steps=(60 - first.steps[0], 140 - first.steps[1]))
    half = run(backend, p, first)
    rest = run(backend, replace(p, x=half.x, v=half.v), second, first_step=cut)
    assert same_bits(whole, rest)


def test_chains_dont_depend_on_their_batch(backend: Backend) -> None:
    if backend.name == "reference":
        pytest.skip("torch picks its product by shape, so the last bits of the reference may differ")
    p, s = candidates(11, 20, 70), schedule(6, 5)
    whole = run(backend, p, s)
    parts = [run(backend, p.rows(slice(a, b)), s, first_chain=a) for a, b in ((0, 1), (1, 6), (6, 11))]
    assert torch.equal(whole.x, torch.cat([part.x for part in parts]))
    assert torch.equal(whole.v, torch.cat([part.v for part in parts]))


def test_the_seed_decides_the_path(backend: Backend) -> None:
    p, s = candidates(4, 8, 24), schedule(5)
    assert same_bits(run(backend, p, s), run(backend, p, s))
    for change in ({"seed": 6}, {"seed": 5 + 2**32}, {"first_step": 1}, {"first_chain": 1}):
        assert not torch.allclose(run(backend, p, s).x, run(backend, p, s, **change).x, atol=1e-4), change


def test_each_chain_may_have_its_own_levels(backend: Backend) -> None:
    """A schedule (B, L) gives each chain what a schedule (L,) with its row gives."""
    p, shared = candidates(5, 8, 24), schedule(3, 4)
    names = ("kappa_scale", "logw_shift", "step_size", "gamma")
    factor = torch.linspace(0.5, 1.5, 5)[:, None]
    own = replace(shared, **{name: (factor * getattr(shared, name)).contiguous() for name in names})
    whole = run(backend, p, own)
    for row in range(5):
        level = replace(shared, **{name: getattr(own, name)[row].contiguous() for name in names})
        alone = run(backend, p.rows(slice(row, row + 1)), level, first_chain=row)
        torch.testing.assert_close(whole.x[row], alone.x[0], rtol=0, atol=1e-6)


def test_without_steps_nothing_moves(backend: Backend, oracle: Reference) -> None:
    p = candidates(3, 8, 24)
    got = run(backend, p, schedule(0, 0))
    assert torch.equal(got.x, p.x)
    assert torch.equal(got.v, p.v)
    # The energy is still that of the last level.
    assert nmse(got.diagnostics.energy, run(oracle, p, schedule(0, 0)).diagnostics.energy) <= 1e-9


def test_the_state_stays_on_the_sphere(backend: Backend) -> None:
    p = candidates(4, 16, 65)
    got = run(backend, p, schedule(100))
    assert float((got.x.norm(dim=1) - 1).abs().max()) < 3e-7  # one normalisation in float32
    assert float((got.x * got.v).sum(1).abs().max()) < 1e-5
    # The drift of single steps, before projection
    assert float(got.diagnostics.tangency.max()) < 1e-5


def test_without_friction_energy_is_conserved(backend: Backend) -> None:
    """gamma = 0 and no force: a great circle, traversed at constant speed."""
    g = torch.Generator().manual_seed(1)
    p = candidates(3, 4, 20, kappa=0.0)
    x, v = p.x, 2 * backend.proju(p.x, unit(3, 20, generator=g))
    s = Schedule(torch.ones(1), torch.zeros(1), torch.tensor([0.05]), torch.zeros(1), (40,))
    got = run(backend, replace(p, x=x, v=v), s)
    torch.testing.assert_close(got.x, backend.expmap(x, 2.0 * v), rtol=0, atol=2e-5)  # 40 steps of float32
    torch.testing.assert_close(got.v.norm(dim=1), v.norm(dim=1), rtol=1e-5, atol=0)


def test_the_kinetic_temperature_is_that_of_the_noise(backend: Backend) -> None:
    """Equipartition right after O: |v|^2 = (d - 1) T on average."""
    p = candidates(16, 4, 33, kappa=1.0)
    s = Schedule(torch.ones(1), torch.zeros(1), torch.tensor([0.02]), torch.tensor([50.0]), (100,))
    got = run(backend, p, s, temperature=0.5)
    # e^{-2 gamma h} = .14: about 1600 * .75 independent values of chi^2_32 / 32, standard error
    # .007 T; 5 sigma.
    assert abs(float(got.diagnostics.kinetic_temperature.mean()) - 0.5) < 0.02
