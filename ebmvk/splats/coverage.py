"""How much of a text's contexts the splats explain: the order parameter phi = mean q_inf (model section 8)."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ebmvk.engine.api import Backend
from ebmvk.splats.recall import Splats
from ebmvk.splats.store import SplatStore

LEAST = 1e-4  # of alpha_inf and of 1 - alpha_inf: neither the splats nor the background may be given up
_HALVINGS = 60


def posterior(store: SplatStore, h: Tensor, backend: Backend, k: int) -> tuple[Tensor, Tensor]:
    """(ids, q) (B, K) of the k nearest splats of contexts h (B, d); what q lacks of 1 is q_inf, the background's."""
    found = Splats.open(store, backend, k).find(h)
    background = torch.full((len(h), 1), math.log(store.background), dtype=torch.float64)
    return found.ids, torch.softmax(torch.cat((background, found.scores.double()), dim=1), dim=1)[:, 1:]


def fit_background(store: SplatStore, h: Tensor, backend: Backend, k: int) -> tuple[SplatStore, float]:
    """The store with the nu that makes held-out contexts h (B, d) likeliest, and phi, their mean q_inf under it.

    With L_b the density of context b under the splats alone, relative to the uniform one, EM's fixed point alpha =
    mean of alpha/(alpha + (1 - alpha) L_b) is where the mean of (1 - L_b)/(alpha + (1 - alpha) L_b) is 0. It falls as
    alpha rises, so halving finds it, and phi is then alpha itself, unless that is outside its bounds.
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
