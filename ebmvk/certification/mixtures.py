"""Test 7: the weights of a mixture's modes, against exact samples."""

from __future__ import annotations

import torch
from torch import Tensor

from ebmvk.certification import statistics
from ebmvk.certification.chains import Target, Task, arc_step, onward, uniform_start
from ebmvk.certification.results import Bench, Findings, Picture, Series, by_p
from ebmvk.engine.api import Scheme
from ebmvk.sphere.geometry import projx
from ebmvk.sphere.vmf import log_c_ratio, sample_vmf

D, MODES, KAPPA = 16, 8, 8.0
LEVELS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
"""Of KAPPA, which is about kappa_c of these weights: at the last one modes are distinct."""


def weights(bench: Bench) -> Findings:
    """States counted by the component that most likely made them, and by whether their energy is above the median of
    exact samples; four times as many exact samples counted alike.

    Chains are annealed, as they would not cross between modes at the last level. GHMC is exact at each level; g-BAOAB's
    bias at an arc of .1 is far below the noise of the 4,000 chains it gets at most.
    """
    p = torch.softmax(-torch.arange(MODES + 1.0).add(1).log(), 0)  # Zipf; the last is the background
    mu = projx(torch.randn(MODES, D, generator=torch.Generator().manual_seed(bench.seed)))
    targets = [_target(mu, p, KAPPA * level) for level in LEVELS]
    exact = _exact(mu, p, 4 * bench.sizes.chains, bench.seed)
    median = float(targets[-1].energy(exact).median())
    wanted = _cells(targets[-1], exact, median)
    checks, pictures = [], []
    cases: tuple[tuple[Scheme, float, int, int], ...] = (
        ("ghmc", 0.5, 30, bench.sizes.chains),
        ("gbaoab", 0.1, 200, min(4000, bench.sizes.chains)),
    )
    for scheme, arc, steps, n in cases:
        x, v = uniform_start(n, D, bench.seed)
        task = Task(targets[0], x, v, arc_step(arc, D), KAPPA**0.5, steps, bench.seed, scheme, leapfrogs=2)
        for target in targets[1:]:
            task = onward(task, bench.sampler(task), target=target)
        seen = _cells(targets[-1], bench.sampler(task).x, median)
        claim = f"{MODES} modes and background, low and high energy: as often as in {len(exact):,} exact samples"
        checks.append(by_p(7, f"mixture weights, {scheme}", claim, n, "chi2", statistics.same_law_test(seen, wanted)))
        pictures.append(_picture(seen, wanted, scheme))
    return Findings(checks, pictures)


def _target(mu: Tensor, p: Tensor, kappa: float) -> Target:
    level = torch.full((MODES,), kappa)
    return Target(mu, p[:-1].log() + log_c_ratio(level, D), level, float(p[-1].log()))


def _exact(mu: Tensor, p: Tensor, n: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed + 1)
    choice = torch.multinomial(p, n, replacement=True, generator=g)
    level = torch.where(choice == MODES, 0.0, KAPPA * LEVELS[-1])
    return sample_vmf(mu[choice.clamp_max(MODES - 1)], level, generator=g)


def _cells(target: Target, x: Tensor, median: float) -> Tensor:
    """Counts (2 (MODES + 1),): components of low energy, then those of high energy."""
    high = target.energy(x) > median  # False for NaN, whose component is the first
    return torch.bincount(target.terms(x).argmax(1) + high * (MODES + 1), minlength=2 * (MODES + 1))


def _picture(seen: Tensor, wanted: Tensor, scheme: str) -> Picture:
    by_mode = [counts.view(2, -1).sum(0) / counts.sum() for counts in (seen, wanted)]
    order = list(range(1, MODES + 2))
    series = [
        Series("chains", order, by_mode[0].tolist(), marks=True),
        Series("exact samples", order, by_mode[1].tolist()),
    ]
    title = f"Components of states, {scheme}"
    return Picture(f"weights-{scheme}", title, "component (the last: background)", "share", series)
