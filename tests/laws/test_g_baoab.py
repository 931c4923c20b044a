"""Laws of the g-BAOAB sampler (model section 7) on every backend, and mutants of it that each law must catch."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from laws_support import ALPHA, Run, Sampler, Task, Z, backend_sampler, start, torch_sampler, uniformity_p, z_score
from scipy import integrate, stats

from ebmvk.engine.api import Backend
from ebmvk.sphere import vmf
from ebmvk.sphere.geometry import dist, proju, projx

D, KAPPA = 8, 8.0
CHAINS = {"reference": 4000, "cpu": 4000, "vulkan": 1000}  # the Vulkan device of a test machine is a CPU in disguise
GAMMA = math.sqrt(KAPPA)
Law = Callable[[Sampler, int], bool]


def _step(arc: float, d: int = D) -> float:
    """Step size for an arc in radians per step."""
    return arc / math.sqrt(d - 1)


def _task(n: int, kappa: float, arc: float, steps: int, gamma: float = GAMMA, seed: int = 1) -> Task:
    x, v, mu = start(n, D, kappa, seed)
    return Task(x, v, mu, kappa, _step(arc), gamma, steps, seed)


def tangency(sampler: Sampler, n: int) -> bool:
    """|x| = 1 and x.v = 0 to float32 rounding, before and after the step restores them."""
    run = sampler(_task(n, KAPPA, 0.15, 100))
    residual = torch.maximum((run.x.norm(dim=-1) - 1).abs(), (run.x * run.v).sum(-1).abs() / run.v.norm(dim=-1))
    return float(run.tangency.max()) < 2e-6 and float(residual.max()) < 2e-6


def equipartition(sampler: Sampler, n: int) -> bool:
    """E|v|^2 = (d-1) T right after O. The scheme's own bias at .15 rad is measured below 0.05 %."""
    kinetic = sampler(_task(n, KAPPA, 0.15, 100)).kinetic_temperature
    error = Z * float(kinetic.std()) / math.sqrt(n)
    return abs(float(kinetic.mean()) - 1) < 0.002 + error


def free_motion(sampler: Sampler, n: int) -> bool:
    """E = 0, gamma = 0: x is carried along a great circle, so speed and x ^ v are conserved: no statistics needed."""
    task = _task(n, 0.0, 0.15, 40, gamma=0.0)
    run = sampler(task)

    def plane(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return x[:, :, None] * v[:, None, :] - x[:, None, :] * v[:, :, None]

    # 40 steps of a few float32 roundings of v, whose norm is about 2.6.
    return float((plane(run.x, run.v) - plane(task.x, task.v)).abs().max()) < 5e-5


def uniformity(sampler: Sampler, n: int) -> bool:
    """E = 0: n d |mean x|^2 ~ chi^2_d."""
    return uniformity_p(sampler(_task(n, 0.0, 0.3, 100)).x) > ALPHA


def cosine_law(sampler: Sampler, n: int) -> bool:
    """t = mu.x of vMF: mean A_d, variance 1 - A^2 - (d-1)A/kappa, KS. Bias in t: .0053 at .5 rad, .0005 here."""
    task = _task(n, KAPPA, 0.15, 100)
    t = (sampler(task).x @ task.mu).double()
    level = torch.tensor(KAPPA, dtype=torch.float64)
    mean, variance = vmf.mean_cosine(level, D).item(), vmf.cosine_variance(level, D).item()
    grid = np.linspace(-1, 1, 20_001)
    density = (1 - grid**2) ** ((D - 3) / 2) * np.exp(KAPPA * grid)
    cdf = integrate.cumulative_trapezoid(density, grid, initial=0)
    bias = 0.001
    return (
        abs(float(t.mean()) - mean) < bias + Z * math.sqrt(variance / n)
        and abs(z_score((t - mean).square(), variance)) < Z + 0.5
        and bool(stats.kstest(t.numpy(), lambda s: np.interp(s, grid, cdf / cdf[-1])).pvalue > ALPHA)
    )


LAWS: list[Law] = [tangency, equipartition, free_motion, uniformity, cosine_law]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(law: Law, backend: Backend) -> None:
    assert law(backend_sampler(backend), CHAINS[backend.name])


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law_holds_for_the_integrator_of_these_tests(law: Law) -> None:
    assert law(torch_sampler(), 4000)


@pytest.mark.parametrize(
    ("mutant", "law"),
    [
        ("no projection", tangency),
        ("no projection", equipartition),
        ("O variance", equipartition),
        ("O variance", cosine_law),
        ("no transport", free_motion),
        ("no transport", equipartition),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_mutant_is_caught(mutant: str, law: Law) -> None:
    assert not law(torch_sampler(mutant), 4000)


def test_a_sampler_that_does_not_move_is_caught_by_convergence() -> None:
    """The laws above start in equilibrium, so standing still would pass them; this is the one that it fails."""
    assert not _converges(lambda task: Run(task.x, task.v, torch.ones(500), torch.zeros(500)), 500)


def test_chains_converge_from_the_antipode(backend: Backend) -> None:
    assert _converges(backend_sampler(backend), CHAINS[backend.name])


def _converges(sampler: Sampler, n: int) -> bool:
    x, v, mu = start(n, D, 0.0, 3)
    x = projx(-mu + 0.01 * x)
    task = Task(x, proju(x, v), mu, KAPPA, _step(0.3), GAMMA, 150, 3)
    t = (sampler(task).x @ mu).double()
    level = torch.tensor(KAPPA, dtype=torch.float64)
    spread = math.sqrt(vmf.cosine_variance(level, D).item() / n)
    # .3 rad per step: bias of 0.002.
    return abs(float(t.mean()) - vmf.mean_cosine(level, D).item()) < 0.004 + Z * spread


def test_without_friction_the_way_back_is_the_way_there(backend: Backend) -> None:
    task = _task(500, KAPPA, 0.15, 30, gamma=0.0)
    there = backend_sampler(backend)(task)
    back = backend_sampler(backend)(Task(there.x, -there.v, task.mu, KAPPA, task.step_size, 0.0, 30))
    # 60 steps of float32; nearby trajectories on this landscape drift apart by less than tenfold in that time.
    assert dist(back.x, task.x).max() < 2e-4
    assert (back.v + task.v).abs().max() < 1e-3


@pytest.mark.slow
def test_bias_is_of_second_order(cpu: Backend) -> None:
    """Mean cosine at arcs of 1 and .5 rad: bias -.022 and -.0053 (standard error .0006), ratio 4 in the limit."""
    d, kappa, n = 8, 8.0, 100_000
    x, v, mu = start(n, d, kappa, 11)
    mean = vmf.mean_cosine(torch.tensor(kappa, dtype=torch.float64), d).item()
    bias = []
    for arc, steps in ((1.0, 40), (0.5, 80)):
        run = backend_sampler(cpu)(Task(x, v, mu, kappa, _step(arc, d), GAMMA, steps))
        bias.append(float((run.x @ mu).double().mean()) - mean)
    assert 2.5 < bias[0] / bias[1] < 6
