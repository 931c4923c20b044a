"""Every operation in plain torch: the float64 oracle of the native backends, and the path on CUDA.

Formulas: model sections 1 (sphere), 6 (latent energy), 7 (g-BAOAB).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ebmvk.engine import checks, philox
from ebmvk.engine.api import (
    EnergyScore,
    LangevinDiagnostics,
    LangevinResult,
    OpCount,
    Points,
    Schedule,
    TopK,
)
from ebmvk.engine.counting import Counter
from ebmvk.errors import ArgumentError, DeviceError

_CHUNK = 1 << 26
"""Elements of the largest intermediate tensor: longer batches are worked off in parts."""


class ReferencePoints:
    """Rows (N, d), a copy, in the dtype and on the device of the backend."""

    def __init__(self, backend: Reference, points: Tensor) -> None:
        checks.points(checks.ANY, points)
        self._backend = backend
        self.rows = backend._take(points).detach().clone()

    @property
    def n(self) -> int:
        return int(self.rows.shape[0])

    @property
    def d(self) -> int:
        return int(self.rows.shape[1])

    def update(self, points: Tensor) -> None:
        checks.points(checks.ANY, points, like=(self.n, self.d))
        self.rows.copy_(points.detach())


class Reference:
    """Plain torch on one device.

    Args:
        device: any torch device; arguments are moved there and results stay there.
        dtype: what arguments are converted to, float64 for an oracle; None works in the dtype they come in.

    Raises:
        DeviceError: torch has no such device.
    """

    name = "reference"

    def __init__(self, device: str = "cpu", dtype: torch.dtype | None = None) -> None:
        try:
            self._device = torch.device(device)
            torch.empty(0, device=self._device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise DeviceError(
                f"torch cannot use device {device!r}",
                why=str(error).splitlines()[0],
                hint="use --device cpu, or install a build of torch for this device",
            ) from error
        self._dtype = dtype
        self._counter = Counter()

    @property
    def device(self) -> str:
        if self._device.type == "cuda":
            return f"torch on {torch.cuda.get_device_name(self._device)}"
        return f"torch on {self._device}"

    def counts(self) -> Mapping[str, OpCount]:
        return self._counter.snapshot()

    def points(self, points: Tensor) -> ReferencePoints:
        return ReferencePoints(self, points)

    def _take(self, value: Tensor) -> Tensor:
        return value.to(device=self._device, dtype=self._dtype or value.dtype)

    def _own(self, points: Points) -> ReferencePoints:
        if not isinstance(points, ReferencePoints) or points._backend is not self:
            raise ArgumentError(
                f"points is a {type(points).__name__} of another backend", hint="make it with this backend's points()"
            )
        return points

    # Sphere. Formulas that stay accurate where arguments nearly coincide: differences first, never acos.

    def projx(self, x: Tensor) -> Tensor:
        checks.projx(checks.ANY, x)
        with self._counter.measure("projx"):
            return _normalise(self._take(x))

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        checks.unit_pair(checks.ANY, "u", x, u, unit_other=False)
        with self._counter.measure("proju"):
            return _tangent(self._take(x), self._take(u))

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        checks.unit_pair(checks.ANY, "u", x, u, unit_other=False)
        with self._counter.measure("expmap"):
            x, u = self._take(x), self._take(u)
            norm = torch.linalg.vector_norm(u, dim=-1, keepdim=True)
            # torch.sinc(z) = sin(pi z) / (pi z), smooth at 0.
            return torch.cos(norm) * x + torch.sinc(norm / torch.pi) * u

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """Zero at y = x, and at y = -x, where no direction is right."""
        checks.unit_pair(checks.ANY, "y", x, y, unit_other=True)
        with self._counter.measure("logmap"):
            x, y = self._take(x), self._take(y)
            direction = _tangent(x, y - x)
            norm = torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
            unit = direction / torch.where(norm > 0, norm, 1)
            return _distance(x, y)[:, None] * unit

    def transp(self, x: Tensor, y: Tensor, u: Tensor) -> Tensor:
        """Along the minimal geodesic; not defined, and not finite, for y = -x."""
        checks.unit_pair(checks.ANY, "y", x, y, unit_other=True)
        checks.unit_pair(checks.ANY, "u", x, u, unit_other=False)
        with self._counter.measure("transp"):
            x, y, u = self._take(x), self._take(y), self._take(u)
            both = x + y
            # 1 + x.y = |x + y|^2 / 2 for unit rows, without the cancellation near y = -x.
            return u - 2 * _dot(y, u) / _dot(both, both) * both

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        checks.unit_pair(checks.ANY, "y", x, y, unit_other=True)
        with self._counter.measure("dist"):
            return _distance(self._take(x), self._take(y))

    def topk(
        self, queries: Tensor, points: Points, k: int, *, scale: Tensor | None = None, bias: Tensor | None = None
    ) -> TopK:
        own = self._own(points)
        checks.topk(checks.ANY, queries, own.n, own.d, k, scale, bias)
        with self._counter.measure("topk"), torch.no_grad():
            queries = self._take(queries)
            parts = []
            for rows in _split(queries, max(1, _CHUNK // own.n)):
                scores = rows @ own.rows.T
                scores = scores if scale is None else scores * self._take(scale)
                scores = scores if bias is None else scores + self._take(bias)
                parts.append(_topk_rows(scores, k))
            return TopK(torch.cat([scores for scores, _ in parts]), torch.cat([ids for _, ids in parts]))

    def energy_score(
        self, x: Tensor, points: Points, ids: Tensor, logw: Tensor, kappa: Tensor, log_background: Tensor
    ) -> EnergyScore:
        own = self._own(points)
        checks.candidates(checks.ANY, x, own.n, own.d, ids, logw, kappa, log_background)
        with self._counter.measure("energy_score"):
            whole = (self._take(x), ids.to(self._device), *(self._take(t) for t in (logw, kappa, log_background)))
            size = max(1, _CHUNK // (ids.shape[1] * own.d))
            parts = [
                _energy_score(x, own.rows[ids], logw, kappa, background)
                for x, ids, logw, kappa, background in zip(*(_split(tensor, size) for tensor in whole), strict=True)
            ]
            return EnergyScore(
                torch.cat([part.energy for part in parts]),
                torch.cat([part.score for part in parts]),
                torch.cat([part.responsibilities for part in parts]),
                torch.cat([part.background for part in parts]),
            )

    def langevin(
        self,
        x: Tensor,
        v: Tensor,
        points: Points,
        ids: Tensor,
        logw: Tensor,
        kappa: Tensor,
        log_background: Tensor,
        schedule: Schedule,
        *,
        seed: int,
        first_step: int = 0,
        first_chain: int = 0,
        temperature: float = 1.0,
    ) -> LangevinResult:
        own = self._own(points)
        checks.langevin(
            checks.ANY,
            *(x, v, own.n, own.d, ids, logw, kappa, log_background),
            *(schedule, seed, first_step, first_chain, temperature),
        )
        with self._counter.measure("langevin"), torch.no_grad():
            size = max(1, _CHUNK // (ids.shape[1] * own.d))
            levels = [self._levels(schedule, x.shape[0], level) for level in range(len(schedule.steps))]
            chains = []
            for start in range(0, max(1, x.shape[0]), size):
                rows = slice(start, start + size)
                chain = _Chains(
                    self._take(x[rows]).clone(),
                    self._take(v[rows]).clone(),
                    own.rows[ids[rows].to(self._device)],
                    *(self._take(tensor[rows]) for tensor in (logw, kappa, log_background)),
                    temperature=temperature,
                    noise=_Noise(seed, first_step, first_chain + start),
                )
                for level, steps in zip(levels, schedule.steps, strict=True):
                    chain.run_level(level.rows(rows), steps)
                chains.append(chain.result())
            return _join(chains)

    def _levels(self, schedule: Schedule, rows: int, level: int) -> _Level:
        def take(tensor: Tensor) -> Tensor:
            return self._take(tensor).expand(rows, len(schedule.steps))[:, level, None]

        return _Level(*map(take, (schedule.kappa_scale, schedule.logw_shift, schedule.step_size, schedule.gamma)))


def _split(tensor: Tensor, rows: int) -> Sequence[Tensor]:
    """Parts of at most `rows` rows; one empty part for an empty tensor."""
    return [tensor[start : start + rows] for start in range(0, max(1, tensor.shape[0]), rows)]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.sum(a * b, dim=-1, keepdim=True)


def _normalise(x: Tensor) -> Tensor:
    # Scaled by the largest entry first, so that tiny and huge rows do not under- or overflow when squared.
    if x.numel():
        x = x / x.detach().abs().amax(dim=-1, keepdim=True)
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm


def _tangent(x: Tensor, u: Tensor) -> Tensor:
    return u - _dot(x, u) * x


def _distance(x: Tensor, y: Tensor) -> Tensor:
    return 2 * torch.atan2(torch.linalg.vector_norm(x - y, dim=-1), torch.linalg.vector_norm(x + y, dim=-1))


def _topk_rows(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Exactly k per row; of equal scores the lower ids, which torch.topk does not promise."""
    threshold = torch.topk(scores, k, dim=1).values[:, -1:]
    above = scores > threshold
    level = scores == threshold
    wanted = k - above.sum(dim=1, keepdim=True)
    keep = above | (level & (level.cumsum(dim=1) <= wanted))
    ids = keep.nonzero()[:, 1].reshape(scores.shape[0], k)
    best, order = torch.sort(scores.gather(1, ids), dim=1, descending=True, stable=True)
    return best, ids.gather(1, order)


