"""Statistics and their p-values: of means, of laws on the sphere, of counts.

Every test here is of independent values, in float64, two-sided where a statistic can be too small as well as too large.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import integrate, stats
from torch import Tensor

from ebmvk.sphere.vmf import mean_cosine

TWO_SIDED_1E5 = float(stats.norm.isf(1e-5 / 2))
"""4.4 standard errors: what a p-value of 1e-5 allows, the usual level of one of a hundred tests."""

Cdf = Callable[[NDArray[Any]], NDArray[Any]]


class Evidence(NamedTuple):
    """A statistic and the probability of one as extreme under the hypothesis; NaN where a value was not finite."""

    statistic: float
    p: float


def mean_test(sample: Tensor, mean: float) -> Evidence:
    """z = (sample mean - mean) in standard errors. sample: (n,), n large."""
    values = sample.double()
    z = float((values.mean() - mean) / values.std() * math.sqrt(len(values)))
    return Evidence(z, 2 * float(stats.norm.sf(abs(z))))


def resultant_test(x: Tensor) -> Evidence:
    """Rayleigh's n d |mean x|^2 ~ chi^2_d under the uniform law; two-sided, as chains that avoid one another are wrong
    too. x: (n, d)."""
    n, d = x.shape
    statistic = n * d * float(x.double().mean(0).square().sum())
    tail = float(stats.chi2.sf(statistic, d))
    return Evidence(statistic, 2 * min(tail, 1 - tail))


def inertia_test(x: Tensor) -> Evidence:
    """Bingham's n d(d+2)/2 (tr S^2 - 1/d) ~ chi^2_{(d-1)(d+2)/2} under the uniform law, S the mean of x x^T: sees what
    is symmetric and not uniform. x: (n, d)."""
    n, d = x.shape
    second = x.double().T @ x.double() / n
    statistic = n * d * (d + 2) / 2 * (float(second.square().sum()) - 1 / d)
    return Evidence(statistic, float(stats.chi2.sf(statistic, (d - 1) * (d + 2) / 2)))


@functools.cache
def cosine_cdf(d: int, kappa: float) -> Cdf:
    """Distribution function of t = mu.x of vMF, whose density is ~ (1 - t^2)^((d-3)/2) e^(kappa t)."""
    # In theta = acos t the density sin^(d-2)(theta) e^(kappa cos theta) is smooth at both ends, also for d = 2.
    coarse = np.linspace(0, math.pi, 20_001)
    seen = coarse[_log_density(coarse, d, kappa) > -60]
    theta = np.linspace(seen[0], seen[-1], 20_001)
    below = integrate.cumulative_trapezoid(np.exp(_log_density(theta, d, kappa)), theta, initial=0)
    return lambda t: 1 - np.interp(np.arccos(np.clip(t, -1, 1)), theta, below / below[-1])


def _log_density(theta: NDArray[Any], d: int, kappa: float) -> NDArray[Any]:
    """Up to a constant; largest value 0 on the grid."""
    values = (d - 2) * np.log(np.maximum(np.sin(theta), 1e-300)) + kappa * np.cos(theta)
    return np.asarray(values - values.max())


def cosine_test(t: Tensor, d: int, kappa: float) -> Evidence:
    """Kolmogorov-Smirnov's D of t = mu.x against its law. t: (n,)."""
    values = t.double()
    if not bool(torch.isfinite(values).all()):
        return Evidence(math.nan, math.nan)
    found = stats.kstest(values.numpy(), cosine_cdf(d, kappa))
    return Evidence(float(found.statistic), float(found.pvalue))


def vmf_mean(d: int, kappa: float) -> float:
    """A_d(kappa)."""
    return float(mean_cosine(torch.tensor(kappa, dtype=torch.float64), d))


def counts_test(counts: Tensor, p: Tensor) -> Evidence:
    """Pearson's chi^2 of counts against a law, cells expected fewer than 5 times pooled. counts, p: (V,).

    p = 1 where that leaves one cell: then nothing could have been seen.
    """
    expected = p.double() / p.double().sum() * counts.sum()
    observed, wanted = _pooled(counts.double(), expected, expected < 5)
    if len(wanted) == 1:
        return Evidence(0.0, 1.0)
    statistic = float(((observed - wanted).square() / wanted).sum())
    return Evidence(statistic, float(stats.chi2.sf(statistic, len(wanted) - 1)))


def same_law_test(one: Tensor, other: Tensor) -> Evidence:
    """Chi^2 of homogeneity: two samples of counts (V,) from one unknown law; rare cells pooled as in `counts_test`."""
    one, other = one.double(), other.double()
    rare = (one + other) * min(float(one.sum()), float(other.sum())) / float(one.sum() + other.sum()) < 5
    table = torch.stack(_pooled(one, other, rare))
    found = stats.chi2_contingency(table.numpy(), correction=False)
    return Evidence(float(found.statistic), float(found.pvalue))


def _pooled(one: Tensor, other: Tensor, rare: Tensor) -> tuple[Tensor, Tensor]:
    """Both without the rare cells, whose sums come last; a cell that neither has is left out."""
    if not bool(rare.any()):
        return one, other
    pooled = torch.stack([torch.cat((counts[~rare], counts[rare].sum()[None])) for counts in (one, other)])
    first, second = pooled[:, pooled.sum(0) > 0]
    return first, second


def total_variation(counts: Tensor, p: Tensor) -> float:
    """Half the summed distance of frequencies and law. counts, p: (V,)."""
    return float((counts.double() / counts.sum() - p.double()).abs().sum() / 2)


def expected_total_variation(p: Tensor, n: int) -> float:
    """Of n true draws from p (V,), exactly: a count is binomial, and E|X - np| = 2 m (1-p) P(X = m), m = floor(np) + 1
    (de Moivre; Diaconis and Zabell 1991)."""
    law = p.double().numpy()
    m = np.floor(n * law) + 1
    deviation = 2 * m * (1 - law) * stats.binom.pmf(m, n, law)
    return float(deviation.sum() / (2 * n))


def total_variation_spread(p: Tensor, n: int, *, seed: int, repeats: int = 200) -> float:
    """Standard deviation of the total variation of n true draws from p (V,), by simulation."""
    law = p.double().numpy()
    counts = np.random.default_rng(seed).multinomial(n, law / law.sum(), size=repeats)
    return float((np.abs(counts / n - law).sum(1) / 2).std())
