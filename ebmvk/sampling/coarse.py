"""Coarse-to-fine sampling: a neighbourhood of tokens first, then a token of it; exact (model sections 6 and 7).

The vocabulary is split into about sqrt(V) neighbourhoods g, each with a unit direction m_g. With p(g|c) the sum of
p(v|c) over its tokens:

    x ~ sum_g p(g|c) vMF(x; m_g, kappa),      g from p(g|x, c)         the coarse law, decoded by Bayes
    y ~ sum_{v in g} p(v|g, c) vMF(y; mu_v, kappa'),  v from p(v|y, g, c)     the fine law of that g, decoded by Bayes

Each line is a latent law with its own Bayes decoder, so the central identity holds for each, whatever its directions,
concentration and candidates: the first gives g the law p(g|c); the second, whose chain shares no random number with the
first, gives v the law p(v|g, c) for the g that was drawn. The token's law is sum_g p(g|c) p(v|g, c) = p(v|c), since v
lies in one neighbourhood only: exact for any split of the vocabulary and any directions. Good ones only make states
that say more: K candidates cover nearly all of p(g|c) and of p(v|g, c), where those of the flat law leave the rest of a
flat p(v|c) to the uniform component.

Cost: two runs of chains where the flat law needs one, each with at most K candidates; k-means and the assignment of V
tokens once per model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ebmvk.engine import philox
from ebmvk.engine.api import Backend, Points
from ebmvk.engine.approximate import kmeans
from ebmvk.sampling.latent import LatentLaw, LatentSample
from ebmvk.sphere.geometry import projx

_FINE = 1  # forks of the seed; the coarse level has 0


@dataclass(frozen=True)
class Neighbourhoods:
    """A split of V tokens. group: (V,) int64, of each token; centres: G directions kept by a backend; largest: tokens
    of the largest one."""

    group: Tensor
    centres: Points
    largest: int

    @classmethod
    def of(cls, backend: Backend, embeddings: Tensor, count: int | None = None) -> Neighbourhoods:
        """Each token with the nearest centre of a spherical k-means, the mean directions as the groups' own.

        embeddings: (V, d) unit rows; count: of neighbourhoods asked for, sqrt(V) by default; empty ones are left out.
        The same embeddings give the same split.
        """
        mu = embeddings.detach().float().cpu().contiguous()
        count = math.isqrt(len(mu) - 1) + 1 if count is None else count
        centres = backend.points(kmeans(mu, count).centroids)
        nearest = backend.topk(mu, centres, 1).ids[:, 0].cpu()
        used = torch.bincount(nearest, minlength=count) > 0
        group = (used.cumsum(0) - 1)[nearest]
        total = torch.zeros(int(group.max()) + 1, mu.shape[1]).index_add_(0, group, mu)
        return cls(group, backend.points(projx(total)), int(torch.bincount(group).max()))

    def log_probs(self, log_p: Tensor) -> Tensor:
        """log p(g|c), (B, G), of log p(v|c), (B, V)."""
        p = log_p.new_zeros(len(log_p), self.centres.n, dtype=torch.float64)
        p.index_add_(1, self.group.to(log_p.device), log_p.double().exp())
        return p.log().log_softmax(1).to(log_p.dtype)

    def within(self, log_p: Tensor, chosen: Tensor) -> Tensor:
        """log p(v|g,c), (B, V), for the groups chosen (B,): -inf outside."""
        outside = self.group.to(log_p.device) != chosen.to(log_p.device)[:, None]
        return log_p.masked_fill(outside, -math.inf).log_softmax(1)


@dataclass(frozen=True)
class CoarseSample:
    """tokens (B,) int64, by way of groups (B,) int64; the states of both levels."""

    tokens: Tensor
    groups: Tensor
    coarse: LatentSample
    fine: LatentSample


def coarse_to_fine(
    backend: Backend,
    points: Points,
    neighbourhoods: Neighbourhoods,
    log_p: Tensor,
    k: int,
    *,
    seed: int,
    first_chain: int = 0,
    **options: Any,
) -> CoarseSample:
    """Tokens of B contexts. log_p: (B, V), normalised; k: most candidates of a level; options: of `LatentLaw.langevin`.

    Raises:
        As `LatentLaw.langevin`.
    """

    def level(directions: Points, law_of: Tensor, most: int, own: int) -> tuple[Tensor, LatentSample]:
        law = LatentLaw.from_log_probs(backend, directions, law_of, most)
        state = law.langevin(seed=own, first_chain=first_chain, **options)
        # Another seed than the chain's: the decoder's draws must know nothing of how x came about.
        seed_of_draws = philox.fork(own, 0)
        return law.decode(state.x, state.kappa, law_of, seed=seed_of_draws, first_chain=first_chain), state

    groups, coarse = level(neighbourhoods.centres, neighbourhoods.log_probs(log_p.detach()), k, philox.fork(seed, 0))
    inside = neighbourhoods.within(log_p.detach(), groups)
    tokens, fine = level(points, inside, min(k, neighbourhoods.largest), philox.fork(seed, _FINE))
    return CoarseSample(tokens, groups, coarse, fine)
