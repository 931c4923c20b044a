"""Annealing schedules of Langevin chains (model section 7).

The modes of a mixture of entropy H nats in d dimensions separate near kappa_c = sqrt(2 d H). Above
it no local chain moves mass between modes, so mixture weights have to be right before that. Hence
levels rise evenly from kappa_c/5 to 1.4 kappa_c, where most states already belong to one mode while
chains still mix, and stop there: decoding is exact at every kappa, so a last kappa far above
kappa_c would only add error. (A jump from 2 to 5.5 kappa_c in one level throws half of the chains
out of every mode into the background: total variation 0.5.) If `kappa_max` is larger, geometric
levels lead up to it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ebmvk.engine.api import Schedule
from ebmvk.errors import ArgumentError
from ebmvk.sphere.vmf import kappa_critical, log_c_ratio

FIRST = 0.2  # first level over kappa_c
LAST = 1.4  # last level over kappa_c, unless kappa_max is given
ARC = 0.15  # radians that a chain moves per step: h sqrt((d-1) T)
STIFFNESS = 0.3  # the most that h sqrt(kappa) may be


def annealed_schedule(
    d: int,
    entropy: Tensor,
    *,
    levels: int = 10,
    steps: int = 200,
    kappa_max: float | None = None,
    temperature: float = 1.0,
    step_size: float | None = None,
    gamma: float | None = None,
) -> Schedule:
    """Levels of concentration of each chain, for candidates of kappa_j = 1 and weights log p_j.

    Args:
        entropy: (B,) nats, of the mixture that each chain samples.
        levels, steps: number of levels, and of integrator steps over all of them; if steps don't
            divide evenly, later levels take one more.
        kappa_max: the last level's concentration, for all chains; by default 1.4 kappa_c of each.
        temperature: that of the velocities; hotter chains take shorter steps.
        step_size, gamma: step and friction at every level, taken as they are, instead of the rules
            h sqrt((d-1)T) <= 0.15, h sqrt(kappa) <= 0.3 and gamma = sqrt(kappa).

    Returns:
        A schedule of (B, levels) float32 tensors; a chain's last kappa is `kappa_scale[:, -1]`.

    Raises:
        ArgumentError: levels < 1, steps < levels, or a value isn't positive and finite. gamma may
            be 0.
    """
    _check(levels, steps, kappa_max=kappa_max, temperature=temperature, step_size=step_size)
    if gamma is not None and not 0 <= gamma < math.inf:
        raise ArgumentError(f"gamma = {gamma} is outside [0, inf)", hint="pass a finite gamma >= 0")
    kappa = _levels(kappa_critical(d, entropy.detach().to(torch.float64)), levels, kappa_max)
    h = torch.minimum(torch.full_like(kappa, ARC / math.sqrt((d - 1) * temperature)), STIFFNESS / kappa.sqrt())
    if step_size is not None:
        h = torch.full_like(kappa, step_size)
    friction = kappa.sqrt() if gamma is None else torch.full_like(kappa, gamma)
    counts = tuple(steps // levels + (level >= levels - steps % levels) for level in range(levels))
    kappa, shift, h, friction = (t.to(torch.float32) for t in (kappa, log_c_ratio(kappa, d), h, friction))
    return Schedule(kappa_scale=kappa, logw_shift=shift, step_size=h, gamma=friction, steps=counts)


def _levels(critical: Tensor, levels: int, kappa_max: float | None) -> Tensor:
    """(B, levels): even up to LAST kappa_c; three tenths of them lead to a higher kappa_max."""
    critical = critical[:, None]
    top = LAST * critical if kappa_max is None else torch.full_like(critical, kappa_max)
    beyond = top > LAST * critical
    even = FIRST * critical + (torch.minimum(top, LAST * critical) - FIRST * critical) * _ramp(levels, critical)
    if levels == 1:
        return top
    high = min(max(1, round(0.3 * levels)), levels - 1)
    low = levels - high
    rise = FIRST * critical + (LAST - FIRST) * critical * _ramp(low, critical)
    # Chains without entropy have kappa_c = 0: their geometric levels start from the top itself.
    base = torch.where(critical > 0, LAST * critical, top)
    climb = base * (top / base.clamp_min(1e-30)) ** (torch.arange(1, high + 1, device=critical.device) / high)
    return torch.where(beyond, torch.cat((rise, climb), dim=1), even)


def _ramp(n: int, like: Tensor) -> Tensor:
    """n even steps from 0 to 1; 1 alone for n = 1."""
    ramp = torch.linspace(0, 1, n, dtype=like.dtype, device=like.device)
    return ramp if n > 1 else torch.ones_like(ramp)


def _check(levels: int, steps: int, **positive: float | None) -> None:
    if levels < 1 or steps < levels:
        raise ArgumentError(
            f"langevin has {levels} levels and {steps} steps", hint="use at least one level and one step per level"
        )
    for name, value in positive.items():
        if value is not None and not 0 < value < math.inf:
            raise ArgumentError(f"{name} = {value} is not positive and finite", hint=f"pass a positive {name}")
