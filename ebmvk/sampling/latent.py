"""The latent law of a context, exact samples of it, and the Bayes decoder (model section 6).

    p_kappa(x|c) = sum_{v in C} p(v|c) vMF(x; mu_v, kappa) + p_rest / |S|

x is a point on the sphere, C a few candidate tokens, p_rest the mass of all other tokens, spread
evenly over the sphere, whose area is |S|. A token decoded from x alone by Bayes' rule has the law
p(v|c), whatever kappa > 0 and whatever the candidates.

Random numbers are counter-based: chain i draws the same numbers however a batch is split;
`first_chain` is the number of the first chain of a batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ebmvk.engine import philox
from ebmvk.engine.api import Backend, EnergyScore, Points
from ebmvk.errors import ArgumentError, NonFinite
from ebmvk.sampling import streams
from ebmvk.sphere.geometry import proju, projx
from ebmvk.sphere.vmf import log_c_ratio


@dataclass(frozen=True)
class LatentLaw:
    """p_kappa(x|c) of B contexts at once, at any kappa.

    Args:
        backend: computes everything. points: the tokens' points, which the backend keeps; (V, d)
            unit rows.
        ids: (B, K) int64, the candidates C(c), each once.
        logp: (B, K) log p(v|c) of the candidates; -inf is allowed.
        log_rest: (B,) log of the mass outside the candidates; -inf for no mass.
    """

    backend: Backend
    points: Points
    ids: Tensor
    logp: Tensor
    log_rest: Tensor

    @classmethod
    def from_log_probs(cls, backend: Backend, points: Points, log_p: Tensor, k: int) -> LatentLaw:
        """The candidates are the k most probable tokens, or all if there are fewer.

        log_p: (B, V) normalised.
        """
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
        """The candidates are the k best of kappa_v mu_v.query + b_v; their masses come from log_p.

        query: (B, d). bias: (V,). concentrations: (V,), kappa_v, or None if all are 1. log_p: (B,
        V), normalised. The decoded law is exact with any candidates, so log_p may include a memory
        that the query knows nothing of.
        """
        scale = None if concentrations is None else concentrations.detach().contiguous()
        best = min(k, points.n)
        found = backend.topk(query.detach().contiguous(), points, best, scale=scale, bias=bias.detach().contiguous())
        return cls.with_candidates(backend, points, found.ids.to(log_p.device), log_p)

    @classmethod
    def with_candidates(cls, backend: Backend, points: Points, ids: Tensor, log_p: Tensor) -> LatentLaw:
        """The candidates are ids (B, K), each once; log_p (B, V), normalised, gives their
        masses."""
        log_p = log_p.detach()
        rest = log_p.scatter(1, ids, -math.inf)
        # Summed, because 1 minus the mass inside would lose a small rest in float32.
        return cls(backend, points, ids.contiguous(), log_p.gather(1, ids).contiguous(), rest.logsumexp(1))

    @property
    def ones(self) -> Tensor:
        """(B, K): the concentration of each candidate until a schedule sets another."""
        return torch.ones_like(self.logp)

    @property
    def entropy(self) -> Tensor:
        """(B,) nats of the mixture that x is drawn from; the rest counts as one component."""
        log_weights = torch.cat((self.logp, self.log_rest[:, None]), dim=1).double()
        return -torch.where(log_weights > -math.inf, log_weights.exp() * log_weights, 0.0).sum(1)

    def energy_score(self, x: Tensor, kappa: Tensor | float) -> EnergyScore:
        """E_kappa(x|c), its score and the responsibilities.

        x: (B, d) unit rows; kappa: (B,) or a number.
        """
        level = self.concentration(kappa)
        logw = self.logp + log_c_ratio(level, self.points.d)[:, None]
        full = level[:, None].expand_as(logw).contiguous()
        return self.backend.energy_score(x, self.points, self.ids, logw, full, self.log_rest)

    def sample_exact(self, kappa: Tensor | float, embeddings: Tensor, *, seed: int, first_chain: int = 0) -> Tensor:
        """x (B, d) drawn from p_kappa exactly: a component, then a point of it.

        embeddings: (V, d) unit rows, those of `points`.
        """
        weights = torch.cat((self.logp, self.log_rest[:, None]), dim=1)
        choice = draw(weights.exp(), self.uniforms(streams.EXACT, seed, first_chain))
        return self.sample_component(choice, self.concentration(kappa), embeddings, seed=seed, first_chain=first_chain)

    def sample_component(
        self, choice: Tensor, kappa: Tensor, embeddings: Tensor, *, seed: int, first_chain: int = 0
    ) -> Tensor:
        """Draw a point x for each context, (B, d), from vMF(mu_v, kappa), where token v is the
        context's candidate number `choice`.

        choice: (B,) int64, K for the rest (all other tokens), which is uniform; kappa: (B,);
        embeddings: (V, d) unit rows.
        """
        rest = choice == self.ids.shape[1]
        level = torch.where(rest, 0.0, kappa)
        mu = embeddings.detach()[self._candidate(choice)].contiguous()
        return self.backend.vmf_sample(mu, level, seed=seed, first_row=first_chain)

    def decode(self, x: Tensor, kappa: Tensor | float, log_p: Tensor, *, seed: int, first_chain: int = 0) -> Tensor:
        """Tokens (B,) from p(v|x,c): rho_v for candidates, rho_rest p(v|c)/p_rest for others.

        x: (B, d) unit rows drawn at `kappa`; log_p: (B, V), the law that the candidates' masses
        came from.

        Raises:
            ArgumentError: log_p has another shape.
        """
        if log_p.shape != (self.ids.shape[0], self.points.n):
            raise ArgumentError(
                f"log_p has shape {tuple(log_p.shape)}; expected {(self.ids.shape[0], self.points.n)}",
                hint="pass the log probabilities of the whole vocabulary for the same contexts",
            )
        now = self.energy_score(x, kappa)
        shares = torch.cat((now.responsibilities, now.background[:, None]), dim=1).to(log_p.device)
        choice = draw(shares, self.uniforms(streams.CHOICE, seed, first_chain))
        tokens = self._candidate(choice)
        rest = (choice == self.ids.shape[1]).nonzero()[:, 0]
        if len(rest):
            outside = log_p.detach()[rest].scatter(1, self.ids[rest], -math.inf).double().softmax(1)
            tokens[rest] = draw(outside, self.uniforms(streams.REST, seed, first_chain)[rest])
        return tokens

    def _candidate(self, choice: Tensor) -> Tensor:
        """(B,) token of candidate number `choice` (B,); the last candidate for K, the rest."""
        return self.ids.gather(1, choice.clamp_max(self.ids.shape[1] - 1)[:, None])[:, 0]

    def uniform_start(self, *, seed: int, first_chain: int = 0) -> Tensor:
        """x (B, d) uniform on the sphere: where chains begin."""
        return projx(self.normals(streams.START, seed, first_chain))

    def start(self, *, seed: int, temperature: float, first_chain: int = 0) -> tuple[Tensor, Tensor]:
        """Where chains begin: uniform x, (B, d), and v ~ N(0, T P_x), (B, d)."""
        x = self.uniform_start(seed=seed, first_chain=first_chain)
        return x, proju(x, self.normals(philox.STREAM_VELOCITY, seed, first_chain)) * math.sqrt(temperature)

    def concentration(self, kappa: Tensor | float) -> Tensor:
        """(B,) from one number for all contexts, or from one for each."""
        return torch.as_tensor(kappa, dtype=self.logp.dtype, device=self.logp.device).expand(len(self.ids))

    def _chains(self, first_chain: int) -> tuple[Tensor, Tensor]:
        """Step 0 and the chains' numbers (B,), as counters of random numbers."""
        chain = torch.arange(first_chain, first_chain + len(self.ids), device=self.logp.device)
        return torch.zeros((), dtype=torch.int64, device=chain.device), chain

    def normals(self, stream: int, seed: int, first_chain: int) -> Tensor:
        """(B, d) standard normals, each chain's own."""
        step, chain = self._chains(first_chain)
        return philox.normals(seed, step, chain, self.points.d, stream=stream, dtype=self.logp.dtype)

    def uniforms(self, stream: int, seed: int, first_chain: int) -> Tensor:
        """(B,) float64 uniforms, each chain's own."""
        step, chain = self._chains(first_chain)
        return philox.uniforms(seed, step, chain, 1, stream=stream, dtype=torch.float64)[:, 0]


def check_finite(x: Tensor, temperature: float) -> None:
    """Raises NonFinite if a chain of x (B, d) has become infinite or NaN."""
    if lost := int((~torch.isfinite(x).all(1)).sum()):
        raise NonFinite(
            f"{lost} of {len(x)} Langevin chains are no longer finite (temperature {temperature:g})",
            why="a step size, friction, temperature or concentration is too large",
            hint="remove --langevin-dt, --langevin-gamma, --langevin-T and --kappa, so that rules set them",
        )


def draw(weights: Tensor, u: Tensor) -> Tensor:
    """One index per row by inversion, in float64; an index of weight 0 is never drawn.

    weights: (B, K) >= 0; u: (B,) uniforms.
    """
    below = weights.double().cumsum(1)
    # Rounding may leave the sum of all weights at or below u, so the index is limited to the last
    # positive weight.
    chosen = torch.searchsorted(below, (u * below[:, -1])[:, None], right=True)[:, 0]
    return torch.minimum(chosen, _last_positive(weights))


def _last_positive(weights: Tensor) -> Tensor:
    columns = torch.arange(weights.shape[1], device=weights.device)
    return torch.where(weights > 0, columns, 0).amax(1)
