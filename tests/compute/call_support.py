"""Runs calls of `kernels.KERNELS` on a device, with strided operands and poisoned results."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ebmvk.compute.ir import Call, DType, Tensor, View
from ebmvk.compute.kernels import KERNELS, Dispatch, Planned
from ebmvk.engine.recording import POISON, Limits, Recorder

Array = np.ndarray[Any, Any]
WORDS = {"float32": np.float32, "int32": np.int32, "uint32": np.uint32, "bool": np.uint32}
NAMES: dict[str, DType] = {"f": "float32", "i": "int32", "u": "uint32"}
_IDS = itertools.count()


@dataclass(frozen=True)
class Operand:
    """Memory as a flat array of words, and a view of it."""

    memory: Array
    view: Array

    @classmethod
    def of(cls, array: Array) -> Operand:
        array = np.ascontiguousarray(array)
        return cls(array.reshape(-1), array)

    def on(self, tensor: Tensor) -> View:
        start = self.view.__array_interface__["data"][0] - self.memory.__array_interface__["data"][0]
        strides = tuple(step // 4 for step in self.view.strides)
        return View(tensor, self.view.shape, strides, start // 4 if self.view.size else 0)


@dataclass(frozen=True)
class Ran:
    """The memory and the view of each output after a call, and the call's plan."""

    outputs: tuple[Operand, ...]
    planned: Planned

    def untouched(self) -> bool:
        """True if the words outside the outputs are still poison."""
        for out in self.outputs:
            outside = np.ones(out.memory.size, bool)
            at = np.arange(out.memory.size, dtype=np.int32)
            first = out.view.__array_interface__["data"][0] - out.memory.__array_interface__["data"][0]
            strided = np.lib.stride_tricks.as_strided(at[first // 4 :], out.view.shape, out.view.strides)
            outside[strided.reshape(-1)] = False
            if (out.memory.view(np.uint32)[outside] != POISON).any():
                return False
        return True


def new_tensor(shape: Sequence[int], dtype: DType) -> Tensor:
    return Tensor(next(_IDS), tuple(shape), dtype)


def planned_call(
    name: str,
    inputs: Sequence[Operand],
    outputs: Sequence[Operand],
    constants: Mapping[str, float | bool],
    limits: Limits,
) -> tuple[Planned, list[tuple[Tensor, Operand]]]:
    """The plan, and its tensors: first inputs, then outputs, then scratch."""
    tensors: list[tuple[Tensor, Operand]] = []
    for operand in (*inputs, *outputs):
        tensors.append((new_tensor(operand.memory.shape, NAMES[operand.memory.dtype.kind]), operand))
    views = [operand.on(tensor) for tensor, operand in tensors]

    def fresh(shape: tuple[int, ...], dtype: DType) -> Tensor:
        tensor = new_tensor(shape, dtype)
        memory = np.full(int(np.prod(shape)), POISON, np.uint32).view(WORDS[dtype])
        tensors.append((tensor, Operand(memory, memory)))
        return tensor

    call = Call(name, tuple(views[: len(inputs)]), tuple(views[len(inputs) :]), tuple(constants.items()))
    return KERNELS[name](call, limits, fresh), tensors


def run_call(
    recorder: Recorder,
    name: str,
    inputs: Sequence[Operand],
    outputs: Sequence[Operand],
    constants: Mapping[str, float | bool] | None = None,
    limits: Limits | None = None,
) -> Ran:
    """Runs a call. The memory of `outputs` is poisoned first and then filled.

    limits: limits to use in place of the device's; they must not be larger.
    """
    for operand in outputs:
        operand.memory.view(np.uint32)[:] = POISON
    planned, tensors = planned_call(name, inputs, outputs, constants or {}, limits or recorder.limits)
    places: dict[Tensor, tuple[int, int]] = {}
    end = 0
    for tensor, _ in tensors:
        places[tensor] = (end, tensor.bytes)
        end += -(-max(tensor.bytes, 4) // recorder.alignment) * recorder.alignment
    memory = recorder.memory(end)
    memory.write([(places[tensor][0], operand.memory) for tensor, operand in tensors if operand.memory.size])
    record = recorder.recording()
    for step in planned.steps:
        if isinstance(step, Dispatch):
            module = recorder.kernel(step.kernel, step.group, step.constants)
            record.kernel(module, [(memory, *places[tensor]) for tensor in step.tensors], step.push, step.groups)
        else:
            first, _ = places[step.tensor]
            record.fill((memory, first + step.offset, step.nbytes), step.word)
    if planned.steps:
        record.finish()
        record.run()
    results = tensors[len(inputs) : len(inputs) + len(outputs)]
    memory.read([(places[tensor][0], operand.memory) for tensor, operand in results if operand.memory.size])
    return Ran(tuple(outputs), planned)
