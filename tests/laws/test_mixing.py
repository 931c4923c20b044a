"""Block Gibbs, tempering and coarse to fine, against exact laws and in batches of any size.

The n chains of a case are independent; seeds are fixed. d = 24; Zipf laws over 200 tokens.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from laws_support import ALPHA
from torch import Tensor

from ebmvk.certification import mixtures, statistics, suite
from ebmvk.certification.liars import Lie
from ebmvk.certification.results import Sizes
from ebmvk.engine.api import Backend
from ebmvk.engine.reference import Reference
from ebmvk.errors import ArgumentError
from ebmvk.sampling.coarse import Neighbourhoods, coarse_to_fine
from ebmvk.sampling.gibbs import block_gibbs
from ebmvk.sampling.latent import LatentLaw
from ebmvk.sampling.tempering import tempering
from ebmvk.sphere.geometry import projx

D, VOCABULARY, K = 24, 200, 16
CPU, SLOW = (
    Sizes(n, 200, looks=0, long_chains=0, long_steps=0, token_chains=0, token_dimension=0) for n in (1000, 200)
)


def _context(exponent: float, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(embeddings (V, D), log p (n, V), all rows alike)."""
    g = torch.Generator().manual_seed(seed)
    mu = projx(torch.randn(VOCABULARY, D, generator=g))
    zipf = -exponent * torch.arange(1, VOCABULARY + 1).log()
    return mu, torch.log_softmax(zipf[torch.randperm(VOCABULARY, generator=g)], 0).expand(n, -1).contiguous()


def _assert_law(tokens: Tensor, log_p: Tensor) -> None:
    assert statistics.counts_test(torch.bincount(tokens, minlength=VOCABULARY), log_p[0].exp()).p > ALPHA


@pytest.mark.parametrize("exponent", [0.7, 1.5, 3.0])
def test_tokens_of_block_gibbs_follow_the_law(exponent: float, cpu: Backend) -> None:
    mu, log_p = _context(exponent, 2000)
    law = LatentLaw.from_log_probs(cpu, cpu.points(mu), log_p, K)
    found = block_gibbs(law, mu, seed=3)
    _assert_law(law.decode(found.x, found.kappa, log_p, seed=4), log_p)
    assert float(found.moved.min()) > 0


@pytest.mark.parametrize("exponent", [0.7, 1.5, 3.0])
def test_tokens_of_tempering_follow_the_law(exponent: float, cpu: Backend) -> None:
    mu, log_p = _context(exponent, 800)
    law = LatentLaw.from_log_probs(cpu, cpu.points(mu), log_p, K)
    found = tempering(law, seed=3)
    _assert_law(law.decode(found.x, found.kappa, log_p, seed=4), log_p)
    assert found.swaps.shape == (800, 3)
    assert float(found.swaps.mean(0).min()) > 0.3
    assert float(found.diagnostics.tangency.max()) < 1e-5


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.5, 3.0])
def test_tokens_coarse_to_fine(exponent: float, cpu: Backend) -> None:
    """There are fewer candidates than neighbourhoods, and fewer than tokens in the largest one."""
    mu, log_p = _context(exponent, 2000)
    split = Neighbourhoods.of(cpu, mu, 12)
    assert split.largest > 8 < split.centres.n
    found = coarse_to_fine(cpu, cpu.points(mu), split, log_p, 8, seed=3)
    _assert_law(found.tokens, log_p)
    assert torch.equal(split.group[found.tokens], found.groups)


def test_any_split_and_any_directions_give_the_same_law(cpu: Backend) -> None:
    """Neighbourhoods by token number, with random centres."""
    mu, log_p = _context(1.0, 2000)
    g = torch.Generator().manual_seed(8)
    split = Neighbourhoods(torch.arange(VOCABULARY) % 7, cpu.points(projx(torch.randn(7, D, generator=g))), 29)
    _assert_law(coarse_to_fine(cpu, cpu.points(mu), split, log_p, 64, seed=3).tokens, log_p)


def test_neighbourhoods_split_the_vocabulary(backend: Backend) -> None:
    mu, log_p = _context(1.0, 2)
    split = Neighbourhoods.of(backend, mu)
    assert split.centres.n <= 15 == round(VOCABULARY**0.5) + 1
    sizes = torch.bincount(split.group, minlength=split.centres.n)
    assert (int(sizes.sum()), int(sizes.max())) == (VOCABULARY, split.largest)
    assert int(sizes.min()) > 0
    again = Neighbourhoods.of(backend, mu)
    assert torch.equal(split.group, again.group)
    p = torch.stack([log_p[0].exp()[split.group == g].sum() for g in range(split.centres.n)])
    torch.testing.assert_close(split.log_probs(log_p)[0].exp(), p)
    inside = split.within(log_p, torch.tensor([0, 3])).exp()
    torch.testing.assert_close(inside.sum(1), torch.ones(2))
    assert not bool(inside[1][split.group != 3].any())


@pytest.mark.parametrize("name", suite.MIXING)
def test_every_backend_passes_the_tests_of_its_operations(name: str, backend: Backend) -> None:
    findings = suite.MIXING[name](backend, CPU if backend.name == "cpu" else SLOW, 1)
    assert [check.name for check in findings.checks if not check.ok(ALPHA)] == []


