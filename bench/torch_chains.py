"""g-BAOAB as one would write it in torch, and TorchEBM's Langevin sampler: the peers of `Backend.langevin`.

All of them work on the candidates, weights and concentrations of the same `ChainProblem`. A runner's first score and,
where candidates are gathered once, the gathering are not timed: a run is `steps` steps and nothing else, which is kind
to the peers, as ours does both in every call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.measure import GAMMA, KAPPA, STEP_SIZE, ChainProblem

State = tuple[Tensor, Tensor, Tensor]


def score(x: Tensor, mu: Tensor, logw: Tensor, kappa: Tensor, log_background: Tensor) -> Tensor:
    """In closed form, which is kinder to torch than its autograd; as row times matrix, its fastest form on a CPU."""
    dots = torch.bmm(x[:, None], mu.transpose(1, 2))[:, 0]
    rho = torch.cat((logw + kappa * dots, log_background[:, None]), dim=1).softmax(1)[:, :-1]
    pull = torch.bmm((rho * kappa)[:, None], mu)[:, 0]
    return pull - (pull * x).sum(1, keepdim=True) * x


def _move(x: Tensor, v: Tensor, t: float) -> tuple[Tensor, Tensor]:
    speed = v.norm(dim=1, keepdim=True)
    cos, sin = torch.cos(speed * t), torch.sin(speed * t)
    return cos * x + sin / speed * v, cos * v - speed * sin * x


def step(state: State, mu: Tensor, logw: Tensor, kappa: Tensor, log_background: Tensor) -> State:
    """One step; the state is x, v and the score at x."""
    x, v, force = state
    x, v = _move(x, v + STEP_SIZE / 2 * force, STEP_SIZE / 2)
    xi = torch.randn_like(x)
    decay = math.exp(-GAMMA * STEP_SIZE)
    v = decay * v + math.sqrt(1 - decay * decay) * (xi - (xi * x).sum(1, keepdim=True) * x)
    x, v = _move(x, v, STEP_SIZE / 2)
    x = x / x.norm(dim=1, keepdim=True)
    force = score(x, mu, logw, kappa, log_background)
    v = v + STEP_SIZE / 2 * force
    return x, v - (v * x).sum(1, keepdim=True) * x, force


def runner(p: ChainProblem, points: Tensor, steps: int, *, regather: bool, device: str = "cpu") -> Callable[[], State]:
    """Candidates gathered at each step, or once for all runs; everything stays on `device`."""
    return _runner(step, p, points, steps, regather=regather, device=device)


def compiled_runner(p: ChainProblem, points: Tensor, steps: int, device: str = "cpu") -> Callable[[], State]:
    """Gathered once, the step through torch.compile. Raises what the compiler raises."""
    run = _runner(torch.compile(step, dynamic=False), p, points, steps, regather=False, device=device)
    run()
    return run


def _runner(
    advance: Callable[..., State], p: ChainProblem, points: Tensor, steps: int, *, regather: bool, device: str
) -> Callable[[], State]:
    points, ids = points.to(device), p.ids.to(device)
    lists = tuple(t.to(device) for t in (p.logw, p.kappa, p.log_background))
    x, v, mu = p.x.to(device), p.v.to(device), points[ids]
    start = (x, v, score(x, mu, *lists))

    @torch.no_grad()
    def run() -> State:
        state = start
        for _ in range(steps):
            state = advance(state, points[ids] if regather else mu, *lists)
        return state

    return run


def mixture_energy(
    p: ChainProblem, points: Tensor, device: str = "cpu", *, einsum: bool = False
) -> Callable[[Tensor], Tensor]:
    """The energies of our chains, E(x) = -log(sum_j w_j exp(kappa_j mu_j.x) + background), x (B, d) to (B,): gathered
    once, kappa_j mu_j once multiplied. einsum: written as the formula reads, which a CPU takes twice as long for."""
    logw, background = p.logw.to(device), p.log_background.to(device)[:, None]
    scaled = points[p.ids].mul_(p.kappa[:, :, None]).to(device)

    def energy(x: Tensor) -> Tensor:
        # Row times matrix is the fastest form on a CPU.
        dots = torch.einsum("bkd,bd->bk", scaled, x) if einsum else (x[:, None] @ scaled.mT)[:, 0]
        return -torch.logsumexp(torch.cat((logw + dots, background), dim=1), dim=1)

    return energy


def torchebm_runner(
    p: ChainProblem, points: Tensor, steps: int, device: str = "cpu", *, einsum: bool = False
) -> Callable[[], Tensor]:
    """TorchEBM's overdamped sampler on the energies of our chains, with gradients by its own autograd.

    Still easier than ours: flat space, no velocity, no geodesics, no diagnostics, one normal number and one update per
    coordinate. Raises ImportError where torchebm (extra `bench`) is not installed.
    """
    return _sampler(mixture_energy(p, points, device, einsum=einsum), p.x.to(device), steps, device)


def torchebm_shared_runner(p: ChainProblem, points: Tensor, steps: int, device: str = "cpu") -> Callable[[], Tensor]:
    """The same sampler on another, much easier problem: one mixture shared by all chains, so that a step's scores are
    one matrix product."""
    mu = points[p.ids[0]].to(device)
    return _sampler(lambda x: -torch.logsumexp(KAPPA * x @ mu.T, dim=1), p.x.to(device), steps, device)


def _sampler(energy: Callable[[Tensor], Tensor], x: Tensor, steps: int, device: str) -> Callable[[], Tensor]:
    from torchebm.core import BaseModel
    from torchebm.samplers import LangevinDynamics

    class Model(BaseModel):
        calls = 0

        def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
            self.calls += 1
            return energy(x)

    model = Model(device=device)
    sampler = LangevinDynamics(model, step_size=STEP_SIZE**2, device=device)

    def run() -> Tensor:
        before = model.calls
        out: Tensor = sampler.sample(x=x.clone(), n_steps=steps)
        if model.calls - before != steps:
            raise AssertionError(f"TorchEBM took {model.calls - before} gradients for {steps} steps")
        return out

    return run
