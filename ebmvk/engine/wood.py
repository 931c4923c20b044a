"""Draws the cosine of a von Mises-Fisher sample by rejection, for all backends.

Wood, "Simulation of the von Mises Fisher distribution" (1994), with the symmetric Beta law of its
envelope drawn directly: Ulrich, "Computer generation of distributions on the m-sphere" (1984).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ebmvk.engine import philox

_MOST_ATTEMPTS = 1000
"""At least 1/2 of the attempts succeed for any d and kappa, so this many failures mean that kappa
isn't finite.
"""


def deficit(kappa: Tensor, d: int, *, seed: int, first_row: int = 0) -> Tensor:
    """1 - mu.x of an exact sample of vMF(mu, kappa) on S^{d-1}, (B,) float64 in [0, 2].

    The difference from 1 is returned because the cosine itself would lose digits for large kappa.
    Attempt a of row r uses words 0 to 2 of counter (a, first_row + r, 0, STREAM_VMF_COSINE), so a
    row doesn't depend on the others.

    Args:
        kappa: (B,) finite, >= 0; 0 gives the uniform law.
        d: dimension, >= 2.
    """
    level = kappa.detach().to(torch.float64)
    b = (d - 1) / (2 * level + torch.sqrt(4 * level * level + (d - 1) ** 2))
    # For large kappa, Wood's x0 = (1 - b) / (1 + b) and the cosines are near 1, and only their
    # differences from 1 keep digits.
    fall0 = 2 * b / (1 + b)  # 1 - x0
    c = (d - 1) * (torch.log(fall0) + torch.log1p(1 - fall0))  # (d - 1) log(1 - x0^2)
    out = torch.zeros_like(level)
    todo = torch.arange(len(level), device=level.device)
    for attempt in range(_MOST_ATTEMPTS):
        if not len(todo):
            break
        step = torch.tensor(attempt, device=level.device)
        u = philox.uniforms(seed, step, todo + first_row, 3, stream=philox.STREAM_VMF_COSINE, dtype=torch.float64)
        z = _symmetric_beta(u[:, 0], u[:, 1], d)
        bt = b[todo]
        fall = 2 * bt * z / (1 - (1 - bt) * z)
        low = fall0[todo]
        # kappa (w - x0) + (d - 1) log((1 - x0 w) / (1 - x0^2)) with w = 1 - fall
        log_ratio = level[todo] * (low - fall) + (d - 1) * torch.log(low + (1 - low) * fall) - c[todo]
        good = log_ratio >= torch.log(u[:, 2])
        out[todo[good]] = fall[good]
        todo = todo[~good]
    assert not len(todo), "kappa is not finite"
    return out


def _symmetric_beta(u: Tensor, v: Tensor, d: int) -> Tensor:
    """Beta((d-1)/2, (d-1)/2): (1 + a coordinate of a uniform point of S^{d-1}) / 2."""
    # A uniform point's first two coordinates have squared radius 1 - u^{2/(d-2)}; on the circle it
    # is 1.
    radius = torch.sqrt(-torch.expm1(2 / (d - 2) * torch.log(u))) if d > 2 else torch.ones_like(u)
    return (1 + radius * torch.cos(2 * math.pi * v)) / 2
