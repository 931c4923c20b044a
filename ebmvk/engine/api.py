"""The table of operations: one signature each, implemented by every backend.

Shapes: B rows or chains, d latent dimension, N points in a store, K candidates per row, L levels of a schedule.
Tensors are contiguous float32 on the CPU for the native backends; `reference` takes any floating dtype and device.

The energy of a state x in S^{d-1}, given candidates j with weights logw and concentrations kappa, is

    E(x) = -log( exp(log_background) + sum_j exp(logw_j + kappa_j mu_j.x) )

(normalisers such as log C_d(kappa) are the caller's, folded into logw; the background is a density relative to the
uniform one, so log_background = log p_rest and logw_j = log p_j + log C_d(kappa_j) - log C_d(0)). Its score is the
Riemannian -grad E = P_x sum_j rho_j kappa_j mu_j with responsibilities rho (model.md calls them so: posterior weights).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Points(Protocol):
    """Unit rows (N, d) kept by a backend, on its device where it has one."""

    @property
    def n(self) -> int: ...

    @property
    def d(self) -> int: ...

    def update(self, points: Tensor) -> None:
        """Replace the rows; same shape, else ArgumentError."""


@dataclass(frozen=True)
class TopK:
    """scores: (B, k) float, descending, ties by lower id. ids: (B, k) int64."""

    scores: Tensor
    ids: Tensor


@dataclass(frozen=True)
class EnergyScore:
    """energy (B,), score (B, d) tangent at x, responsibilities (B, K), background (B,); the last two sum to 1."""

    energy: Tensor
    score: Tensor
    responsibilities: Tensor
    background: Tensor


@dataclass(frozen=True)
class Schedule:
    """Annealing levels; each tensor is (L,) shared by all chains, or (B, L).

    At level l a candidate has kappa_scale_l * kappa_j and logw_j + logw_shift_l; chains take `steps[l]` integrator
    steps of size `step_size` with friction `gamma`.
    """

    kappa_scale: Tensor
    logw_shift: Tensor
    step_size: Tensor
    gamma: Tensor
    steps: tuple[int, ...]


@dataclass(frozen=True)
class LangevinDiagnostics:
    """Per chain (B,): energy at the end (of the last level); kinetic_temperature, mean of |v|^2/(d-1) right after O;
    energy_error, mean |change of H| over the deterministic parts of a step; acceptance (1 for an unadjusted scheme);
    tangency, max of |x.v|/|v| and of ||x|-1| over the steps."""

    energy: Tensor
    kinetic_temperature: Tensor
    energy_error: Tensor
    acceptance: Tensor
    tangency: Tensor


@dataclass(frozen=True)
class LangevinResult:
    x: Tensor
    v: Tensor
    diagnostics: LangevinDiagnostics


@dataclass(frozen=True)
class OpCount:
    """dispatches: native dispatches (0 on backends without a device queue); calls; seconds spent."""

    calls: int
    dispatches: int
    seconds: float


class Backend(Protocol):
    """What every backend offers. Arguments are checked once, in `ebmvk.engine.checks`."""

    @property
    def name(self) -> str:
        """reference, cpu or vulkan."""

    @property
    def device(self) -> str:
        """The device in words, for logs and reports."""

    def points(self, points: Tensor) -> Points: ...

    def projx(self, x: Tensor) -> Tensor: ...

    def proju(self, x: Tensor, u: Tensor) -> Tensor: ...

    def expmap(self, x: Tensor, u: Tensor) -> Tensor: ...

    def logmap(self, x: Tensor, y: Tensor) -> Tensor: ...

    def transp(self, x: Tensor, y: Tensor, u: Tensor) -> Tensor: ...

    def dist(self, x: Tensor, y: Tensor) -> Tensor: ...

    def topk(
        self, queries: Tensor, points: Points, k: int, *, scale: Tensor | None = None, bias: Tensor | None = None
    ) -> TopK:
        """Exact top-k of scale_n * mu_n.q + bias_n; queries (B, d) need not be unit; scale, bias (N,)."""

    def energy_score(
        self, x: Tensor, points: Points, ids: Tensor, logw: Tensor, kappa: Tensor, log_background: Tensor
    ) -> EnergyScore:
        """x (B, d) unit; ids (B, K) int64; logw, kappa (B, K); log_background (B,), -inf allowed, as in logw."""

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
        """g-BAOAB (model of section 7) with Philox noise keyed by seed; 200 steps = 2 x 100 bit for bit."""

    def counts(self) -> Mapping[str, OpCount]:
        """Calls, native dispatches and seconds per operation since the backend was made."""
