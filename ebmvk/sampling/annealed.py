"""`--sampler langevin`: annealed Langevin chains (model section 7).

Underdamped Langevin dynamics on the sphere start from uniform states and follow the latent law as
its concentration rises (`schedule`). The usual integrator is g-BAOAB (Leimkuhler and Matthews
2016), which isn't Metropolised: a bias of the order of the squared step size stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from ebmvk.config.integrators import LEAPFROGS, METROPOLIS
from ebmvk.engine.api import LangevinDiagnostics, Schedule, Scheme
from ebmvk.engine.chained import keeper_of
from ebmvk.sampling.interface import Drawn, Options, State, TokenPoints, by_decoding, decoding_seed
from ebmvk.sampling.latent import LatentLaw, check_finite
from ebmvk.sampling.on_device import DeviceLaw
from ebmvk.sampling.schedule import annealed_schedule

USUAL: Scheme = "gbaoab"  # the integrator, unless a run's settings name another


@dataclass(frozen=True)
class LatentSample:
    """x: (B, d) unit rows at kappa (B,), with the schedule and diagnostics of the run."""

    x: Tensor
    kappa: Tensor
    schedule: Schedule
    diagnostics: LangevinDiagnostics


def annealed_langevin(
    law: LatentLaw | DeviceLaw,
    *,
    seed: int,
    levels: int = 10,
    steps: int = 200,
    kappa: float | None = None,
    temperature: float = 1.0,
    step_size: float | None = None,
    gamma: float | None = None,
    first_chain: int = 0,
    scheme: Scheme = USUAL,
) -> LatentSample:
    """Chains from uniform x and v ~ N(0, T P_x). Other options are those of `annealed_schedule`.

    Args:
        scheme: the integrator. If it is a Metropolis one, `LEAPFROGS` of the `steps` make a
            trajectory, so there are steps // LEAPFROGS trajectories, at least one per level.

    Raises:
        ArgumentError: as `annealed_schedule`. NonFinite: a chain became infinite or NaN.
    """
    schedule = annealed_schedule(
        law.points.d,
        law.entropy,
        levels=levels,
        steps=steps // LEAPFROGS if METROPOLIS.get(scheme) else steps,
        kappa_max=kappa,
        temperature=temperature,
        step_size=step_size,
        gamma=gamma,
    )
    x, v = law.start(seed=seed, temperature=temperature, first_chain=first_chain)
    result = law.backend.langevin(
        *cast("Any", (x, v, law.points, law.ids, law.logp, law.ones, law.log_rest, schedule)),
        seed=seed,
        first_chain=first_chain,
        temperature=temperature,
        scheme=scheme,
        leapfrogs=LEAPFROGS,
    )
    if isinstance(result.x, Tensor):  # of states on a device, `decode` checks it
        check_finite(result.x, temperature)
    return LatentSample(result.x, schedule.kappa_scale[:, -1].contiguous(), schedule, result.diagnostics)


def from_settings(options: Options) -> dict[str, Any]:
    """The keyword arguments of `annealed_langevin` that a run's settings give."""
    own = options.settings
    levels = {"levels": own.langevin_levels, "steps": own.langevin_steps, "kappa": own.kappa}
    return levels | {"scheme": options.scheme(USUAL)} | options.dynamics | options.where


def _state(law: LatentLaw, _: Tensor, options: Options) -> State:
    found = annealed_langevin(law, **from_settings(options))
    return State(found.x, found.kappa, (found.diagnostics,))


_by_decoding = by_decoding(_state)


def tokens(space: TokenPoints, query: Tensor | None, log_p: Tensor, options: Options) -> Drawn:
    """A `TokenFunction`. If a device keeps the points, the chains and their laws stay on it."""
    backend = keeper_of(space.points)
    if backend is None:
        return _by_decoding(space, query, log_p, options)
    law = DeviceLaw.of(backend, space, query, log_p, options.settings.knn_k)
    state = annealed_langevin(law, **from_settings(options))
    found = law.decode(state.x, state.kappa, seed=decoding_seed(options), first_chain=options.first_chain)
    return Drawn(found, (state.diagnostics,))
