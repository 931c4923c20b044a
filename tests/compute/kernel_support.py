"""Runs loops on the Vulkan device, and compares floats in units of the last place."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spirv_machine import Machine

from ebmvk.compute import oracle
from ebmvk.compute.emit import Generated, kernels_of
from ebmvk.compute.ir import DType, Expr, Loop, Op, Store, Tensor, View
from ebmvk.engine.recording import POISON, Limits, Recorder

sys.path.append(str(Path(__file__).resolve().parents[1] / "ops"))
from vulkan_open import open_vulkan

Array = np.ndarray[Any, Any]
SMALLEST = 2.0**-126
_IDS = itertools.count()
WORDS = {"float32": np.float32, "int32": np.int32, "uint32": np.uint32, "bool": np.uint32}
LEAST = Limits(
    group=128, groups=65535, groups_yz=65535, shared_bytes=16384, range_bytes=1 << 27, bindings=16, push_bytes=128,
    alignment=256, subgroup=0, loop_rounds=65535, kind="other",
)  # fmt: skip
"""Limits that every device has."""


def tensor(*shape: int, dtype: DType = "float32") -> Tensor:
    return Tensor(next(_IDS), tuple(shape), dtype)


def fresh(shape: tuple[int, ...], dtype: DType) -> Tensor:
    return tensor(*shape, dtype=dtype)


def op(name: str, *args: Expr, dtype: DType = "float32") -> Op:
    return Op(name, args, dtype)


def view(of: Tensor, shape: Sequence[int], strides: Sequence[int], offset: int = 0) -> View:
    return View(of, tuple(shape), tuple(strides), offset)


def ulps(result: Array, exact: Array) -> Array:
    """The errors of float32 results, in units of the last place of the exact values. Denormals may
    be flushed, the sign of NaN doesn't count, and a correctly rounded result has error 0."""
    exact = np.asarray(exact, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = exact.astype(np.float32)
        size = np.spacing(np.maximum(np.abs(rounded), np.float32(SMALLEST))).astype(np.float64)
        errors = np.abs(result.astype(np.float64) - exact) / size
    tiny = (np.abs(exact) < SMALLEST) & (np.abs(result) <= SMALLEST)
    same = (result == rounded) | (np.isnan(result) & np.isnan(exact)) | tiny
    return np.where(same, 0, np.nan_to_num(errors, nan=np.inf))


def validate(module: bytes, folder: Path) -> None:
    """Checks that spirv-val, if it is installed, accepts the module."""
    if shutil.which("spirv-val"):
        path = folder / "module.spv"
        path.write_bytes(module)
        subprocess.run(["spirv-val", "--target-env", "vulkan1.1", str(path)], check=True)


@dataclass(frozen=True)
class Outcome:
    """The values that a loop wrote, as a flat array for each tensor, and its kernels."""

    values: dict[Tensor, Array]
    kernels: tuple[Generated, ...]


class Numpy:
    """Runs loops in numpy, with the limits of a large device."""

    limits = dataclasses.replace(LEAST, group=1024, shared_bytes=32768)

    def run(self, loop: Loop, values: Mapping[Tensor, Array], limits: Limits | None = None) -> Outcome:
        """Runs a loop. Elements that it doesn't write keep their given value, or else POISON."""
        kernels = kernels_of(loop, limits or self.limits, fresh)
        wanted = {store.view.tensor for store in loop.stores}
        tensors = list(dict.fromkeys([t for kernel in kernels for t in kernel.tensors] + list(wanted)))
        words = self.dispatch(kernels, {t: _words(t, values).copy() for t in tensors}, wanted)
        return Outcome({t: words[t][: t.bytes // 4].view(WORDS[t.dtype]) for t in wanted}, kernels)

    def dispatch(
        self, kernels: Sequence[Generated], words: dict[Tensor, Array], wanted: set[Tensor]
    ) -> dict[Tensor, Array]:
        """The words of each tensor after the kernels."""
        for kernel in kernels:
            Machine(kernel.spirv, [words[t] for t in kernel.tensors], kernel.groups, kernel.group).run()
        return words


class Device(Numpy):
    """Runs loops on the Vulkan device, one by one: uploads all tensors, runs the kernels, and
    downloads the written tensors."""

    def __init__(self) -> None:
        self.recorder = Recorder(open_vulkan())
        self.limits = self.recorder.limits

    def dispatch(
        self, kernels: Sequence[Generated], words: dict[Tensor, Array], wanted: set[Tensor]
    ) -> dict[Tensor, Array]:
        step = self.limits.alignment
        offsets = np.cumsum([0, *(-(-array.nbytes // step) * step for array in words.values())])
        memory = self.recorder.memory(int(offsets[-1]))
        place = {t: (memory, int(at), words[t].nbytes) for t, at in zip(words, offsets, strict=False)}
        record = self.recorder.recording()
        given = {record.upload(place[t]): array for t, array in words.items()}
        for kernel in kernels:
            module = self.recorder.module(kernel.spirv, access=kernel.access, group=kernel.group)
            record.kernel(module, [place[t] for t in kernel.tensors], groups=kernel.groups)
        results = {t: np.empty_like(words[t]) for t in wanted}
        taken = {record.download(place[t]): results[t] for t in wanted}
        record.finish()
        record.run(given, taken)
        return results


def _words(of: Tensor, values: Mapping[Tensor, Array]) -> Array:
    if of not in values or of.bytes == 0:
        return np.full(max(of.bytes // 4, 1), POISON, np.uint32)
    return np.ascontiguousarray(values[of].astype(WORDS[of.dtype])).reshape(-1).view(np.uint32)


def expected(loop: Loop, values: Mapping[Tensor, Array], floats: Any = np.float64) -> dict[Tensor, Array]:
    """The oracle's values for a loop, as a flat array for each tensor that the loop writes."""
    known: dict[int, Array] = {}
    for of, array in values.items():
        known[of.id] = array.reshape(-1).astype(oracle.numpy_type(of.dtype, floats))
    oracle.run_node(loop, known, floats)
    return {store.view.tensor: known[store.view.tensor.id] for store in loop.stores}


def pointwise(value: Expr, shape: tuple[int, ...]) -> tuple[Tensor, Loop]:
    """A loop that stores a value, and the dense tensor that it fills."""
    result = Tensor(next(_IDS), shape, value.dtype)
    return result, Loop(shape, 0, (Store(result.view(), value),))


@pytest.fixture(scope="session")
def vulkan() -> Device:
    return Device()


@pytest.fixture(params=["numpy", "vulkan"])
def device(request: pytest.FixtureRequest) -> Numpy:
    """Runs a test in numpy, and on a Vulkan device if this machine has one."""
    if request.param == "numpy":
        return Numpy()
    made: Numpy = request.getfixturevalue("vulkan")
    return made
