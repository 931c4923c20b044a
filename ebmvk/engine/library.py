"""Operations that torch can trace as one node: namespace `ebmvk` of torch.ops.

Each has a reference in plain torch, which runs on any device, and a fake, which gives only the
shapes of results. Some have faster implementations, for all devices or for the CPU, and a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

Function = Callable[..., Any]
REFERENCES: dict[str, Function] = {}
"""{name: plain torch} of all operations, for tests and for backends that lack an operation."""
APART: dict[Function, Function] = {}
"""{operation: what a compiler of steps puts in its place, in operations of torch}. Defining an
operation adds it here, so nobody has to register it with a compiler."""
PAIRS: dict[Function, Function] = {}
"""{operation: the same for devices without float64}. In place of each float64 tensor, it takes or
returns two float32 tensors, (high, low), whose sum is the value."""
KERNELS: dict[Function, str] = {}
"""{operation: the kernel of shaders/kernels.toml that computes it}. The kernel's bindings are the
operation's arguments and then its results, all in row-major order."""
_LIBRARY = torch.library.Library("ebmvk", "FRAGMENT")  # type: ignore[no-untyped-call]


def operation(
    schema: str,
    *,
    reference: Function,
    fake: Function,
    fast: Function | None = None,
    cpu: Function | None = None,
    backward: Function | None = None,
    keep: Function | None = None,
    apart: Function | None = None,
    pairs: Function | None = None,
    kernel: str = "",
) -> Function:
    """Register torch.ops.ebmvk.NAME and return it. Its results lie in memory in row-major order,
    whatever the strides of its arguments and of what the functions below return.

    schema: "NAME(Tensor x, ...) -> Tensor", in torch's notation. fast: runs in place of `reference`
    on all devices, and cpu on the CPU. keep, backward: `setup_context` and `backward` of
    `torch.library.register_autograd`.

    A compiled step computes the operation in one of three ways. apart: in operations of torch whose
    shapes don't depend on values, by default `reference`. pairs: see `PAIRS`. kernel: see
    `KERNELS`.
    """
    name = schema.partition("(")[0]
    reference = _row_major(reference)
    _LIBRARY.define(schema)  # type: ignore[no-untyped-call]
    _LIBRARY.impl(name, _row_major(fast) if fast else reference, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    if cpu is not None:
        _LIBRARY.impl(name, _row_major(cpu), "CPU")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"ebmvk::{name}", _row_major(fake), lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(f"ebmvk::{name}", backward, setup_context=keep, lib=_LIBRARY)
    REFERENCES[name] = reference
    found: Function = getattr(torch.ops.ebmvk, name).default
    if pairs is not None:
        PAIRS[found] = pairs
    elif kernel:
        KERNELS[found] = kernel
    else:
        APART[found] = _row_major(apart) if apart else reference
    return found


def _row_major(function: Function) -> Function:
    """The function, with its results put in row-major order. A traced step takes views of results,
    and which views are possible depends on their strides, so they must be those of `fake`."""

    @wraps(function)
    def called(*args: Any, **keywords: Any) -> Any:
        found = function(*args, **keywords)
        return tuple(part.contiguous() for part in found) if isinstance(found, tuple | list) else found.contiguous()

    return called


def reference_of(operation: Any) -> Function:
    """The plain torch of an operation that `operation` returned."""
    return REFERENCES[operation._schema.name.removeprefix("ebmvk::")]
