"""The operations as SIMD kernels on a thread pool (extension `ebmvk._cpu`).

Results do not depend on the number of threads or on how a batch is split; they may differ in the
last bits between instruction sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ebmvk.engine import checks, native, wood
from ebmvk.engine.api import Backend, HostRows, OpCount, Points, Storage, TopK
from ebmvk.engine.counting import Counter, Measured
from ebmvk.engine.missing import extension_error
from ebmvk.engine.native import array
from ebmvk.errors import ArgumentError, OutOfMemory

if TYPE_CHECKING:
    from types import ModuleType

    from ebmvk import _cpu


_COARSE_SIZE = 1 << 21  # a store of at least this many coordinates is read in 8 bits for any number of queries
_COARSE_BATCH = 1 << 17  # a smaller store, from this size on, only for _BATCH_ROWS queries or more at once
_BATCH_ROWS = 1024
_COARSE_ROWS = 256
_CALL_ROWS = 32
_COARSE_DIMENSIONS = 16384


class CpuPoints(HostRows):
    """A float32 copy of the rows (N, d), and an 8-bit copy as soon as that makes `topk` faster.

    With storage float16 the rows are rounded but kept as float32. Results are those of other
    backends, but no memory is saved.
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
            self._coarse = ops.CoarsePoints(array(self.rows))
        return self._coarse

    @property
    def nbytes(self) -> int:
        return super().nbytes + (self._coarse.nbytes if self._coarse is not None else 0)

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
            return torch.from_numpy(self._ops.rows(operation, [*map(array, arguments)]))

    def _operation(self, name: str, given: Mapping[str, Any]) -> Any:
        own = _own(given["points"]).rows if "points" in given else None
        sizes = checks.operation(name, checks.NATIVE, given)
        with self._run(name):
            arrays = native.arguments(name, given, sizes, own if own is None else array(own))
            found = getattr(self._ops, name)(*arrays)
            results = found if isinstance(found, tuple) else (found,)
            return native.returned(name, map(torch.from_numpy, results))

    def topk(
        self, queries: Tensor, points: Points, k: int, *, scale: Tensor | None = None, bias: Tensor | None = None
    ) -> TopK:
        given, own = locals(), _own(points)
        sizes = checks.operation("topk", checks.NATIVE, given)
        with self._run("topk"):
            arrays = native.arguments("topk", given, sizes, array(own.rows))
            arrays.append(own.coarse(self._ops, queries.shape[0], k))
            scores, ids, _ = self._ops.topk(*arrays)
            return TopK(torch.from_numpy(scores), torch.from_numpy(ids))

    def vmf_sample(self, mu: Tensor, kappa: Tensor, *, seed: int, first_row: int = 0) -> Tensor:
        checks.operation("vmf_sample", checks.NATIVE, locals())
        with self._run("vmf_sample"):
            fall = wood.deficit(kappa, mu.shape[1], seed=seed, first_row=first_row)
            return torch.from_numpy(self._ops.vmf_place(array(mu), array(fall), seed, first_row))


def _own(points: Points) -> CpuPoints:
    if not isinstance(points, CpuPoints):
        raise ArgumentError(
            f"points is a {type(points).__name__}, which belongs to another backend",
            hint="make the points with this backend's points()",
        )
    return points
