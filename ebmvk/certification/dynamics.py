"""Tests 1 and 3: laws that every single chain obeys, up to rounding or a power of the step size."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ebmvk.certification.chains import Run, Target, Task, arc_step, uniform_start, vmf_target
from ebmvk.certification.results import Bench, Check, Findings, Picture, Series
from ebmvk.engine.api import Scheme
from ebmvk.sphere.geometry import projx

SCHEMES: tuple[Scheme, ...] = ("gbaoab", "ghmc")
ARCS = (0.4, 0.2, 0.1)


def constraints(bench: Bench) -> Findings:
    """Test 1: |x| = 1 and x.v = 0, at the end and within each step, before they are restored.

    d = kappa = 640. The bound allows for float32 rounding: |x| and x.v are sums of 640 products
    rounded to 6e-8. 2.4e-7 was measured, and .5 if a projection is missing.
    """
    d, kappa, sizes = 640, 640.0, bench.sizes
    x, v = uniform_start(sizes.long_chains, d, bench.seed)
    checks = []
    for scheme in SCHEMES:
        leapfrogs = 4 if scheme == "ghmc" else 1
        steps = sizes.long_steps // leapfrogs
        task = Task(
            *(vmf_target(d, kappa), x, v, arc_step(0.15, d), math.sqrt(kappa), steps, bench.seed),
            scheme=scheme,
            leapfrogs=leapfrogs,
        )
        run = bench.sampler(task)
        worst = max(_defect(run), float(run.tangency.max()))
        checks.append(
            Check(
                *(1, f"constraints, {scheme}", f"|x| = 1, x.v = 0 through {sizes.long_steps:,} steps, d = {d}"),
                *(sizes.long_chains, worst, "max"),
                high=2e-6,
            )
        )
    return Findings(checks)


def _defect(run: Run) -> float:
    x, v = run.x.double(), run.v.double()
    radial = (x * v).sum(1).abs() / v.norm(dim=1)
    return float(torch.maximum((x.norm(dim=1) - 1).abs(), radial).max())


def _landscape(seed: int) -> Target:
    """Eight different modes and a background in 16 dimensions."""
    g = torch.Generator().manual_seed(seed)
    mu = projx(torch.randn(8, 16, generator=g))
    return Target(mu, torch.randn(8, generator=g) - 3, torch.linspace(4, 12, 8), log_background=0.0)


def reversal(bench: Bench) -> Findings:
    """Test 3: without friction, chains with reversed velocities return to where they came from.

    The bound allows for float32 rounding over 60 steps, on a landscape that amplifies errors
    little; 3e-6 was measured.
    """
    target = _landscape(bench.seed)
    x, v = uniform_start(200, target.d, bench.seed)
    there = Task(target, x, v, arc_step(0.15, target.d), 0.0, 30, bench.seed)
    end = bench.sampler(there)
    back = bench.sampler(replace(there, x=end.x, v=-end.v))
    gap = max(float((back.x - x).abs().max()), float((back.v + v).abs().max() / v.norm(dim=1).mean()))
    claim = "gamma = 0: 30 steps, v reversed, 30 steps lead back"
    return Findings([Check(3, "reversible", claim, len(x), gap, "max", high=3e-5)])


def energy_order(bench: Bench) -> Findings:
    """Test 3: without friction, the rms of H(end) - H(start) over a fixed time falls as h^2."""
    target = _landscape(bench.seed)
    x, v = uniform_start(200, target.d, bench.seed)
    before = target.energy(x) + v.double().square().sum(1) / 2
    checks, series = [], []
    for scheme in SCHEMES:
        errors = []
        for arc in ARCS:
            # GHMC takes one trajectory, accepted or not; g-BAOAB takes the same number of steps.
            count = round(6.4 / arc)
            step = arc_step(arc, target.d)
            if scheme == "ghmc":
                run = bench.sampler(Task(target, x, v, step, 0.0, 1, bench.seed, scheme, count))
                change = run.energy_error.double()
            else:
                run = bench.sampler(Task(target, x, v, step, 0.0, count, bench.seed))
                change = target.energy(run.x) + run.v.double().square().sum(1) / 2 - before
            errors.append(float(change.square().mean().sqrt()))
        slope = math.log2(errors[-2] / errors[-1]) if errors[-1] > 0 else math.nan
        claim = f"gamma = 0: energy error falls as h^2 (arcs {ARCS[-2]}, {ARCS[-1]})"
        detail = ", ".join(f"{error:.2e} at {arc}" for arc, error in zip(ARCS, errors, strict=True))
        name = f"energy error, {scheme}"
        checks.append(Check(3, name, claim, len(x), slope, "slope", low=1.9, high=2.1, detail=detail))
        series.append(Series(scheme, ARCS, errors, marks=True))
    guide = [series[0].y[-1] * (arc / ARCS[-1]) ** 2 for arc in ARCS]
    series.append(Series("slope 2", ARCS, guide))
    title = "Energy error without friction"
    return Findings(checks, [Picture("energy-error", title, "arc per step (rad)", "rms of H change", series, log=True)])


def rotation(bench: Bench) -> Findings:
    """Test 3: without force and friction a chain follows a great circle, so x ^ v is conserved.

    The bound allows for float32 rounding over 40 steps, relative to |v|. 1.5e-6 was measured, and
    .2 if v isn't transported.
    """
    d = 8
    x, v = uniform_start(200, d, bench.seed)
    checks = []
    for scheme in SCHEMES:
        task = Task(vmf_target(d, 0.0), x, v, arc_step(0.15, d), 0.0, 40, bench.seed, scheme, leapfrogs=1)
        run = bench.sampler(task)
        gap = (_wedge(run.x, run.v) - _wedge(x, v)).abs().amax((1, 2)) / v.norm(dim=1)
        claim = "E = 0, gamma = 0: x ^ v conserved through 40 steps"
        checks.append(Check(3, f"rotation, {scheme}", claim, len(x), float(gap.max()), "max", high=1e-5))
    return Findings(checks)


def _wedge(x: Tensor, v: Tensor) -> Tensor:
    x, v = x.double(), v.double()
    return x[:, :, None] * v[:, None, :] - x[:, None, :] * v[:, :, None]
