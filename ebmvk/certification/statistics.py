"""Statistics and their p-values, for means, laws on the sphere, and counts.

All tests assume independent values and compute in float64. A test is two-sided if its statistic can
be too small as well as too large.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import integrate, optimize, stats
from torch import Tensor

from ebmvk.sphere.vmf import mean_cosine

TWO_SIDED_1E5 = float(stats.norm.isf(1e-5 / 2))
"""4.4 standard errors: the limit of a two-sided test of level 1e-5."""

CONFIDENCE = 0.99
"""Confidence of upper bounds of total variation."""
RARE, POOLED = 5, 50
"""Cells with fewer than RARE expected counts are pooled into cells of about POOLED."""

Cdf = Callable[[NDArray[Any]], NDArray[Any]]


class Evidence(NamedTuple):
    """A statistic and its p-value; NaN if a value was not finite."""

    statistic: float
    p: float


def mean_test(sample: Tensor, mean: float) -> Evidence:
    """z = (sample mean - mean) in standard errors. sample: (n,), n large."""
    values = sample.double()
    z = float((values.mean() - mean) / values.std() * math.sqrt(len(values)))
    return Evidence(z, 2 * float(stats.norm.sf(abs(z))))


def resultant_test(x: Tensor) -> Evidence:
    """Rayleigh's n d |mean x|^2 ~ chi^2_d under the uniform law. x: (n, d).

    Two-sided, because chains that avoid one another are also wrong.
    """
    n, d = x.shape
    statistic = n * d * float(x.double().mean(0).square().sum())
    tail = float(stats.chi2.sf(statistic, d))
    return Evidence(statistic, 2 * min(tail, 1 - tail))


def inertia_test(x: Tensor) -> Evidence:
    """Bingham's n d(d+2)/2 (tr S^2 - 1/d) ~ chi^2_{(d-1)(d+2)/2} under the uniform law.

    S is the mean of x x^T. It detects laws that are symmetric but not uniform. x: (n, d).
    """
    n, d = x.shape
    second = x.double().T @ x.double() / n
    statistic = n * d * (d + 2) / 2 * (float(second.square().sum()) - 1 / d)
    return Evidence(statistic, float(stats.chi2.sf(statistic, (d - 1) * (d + 2) / 2)))


@functools.cache
def cosine_cdf(d: int, kappa: float) -> Cdf:
    """Distribution function of t = mu.x, with density ~ (1 - t^2)^((d-3)/2) e^(kappa t)."""
    # The density of theta = acos t, sin^(d-2)(theta) e^(kappa cos theta), is smooth at both ends.
    coarse = np.linspace(0, math.pi, 20_001)
    seen = coarse[_log_density(coarse, d, kappa) > -60]
    theta = np.linspace(seen[0], seen[-1], 20_001)
    below = integrate.cumulative_trapezoid(np.exp(_log_density(theta, d, kappa)), theta, initial=0)
    return lambda t: 1 - np.interp(np.arccos(np.clip(t, -1, 1)), theta, below / below[-1])


def _log_density(theta: NDArray[Any], d: int, kappa: float) -> NDArray[Any]:
    """log density of theta, up to a constant that makes its largest value on the grid 0."""
    values = (d - 2) * np.log(np.maximum(np.sin(theta), 1e-300)) + kappa * np.cos(theta)
    return np.asarray(values - values.max())


def cosine_test(t: Tensor, d: int, kappa: float) -> Evidence:
    """Kolmogorov-Smirnov test of t = mu.x against its law under vMF. t: (n,)."""
    values = t.double()
    if not bool(torch.isfinite(values).all()):
        return Evidence(math.nan, math.nan)
    found = stats.kstest(values.numpy(), cosine_cdf(d, kappa))
    return Evidence(float(found.statistic), float(found.pvalue))


def vmf_mean(d: int, kappa: float) -> float:
    """A_d(kappa), the mean of t = mu.x."""
    return float(mean_cosine(torch.tensor(kappa, dtype=torch.float64), d))


@dataclass(frozen=True)
class Fit:
    """Pearson's chi^2 and the likelihood ratio G of n counts against a law, with rare cells pooled.

    freedom, variance: the exact mean and variance of chi^2 under the law. Fits of independent
    counts can be added.
    """

    statistic: float
    likelihood: float
    freedom: float
    variance: float
    n: int

    def __add__(self, other: Fit) -> Fit:
        return Fit(
            self.statistic + other.statistic,
            self.likelihood + other.likelihood,
            self.freedom + other.freedom,
            self.variance + other.variance,
            self.n + other.n,
        )

    @property
    def p(self) -> float:
        """The larger of two p-values: one of chi^2, with its exact mean and variance, and one of G.

        If one cell is expected 5 times and seen 15 times, the p-value of chi^2 is 15 times too
        small, and the p-value of G is right. With many such cells G has the wrong mean. A single
        cell shows nothing: p is 1.
        """
        if self.freedom == 0:
            return 1.0
        scale = self.variance / (2 * self.freedom)
        found = (self.statistic / scale, self.freedom / scale), (self.likelihood, self.freedom)
        return max(float(stats.chi2.sf(*one)) for one in found)

    def distance(self, confidence: float = CONFIDENCE) -> float:
        """Upper confidence bound of the total variation between the true and the tested law.

        The distance is taken over the cells and is at most 1. With the chi^2 distance X of the two
        laws, n X is the non-centrality of the statistic, without bias. Total variation is at most
        sqrt(X) / 2 (Cauchy and Schwarz). The two are equal if all cells are off by the same factor.
        """
        if self.freedom == 0:
            return 0.0
        return _total_variation_of(_noncentrality(self.statistic, self.freedom, 1 - confidence), self.n)

    def excluded(self, alpha: float, confidence: float = CONFIDENCE) -> float:
        """The smallest total variation that a test of level alpha finds with this confidence.

        It is taken over the cells, holds for a difference of any shape, and is at most 1.
        """
        if self.freedom == 0:
            return 0.0
        scale = self.variance / (2 * self.freedom)
        critical = scale * float(stats.chi2.isf(alpha, self.freedom / scale))
        return _total_variation_of(_noncentrality(critical, self.freedom, 1 - confidence), self.n)


def _noncentrality(statistic: float, freedom: float, below: float) -> float:
    """The non-centrality that makes P(chi^2 <= statistic) = below; at least 0."""
    if not math.isfinite(statistic):
        return math.inf

    def gap(value: float) -> float:
        return float(stats.ncx2.cdf(statistic, freedom, value)) - below

    if stats.chi2.cdf(statistic, freedom) <= below:
        return 0.0
    high = statistic + 10 * math.sqrt(2 * statistic) + 50  # large enough: the mean exceeds the statistic
    return float(optimize.brentq(gap, 1e-9, high))


def _total_variation_of(noncentrality: float, n: int) -> float:
    return min(1.0, math.sqrt(noncentrality / n) / 2)


def fit(counts: Tensor, p: Tensor) -> Fit:
    """The fit of counts (V,) to a law p (V,), with rare cells pooled."""
    n = int(counts.sum())
    expected = p.double() / p.double().sum() * n
    observed, wanted = _gathered(counts.double(), expected)
    k = len(wanted)
    if k == 1:
        return Fit(0.0, 0.0, 0.0, 0.0, n)
    statistic = float(((observed - wanted).square() / wanted.clamp_min(1e-300)).sum())
    seen = wanted[wanted > 0]
    variance = 2 * (k - 1) + (float((n / seen).sum()) - k * k - 2 * k + 2) / n  # Haldane 1937
    likelihood = 2 * float(torch.special.xlogy(observed, observed / wanted).sum())
    return Fit(statistic, likelihood, k - 1, variance, n)


def counts_test(counts: Tensor, p: Tensor) -> Evidence:
    """`fit` as a statistic with its p-value. counts, p: (V,)."""
    found = fit(counts, p)
    return Evidence(found.statistic, found.p)


def _gathered(counts: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """Counts and law, with rare cells pooled into cells of about POOLED counts, the likelier cells
    first.

    If all rare cells were pooled into one, the differences between them would be hidden.
    """
    rare = expected < RARE
    if not bool(rare.any()):
        return counts, expected
    order = expected[rare].argsort(descending=True, stable=True)
    few = expected[rare][order]
    cells = max(1, int(few.sum() / POOLED))
    at = ((few.cumsum(0) - few / 2) / max(1e-300, float(few.sum())) * cells).long().clamp_max(cells - 1)
    pooled = [
        torch.cat((row[~rare], row.new_zeros(cells).index_add_(0, at, row[rare][order]))) for row in (counts, expected)
    ]
    there = (pooled[0] > 0) | (pooled[1] > 0)
    return pooled[0][there], pooled[1][there]


def same_law_test(one: Tensor, other: Tensor) -> Evidence:
    """Chi^2 of homogeneity of two samples of counts (V,); rare cells are pooled into one."""
    one, other = one.double(), other.double()
    rare = (one + other) * min(float(one.sum()), float(other.sum())) / float(one.sum() + other.sum()) < RARE
    table = torch.stack(_pooled(one, other, rare))
    found = stats.chi2_contingency(table.numpy(), correction=False)
    return Evidence(float(found.statistic), float(found.pvalue))


def _pooled(one: Tensor, other: Tensor, rare: Tensor) -> tuple[Tensor, Tensor]:
    """Both samples with their rare cells summed into a last cell; empty cells are dropped."""
    if not bool(rare.any()):
        return one, other
    pooled = torch.stack([torch.cat((counts[~rare], counts[rare].sum()[None])) for counts in (one, other)])
    first, second = pooled[:, pooled.sum(0) > 0]
    return first, second


def tilt_test(excess: float, variance: float, slack: float = 0.0) -> Evidence:
    """A z-test that the tilt s of a law q ~ p e^(s f) is 0, from draws.

    excess: the sum over draws of f minus its mean under p. variance: the variance of that sum; to
    first order, excess is s times variance. For draws from several laws, add up the sums and the
    variances. slack: |s| up to this size is allowed.
    """
    if variance == 0:
        return Evidence(0.0, 1.0) if excess == 0 else Evidence(math.copysign(math.inf, excess), 0.0)
    return _beyond(excess / variance, variance**-0.5, slack)


def ratio_test(above: Tensor, below: Tensor, slack: float = 0.0) -> Evidence:
    """A z-test that the ratio of two means is 0, by the delta method.

    above, below: (n,), numerator and denominator of the same n draws. slack: ratios up to this size
    count as 0.
    """
    ratio = float(above.double().mean() / below.double().mean())
    left = above.double() - ratio * below.double()
    return _beyond(ratio, float(left.std() / abs(float(below.double().mean())) / math.sqrt(len(left))), slack)


def _beyond(value: float, error: float, slack: float) -> Evidence:
    """The z-score of the part of |value| that exceeds `slack`."""
    over = math.copysign(max(0.0, abs(value) - slack), value)
    if error == 0 and not math.isnan(value):
        return Evidence(0.0, 1.0) if over == 0 else Evidence(math.inf, 0.0)
    return Evidence(over / error, 2 * float(stats.norm.sf(abs(over / error))))


def known_mean_test(x: Tensor, mean: Tensor) -> Evidence:
    """Hotelling's T^2 ~ chi^2_d of a sample mean against a known mean.

    x: (n, d), n large; mean: (d,).
    """
    values = x.double()
    if not bool(torch.isfinite(values).all()):
        return Evidence(math.nan, math.nan)
    gap = values.mean(0) - mean.double()
    statistic = len(values) * float(gap @ torch.linalg.solve(torch.cov(values.T), gap))
    return Evidence(statistic, float(stats.chi2.sf(statistic, len(gap))))


def uncorrelated_test(pairs: list[tuple[Tensor, Tensor]]) -> Evidence:
    """The largest |z| of the correlations of pairs, with a p-value for all of them (Sidak).

    Each pair has two tensors of one shape with mean 0.
    """
    z = [float((a.double() * b.double()).sum() / (a.double().norm() * b.double().norm()) * math.sqrt(a.numel()))
         for a, b in pairs]  # fmt: skip
    if not all(map(math.isfinite, z)):
        return Evidence(math.nan, math.nan)
    worst = max(z, key=abs)
    return Evidence(worst, -math.expm1(len(z) * math.log1p(-min(1 - 1e-16, 2 * float(stats.norm.sf(abs(worst)))))))


def total_variation(counts: Tensor, p: Tensor) -> float:
    """Half the sum of |frequency - p| over the cells. counts, p: (V,)."""
    return float((counts.double() / counts.sum() - p.double()).abs().sum() / 2)


def expected_total_variation(p: Tensor, n: int) -> float:
    """The exact mean of `total_variation` for n true draws from p (V,).

    A count is binomial, and E|X - np| = 2 m (1-p) P(X = m) with m = floor(np) + 1 (de Moivre;
    Diaconis and Zabell 1991).
    """
    law = p.double().numpy()
    m = np.floor(n * law) + 1
    deviation = 2 * m * (1 - law) * stats.binom.pmf(m, n, law)
    return float(deviation.sum() / (2 * n))
