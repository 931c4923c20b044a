"""Test 8: draws tokens for a context. Each token is decoded from a state with the latent law."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ebmvk.certification.contexts import Contexts
from ebmvk.engine.api import Backend, Points
from ebmvk.sampling import annealed
from ebmvk.sampling.latent import LatentLaw
from ebmvk.sampling.schedule import LAST
from ebmvk.sphere.vmf import kappa_critical, log_c_ratio

CANDIDATES = 64
_AT_ONCE = 1 << 24  # most values of log p in one batch


@dataclass(frozen=True)
class Drawn:
    """n tokens, (n,). heat: (n, 2) from `_heat`, or None if a token needs more than one state."""

    tokens: Tensor
    heat: Tensor | None

    def __add__(self, other: Drawn) -> Drawn:
        heat = None if self.heat is None or other.heat is None else torch.cat((self.heat, other.heat))
        return Drawn(torch.cat((self.tokens, other.tokens)), heat)


def latent_law(backend: Backend, contexts: Contexts, points: Points, i: int) -> LatentLaw:
    """The latent law of context i, for one chain."""
    row = contexts.log_p[i : i + 1]
    if contexts.lexical is not None:
        ids = contexts.lexical[i : i + 1].topk(CANDIDATES, dim=1).indices
        return LatentLaw.with_candidates(backend, points, ids, row)
    if contexts.query is None or contexts.bias is None:
        return LatentLaw.from_log_probs(backend, points, row, CANDIDATES)
    query = contexts.query[i : i + 1]
    return LatentLaw.from_query(backend, points, contexts.bias, query, row, CANDIDATES, contexts.concentrations)


def outside(law: LatentLaw) -> Tensor:
    """(V,) bool, True for tokens that aren't candidates."""
    return torch.ones(law.points.n, dtype=torch.bool).index_fill(0, law.ids[0].cpu(), False)


def in_batches(some: Callable[[int, int], Drawn], contexts: Contexts, first: int, n: int) -> Drawn:
    """n draws, numbered from `first`, in batches that fit into memory.

    some: a function that draws; it takes the first draw's number and a count. A draw depends only
    on its number, so the batch size changes nothing.
    """
    batch = max(1, _AT_ONCE // contexts.log_p.shape[1])
    parts = [some(at, min(batch, first + n - at)) for at in range(first, first + n, batch)]
    return functools.reduce(operator.add, parts)


def by_langevin(law: LatentLaw, contexts: Contexts, i: int, first: int, n: int, steps: int, seed: int) -> Drawn:
    """n tokens drawn for context i, decoded from annealed Langevin chains."""

    def some(at: int, rows: int) -> Drawn:
        many, log_p = _repeated(law, contexts.log_p[i], rows)
        sample = annealed.annealed_langevin(many, seed=seed, steps=steps, first_chain=at)
        return _decoded(many, contexts.mu, sample.x, sample.kappa, log_p, seed, at)

    return in_batches(some, contexts, first, n)


def exactly(law: LatentLaw, contexts: Contexts, i: int, n: int, seed: int) -> Drawn:
    """n tokens drawn for context i, decoded from exact states at the chains' last concentration."""
    level = float(LAST * kappa_critical(law.points.d, law.entropy))

    def some(first: int, rows: int) -> Drawn:
        many, log_p = _repeated(law, contexts.log_p[i], rows)
        x = many.sample_exact(level, contexts.mu, seed=seed, first_chain=first)
        return _decoded(many, contexts.mu, x, many.concentration(level), log_p, seed, first)

    return in_batches(some, contexts, 0, n)


def _repeated(law: LatentLaw, log_p: Tensor, rows: int) -> tuple[LatentLaw, Tensor]:
    """Repeats the law of one chain for `rows` chains, and log p (V,) as (rows, V)."""
    each = (tensor.expand(rows, *tensor.shape[1:]).contiguous() for tensor in (law.ids, law.logp, law.log_rest))
    return LatentLaw(law.backend, law.points, *each), log_p.expand(rows, -1)


def _decoded(law: LatentLaw, mu: Tensor, x: Tensor, kappa: Tensor, log_p: Tensor, seed: int, first: int) -> Drawn:
    tokens = law.decode(x.cpu(), kappa, log_p, seed=seed, first_chain=first)
    return Drawn(tokens, _heat(law, mu, x.cpu(), kappa))


def _heat(law: LatentLaw, mu: Tensor, x: Tensor, kappa: Tensor) -> Tensor:
    """(n, 2): a and b of each chain; E a = (T - 1) E b if states have the temperature T.

    The Laplacian of the density has integral 0. So for any uniform rest,
    E sum_j rho_j (kappa^2 (1 - t_j^2) - (d - 1) kappa t_j) = 0, with t_j = mu_j.x and the
    responsibilities rho_j of the candidates. All chains belong to one context.
    """
    t = x.double() @ mu[law.ids[0]].double().T
    level = kappa.double()[:, None]
    log_terms = law.logp.double() + log_c_ratio(level, law.points.d) + level * t
    rho = torch.cat((log_terms, law.log_rest.double()[:, None]), dim=1).softmax(1)[:, :-1]
    slope = (law.points.d - 1) * level * t
    return torch.stack(((rho * (level.square() * (1 - t * t) - slope)).sum(1), (rho * slope).sum(1)), dim=1)
