"""The central identity (model section 6): a token decoded from x alone, x from the latent law, has
the law p(v|c).

Laws are Zipf laws over a vocabulary in random order. Their exponents, from flat to peaked, span the
entropies of a language model's contexts; the mass outside the K = 64 candidates lies between 0 and
75 %. The decoder sees x only. Cases with chains also check that x tells much about its component:
otherwise a wrong law of x wouldn't show.
"""

from __future__ import annotations

import math

import pytest
import torch
from laws_support import ALPHA
from torch import Tensor

from ebmvk.certification import statistics
from ebmvk.engine.api import Backend
from ebmvk.engine.reference import Reference
from ebmvk.sampling.annealed import annealed_langevin
from ebmvk.sampling.latent import LatentLaw
from ebmvk.sphere.geometry import projx

EXPONENTS = (0.0, 0.7, 1.0, 1.3, 1.7, 2.5, 4.0)
FEW = [
    exponent if exponent in (0.0, 1.3, 4.0) else pytest.param(exponent, marks=pytest.mark.slow)
    for exponent in EXPONENTS
]
"""The default run has chains on the flattest law, a middle one and the most peaked one; draws that
are exact have all of them."""
TV_BOUND = 0.05  # what 25,000 draws from laws of 512 tokens can exclude
K = 64


def _context(d: int, vocabulary: int, exponent: float, seed: int) -> tuple[Tensor, Tensor]:
    """(embeddings (V, d), log p (V,))."""
    g = torch.Generator().manual_seed(seed)
    mu = projx(torch.randn(vocabulary, d, generator=g))
    zipf = -exponent * torch.arange(1, vocabulary + 1).log()
    return mu, torch.log_softmax(zipf[torch.randperm(vocabulary, generator=g)], 0)


def _law(backend: Backend, mu: Tensor, log_p: Tensor, n: int) -> tuple[LatentLaw, Tensor]:
    rows = log_p.expand(n, -1).contiguous()
    return LatentLaw.from_log_probs(backend, backend.points(mu), rows, K), rows


def _information(law: LatentLaw, x: Tensor, kappa: Tensor | float) -> float:
    """Mutual information of x and its component, divided by the component's entropy: from 0,
    nothing, to 1, all."""
    now = law.energy_score(x, kappa)
    rho = torch.cat((now.responsibilities, now.background[:, None]), dim=1).double()
    left = -(rho * rho.clamp_min(1e-300).log()).sum(1).mean()
    return 1 - float(left / law.entropy[0])


def _assert_chi_squared(tokens: Tensor, p: Tensor) -> None:
    assert statistics.counts_test(torch.bincount(tokens, minlength=len(p)), p).p > ALPHA


def _assert_near(tokens: Tensor, p: Tensor) -> None:
    """chi^2 finds no difference, and the total variation is at most what is certified (99 %)."""
    found = statistics.fit(torch.bincount(tokens, minlength=len(p)), p)
    assert found.p > ALPHA
    assert found.distance() <= max(TV_BOUND, found.excluded(ALPHA))


@pytest.mark.parametrize("kappa", [5.0, 25.0, 200.0])
@pytest.mark.parametrize("exponent", EXPONENTS)
def test_exact_sampling_then_decoding(exponent: float, kappa: float) -> None:
    """n = 10,000 per case, d = 64; exact at every kappa, far above kappa_c (20 to 28 here) too."""
    mu, log_p = _context(64, 256, exponent, 1)
    law, rows = _law(Reference(), mu, log_p, 10_000)
    x = law.sample_exact(kappa, mu, seed=5)
    _assert_chi_squared(law.decode(x, kappa, rows, seed=5), log_p.exp())


@pytest.mark.parametrize("exponent", FEW)
def test_annealed_langevin_then_decoding(exponent: float, cpu: Backend) -> None:
    """n = 20,000 chains per context, 200 steps, d = 64."""
    mu, log_p = _context(64, 256, exponent, 0)
    law, rows = _law(cpu, mu, log_p, 20_000)
    sample = annealed_langevin(law, seed=3)
    _assert_near(law.decode(sample.x, sample.kappa, rows, seed=3), log_p.exp())
    assert _information(law, sample.x, sample.kappa) > 0.2
    assert float(sample.diagnostics.tangency.max()) < 1e-5
    # Equipartition through all levels: they are close enough that the velocities never heat up by
    # more than 1 %.
    assert abs(float(sample.diagnostics.kinetic_temperature.mean()) - 1) < 0.01


def test_annealed_langevin_then_decoding_in_640_dimensions(cpu: Backend) -> None:
    """n = 3,000 chains, 200 steps, d = 640: the default width."""
    mu, log_p = _context(640, 256, 1.7, 0)
    law, rows = _law(cpu, mu, log_p, 3_000)
    sample = annealed_langevin(law, seed=3)
    _assert_near(law.decode(sample.x, sample.kappa, rows, seed=3), log_p.exp())
    assert _information(law, sample.x, sample.kappa) > 0.5


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("exponent", EXPONENTS)
def test_annealed_langevin_in_640_dimensions_long(exponent: float, cpu: Backend) -> None:
    """n = 20,000 chains per context at d = 640."""
    mu, log_p = _context(640, 1000, exponent, 2)
    law, rows = _law(cpu, mu, log_p, 20_000)
    sample = annealed_langevin(law, seed=3)
    _assert_near(law.decode(sample.x, sample.kappa, rows, seed=3), log_p.exp())


