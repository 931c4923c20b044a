"""The von Mises-Fisher law against mpmath (normaliser, mean cosine, inverse) and against itself
(samples)."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from laws_support import ALPHA

from ebmvk.certification.statistics import cosine_test, mean_test, resultant_test
from ebmvk.errors import ArgumentError
from ebmvk.sphere import vmf

DIMENSIONS = [2, 3, 4, 5, 17, 64, 81, 82, 83, 256, 640, 2048]  # 81..83 straddle the switch to the bare expansion
KAPPAS = [1e-3, 0.1, 1.0, 10.0, 73.3, 300.0, 3000.0, 1e5]
F64 = torch.float64


def _exact(d: int, kappa: float) -> tuple[mpmath.mpf, mpmath.mpf]:
    """(log C_d(kappa) - log C_d(0), A_d(kappa))."""
    order, k = mpmath.mpf(d) / 2 - 1, mpmath.mpf(kappa)
    value = mpmath.besseli(order, k)
    ratio = -(mpmath.log(value) + mpmath.loggamma(order + 1) - order * mpmath.log(k / 2))
    return ratio, mpmath.besseli(order + 1, k) / value


@pytest.mark.parametrize("d", DIMENSIONS)
def test_normaliser_and_mean_cosine_against_mpmath(d: int) -> None:
    kappa = torch.tensor(KAPPAS, dtype=F64)
    with mpmath.workdps(40):
        area = mpmath.log(2) + mpmath.mpf(d) / 2 * mpmath.log(mpmath.pi) - mpmath.loggamma(mpmath.mpf(d) / 2)
        rows = zip(
            KAPPAS,
            vmf.log_c_ratio(kappa, d).tolist(),
            vmf.log_c(kappa, d).tolist(),
            vmf.mean_cosine(kappa, d).tolist(),
            strict=True,
        )
        for k, log_ratio, log_c, cosine in rows:
            ratio, mean = _exact(d, k)
            # The specified bound is 1e-10; measured worst 3e-15.
            assert abs(log_c - (ratio - area)) <= 1e-13 * max(1, abs(ratio - area))
            # Relative: nothing cancels at small kappa (measured worst 2.5e-10, at kappa = 1e-3 and
            # d = 2048).
            assert abs(log_ratio - ratio) <= 1e-9 * abs(ratio)
            assert abs(cosine - mean) <= 1e-14 * mean


def test_kappa_zero_is_the_uniform_law() -> None:
    for d in DIMENSIONS:
        zero = torch.zeros(1, dtype=F64)
        assert vmf.log_c_ratio(zero, d).item() == 0
        assert vmf.mean_cosine(zero, d).item() == 0
        assert vmf.cosine_variance(zero, d).item() == pytest.approx(1 / d, rel=1e-12)
        assert vmf.inverse_mean_cosine(zero, d).item() == 0


@pytest.mark.parametrize("d", [2, 5, 64, 640])
def test_derivatives(d: int) -> None:
    """log C' = -A and A' = the variance, by finite differences (good to 1e-6), twice."""
    kappa = torch.tensor([0.3, 5.0, 80.0, 700.0], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda k: vmf.log_c_ratio(k, d), kappa)
    assert torch.autograd.gradgradcheck(lambda k: vmf.log_c_ratio(k, d), kappa)
    assert vmf.log_c_ratio(kappa.float(), d).dtype == torch.float32


@pytest.mark.parametrize("d", DIMENSIONS)
def test_inverse_mean_cosine_inverts_mean_cosine(d: int) -> None:
    kappa = torch.tensor(KAPPAS, dtype=F64)
    back = vmf.inverse_mean_cosine(vmf.mean_cosine(kappa, d), d)
    # A is within (d-1)/(2 kappa) of 1, so its last bit is worth 1e-16 * 2 kappa^2/(d-1) in kappa.
    tolerance = 1e-13 + 16 * 2e-16 * 2 * kappa / (d - 1)
    assert ((back - kappa).abs() / kappa <= tolerance).all()


def test_noise_levels_of_model_section_9() -> None:
    """The table of that section, which is rounded to whole numbers."""
    got = [round(vmf.sigma_to_kappa(sigma, 640)) for sigma in (0.01, 0.05, 0.1, 0.2, 0.5)]
    assert got == [10315, 645, 272, 129, 51]
    assert vmf.kappa_critical(640, torch.tensor(math.log(64))).item() == pytest.approx(72.96, abs=0.01)


@pytest.mark.parametrize(("d", "kappa"), [(2, 1e4), (3, 0.0), (3, 5.0), (64, 50.0), (640, 640.0), (640, 3000.0)])
def test_samples(d: int, kappa: float) -> None:
    n = 4000
    mu = torch.nn.functional.normalize(torch.randn(n, d, dtype=F64, generator=torch.Generator().manual_seed(d)))
    x = vmf.sample_vmf(mu, kappa, seed=7)
    assert (x.norm(dim=-1) - 1).abs().max() < 1e-12
    t = (x * mu).sum(-1)
    level = torch.tensor(kappa, dtype=F64)
    mean, variance = vmf.mean_cosine(level, d).item(), vmf.cosine_variance(level, d).item()
    assert mean_test(t, mean).p > ALPHA
    assert mean_test((t - mean).square(), variance).p > ALPHA
    assert cosine_test(t, d, kappa).p > ALPHA
    # The direction around mu is uniform: any fixed rotation of the tangent parts has mean zero.
    tangent = torch.nn.functional.normalize(x - t[:, None] * mu)
    assert mean_test(tangent[:, 0], 0.0).p > ALPHA
    if kappa == 0:
        assert resultant_test(x).p > ALPHA


def test_samples_are_a_function_of_the_seed() -> None:
    mu = torch.nn.functional.normalize(torch.ones(5, 8), dim=-1)
    kappa = torch.tensor([0.0, 1.0, 10.0, 100.0, 1e4])
    assert torch.equal(vmf.sample_vmf(mu, kappa, seed=1), vmf.sample_vmf(mu, kappa, seed=1))
    assert not torch.equal(vmf.sample_vmf(mu, kappa, seed=1), vmf.sample_vmf(mu, kappa, seed=2))


def test_errors_name_the_bad_argument() -> None:
    for call, words in [
        (lambda: vmf.log_c_ratio(torch.tensor(-1.0), 8), "kappa = -1.0"),
        (lambda: vmf.log_c_ratio(torch.tensor(math.nan), 8), "kappa = nan"),
        (lambda: vmf.log_c_ratio(torch.tensor(1.0), 1), "d = 1"),
        (lambda: vmf.inverse_mean_cosine(torch.tensor(1.0), 8), "resultant = 1.0"),
        (lambda: vmf.sigma_to_kappa(0.0, 8), "sigma = 0.0"),
        (lambda: vmf.sample_vmf(torch.eye(3), 1.0), "exactly one"),
    ]:
        with pytest.raises(ArgumentError, match=words):
            call()
