"""The operations as SIMD kernels on a thread pool (extension `ebmvk._cpu`).

Results do not depend on the number of threads or on how a batch is split; they may differ in the
last bits between instruction sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ebmvk.engine import checks, wood
from ebmvk.engine.api import (
    Accumulated,
    Backend,
    EnergyGradients,
    EnergyScore,
    LangevinDiagnostics,
    LangevinResult,
    OpCount,
    Points,
    Schedule,
    Scheme,
    Storage,
    TopK,
)
from ebmvk.engine.counting import Counter, Measured
from ebmvk.engine.missing import extension_error
from ebmvk.errors import ArgumentError, OutOfMemory

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np
    from numpy.typing import NDArray

    from ebmvk import _cpu


_COARSE_SIZE = 1 << 21  # coordinates from which on a store is read in 8 bits, for any number of queries
_COARSE_BATCH = 1 << 17  # the same for _BATCH_ROWS queries or more at once
_BATCH_ROWS = 1024
_COARSE_ROWS = 256
_CALL_ROWS = 32
_COARSE_DIMENSIONS = 16384


class CpuPoints:
    """A copy of the rows (N, d) in float32; once it makes `topk` faster, also one in 8 bits.

    With storage float16 the rows are rounded but kept as float32. Results are those of other
    backends; memory isn't saved.
    """

    def __init__(self, points: Tensor, storage: Storage) -> None:
        checks.storage(storage)
        checks.points(checks.NATIVE, points)
        self.storage: Storage = storage
        self.rows = checks.stored(points.detach(), storage).clone()
        self._coarse: _cpu.CoarsePoints | None = None
        self._asked = 0

    def coarse(self, ops: ModuleType, rows: int, k: int) -> _cpu.CoarsePoints | None:
        """The 8-bit copy, if it makes a top-k of `rows` queries faster.

        It never changes a bit of the result.
        """
        size = _COARSE_BATCH if rows >= _BATCH_ROWS else _COARSE_SIZE
        if not ops.use_coarse() or self.rows.numel() < size or self.n < 16 * k or self.d > _COARSE_DIMENSIONS:
            return None
        self._asked += rows + _CALL_ROWS  # reading all rows once takes as long as _CALL_ROWS queries
        if self._coarse is None and self._asked >= _COARSE_ROWS:  # making it costs as much as about 100 queries
            self._coarse = ops.CoarsePoints(_array(self.rows))
        return self._coarse

    @property
    def n(self) -> int:
        return int(self.rows.shape[0])

    @property
    def d(self) -> int:
        return int(self.rows.shape[1])

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + (self._coarse.nbytes if self._coarse is not None else 0)

    def update(self, points: Tensor, *, first: int | None = None, ids: Tensor | None = None) -> None:
        if first is None and ids is None:
            checks.points(checks.NATIVE, points, like=(self.n, self.d))
        else:
            checks.some_points(checks.NATIVE, points, self.n, self.d, first, ids)
        rows = slice(first, None if first is None else first + len(points)) if ids is None else ids
        self.rows[rows] = checks.stored(points.detach(), self.storage)
        self._coarse, self._asked = None, 0


class Cpu(Backend):
    """The backend on all processors that this process may use.

    Takes contiguous float32 tensors on the CPU.

    Raises:
        DeviceError: the extension can't be imported; the message names the likely cause.
    """

    name = "cpu"

    def __init__(self) -> None:
        try:
            from ebmvk import _cpu
        except ImportError as error:
            raise extension_error("_cpu", error) from error
        self._ops = _cpu
        self._counter = Counter()

    @property
    def device(self) -> str:
        threads = self._ops.threads()
        return f"{self._ops.target()} kernels, {threads} thread{'s' if threads > 1 else ''}"

    def kernels(self) -> list[str]:
        """The instruction set in use, and that of 8-bit products."""
        return [self._ops.target(), f"8-bit products: {self._ops.coarse_kernel()}"]

    def counts(self) -> Mapping[str, OpCount]:
        return self._counter.snapshot()

    def points(self, points: Tensor, storage: Storage = "float32") -> CpuPoints:
        return CpuPoints(points, storage)

    def _run(self, op: str) -> Measured:
        def translate(error: BaseException) -> OutOfMemory | None:
            if not isinstance(error, MemoryError):
                return None
            return OutOfMemory(f"{op} ran out of memory on the CPU", hint="use smaller batches")

        return self._counter.measure(op, translate)

    def _rows(self, operation: str, *arguments: Tensor) -> Tensor:
        checks.rows(operation, checks.NATIVE, arguments)
        with self._run(operation):
            return _tensor(self._ops.rows(operation, [*map(_array, arguments)]))

    def topk(
        self, queries: Tensor, points: Points, k: int, *, scale: Tensor | None = None, bias: Tensor | None = None
    ) -> TopK:
        own = _own(points)
        checks.operation("topk", checks.NATIVE, locals())
        with self._run("topk"):
            scores, ids, _ = self._ops.topk(
                _array(queries),
                _array(own.rows),
                k,
                None if scale is None else _array(scale),
                None if bias is None else _array(bias),
                own.coarse(self._ops, queries.shape[0], k),
            )
            return TopK(_tensor(scores), _tensor(ids))

    def energy_score(
        self, x: Tensor, points: Points, ids: Tensor, logw: Tensor, kappa: Tensor, log_background: Tensor
    ) -> EnergyScore:
        own = _own(points)
        checks.operation("energy_score", checks.NATIVE, locals())
        with self._run("energy_score"):
            arrays = map(_array, (x, own.rows, ids, logw, kappa, log_background))
            return EnergyScore(*map(_tensor, self._ops.energy_score(*arrays)))

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
        own = _own(points)
        checks.operation("energy_score_backward", checks.NATIVE, locals())
        with self._run("energy_score_backward"):
            arrays = map(_array, (x, own.rows, ids, logw, kappa, log_background, grad_energy, grad_score))
            return EnergyGradients(*map(_tensor, self._ops.energy_score_backward(*arrays)))

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
        own = _own(points)
        checks.operation("langevin", checks.NATIVE, locals())
        levels, per_chain = _levels(schedule, x.shape[0])
        with self._run("langevin"):
            x, v = x.detach().clone(), v.detach().clone()
            energy, kinetic, error, tangency, acceptance = self._ops.langevin(
                _array(x),
                _array(v),
                _array(own.rows),
                _array(ids),
                _array(logw),
                _array(kappa),
                _array(log_background),
                _array(levels),
                list(schedule.steps),
                per_chain=per_chain,
                seed=seed,
                first_step=first_step,
                first_chain=first_chain,
                temperature=temperature,
                scheme=scheme,
                leapfrogs=leapfrogs,
            )
        diagnostics = LangevinDiagnostics(
            energy=_tensor(energy),
            kinetic_temperature=_tensor(kinetic),
            energy_error=_tensor(error),
            acceptance=_tensor(acceptance),
            tangency=_tensor(tangency),
        )
        return LangevinResult(x, v, diagnostics)

    def vmf_sample(self, mu: Tensor, kappa: Tensor, *, seed: int, first_row: int = 0) -> Tensor:
        checks.operation("vmf_sample", checks.NATIVE, locals())
        with self._run("vmf_sample"):
            fall = wood.deficit(kappa, mu.shape[1], seed=seed, first_row=first_row)
            return _tensor(self._ops.vmf_place(_array(mu), _array(fall), seed, first_row))

    def accumulate(self, x: Tensor, ids: Tensor, responsibilities: Tensor, tokens: Tensor, n: int) -> Accumulated:
        checks.operation("accumulate", checks.NATIVE, locals())
        with self._run("accumulate"):
            found = self._ops.accumulate(_array(x), _array(ids), _array(responsibilities), _array(tokens), n)
            return Accumulated(*(_tensor(array) for array in found))


def _array(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().numpy()  # type: ignore[no-any-return, unused-ignore]


def _tensor(array: NDArray[np.float32] | NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(array)


def _own(points: Points) -> CpuPoints:
    if not isinstance(points, CpuPoints):
        raise ArgumentError(
            f"points is a {type(points).__name__}, which belongs to another backend",
            hint="make the points with this backend's points()",
        )
    return points


def _levels(schedule: Schedule, rows: int) -> tuple[Tensor, bool]:
    """The four settings of each level: (L, 4) if all chains share them, otherwise (B * L, 4)."""
    tensors = [schedule.kappa_scale, schedule.logw_shift, schedule.step_size, schedule.gamma]
    per_chain = any(tensor.dim() == 2 for tensor in tensors)
    if per_chain:
        tensors = [tensor.expand(rows, len(schedule.steps)) for tensor in tensors]
    return torch.stack(tensors, dim=-1).reshape(-1, 4), per_chain
