"""Every operation in plain torch: the float64 oracle for the native backends, and the path on CUDA.

The formulas are in `reference_math`, the chains in `reference_chains`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ebmvk.engine import checks, philox, reference_math, wood
from ebmvk.engine.api import (
    Accumulated,
    Backend,
    EnergyGradients,
    EnergyScore,
    HostRows,
    LangevinResult,
    OpCount,
    Points,
    Schedule,
    Scheme,
    Storage,
    TopK,
)
from ebmvk.engine.counting import Counter, Measured
from ebmvk.engine.integrators import INTEGRATORS
from ebmvk.engine.operations import OPERATIONS
from ebmvk.engine.reference_chains import Chains, Level, Noise, join
from ebmvk.engine.reference_math import CHUNK, energy_score, normalise, split, tangent, topk_rows
from ebmvk.errors import ArgumentError, DeviceError, OutOfMemory


class ReferencePoints(HostRows):
    """A copy of the rows (N, d) in the dtype and on the device of the backend.

    With storage float16 the rows are rounded but kept in the backend's dtype. Results are those of
    other backends, but no memory is saved.
    """

    def __init__(self, backend: Reference, points: Tensor, storage: Storage) -> None:
        checks.storage(storage)
        checks.points(checks.ANY, points)
        self.storage: Storage = storage
        self._backend = backend
        self.rows = backend._take(checks.stored(points.detach(), storage)).clone()

    def update(self, points: Tensor, *, first: int | None = None, ids: Tensor | None = None) -> None:
        if first is None and ids is None:
            checks.points(checks.ANY, points, like=(self.n, self.d))
        else:
            checks.some_points(checks.ANY, points, self.n, self.d, first, ids)
        rows = slice(first, None if first is None else first + len(points)) if ids is None else ids
        self.rows[rows] = self._backend._take(checks.stored(points.detach(), self.storage))


class Reference(Backend):
    """The backend in plain torch, on one device.

    Args:
        device: any torch device. Arguments are moved there, and results stay there.
        dtype: arguments are converted to it; float64 gives an oracle. None keeps the dtype that
            they have.

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

    def points(self, points: Tensor, storage: Storage = "float32") -> ReferencePoints:
        return ReferencePoints(self, points, storage)

    def _run(self, op: str) -> Measured:
        def translate(error: BaseException) -> OutOfMemory | None:
            said = str(error)
            short = isinstance(error, RuntimeError) and re.search("allocat|out of memory", said)
            if not short and not isinstance(error, MemoryError):
                return None
            return OutOfMemory(
                f"{op} ran out of memory on {self._device}", why=said.partition("\n")[0], hint="use smaller batches"
            )

        return self._counter.measure(op, translate)

    def _take(self, value: Tensor) -> Tensor:
        return value.to(device=self._device, dtype=self._dtype or value.dtype)

    def _alike(self, **tensors: Tensor | None) -> None:
        """If the backend has no dtype of its own, it works in that of the first argument, and all
        others must have the same one.
        """
        if self._dtype is not None:
            return
        (first, dtype), *rest = [(name, tensor.dtype) for name, tensor in tensors.items() if tensor is not None]
        for name, other in rest:
            if other != dtype:
                raise ArgumentError(
                    f"{name} has dtype {other}; expected {dtype}, the dtype of {first}",
                    hint=f"pass {name}.to({dtype})",
                )

    def _own(self, points: Points) -> ReferencePoints:
        if not isinstance(points, ReferencePoints) or points._backend is not self:
            raise ArgumentError(
                f"points is a {type(points).__name__}, which belongs to another backend",
                hint="make the points with this backend's points()",
            )
        return points

    def _rows(self, operation: str, *arguments: Tensor) -> Tensor:
        named = checks.rows(operation, checks.ANY, arguments)
        self._alike(**named)
        with self._run(operation):
            return reference_math.ROWS[operation](*map(self._take, arguments))

    def _operation(self, name: str, given: Mapping[str, Any]) -> Any:
        kinds = {argument.name: argument.kind for argument in OPERATIONS[name].arguments}
        taken = {of: given[of] for of in kinds}
        if "points" in taken:
            taken["points"] = self._own(taken["points"]).rows
        checks.operation(name, checks.ANY, given)
        self._alike(**{of: value for of, value in taken.items() if kinds[of] in ("tensor", "points")})
        with self._run(name), torch.no_grad():
            for of, value in taken.items():
                if kinds[of] == "index":
                    taken[of] = value.to(self._device)
                elif kinds[of] == "tensor" and value is not None:
                    taken[of] = self._take(value)
            return reference_math.FORMULAS[name](**taken)

    def topk(
        self, queries: Tensor, points: Points, k: int, *, scale: Tensor | None = None, bias: Tensor | None = None
    ) -> TopK:
        own = self._own(points)
        checks.operation("topk", checks.ANY, locals())
        self._alike(points=own.rows, queries=queries, scale=scale, bias=bias)
        with self._run("topk"), torch.no_grad():
            queries = self._take(queries)
            parts = []
            for rows in split(queries, max(1, CHUNK // own.n)):
                scores = rows @ own.rows.T
                scores = scores if scale is None else scores * self._take(scale)
                scores = scores if bias is None else scores + self._take(bias)
                parts.append(topk_rows(scores, k))
            return TopK(torch.cat([scores for scores, _ in parts]), torch.cat([ids for _, ids in parts]))

    def energy_score(
        self, x: Tensor, points: Points, ids: Tensor, logw: Tensor, kappa: Tensor, log_background: Tensor
    ) -> EnergyScore:
        own = self._own(points)
        checks.operation("energy_score", checks.ANY, locals())
        self._alike(points=own.rows, x=x, logw=logw, kappa=kappa, log_background=log_background)
        with self._run("energy_score"):
            size = max(1, CHUNK // (ids.shape[1] * own.d))
            whole = (ids.to(self._device), *map(self._take, (x, logw, kappa, log_background)))
            parts = [
                energy_score(rest[0], own.rows[at], *rest[1:])
                for at, *rest in zip(*(split(tensor, size) for tensor in whole), strict=True)
            ]
            return EnergyScore(
                torch.cat([part.energy for part in parts]),
                torch.cat([part.score for part in parts]),
                torch.cat([part.responsibilities for part in parts]),
                torch.cat([part.background for part in parts]),
            )

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
        own = self._own(points)
        checks.operation("energy_score_backward", checks.ANY, locals())
        self._alike(points=own.rows, x=x, logw=logw, kappa=kappa, log_background=log_background)
        self._alike(x=x, grad_energy=grad_energy, grad_score=grad_score)
        with self._run("energy_score_backward"), torch.no_grad():
            size = max(1, CHUNK // (ids.shape[1] * own.d))
            floats = (x, logw, kappa, log_background, grad_energy, grad_score)
            whole = (ids.to(self._device), *map(self._take, floats))
            total = torch.zeros_like(own.rows)
            parts = []
            for at, *rest in zip(*(split(tensor, size) for tensor in whole), strict=True):
                part = reference_math.energy_score_backward(rest[0], own.rows[at], *rest[1:])
                reference_math.add_rows(total, at.flatten(), part.points.flatten(0, 1))
                parts.append((part.x, part.logw, part.kappa, part.log_background))
            grad_x, *weights = (torch.cat(column) for column in zip(*parts, strict=True))
            return EnergyGradients(grad_x, total, *weights)

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
        own = self._own(points)
        checks.operation("langevin", checks.ANY, locals())
        self._alike(points=own.rows, x=x, logw=logw, kappa=kappa, log_background=log_background, v=v)
        with self._run("langevin"), torch.no_grad():
            size = max(1, CHUNK // (ids.shape[1] * own.d))
            levels = [self._levels(schedule, x.shape[0], level) for level in range(len(schedule.steps))]
            chains = []
            for start in range(0, max(1, x.shape[0]), size):
                rows = slice(start, start + size)
                chain = Chains(
                    self._take(x[rows]).clone(),
                    self._take(v[rows]).clone(),
                    own.rows[ids[rows].to(self._device)],
                    *(self._take(tensor[rows]) for tensor in (logw, kappa, log_background)),
                    temperature=temperature,
                    noise=Noise(seed, first_step, first_chain + start),
                    integrator=INTEGRATORS[scheme],
                    leapfrogs=leapfrogs,
                )
                for level, steps in zip(levels, schedule.steps, strict=True):
                    chain.run_level(level.rows(rows), steps)
                chains.append(chain.result())
            return join(chains)

    def _levels(self, schedule: Schedule, rows: int, level: int) -> Level:
        def take(tensor: Tensor) -> Tensor:
            return self._take(tensor).expand(rows, len(schedule.steps))[:, level, None]

        return Level(*map(take, (schedule.kappa_scale, schedule.logw_shift, schedule.step_size, schedule.gamma)))

    def vmf_sample(self, mu: Tensor, kappa: Tensor, *, seed: int, first_row: int = 0) -> Tensor:
        checks.operation("vmf_sample", checks.ANY, locals())
        with self._run("vmf_sample"), torch.no_grad():
            mu = self._take(mu)
            rows, d = mu.shape
            step = torch.zeros((), dtype=torch.int64, device=self._device)
            row = torch.arange(first_row, first_row + rows, device=self._device)
            xi = philox.normals(seed, step, row, d, stream=philox.STREAM_VMF_TANGENT, dtype=mu.dtype)
            fall = wood.deficit(kappa.to(self._device), d, seed=seed, first_row=first_row)[:, None]
            across = tangent(mu, xi)
            across = across / torch.linalg.vector_norm(across, dim=1, keepdim=True)
            return normalise((1 - fall).to(mu) * mu + torch.sqrt(fall * (2 - fall)).to(mu) * across)

    def accumulate(self, x: Tensor, ids: Tensor, responsibilities: Tensor, tokens: Tensor, n: int) -> Accumulated:
        checks.operation("accumulate", checks.ANY, locals())
        self._alike(x=x, responsibilities=responsibilities)
        with self._run("accumulate"), torch.no_grad():
            indices = (ids.to(self._device), tokens.to(self._device))
            return reference_math.accumulate(self._take(x), indices[0], self._take(responsibilities), indices[1], n)