def _energy_score(x: Tensor, mu: Tensor, logw: Tensor, kappa: Tensor, log_background: Tensor) -> EnergyScore:
    """x (B, d), mu (B, K, d)."""
    logits = logw + kappa * torch.einsum("bkd,bd->bk", mu, x)
    total = torch.logsumexp(torch.cat((logits, log_background[:, None]), dim=1), dim=1)
    rho = torch.exp(logits - total[:, None])
    pull = torch.einsum("bk,bkd->bd", rho * kappa, mu)
    return EnergyScore(-total, _tangent(x, pull), rho, torch.exp(log_background - total))


@dataclass
class _Noise:
    """Standard normals of consecutive steps, drawn many steps at a time: a draw costs hundreds of small torch calls."""

    seed: int
    step: int
    first_chain: int

    def draw(self, like: Tensor, steps: int) -> Tensor:
        """(steps, B, d) and advance."""
        step = torch.arange(self.step, self.step + steps, device=like.device)
        chain = torch.arange(self.first_chain, self.first_chain + like.shape[0], device=like.device)
        self.step += steps
        return philox.normals(self.seed, step[:, None], chain, like.shape[1], dtype=like.dtype)


@dataclass(frozen=True)
class _Level:
    """One level of a schedule; each tensor (B, 1)."""

    kappa_scale: Tensor
    logw_shift: Tensor
    step_size: Tensor
    gamma: Tensor

    def rows(self, part: slice) -> _Level:
        return _Level(self.kappa_scale[part], self.logw_shift[part], self.step_size[part], self.gamma[part])


