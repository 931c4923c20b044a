"""Test 7: the weights of a mixture's modes, against exact samples."""

from __future__ import annotations

import torch

from ebmvk.certification import statistics
from ebmvk.certification.chains import Target, Task, arc_step, onward, uniform_start
from ebmvk.certification.results import Bench, Findings, Picture, Series, by_p
from ebmvk.engine.api import Scheme
from ebmvk.sphere.geometry import projx
from ebmvk.sphere.vmf import log_c_ratio, sample_vmf

D, MODES, KAPPA = 16, 8, 8.0
LEVELS = (0.25, 0.5, 0.75, 1.0)


def weights(bench: Bench) -> Findings:
    """States counted by the component that most likely made them, and as many of four times as many exact samples.

    kappa = 8 is about kappa_c of these weights: modes are distinct, and chains still cross between them. GHMC is exact;
    g-BAOAB's bias at an arc of .1 is far below the noise of the 4,000 chains it gets at most.
    """
    p = torch.softmax(-torch.arange(MODES + 1.0).add(1).log(), 0)  # Zipf; the last is the background
    mu = projx(torch.randn(MODES, D, generator=torch.Generator().manual_seed(bench.seed)))
    targets = [_target(mu, p, KAPPA * level) for level in LEVELS]
    exact = _components(targets[-1], _exact(mu, p, 4 * bench.sizes.chains, bench.seed))
    checks, pictures = [], []
    cases: tuple[tuple[Scheme, float, int, int], ...] = (
        ("ghmc", 0.5, 40, bench.sizes.chains),
        ("gbaoab", 0.1, 400, min(4000, bench.sizes.chains)),
    )
    for scheme, arc, steps, n in cases:
        x, v = uniform_start(n, D, bench.seed)
        task = Task(targets[0], x, v, arc_step(arc, D), KAPPA**0.5, steps, bench.seed, scheme, leapfrogs=2)
        for target in targets[1:]:
            task = onward(task, bench.sampler(task), target=target)
        seen = _components(targets[-1], bench.sampler(task).x)
        claim = f"{MODES} modes and background: as often as in {len(exact):,} exact samples"
        found = statistics.same_law_test(_count(seen), _count(exact))
        checks.append(by_p(7, f"mixture weights, {scheme}", claim, n, "chi2", found))
        order = list(range(1, MODES + 2))
        shares = (_count(seen) / n).tolist(), (_count(exact) / len(exact)).tolist()
        series = [Series("chains", order, shares[0], marks=True), Series("exact samples", order, shares[1])]
        title = f"Components of states, {scheme}"
        pictures.append(Picture(f"weights-{scheme}", title, "component (the last: background)", "share", series))
    return Findings(checks, pictures)


def _target(mu: torch.Tensor, p: torch.Tensor, kappa: float) -> Target:
    level = torch.full((MODES,), kappa)
    return Target(mu, p[:-1].log() + log_c_ratio(level, D), level, float(p[-1].log()))


def _exact(mu: torch.Tensor, p: torch.Tensor, n: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed + 1)
    choice = torch.multinomial(p, n, replacement=True, generator=g)
    level = torch.where(choice == MODES, 0.0, KAPPA)
    return sample_vmf(mu[choice.clamp_max(MODES - 1)], level, generator=g)


def _components(target: Target, x: torch.Tensor) -> torch.Tensor:
    return target.terms(x).argmax(1)


def _count(components: torch.Tensor) -> torch.Tensor:
    return torch.bincount(components, minlength=MODES + 1)
