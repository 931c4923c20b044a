"""The parts that the suite runs: chains, a target mixture, and a sampler that moves the chains.

A `Sampler` moves chains as a `Task` describes. `engine_sampler` makes one from a backend.
`mutants.Plain` is another sampler; it can be broken, to show that a test fails when it should.
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
    """E(x) = -log(e^log_background + sum_j e^(logw_j + kappa_j mu_j.x)).

    mu: (K, d) unit rows; logw, kappa: (K,).
    """

    mu: Tensor
    logw: Tensor
    kappa: Tensor
    log_background: float = -math.inf

    @property
    def d(self) -> int:
        return self.mu.shape[1]

    def terms(self, x: Tensor) -> Tensor:
        """The log of each term of the sum, (n, K + 1), the background last; float64 in torch."""
        log_terms = self.logw.double() + self.kappa.double() * (x.double() @ self.mu.double().T)
        return torch.cat((log_terms, log_terms.new_full((len(x), 1), self.log_background)), dim=1)

    def energy(self, x: Tensor) -> Tensor:
        """E(x), (n,) float64. x: (n, d)."""
        return -self.terms(x).logsumexp(1)


@dataclass(frozen=True)
class Task:
    """Chains at (x, v), each (n, d) float32, and the steps to take.

    A step of GHMC has `leapfrogs` leapfrogs.
    """

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
    """Where the chains end, (n, d) each, with the engine's diagnostics, (n,) each."""

    x: Tensor
    v: Tensor
    kinetic_temperature: Tensor
    energy_error: Tensor
    acceptance: Tensor
    tangency: Tensor


Sampler = Callable[[Task], Run]


def engine_sampler(backend: Backend) -> Sampler:
    """A sampler that runs the chains on a backend."""

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
    """A task that goes on from the end of `run`, with fresh noise and the given changes."""
    moved = replace(task, x=run.x, v=run.v, first_step=task.first_step + task.steps)
    return replace(moved, **changes)  # type: ignore[arg-type]


def vmf_target(d: int, kappa: float) -> Target:
    """vMF(mu, kappa) with a fixed mu that isn't a coordinate axis; kappa 0 is the uniform law."""
    mu = projx(torch.arange(1.0, d + 1).cos())[None]
    return Target(mu, torch.zeros(1), torch.full((1,), kappa))


def uniform_start(n: int, d: int, seed: int, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """x uniform on the sphere and v ~ N(0, T P_x): (n, d) float32 each."""
    g = torch.Generator().manual_seed(seed)
    x = projx(torch.randn(n, d, generator=g))
    return x, proju(x, torch.randn(n, d, generator=g)) * math.sqrt(temperature)


def arc_step(arc: float, d: int, temperature: float = 1.0) -> float:
    """The step size h of `arc` radians per step: h sqrt((d-1) T) = arc (model section 7)."""
    return arc / math.sqrt((d - 1) * temperature)
