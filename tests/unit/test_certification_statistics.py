"""The statistics of the certification: p-values are uniform where the hypothesis holds, and tiny where it does not."""

from __future__ import annotations

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
}


@pytest.mark.parametrize("name", TRUE)
def test_p_values_are_uniform_under_the_hypothesis(name: str) -> None:
    g = torch.Generator().manual_seed(5)
    p = [TRUE[name](g).p for _ in range(REPEATS)]
    # Counts are discrete, and the laws of the statistics asymptotic: 300 values do not see that.
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    assert min(p) > 1e-5


@pytest.mark.parametrize("name", FALSE)
def test_p_values_are_tiny_where_it_is_false(name: str) -> None:
    assert FALSE[name](torch.Generator().manual_seed(6)).p < 1e-5


def test_chains_that_avoid_each_other_are_not_uniform() -> None:
    """Antithetic pairs: the mean is too near 0."""
    x = _uniform(torch.Generator().manual_seed(1))
    assert statistics.resultant_test(torch.cat((x, -x))).p < 1e-10


@pytest.mark.parametrize(("d", "kappa"), [(2, 5.0), (3, 0.0), (3, 8.0), (640, 640.0)])
def test_distribution_function_of_the_cosine(d: int, kappa: float) -> None:
    """Against closed forms in d = 3, and against its own mean, E t = 1 - integral of F, by A_d."""
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
    """Simulation about the exact mean; its spread below McDiarmid's 1/(2 sqrt n)."""
    p, n = torch.softmax(-torch.arange(1.0, 300).log(), 0).double(), 2000
    g = torch.Generator().manual_seed(2)
    values = torch.tensor([statistics.total_variation(_counts(g, p, n), p) for _ in range(200)])
    spread = statistics.total_variation_spread(p, n, seed=1)
    assert spread == pytest.approx(float(values.std()), rel=0.3)
    assert spread < 1 / (2 * math.sqrt(n))
    assert float(values.mean()) == pytest.approx(statistics.expected_total_variation(p, n), abs=5 * spread / 200**0.5)


def test_rare_cells_are_pooled() -> None:
    p = torch.cat((torch.tensor([0.5, 0.4]), torch.full((100,), 0.001)))
    counts = torch.cat((torch.tensor([500, 400]), torch.ones(100, dtype=torch.int64)))
    assert statistics.counts_test(counts, p).p == pytest.approx(1.0)
    assert statistics.counts_test(torch.ones(10), torch.full((10,), 0.1)).p == 1  # one cell is left
    # A token that cannot be, and is.
    assert statistics.counts_test(torch.tensor([50, 50, 3]), torch.tensor([0.5, 0.5, 0.0])).p < 1e-10


def test_verdicts() -> None:
    bounded = Check(3, "a", "b", 1, 0.5, "max", high=1.0)
    assert bounded.ok(1e-5)
    assert not Check(3, "a", "b", 1, 1.5, "max", high=1.0).ok(1e-5)
    assert not Check(3, "a", "b", 1, math.nan, "max", high=1.0).ok(1e-5)
    assert not Check(3, "a", "b", 1, 1.5, "order", low=1.6).ok(1e-5)
    assert by_p(4, "a", "b", 1, "z", Evidence(3.0, 0.003)).ok(1e-5)
    assert not by_p(4, "a", "b", 1, "z", Evidence(5.0, 1e-7)).ok(1e-5)
    assert not by_p(4, "a", "b", 1, "z", Evidence(math.nan, math.nan)).ok(1e-5)
