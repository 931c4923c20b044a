"""Test 10: all backends compute the same trajectories, and the same results of each operation."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from ebmvk.certification.chains import Run, Sampler, Target, Task, arc_step, engine_sampler, uniform_start
from ebmvk.certification.mutants import Plain
from ebmvk.certification.results import Check, Findings
from ebmvk.engine import select
from ebmvk.engine.api import Backend
from ebmvk.engine.reference import Reference
from ebmvk.errors import DeviceError
from ebmvk.sphere.geometry import projx

STEPS = 40
FEW = 6
FIRST = (2**16 - FEW // 2, 2**31 - FEW // 2)
"""Some trajectories begin at these step and chain numbers, just below a power of two."""


@dataclass(frozen=True)
class Peer:
    """Another implementation that runs the same chains."""

    name: str
    sampler: Sampler


def peers(backend: Backend) -> tuple[list[Peer], str]:
    """The float64 oracle, the suite's own integrator, and the other kind of device.

    Also returns a note that says why the other device is missing; "" if it isn't missing.
    """
    found = [
        Peer("float64 reference", engine_sampler(Reference(dtype=torch.float64))),
        Peer("the suite's own integrator", Plain()),
    ]
    other = "vulkan" if backend.name == "cpu" else "cpu"
    try:
        found.append(Peer(other, engine_sampler(select(other))))
    except (ImportError, DeviceError) as error:
        return found, f"no {other} to compare with: {str(error).splitlines()[0]}"
    return found, ""


def trajectories(backend: Backend, others: list[Peer], seed: int) -> Findings:
    """The largest deviation of x and v/sqrt(d); 16 chains, 40 steps, d = 640, 64 candidates.

    A few chains have chain or step numbers that pass 2^16 and 2^31. The bound allows for float32
    rounding over 40 steps; 1.1e-7 was measured.
    """
    g = torch.Generator().manual_seed(seed)
    d, k = 640, 64
    target = Target(
        projx(torch.randn(k, d, generator=g)), torch.randn(k, generator=g), 640 * torch.rand(k, generator=g), 0.0
    )
    x, v = uniform_start(16, d, seed)
    checks = []
    for scheme in ("gbaoab", "ghmc"):
        task = Task(target, x, v, arc_step(0.15, d), math.sqrt(640), STEPS // (4 if scheme == "ghmc" else 1), seed)
        task = replace(task, scheme=scheme)
        tasks = [task, *(_short(task, first) for first in FIRST)]
        mine = [engine_sampler(backend)(task) for task in tasks]
        for peer in others:
            gap = max(_gap(own, peer.sampler(task)) for own, task in zip(mine, tasks, strict=True))
            name = f"{backend.name} = {peer.name}, {scheme}"
            claim = f"the same chains after {STEPS} steps, d = {d}, some past number 2^16 and 2^31"
            checks.append(Check(10, name, claim, len(x), gap, "max", high=2e-6))
    return Findings(checks)


def _short(task: Task, first: int) -> Task:
    """The task with a few of its chains and steps, numbered from `first` on."""
    steps = min(2 * FEW, task.steps)
    return replace(task, x=task.x[:FEW], v=task.v[:FEW], steps=steps, first_step=first, first_chain=first)


def _gap(one: Run, other: Run) -> float:
    """Largest deviation of x, and of v over sqrt(d); NaN if any value is NaN."""
    d = one.x.shape[1]
    return float(torch.stack(((one.x - other.x).abs().max(), (one.v - other.v).abs().max() / math.sqrt(d))).max())


def operations(backend: Backend, seed: int) -> Findings:
    """Best candidates, energies, scores, responsibilities and exact samples, against float64.

    d = 640, 2,000 points. The bounds allow for float32 rounding. Scores of up to 40 are rounded to
    4e-6, and sums of 640 products add to this error; 1.2e-5 was measured.
    """
    g = torch.Generator().manual_seed(seed)
    d, v, k, n = 640, 2000, 64, 24
    oracle = Reference(dtype=torch.float64)
    mu, query = projx(torch.randn(v, d, generator=g)), 8 * torch.randn(n, d, generator=g)
    bias, scale = torch.randn(v, generator=g), 0.5 + torch.rand(v, generator=g)
    points, rows = backend.points(mu), oracle.points(mu)
    ids = backend.topk(query, points, k, scale=scale, bias=bias).ids.cpu()
    scores = scale.double() * (query.double() @ mu.double().T) + bias.double()
    best = scores.topk(k, dim=1)
    found = scores.gather(1, ids).sort(1, descending=True).values
    distinct = (ids.sort(1).values.diff(dim=1) > 0).all()
    lost = float((best.values - found).abs().max()) if bool(distinct) else math.inf
    x = projx(torch.randn(n, d, generator=g))
    logw, kappa = torch.randn(n, k, generator=g), 200 * torch.rand(n, k, generator=g)
    given = (best.indices, logw, kappa, torch.randn(n, generator=g))
    got, want = backend.energy_score(x, points, *given), oracle.energy_score(x, rows, *given)
    apart = max(
        float((one.cpu().double() - other).abs().max() / size)
        for one, other, size in (
            (got.energy, want.energy, 10.0),
            (got.score, want.score, 100.0),
            (got.responsibilities, want.responsibilities, 1.0),
            (got.background, want.background, 1.0),
        )
    )
    near, level = mu[:n].contiguous(), 640 * torch.rand(n, generator=g)
    how = {"seed": seed, "first_row": FIRST[0]}
    drawn = backend.vmf_sample(near, level, **how).cpu().double() - oracle.vmf_sample(near, level, **how)
    claims = (
        ("best candidates", f"the {k} best of {v:,} scores", n * k, lost, 1e-4),
        ("energies and scores", "energy, score and responsibilities", n, apart, 1e-5),
        ("exact samples", "the same states of vMF", n, float(drawn.abs().max()), 2e-6),
    )
    return Findings(
        [
            Check(10, f"{backend.name} = float64 reference, {name}", f"{what}, d = {d}", count, gap, "max", high=high)
            for name, what, count, gap, high in claims
        ]
    )
