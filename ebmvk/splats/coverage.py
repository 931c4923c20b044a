"""How much of a text memory covers: the order parameter and the mass of the background (model sections 3 and 8).

The density of a context relative to the uniform one is alpha_inf + (1 - alpha_inf) r(h), with r(h) what the splats say
of it; phi = mean q_inf is the share of a held-out fold that they leave to the background, coverage is 1 - phi.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ebmvk.splats.recall import Members, Splats

_ROWS = 8192  # contexts looked up at once
_EDGE = 1e-6  # of alpha_inf: a background of no mass, or of all of it, has no logarithm


def log_ratio(splats: Splats, states: Tensor, members: Members | None = None) -> Tensor:
    """log r(h) = log sum_k n_k/N C_d(kappa_k)/C_d(0) e^{kappa_k mu_k.h} over the k found: (n,) float64.

    states: (n, d) unit rows, n >= 1, of any floating dtype. members: where they are in the splats, to be left out.
    """
    total = math.log(float(splats.store.mass.sum()) - (members is not None))
    scores = []
    for at in range(0, len(states), _ROWS):
        piece = slice(at, at + _ROWS)
        scores.append(splats.find(states[piece].float().cpu().contiguous(), members and members.rows(piece)).scores)
    return torch.cat([found.double().logsumexp(1) - total for found in scores])


def fit_background(splats: Splats, states: Tensor, members: Members | None = None, rounds: int = 10_000) -> float:
    """nu of largest likelihood of held-out states (n, d), by EM: alpha_inf = nu/(N + nu) becomes the mean of q_inf."""
    log_r, logit = log_ratio(splats, states, members), 0.0
    edge = math.log(1 / _EDGE - 1)
    for _ in range(rounds):
        share = float(torch.sigmoid(logit - log_r).mean())
        before, logit = logit, min(edge, max(-edge, math.log(max(share, 1e-300)) - math.log(max(1 - share, 1e-300))))
        if abs(logit - before) < 1e-9:
            break
    return float(splats.store.mass.sum()) * math.exp(logit)


def coverage(splats: Splats, states: Tensor, members: Members | None = None) -> float:
    """1 - phi, phi = mean q_inf over states (n, d), with the background that the store has."""
    store = splats.store
    logit = math.log(store.background / float(store.mass.sum()))
    return float(1 - torch.sigmoid(logit - log_ratio(splats, states, members)).mean())
