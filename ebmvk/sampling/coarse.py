"""`--sampler coarse`: a neighbourhood of tokens first, then a token of it (model sections 6 and 7).

The vocabulary is split into about sqrt(V) neighbourhoods g, each with a unit direction m_g. With
p(g|c), the sum of p(v|c) over its tokens, annealed Langevin chains and the Bayes decoder draw

    x ~ sum_g p(g|c) vMF(x; m_g, kappa),              g from p(g|x, c)       the coarse law
    y ~ sum_{v in g} p(v|g, c) vMF(y; mu_v, kappa'),  v from p(v|y, g, c)    the fine law of g

Each line is a latent law with its own Bayes decoder, so the identity of section 6 holds for each:
the decoded g or v has exactly its law, whatever the directions, concentration and candidates. The
first line gives g the law p(g|c). The second, whose chains share no random numbers with the first,
gives v the law p(v|g, c). Because each token is in one neighbourhood, v has the law p(g|c) p(v|g,
c) = p(v|c), for any split and any directions. Good directions make the states informative: K
candidates cover nearly all of p(g|c) and of p(v|g, c). Without neighbourhoods, K candidates of a
flat p(v|c) leave much of it to the uniform component.

Cost: two runs of chains instead of one, each with at most K candidates; k-means and the assignment
of V tokens once per model.
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
from ebmvk.sampling.annealed import LatentSample, annealed_langevin, from_settings
from ebmvk.sampling.interface import Drawn, Options, TokenPoints
from ebmvk.sampling.latent import LatentLaw
from ebmvk.sphere.geometry import projx

_COARSE, _FINE = 0, 1  # forks of the seed


@dataclass(frozen=True)
class Neighbourhoods:
    """A split of V tokens.

    group: (V,) int64, the neighbourhood of each token; centres: their G directions, kept by a
    backend; largest: number of tokens of the largest neighbourhood.
    """

    group: Tensor
    centres: Points
    largest: int

    @classmethod
    def of(cls, backend: Backend, embeddings: Tensor, count: int | None = None) -> Neighbourhoods:
        """Each token joins the nearest centre of a spherical k-means; directions are means.

        embeddings: (V, d) unit rows; count: number of neighbourhoods, sqrt(V) by default; empty
        ones are dropped. The same embeddings give the same split.
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
        """log p(g|c), (B, G), from log p(v|c), (B, V)."""
        p = log_p.new_zeros(len(log_p), self.centres.n, dtype=torch.float64)
        p.index_add_(1, self.group.to(log_p.device), log_p.double().exp())
        return p.log().log_softmax(1).to(log_p.dtype)

    def within(self, log_p: Tensor, chosen: Tensor) -> Tensor:
        """log p(v|g,c), (B, V), for the chosen groups (B,): -inf outside."""
        outside = self.group.to(log_p.device) != chosen.to(log_p.device)[:, None]
        return log_p.masked_fill(outside, -math.inf).log_softmax(1)


@dataclass(frozen=True)
class CoarseSample:
    """tokens and the groups they were drawn from, (B,) int64 each; states of both levels."""

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
    """A token of each of B contexts.

    log_p: (B, V), normalised; k: number of candidates of a level, at most; options: those of
    `annealed_langevin`, for both levels.

    Raises:
        As `annealed_langevin`.
    """

    def level(directions: Points, law_of: Tensor, most: int, own: int) -> tuple[Tensor, LatentSample]:
        law = LatentLaw.from_log_probs(backend, directions, law_of, most)
        state = annealed_langevin(law, seed=own, first_chain=first_chain, **options)
        # Not the chain's seed: the decoder's draws must be independent of how x was made.
        seed_of_draws = philox.fork(own, 0)
        return law.decode(state.x, state.kappa, law_of, seed=seed_of_draws, first_chain=first_chain), state

    groups, coarse = level(
        neighbourhoods.centres, neighbourhoods.log_probs(log_p.detach()), k, philox.fork(seed, _COARSE)
    )
    inside = neighbourhoods.within(log_p.detach(), groups)
    tokens, fine = level(points, inside, min(k, neighbourhoods.largest), philox.fork(seed, _FINE))
    return CoarseSample(tokens, groups, coarse, fine)


def tokens(space: TokenPoints, _: Tensor | None, log_p: Tensor, options: Options) -> Drawn:
    """A `TokenFunction`; `langevin_steps` is the number of steps of each level."""
    # The token's law is exact with any split, so one of slightly older points would do as well.
    split = space.once("coarse", lambda: Neighbourhoods.of(space.backend, space.mu))
    own = (space.backend, space.points, split, log_p, options.settings.knn_k)
    found = coarse_to_fine(*own, **from_settings(options))
    return Drawn(found.tokens, (found.coarse.diagnostics, found.fine.diagnostics))
