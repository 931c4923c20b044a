"""Test 7: compares how often chains visit each mode of a mixture with exact samples.

It tests single chains of a `Sampler`. It also tests block Gibbs and tempering, which run on a
backend's latent law instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ebmvk.certification import statistics
from ebmvk.certification.chains import Target, Task, arc_step, onward, uniform_start
from ebmvk.certification.results import Bench, Findings, Picture, Series, Sizes, by_p
from ebmvk.engine.api import Backend, Scheme
from ebmvk.sampling.gibbs import block_gibbs
from ebmvk.sampling.latent import LatentLaw
from ebmvk.sampling.tempering import tempering
from ebmvk.sphere.geometry import projx
from ebmvk.sphere.vmf import log_c_ratio, sample_vmf

D, MODES, KAPPA = 16, 8, 8.0
LEVELS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
"""Levels of the concentration, in units of KAPPA, which is about kappa_c of these weights.

At the last level the modes are distinct.
"""
BELOW, ABOVE = LEVELS[2], LEVELS[-1]
"""A level where block Gibbs mixes, and a level where it doesn't."""
TEMPERED = 5000
"""Most chains of tempering; each has four replicas."""


@dataclass(frozen=True)
class Mixture:
    """mu: (MODES, D) unit rows; p: (MODES + 1,) Zipf weights, with the background's weight last.

    The background has the second largest weight.
    """

    mu: Tensor
    p: Tensor

    @classmethod
    def of(cls, seed: int) -> Mixture:
        mu = projx(torch.randn(MODES, D, generator=torch.Generator().manual_seed(seed)))
        zipf = torch.softmax(-torch.arange(MODES + 1.0).add(1).log(), 0)
        return cls(mu, torch.cat((zipf[:1], zipf[2:], zipf[1:2])))

    def target(self, level: float) -> Target:
        kappa = torch.full((MODES,), KAPPA * level)
        return Target(self.mu, self.p[:-1].log() + log_c_ratio(kappa, D), kappa, float(self.p[-1].log()))

    def exact(self, level: float, n: int, seed: int) -> Tensor:
        """n exact samples, (n, D)."""
        g = torch.Generator().manual_seed(seed)
        choice = torch.multinomial(self.p, n, replacement=True, generator=g)
        kappa = torch.where(choice == MODES, 0.0, KAPPA * level)
        return sample_vmf(self.mu[choice.clamp_max(MODES - 1)], kappa, generator=g)

    def law(self, backend: Backend, n: int) -> tuple[LatentLaw, Tensor]:
        """The latent law of n chains, and its points (MODES + 1, D); the last point is unused."""
        rows = torch.cat((self.mu, self.mu[:1]))
        log_p = self.p.log().expand(n, -1).contiguous()
        ids = torch.arange(MODES).expand(n, -1).contiguous()
        return LatentLaw.with_candidates(backend, backend.points(rows), ids, log_p), rows

    def mean(self, level: float) -> Tensor:
        """(D,) float64: the mean state. The background contributes nothing."""
        weights = self.p[:-1].double() * statistics.vmf_mean(D, KAPPA * level)
        return weights @ self.mu.double()


@dataclass(frozen=True)
class Wanted:
    """Exact samples, to compare states with.

    States are counted by their likeliest component, and by whether their energy is above the median
    of the n exact samples. counts: the counts of the exact samples; mean: (D,), the exact mean
    state.
    """

    target: Target
    median: float
    n: int
    counts: Tensor
    mean: Tensor

    @classmethod
    def of(cls, mixture: Mixture, level: float, n: int, seed: int) -> Wanted:
        exact, target = mixture.exact(level, n, seed + 1), mixture.target(level)
        median = float(target.energy(exact).median())
        return cls(target, median, n, _cells(target, exact, median), mixture.mean(level))

    def findings(self, name: str, how: str, x: Tensor, detail: str = "") -> Findings:
        seen = _cells(self.target, x, self.median)
        found = statistics.same_law_test(seen, self.counts)
        claim = f"{how}{MODES} modes and background, low and high energy: as often as in {self.n:,} exact samples"
        checks = [
            by_p(7, name, claim, len(x), "chi2", found, detail),
            by_p(7, f"{name}: mean", f"{how}mean state of the mixture (Hotelling)", len(x), "T2",
                 statistics.known_mean_test(x, self.mean)),
        ]  # fmt: skip
        return Findings(checks, [_picture(seen, self.counts, name)])


