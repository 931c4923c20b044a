"""The state of a splat store in a few numbers, for metrics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ebmvk.engine.api import Backend
from ebmvk.sphere.geometry import dist
from ebmvk.splats.recall import Splats
from ebmvk.splats.store import SplatStore

_ASKED = 1024  # splats whose nearest neighbour is looked for: an exact mean would cost M^2 d
_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def health(store: SplatStore, backend: Backend, *, step: int, since: int, steps_per_epoch: int) -> dict[str, Any]:
    """What a store is like at a training step, JSON-able.

    splats; active, those recalled or born since the step `since`, and dead, the others; mass, in contexts; background,
    nu; mass_quantiles, kappa_quantiles (0, 25, 50, 75, 100 %); age_epochs, the mean; nearest_angle, radians, the mean
    angle between a splat and its nearest neighbour, over up to 1,024 splats (0 where there is only one); usage_gini, of
    the frequencies, 0 where all splats are used alike, near 1 where few have it all; frequency, their mean, contexts
    recalled by a splat since its birth; tokens_per_splat.
    """
    dead = int((store.last_use < since).sum())
    return {
        "splats": store.n,
        "active": store.n - dead,
        "dead": dead,
        "mass": float(store.mass.sum()),
        "background": store.background,
        "mass_quantiles": _quantiles(store.mass),
        "kappa_quantiles": _quantiles(store.kappa.double()),
        "age_epochs": float((step - store.birth).double().mean()) / steps_per_epoch,
        "nearest_angle": _nearest_angle(store, backend),
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


def _quantiles(values: Tensor) -> list[float]:
    """By order alone: torch.quantile refuses more than 2^24 values."""
    ordered = values.sort().values
    return [float(ordered[round(share * (len(ordered) - 1))]) for share in _QUANTILES]


def _nearest_angle(store: SplatStore, backend: Backend) -> float:
    if store.n < 2:
        return 0.0
    ask = torch.arange(0, store.n, -(-store.n // _ASKED))
    ids = backend.topk(store.mu[ask], backend.points(store.mu), 2).ids.cpu()
    other = torch.where(ids[:, 0] == ask, ids[:, 1], ids[:, 0])
    return float(dist(store.mu[ask].double(), store.mu[other].double()).mean())
