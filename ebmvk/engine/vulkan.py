"""The operations as compute shaders on a Vulkan device (extension `ebmvk._vulkan`).

Results do not depend on how a batch is split, on the number of steps per dispatch or on the number
of shards; they may differ in the last bits between devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ebmvk.engine import checks, native, wood
from ebmvk.engine.api import Accumulated, OpCount, Points, Storage
from ebmvk.engine.chained import Chained
from ebmvk.engine.counting import Translated
from ebmvk.engine.device_tensor import DeviceTensor, SparseRows, on_device, on_host
from ebmvk.engine.native import array
from ebmvk.engine.vulkan_devices import choose, extension
from ebmvk.errors import ArgumentError, DeviceError, DeviceLost, EbmvkError, NonFinite, OutOfMemory
from ebmvk.host.cache_folder import cache_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ebmvk import _vulkan

COUNTED = tuple(field.name for field in dataclasses.fields(OpCount))


_NO_TOKEN = 2**32 - 1  # what the kernel of `decode` writes for a row whose weights aren't finite


class VulkanPoints:
    """Rows (N, d) in device memory, in float32 or float16.

    Float32 rows get a float16 copy as soon as that makes `topk` faster. It changes no bit of the
    results.
    """

    def __init__(self, backend: Vulkan, points: Tensor, storage: Storage) -> None:
        (points,) = on_host((points,))
        checks.storage(storage)
        checks.points(checks.NATIVE, points)
        self._backend = backend
        self.storage: Storage = storage
        with backend._errors("points"):
            self.native: _vulkan.Points = backend._engine.points(
                array(points), getattr(backend._extension.Storage, storage)
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

    @property
    def backend(self) -> Vulkan:
        return self._backend

    def update(self, points: Tensor, *, first: int | None = None, ids: Tensor | None = None) -> None:
        points, ids = on_host((points, ids))
        if first is None and ids is None:
            checks.points(checks.NATIVE, points, like=(self.n, self.d))
        else:
            checks.some_points(checks.NATIVE, points, self.n, self.d, first, ids)
        with self._backend._errors("points"):
            if ids is not None:
                self.native.update_named(array(points), array(ids))
            elif first is not None:
                self.native.update_some(array(points), first)
            else:
                self.native.update(array(points))


class Vulkan(Chained):
    """The backend on one Vulkan device.

    Takes contiguous float32 tensors on the CPU, and its own `DeviceTensor`s: if an argument is one,
    so are all results. Points stay on the device.

    Args:
        index: the device's number. None takes the one to prefer (`vulkan_devices.choose`).
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
        for key, value in {"cache_dir": str(cache_folder() or ""), **(options or {})}.items():
            setattr(settings, key, value)
        try:
            self._engine: _vulkan.Engine = self._extension.Engine(choose(index), settings)
        except self._extension.Unavailable as error:
            raise DeviceError(str(error), hint="see `vulkaninfo --summary`, or use --device cpu") from error
        self.capabilities: _vulkan.Capabilities = self._engine.capabilities
        self._rules = checks.Rules(native=True, home=self._engine)

    @property
    def device(self) -> str:
        return f"Vulkan device {self.capabilities.index}: {self.capabilities.name} ({self.capabilities.type})"

    def counts(self) -> Mapping[str, OpCount]:
        with self._errors("counts"):
            counts = self._engine.counts()
        return MappingProxyType(
            {name: OpCount(**{key: getattr(count, key) for key in COUNTED}) for name, count in counts.items()}
        )

    def kernels(self) -> list[str]:
        """The shaders that ran, as NAME.VARIANT.STORAGE; the storage is that of the points."""
        return [f"{name}.{variant.name}.{storage.name}" for name, variant, storage in self._engine.used_kernels()]

    def tensor(self, values: Tensor | NDArray[Any]) -> DeviceTensor:
        """A copy of the values on the device, for any argument of an operation.

        Args:
            values: (B,) or (B, n), contiguous, float32 without NaN, or int64 in [0, 2^32).

        Raises:
            ArgumentError: another shape, dtype or value. OutOfMemory: too little device memory.
        """
        given = torch.as_tensor(values).detach()
        checks.values(given)
        with self._errors("tensor"):
            return DeviceTensor(self, self._engine.tensor(array(given)))

    @property
    def home(self) -> object:
        return self._engine

    def read(self, *tensors: DeviceTensor) -> list[NDArray[Any]]:
        with self._errors("read"):
            return self._engine.read([tensor.native for tensor in tensors])

    def energy(
        self, x: Tensor, points: Points, ids: Tensor, logw: Tensor, kappa: Tensor, log_background: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        energy, responsibilities, background = map(self._result, self._call("energy_score", locals(), "energy"))
        return energy, responsibilities, background

    def _tensor(self, value: Any) -> Tensor:
        return cast("Tensor", self._result(value))

    def _result(self, value: Any) -> Any:
        """A tensor on the CPU, or on the device; there the gradients of points are sparse."""
        if isinstance(value, tuple):
            ids, rows, n = value
            return SparseRows(self._result(ids), self._result(rows), n)
        return DeviceTensor(self, value) if isinstance(value, self._extension.Tensor) else torch.from_numpy(value)

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

    def _rows(self, operation: str, *arguments: Tensor) -> Tensor:
        checks.rows(operation, self._rules, arguments)
        with self._errors(operation):
            return self._tensor(self._engine.rows(operation, [*map(_native, arguments)]))

    def _call(self, name: str, given: Mapping[str, Any], function: str = "") -> tuple[Any, ...]:
        """The results of an operation, as the extension returns them. function: the extension's
        function, if its name isn't `name`."""
        own = self._own(given["points"]) if "points" in given else None
        sizes = checks.operation(name, self._rules, given)
        with self._errors(name):
            found = getattr(self._engine, function or name)(*native.arguments(name, given, sizes, own, _native))
        return found if isinstance(found, tuple) else (found,)

    def _operation(self, name: str, given: Mapping[str, Any]) -> Any:
        result = native.returned(name, map(self._result, self._call(name, given)))
        if name == "decode":
            _require_tokens(result)
        return result

    def vmf_sample(self, mu: Tensor, kappa: Tensor, *, seed: int, first_row: int = 0) -> Tensor:
        checks.operation("vmf_sample", self._rules, locals())
        if on_device(kappa) and not on_device(mu):
            mu = cast("Tensor", self.tensor(mu))
        (kappa,) = on_host((kappa,))
        fall = wood.deficit(kappa, mu.shape[1], seed=seed, first_row=first_row)
        cosine_sine = torch.stack((1 - fall, torch.sqrt(fall * (2 - fall))), dim=1).float()
        with self._errors("vmf_sample"):
            return self._tensor(self._engine.vmf_sample(_native(mu), _native(cosine_sine), seed, first_row))

    def accumulate(self, x: Tensor, ids: Tensor, responsibilities: Tensor, tokens: Tensor, n: int) -> Accumulated:
        checks.operation("accumulate", self._rules, locals())
        with self._errors("accumulate"):
            found = self._engine.accumulate(_native(x), _native(ids), _native(responsibilities), _native(tokens), n)
        return Accumulated(*map(self._result, found))


def _require_tokens(tokens: Tensor) -> None:
    """Raises NonFinite."""
    if lost := int((tokens == _NO_TOKEN).sum()):
        raise NonFinite(
            f"{lost} of {len(tokens)} states have no finite responsibilities",
            why="a step size, friction, temperature or concentration of their chains is too large",
            hint="remove --langevin-dt, --langevin-gamma, --langevin-T and --kappa, so that rules set them",
        )


def _native(tensor: Tensor | DeviceTensor) -> Any:
    """What the extension takes: an array, or its own tensor."""
    return tensor.native if isinstance(tensor, DeviceTensor) else array(tensor)
