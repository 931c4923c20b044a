"""Test 12: compares exact von Mises-Fisher samples with their law, and log C with an integral."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import special

from ebmvk.certification import statistics
from ebmvk.certification.chains import vmf_target
from ebmvk.certification.results import Check, Findings, Sizes, by_p
from ebmvk.engine.api import Backend
from ebmvk.sampling.latent import LatentLaw
from ebmvk.sampling.schedule import annealed_schedule
from ebmvk.sphere.geometry import projx
from ebmvk.sphere.vmf import cosine_variance


def samples(backend: Backend, sizes: Sizes, seed: int) -> Findings:
    """Test the law, mean and variance of t = mu.x, and that directions around mu are uniform."""
    checks = []
    for d, kappa, n in ((8, 8.0, sizes.chains), (640, 640.0, sizes.wide)):
        mu = vmf_target(d, kappa).mu
        x = backend.vmf_sample(mu.expand(n, d).contiguous(), torch.full((n,), kappa), seed=seed).cpu().double()
        t = x @ mu[0].double()
        mean = statistics.vmf_mean(d, kappa)
        variance = float(cosine_variance(torch.tensor(kappa, dtype=torch.float64), d))
        # The directions are expressed in an orthonormal basis of the space orthogonal to mu, which
        # is the last d - 1 columns of a full QR decomposition of mu.
        basis = torch.linalg.qr(torch.cat((mu.T.double(), torch.eye(d, dtype=torch.float64)[:, 1:]), 1))[0][:, 1:]
        case, around = f"d = kappa = {d}", projx(x @ basis)
        checks += [
            by_p(12, f"vmf_sample law, d = {d}", f"{case}: t = mu.x follows its law (KS)", n, "D",
                 statistics.cosine_test(t, d, kappa)),
            by_p(12, f"vmf_sample mean, d = {d}", f"{case}: mean of t is A_d", n, "z",
                 statistics.mean_test(t, mean), f"{float(t.mean()):.5f} for {mean:.5f}"),
            by_p(12, f"vmf_sample variance, d = {d}", f"{case}: variance of t", n, "z",
                 statistics.mean_test((t - mean).square(), variance), f"{float(t.var()):.3e} for {variance:.3e}"),
            by_p(12, f"vmf_sample directions, d = {d}", f"{case}: directions around mu are uniform", n, "chi2",
                 statistics.resultant_test(around)),
        ]  # fmt: skip
    return Findings(checks)


def normaliser(backend: Backend) -> Findings:
    """Test log C_d(kappa)/C_d(0) in the energy of a one-token law and in the shifts of a schedule.

    The bound allows for float32 rounding of kappa and log C, which reach 90 here; 2e-5 was
    measured. An error of 1 in d would shift log C by .02 at d = 256.
    """
    gap, dimensions = 0.0, (16, 64, 256, 640)
    for d in dimensions:
        schedule = annealed_schedule(d, torch.full((1,), 3.0))
        points = backend.points(vmf_target(d, 0.0).mu)
        one = (torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1), torch.full((1,), -math.inf))
        law, at = LatentLaw(backend, points, *one), vmf_target(d, 0.0).mu
        for kappa, shift in zip(schedule.kappa_scale[0].tolist(), schedule.logw_shift[0].tolist(), strict=True):
            wanted = _log_c_ratio(d, kappa)
            energy = float(law.energy_score(at, kappa).energy)
            gap = max(gap, abs(shift - wanted), abs(energy + kappa + wanted))
    claim = f"log C in laws and schedules equals an integral, d = {', '.join(map(str, dimensions))}"
    return Findings([Check(12, "normaliser", claim, 10 * len(dimensions), gap, "max", high=1e-3)])


def _log_c_ratio(d: int, kappa: float) -> float:
    """log C_d(kappa)/C_d(0) by the trapezoidal rule over the angle. The integrand is periodic, so
    the rule is exact up to rounding.
    """
    theta = np.linspace(0, math.pi, 20_001)[1:-1]
    flat = (d - 2) * np.log(np.sin(theta))
    return float(special.logsumexp(flat) - special.logsumexp(flat + kappa * np.cos(theta)))
