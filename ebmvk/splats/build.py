"""Clusters training states into static splats (model section 8).

The method is spherical k-means, from coarse to fine.

States are compared by place and by the token that followed. The code length of section 8 counts
both, and splats get purer token laws this way. Assigning n states to M centroids exactly costs n M
d; two levels of about sqrt(M) cells each cost n sqrt(M) d.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ebmvk.engine.api import Backend
from ebmvk.errors import DataError
from ebmvk.splats.store import check_states

_ROWS = 8192  # states assigned at once
_SAMPLE = 256  # states per coarse centroid, to place it


def cluster(
    states: Tensor,
    tokens: Tensor,
    splats: int,
    backend: Backend,
    seed: int,
    marks: Tensor | None = None,
    rounds: int = 4,
) -> Tensor:
    """The cluster of each state: (n,) int64, with at most `splats` different values.

    The same seed gives the same result.

    Args:
        states: (n, d), of any floating dtype.
        tokens: (n,) int64, the token that followed each state.
        marks: (V, m) rows of equal length. Each state is extended by the row of its token, so that
            a splat's states agree on what follows as well as on the place. None: compare places
            only.
        rounds: of k-means at each level.

    Raises:
        DataError: fewer states than splats.
    """
    check_states(states, tokens)
    if len(states) < splats:
        raise DataError(
            f"the text gives {len(states):,} states, fewer than --splats {splats:,}",
            hint="ask for fewer splats",
        )

    rows = partial(marked, states, tokens, marks)
    random = torch.Generator().manual_seed(seed)
    cells = max(1, math.isqrt(splats))
    sample = rows(torch.randperm(len(states), generator=random)[: _SAMPLE * cells])
    centroids = _lloyd(sample, cells, backend, random, rounds)
    coarse = torch.cat(
        [_assign(rows(part), centroids, backend) for part in torch.split(torch.arange(len(states)), _ROWS)]
    )
    order = coarse.argsort(stable=True)
    sizes = torch.bincount(coarse, minlength=cells)
    owner, first = torch.empty(len(states), dtype=torch.int64), 0
    for members, share in zip(torch.split(order, sizes.tolist()), _shares(sizes, splats), strict=True):
        if len(members):
            own = rows(members)
            owner[members] = first + _assign(own, _lloyd(own, share, backend, random, rounds), backend)
            first += share
    return owner


def marked(states: Tensor, tokens: Tensor, marks: Tensor | None, which: Tensor) -> Tensor:
    """The rows that `cluster` compares: (n, d), or (n, d + m) with the marks of tokens."""
    own = states[which].float()
    return own if marks is None else torch.cat((own, marks[tokens[which]]), dim=1)


def _shares(sizes: Tensor, splats: int) -> list[int]:
    """The number of splats for each cell, in proportion to its size.

    A cell with any state gets at least one; the sum is at most `splats`.
    """
    share = torch.minimum((sizes * splats / sizes.sum()).floor().long().clamp_min(1), sizes)
    over = int(share.sum()) - splats  # because cells were raised to one
    if over > 0:
        share[share.argmax()] -= over
    return share.tolist()


def _lloyd(states: Tensor, k: int, backend: Backend, random: torch.Generator, rounds: int) -> Tensor:
    """k centroids (k, d) of states (n, d) float32, n >= k, by spherical k-means."""
    centroids = states[torch.randperm(len(states), generator=random)[:k]]
    for _ in range(rounds):
        owner = _assign(states, centroids, backend)
        total = torch.zeros_like(centroids).index_add_(0, owner, states)
        length = torch.linalg.vector_norm(total, dim=1, keepdim=True)
        centroids = torch.where(length > 1e-6, total / length.clamp_min(1e-6), centroids)
    return centroids


def _assign(states: Tensor, centroids: Tensor, backend: Backend) -> Tensor:
    """The nearest centroid of each state: (n,) int64."""
    points = backend.points(normalize(centroids, dim=1))
    parts = torch.split(states, _ROWS)
    return torch.cat([backend.topk(part.contiguous(), points, 1).ids[:, 0].cpu() for part in parts])
