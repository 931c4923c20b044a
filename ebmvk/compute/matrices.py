"""Kernels on small square matrices in pairs of float32. One workgroup works on each matrix."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ebmvk.compute.dispatches import Dispatch, Fresh, Planned, packed
from ebmvk.compute.ir import WORD, Call
from ebmvk.errors import ArgumentError

if TYPE_CHECKING:
    from ebmvk.engine.recording import Limits

PAIR = 2 * WORD
FLOPS = 40
"""About how many operations a multiply-subtract of pairs takes."""


def inverse(call: Call, limits: Limits, _: Fresh) -> Planned:
    """The inverses of symmetric positive definite matrices.

    Inputs and outputs: high and low parts (..., n, n), dense.

    Raises:
        ArgumentError: a matrix doesn't fit shared memory.
    """
    return _matrices(call, "inverse", 1, limits, ("high", "low", "result_high", "result_low"))


def weakest_cut(call: Call, limits: Limits, _: Fresh) -> Planned:
    """The bipartition of units that loses the least information.

    Inputs: high and low part of a covariance (n, n), dense. Outputs: the information in nats, and
    for each unit the part that it belongs to, (n,) bool.

    Raises:
        ArgumentError: three matrices don't fit shared memory.
    """
    return _matrices(call, "weakest_cut", 3, limits, ("high", "low", "information", "part"))


def _matrices(call: Call, kernel: str, held: int, limits: Limits, names: tuple[str, ...]) -> Planned:
    """The dispatch of a kernel on matrices. held: matrices in shared memory at once."""
    high, n = call.inputs[0], call.inputs[0].shape[-1]
    need = held * n * n * PAIR + 64 * n
    if need > limits.shared_bytes:
        raise ArgumentError(
            f"{kernel}: matrices of {n} x {n} need {need} bytes of shared memory, the device has {limits.shared_bytes}",
            hint="Use fewer rows and columns.",
        )
    views = (*call.inputs, *call.outputs)
    push = {f"{name}_offset": view.offset for name, view in zip(names, views, strict=True)}
    count = math.prod(high.shape[:-2])
    group = min(limits.group, (limits.subgroup or 8) if limits.kind == "cpu" else 256)
    return Planned((
        Dispatch(
            kernel,
            group,
            (n,),
            tuple(view.tensor for view in views),
            packed([f"{name}_offset" for name in names], push),
            (count, 1, 1),
            float(FLOPS * count * n**3 * (n if held > 1 else 1)),
            2 * PAIR * count * n * n,
        ),
    ))  # fmt: skip
