"""The latent law of a context, its samplers and the decoder that makes them exact (model section 6).

    p_kappa(x|c) = sum_{v in C} p(v|c) vMF(x; mu_v, kappa) + p_rest / |S|

and a token decoded from x alone by Bayes' rule has the law p(v|c), whatever kappa > 0 and candidates C. Randomness is
counter-based: chain i gets the same numbers however a batch is split, with `first_chain` saying where the batch starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ebmvk.engine import philox
from ebmvk.engine.api import Backend, EnergyScore, LangevinDiagnostics, Points, Schedule
from ebmvk.errors import ArgumentError, NonFinite
from ebmvk.sampling.schedule import annealed_schedule
from ebmvk.sphere.geometry import proju, projx
from ebmvk.sphere.vmf import log_c_ratio

_STREAM_START = philox.STREAM_FREE
_STREAM_CHOICE = philox.STREAM_FREE + 1
_STREAM_REST = philox.STREAM_FREE + 2
STREAM_GIBBS = philox.STREAM_FREE + 4
STREAM_SWAP = philox.STREAM_FREE + 5
_STREAM_EXACT = philox.STREAM_FREE + 3  # apart from the decoder's: with one seed for both, x and token would share u


@dataclass(frozen=True)
class LatentSample:
    """x: (B, d) unit rows at concentration kappa (B,), with the run that made them."""

    x: Tensor
    kappa: Tensor
    schedule: Schedule
    diagnostics: LangevinDiagnostics


@dataclass(frozen=True)
class LatentLaw:
    """p_kappa(x|c) for B contexts at once, at any kappa.

    Args:
        backend, points: where the work is done, and the V token points it keeps, (V, d) unit rows.
        ids: (B, K) int64, the candidates C(c), each once.
        logp: (B, K) log p(v|c) of the candidates, -inf allowed.
        log_rest: (B,) log of the mass outside, -inf where there is none.
    """

    backend: Backend
    points: Points
    ids: Tensor
    logp: Tensor
    log_rest: Tensor

    @classmethod
    def from_log_probs(cls, backend: Backend, points: Points, log_p: Tensor, k: int) -> LatentLaw:
        """The k most probable tokens are the candidates (all of them if there are fewer). log_p: (B, V) normalised."""
        return cls.with_candidates(backend, points, log_p.topk(min(k, log_p.shape[1]), dim=1).indices, log_p)

    @classmethod
    def from_query(
        cls,
        backend: Backend,
        points: Points,
        bias: Tensor,
        query: Tensor,
        log_p: Tensor,
        k: int,
        concentrations: Tensor | None = None,
    ) -> LatentLaw:
        """Candidates are the k best of kappa_v mu_v.query + b_v, found by the backend; their masses come from log_p.

        query: (B, d); bias, concentrations kappa_v (None: 1): (V,); log_p: (B, V) normalised. The law is exact with
        any candidates, so it does not matter that log_p may hold a memory which the query does not see.
        """
        scale = None if concentrations is None else concentrations.detach().contiguous()
        best = min(k, points.n)
        found = backend.topk(query.detach().contiguous(), points, best, scale=scale, bias=bias.detach().contiguous())
        return cls.with_candidates(backend, points, found.ids.to(log_p.device), log_p)

    @classmethod
    def with_candidates(cls, backend: Backend, points: Points, ids: Tensor, log_p: Tensor) -> LatentLaw:
        """Candidates ids (B, K) int64, each once, with their masses from log_p (B, V), normalised."""
        log_p = log_p.detach()
        rest = log_p.scatter(1, ids, -math.inf)
        # Summing what is outside, not 1 minus what is inside: in float32 that would lose a small rest.
        return cls(backend, points, ids.contiguous(), log_p.gather(1, ids).contiguous(), rest.logsumexp(1))

    @property
    def entropy(self) -> Tensor:
        """(B,) nats of the mixture that x is drawn from, the rest counting as one component."""
        log_weights = torch.cat((self.logp, self.log_rest[:, None]), dim=1).double()
        return -torch.where(log_weights > -math.inf, log_weights.exp() * log_weights, 0.0).sum(1)

    def energy_score(self, x: Tensor, kappa: Tensor | float) -> EnergyScore:
        """E_kappa(x|c), its score and the responsibilities. x: (B, d) unit rows; kappa: (B,) or a number."""
        level = self.concentration(kappa)
        logw = self.logp + log_c_ratio(level, self.points.d)[:, None]
        full = level[:, None].expand_as(logw).contiguous()
        return self.backend.energy_score(x, self.points, self.ids, logw, full, self.log_rest)

    def sample_exact(self, kappa: Tensor | float, embeddings: Tensor, *, seed: int, first_chain: int = 0) -> Tensor:
        """x (B, d) drawn from p_kappa exactly: a component, then a vMF (or uniform) point.

        embeddings: (V, d) unit rows, those of `points`. A chain's draw does not depend on how a batch is split.
        """
        weights = torch.cat((self.logp, self.log_rest[:, None]), dim=1)
        choice = draw(weights.exp(), self.uniforms(_STREAM_EXACT, seed, first_chain))
        rest = choice == self.ids.shape[1]
        token = self.ids.gather(1, choice.clamp_max(self.ids.shape[1] - 1)[:, None])[:, 0]
        level = torch.where(rest, 0.0, self.concentration(kappa))
        mu = embeddings.detach()[token].contiguous()
        return self.backend.vmf_sample(mu, level, seed=seed, first_row=first_chain)

    def langevin(
        self,
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
        """Annealed Langevin from uniform x and v ~ N(0, T P_x); options as in `annealed_schedule`.

        Raises:
            NonFinite: a chain left the finite numbers.
        """
        schedule = annealed_schedule(
            self.points.d,
            self.entropy,
            levels=levels,
            steps=steps,
            kappa_max=kappa,
            temperature=temperature,
            step_size=step_size,
            gamma=gamma,
        )
        x = self.uniform_start(seed=seed, first_chain=first_chain)
        v = proju(x, self.normals(philox.STREAM_VELOCITY, seed, first_chain)) * math.sqrt(temperature)
        ones = torch.ones_like(self.logp)
        result = self.backend.langevin(
            *(x, v, self.points, self.ids, self.logp, ones, self.log_rest, schedule),
            seed=seed,
            first_chain=first_chain,
            temperature=temperature,
        )
        check_finite(result.x, temperature)
        return LatentSample(result.x, schedule.kappa_scale[:, -1].contiguous(), schedule, result.diagnostics)

    def decode(self, x: Tensor, kappa: Tensor | float, log_p: Tensor, *, seed: int, first_chain: int = 0) -> Tensor:
        """Tokens (B,) int64 from p(v|x,c): rho_v among the candidates, rho_rest p(v|c)/p_rest outside.

        x: (B, d) unit rows drawn at `kappa`; log_p: (B, V), the law the candidates came from.
        """
        if log_p.shape != (self.ids.shape[0], self.points.n):
            raise ArgumentError(
                f"log_p has shape {tuple(log_p.shape)}, where {(self.ids.shape[0], self.points.n)} is needed",
                hint="pass the log probabilities of the whole vocabulary for the same contexts",
            )
        now = self.energy_score(x, kappa)
        shares = torch.cat((now.responsibilities, now.background[:, None]), dim=1).to(log_p.device)
        choice = draw(shares, self.uniforms(_STREAM_CHOICE, seed, first_chain))
        tokens = self.ids.gather(1, choice.clamp_max(self.ids.shape[1] - 1)[:, None])[:, 0]
        rest = (choice == self.ids.shape[1]).nonzero()[:, 0]
        if len(rest):
            outside = log_p.detach()[rest].scatter(1, self.ids[rest], -math.inf).double().softmax(1)
            tokens[rest] = draw(outside, self.uniforms(_STREAM_REST, seed, first_chain)[rest])
        return tokens

    def uniform_start(self, *, seed: int, first_chain: int = 0) -> Tensor:
        """x (B, d) uniform on the sphere, where chains begin."""
        return projx(self.normals(_STREAM_START, seed, first_chain))

    def concentration(self, kappa: Tensor | float) -> Tensor:
        """(B,) of one for all, or of each."""
        return torch.as_tensor(kappa, dtype=self.logp.dtype, device=self.logp.device).expand(len(self.ids))

    def _chains(self, first_chain: int) -> tuple[Tensor, Tensor]:
        chain = torch.arange(first_chain, first_chain + len(self.ids), device=self.logp.device)
        return torch.zeros((), dtype=torch.int64, device=chain.device), chain

    def normals(self, stream: int, seed: int, first_chain: int) -> Tensor:
        """(B, d) of the chains' own."""
        step, chain = self._chains(first_chain)
        return philox.normals(seed, step, chain, self.points.d, stream=stream, dtype=self.logp.dtype)

    def uniforms(self, stream: int, seed: int, first_chain: int) -> Tensor:
        """(B,) float64 of the chains' own."""
        step, chain = self._chains(first_chain)
        return philox.uniforms(seed, step, chain, 1, stream=stream, dtype=torch.float64)[:, 0]


def check_finite(x: Tensor, temperature: float) -> None:
    """Raises NonFinite where a chain of x (B, d) is not finite any more."""
    if lost := int((~torch.isfinite(x).all(1)).sum()):
        raise NonFinite(
            f"{lost} of {len(x)} Langevin chains are not finite any more (temperature {temperature:g})",
            why="a step size, friction, temperature or concentration is too large",
            hint="leave --langevin-dt, --langevin-gamma, --langevin-T and --kappa away: rules set them then",
        )


def draw(weights: Tensor, u: Tensor) -> Tensor:
    """One index per row by inversion, in float64; a weight of 0 is never drawn. weights: (B, K) >= 0; u: (B,)."""
    below = weights.double().cumsum(1)
    # Never at or past the last positive weight's own sum, which rounding may leave just below u.
    chosen = torch.searchsorted(below, (u * below[:, -1])[:, None], right=True)[:, 0]
    return torch.minimum(chosen, _last_positive(weights))


def _last_positive(weights: Tensor) -> Tensor:
    columns = torch.arange(weights.shape[1], device=weights.device)
    return torch.where(weights > 0, columns, 0).amax(1)
