"""Coverage and background: compared with scipy's maximum and with mixtures of known share."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from ebmvk.engine import select
from ebmvk.engine.reference import Reference
from ebmvk.sphere.geometry import projx
from ebmvk.sphere.vmf import sample_vmf
from ebmvk.splats.coverage import fit_background, posterior
from ebmvk.splats.recall import Splats
from ebmvk.splats.store import SplatStore

D, V, KAPPA, SPLATS = 24, 10, 60.0, 12


def _centres() -> Tensor:
    return projx(torch.randn(SPLATS, D, generator=torch.Generator().manual_seed(0)))


def _sampled(n: int, seed: int) -> Tensor:
    """n states from a mixture of vMF laws around the centres."""
    g = torch.Generator().manual_seed(seed)
    return sample_vmf(_centres()[torch.randint(0, SPLATS, (n,), generator=g)], KAPPA, generator=g)


def _uniform(n: int, seed: int) -> Tensor:
    return projx(torch.randn(n, D, generator=torch.Generator().manual_seed(seed)))


def _store() -> SplatStore:
    states = _sampled(3000, seed=1)
    owner = (states @ _centres().T).argmax(1)
    tokens = torch.zeros(len(states), dtype=torch.int64)
    return SplatStore.gather(states, tokens, owner, vocab_size=V, beta=0.1, kappa=(KAPPA, KAPPA))


@pytest.mark.parametrize("uniform", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_em_recovers_the_share_of_the_background(uniform: float, device: str) -> None:
    """With a known share of uniform states, alpha_inf is that share to 3 % of 4,000 states.

    It is also where the likelihood, which has a single maximum, is largest.
    """
    other, backend = int(4000 * uniform), select(device)
    states = torch.cat((_sampled(4000 - other, seed=2), _uniform(other, seed=3)))
    store, phi = fit_background(_store(), states, backend, SPLATS)
    mass = float(store.mass.sum())
    alpha = store.background / (store.background + mass)
    assert alpha == pytest.approx(uniform, abs=0.03)
    scores = Splats.open(store, backend, SPLATS).find(states).scores.double()
    ratio = scores.exp().sum(1) / mass
    best = minimize_scalar(lambda a: -float((a + (1 - a) * ratio).log().mean()), bounds=(1e-6, 1), method="bounded")
    assert alpha == pytest.approx(best.x, abs=2e-5)  # the tolerance of the search
    # On the fold that nu was fitted on, the order parameter equals alpha_inf.
    assert phi == pytest.approx(alpha, abs=1e-6)
    assert _coverage(store, states) == pytest.approx(1 - alpha, abs=1e-5)


def _coverage(store: SplatStore, states: Tensor) -> float:
    return float(posterior(store, states, Reference(), SPLATS)[1].sum(1).mean())


def test_only_contexts_far_from_splats_are_background() -> None:
    far, phi = fit_background(_store(), -_centres(), Reference(), SPLATS)
    assert phi > 0.99
    assert _coverage(far, -_centres()) < 0.01
    near, phi = fit_background(_store(), _centres(), Reference(), SPLATS)
    assert phi < 0.01
    assert _coverage(near, _centres()) > 0.99


def test_more_background_covers_less() -> None:
    states = torch.cat((_sampled(200, seed=2), _uniform(200, seed=3)))
    levels = [_coverage(replace(_store(), background=nu), states) for nu in (1e-30, 1.0, 1e4, 1e6, 1e12)]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] > 0.9
    assert levels[-1] < 0.2