def test_a_jump_of_concentration_is_caught(cpu: Backend) -> None:
    """From uniform states straight to 5.5 kappa_c, chains don't find the weights."""
    mu, log_p = _context(64, 256, 1.0, 0)
    law, rows = _law(cpu, mu, log_p, 4_000)
    sample = annealed_langevin(law, seed=3, levels=1, kappa=110.0)
    with pytest.raises(AssertionError):
        _assert_near(law.decode(sample.x, sample.kappa, rows, seed=3), log_p.exp())


def test_tokens_do_not_depend_on_the_batch(backend: Backend) -> None:
    """Two halves equal the whole, bit for bit."""
    mu, log_p = _context(16, 40, 1.0, 3)
    whole, rows = _law(backend, mu, log_p, 6)
    half, half_rows = _law(backend, mu, log_p, 3)
    options = {"seed": 9, "levels": 4, "steps": 8}
    together = annealed_langevin(whole, **options)
    tokens = whole.decode(together.x, together.kappa, rows, seed=9)
    for first in (0, 3):
        part = annealed_langevin(half, **options, first_chain=first)
        assert torch.equal(part.x, together.x[first : first + 3])
        again = half.decode(part.x, part.kappa, half_rows, seed=9, first_chain=first)
        assert torch.equal(again, tokens[first : first + 3])


@pytest.mark.parametrize("kappa", [0.5, 20.0, torch.linspace(0.0, 40.0, 6)])
def test_exact_samples_do_not_depend_on_the_batch(kappa: float | Tensor, backend: Backend) -> None:
    """With one concentration, or one for each chain; another seed gives other states."""
    mu, log_p = _context(16, 40, 1.0, 3)
    whole, _ = _law(backend, mu, log_p, 6)
    together = whole.sample_exact(kappa, mu, seed=9)
    for first, size in ((0, 1), (1, 2), (3, 3)):
        own = kappa[first : first + size] if isinstance(kappa, Tensor) else kappa
        part = _law(backend, mu, log_p, size)[0].sample_exact(own, mu, seed=9, first_chain=first)
        # torch sums by shape, so the last bits of the reference may differ
        torch.testing.assert_close(
            part, together[first : first + size], rtol=0, atol=1e-6 if backend.name == "reference" else 0
        )
    assert (whole.sample_exact(kappa, mu, seed=10) - together).abs().amax(1).min() > 1e-3
    assert torch.pdist(together).min() > 1e-3  # chains don't share random numbers


def test_backends_agree_on_energies_and_scores(backend: Backend) -> None:
    """Against float64, over contexts of several entropies.

    Float32 values of kappa t near 60 have errors of 5e-6 each.
    """
    d, vocabulary, n = 64, 256, 32
    oracle = Reference(dtype=torch.float64)
    for exponent in EXPONENTS:
        mu, log_p = _context(d, vocabulary, exponent, 4)
        law, _ = _law(backend, mu, log_p, n)
        same = LatentLaw(oracle, oracle.points(mu), law.ids, law.logp, law.log_rest)
        for kappa in (1.0, 20.0, 60.0):
            x = law.sample_exact(kappa, mu, seed=1)
            got, want = law.energy_score(x, kappa), same.energy_score(x, kappa)
            torch.testing.assert_close(got.energy.double(), want.energy, rtol=0, atol=5e-5)
            torch.testing.assert_close(got.score.double(), want.score, rtol=0, atol=1e-5 * (1 + kappa))


def test_the_querys_best_tokens_are_the_most_probable_ones(backend: Backend) -> None:
    g = torch.Generator().manual_seed(0)
    mu, bias = projx(torch.randn(300, 32, generator=g)), torch.randn(300, generator=g)
    query = 8 * torch.randn(5, 32, generator=g)
    log_p = torch.log_softmax(query @ mu.T + bias, -1)
    points = backend.points(mu)
    one = LatentLaw.from_query(backend, points, bias, query, log_p, 20)
    other = LatentLaw.from_log_probs(backend, points, log_p, 20)
    assert torch.equal(one.ids, other.ids)
    torch.testing.assert_close(one.logp, other.logp)
    total = torch.cat((one.logp, one.log_rest[:, None]), dim=1).logsumexp(1)
    torch.testing.assert_close(total, torch.zeros(5), rtol=0, atol=1e-5)


def test_tokens_of_probability_0_are_never_drawn() -> None:
    mu, _ = _context(8, 10, 1.0, 0)
    log_p = torch.full((10,), -math.inf)
    log_p[[2, 5]] = math.log(0.5)
    law, rows = _law(Reference(), mu, log_p, 500)
    assert torch.isneginf(law.log_rest).all()
    x = law.sample_exact(3.0, mu, seed=0)
    assert set(law.decode(x, 3.0, rows, seed=0).tolist()) == {2, 5}
