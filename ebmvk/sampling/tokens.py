"""`TokenSampler`: a sampler at work for one model; `SamplingHealth`: its diagnostics."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import cast

from torch import Tensor

from ebmvk.config.integrators import AUTO
from ebmvk.config.schema import LangevinConfig
from ebmvk.engine import LangevinDiagnostics
from ebmvk.engine.device_tensor import DeviceTensor, read
from ebmvk.errors import ConfigError
from ebmvk.sampling import registry
from ebmvk.sampling.interface import Options, TokenPoints
from ebmvk.sampling.registry import SAMPLERS, SamplerName

_RUNS_READ = 32  # runs whose diagnostics are read from a device together

_CONFLICTS = {
    "langevin_T": ("this sampler draws from the model's own law, that of temperature 1", "langevin_T = 1"),
    "langevin_scheme": (
        "this integrator accepts every step, and the sampler's law needs one that accepts or rejects",
        f'langevin_scheme = "{AUTO}"',
    ),
}
"""Why a sampler can't have a value of a setting, and a value that suits all samplers."""


@dataclass
class SamplingHealth:
    """Diagnostics over all chains so far; replicas of tempering count as chains.

    sums: the engine's diagnostics, summed over chains; tangency: the largest of all. rates: (P,),
    what the registry's `rates` describes, summed over `rows` contexts.
    """

    chains: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    tangency: float = 0.0
    rows: int = 0
    rates: Tensor | None = None
    _waiting: list[LangevinDiagnostics] = field(default_factory=list)

    def add(self, found: LangevinDiagnostics) -> None:
        """Count the chains of one run. Diagnostics on a device are read later, for many runs at
        once.
        """
        if isinstance(found.energy, DeviceTensor):
            self._waiting.append(found)
            if len(self._waiting) >= _RUNS_READ:
                self._read()
        else:
            self._count(found)

    def _count(self, found: LangevinDiagnostics) -> None:
        self.chains += len(found.energy)
        for name in ("energy", "kinetic_temperature", "energy_error", "acceptance"):
            self.sums[name] = self.sums.get(name, 0.0) + float(getattr(found, name).double().sum())
        self.tangency = max(self.tangency, float(found.tangency.max()))

    def _read(self) -> None:
        waiting, self._waiting = self._waiting, []
        parts = read(*(cast("DeviceTensor", part) for found in waiting for part in vars(found).values()))
        width = len(fields(LangevinDiagnostics))
        for first in range(0, len(parts), width):
            self._count(LangevinDiagnostics(*parts[first : first + width]))

    def mixed(self, rates: Tensor) -> None:
        """Count the rates (B, P) of B contexts."""
        total = rates.double().sum(0).cpu()
        self.rates = total if self.rates is None else self.rates + total
        self.rows += len(rates)

    def record(self) -> dict[str, float]:
        """Means per chain and the largest tangency, as JSON values; empty if no chain ran."""
        self._read()
        means = {name: total / self.chains for name, total in self.sums.items()}
        return {**means, "tangency": self.tangency, "chains": self.chains} if self.chains else {}

    def mixing(self) -> list[float]:
        """Mean rates; empty if the sampler has none."""
        return [] if self.rates is None else (self.rates / self.rows).tolist()


@dataclass(frozen=True)
class TokenSampler:
    """Draws tokens by the sampler `name` and adds its diagnostics to `health`.

    Raises:
        ConfigError: this sampler can't have the temperature of the run's chains, or their
        integrator. ArgumentError: no sampler has this name.
    """

    name: SamplerName
    space: TokenPoints
    settings: LangevinConfig
    health: SamplingHealth

    def __post_init__(self) -> None:
        if setting := registry.named(self.name).conflict(self.settings):
            able = [name for name, one in SAMPLERS.items() if one.module and not one.conflict(self.settings)]
            why, remedy = _CONFLICTS[setting]
            raise ConfigError(
                f"--sampler {self.name} doesn't work with the run's {setting} {getattr(self.settings, setting)}",
                why=why,
                hint=f"use --sampler {' or '.join(able)}, or set {remedy} in the run's config.toml",
            )

    def tokens(self, query: Tensor, log_p: Tensor, *, seed: int, first_chain: int) -> Tensor:
        """(B,) int64. query: (B, d); log_p: (B, V), normalised."""
        draw = registry.token_function(self.name)
        found = draw(self.space, query, log_p, Options(self.settings, seed, first_chain))
        for diagnostics in found.diagnostics:
            self.health.add(diagnostics)
        if found.rates is not None:
            self.health.mixed(found.rates)
        return found.tokens
