"""`--sampler langevin`: annealed Langevin chains (model section 7).

Underdamped Langevin dynamics on the sphere, discretised by g-BAOAB (Leimkuhler and Matthews 2016),
start from uniform states and follow the latent law as its concentration rises (`schedule`). Chains
are not Metropolised: a bias of the order of the squared step size stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ebmvk.engine import philox
from ebmvk.engine.api import LangevinDiagnostics, Schedule
from ebmvk.sampling.interface import Options, State, by_decoding
from ebmvk.sampling.latent import LatentLaw, check_finite
from ebmvk.sampling.schedule import annealed_schedule
from ebmvk.sphere.geometry import proju


@dataclass(frozen=True)
class LatentSample:
    """x: (B, d) unit rows at kappa (B,), with the schedule and diagnostics of the run."""

    x: Tensor
    kappa: Tensor
    schedule: Schedule
    diagnostics: LangevinDiagnostics


def annealed_langevin(
    law: LatentLaw,
    *,
    seed: int,
    levels: int = 10,
    steps: int = 200,
    kappa: float | None = None,
    temperature: float = 1.0,
    step_size: float | None = None,
    gamma: float | None = None,
    first_chain: int = 0,
) -> LatentSample:
    """Chains from uniform x and v ~ N(0, T P_x). The options are those of `annealed_schedule`.

    Raises:
        ArgumentError: as `annealed_schedule`. NonFinite: a chain left the finite numbers.
    """
    schedule = annealed_schedule(
        law.points.d,
        law.entropy,
        levels=levels,
        steps=steps,
        kappa_max=kappa,
        temperature=temperature,
        step_size=step_size,
        gamma=gamma,
    )
    x = law.uniform_start(seed=seed, first_chain=first_chain)
    v = proju(x, law.normals(philox.STREAM_VELOCITY, seed, first_chain)) * math.sqrt(temperature)
    ones = torch.ones_like(law.logp)
    result = law.backend.langevin(
        *(x, v, law.points, law.ids, law.logp, ones, law.log_rest, schedule),
        seed=seed,
        first_chain=first_chain,
        temperature=temperature,
    )
    check_finite(result.x, temperature)
    return LatentSample(result.x, schedule.kappa_scale[:, -1].contiguous(), schedule, result.diagnostics)


def from_settings(options: Options) -> dict[str, Any]:
    """The keyword arguments of `annealed_langevin` that a run's settings give."""
    own = options.settings
    levels = {"levels": own.langevin_levels, "steps": own.langevin_steps, "kappa": own.kappa}
    return levels | options.dynamics | options.where


def _state(law: LatentLaw, _: Tensor, options: Options) -> State:
    found = annealed_langevin(law, **from_settings(options))
    return State(found.x, found.kappa, (found.diagnostics,))


tokens = by_decoding(_state)
