"""The peers of `Backend.langevin`: g-BAOAB as one would write it in torch, and TorchEBM's sampler.

All of them use the candidates, weights and concentrations of the same `ChainProblem`. A runner's
first score, and the gathering of candidates if it is done once, are not timed: a run is just
`steps` steps. This favours the peers, because ours does both in every call.
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
    """The score in closed form, which is faster than torch's autograd.

    Row times matrix is torch's fastest form on a CPU.
    """
    dots = torch.bmm(x[:, None], mu.transpose(1, 2))[:, 0]
    rho = torch.cat((logw + kappa * dots, log_background[:, None]), dim=1).softmax(1)[:, :-1]
    pull = torch.bmm((rho * kappa)[:, None], mu)[:, 0]
    return pull - (pull * x).sum(1, keepdim=True) * x


def _move(x: Tensor, v: Tensor, t: float) -> tuple[Tensor, Tensor]:
    speed = v.norm(dim=1, keepdim=True)
    cos, sin = torch.cos(speed * t), torch.sin(speed * t)
    return cos * x + sin / speed * v, cos * v - speed * sin * x


def step(state: State, mu: Tensor, logw: Tensor, kappa: Tensor, log_background: Tensor) -> State:
    """One step. The state is x, v and the score at x."""
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
    """A runner that gathers candidates at each step, or once; everything stays on `device`."""
    return _runner(step, p, points, steps, regather=regather, device=device)


def compiled_runner(p: ChainProblem, points: Tensor, steps: int, device: str = "cpu") -> Callable[[], State]:
    """A runner that gathers once and uses torch.compile. Raises the compiler's errors."""
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
    """E(x) = -log(sum_j w_j exp(kappa_j mu_j.x) + background) of our chains: x (B, d) to (B,).

    Candidates are gathered once, and kappa_j mu_j is multiplied once. einsum: written like the
    formula, which takes a CPU twice as long.
    """
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
    """TorchEBM's overdamped sampler on the energies of our chains, with its own autograd.

    The work is still easier than ours: flat space, no velocity, no geodesics, no diagnostics, one
    normal number and one update per coordinate. Raises ImportError if torchebm (extra `bench`)
    isn't installed.
    """
    return _sampler(mixture_energy(p, points, device, einsum=einsum), p.x.to(device), steps, device)


def torchebm_shared_runner(p: ChainProblem, points: Tensor, steps: int, device: str = "cpu") -> Callable[[], Tensor]:
    """TorchEBM's sampler on a much easier problem: one mixture for all chains.

    The scores of a step are then one matrix product.
    """
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
