"""Statistics of the certification: p-values are uniform under the hypothesis, else tiny."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from ebmvk.certification import statistics
from ebmvk.certification.results import Check, by_p
from ebmvk.certification.statistics import Evidence
from ebmvk.sphere.geometry import projx
from ebmvk.sphere.vmf import sample_vmf

REPEATS = 300
MIX = torch.tensor([[1.0, 0.5, 0, 0], [0, 1, 0.5, 0], [0, 0, 1, 0.5], [0, 0, 0, 1]])
LAW = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])


def _uniform(g: torch.Generator, d: int = 8) -> torch.Tensor:
    return projx(torch.randn(500, d, generator=g))


def _cosines(g: torch.Generator, kappa: float = 8.0) -> torch.Tensor:
    mu = torch.eye(8)[0].expand(500, 8)
    return sample_vmf(mu, kappa, generator=g)[:, 0]


def _counts(g: torch.Generator, law: torch.Tensor = LAW, n: int = 600) -> torch.Tensor:
    return torch.bincount(torch.multinomial(law, n, replacement=True, generator=g), minlength=len(law))


TRUE = {
    "mean": lambda g: statistics.mean_test(torch.randn(500, generator=g) + 3, 3.0),
    "resultant": lambda g: statistics.resultant_test(_uniform(g)),
    "inertia": lambda g: statistics.inertia_test(_uniform(g)),
    "cosine": lambda g: statistics.cosine_test(_cosines(g), 8, 8.0),
    "counts": lambda g: statistics.counts_test(_counts(g), LAW),
    "same law": lambda g: statistics.same_law_test(_counts(g), _counts(g, n=1500)),
    "known mean": lambda g: statistics.known_mean_test(torch.randn(500, 4, generator=g) @ MIX + 1, torch.ones(4)),
}
OFF = torch.tensor([0.3, 0.4, 0.15, 0.1, 0.05])
FALSE = {
    "mean": lambda g: statistics.mean_test(torch.randn(500, generator=g) + 3, 2.6),
    "resultant": lambda g: statistics.resultant_test(projx(_uniform(g) + torch.eye(8)[0] / 8)),
    # Symmetric, so that its mean is 0.
    "inertia": lambda g: statistics.inertia_test(projx(_uniform(g) * torch.tensor([2.0] + 7 * [1.0]))),
    "cosine": lambda g: statistics.cosine_test(_cosines(g, 10.0), 8, 8.0),
    "counts": lambda g: statistics.counts_test(_counts(g, OFF), LAW),
    "same law": lambda g: statistics.same_law_test(_counts(g, n=3000), _counts(g, OFF, n=6000)),
    "known mean": lambda g: statistics.known_mean_test(torch.randn(500, 4, generator=g) @ MIX + 1.3, torch.ones(4)),
}


@pytest.mark.parametrize("name", TRUE)
def test_p_values_are_uniform_under_the_hypothesis(name: str) -> None:
    g = torch.Generator().manual_seed(5)
    p = [TRUE[name](g).p for _ in range(REPEATS)]
    # Counts are discrete, and the laws of the statistics are asymptotic; 300 values don't show
    # that.
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    assert min(p) > 1e-5


@pytest.mark.parametrize("name", FALSE)
def test_p_values_are_tiny_if_the_hypothesis_is_false(name: str) -> None:
    assert FALSE[name](torch.Generator().manual_seed(6)).p < 1e-5


def test_chains_that_avoid_each_other_are_not_uniform() -> None:
    """Antithetic pairs: the mean is too near 0."""
    x = _uniform(torch.Generator().manual_seed(1))
    assert statistics.resultant_test(torch.cat((x, -x))).p < 1e-10


@pytest.mark.parametrize(("d", "kappa"), [(2, 5.0), (3, 0.0), (3, 8.0), (640, 640.0)])
def test_distribution_function_of_the_cosine(d: int, kappa: float) -> None:
    """Against closed forms in d = 3, and by its mean: E t = 1 - integral of F is A_d."""
    cdf = statistics.cosine_cdf(d, kappa)
    t = np.linspace(-1, 1, 200_001)
    assert cdf(t)[0] == pytest.approx(0, abs=1e-9)
    assert cdf(t)[-1] == pytest.approx(1, abs=1e-9)
    if d == 3:
        exact = (t + 1) / 2 if kappa == 0 else np.expm1(kappa * (t + 1)) / np.expm1(2 * kappa)
        np.testing.assert_allclose(cdf(t), exact, atol=1e-6)
    mean = 1 - float(integrate.trapezoid(cdf(t), t))
    assert mean == pytest.approx(statistics.vmf_mean(d, kappa) if kappa else 0, abs=1e-5)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_expected_total_variation_by_enumeration(n: int) -> None:
    p = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64)
    total = 0.0
    for draws in itertools.product(range(4), repeat=n):
        chance = math.prod(float(p[i]) for i in draws)
        total += chance * statistics.total_variation(torch.bincount(torch.tensor(draws), minlength=4), p)
    assert statistics.expected_total_variation(p, n) == pytest.approx(total, abs=1e-12)


def test_total_variation_of_true_draws() -> None:
    """The estimate scatters around the exact mean, by less than McDiarmid's 1/(2 sqrt n)."""
    p, n = torch.softmax(-torch.arange(1.0, 300).log(), 0).double(), 2000
    g = torch.Generator().manual_seed(2)
    values = torch.tensor([statistics.total_variation(_counts(g, p, n), p) for _ in range(200)])
    spread = float(values.std())
    assert spread < 1 / (2 * math.sqrt(n))
    assert float(values.mean()) == pytest.approx(statistics.expected_total_variation(p, n), abs=5 * spread / 200**0.5)


