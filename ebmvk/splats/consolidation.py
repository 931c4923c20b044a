"""Merges the splats whose merging costs least in description length (model section 8).

A code for the contexts of a splat and their tokens has length -n log n_k for the splat, the entropy
of the tokens, and -n psi(r) for places, psi(r) = max over the allowed kappa_hat of log
C_d(kappa_hat) + kappa_hat r, with r = |R|/n. Merging i and j costs

    dL = n_i psi(r_i) + n_j psi(r_j) - n_ij psi(r_ij) - sum over v in both of [f(n_ij(v)) -
    f(n_i(v)) - f(n_j(v))],

with f(n) = n log n and n_ij = n_i + n_j; the mixture and KL terms of the general formula reduce to
this. If all splats have one kappa, the terms of place reduce to kappa (|R_i| + |R_j| - |R_i +
R_j|).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ebmvk.engine.api import Backend
from ebmvk.sphere.vmf import inverse_mean_cosine, log_c_ratio, mean_cosine
from ebmvk.splats.store import SplatStore

Cost = Callable[[SplatStore, Tensor, Tensor, Tensor], Tensor]
NEIGHBOURS = 8  # candidate partners for each splat
QUERIES = 1024  # partners are looked for at least for this many splats


def merge_cost(store: SplatStore, i: Tensor, j: Tensor, cosine: Tensor) -> Tensor:
    """The cost dL of merging splats i with j: (P,) float64, nats; negative if merging saves.

    i, j: (P,) int64, i != j. cosine: (P,), mu_i.mu_j.
    """
    a, b = store.length[i], store.length[j]
    together = (a * a + b * b + 2 * a * b * cosine.double()).clamp_min(0).sqrt()
    if store.kappa_min == store.kappa_max:
        places = store.kappa_max * (a + b - together)
    else:
        own = _places(store, store.mass, store.length)
        places = own[i] + own[j] - _places(store, store.mass[i] + store.mass[j], together)
    return places - _shared(store, i, j)


def _places(store: SplatStore, mass: Tensor, length: Tensor) -> Tensor:
    """n psi(|R|/n) - n log C_d(0), of any shape, float64. Merging doesn't change the sum of the
    second term."""
    r = (length / mass).clamp(0, 1)
    # For a longer r, kappa_hat is kappa_max
    ceiling = mean_cosine(torch.tensor(store.kappa_max, dtype=r.dtype), store.d)
    # psi is flat at its maximum, so an error of kappa enters squared.
    kappa = inverse_mean_cosine(torch.minimum(r, ceiling), store.d).clamp(store.kappa_min, store.kappa_max)
    return mass * log_c_ratio(kappa, store.d) + kappa * length


def _shared(store: SplatStore, i: Tensor, j: Tensor) -> Tensor:
    """The nats saved by tokens that occur in both splats: (P,)."""
    length = store.count_start[i + 1] - store.count_start[i]
    pair = torch.repeat_interleave(torch.arange(len(i)), length)
    place = torch.arange(len(pair)) - (length.cumsum(0) - length)[pair] + store.count_start[i][pair]
    own = store.count[place]
    other = store.count_of(j[pair], store.count_token[place])
    both = own + other
    saved = torch.special.entr(own) + torch.special.entr(other) - torch.special.entr(both)
    return torch.zeros(len(i), dtype=torch.float64).index_add_(0, pair, saved)


def consolidate(store: SplatStore, target: int, backend: Backend, cost: Cost = merge_cost) -> SplatStore:
    """Merge pairs, the cheapest first, until at most `target` splats are left."""
    while store.n > target:
        store = store.merged(_pairs(store, store.n - target, backend, cost))
    return store


def _pairs(store: SplatStore, most: int, backend: Backend, cost: Cost) -> Tensor:
    """Owners (M,) after merging up to `most` disjoint pairs of near splats, the cheapest first.

    Merges at least one pair.

    Partners are looked for only for the lightest splats, four times the number that must be merged.
    Merging heavy splats costs more, and each search takes time.
    """
    ask = torch.arange(store.n)
    if max(4 * most, QUERIES) < store.n:
        ask = store.mass.argsort(stable=True)[: max(4 * most, QUERIES)].sort().values
    found = backend.topk(store.mu[ask], backend.points(store.mu), min(NEIGHBOURS + 1, store.n))
    near = found.ids.cpu()
    first = ask[:, None].expand_as(near)
    use = first != near
    i, j = first[use], near[use]
    order = cost(store, i, j, found.scores.cpu()[use]).argsort(stable=True)
    owner = torch.arange(store.n)
    free = [True] * store.n
    for a, b in zip(i[order].tolist(), j[order].tolist(), strict=True):
        if free[a] and free[b]:
            free[a] = free[b] = False
            owner[b] = a
            most -= 1
            if not most:
                break
    return owner
