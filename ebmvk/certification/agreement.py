"""Test 10: one trajectory, whoever computes it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ebmvk.certification.chains import Sampler, Target, Task, arc_step, engine_sampler, uniform_start
from ebmvk.certification.mutants import Plain
from ebmvk.certification.results import Check, Findings
from ebmvk.engine import select
from ebmvk.engine.api import Backend
from ebmvk.engine.reference import Reference
from ebmvk.errors import DeviceError
from ebmvk.sphere.geometry import projx

STEPS = 40


@dataclass(frozen=True)
class Peer:
    """Somebody who computes the same chains."""

    name: str
    sampler: Sampler


def peers(backend: Backend) -> tuple[list[Peer], str]:
    """The float64 oracle, the suite's own integrator, and the other kind of device; and why there is none, if so."""
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
    """The largest deviation of x over 16 chains after 40 steps, of |v|/sqrt(d) too; d = 640, 64 candidates.

    Bound: float32 against float64, 40 steps; 1.1e-7 is seen.
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
        task = Task(**{**vars(task), "scheme": scheme})
        mine = engine_sampler(backend)(task)
        for peer in others:
            theirs = peer.sampler(task)
            gap = float((mine.x - theirs.x).abs().max())
            gap = max(gap, float((mine.v - theirs.v).abs().max()) / math.sqrt(d))
            name, claim = f"{backend.name} = {peer.name}, {scheme}", f"the same chains after {STEPS} steps, d = {d}"
            checks.append(Check(10, name, claim, len(x), gap, "max", high=2e-6))
    return Findings(checks)