def _zipf(exponent: float, tokens: int = 512) -> torch.Tensor:
    return torch.softmax(-exponent * torch.arange(1.0, tokens + 1).log(), 0).double()


def _away(p: torch.Tensor, distance: float, g: torch.Generator) -> torch.Tensor:
    """A law at this total variation from p.

    A random half of the tokens is likelier by one factor, the rest less likely. If p is peaked,
    some of the first token's mass goes to the second.
    """
    if p[0] > 0.5:
        return p + distance * (torch.eye(len(p))[1] - torch.eye(len(p))[0]).double()
    q = p * (1 + distance * torch.sign(torch.randn(len(p), generator=g)).double())
    gap = q / q.sum() - p
    return p + gap * distance / (gap.abs().sum() / 2)


@pytest.mark.parametrize("exponent", [0.0, 0.95, 1.36, 3.65])
def test_a_total_variation_of_a_twentieth_fails(exponent: float) -> None:
    """25,000 draws, as in the full suite, of laws of 512 tokens and entropies of .4 to 6.2 nats.

    Total variation minus its mean under the law would be .01 to .03: below a bound of .02, or
    hardly above it.
    """
    g, p = torch.Generator().manual_seed(3), _zipf(exponent)
    for _ in range(20):
        found = statistics.fit(_counts(g, _away(p, 0.05, g), 25_000), p)
        assert found.p < 1e-4
        assert found.distance() >= 0.05


@pytest.mark.parametrize("exponent", [0.0, 0.95, 1.36, 3.65])
def test_true_draws_pass(exponent: float) -> None:
    """200 samples: their p-values are plausible, and their bounds are within the allowed ones."""
    g, p = torch.Generator().manual_seed(4), _zipf(exponent)
    found = [statistics.fit(_counts(g, p, 25_000), p) for _ in range(200)]
    assert min(one.p for one in found) > 1e-5  # the level of a context
    assert sum(one.p < 0.05 for one in found) < 25  # 10 of 200 are expected
    assert max(one.distance() for one in found) <= found[0].excluded(1e-5) <= 0.0505


def test_upper_bounds_cover_the_true_distance() -> None:
    """The true distance exceeds the bound in at most 1 % of all samples, even when the bound is
    sharpest."""
    g, p = torch.Generator().manual_seed(6), torch.full((128,), 1 / 128, dtype=torch.float64)
    q = p * (1 + 0.06 * torch.tensor([1.0, -1.0]).repeat(64).double())
    low = sum(statistics.fit(_counts(g, q, 4000), p).distance() < 0.03 for _ in range(400))
    assert low <= 12  # 4 are expected, and 12 or more with probability 1e-3


@pytest.mark.parametrize("expected", [5.0, 8.0, 20.0])
@pytest.mark.parametrize("level", [1e-3, 1e-5])
def test_rare_cells_raise_no_false_alarm(expected: float, level: float) -> None:
    """Two cells: the chance of p < level by enumeration.

    With chi^2 alone, the chance is up to 20 times the level.
    """
    n = 1000
    p = torch.tensor([expected / n, 1 - expected / n], dtype=torch.float64)
    alarms = 0.0
    for seen in range(200):
        if statistics.fit(torch.tensor([seen, n - seen]), p).p < level:
            alarms += float(stats.binom.pmf(seen, n, expected / n))
    assert 0 < alarms <= level


