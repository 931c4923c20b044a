"""What every backend offers: the protocol `Backend`, with the operations of operations.toml.

Shapes: B rows or chains, d latent dimension, N points in a store, K candidates per row, L levels of
a schedule. Tensors are contiguous float32 on the CPU for the native backends; `reference` takes any
floating dtype and device.

The energy of a state x in S^{d-1}, given candidates j with weights logw and concentrations kappa,
is

    E(x) = -log( exp(log_background) + sum_j exp(logw_j + kappa_j mu_j.x) )

The caller adds normalisers such as log C_d(kappa) to logw. The background is a density relative to
the uniform one, so log_background = log p_rest and logw_j = log p_j + log C_d(kappa_j) - log
C_d(0). The score is the Riemannian -grad E = P_x sum_j rho_j kappa_j mu_j. Its rho_j are the
responsibilities, the posterior weights of the candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

Scheme = str
"""The name of an integrator in `ebmvk.engine.integrators`, such as gbaoab or ghmc."""


Storage = Literal["float32", "float16"]
"""How a backend keeps points. With float16 the rows are rounded (to nearest, ties to even) and
everything is computed from the rounded rows in the backend's usual precision; a device keeps and
reads half the bytes."""


class Points(Protocol):
    """Unit rows (N, d) that a backend keeps, on its device if it has one."""

    @property
    def storage(self) -> Storage: ...

    @property
    def n(self) -> int: ...

    @property
    def d(self) -> int: ...

    @property
    def nbytes(self) -> int:
        """Bytes that the rows and their copies in fewer bits take now, in the memory of the device
        if there is one.
        """

    def update(self, points: Tensor, *, first: int | None = None, ids: Tensor | None = None) -> None:
        """Replace all rows, or those from `first` on, or those named by ids (M,) int64, which are
        all different. The new rows are rounded to the same storage. Raises ArgumentError if the
        shape doesn't fit.
        """


class HostRows:
    """Sizes of points whose rows (N, d) are in a tensor of torch."""

    rows: Tensor

    @property
    def n(self) -> int:
        return int(self.rows.shape[0])

    @property
    def d(self) -> int:
        return int(self.rows.shape[1])

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes


@dataclass(frozen=True)
class TopK:
    """scores: (B, k) float, descending; equal scores in order of id. ids: (B, k) int64."""

    scores: Tensor
    ids: Tensor


@dataclass(frozen=True)
class EnergyScore:
    """energy (B,); score (B, d), tangent at x; responsibilities (B, K) and background (B,), which
    sum to 1.
    """

    energy: Tensor
    score: Tensor
    responsibilities: Tensor
    background: Tensor


@dataclass(frozen=True)
class EnergyGradients:
    """Gradients of sum_b (grad_energy_b E_b + grad_score_b . score_b): x (B, d), points (N, d),
    logw and kappa (B, K), log_background (B,). The gradient of x is in the embedding space, where
    score = g - (x.g) x and g = sum_j rho_j kappa_j mu_j. If an argument was a `DeviceTensor`,
    `points` is a `SparseRows` of the points that occur in ids, and the cost doesn't depend on N.
    """

    x: Tensor
    points: Tensor
    logw: Tensor
    kappa: Tensor
    log_background: Tensor


@dataclass(frozen=True)
class Accumulated:
    """Additive statistics of n splats: mass (n,), resultant (n, d), and token counts as sorted,
    unique (splat, token) pairs (M, 2) int64 with counts (M,) > 0."""

    mass: Tensor
    resultant: Tensor
    splat_token: Tensor
    counts: Tensor


@dataclass(frozen=True)
class Schedule:
    """Annealing levels; each tensor is (L,) shared by all chains, or (B, L).

    At level l a candidate has kappa_scale_l * kappa_j and logw_j + logw_shift_l; chains take
    `steps[l]` integrator steps of size `step_size` with friction `gamma`.
    """

    kappa_scale: Tensor
    logw_shift: Tensor
    step_size: Tensor
    gamma: Tensor
    steps: tuple[int, ...]


@dataclass(frozen=True)
class LangevinDiagnostics:
    """Diagnostics of each chain, all (B,).

    energy: at the end, under the last level. kinetic_temperature: mean of |v|^2/(d-1) right after
    the first O of a step. energy_error: mean |change of H| over the moves of a step other than O
    (Metropolis integrators: over the trajectory, accepted or not). acceptance: share of accepted
    trajectories; 1 for an unadjusted integrator. tangency: largest of |x.v|/|v| and ||x|-1|
    wherever a step evaluates the force.
    """

    energy: Tensor
    kinetic_temperature: Tensor
    energy_error: Tensor
    acceptance: Tensor
    tangency: Tensor


@dataclass(frozen=True)
class LangevinResult:
    """x (B, d): states at the end; v (B, d): their velocities."""

    x: Tensor
    v: Tensor
    diagnostics: LangevinDiagnostics


@dataclass(frozen=True)
class OpCount:
    """How often an operation ran, and what it did on a device with a queue; 0 elsewhere.

    dispatches, submissions, barriers: their number. bytes_up, bytes_down: moved from the host to
    the device, and back.
    """

    calls: int
    dispatches: int
    seconds: float
    submissions: int = 0
    barriers: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


class Backend(Protocol):
    """The operations that every backend offers. Each checks its arguments in
    `ebmvk.engine.checks`."""

    @property
    def name(self) -> str:
        """`reference`, `cpu` or `vulkan`."""

    @property
    def device(self) -> str:
        """The device as text, for logs and reports."""

    def points(self, points: Tensor, storage: Storage = "float32") -> Points:
        """Put unit rows (N, d) on the device, for use by other operations.

        With storage="float16" a unit row moves by at most 5e-4, typically 2e-4.
        """

    def counts(self) -> Mapping[str, OpCount]:
        """Calls, native dispatches and seconds of each operation since the backend was made."""

    def _rows(self, operation: str, *arguments: Tensor) -> Tensor:
        """Run an operation that works row by row: from (B, d) to (B, d) or (B,)."""

    def _operation(self, name: str, given: Mapping[str, Any]) -> Any:
        """Run any other operation. given: its arguments by name."""

    # Made from operations.toml by csrc/operations.py:

    def projx(self, x: Tensor) -> Tensor:
        """The nearest points on the sphere. x: (B, d), no row zero."""
        return self._rows("projx", x)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """The tangential part of u at x. x: (B, d) unit; u: (B, d)."""
        return self._rows("proju", x, u)

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """The point at time 1 of the geodesic from x with velocity u. x, u: (B, d), x unit."""
        return self._rows("expmap", x, u)

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """The velocity at x of the shortest geodesic that is at y at time 1. x, y: (B, d) unit.

        Zero at y = x, and also at y = -x, where the direction isn't defined.
        """
        return self._rows("logmap", x, y)

    def transp(self, x: Tensor, y: Tensor, u: Tensor) -> Tensor:
        """Parallel transport of u, tangent at x, along the shortest geodesic to y.

        x, y: (B, d) unit; u: (B, d). At y = -x it isn't defined, and the result may not be finite.
        """
        return self._rows("transp", x, y, u)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """The angle between x and y, (B,) in radians. x, y: (B, d) unit."""
        return self._rows("dist", x, y)

    def topk(
        self, queries: Tensor, points: Points, k: int, *, scale: Tensor | None = None, bias: Tensor | None = None
    ) -> TopK:
        """Exact top-k of scale_n * mu_n.q + bias_n.

        queries: (B, d), any length; scale, bias: (N,).
        """
        result: TopK = self._operation("topk", locals())
        return result

    def energy_score(
        self, x: Tensor, points: Points, ids: Tensor, logw: Tensor, kappa: Tensor, log_background: Tensor
    ) -> EnergyScore:
        """Energy, score and responsibilities of each row.

        x: (B, d) unit; ids: (B, K) int64; logw, kappa: (B, K); log_background: (B,). logw and
        log_background may be -inf.
        """
        result: EnergyScore = self._operation("energy_score", locals())
        return result

    def energy_score_backward(
        self,
        x: Tensor,
        points: Points,
        ids: Tensor,
        logw: Tensor,
        kappa: Tensor,
        log_background: Tensor,
        grad_energy: Tensor,
        grad_score: Tensor,
    ) -> EnergyGradients:
        """All gradients, including the second-order terms of the score.

        With w = grad_score - (x.grad_score) x, a_j = kappa_j mu_j.w (0 for the background), and
        c_j = rho_j (a_j - sum_i rho_i a_i - grad_energy):

            dlogw_j = c_j                  dmu_j = c_j kappa_j x + rho_j kappa_j w
            dlog_background = c_rest       dkappa_j = c_j mu_j.x + rho_j mu_j.w
            dx = sum_j c_j kappa_j mu_j - (x.grad_score) g - (x.g) grad_score

        Contributions to one point are added in ascending order of (row, candidate), so the bits are
        always the same. grad_energy (B,), grad_score (B, d): finite.
        """
        result: EnergyGradients = self._operation("energy_score_backward", locals())
        return result

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
        scheme: Scheme = "gbaoab",
        leapfrogs: int = 4,
    ) -> LangevinResult:
        """Run Langevin chains (model section 7) with Philox noise keyed by the seed. One call of
        200 steps gives the same bits as two calls of 100.

        scheme: an integrator of integrators.toml. A step of an unadjusted one, such as g-BAOAB, is
        one pass through its moves. A step of a Metropolis one, such as GHMC, is one trajectory: the
        first O; `leapfrogs` times the moves between the two O; a test; the second O. The test
        accepts if dH <= -T log u (stream 2, coordinate 0); otherwise the chain continues from the
        (x, -v) that it had before those moves. Each O has its share of the friction of a step or
        trajectory: v shrinks by e^{-gamma h} in the one O of g-BAOAB, by e^{-gamma leapfrogs h/2}
        in each O of GHMC. The first O draws from stream 0, the second from stream 3. 1 <= leapfrogs
        <= 1024; unadjusted integrators ignore it.
        """
        result: LangevinResult = self._operation("langevin", locals())
        return result

    def vmf_sample(self, mu: Tensor, kappa: Tensor, *, seed: int, first_row: int = 0) -> Tensor:
        """Exact samples (B, d) of vMF(mu_b, kappa_b) by Wood (1994). mu: (B, d) unit; kappa: (B,)
        >= 0, where 0 is uniform.

        1 - mu.x comes from `ebmvk.engine.wood.deficit`. The tangent direction is P_mu xi / |P_mu
        xi| with normals of (step 0, chain first_row + row, STREAM_VMF_TANGENT), so a sample doesn't
        depend on how the batch is split.
        """
        result: Tensor = self._operation("vmf_sample", locals())
        return result

    def accumulate(self, x: Tensor, ids: Tensor, responsibilities: Tensor, tokens: Tensor, n: int) -> Accumulated:
        """Statistics for consolidation (model section 8).

        For each splat k < n: its mass sum r, its resultant sum r x, and its token counts sum r,
        each over all (row, candidate) with ids = k, in ascending order.

        x (B, d) unit; ids (B, K) int64 in [0, n); responsibilities (B, K) finite, >= 0; tokens (B,)
        int64 >= 0.
        """
        result: Accumulated = self._operation("accumulate", locals())
        return result
