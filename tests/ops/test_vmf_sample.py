"""vmf_sample: the oracle's samples, the exact law of the cosine, and independence of the batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from op_problems import nmse, unit
from scipy import stats

from ebmvk.engine import Backend
from ebmvk.engine.reference import Reference
from ebmvk.errors import ArgumentError


def problem(b: int, d: int, kappa: float) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(b + d)
    return unit(b, d, generator=g), kappa * torch.rand(b, generator=g)


@pytest.mark.parametrize("shape", [(0, 4), (1, 2), (5, 3), (31, 33), (7, 65), (4, 640)], ids=str)
@pytest.mark.parametrize("kappa", [0.0, 10.0, 1e4])
def test_samples_match_the_oracle(backend: Backend, oracle: Reference, shape: tuple[int, int], kappa: float) -> None:
    mu, level = problem(*shape, kappa)
    got = backend.vmf_sample(mu, level, seed=2**40 + 3, first_row=17)
    assert nmse(got, oracle.vmf_sample(mu, level, seed=2**40 + 3, first_row=17)) <= 1e-9
    assert not got.numel() or float((got.norm(dim=1) - 1).abs().max()) < 1e-6


@pytest.mark.parametrize(("d", "kappa"), [(2, 3.0), (3, 5.0), (5, 0.0), (16, 40.0), (640, 640.0)])
def test_cosines_have_the_exact_distribution(backend: Backend, d: int, kappa: float) -> None:
    """Kolmogorov-Smirnov against the density (1 - t^2)^((d-3)/2) e^(kappa t), integrated over the
    angle.
    """
    n = 4000
    mu = unit(1, d, generator=torch.Generator().manual_seed(d)).expand(n, d).contiguous()
    t = (backend.vmf_sample(mu, torch.full((n,), kappa), seed=d) * mu).sum(1).double().clamp(-1, 1).numpy()
    angle = np.linspace(0, math.pi, 200_001)
    log_density = (d - 2) * np.log(np.sin(angle).clip(1e-300)) + kappa * np.cos(angle)
    density = np.exp(log_density - log_density.max())
    below = np.concatenate(([0.0], np.cumsum((density[1:] + density[:-1]) / 2)))
    p = stats.kstest(np.arccos(t), lambda a: np.interp(a, angle, below / below[-1])).pvalue
    assert p > 1e-4  # fixed seed


def test_directions_around_the_mean_are_uniform(backend: Backend) -> None:
    n, d = 4000, 6
    mu = unit(1, d, generator=torch.Generator().manual_seed(1)).expand(n, d).contiguous()
    x = backend.vmf_sample(mu, torch.full((n,), 7.0), seed=9).double()
    across = x - (x * mu).sum(1, keepdim=True) * mu
    across = across / across.norm(dim=1, keepdim=True)
    # n (d-1) |mean|^2 ~ chi^2_{d-1} for uniform directions of a (d-1)-dimensional space.
    assert stats.chi2.sf(float(n * (d - 1) * across.mean(0).square().sum()), d - 1) > 1e-4


def test_a_row_does_not_depend_on_the_batch(backend: Backend) -> None:
    if backend.name == "reference":
        pytest.skip("torch sums by shape, so the last bits of the reference may differ")
    mu, kappa = problem(23, 19, 50.0)
    whole = backend.vmf_sample(mu, kappa, seed=4)
    parts = [backend.vmf_sample(mu[a:b], kappa[a:b], seed=4, first_row=a) for a, b in ((0, 1), (1, 13), (13, 23))]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, backend.vmf_sample(mu, kappa, seed=5))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mu", {"mu": torch.ones(3, 4)}),
        ("mu", {"mu": torch.ones(3, 1)}),
        ("kappa", {"kappa": torch.ones(2)}),
        ("kappa", {"kappa": torch.tensor([1.0, -1.0, 0.0])}),
        ("kappa", {"kappa": torch.tensor([1.0, torch.nan, 0.0])}),
        ("seed", {"seed": -1}),
        ("first_row", {"first_row": 2**32 - 1}),
    ],
)
def test_bad_arguments_are_refused(backend: Backend, name: str, change: dict[str, torch.Tensor]) -> None:
    mu, kappa = problem(3, 4, 5.0)
    arguments = {"mu": mu, "kappa": kappa, "seed": 0, **change}
    with pytest.raises(ArgumentError, match=name):
        backend.vmf_sample(arguments.pop("mu"), arguments.pop("kappa"), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("kappa", [1e6, 1e12, 1e15])
def test_cosines_next_to_one_have_the_right_law(backend: Backend, kappa: float) -> None:
    """For large kappa, kappa (1 - t) = kappa |x - mu|^2 / 2 has the law Gamma((d - 1) / 2, 1) to
    within 1 / kappa.
    """
    n, d = 2000, 5
    mu = torch.eye(d)[:1].expand(n, d).contiguous()
    x = backend.vmf_sample(mu, torch.full((n,), kappa), seed=3)[:, 1:].double()  # the first coordinate rounds to 1
    assert stats.kstest((kappa * x.square().sum(1) / 2).numpy(), stats.gamma((d - 1) / 2).cdf).pvalue > 1e-4
