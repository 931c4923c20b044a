"""What the suite runs: a mixture as target, independent chains, and who moves them.

A `Sampler` moves chains as a `Task` says. `engine_sampler` makes one of a backend; `mutants.Plain` is another, so that
a test can be shown to fail where it should.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ebmvk.engine.api import Backend, Schedule, Scheme
from ebmvk.sphere.geometry import proju, projx


@dataclass(frozen=True)
class Target:
    """E(x) = -log(e^log_background + sum_j e^(logw_j + kappa_j mu_j.x)). mu: (K, d) unit rows; logw, kappa: (K,)."""

    mu: Tensor
    logw: Tensor
    kappa: Tensor
    log_background: float = -math.inf

    @property
    def d(self) -> int:
        return self.mu.shape[1]

    def terms(self, x: Tensor) -> Tensor:
        """Log terms of the sum (n, K + 1), the background last, in float64: an oracle that no backend has a part in."""
        log_terms = self.logw.double() + self.kappa.double() * (x.double() @ self.mu.double().T)
        return torch.cat((log_terms, log_terms.new_full((len(x), 1), self.log_background)), dim=1)

    def energy(self, x: Tensor) -> Tensor:
        """(n,) float64."""
        return -self.terms(x).logsumexp(1)


@dataclass(frozen=True)
class Task:
    """Chains at (x, v), each (n, d) float32, and the steps to take; a step of GHMC is `leapfrogs` leapfrogs."""

    target: Target
    x: Tensor
    v: Tensor
    step_size: float
    gamma: float
    steps: int
    seed: int
    scheme: Scheme = "gbaoab"
    leapfrogs: int = 4
    temperature: float = 1.0
    first_step: int = 0
    first_chain: int = 0


@dataclass(frozen=True)
class Run:
    """Where the chains end, (n, d) each, and the diagnostics of the engine, (n,) each."""

    x: Tensor
    v: Tensor
    kinetic_temperature: Tensor
    energy_error: Tensor
    acceptance: Tensor
    tangency: Tensor


Sampler = Callable[[Task], Run]


def engine_sampler(backend: Backend) -> Sampler:
    """The chains of a backend."""

    def sample(task: Task) -> Run:
        target, n = task.target, len(task.x)
        k = len(target.logw)
        level = Schedule(
            kappa_scale=torch.ones(1),
            logw_shift=torch.zeros(1),
            step_size=torch.tensor([task.step_size]),
            gamma=torch.tensor([task.gamma]),
            steps=(task.steps,),
        )
        ids = torch.arange(k).expand(n, k).contiguous()
        logw, kappa = (row.float().expand(n, k).contiguous() for row in (target.logw, target.kappa))
        found = backend.langevin(
            task.x.float().contiguous(),
            task.v.float().contiguous(),
            backend.points(target.mu.float().contiguous()),
            ids,
            logw,
            kappa,
            torch.full((n,), target.log_background),
            level,
            seed=task.seed,
            first_step=task.first_step,
            first_chain=task.first_chain,
            temperature=task.temperature,
            scheme=task.scheme,
            leapfrogs=task.leapfrogs,
        )
        named = found.diagnostics
        each = (named.kinetic_temperature, named.energy_error, named.acceptance, named.tangency)
        return Run(found.x.cpu(), found.v.cpu(), *(value.cpu() for value in each))

    return sample


def onward(task: Task, run: Run, **changes: float | Target) -> Task:
    """The task that continues where `run` of `task` ended, with fresh noise."""
    moved = replace(task, x=run.x, v=run.v, first_step=task.first_step + task.steps)
    return replace(moved, **changes)  # type: ignore[arg-type]


def vmf_target(d: int, kappa: float) -> Target:
    """vMF(mu, kappa) with a fixed mu that is no coordinate axis; kappa 0 is the uniform law."""
    mu = projx(torch.arange(1.0, d + 1).cos())[None]
    return Target(mu, torch.zeros(1), torch.full((1,), kappa))


def uniform_start(n: int, d: int, seed: int, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """x uniform on the sphere and v ~ N(0, T P_x): (n, d) float32 each."""
    g = torch.Generator().manual_seed(seed)
    x = projx(torch.randn(n, d, generator=g))
    return x, proju(x, torch.randn(n, d, generator=g)) * math.sqrt(temperature)


def arc_step(arc: float, d: int, temperature: float = 1.0) -> float:
    """Step size for so many radians per step: h sqrt((d-1) T) = arc (model section 7)."""
    return arc / math.sqrt((d - 1) * temperature)