def test_fits_can_be_added() -> None:
    g = torch.Generator().manual_seed(7)
    laws = [_zipf(exponent) for exponent in (0.5, 1.0, 2.0)]
    values = []
    for _ in range(200):
        one, *more = (statistics.fit(_counts(g, p, 2000), p) for p in laws)
        values.append(sum(more, one).p)
    assert stats.kstest(values, "uniform").pvalue > 1e-3


def test_differences_among_rare_tokens_are_found() -> None:
    """2,000 tokens have a tenth of the mass, and the less likely half of them never occurs."""
    g = torch.Generator().manual_seed(8)
    tail = 0.1 * torch.linspace(1.2, 0.8, 2000).double() / 2000
    p = torch.cat((torch.full((10,), 0.09, dtype=torch.float64), tail))
    q = p.clone()
    q[1010:] = 0
    q[10:1010] *= 0.1 / q[10:1010].sum()
    assert statistics.fit(_counts(g, q, 20_000), p).p < 1e-10


@pytest.mark.parametrize("slack", [0.0, 0.02])
def test_deviations_beyond_the_slack_are_found(slack: float) -> None:
    """p^s of a Zipf law, by `tilt_test`, and a ratio of means, by `ratio_test`."""
    p = _zipf(1.0)
    log_p, n = p.log(), 200_000
    mean = float((p * log_p).sum())
    variance = n * float((p * (log_p - mean).square()).sum())
    found = []
    for s in (1.0, 1.0 + slack * 0.9, 1.0 + slack + 0.03):
        g = torch.Generator().manual_seed(1)
        drawn = torch.multinomial((s * log_p).softmax(0), n, replacement=True, generator=g)
        found.append(statistics.tilt_test(float((log_p[drawn] - mean).sum()), variance, slack).p)
    assert min(found[:2]) > 1e-3
    assert found[2] < 1e-5
    g = torch.Generator().manual_seed(2)
    below = 1 + torch.randn(20_000, generator=g).square()
    assert statistics.ratio_test(torch.randn(20_000, generator=g) * below, below, slack).p > 1e-3
    assert statistics.ratio_test(torch.randn(20_000, generator=g) + (slack + 0.05) * below, below, slack).p < 1e-5


def test_a_few_correlated_pairs_are_found() -> None:
    g = torch.Generator().manual_seed(9)
    noise = [torch.randn(8, 256, generator=g) for _ in range(40)]
    pairs = [(noise[0], other) for other in noise[1:]]
    assert statistics.uncorrelated_test(pairs).p > 1e-3
    assert statistics.uncorrelated_test([*pairs, (noise[0], noise[0])]).p < 1e-10
    assert statistics.uncorrelated_test([*pairs, (noise[0], -0.3 * noise[0] + noise[1])]).p < 1e-10


def test_rare_cells_are_pooled() -> None:
    p = torch.cat((torch.tensor([0.5, 0.4]), torch.full((100,), 0.001)))
    counts = torch.cat((torch.tensor([500, 400]), torch.ones(100, dtype=torch.int64)))
    assert statistics.counts_test(counts, p).p == pytest.approx(1.0)
    assert statistics.counts_test(torch.ones(10), torch.full((10,), 0.1)).p == 1  # one cell is left
    # A token that has probability 0 and occurs.
    assert statistics.counts_test(torch.tensor([50, 50, 3]), torch.tensor([0.5, 0.5, 0.0])).p < 1e-10


def test_a_check_passes_by_p_value_and_bounds() -> None:
    bounded = Check(3, "a", "b", 1, 0.5, "max", high=1.0)
    assert bounded.ok(1e-5)
    assert not Check(3, "a", "b", 1, 1.5, "max", high=1.0).ok(1e-5)
    assert not Check(3, "a", "b", 1, math.nan, "max", high=1.0).ok(1e-5)
    assert not Check(3, "a", "b", 1, 1.5, "order", low=1.6).ok(1e-5)
    assert by_p(4, "a", "b", 1, "z", Evidence(3.0, 0.003)).ok(1e-5)
    assert not by_p(4, "a", "b", 1, "z", Evidence(5.0, 1e-7)).ok(1e-5)
    assert not by_p(4, "a", "b", 1, "z", Evidence(math.nan, math.nan)).ok(1e-5)
    both = Check(8, "a", "b", 1, 0.04, "TV bound", p=0.1, high=0.05)  # a p-value and a bound
    assert both.ok(1e-5)
    assert not dataclasses.replace(both, p=1e-7).ok(1e-5)
    assert not dataclasses.replace(both, statistic=0.06).ok(1e-5)
    assert not dataclasses.replace(both, statistic=math.nan).ok(1e-5)
