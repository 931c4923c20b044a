"""The state of a splat store in a few numbers, for metrics and the diagnosis.

How many splats are in use, how heavy and sharp they are, how near one another, and how much of a
text is new to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ebmvk.engine.api import Backend
from ebmvk.sphere.geometry import dist
from ebmvk.splats.recall import Splats
from ebmvk.splats.store import SplatStore

# Splats whose nearest neighbour is looked up in training; an exact mean would cost M^2 d
ASKED = 1024
_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def health(store: SplatStore, angles: Tensor, *, step: int, since: int, steps_per_epoch: int) -> dict[str, Any]:
    """A summary in JSON values of a store at a training step.

    splats: their number; active: those recalled or born since the step `since`; dead: the others.
    mass: the mass of all splats, in contexts; background: nu.
    mass_quantiles, kappa_quantiles: at 0, 25, 50, 75 and 100 %.
    age_epochs: mean age. nearest_angle: mean of `angles` (see `nearest_angles`), in radians; 0
    without splats.
    usage_gini: the Gini coefficient of the frequencies; 0 if all splats are used equally, near 1 if
    a few get all the use.
    frequency: mean number of contexts that a splat was recalled for since its birth.
    tokens_per_splat: mean number of different tokens.
    """
    dead = int((store.last_use < since).sum())
    return {
        "splats": store.n,
        "active": store.n - dead,
        "dead": dead,
        "mass": float(store.mass.sum()),
        "background": store.background,
        "mass_quantiles": quantiles(store.mass, _QUANTILES),
        "kappa_quantiles": quantiles(store.kappa.double(), _QUANTILES),
        "age_epochs": float((step - store.birth).double().mean()) / steps_per_epoch,
        "nearest_angle": float(angles.mean()) if len(angles) else 0.0,
        "usage_gini": gini(store.frequency),
        "frequency": float(store.frequency.mean()),
        "tokens_per_splat": len(store.count) / store.n,
    }


def novelty(splats: Splats, h: Tensor, tokens: Tensor) -> tuple[int, int]:
    """(unseen, rare): how many contexts have a next token that the splats never met, or met about
    once.

    h: (n, d); tokens: (n,), the token after each. By Good and Turing, in a new text neither
    number is small compared with the other. `unseen` is small only if the splats hold these very
    contexts.
    """
    ids = splats.find(h).ids
    met = torch.stack([splats.store.count_of(near, tokens) for near in ids.T]).sum(0)
    return int((met == 0).sum()), int(((met > 0) & (met < 1.5)).sum())


def gini(values: Tensor) -> float:
    """The Gini coefficient of (n,) values >= 0: sum_i (2i - n - 1) x_(i) / (n sum x), or 0."""
    n, total = len(values), float(values.sum())
    rank = 2 * torch.arange(1, n + 1, dtype=torch.float64) - n - 1
    return float((rank * values.double().sort().values).sum()) / (n * total) if total > 0 else 0.0


def quantiles(values: Tensor, shares: Sequence[float]) -> list[float]:
    """Quantiles of (n,) values by sorting, because torch.quantile refuses more than 2^24."""
    ordered = values.sort().values
    return [float(ordered[round(share * (len(ordered) - 1))]) for share in shares]


def spaced(n: int, most: int) -> Tensor:
    """At most `most` evenly spaced numbers from 0 to n - 1: (m,) int64."""
    return torch.arange(0, n, max(1, -(-n // most)))


def neighbours(mu: Tensor, backend: Backend, ask: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(ids, cosines), (m, k): the nearest other rows of mu (n, d) for rows `ask` (m,), best first.

    There are fewer than k columns if mu has too few rows.
    """
    k = min(k, len(mu) - 1)
    if k < 1:
        return torch.zeros(len(ask), 0, dtype=torch.int64), torch.zeros(len(ask), 0)
    found = backend.topk(mu[ask].contiguous(), backend.points(mu.contiguous()), k + 1)
    ids, scores = found.ids.cpu(), found.scores.cpu()
    # If points are equal, another may come before the row itself. So look for the row's own place;
    # if it isn't there, drop the last neighbour.
    own = (ids == ask[:, None]).int()
    own[:, -1] |= (own.sum(1) == 0).int()
    keep = own.argsort(dim=1, stable=True)[:, :k]
    return ids.gather(1, keep), scores.gather(1, keep)


def nearest_angles(store: SplatStore, backend: Backend, most: int) -> tuple[Tensor, Tensor]:
    """(asked (m,), radians (m,)): angles between some splats and their nearest neighbour.

    A single splat has no neighbour, so no angle.
    """
    ask = spaced(store.n, most)
    ids, _ = neighbours(store.mu, backend, ask, 1)
    if not ids.shape[1]:
        return ask, torch.zeros(0, dtype=torch.float64)
    return ask, dist(store.mu[ask].double(), store.mu[ids[:, 0]].double())