def _join(parts: list[Findings]) -> Findings:
    checks = [check for part in parts for check in part.checks]
    return Findings(checks, [picture for part in parts for picture in part.pictures])


def weights(bench: Bench) -> Findings:
    """Test single chains. They are annealed, because chains at the last level don't change modes.

    GHMC is exact at each level. g-BAOAB runs at most 4,000 chains; at an arc of .1 its bias is far
    below the noise of these chains.
    """
    mixture = Mixture.of(bench.seed)
    targets = [mixture.target(level) for level in LEVELS]
    wanted = Wanted.of(mixture, LEVELS[-1], 4 * bench.sizes.chains, bench.seed)
    parts = []
    cases: tuple[tuple[Scheme, float, int, int], ...] = (
        ("ghmc", 0.5, 30, bench.sizes.chains),
        ("gbaoab", 0.1, 200, min(4000, bench.sizes.chains)),
    )
    for scheme, arc, steps, n in cases:
        x, v = uniform_start(n, D, bench.seed)
        task = Task(targets[0], x, v, arc_step(arc, D), KAPPA**0.5, steps, bench.seed, scheme, leapfrogs=2)
        for target in targets[1:]:
            task = onward(task, bench.sampler(task), target=target)
        parts.append(wanted.findings(f"mixture weights, {scheme}", "", bench.sampler(task).x))
    return _join(parts)


def gibbs(backend: Backend, sizes: Sizes, seed: int) -> Findings:
    """Test block Gibbs, from uniform states below kappa_c and from exact states above it."""
    mixture, n = Mixture.of(seed), sizes.chains
    law, mu = mixture.law(backend, n)
    parts = []
    for name, level, sweeps, start in (
        ("mixture weights", BELOW, 30, None),
        ("invariance", ABOVE, 5, mixture.exact(ABOVE, n, seed + 2)),
    ):
        run = block_gibbs(law, mu, seed=seed, sweeps=sweeps, kappa=KAPPA * level, start=start)
        how = f"kappa {KAPPA * level:g}, {sweeps} sweeps from {'uniform' if start is None else 'exact'} states: "
        detail = f"another component after {float(run.moved.mean()):.2f} of the sweeps"
        parts.append(Wanted.of(mixture, level, 4 * n, seed).findings(f"{name}, gibbs", how, run.x.cpu(), detail))
    return _join(parts)


def replicas(backend: Backend, sizes: Sizes, seed: int) -> Findings:
    """Test tempering from uniform states; no single chain mixes on its highest rung."""
    mixture, n = Mixture.of(seed), min(sizes.chains, TEMPERED)
    law, _ = mixture.law(backend, n)
    run = tempering(law, seed=seed, kappa=KAPPA * ABOVE)
    swaps = ", ".join(f"{float(rate):.2f}" for rate in run.swaps.mean(0))
    detail = f"exchanges accepted {swaps}; trajectories {float(run.diagnostics.acceptance.mean()):.2f}"
    wanted = Wanted.of(mixture, ABOVE, 4 * n, seed)
    return wanted.findings("mixture weights, tempering", f"kappa {KAPPA * ABOVE:g}: ", run.x.cpu(), detail)


def _cells(target: Target, x: Tensor, median: float) -> Tensor:
    """Counts (2 (MODES + 1),) of states: by component at low energy, then at high energy."""
    high = target.energy(x) > median  # False for NaN; argmax then gives the first component
    return torch.bincount(target.terms(x).argmax(1) + high * (MODES + 1), minlength=2 * (MODES + 1))


def _picture(seen: Tensor, wanted: Tensor, name: str) -> Picture:
    by_mode = [counts.view(2, -1).sum(0) / counts.sum() for counts in (seen, wanted)]
    order = list(range(1, MODES + 2))
    series = [
        Series("chains", order, by_mode[0].tolist(), marks=True),
        Series("exact samples", order, by_mode[1].tolist()),
    ]
    title = f"Components of states, {name}"
    slug = name.replace("mixture ", "").replace(", ", "-")
    return Picture(slug, title, "component (the last: background)", "share", series)