@pytest.mark.parametrize("lie", suite.SEEN_BY)
def test_every_lie_fails_its_test(lie: Lie) -> None:
    caught = suite.catch_lie(lie, 1)
    assert caught.control.ok(ALPHA)
    assert not caught.check.ok(ALPHA)


def test_block_gibbs_does_not_mix_above_kappa_c(cpu: Backend) -> None:
    """From uniform states it no longer finds the weights, so its default kappa is below kappa_c."""
    mixture = mixtures.Mixture.of(1)
    law, rows = mixture.law(cpu, 1000)
    found = block_gibbs(law, rows, seed=1, sweeps=3, kappa=80.0)
    wanted = mixtures.Wanted.of(mixture, 10.0, 4000, 1)
    check = wanted.findings("stuck", "", found.x).checks[0]
    assert not check.ok(ALPHA)


def _states(law: LatentLaw, mu: Tensor, log_p: Tensor, split: Neighbourhoods, name: str, **how: Any) -> list[Tensor]:
    if name == "gibbs":
        swept = block_gibbs(law, mu, sweeps=3, **how)
        return [swept.x, swept.moved]
    if name == "tempering":
        tempered = tempering(law, rounds=3, rungs=3, **how)
        return [tempered.x, tempered.swaps]
    found = coarse_to_fine(law.backend, law.points, split, log_p, K, steps=8, levels=4, **how)
    return [found.fine.x, found.tokens]


@pytest.mark.parametrize("name", ["gibbs", "tempering", "coarse"])
def test_states_do_not_depend_on_the_batch(name: str, backend: Backend) -> None:
    """Two halves equal the whole, bit for bit; another seed gives other states."""
    mu, log_p = _context(1.0, 6)
    points, split = backend.points(mu), Neighbourhoods.of(backend, mu)

    def states(part: slice, seed: int) -> list[Tensor]:
        law = LatentLaw.from_log_probs(backend, points, log_p[part], K)
        return _states(law, mu, log_p[part], split, name, seed=seed, first_chain=part.start)

    whole = states(slice(0, 6), 9)
    for first in (0, 3):
        for one, all_ in zip(states(slice(first, first + 3), 9), whole, strict=True):
            assert torch.equal(one, all_[first : first + 3])
    assert not torch.equal(states(slice(0, 6), 10)[0], whole[0])


def test_a_law_without_entropy_gives_its_only_token(cpu: Backend) -> None:
    """kappa_c is 0, so states are uniform, and the decoder still finds the token."""
    mu, log_p = _context(0.0, 20)
    log_p = torch.full_like(log_p, -torch.inf).index_fill(1, torch.tensor([7]), 0.0)
    law = LatentLaw.from_log_probs(cpu, cpu.points(mu), log_p, K)
    for found in (block_gibbs(law, mu, seed=0, sweeps=2), tempering(law, seed=0, rounds=2)):
        assert torch.isfinite(found.x).all()
        assert set(law.decode(found.x, found.kappa, log_p, seed=1).tolist()) == {7}
    split = Neighbourhoods.of(cpu, mu)
    assert set(coarse_to_fine(cpu, cpu.points(mu), split, log_p, K, seed=0).tokens.tolist()) == {7}


def test_too_few_sweeps_rungs_or_rounds_are_refused() -> None:
    mu, log_p = _context(1.0, 2)
    law = LatentLaw.from_log_probs(Reference(), Reference().points(mu), log_p, K)
    for call in (
        lambda: block_gibbs(law, mu, seed=0, sweeps=0),
        lambda: tempering(law, seed=0, rungs=1),
        lambda: tempering(law, seed=0, rounds=0),
    ):
        with pytest.raises(ArgumentError):
            call()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["gibbs", "tempering", "coarse"])
def test_tokens_in_256_dimensions_long(name: str, cpu: Backend) -> None:
    """n = 20,000 at d = 256, V = 1000, K = 64: by chi^2, and total variation at most .05 (99 %)."""
    g = torch.Generator().manual_seed(2)
    mu = projx(torch.randn(1000, 256, generator=g))
    row = torch.log_softmax(-1.3 * torch.arange(1, 1001).log(), 0)
    log_p, parts = row.expand(2000, -1).contiguous(), []
    law = LatentLaw.from_log_probs(cpu, cpu.points(mu), log_p, 64)
    split = Neighbourhoods.of(cpu, mu)
    for first in range(0, 20_000, 2000):
        where: dict[str, int] = {"seed": 3, "first_chain": first}
        if name == "coarse":
            parts.append(coarse_to_fine(cpu, law.points, split, log_p, 64, **where).tokens)
            continue
        state = block_gibbs(law, mu, **where) if name == "gibbs" else tempering(law, **where)
        parts.append(law.decode(state.x, state.kappa, log_p, seed=4, first_chain=first))
    found = statistics.fit(torch.bincount(torch.cat(parts), minlength=1000), row.exp())
    assert found.p > ALPHA
    assert found.distance() <= max(0.05, found.excluded(ALPHA))
