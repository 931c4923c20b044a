"""Tokens of contexts by way of a latent state: the samplers of model section 7, and what they say about themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from ebmvk.config.schema import LangevinConfig
from ebmvk.engine import Backend, LangevinDiagnostics, Points
from ebmvk.engine.philox import fork
from ebmvk.errors import ConfigError
from ebmvk.sampling.coarse import Neighbourhoods, coarse_to_fine
from ebmvk.sampling.exchange import LEAPFROGS, TRAJECTORIES, block_gibbs, tempering
from ebmvk.sampling.latent import LatentLaw

StateSampler = Literal["langevin", "gibbs", "tempering", "coarse"]
SWEEP = 8  # integrator steps that a sweep of block Gibbs stands for: about what it costs in a batch


@dataclass
class SamplingHealth:
    """Diagnostics over all chains of a generation; `tangency` is the largest, the others are means. Replicas count as
    chains. rates: of tempering, accepted exchanges of each pair of rungs; of block Gibbs, changes of the component."""

    chains: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    tangency: float = 0.0
    rows: int = 0
    rates: Tensor | None = None

    def add(self, found: LangevinDiagnostics) -> None:
        self.chains += len(found.energy)
        for name in ("energy", "kinetic_temperature", "energy_error", "acceptance"):
            self.sums[name] = self.sums.get(name, 0.0) + float(getattr(found, name).double().sum())
        self.tangency = max(self.tangency, float(found.tangency.max()))

    def mixed(self, rates: Tensor) -> None:
        """rates: (B, P) of B chains."""
        total = rates.double().sum(0).cpu()
        self.rates = total if self.rates is None else self.rates + total
        self.rows += len(rates)

    def record(self) -> dict[str, float]:
        """Means per chain, JSON-able; empty when no chain ran."""
        means = {name: total / self.chains for name, total in self.sums.items()}
        return {**means, "tangency": self.tangency, "chains": self.chains} if self.chains else {}

    def mixing(self) -> list[float]:
        """Mean rates; empty where no sampler has any."""
        return [] if self.rates is None else (self.rates / self.rows).tolist()


@dataclass(frozen=True)
class States:
    """One model's states on one backend. neighbourhoods: of `coarse`, which needs them.

    points: mu (V, d) kept by the backend; bias, concentrations: (V,), by which candidates are found;
    `settings.langevin_steps` is the work of every sampler: integrator steps of one Langevin chain, leapfrogs of each
    replica, eight to a sweep of block Gibbs, and steps of each of the two coarse-to-fine levels.

    Raises:
        ConfigError: block Gibbs of a run whose chains have another temperature than 1.
    """

    name: StateSampler
    backend: Backend
    mu: Tensor
    points: Points
    bias: Tensor
    concentrations: Tensor | None
    settings: LangevinConfig
    health: SamplingHealth
    neighbourhoods: Neighbourhoods | None

    def __post_init__(self) -> None:
        if self.name == "gibbs" and self.settings.langevin_T != 1:
            raise ConfigError(
                f"--sampler gibbs with the run's langevin_T {self.settings.langevin_T:g}",
                why="block Gibbs draws exactly from the law itself, which is that of temperature 1",
                hint="take --sampler langevin or tempering, or set langevin_T = 1 in the run's config.toml",
            )

    def tokens(self, query: Tensor, log_p: Tensor, *, seed: int, first_chain: int) -> Tensor:
        """(B,) int64. query: (B, d); log_p: (B, V), normalised."""
        if self.neighbourhoods is not None:
            found = coarse_to_fine(
                *(self.backend, self.points, self.neighbourhoods, log_p, self.settings.knn_k),
                **(self._annealing() | {"seed": seed, "first_chain": first_chain}),
            )
            self.health.add(found.coarse.diagnostics)
            self.health.add(found.fine.diagnostics)
            return found.tokens
        # No temperature changes the order of tokens, so the query's best are the candidates at any.
        found_by = (self.bias, query, log_p, self.settings.knn_k, self.concentrations)
        law = LatentLaw.from_query(self.backend, self.points, *found_by)
        x, kappa = self._state(law, seed, first_chain)
        # Another seed than the chain's: the decoder's draws must know nothing of how x came about.
        return law.decode(x, kappa, log_p, seed=fork(seed, 0), first_chain=first_chain)

    def _annealing(self) -> dict[str, Any]:
        settings = self.settings
        levels = {"levels": settings.langevin_levels, "steps": settings.langevin_steps}
        return levels | {"kappa": settings.kappa} | self._dynamics()

    def _dynamics(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "temperature": settings.langevin_T,
            "step_size": settings.langevin_dt,
            "gamma": settings.langevin_gamma,
        }

    def _state(self, law: LatentLaw, seed: int, first_chain: int) -> tuple[Tensor, Tensor]:
        """x (B, d) and its kappa (B,)."""
        steps, kappa = self.settings.langevin_steps, self.settings.kappa
        where: dict[str, Any] = {"seed": seed, "first_chain": first_chain}
        if self.name == "gibbs":
            swept = block_gibbs(law, self.mu, sweeps=max(1, steps // SWEEP), kappa=kappa, **where)
            self.health.mixed(swept.moved[:, None])
            return swept.x, swept.kappa
        if self.name == "tempering":
            rounds = max(1, steps // (LEAPFROGS * TRAJECTORIES))
            tempered = tempering(law, rounds=rounds, kappa=kappa, **self._dynamics(), **where)
            self.health.add(tempered.diagnostics)
            self.health.mixed(tempered.swaps)
            return tempered.x, tempered.kappa
        annealed = law.langevin(**self._annealing(), **where)
        self.health.add(annealed.diagnostics)
        return annealed.x, annealed.kappa