class _Chains:
    """The state of some chains and the sums behind their diagnostics."""

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
        noise: _Noise,
    ) -> None:
        self.x, self.v, self.mu = x, v, mu
        self.logw, self.kappa, self.log_background = logw, kappa, log_background
        self.temperature, self.noise = temperature, noise
        self.steps = 0
        self.energy = x.new_zeros(x.shape[0])
        self.kinetic, self.error, self.tangency = (torch.zeros_like(self.energy) for _ in range(3))

    def run_level(self, level: _Level, steps: int) -> None:
        """The force is recomputed when the level changes, reused from step to step within."""
        logw, kappa, h, gamma = (
            self.logw + level.logw_shift,
            self.kappa * level.kappa_scale,
            level.step_size,
            level.gamma,
        )
        now = _energy_score(self.x, self.mu, logw, kappa, self.log_background)
        decay = torch.exp(-gamma * h)
        spread = torch.sqrt(-self.temperature * torch.expm1(-2 * gamma * h))
        at_once = max(1, _CHUNK // 16 // max(1, self.x.numel()))
        for done in range(0, steps, at_once):
            for xi in self.noise.draw(self.x, min(at_once, steps - done)):
                now = self._step(now, h, decay, spread, xi, logw, kappa)
        self.energy = now.energy

    def _step(
        self, now: EnergyScore, h: Tensor, decay: Tensor, spread: Tensor, xi: Tensor, logw: Tensor, kappa: Tensor
    ) -> EnergyScore:
        """One g-BAOAB step, model section 7; returns energy and score at its end."""
        x, v, half = self.x, self.v, h / 2
        before = now.energy + _kinetic(v)
        x, v = _geodesic(x, v + half * now.score, half)
        kicked = decay * v + spread * _tangent(x, xi)
        heat = _kinetic(kicked) - _kinetic(v)
        self.kinetic += 2 * _kinetic(kicked) / (x.shape[1] - 1)
        x, v = _geodesic(x, kicked, half)
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        x = x / norm
        end = _energy_score(x, self.mu, logw, kappa, self.log_background)
        v = v + half * end.score
        radial = _dot(x, v)
        drift = torch.maximum((norm - 1).abs(), radial.abs() / torch.linalg.vector_norm(v, dim=1, keepdim=True))
        self.tangency = torch.fmax(self.tangency, drift[:, 0])
        self.x, self.v = x, v - radial * x
        self.error += (end.energy + _kinetic(self.v) - before - heat).abs()
        self.steps += 1
        return end

    def result(self) -> LangevinResult:
        """Means over the steps; with no step at all they are 0."""
        steps = max(1, self.steps)
        diagnostics = LangevinDiagnostics(
            energy=self.energy,
            kinetic_temperature=self.kinetic / steps,
            energy_error=self.error / steps,
            acceptance=torch.ones_like(self.energy),
            tangency=self.tangency,
        )
        return LangevinResult(self.x, self.v, diagnostics)


def _kinetic(v: Tensor) -> Tensor:
    return (v * v).sum(dim=1) / 2


def _geodesic(x: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Move (x, v) along the great circle for time t (B, 1), transporting v."""
    speed = torch.linalg.vector_norm(v, dim=1, keepdim=True)
    angle = speed * t
    cos, sin = torch.cos(angle), torch.sin(angle)
    return cos * x + torch.sinc(angle / torch.pi) * t * v, cos * v - speed * sin * x


def _join(parts: list[LangevinResult]) -> LangevinResult:
    def cat(name: str) -> Tensor:
        return torch.cat([getattr(part.diagnostics, name) for part in parts])

    diagnostics = LangevinDiagnostics(
        cat("energy"), cat("kinetic_temperature"), cat("energy_error"), cat("acceptance"), cat("tangency")
    )
    return LangevinResult(torch.cat([part.x for part in parts]), torch.cat([part.v for part in parts]), diagnostics)
