"""`DeviceTensor`: a result that stays on the device and can be an argument of the next operation.

A backend with a device takes it wherever it takes a tensor on the CPU, and both kinds may be mixed
in one call. If one argument is a `DeviceTensor`, so are all results; otherwise all results are
tensors on the CPU. Both ways give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Keeper(Protocol):
    """A backend that keeps tensors on its device."""

    @property
    def device(self) -> str: ...

    @property
    def home(self) -> object:
        """The extension's engine. Each backend that was opened has its own."""

    def read(self, *tensors: DeviceTensor) -> list[NDArray[Any]]:
        """A copy of each on the host."""


class DeviceTensor:
    """Values in device memory, of shape (B,) or (B, n): float32, or int64 in [0, 2^32).

    `Vulkan.tensor` makes one of a tensor or an array; operations make the others. Its values never
    change. Its memory is used again once the object is gone. Nothing is copied to the host until
    `torch`, `numpy` or `numpy.asarray` asks for it, and each of these calls makes a new copy.

    Attributes:
        native: the extension's tensor.
    """

    def __init__(self, keeper: Keeper, native: Any) -> None:
        self.native = native
        self._keeper = keeper
        self._shape: tuple[int, ...] = native.shape

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def dtype(self) -> torch.dtype:
        return torch.int64 if self.native.index else torch.float32

    @property
    def device(self) -> str:
        """The device as text, as `Vulkan.device`."""
        return self._keeper.device

    @property
    def nbytes(self) -> int:
        """Bytes of device memory."""
        size: int = self.native.nbytes
        return size

    @property
    def below(self) -> int:
        """For int64: a number above all values."""
        bound: int = self.native.below
        return bound

    def dim(self) -> int:
        return len(self._shape)

    def numel(self) -> int:
        return math.prod(self._shape)

    def __len__(self) -> int:
        return self._shape[0]

    @property
    def home(self) -> object:
        """The extension's engine that keeps the values."""
        return self._keeper.home

    def numpy(self) -> NDArray[Any]:
        """A copy on the host.

        Raises:
            DeviceLost: the device was lost.
        """
        return self._keeper.read(self)[0]

    def torch(self) -> Tensor:
        """A copy as a tensor on the CPU. Raises as `numpy`."""
        return torch.from_numpy(self.numpy())

    def __array__(self, dtype: np.dtype[Any] | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("the values are on a device, so an array of them is a copy")
        array = self.numpy()
        return array if dtype is None else array.astype(dtype, copy=False)

    def __repr__(self) -> str:
        return f"DeviceTensor(shape={self._shape}, dtype={self.dtype}, device={self.device!r})"


@dataclass(frozen=True)
class SparseRows:
    """The rows of an (n, d) array that may differ from zero: row ids[i] is rows[i].

    ids: (M,) int64, ascending, each once. rows: (M, d).
    """

    ids: DeviceTensor
    rows: DeviceTensor
    n: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d)."""
        return (self.n, self.rows.shape[1])

    def torch(self) -> Tensor:
        """The dense array (n, d), a copy on the CPU. Raises as `DeviceTensor.numpy`."""
        ids, rows = read(self.ids, self.rows)
        return torch.zeros(self.n, rows.shape[1]).index_copy_(0, ids, rows)


def on_device(*values: object) -> bool:
    """True if one of the values is a `DeviceTensor`."""
    return any(isinstance(value, DeviceTensor) for value in values)


def read(*tensors: DeviceTensor) -> list[Tensor]:
    """A copy of each on the CPU, all of them in one submission. They are tensors of one backend."""
    return [torch.from_numpy(array) for array in tensors[0]._keeper.read(*tensors)] if tensors else []


def on_host(values: Sequence[Any]) -> list[Any]:
    """The values, with each `DeviceTensor` replaced by a tensor on the CPU."""
    return [value.torch() if isinstance(value, DeviceTensor) else value for value in values]
