"""Static splats from training states: spherical k-means from coarse to fine (model section 8).

States that share a place and the token that followed make splats of a purer token law: the code length of section 8
counts both.
Exact assignment of n states to M centroids costs n M d; two levels of about sqrt(M) cells each cost n sqrt(M) d.
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
_SAMPLE = 256  # states per coarse centroid that place it


def cluster(
    states: Tensor,
    tokens: Tensor,
    splats: int,
    backend: Backend,
    seed: int,
    marks: Tensor | None = None,
    rounds: int = 4,
) -> Tensor:
    """Owner (n,) int64 of each state (n, d), of any floating dtype, one of at most `splats`; deterministic by seed.

    marks: (V, m) rows of one length, put beside the state of the token that followed it, so that splats are of one mind
    about what follows as well as of one place; 0 where there are none.

    Raises:
        DataError: fewer states than splats.
    """
    check_states(states, tokens)
    if len(states) < splats:
        raise DataError(
            f"the text gives {len(states):,} states, fewer than --splats {splats:,}", hint="ask for fewer splats"
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
    """What `cluster` compares of some states: rows (n, d) or, beside the marks of their tokens, (n, d + m)."""
    own = states[which].float()
    return own if marks is None else torch.cat((own, marks[tokens[which]]), dim=1)


def _shares(sizes: Tensor, splats: int) -> list[int]:
    """How many splats each cell gets: in proportion to its size, at least one where there is any state, `splats` in
    all at most."""
    share = torch.minimum((sizes * splats / sizes.sum()).floor().long().clamp_min(1), sizes)
    over = int(share.sum()) - splats  # the cells raised to one
    if over > 0:
        share[share.argmax()] -= over
    return share.tolist()


def _lloyd(states: Tensor, k: int, backend: Backend, random: torch.Generator, rounds: int) -> Tensor:
    """k centroids (k, d) of states (n, d) float32, n >= k: spherical k-means from k of the states."""
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
