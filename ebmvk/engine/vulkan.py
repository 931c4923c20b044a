"""The operations as compute shaders on a Vulkan device (extension `ebmvk._vulkan`).

Results do not depend on how a batch is split, on the number of steps per dispatch or on the number
of shards; they may differ in the last bits between devices.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ebmvk.engine import checks, wood
from ebmvk.engine.api import (
    Accumulated,
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
from ebmvk.engine.counting import Translated
from ebmvk.engine.vulkan_devices import choose, extension
from ebmvk.errors import ArgumentError, DeviceError, DeviceLost, EbmvkError, OutOfMemory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ebmvk import _vulkan


def _cache_dir() -> str:
    """The folder that keeps compiled kernels between runs. Empty if there is no home folder; then
    none are kept.
    """
    try:
        return str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ebmvk")
    except RuntimeError:
        return ""


class VulkanPoints:
    """Rows (N, d) in device memory, in float32 or float16.

    Once it makes `topk` faster, float32 rows get a float16 copy, which changes no bit of the
    results.
    """

    def __init__(self, backend: Vulkan, points: Tensor, storage: Storage) -> None:
        checks.storage(storage)
        checks.points(checks.NATIVE, points)
        self._backend = backend
        self.storage: Storage = storage
        with backend._errors("points"):
            self.native: _vulkan.Points = backend._engine.points(
                _array(points), getattr(backend._extension.Storage, storage)
            )

    @property
    def n(self) -> int:
        return self.native.n

    @property
    def d(self) -> int:
        return self.native.d

    @property
    def nbytes(self) -> int:
        return self.native.nbytes

    def update(self, points: Tensor) -> None:
        checks.points(checks.NATIVE, points, like=(self.n, self.d))
        with self._backend._errors("points"):
            self.native.update(_array(points))


class Vulkan:
    """The backend on one Vulkan device.

    Takes contiguous float32 tensors on the CPU; points stay on the device.

    Args:
        index: the device's number. None takes the first that isn't of type cpu, else the first.
        options: fields of `ebmvk._vulkan.Options`, such as validate, portable, shard_bytes or
            memory_limit.

    Raises:
        DeviceError: the extension isn't built, the device does not exist, or the device lacks a
            needed feature.
    """

    name = "vulkan"

    def __init__(
        self, index: int | None = None, *, options: Mapping[str, bool | int | float | str] | None = None
    ) -> None:
        self._extension: Any = extension()
        settings = self._extension.Options()
        for key, value in {"cache_dir": _cache_dir(), **(options or {})}.items():
            setattr(settings, key, value)
        try:
            self._engine: _vulkan.Engine = self._extension.Engine(choose(index), settings)
        except self._extension.Unavailable as error:
            raise DeviceError(str(error), hint="see `vulkaninfo --summary`, or use --device cpu") from error
        self.capabilities: _vulkan.Capabilities = self._engine.capabilities

    @property
    def device(self) -> str:
        return f"Vulkan device {self.capabilities.index}: {self.capabilities.name} ({self.capabilities.type})"

    def counts(self) -> Mapping[str, OpCount]:
        with self._errors("counts"):
            counts = self._engine.counts()
        return MappingProxyType(
            {name: OpCount(count.calls, count.dispatches, count.seconds) for name, count in counts.items()}
        )

    def submissions(self) -> int:
        """Submissions to Vulkan queues in this process until now, whichever device they went to."""
        return int(self._extension.calls_of("vkQueueSubmit"))

    def kernels(self) -> list[str]:
        """The shaders that ran, as NAME.VARIANT.STORAGE; the storage is that of the points."""
        return [f"{name}.{variant.name}.{storage.name}" for name, variant, storage in self._engine.used_kernels()]

    def points(self, points: Tensor, storage: Storage = "float32") -> VulkanPoints:
        return VulkanPoints(self, points, storage)

    def copy_seconds(self, size: int, times: int, repeats: int) -> list[float]:
        """Seconds of each of `repeats` submissions, each with `times` copies of `size` bytes."""
        with self._errors("copy_seconds"):
            return self._engine.time_copy(size, times, repeats)

    def arithmetic_seconds(self, rows: int, rounds: int, repeats: int) -> list[float]:
        """Seconds of each of `repeats` submissions. In each, `rows` invocations do 128 * rounds
        float32 fused multiply-adds in registers."""
        with self._errors("arithmetic_seconds"):
            return self._engine.time_fma(rows, rounds, repeats)

    def product_seconds(self, rows: int, columns: int, d: int, repeats: int) -> list[float]:
        """Seconds of each of `repeats` submissions of the scoring kernel alone: rows x columns
        scores of dimension d.
        """
        with self._errors("product_seconds"):
            return self._engine.time_product(rows, columns, d, repeats)

    def _errors(self, op: str) -> Translated:
        extension = self._extension

        def translate(error: BaseException) -> EbmvkError | None:
            if isinstance(error, extension.OutOfMemory):
                return OutOfMemory(f"{op}: {error}", hint="use smaller batches, or fewer points")
            if isinstance(error, extension.DeviceLost):
                return DeviceLost(
                    f"{op}: {error}",
                    why="the driver resets a device that hangs or faults",
                    hint="open the device again; if it repeats, use --device cpu and report the driver's version",
                )
            if isinstance(error, extension.Torn):
                return DeviceError(f"{op}: {error}", hint="update the points again, or make new ones")
            if isinstance(error, extension.Unavailable):
                return DeviceError(f"{op}: {error}", hint="use --device cpu, and report the driver's version")
            if isinstance(error, extension.Unsupported):
                return ArgumentError(f"{op}: {error}", hint="use smaller sizes, or --device cpu")
            if isinstance(error, MemoryError):
                return OutOfMemory(f"{op} ran out of memory on the host", hint="use smaller batches")
            return None

        return Translated(translate)

    def _own(self, points: Points) -> _vulkan.Points:
        if not isinstance(points, VulkanPoints) or points._backend is not self:
            raise ArgumentError(
                f"points is a {type(points).__name__}, which belongs to another backend",
                hint="make the points with this backend's points()",
            )
        return points.native

    def _sphere(self, op: str, *arguments: Tensor) -> Tensor:
        with self._errors(op):
            return _tensor(
                self._engine.sphere(getattr(self._extension.SphereOp, op), [_array(argument) for argument in arguments])
            )

    def projx(self, x: Tensor) -> Tensor:
        checks.projx(checks.NATIVE, x)
        return self._sphere("projx", x)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        checks.unit_pair(checks.NATIVE, "u", x, u, unit_other=False)
        return self._sphere("proju", x, u)

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        checks.unit_pair(checks.NATIVE, "u", x, u, unit_other=False)
        return self._sphere("expmap", x, u)

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        checks.unit_pair(checks.NATIVE, "y", x, y, unit_other=True)
        return self._sphere("logmap", x, y)

    def transp(self, x: Tensor, y: Tensor, u: Tensor) -> Tensor:
        checks.unit_pair(checks.NATIVE, "y", x, y, unit_other=True)
        checks.unit_pair(checks.NATIVE, "u", x, u, unit_other=False)
        return self._sphere("transp", x, y, u)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        checks.unit_pair(checks.NATIVE, "y", x, y, unit_other=True)
        return self._sphere("dist", x, y)

    def topk(
        self, queries: Tensor, points: Points, k: int, *, scale: Tensor | None = None, bias: Tensor | None = None
    ) -> TopK:
        native = self._own(points)
        checks.topk(checks.NATIVE, queries, points.n, points.d, k, scale, bias)
        with self._errors("topk"):
            scores, ids = self._engine.topk(
                native,
                _array(queries),
                k,
                None if scale is None else _array(scale),
                None if bias is None else _array(bias),
            )
        return TopK(_tensor(scores), _tensor(ids))

    def energy_score(
        self, x: Tensor, points: Points, ids: Tensor, logw: Tensor, kappa: Tensor, log_background: Tensor
    ) -> EnergyScore:
        native = self._own(points)
        checks.candidates(checks.NATIVE, x, points.n, points.d, ids, logw, kappa, log_background)
        with self._errors("energy_score"):
            parts = self._engine.energy_score(
                native, _array(x), _array(ids), _array(logw), _array(kappa), _array(log_background)
            )
        return EnergyScore(*map(_tensor, parts))

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
        native = self._own(points)
        checks.candidates(checks.NATIVE, x, points.n, points.d, ids, logw, kappa, log_background)
        checks.cotangents(checks.NATIVE, x, grad_energy, grad_score)
        arguments = (x, ids, logw, kappa, log_background, grad_energy, grad_score)
        with self._errors("energy_score_backward"):
            parts = self._engine.energy_score_backward(native, *map(_array, arguments))
        return EnergyGradients(*map(_tensor, parts))

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
        native = self._own(points)
        checks.langevin(
            checks.NATIVE,
            *(x, v, points.n, points.d, ids, logw, kappa, log_background),
            *(schedule, seed, first_step, first_chain, temperature, scheme, leapfrogs),
        )
        with self._errors("langevin"):
            at, speed, *diagnostics = map(
                _tensor,
                self._engine.langevin(
                    native,
                    _array(x),
                    _array(v),
                    _array(ids),
                    _array(logw),
                    _array(kappa),
                    _array(log_background),
                    *_levels(schedule, x.shape[0]),
                    list(schedule.steps),
                    seed,
                    first_step,
                    first_chain,
                    float(temperature),
                    leapfrogs if scheme == "ghmc" else 0,
                ),
            )
        return LangevinResult(at, speed, LangevinDiagnostics(*diagnostics))

    def vmf_sample(self, mu: Tensor, kappa: Tensor, *, seed: int, first_row: int = 0) -> Tensor:
        checks.vmf(checks.NATIVE, mu, kappa, seed, first_row)
        fall = wood.deficit(kappa, mu.shape[1], seed=seed, first_row=first_row)
        cosine_sine = torch.stack((1 - fall, torch.sqrt(fall * (2 - fall))), dim=1).float()
        with self._errors("vmf_sample"):
            return _tensor(self._engine.vmf_sample(_array(mu), _array(cosine_sine), seed, first_row))

    def accumulate(self, x: Tensor, ids: Tensor, responsibilities: Tensor, tokens: Tensor, n: int) -> Accumulated:
        checks.accumulate(checks.NATIVE, x, ids, responsibilities, tokens, n)
        with self._errors("accumulate"):
            found = self._engine.accumulate(_array(x), _array(ids), _array(responsibilities), _array(tokens), n)
        sums, splat_token, counts = (_tensor(array) for array in found)
        return Accumulated(sums[:, -1].contiguous(), sums[:, :-1].contiguous(), splat_token, counts)


def _levels(schedule: Schedule, rows: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """kappa_scale, logw_shift, step_size, gamma: all (1, L), or all (B, L) if any differs by
    chain."""
    tables = (schedule.kappa_scale, schedule.logw_shift, schedule.step_size, schedule.gamma)
    shared = all(table.dim() == 1 for table in tables)
    shape = (1 if shared else rows, len(schedule.steps))
    kappa_scale, logw_shift, step_size, gamma = (_array(table.expand(shape).contiguous()) for table in tables)
    return kappa_scale, logw_shift, step_size, gamma


def _array(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[np.generic] = tensor.detach().numpy()
    return array


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array)
