"""Chains of the reference backend: every integrator (model section 7), with diagnostics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ebmvk.engine import philox
from ebmvk.engine.api import EnergyScore, LangevinDiagnostics, LangevinResult
from ebmvk.engine.integrators import Integrator, Part
from ebmvk.engine.reference_math import CHUNK, dot, energy_score, geodesic, tangent

STREAMS = (philox.STREAM_NOISE, philox.STREAM_NOISE_2)
"""Random numbers of the first and second O of a step."""


@dataclass
class Noise:
    """Random numbers of consecutive steps. Those of many steps are drawn at once, because each draw
    costs hundreds of torch calls.
    """

    seed: int
    step: int
    first_chain: int

    def draw(self, like: Tensor, steps: int, *streams: int) -> tuple[Tensor, ...]:
        """Normals (steps, B, d) for each stream, then uniforms (steps, B). Advances by `steps`."""
        step = torch.arange(self.step, self.step + steps, device=like.device)[:, None]
        chain = torch.arange(self.first_chain, self.first_chain + like.shape[0], device=like.device)
        self.step += steps
        normals = [
            philox.normals(self.seed, step, chain, like.shape[1], stream=stream, dtype=like.dtype) for stream in streams
        ]
        u = philox.uniforms(self.seed, step, chain, 1, stream=philox.STREAM_METROPOLIS, dtype=like.dtype)
        return (*normals, u[..., 0])


@dataclass(frozen=True)
class Level:
    """One level of a schedule; each tensor is (B, 1)."""

    kappa_scale: Tensor
    logw_shift: Tensor
    step_size: Tensor
    gamma: Tensor

    def rows(self, part: slice) -> Level:
        return Level(self.kappa_scale[part], self.logw_shift[part], self.step_size[part], self.gamma[part])


@dataclass(frozen=True)
class Force:
    """The energy of one level as a function of x, and the constants of its steps: h, decay and
    spread, each (B, 1).
    """

    mu: Tensor
    logw: Tensor
    kappa: Tensor
    log_background: Tensor
    h: Tensor
    decay: Tensor
    spread: Tensor

    def __call__(self, x: Tensor) -> EnergyScore:
        return energy_score(x, self.mu, self.logw, self.kappa, self.log_background)

    def stir(self, x: Tensor, v: Tensor, xi: Tensor) -> Tensor:
        """The O step of the integrator: friction and noise."""
        return self.decay * v + self.spread * tangent(x, xi)


class Chains:
    """The states of some chains, and the sums for their diagnostics. x, v: (B, d); mu: (B, K,
    d)."""

    def __init__(
        self,
        x: Tensor,
        v: Tensor,
        mu: Tensor,
        logw: Tensor,
        kappa: Tensor,
        log_background: Tensor,
        *,
        temperature: float,
        noise: Noise,
        integrator: Integrator,
        leapfrogs: int,
    ) -> None:
        self.x, self.v, self.mu = x, v, mu
        self.logw, self.kappa, self.log_background = logw, kappa, log_background
        self.temperature, self.noise = temperature, noise
        self.integrator, self.leapfrogs = integrator, leapfrogs
        self.steps = 0
        self.energy = x.new_zeros(x.shape[0])
        self.heat = torch.zeros_like(self.energy)  # what the O moves of a step have added to |v|^2 / 2
        self.kinetic, self.error, self.tangency, self.accepted = (torch.zeros_like(self.energy) for _ in range(4))

    def run_level(self, level: Level, steps: int) -> None:
        """Take the steps of one level. The force at the level's start is computed again; then each
        step starts from the force with which the step before ended.
        """
        h, integrator = level.step_size, self.integrator
        # Each O takes its share of the friction of a step, or of a whole trajectory.
        rate = level.gamma * h * (integrator.friction * (self.leapfrogs if integrator.metropolis else 1))
        force = Force(
            self.mu,
            self.logw + level.logw_shift,
            self.kappa * level.kappa_scale,
            self.log_background,
            h,
            decay=torch.exp(-rate),
            spread=torch.sqrt(-self.temperature * torch.expm1(-2 * rate)),
        )
        now = force(self.x)
        step = self._trajectory if integrator.metropolis else self._step
        streams = STREAMS[: integrator.noises]
        at_once = max(1, CHUNK // 16 // max(1, self.x.numel()))
        for done in range(0, steps, at_once):
            for *xi, u in zip(*self.noise.draw(self.x, min(at_once, steps - done), *streams), strict=True):
                now = step(force, now, xi, u)
                self.steps += 1
        self.energy = now.energy

    def _step(self, force: Force, now: EnergyScore, xi: list[Tensor], _: Tensor) -> EnergyScore:
        """One step of an unadjusted integrator. Returns energy and score at its end."""
        before = now.energy + _kinetic(self.v)
        self.heat = torch.zeros_like(before)
        end = now
        for part in self.integrator.parts:
            end = self._move(force, end, part, xi)
        self.error += (end.energy + _kinetic(self.v) - before - self.heat).abs()
        self.accepted += 1
        return end

    def _trajectory(self, force: Force, now: EnergyScore, xi: list[Tensor], u: Tensor) -> EnergyScore:
        """One step of a Metropolis integrator. Returns energy and score at its end."""
        self._heat(force, 0, xi)
        x, v, end = self.x, self.v, now
        for _ in range(self.leapfrogs):
            for part in self.integrator.parts:
                end = self._move(force, end, part, xi)
        change = end.energy + _kinetic(self.v) - now.energy - _kinetic(v)
        # False for NaN too: a trajectory that blew up is rejected.
        accept = change <= -self.temperature * torch.log(u)
        self.error += change.abs()
        self.accepted += accept
        take = accept[:, None]
        # A rejected chain returns to its start with the velocity reversed, as detailed balance
        # needs.
        self.x, self.v = torch.where(take, self.x, x), torch.where(take, self.v, -v)
        self._heat(force, 1, xi)
        return EnergyScore(
            torch.where(accept, end.energy, now.energy),
            torch.where(take, end.score, now.score),
            torch.where(take, end.responsibilities, now.responsibilities),
            torch.where(accept, end.background, now.background),
        )

    def _move(self, force: Force, now: EnergyScore, part: Part, xi: list[Tensor]) -> EnergyScore:
        """One part of a step. Returns energy and score of the last place where they were needed."""
        if part.kind == "kick":
            self.v = self.v + part.share * force.h * now.score
        elif part.kind == "drift":
            self.x, self.v = geodesic(self.x, self.v, part.share * force.h)
        elif part.kind == "noise":
            self._heat(force, part.number, xi)
        else:
            return self._land(force, part)
        return now

    def _heat(self, force: Force, number: int, xi: list[Tensor]) -> None:
        """O: friction and noise."""
        cold = _kinetic(self.v)
        self.v = force.stir(self.x, self.v, xi[number])
        hot = _kinetic(self.v)
        self.heat += hot - cold
        if number == 0:
            self.kinetic += 2 * hot / (self.x.shape[1] - 1)

    def _land(self, force: Force, part: Part) -> EnergyScore:
        """A geodesic move, back onto the sphere, a kick, back into the tangent space."""
        x, v = geodesic(self.x, self.v, part.share * force.h)
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        x = x / norm
        end = force(x)
        v = v + part.kick * force.h * end.score
        radial = dot(x, v)
        drift = torch.maximum((norm - 1).abs(), radial.abs() / torch.linalg.vector_norm(v, dim=1, keepdim=True))
        self.tangency = torch.fmax(self.tangency, drift[:, 0])
        self.x, self.v = x, v - radial * x
        return end

    def result(self) -> LangevinResult:
        """States and mean diagnostics. Without any step the means are 0 and the acceptance is 1."""
        steps = max(1, self.steps)
        diagnostics = LangevinDiagnostics(
            energy=self.energy,
            kinetic_temperature=self.kinetic / steps,
            energy_error=self.error / steps,
            acceptance=self.accepted / steps if self.steps else torch.ones_like(self.energy),
            tangency=self.tangency,
        )
        return LangevinResult(self.x, self.v, diagnostics)


def _kinetic(v: Tensor) -> Tensor:
    return (v * v).sum(dim=1) / 2


def join(parts: list[LangevinResult]) -> LangevinResult:
    """The results of consecutive rows as one."""

    def cat(name: str) -> Tensor:
        return torch.cat([getattr(part.diagnostics, name) for part in parts])

    diagnostics = LangevinDiagnostics(
        cat("energy"), cat("kinetic_temperature"), cat("energy_error"), cat("acceptance"), cat("tangency")
    )
    return LangevinResult(torch.cat([part.x for part in parts]), torch.cat([part.v for part in parts]), diagnostics)
