"""Consolidation of splats by description length (model section 8), at one concentration kappa for all.

Coding the contexts of a splat and their tokens costs -n log n_k for the splat, entropies for tokens, and -n psi(r) for
places, psi(r) = log C_d(kappa) + kappa r. Merging i and j then costs

    dL = kappa (|R_i| + |R_j| - |R_i + R_j|) - sum over v in both of [f(n_i(v) + n_j(v)) - f(n_i(v)) - f(n_j(v))],

f(n) = n log n: what the mixture and KL terms of the general formula come to, with n_ij = n_i + n_j and one kappa.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ebmvk.engine.api import Backend
from ebmvk.splats.store import SplatStore

Cost = Callable[[SplatStore, Tensor, Tensor, Tensor], Tensor]
NEIGHBOURS = 8  # partners looked at for each splat


def merge_cost(store: SplatStore, i: Tensor, j: Tensor, cosine: Tensor) -> Tensor:
    """dL of merging splats i with j, both (P,) and different, cosine mu_i.mu_j (P,): (P,) float64, nats; negative where
    it saves."""
    a, b = store.length[i], store.length[j]
    together = (a * a + b * b + 2 * a * b * cosine.double()).clamp_min(0).sqrt()
    return store.kappa_max * (a + b - together) - _shared(store, i, j)


def _shared(store: SplatStore, i: Tensor, j: Tensor) -> Tensor:
    """Nats that tokens in both splats save: (P,)."""
    length = store.count_start[i + 1] - store.count_start[i]
    pair = torch.repeat_interleave(torch.arange(len(i)), length)
    place = torch.arange(len(pair)) - (length.cumsum(0) - length)[pair] + store.count_start[i][pair]
    mine = store.count[place]
    theirs = store.count_of(j[pair], store.count_token[place])
    both = mine + theirs
    saved = torch.special.entr(mine) + torch.special.entr(theirs) - torch.special.entr(both)
    return torch.zeros(len(i), dtype=torch.float64).index_add_(0, pair, saved)


def consolidate(store: SplatStore, target: int, backend: Backend, cost: Cost = merge_cost) -> SplatStore:
    """At most `target` splats: those whose merging costs least are merged in pairs, again where pairs don't suffice."""
    while store.n > target:
        store = store.merged(_pairs(store, store.n - target, backend, cost))
    return store


def _pairs(store: SplatStore, most: int, backend: Backend, cost: Cost) -> Tensor:
    """Owners (M,) after merging up to `most` disjoint pairs of near splats, the cheapest first; at least one pair."""
    found = backend.topk(store.mu, backend.points(store.mu), min(NEIGHBOURS + 1, store.n))
    near = found.ids.cpu()
    first = torch.arange(store.n)[:, None].expand_as(near)
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
