"""Test 11: random numbers of different steps, chains, seeds and coordinates are independent.

Without a force, and with enough friction to remove the old velocity, the velocity after one step is
the noise of that step. So a counter that repeats, or is partly ignored, causes a correlation.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from scipy import stats
from torch import Tensor

from ebmvk.certification import statistics
from ebmvk.certification.chains import Task, arc_step, uniform_start, vmf_target
from ebmvk.certification.results import Bench, Check, Findings, by_p
from ebmvk.certification.statistics import Evidence

CHAINS, D = 8, 256
FRESH = 40.0  # friction times step: e^-40 of the old velocity remains
STRAY = (50_000, 65_535, 65_537, 99_999, 100_000, 1_000_000)
"""Distances in steps that are tested besides the powers of two."""


def independent_noise(bench: Bench) -> Findings:
    """Compare the noise of steps, chains and seeds whose numbers differ by a power of two.

    The powers go up to 2^31 for steps and chains, and up to 2^62 for seeds.
    """
    x, v = uniform_start(CHAINS, D, bench.seed)
    h = arc_step(1e-3, D)
    start = Task(vmf_target(D, 0.0), x, 0 * v, h, FRESH / h, 1, bench.seed)
    own = bench.sampler(start).v
    powers = [2**k for k in range(32)]
    far = {
        "steps": [replace(start, first_step=step) for step in (*powers, *STRAY)],
        "chains": [replace(start, first_chain=chain) for chain in powers],
        "seeds": [replace(start, seed=bench.seed ^ 2**k) for k in range(63)],
    }
    checks = []
    values = [own]
    for name, tasks in far.items():
        runs = [bench.sampler(task).v for task in tasks]
        # Compare rows in the same place. Shifted chains share some numbers, but in other rows.
        checks.append(_check(f"noise of {name}", f"no two {name} share noise, at any distance", own, runs))
        values += runs
    checks.append(_coordinates(own))
    checks.append(_halves(bench, start))
    checks.append(_normal(torch.cat(values), x))
    return Findings(checks)


def _check(name: str, claim: str, own: Tensor, others: list[Tensor]) -> Check:
    tested = statistics.uncorrelated_test([(own, other) for other in others])
    detail = f"the largest of {len(others)} correlations"
    return by_p(11, name, f"E = 0, one step: {claim}", own.numel() * len(others), "z", tested, detail)


def _coordinates(noise: Tensor) -> Check:
    pairs = [(noise[:, 2**k :], noise[:, : -(2**k)]) for k in range(8)]
    tested = statistics.uncorrelated_test(pairs)
    claim = "E = 0, one step: no two coordinates share noise"
    return by_p(11, "noise of coordinates", claim, sum(a.numel() for a, _ in pairs), "z", tested)


def _halves(bench: Bench, start: Task) -> Check:
    """The first half of GHMC's noise moves x; the second half is the velocity at the end."""
    task = replace(start, scheme="ghmc", leapfrogs=1, gamma=2 * start.gamma)
    run = bench.sampler(task)
    tested = statistics.uncorrelated_test([(run.x - start.x, run.v)])
    claim = "E = 0, one step: the noise before and after a trajectory differs"
    return by_p(11, "noise of halves, ghmc", claim, run.v.numel(), "z", tested)


def _normal(noise: Tensor, x: Tensor) -> Check:
    """Kolmogorov-Smirnov test of all numbers, scaled to undo the projection."""
    values = (noise.double() / (1 - x.double().square()).sqrt().repeat(len(noise) // len(x), 1)).flatten()
    if not bool(torch.isfinite(values).all()):
        return by_p(11, "noise is normal", "", len(values), "D", Evidence(float("nan"), float("nan")))
    found = stats.kstest(values.numpy(), "norm")
    claim = "E = 0, one step: a velocity is normal"
    tested = Evidence(float(found.statistic), float(found.pvalue))
    return by_p(11, "noise is normal", claim, len(values), "D", tested)
