"""`--sampler gibbs`: block Gibbs, which draws component and state in turn (model section 7).

Each sweep draws v|x from the Bayes decoder's responsibilities, then x|v from vMF(mu_v, kappa)
(Geman and Geman 1984). Both draws are exact, so the latent law is kept exactly at any
concentration.
A sweep moves only if x leaves v uncertain: hence the concentration stays below kappa_c, above which
x tells which v made it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ebmvk.engine import philox
from ebmvk.errors import ArgumentError
from ebmvk.sampling import streams
from ebmvk.sampling.interface import Options, State, by_decoding
from ebmvk.sampling.latent import LatentLaw, draw
from ebmvk.sphere.vmf import kappa_critical

LEVEL = 0.5  # kappa over kappa_c: low enough that sweeps change the token, high enough that x tells about it
SWEEP = 8  # integrator steps that cost about as much as one sweep, in a batch


@dataclass(frozen=True)
class GibbsSample:
    """x: (B, d) unit rows at kappa (B,); moved: (B,) share of sweeps that changed the component."""

    x: Tensor
    kappa: Tensor
    moved: Tensor


def block_gibbs(
    law: LatentLaw,
    embeddings: Tensor,
    *,
    seed: int,
    sweeps: int = 25,
    kappa: Tensor | float | None = None,
    start: Tensor | None = None,
    first_chain: int = 0,
) -> GibbsSample:
    """Run sweeps that draw v|x, then x|v. x is uniform if v is the rest, the component outside the
    candidates.

    Args:
        embeddings: (V, d) unit rows, those of `law.points`.
        sweeps: each costs one evaluation of the energy and one exact vMF sample; for a single chain
            the overhead of the latter dominates.
        kappa: (B,) or a number; by default kappa_c / 2 of each chain.
        start: (B, d) unit rows; uniform by default.

    Raises:
        ArgumentError: sweeps < 1.
    """
    if sweeps < 1:
        raise ArgumentError(f"sweeps = {sweeps}", hint="use at least one")
    default = LEVEL * kappa_critical(law.points.d, law.entropy)
    level = law.concentration(default if kappa is None else kappa).to(law.logp.dtype)
    x = law.uniform_start(seed=seed, first_chain=first_chain) if start is None else start
    last, moved = None, torch.zeros_like(level)
    for sweep in range(sweeps):
        own = philox.fork(seed, sweep)
        now = law.energy_score(x, level)
        shares = torch.cat((now.responsibilities, now.background[:, None]), dim=1).to(law.logp.device)
        choice = draw(shares, law.uniforms(streams.GIBBS, own, first_chain))
        moved += 1 if last is None else choice != last
        last = choice
        x = law.sample_component(choice, level, embeddings, seed=own, first_chain=first_chain)
    return GibbsSample(x, level, moved / sweeps)


def _state(law: LatentLaw, embeddings: Tensor, options: Options) -> State:
    own = options.settings
    sweeps = max(1, own.langevin_steps // SWEEP)
    found = block_gibbs(law, embeddings, sweeps=sweeps, kappa=own.kappa, **options.where)
    return State(found.x, found.kappa, rates=found.moved[:, None])


tokens = by_decoding(_state)
