"""`--sampler tempering`: replica exchange between concentrations (model section 7).

Each chain is a ladder of replicas at rising concentrations. Metropolised Langevin trajectories
(usually GHMC: Horowitz 1991) move every replica, and neighbours exchange their states (Swendsen and
Wang 1986; Geyer 1991). What mixes on the lowest rung arrives on the highest, above kappa_c, where
no single chain moves between modes. The latent law is kept exactly at any step size and any
concentration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ebmvk.config.integrators import LEAPFROGS, METROPOLIS
from ebmvk.engine import philox
from ebmvk.engine.api import LangevinDiagnostics, LangevinResult, Schedule, Scheme
from ebmvk.errors import ArgumentError
from ebmvk.sampling import streams
from ebmvk.sampling.interface import Options, State, by_decoding
from ebmvk.sampling.latent import LatentLaw, check_finite
from ebmvk.sampling.schedule import FIRST, LAST, STIFFNESS
from ebmvk.sphere.vmf import kappa_critical, log_c_ratio

ARC = 0.3  # radians that a leapfrog step moves: h sqrt((d-1) T)
USUAL: Scheme = "ghmc"  # the integrator, unless a run's settings name another
TRAJECTORIES = 2  # of every replica between two exchanges


@dataclass(frozen=True)
class TemperedSample:
    """x: (B, d) unit rows at kappa (B,), the highest rung.

    swaps: (B, R-1), accepted share of the exchanges between rungs r and r + 1. diagnostics: (B R,),
    those of all replicas; the rungs of one chain are consecutive.
    """

    x: Tensor
    kappa: Tensor
    swaps: Tensor
    diagnostics: LangevinDiagnostics


def tempering(
    law: LatentLaw,
    *,
    seed: int,
    rungs: int = 4,
    rounds: int = 25,
    kappa: float | None = None,
    temperature: float = 1.0,
    step_size: float | None = None,
    gamma: float | None = None,
    first_chain: int = 0,
    scheme: Scheme = USUAL,
) -> TemperedSample:
    """Rounds of trajectories on every rung and exchanges between neighbours.

    Pairs (0, 1), (2, 3), ... exchange after even rounds; (1, 2), ... exchange after odd ones (Okabe
    et al. 2001), with probability min(1, e^D), D = (E_i(x_i) + E_j(x_j) - E_i(x_j) - E_j(x_i)) / T.
    All rungs' densities are relative to one uniform measure, so the normalisers log
    C_d(kappa)/C_d(0) in E make this the exact Metropolis ratio. Velocities go with their states,
    because they have the same law on every rung.

    Args:
        rungs: number of replicas of each chain, evenly from kappa_c/5 to 1.4 kappa_c. The
            acceptance of an exchange then depends on the entropy, not on d.
        rounds: each of two trajectories of four leapfrogs, then one exchange.
        kappa: the highest rung for all chains, instead of 1.4 kappa_c.
        temperature: of velocities and law. Tokens have the model's law only at 1.
        step_size, gamma: those of all rungs, instead of the rules
            h sqrt((d-1)T) <= .3, h sqrt(kappa) <= .3 and gamma = sqrt(kappa).
        scheme: the integrator, a Metropolis one.

    Raises:
        ArgumentError: rungs < 2, rounds < 1, or `scheme` accepts every step. NonFinite: a chain
            became infinite or NaN.
    """
    if rungs < 2 or rounds < 1:
        raise ArgumentError(f"rungs = {rungs}, rounds = {rounds}", hint="use at least two rungs and one round")
    if not METROPOLIS.get(scheme):
        able = [name for name, exact in METROPOLIS.items() if exact]
        raise ArgumentError(f"scheme = {scheme!r} does not accept or reject", hint=f"use {' or '.join(able)}")
    ladder = _Ladder.of(law, rungs, kappa, temperature, step_size, gamma, scheme)
    first = first_chain * rungs
    x, v = ladder.law.start(seed=seed, temperature=temperature, first_chain=first)
    parts, swaps, tried = [], torch.zeros(len(law.ids), rungs - 1, device=x.device), torch.zeros(rungs - 1)
    for turn in range(rounds):
        run = ladder.move(x, v, seed, turn, first)
        parts.append(run.diagnostics)
        accept = ladder.exchange(run.x, run.diagnostics.energy, turn % 2, philox.fork(seed, turn), first_chain)
        x, v = (ladder.swapped(rows, accept, turn % 2) for rows in (run.x, run.v))
        pairs = slice(turn % 2, None, 2)
        swaps[:, pairs] += accept.to(swaps)
        tried[pairs] += 1
    check_finite(x, temperature)
    top = slice(rungs - 1, None, rungs)
    diagnostics = _mean(parts)
    return TemperedSample(
        x[top].contiguous(), ladder.kappa[top].contiguous(), swaps / tried.to(swaps).clamp_min(1), diagnostics
    )


@dataclass(frozen=True)
class _Ladder:
    """The R replicas of B chains; those of one chain are consecutive.

    law: the law of all B R replicas; kappa: (B R,).
    """

    law: LatentLaw
    rungs: int
    kappa: Tensor
    temperature: float
    step_size: float | None
    gamma: float | None
    scheme: Scheme

    @classmethod
    def of(cls, law: LatentLaw, rungs: int, kappa: float | None, *dynamics: Any) -> _Ladder:
        critical = kappa_critical(law.points.d, law.entropy)
        top = LAST * critical if kappa is None else torch.full_like(critical, kappa)
        low = torch.minimum(FIRST * critical, top)
        rise = torch.linspace(0, 1, rungs, dtype=critical.dtype, device=critical.device)
        levels = low[:, None] + (top - low)[:, None] * rise
        each = (tensor.repeat_interleave(rungs, 0) for tensor in (law.ids, law.logp, law.log_rest))
        return cls(LatentLaw(law.backend, law.points, *each), rungs, levels.flatten().to(law.logp.dtype), *dynamics)

    def move(self, x: Tensor, v: Tensor, seed: int, turn: int, first: int) -> LangevinResult:
        """Trajectories on every rung, round `turn`."""
        law, kappa = self.law, self.kappa.double()
        h = STIFFNESS / kappa.sqrt()
        h = h.clamp_max(ARC / math.sqrt((law.points.d - 1) * self.temperature))
        h = h if self.step_size is None else torch.full_like(kappa, self.step_size)
        friction = kappa.sqrt() if self.gamma is None else torch.full_like(kappa, self.gamma)
        columns = (kappa, log_c_ratio(kappa, law.points.d), h, friction)
        kappa, shift, h, friction = (column[:, None].to(law.logp.dtype).contiguous() for column in columns)
        schedule = Schedule(kappa, shift, h, friction, steps=(TRAJECTORIES,))
        return law.backend.langevin(
            *(x, v, law.points, law.ids, law.logp, torch.ones_like(law.logp), law.log_rest, schedule),
            seed=seed,
            first_step=turn * TRAJECTORIES,
            first_chain=first,
            temperature=self.temperature,
            scheme=self.scheme,
            leapfrogs=LEAPFROGS,
        )

    def exchange(self, x: Tensor, energy: Tensor, parity: int, seed: int, first_chain: int) -> Tensor:
        """(B, pairs) bool: the pairs of neighbours that swap their states.

        energy: (B R,), the energy of each state x on the rung where it is now.
        """
        partner = self._partner(parity, x.device)
        there = self.law.energy_score(x, self.kappa.view(-1, self.rungs)[:, partner].flatten()).energy
        gain = (energy.double() - there.double()).view(-1, self.rungs).to(x.device) / self.temperature
        lower = slice(parity, self.rungs - 1, 2)
        upper = slice(parity + 1, self.rungs, 2)
        log_ratio = gain[:, lower] + gain[:, upper]
        chain = torch.arange(first_chain, first_chain + len(gain), device=x.device)
        zero = torch.zeros((), dtype=torch.int64, device=x.device)
        u = philox.uniforms(seed, zero, chain, self.rungs, stream=streams.SWAP, dtype=torch.float64)
        return u[:, lower].log() <= log_ratio  # False for NaN

    def swapped(self, rows: Tensor, accept: Tensor, parity: int) -> Tensor:
        """rows (B R, d) after the accepted exchanges (B, pairs)."""
        each = rows.view(-1, self.rungs, rows.shape[1])
        go = torch.zeros(each.shape[:2], dtype=torch.bool, device=rows.device)
        go[:, parity : self.rungs - 1 : 2] = accept
        go[:, parity + 1 : self.rungs : 2] = accept
        return torch.where(go[:, :, None], each[:, self._partner(parity, rows.device)], each).flatten(0, 1)

    def _partner(self, parity: int, device: torch.device) -> Tensor:
        """(R,) the rung that each rung exchanges with; itself if it has no partner."""
        place = torch.arange(self.rungs, device=device)
        other = torch.where((place - parity) % 2 == 0, place + 1, place - 1)
        return torch.where((other < 0) | (other >= self.rungs), place, other)


def _mean(parts: list[LangevinDiagnostics]) -> LangevinDiagnostics:
    """Diagnostics of consecutive runs: last energy, largest tangency, means of the others."""

    def over(name: str) -> Tensor:
        return torch.stack([getattr(part, name) for part in parts])

    kinetic, error, acceptance = (over(name).mean(0) for name in ("kinetic_temperature", "energy_error", "acceptance"))
    return LangevinDiagnostics(parts[-1].energy, kinetic, error, acceptance, over("tangency").amax(0))


def _state(law: LatentLaw, _: Tensor, options: Options) -> State:
    own = options.settings
    rounds = max(1, own.langevin_steps // (LEAPFROGS * TRAJECTORIES))
    how = options.dynamics | {"scheme": options.scheme(USUAL)}
    found = tempering(law, rounds=rounds, kappa=own.kappa, **how, **options.where)
    return State(found.x, found.kappa, (found.diagnostics,), found.swaps)


tokens = by_decoding(_state)
