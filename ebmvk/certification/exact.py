"""Test 12: exact von Mises-Fisher samples of a backend, against their law."""

from __future__ import annotations

import torch

from ebmvk.certification import statistics
from ebmvk.certification.chains import vmf_target
from ebmvk.certification.results import Findings, Sizes, by_p
from ebmvk.engine.api import Backend
from ebmvk.sphere.geometry import projx
from ebmvk.sphere.vmf import cosine_variance


def samples(backend: Backend, sizes: Sizes, seed: int) -> Findings:
    """Law, mean and variance of t = mu.x, and directions around mu, which are uniform."""
    checks = []
    for d, kappa, n in ((8, 8.0, sizes.chains), (640, 640.0, sizes.wide)):
        mu = vmf_target(d, kappa).mu
        x = backend.vmf_sample(mu.expand(n, d).contiguous(), torch.full((n,), kappa), seed=seed).cpu().double()
        t = x @ mu[0].double()
        mean = statistics.vmf_mean(d, kappa)
        variance = float(cosine_variance(torch.tensor(kappa, dtype=torch.float64), d))
        # In an orthonormal basis of the space around mu: the last d - 1 columns of a full QR of mu.
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
