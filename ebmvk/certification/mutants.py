"""Mutants: an integrator in plain torch with one law broken on purpose. The suite must notice each.

The integrator is written from model section 7, without the engine's code. It takes its random
numbers from the same counters. So while it isn't broken it follows the engine's chains step by
step, and the suite checks this.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ebmvk.certification.chains import Run, Target, Task
from ebmvk.engine import philox
from ebmvk.engine.reference_chains import Noise

Mutant = Literal[
    "no projection",
    "wrong O variance",
    "no transport",
    "no negation",
    "acceptance at T = 1",
    "friction that heats",
    "steps repeat after 2^16",
    "one noise for all chains",
    "mirrored chains",
    "one noise for both halves",
]
"""In this order: no projection P_x of force, noise and velocity; sqrt(1 - e^(-gamma h)) instead of
sqrt(1 - e^(-2 gamma h)); v isn't transported with x; v isn't reversed after a rejected trajectory;
acceptance ignores the temperature; e^(gamma h) instead of e^(-gamma h); step s + 2^16 repeats the
noise of step s; all chains have the same noise; every second chain has the negated noise of the
chain before it; both halves of GHMC's noise are the same."""

_PERIOD = 1 << 16

_NUMBERS = 1 << 18
"""Number of random numbers drawn at once, for speed."""


@dataclass(frozen=True)
class Plain:
    """A `Sampler` in torch and float64 (model section 7), with at most one law broken."""

    mutant: Mutant | None = None

    def __call__(self, task: Task) -> Run:
        return _Walk(task, self.mutant).run()


class _Walk:
    """The chains of one task."""

    def __init__(self, task: Task, mutant: Mutant | None) -> None:
        self.task, self.mutant = task, mutant
        self.x, self.v = task.x.double(), task.v.double()
        self.energy, self.force = self._energy(self.x)
        self.kinetic, self.error, self.accepted, self.tangency = torch.zeros(4, len(self.x), dtype=torch.float64)

    def run(self) -> Run:
        task, metropolis = self.task, self.task.scheme == "ghmc"
        first = task.first_step % _PERIOD if self.mutant == "steps repeat after 2^16" else task.first_step
        noise = Noise(task.seed, first, task.first_chain)
        streams = (philox.STREAM_NOISE, philox.STREAM_NOISE_2) if metropolis else (philox.STREAM_NOISE,)
        at_once = max(1, _NUMBERS // max(1, self.x.numel()))
        for done in range(0, task.steps, at_once):
            for numbers in zip(*self._numbers(noise, min(at_once, task.steps - done), streams), strict=True):
                if metropolis:
                    self._trajectory(*numbers)
                else:
                    self._step(numbers[0])
        count = max(1, task.steps)
        means = (self.kinetic / count, self.error / count, self.accepted / count)
        return Run(self.x.float(), self.v.float(), *means, self.tangency)

    def _numbers(self, noise: Noise, steps: int, streams: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Noise of these steps, as from `Noise.draw`, unless the mutant changes it."""
        if self.mutant == "one noise for all chains":
            one = replace(noise, first_chain=0)
            drawn = tuple(row.expand(-1, len(self.x), *row.shape[2:]) for row in one.draw(self.x[:1], steps, *streams))
            noise.step = one.step
            return drawn
        drawn = noise.draw(self.x, steps, *streams)
        if self.mutant == "mirrored chains":
            for xi in drawn[:-1]:
                xi[:, 1::2] = -xi[:, ::2][:, : xi[:, 1::2].shape[1]]
        if self.mutant == "one noise for both halves" and len(streams) == 2:
            drawn = (drawn[0], *drawn[::2])
        return drawn

    def _step(self, xi: Tensor) -> None:
        """One step of B A O A B."""
        h, before = self.task.step_size, self.energy + _half_square(self.v)
        self.v = self.v + h / 2 * self.force
        self._drift(h / 2)
        cold = _half_square(self.v)
        self._stir(xi, self.task.gamma * h)
        hot = _half_square(self.v)
        self._drift(h / 2)
        self._land()
        self.kinetic += 2 * hot / (self.x.shape[1] - 1)
        self.error += (self.energy + _half_square(self.v) - before - (hot - cold)).abs()
        self.accepted += 1

    def _trajectory(self, xi: Tensor, xi2: Tensor, u: Tensor) -> None:
        """One trajectory: half an O step; leapfrogs; accept, or turn back; half an O step."""
        task = self.task
        rate = task.gamma * task.leapfrogs * task.step_size / 2
        self._stir(xi, rate)
        old = (self.x, self.v, self.energy, self.force)
        before = self.energy + _half_square(self.v)
        self.kinetic += 2 * _half_square(self.v) / (self.x.shape[1] - 1)
        for _ in range(task.leapfrogs):
            self.v = self.v + task.step_size / 2 * self.force
            self._drift(task.step_size)
            self._land()
        change = self.energy + _half_square(self.v) - before
        accept = change <= -(1.0 if self.mutant == "acceptance at T = 1" else task.temperature) * u.log()
        self.error += change.abs()
        self.accepted += accept
        x, v, energy, force = old
        back = v if self.mutant == "no negation" else -v
        each = accept[:, None]
        self.x, self.v = torch.where(each, self.x, x), torch.where(each, self.v, back)
        self.energy, self.force = torch.where(accept, self.energy, energy), torch.where(each, self.force, force)
        self._stir(xi2, rate)

    def _tangent(self, x: Tensor, u: Tensor) -> Tensor:
        return u if self.mutant == "no projection" else u - _dot(x, u) * x

    def _drift(self, t: float) -> None:
        speed = self.v.norm(dim=1, keepdim=True)
        cos, sin = torch.cos(speed * t), torch.sin(speed * t)
        x = cos * self.x + sin / speed.clamp_min(1e-300) * self.v
        # The mutant without transport only projects v into the new tangent space.
        self.v = self.v - _dot(x, self.v) * x if self.mutant == "no transport" else cos * self.v - speed * sin * self.x
        self.x = x

    def _stir(self, xi: Tensor, rate: float) -> None:
        decay = math.exp(min(20.0, rate) if self.mutant == "friction that heats" else -rate)
        kept = decay if self.mutant == "wrong O variance" else decay**2
        self.v = decay * self.v + math.sqrt(self.task.temperature * abs(1 - kept)) * self._tangent(self.x, xi)

    def _land(self) -> None:
        """Project x onto the sphere, do the second half kick, and make v tangent."""
        norm = self.x.norm(dim=1, keepdim=True)
        self.x = self.x / norm
        self.energy, self.force = self._energy(self.x)
        self.v = self.v + self.task.step_size / 2 * self.force
        radial = _dot(self.x, self.v).abs() / self.v.norm(dim=1, keepdim=True)
        self.tangency = torch.maximum(self.tangency, torch.maximum((norm - 1).abs(), radial)[:, 0])
        self.v = self._tangent(self.x, self.v)

    def _energy(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E(x) and -P_x grad E."""
        target: Target = self.task.target
        terms = target.terms(x)
        rho = terms.softmax(1)[:, :-1]
        pull = (rho * target.kappa.double()) @ target.mu.double()
        return -terms.logsumexp(1), self._tangent(x, pull)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=1, keepdim=True)


def _half_square(v: Tensor) -> Tensor:
    return v.square().sum(dim=1) / 2
