"""Laws of every row of integrators.toml, on every backend; and the rows that are refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from op_problems import candidates, unit
from torch import Tensor

from ebmvk.engine import Backend, LangevinResult, Schedule
from ebmvk.engine.integrators import INTEGRATORS, read
from ebmvk.engine.reference import Reference

ALL = list(INTEGRATORS)
METROPOLIS = [name for name, row in INTEGRATORS.items() if row.metropolis]
UNADJUSTED = [name for name, row in INTEGRATORS.items() if not row.metropolis]


def smooth(chains: int, d: int = 5) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
    """x, v, points and lists of a smooth landscape of three modes, in which errors grow slowly."""
    p = candidates(chains, 3, d, n=3)
    ids = torch.arange(3).expand(chains, 3).contiguous()
    kappa = torch.tensor([2.0, 3.0, 4.0]).expand(chains, 3).contiguous()
    return p.x, p.v, p.points, (ids, torch.zeros(chains, 3), kappa, torch.zeros(chains))


def advance(
    backend: Backend, name: str, problem: tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]], h: float, count: int
) -> LangevinResult:
    """`count` steps without friction; with a Metropolis integrator one trajectory of `count`
    leapfrogs, at a temperature so high that it is accepted.
    """
    x, v, points, lists = problem
    steps, leapfrogs, hot = (1, count, 1e6) if INTEGRATORS[name].metropolis else (count, 1, 1.0)
    s = Schedule(torch.ones(1), torch.zeros(1), torch.tensor([h]), torch.zeros(1), (steps,))
    more = {"seed": 3, "scheme": name, "leapfrogs": leapfrogs, "temperature": hot}
    got = backend.langevin(x, v, backend.points(points), *lists, s, **more)  # type: ignore[arg-type]
    assert bool((got.diagnostics.acceptance == 1).all())
    return got


TIME = 0.8


@pytest.fixture(scope="module")
def exact(oracle: Reference) -> Tensor:
    """Where the chains of `smooth(20)` are after TIME."""
    return advance(oracle, "gbaoab", smooth(20), TIME / 4096, 4096).x


@pytest.mark.parametrize("name", ALL)
def test_trajectories_converge_with_at_least_the_second_order(backend: Backend, exact: Tensor, name: str) -> None:
    """Halving h divides the error at a fixed time by four or more."""
    problem = smooth(20)
    errors = []
    for count in (4, 8):
        got = advance(backend, name, problem, TIME / count, count).x
        errors.append(float((got.double() - exact).square().mean().sqrt()))
    # The third order of the error is still visible at these steps. Roundings are below 1e-6.
    assert errors[1] > 2e-5, "too small to measure in float32"
    assert math.log2(errors[0] / errors[1]) > 1.85


@pytest.mark.parametrize("name", ALL)
def test_without_friction_a_reversed_chain_returns(backend: Backend, name: str) -> None:
    x, v, points, lists = problem = smooth(20)
    there = advance(backend, name, problem, 0.1, 12)
    assert float((there.x - x).norm(dim=1).min()) > 0.1
    back = advance(backend, name, (there.x, (-there.v).contiguous(), points, lists), 0.1, 12)
    # Roundings of float32, amplified little by a smooth landscape.
    torch.testing.assert_close(back.x, x.to(back.x), rtol=0, atol=2e-5)
    torch.testing.assert_close(back.v, -v.to(back.v), rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", ALL)
def test_friction_acts_for_exactly_the_time_of_the_steps(backend: Backend, name: str) -> None:
    """Without force and noise, v shrinks by e^(-gamma t)."""
    p, steps, leapfrogs, h, gamma = candidates(5, 2, 9, kappa=0.0), 6, 3, 0.05, 1.5
    s = Schedule(torch.ones(1), torch.zeros(1), torch.tensor([h]), torch.tensor([gamma]), (steps,))
    more = {"seed": 3, "scheme": name, "leapfrogs": leapfrogs, "temperature": 0.0}
    got = backend.langevin(p.x, p.v, backend.points(p.points), *p.lists, s, **more)  # type: ignore[arg-type]
    time = h * steps * (leapfrogs if INTEGRATORS[name].metropolis else 1)
    # A rejected trajectory changes only the direction.
    want = p.v.norm(dim=1) * math.exp(-gamma * time)
    torch.testing.assert_close(got.v.norm(dim=1), want.to(got.v), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_the_noise_has_the_temperature(backend: Backend, name: str) -> None:
    """Equipartition: |v|^2 = (d - 1) T on average, after the first O and at the end."""
    chains, d, temperature = 200, 33, 0.5
    p = candidates(chains, 2, d, kappa=0.0)
    s = Schedule(torch.ones(1), torch.zeros(1), torch.tensor([0.02]), torch.tensor([50.0]), (20,))
    more = {"seed": 3, "scheme": name, "leapfrogs": 2, "temperature": temperature}
    start = math.sqrt(temperature) * p.v
    got = backend.langevin(p.x, start.contiguous(), backend.points(p.points), *p.lists, s, **more)  # type: ignore[arg-type]
    # 200 independent chains of chi^2_32 / 32: the standard error is .018 T, and 5 are allowed.
    for measured in (got.diagnostics.kinetic_temperature, got.v.square().sum(1) / (d - 1)):
        assert abs(float(measured.mean()) - temperature) < 0.09 * temperature


def von_mises_fisher(backend: Backend, name: str, h: float, steps: int, chains: int = 1000) -> tuple[float, Tensor]:
    """Acceptance, and mu.x of chains that sample vMF with d = 3 and kappa = 8."""
    g = torch.Generator().manual_seed(2)
    x, mu = unit(chains, 3, generator=g), unit(1, 3, generator=g)
    v = torch.randn(chains, 3, generator=g)
    v = (v - (v * x).sum(1, keepdim=True) * x).contiguous()
    column = torch.zeros(chains, 1)
    s = Schedule(torch.ones(1), torch.zeros(1), torch.tensor([h]), torch.tensor([1.5]), (steps,))
    more = {"seed": 5, "scheme": name, "leapfrogs": 2}
    lists = (column.long(), column, column + 8, torch.full((chains,), -torch.inf))
    got = backend.langevin(x, v, backend.points(mu), *lists, s, **more)  # type: ignore[arg-type]
    return float(got.diagnostics.acceptance.mean()), (got.x @ mu.T.to(got.x))[:, 0].double()


KAPPA_8 = 1 / math.tanh(8) - 1 / 8  # the mean cosine of vMF with d = 3
SPREAD_8 = math.sqrt(1 - KAPPA_8**2 - 2 * KAPPA_8 / 8)  # its standard deviation


@pytest.mark.parametrize("name", UNADJUSTED)
def test_small_steps_keep_the_mean_energy(backend: Backend, name: str) -> None:
    _, cosine = von_mises_fisher(backend, name, 0.1, 100)
    # The energy is -8 mu.x. The bias of these steps is below .0005.
    assert abs(float(cosine.mean()) - KAPPA_8) < 5 * SPREAD_8 / math.sqrt(len(cosine)) + 0.0005


@pytest.mark.parametrize("name", METROPOLIS)
def test_metropolis_keeps_the_law_at_steps_that_it_often_rejects(backend: Backend, name: str) -> None:
    steps = 0.45 * INTEGRATORS[name].evaluations
    acceptance, cosine = von_mises_fisher(backend, name, 1.2 * steps, 100)
    assert 0.3 < acceptance < 0.95
    assert abs(float(cosine.mean()) - KAPPA_8) < 5 * SPREAD_8 / math.sqrt(len(cosine))
    # The variance of a squared deviation is at most 9 variance^2 here.
    variance = float((cosine - KAPPA_8).square().mean())
    assert abs(variance - SPREAD_8**2) < 5 * 3 * SPREAD_8**2 / math.sqrt(len(cosine))


GOOD = {"moves": ["O 1/2", "B 1/2", "A 1", "B 1/2", "O 1/2"], "source": "Someone 2001"}


def table(folder: Path, name: str = "mine", **changes: object) -> Path:
    path = folder / "integrators.toml"
    rows = {**GOOD, **changes}
    path.write_text(
        f"[{name}]\n" + "".join(f"{key} = {value!r}\n".replace("True", "true") for key, value in rows.items())
    )
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moves": ["B 1/4", "A 1", "O 1", "B 3/4"]}, "not a palindrome"),
        ({"moves": ["B 1/2", "A 1/3", "O 1", "A 1/3", "B 1/2"]}, "shares of A sum to 2/3"),
        ({"moves": ["B 1/2", "A 1", "B 1/2"]}, "each of the letters"),
        ({"moves": ["B 1/2", "C 1", "B 1/2"]}, "each of the letters"),
        ({"moves": ["O 1/3", "B 1/2", "A 1/2", "O 1/3", "A 1/2", "B 1/2", "O 1/3"]}, "3 O; expected at most 2"),
        ({"moves": ["O 1/2", "B 1/2", "A 1/2", "A 1/2", "B 1/2", "O 1/2"]}, "repeats a letter"),
        ({"moves": ["B half", "A 1", "B 1/2"]}, "'B half' is not a letter and a number"),
        ({"moves": ["B 1/2", "A 1/2", "O 1", "A 1/2", "B 1/2"], "metropolis": True}, "begins and ends with O"),
        ({"source": ""}, "has no source"),
        ({"step": 1}, "unknown keys"),
        ({"name": "Mine"}, "lower-case identifier"),
    ],
    ids=str,
)
def test_a_row_that_isnt_a_reversible_splitting_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    assert set(read(table(tmp_path))) == {"mine"}
    with pytest.raises(ValueError, match=message) as raised:
        read(table(tmp_path, **changes))  # type: ignore[arg-type]
    assert "integrators.toml" in str(raised.value)


def test_the_force_is_evaluated_once_wherever_a_kick_needs_it(tmp_path: Path) -> None:
    def kinds(*moves: str) -> list[str]:
        (row,) = read(table(tmp_path, moves=list(moves))).values()
        return [part.kind for part in row.parts]

    assert kinds("B 1/2", "A 1/2", "O 1", "A 1/2", "B 1/2") == ["kick", "drift", "noise", "land"]
    assert kinds("A 1/2", "B 1/2", "O 1", "B 1/2", "A 1/2") == ["land", "noise", "kick", "land"]
    assert kinds("B 1/2", "O 1/2", "A 1", "O 1/2", "B 1/2") == ["kick", "noise", "land", "noise", "kick"]
    two = ("B 1/4", "A 1/2", "B 1/2", "A 1/2", "B 1/4")
    assert kinds("O 1/2", *two, "O 1/2") == ["noise", "kick", "land", "land", "noise"]
