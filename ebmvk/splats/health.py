"""The state of a splat store in a few numbers, for metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ebmvk.engine.api import Backend
from ebmvk.sphere.geometry import dist
from ebmvk.splats.recall import Splats
from ebmvk.splats.store import SplatStore

ASKED = 1024  # splats whose nearest neighbour is looked for in training: an exact mean would cost M^2 d
_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def health(store: SplatStore, angles: Tensor, *, step: int, since: int, steps_per_epoch: int) -> dict[str, Any]:
    """What a store is like at a training step, JSON-able.

    splats; active, those recalled or born since the step `since`, and dead, the others; mass, in contexts; background,
    nu; mass_quantiles, kappa_quantiles (0, 25, 50, 75, 100 %); age_epochs, the mean; nearest_angle, radians, the mean
    of `angles`, those of `nearest_angles` (0 where there is none); usage_gini, of the frequencies, 0 where all splats
    are used alike, near 1 where few have it all; frequency, their mean, contexts recalled by a splat since its birth;
    tokens_per_splat.
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
    """(unseen, rare): of contexts h (n, d) and the tokens (n,) that followed them, those whose token the splats looked
    up for them have never met, and those whose token they have met about once. By Good and Turing neither is small
    beside the other, unless the splats hold the contexts themselves."""
    ids = splats.find(h).ids
    met = torch.stack([splats.store.count_of(near, tokens) for near in ids.T]).sum(0)
    return int((met == 0).sum()), int(((met > 0) & (met < 1.5)).sum())


def gini(values: Tensor) -> float:
    """Gini coefficient of (n,) values >= 0: sum_i (2i - n - 1) x_(i) / (n sum x); 0 where all are 0."""
    n, total = len(values), float(values.sum())
    rank = 2 * torch.arange(1, n + 1, dtype=torch.float64) - n - 1
    return float((rank * values.double().sort().values).sum()) / (n * total) if total > 0 else 0.0


def quantiles(values: Tensor, shares: Sequence[float]) -> list[float]:
    """Of (n,) values, by order alone: torch.quantile refuses more than 2^24."""
    ordered = values.sort().values
    return [float(ordered[round(share * (len(ordered) - 1))]) for share in shares]


def spaced(n: int, most: int) -> Tensor:
    """(m,) int64: at most `most` of n numbers, at even distances."""
    return torch.arange(0, n, max(1, -(-n // most)))


def neighbours(mu: Tensor, backend: Backend, ask: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """ids and cosines (m, k) of the nearest other rows of mu (n, d), best first; fewer where there are not so many."""
    k = min(k, len(mu) - 1)
    if k < 1:
        return torch.zeros(len(ask), 0, dtype=torch.int64), torch.zeros(len(ask), 0)
    found = backend.topk(mu[ask].contiguous(), backend.points(mu.contiguous()), k + 1)
    ids, scores = found.ids.cpu(), found.scores.cpu()
    # Of equal points another may come first, so that a row's own place is looked for, and the last one goes without.
    own = (ids == ask[:, None]).int()
    own[:, -1] |= (own.sum(1) == 0).int()
    keep = own.argsort(dim=1, stable=True)[:, :k]
    return ids.gather(1, keep), scores.gather(1, keep)


def nearest_angles(store: SplatStore, backend: Backend, most: int) -> tuple[Tensor, Tensor]:
    """(asked (m,), radians (m,)) between some splats and the nearest other one; no angle of a single splat."""
    ask = spaced(store.n, most)
    ids, _ = neighbours(store.mu, backend, ask, 1)
    if not ids.shape[1]:
        return ask, torch.zeros(0, dtype=torch.float64)
    return ask, dist(store.mu[ask].double(), store.mu[ids[:, 0]].double())
