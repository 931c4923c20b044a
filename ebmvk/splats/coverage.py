"""How much of a text the splats explain, and the background that fits it best (model section 8).

phi, the order parameter, is the mean q_inf: the share of contexts that the uniform background
explains. Coverage is 1 - phi.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ebmvk.engine.api import Backend
from ebmvk.splats.recall import Splats
from ebmvk.splats.store import SplatStore

# alpha_inf stays within [LEAST, 1 - LEAST], so that neither splats nor background vanish
LEAST = 1e-4
_HALVINGS = 60


def posterior(store: SplatStore, h: Tensor, backend: Backend, k: int) -> tuple[Tensor, Tensor]:
    """(ids, q), both (B, K): the k splats of largest posterior weight for contexts h (B, d).

    1 - sum of q is q_inf, the background's share.
    """
    found = Splats.open(store, backend, k).find(h)
    background = torch.full((len(h), 1), math.log(store.background), dtype=torch.float64)
    return found.ids, torch.softmax(torch.cat((background, found.scores.double()), dim=1), dim=1)[:, 1:]


def fit_background(store: SplatStore, h: Tensor, backend: Backend, k: int) -> tuple[SplatStore, float]:
    """The store with the background nu that has the largest likelihood; and phi, the mean q_inf.

    h: (B, d), contexts held out of the splats. Let L_b be the density of context b under the splats
    alone, relative to the uniform density. EM's fixed point alpha = mean of alpha/(alpha + (1 -
    alpha) L_b) is where the mean of (1 - L_b)/(alpha + (1 - alpha) L_b) is 0. That mean falls as
    alpha rises, so bisection finds it; there phi equals alpha, unless alpha is at one of its
    bounds.
    """
    total = float(store.mass.sum())
    likelihood = (_log_mass(store, h, backend, k) - math.log(total)).clamp_max(600.0).exp()
    low, high = LEAST, 1 - LEAST
    for _ in range(_HALVINGS):
        alpha = (low + high) / 2
        if float(((1 - likelihood) / (alpha + (1 - alpha) * likelihood)).mean()) > 0:
            low = alpha
        else:
            high = alpha
    alpha = (low + high) / 2
    phi = float((alpha / (alpha + (1 - alpha) * likelihood)).mean())
    return replace(store, background=total * alpha / (1 - alpha)), phi


def _log_mass(store: SplatStore, h: Tensor, backend: Backend, k: int) -> Tensor:
    """log of sum_k n_k C_d(kappa_k)/C_d(0) e^{kappa_k mu_k.h} over the k nearest: (B,) float64."""
    return Splats.open(store, backend, k).find(h).scores.double().logsumexp(1)
