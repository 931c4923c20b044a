"""Statistics of the law tests, and a g-BAOAB in plain torch with switches that break it.

Levels: each statistical check allows ALPHA of false alarm, ALPHA being 1e-3 shared (Bonferroni) by the CHECKS of this
folder; seeds are fixed, so a check that passes once passes always.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from ebmvk.engine.api import Backend, Schedule
from ebmvk.sphere import geometry, vmf

CHECKS = 100
ALPHA = 1e-3 / CHECKS
Z = float(stats.norm.isf(ALPHA / 2))  # 4.4


@dataclass(frozen=True)
class Run:
    """End of a run of independent chains, with the mean |v|^2/(d-1) right after O, and max of |x.v|/|v|, ||x|-1|."""

    x: Tensor
    v: Tensor
    kinetic_temperature: Tensor
    tangency: Tensor


@dataclass(frozen=True)
class Task:
    """Sample vMF(mu, kappa) (kappa = 0: uniform) from (x, v) at T = 1."""

    x: Tensor
    v: Tensor
    mu: Tensor
    kappa: float
    step_size: float
    gamma: float
    steps: int
    seed: int = 1


Sampler = Callable[[Task], Run]


def start(n: int, d: int, kappa: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Exact samples of the joint law of (x, v), and mu (d,): a step that is right keeps this law."""
    g = torch.Generator().manual_seed(seed)
    mu = geometry.projx(torch.randn(d, generator=g))
    x = vmf.sample_vmf(mu.expand(n, d).contiguous(), kappa, generator=g)
    return x, geometry.proju(x, torch.randn(n, d, generator=g)), mu


def backend_sampler(backend: Backend) -> Sampler:
    def sample(task: Task) -> Run:
        n = len(task.x)
        schedule = Schedule(
            kappa_scale=torch.ones(1),
            logw_shift=torch.zeros(1),
            step_size=torch.tensor([task.step_size]),
            gamma=torch.tensor([task.gamma]),
            steps=(task.steps,),
        )
        result = backend.langevin(
            *(task.x, task.v, backend.points(task.mu[None].contiguous())),
            *(torch.zeros(n, 1, dtype=torch.int64), torch.zeros(n, 1), torch.full((n, 1), task.kappa)),
            *(torch.full((n,), -math.inf), schedule),
            seed=task.seed,
        )
        diagnostics = result.diagnostics
        return Run(result.x, result.v, diagnostics.kinetic_temperature, diagnostics.tangency)

    return sample


def torch_sampler(mutant: str = "") -> Sampler:
    """Model section 7, or a mutant of it: no projection of force and noise, wrong O variance, no transport."""
    tangent = (lambda x, u: u) if mutant == "no projection" else geometry.proju

    def drift(x: Tensor, v: Tensor, t: float) -> tuple[Tensor, Tensor]:
        speed = v.norm(dim=-1, keepdim=True)
        cos, sin = torch.cos(speed * t), torch.sin(speed * t)
        moved = cos * x + sin / speed * v
        return moved, geometry.proju(moved, v) if mutant == "no transport" else cos * v - speed * sin * x

    def sample(task: Task) -> Run:
        g = torch.Generator().manual_seed(task.seed)
        x, v, h = task.x, task.v, task.step_size
        decay = math.exp(-task.gamma * h)
        spread = math.sqrt(1 - decay if mutant == "O variance" else 1 - decay**2)
        kinetic, tangency = torch.zeros(len(x)), torch.zeros(len(x))
        for _ in range(task.steps):
            v = v + h / 2 * tangent(x, task.kappa * task.mu)
            x, v = drift(x, v, h / 2)
            v = decay * v + spread * tangent(x, torch.randn(x.shape, generator=g))
            kinetic = kinetic + v.square().sum(-1) / (x.shape[1] - 1) / task.steps
            x, v = drift(x, v, h / 2)
            radius = x.norm(dim=-1)
            x = x / radius[:, None]
            v = v + h / 2 * tangent(x, task.kappa * task.mu)
            radial = (x * v).sum(-1).abs() / v.norm(dim=-1)
            tangency = torch.maximum(tangency, torch.maximum(radial, (radius - 1).abs()))
            v = tangent(x, v)
        return Run(x, v, kinetic, tangency)

    return sample


def z_score(sample: Tensor, mean: float) -> float:
    """(sample mean - mean) in standard errors. sample: (n,) independent."""
    values = sample.double()
    return float((values.mean() - mean) / values.std() * math.sqrt(len(values)))


def uniformity_p(x: Tensor) -> float:
    """p value of n d |mean x|^2 ~ chi^2_d under the uniform law; two-sided. x: (n, d)."""
    n, d = x.shape
    tail = float(stats.chi2.sf(n * d * float(x.double().mean(0).square().sum()), d))
    return 2 * min(tail, 1 - tail)


def total_variation(counts: Tensor, p: Tensor) -> float:
    return float((counts / counts.sum() - p).abs().sum() / 2)


def noise_of_total_variation(p: Tensor, n: int, *, seed: int = 0, repeats: int = 2000) -> tuple[float, float]:
    """Mean and standard deviation of the total variation of n true draws from p (V,), by simulation."""
    g = torch.Generator().manual_seed(seed)
    counts = torch.poisson((p * n).expand(repeats, -1), generator=g)  # cells independent: exact enough for a mean
    values = (counts / n - p).abs().sum(1) / 2
    return float(values.mean()), float(values.std())
