"""g-BAOAB as one would write it in torch, and TorchEBM's Langevin sampler: the peers of `Backend.langevin`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.measure import GAMMA, KAPPA, STEP_SIZE, ChainProblem

State = tuple[Tensor, Tensor, Tensor]


def score(x: Tensor, mu: Tensor, logw: Tensor, kappa: Tensor, log_background: Tensor) -> Tensor:
    """In closed form, which is kinder to torch than its autograd."""
    logits = torch.cat((logw + kappa * torch.einsum("bkd,bd->bk", mu, x), log_background[:, None]), dim=1)
    pull = torch.einsum("bk,bkd->bd", logits.softmax(1)[:, :-1] * kappa, mu)
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


def runner(p: ChainProblem, points: Tensor, steps: int, *, regather: bool, device: str = "cpu") -> Callable[[], object]:
    """Candidates gathered at each step, or once per run."""
    return _runner(step, p, points, steps, regather=regather, device=device)


def compiled_runner(p: ChainProblem, points: Tensor, steps: int, device: str = "cpu") -> Callable[[], object]:
    """Gathered once, the step through torch.compile. Raises what the compiler raises."""
    run = _runner(torch.compile(step, dynamic=False), p, points, steps, regather=False, device=device)
    run()
    return run


def _runner(
    advance: Callable[..., State], p: ChainProblem, points: Tensor, steps: int, *, regather: bool, device: str
) -> Callable[[], object]:
    points, ids = points.to(device), p.ids.to(device)
    lists = tuple(t.to(device) for t in (p.logw, p.kappa, p.log_background))
    x, v = p.x.to(device), p.v.to(device)

    @torch.no_grad()
    def run() -> object:
        mu = points[ids]
        state = (x, v, score(x, mu, *lists))
        for _ in range(steps):
            state = advance(state, points[ids] if regather else mu, *lists)
        return state

    return run


def torchebm_runner(p: ChainProblem, points: Tensor, steps: int) -> Callable[[], object]:
    """TorchEBM's overdamped sampler in flat space, on an easier problem: all chains share one mixture of K components.

    Raises ImportError where torchebm (extra `bench`) is not installed.
    """
    from torchebm.core import BaseModel
    from torchebm.samplers import LangevinDynamics

    mu = points[p.ids[0]]

    class Mixture(BaseModel):  # type: ignore[misc]
        def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
            return -torch.logsumexp(KAPPA * x @ mu.T, dim=1) + KAPPA / 2 * (x * x).sum(1)

    sampler = LangevinDynamics(Mixture(), step_size=STEP_SIZE**2)
    return lambda: sampler.sample(x=p.x.clone(), n_steps=steps)
