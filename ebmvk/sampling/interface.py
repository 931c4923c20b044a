"""What a sampler is given and returns.

A sampler is a module with a function `tokens`, a `TokenFunction`: contexts in, one token of each
out. Most samplers draw a state x of the latent law and leave the token to the Bayes decoder; they
write a `StateFunction`, and `by_decoding` makes a `TokenFunction` of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from ebmvk.config.integrators import AUTO
from ebmvk.config.schema import LangevinConfig
from ebmvk.engine.api import Backend, LangevinDiagnostics, Points, Scheme
from ebmvk.engine.philox import fork
from ebmvk.sampling.latent import LatentLaw

T = TypeVar("T")


@dataclass(frozen=True)
class TokenPoints:
    """The tokens of one model as points on the sphere, kept by one backend.

    mu: (V, d) unit rows; points: the same rows, kept by the backend. bias, concentrations: (V,), by
    which the candidates of a query are found; None means 0 and 1. prepared: what samplers made once
    for these points, by name.
    """

    backend: Backend
    mu: Tensor
    points: Points
    bias: Tensor | None
    concentrations: Tensor | None
    prepared: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[], T]) -> T:
        """The result of `make`, which runs only the first time that this name is asked for."""
        if name not in self.prepared:
            self.prepared[name] = make()
        found: T = self.prepared[name]
        return found

    def law(self, query: Tensor | None, log_p: Tensor, k: int) -> LatentLaw:
        """The latent law of each context, with the k best tokens of its query as candidates.

        query: (B, d); without one, the k most probable tokens are the candidates. log_p: (B, V),
        normalised. A temperature of p(v|c) doesn't reorder tokens, so the query's best tokens are
        good candidates at any temperature.
        """
        if query is None:
            return LatentLaw.from_log_probs(self.backend, self.points, log_p, k)
        bias = log_p.new_zeros(self.points.n) if self.bias is None else self.bias
        return LatentLaw.from_query(self.backend, self.points, bias, query, log_p, k, self.concentrations)


@dataclass(frozen=True)
class Options:
    """How to sample.

    settings: those of the run. `langevin_steps` sets the work of every sampler: the number of
        integrator steps of a Langevin chain, or of leapfrogs of each replica; block Gibbs makes one
        sweep for every eight.
    seed: the same seed gives the same result. first_chain: the chain number of the first context. A
        context's draws follow from its chain number, however a batch is split.
    """

    settings: LangevinConfig
    seed: int
    first_chain: int = 0

    @property
    def where(self) -> dict[str, Any]:
        """Seed and first chain, as keyword arguments."""
        return {"seed": self.seed, "first_chain": self.first_chain}

    @property
    def dynamics(self) -> dict[str, Any]:
        """What moves a chain, as keyword arguments: temperature, step size and friction."""
        own = self.settings
        return {"temperature": own.langevin_T, "step_size": own.langevin_dt, "gamma": own.langevin_gamma}

    def scheme(self, usual: Scheme) -> Scheme:
        """The integrator that the settings name, or else the sampler's usual one."""
        own = self.settings.langevin_scheme
        return usual if own == AUTO else own


@dataclass(frozen=True)
class State:
    """x: (B, d) unit rows drawn at concentration kappa (B,).

    diagnostics: those of each run of chains that made the states. rates: (B, P), what the
    registry's `rates` describes, or None.
    """

    x: Tensor
    kappa: Tensor
    diagnostics: tuple[LangevinDiagnostics, ...] = ()
    rates: Tensor | None = None


@dataclass(frozen=True)
class Drawn:
    """tokens: (B,) int64. diagnostics, rates: as in `State`."""

    tokens: Tensor
    diagnostics: tuple[LangevinDiagnostics, ...] = ()
    rates: Tensor | None = None


TokenFunction = Callable[[TokenPoints, Tensor | None, Tensor, Options], Drawn]
"""Draws (B,) tokens from points, queries (B, d) or None, log p(v|c) (B, V) and options."""
StateFunction = Callable[[LatentLaw, Tensor, Options], State]
"""Draws a state of each context from the latent law, the points (V, d) and options."""


def decoding_seed(options: Options) -> int:
    """The decoder's seed. It isn't the chain's, because the decoder's draws must be independent of
    how x was made.
    """
    return fork(options.seed, 0)


def by_decoding(sample: StateFunction) -> TokenFunction:
    """A sampler of tokens: `sample` draws a state, then Bayes' rule draws a token from that
    alone."""

    def tokens(space: TokenPoints, query: Tensor | None, log_p: Tensor, options: Options) -> Drawn:
        law = space.law(query, log_p, options.settings.knn_k)
        state = sample(law, space.mu, options)
        found = law.decode(state.x, state.kappa, log_p, seed=decoding_seed(options), first_chain=options.first_chain)
        return Drawn(found, state.diagnostics, state.rates)

    return tokens
