"""Random arguments for operations, and the comparison of results."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ebmvk.engine import Schedule


def nmse(value: Tensor, truth: Tensor) -> float:
    """The squared error over the squared size of the truth. 1e-9: an error of 3e-5 of the size."""
    truth = truth.double()
    error = (value.double().cpu() - truth.cpu()).square().sum()
    return float(error / truth.square().sum().clamp_min(1e-30)) if truth.numel() else 0.0


def unit(*shape: int, generator: torch.Generator) -> Tensor:
    x = torch.randn(*shape, generator=generator)
    return x / x.norm(dim=-1, keepdim=True)


@dataclass(frozen=True)
class Candidates:
    """Arguments for energy_score and langevin."""

    x: Tensor
    v: Tensor
    points: Tensor
    ids: Tensor
    logw: Tensor
    kappa: Tensor
    log_background: Tensor

    @property
    def lists(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.ids, self.logw, self.kappa, self.log_background

    def rows(self, part: slice) -> Candidates:
        names = ("x", "v", "ids", "logw", "kappa", "log_background")
        return replace(self, **{name: getattr(self, name)[part].contiguous() for name in names})


def candidates(b: int, k: int, d: int, n: int = 97, *, kappa: float = 40.0, seed: int = 0) -> Candidates:
    """Includes candidates with weight 0 and rows without background."""
    g = torch.Generator().manual_seed(1000 * seed + b + 7 * k + 13 * d)
    x = unit(b, d, generator=g)
    v = torch.randn(b, d, generator=g)
    logw = torch.randn(b, k, generator=g)
    log_background = torch.randn(b, generator=g)
    if k > 1:
        logw[::2, k // 2] = -torch.inf
    log_background[::3] = -torch.inf
    return Candidates(
        x=x,
        v=v - (v * x).sum(1, keepdim=True) * x,
        points=unit(n, d, generator=g),
        ids=torch.randint(0, n, (b, k), generator=g),
        logw=logw,
        kappa=kappa * torch.rand(b, k, generator=g),
        log_background=log_background,
    )


def schedule(*steps: int, h: float = 0.02, gamma: float = 5.0) -> Schedule:
    """Levels that differ in every setting."""
    level = torch.arange(1.0, len(steps) + 1)
    return Schedule(
        kappa_scale=level / len(steps),
        logw_shift=0.3 * level,
        step_size=h / level.sqrt(),
        gamma=gamma * level,
        steps=steps,
    )
