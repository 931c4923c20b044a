"""Which operations are taken apart, and into what.

torch's own decompositions take apart most operations that aren't primitives. This module takes
apart the rest: lists of tensors (`torch._foreach_*`), convolutions, and operations that torch
doesn't decompose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch._decomp import core_aten_decompositions, decomposition_table

from ebmvk.compute import primitives
from ebmvk.compute.convolutions import CONVOLUTIONS
from ebmvk.compute.formulas import FORMULAS
from ebmvk.engine import library

aten = torch.ops.aten
Table = dict[Any, Callable[..., Any]]

# ------------------------------------------------------------------------------------------- lists

_FOREACH = (
    "abs", "acos", "add", "addcdiv", "addcmul", "asin", "atan", "ceil", "clamp_max", "clamp_min", "copy", "cos", "cosh",
    "div", "erf", "erfc", "exp", "expm1", "floor", "frac", "lerp", "lgamma", "log", "log10", "log1p", "log2", "max",
    "maximum", "minimum", "mul", "neg", "norm", "pow", "reciprocal", "round", "rsqrt", "sigmoid", "sign", "sin", "sinh",
    "sqrt", "sub", "tan", "tanh", "trunc", "zero",
)  # fmt: skip


_CHANGES = (
    aten.native_batch_norm.default,
    aten._native_batch_norm_legit.default,
    aten._batch_norm_with_update.default,
)
"""Operations that update running means."""


def _clamp_min(x: torch.Tensor, y: Any) -> torch.Tensor:
    return torch.maximum(x, y) if isinstance(y, torch.Tensor) else torch.clamp(x, min=y)


def _clamp_max(x: torch.Tensor, y: Any) -> torch.Tensor:
    return torch.minimum(x, y) if isinstance(y, torch.Tensor) else torch.clamp(x, max=y)


def _extreme(name: str) -> Callable[..., torch.Tensor]:
    return _clamp_min if name == "maximum" else _clamp_max


def _norm(x: torch.Tensor, order: float = 2, dtype: torch.dtype | None = None) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(x, order, dtype=dtype)
    return norm


def _copy(x: torch.Tensor, y: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    del non_blocking
    return y.to(x.dtype).expand_as(x).clone()


def _one(name: str) -> Callable[..., Any]:
    special: dict[str, Callable[..., Any]] = {
        "addcdiv": lambda x, a, b, value=1: x + value * (a / b) if isinstance(value, torch.Tensor)
        else torch.addcdiv(x, a, b, value=value),
        "addcmul": lambda x, a, b, value=1: x + value * a * b if isinstance(value, torch.Tensor)
        else torch.addcmul(x, a, b, value=value),
        "clamp_min": _clamp_min,
        "clamp_max": _clamp_max,
        "maximum": _extreme("maximum"),
        "minimum": _extreme("minimum"),
        "copy": _copy,
        "zero": torch.zeros_like,
        "norm": _norm,
    }  # fmt: skip
    found: Callable[..., Any] = special.get(name) or getattr(torch, name)
    return found


def _each(name: str, *, changes: bool) -> Callable[..., Any]:
    function = _one(name)

    def decomposed(tensors: Sequence[torch.Tensor], *args: Any, **keywords: Any) -> Any:
        scalars = keywords.pop("scalars", None)
        if scalars is not None:
            args = (*args, scalars)
        results = []
        for number, tensor in enumerate(tensors):
            # A tensor of scalars (addcmul.Tensor) has one scalar for each tensor of the list. A
            # tensor without axes holds for all of them.
            own = [part[number] if isinstance(part, list | tuple) or (isinstance(part, torch.Tensor) and part.dim())
                   else part for part in args]  # fmt: skip
            if name in {"addcdiv", "addcmul"} and len(own) == 3:
                result = function(tensor, own[0], own[1], value=own[2])
            else:
                result = function(tensor, *own, **keywords)
            results.append(tensor.copy_(result) if changes else result)
        return None if changes else results

    return decomposed


def lists() -> Table:
    """Decompositions for the trace of the whole step, before any other.

    `torch._foreach_*` becomes one operation per tensor. Some operations change an argument although
    their name doesn't say so; they become operations that return the new value.
    """
    table: Table = {
        operation: decomposition_table[operation] for operation in _CHANGES if operation in decomposition_table
    }
    for name in _FOREACH:
        for suffix, changes in (("", False), ("_", True)):
            packet = getattr(aten, f"_foreach_{name}{suffix}", None)
            for overload in packet.overloads() if packet is not None else ():
                if "out" not in overload:
                    table[getattr(packet, overload)] = _each(name, changes=changes)
    return table


# ------------------------------------------------------------------------------------------- table


def _index_fill(x: torch.Tensor, dim: int, index: torch.Tensor, value: Any) -> torch.Tensor:
    if x.dim() == 0:
        return value.to(x.dtype) if isinstance(value, torch.Tensor) else torch.full_like(x, value)
    shape = list(x.shape)
    shape[dim] = index.numel()
    filled = value.expand(shape) if isinstance(value, torch.Tensor) else torch.full(shape, value, dtype=x.dtype)
    return torch.index_copy(x, dim, index, filled)


def _gather_backward(
    gradient: torch.Tensor, x: torch.Tensor, dim: int, index: torch.Tensor, sparse: bool
) -> torch.Tensor:
    del sparse
    return torch.scatter_add(torch.zeros_like(x), dim, index, gradient)


def _take(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """take without reading values: torch's own form reads the value of an index without axes."""
    return x.reshape(-1)[index.reshape(-1)].reshape(index.shape)


def _var_mean(
    x: torch.Tensor,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Variance and mean in two passes, the mean first. A sum of squares in one pass would lose
    digits."""
    if isinstance(dim, bool):  # the overload without axes
        dim, unbiased = None, dim
    correction = int(unbiased) if correction is None else correction
    axes = list(range(x.dim())) if dim is None or dim == [] else [dim] if isinstance(dim, int) else list(dim)
    count = math.prod(x.shape[axis] for axis in axes)
    mean = torch.mean(x, axes, keepdim=True) if axes else x
    centred = x - mean
    # torch divides by zero, with a warning, if there are too few elements.
    divisor = max(0, count - correction)
    squares = torch.sum(centred * centred, axes, keepdim=True) if axes else centred * centred
    variance = squares / divisor if divisor else squares / torch.zeros_like(squares)
    if keepdim or not axes:
        return variance, mean
    return torch.squeeze(variance, axes), torch.squeeze(mean, axes)


def _var(x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
    return _var_mean(x, *args, **options)[0]


def _square(x: torch.Tensor) -> torch.Tensor:
    return x * x


def _hypot(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """sqrt(x² + y²) without overflow of the squares."""
    large = torch.maximum(x.abs(), y.abs())
    ratio = torch.minimum(x.abs(), y.abs()) / torch.where(large > 0, large, 1.0)
    return large * torch.sqrt(1 + ratio * ratio)


def _isfinite(x: torch.Tensor) -> torch.Tensor:
    return torch.logical_not(torch.logical_or(torch.isnan(x), torch.isinf(x)))


def _composite(operation: torch._ops.OpOverload) -> bool:
    """True if torch itself writes an operation in terms of other operations. Its decomposition
    would use `prims` instead."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(operation._name, "CompositeImplicitAutograd"))


_REGISTERED: Table = {}


def register(operation: Any, function: Callable[..., Any]) -> None:
    """Registers `function`, written in torch, as what an operation of `torch.library` is taken
    apart into, unless the operation is a primitive."""
    _REGISTERED[operation] = function
    _table.cache_clear()
    _all_own.cache_clear()


def table() -> Table:
    """The decompositions in use: torch's, except those of primitives, and this package's."""
    return _table(len(library.REFERENCES))  # modules that are imported later add operations


_OWN = frozenset({"torch", "ebmvk"})
LIBRARIES = frozenset({"aten", "prims", "ebmvk"})
"""Libraries whose operations torch and this package take apart."""


def all_own() -> bool:
    """True if only torch and this package define how operations of `LIBRARIES` are taken apart.
    Then the decompositions follow from the versions of both."""
    return _all_own(len(library.REFERENCES))


@cache
def _all_own(operations: int) -> bool:
    del operations
    return all(
        _package(function) in _OWN for operation, function in table().items() if operation.namespace in LIBRARIES
    )


def _package(function: Any) -> str:
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__module__", "")).partition(".")[0]


@cache
def _table(operations: int) -> Table:
    del operations
    known = primitives.load()
    found: Table = {
        operation: function
        for operation, function in decomposition_table.items()
        if isinstance(operation, torch._ops.OpOverload) and not _composite(operation)
    }
    found.update(core_aten_decompositions())
    found.update(library.APART)
    found.update(_REGISTERED)
    for operation in list(found):
        if primitives.overload(operation) in known:
            del found[operation]
    found.update(lists())
    found.update(FORMULAS)
    found.update(CONVOLUTIONS)
    found[aten.index_fill.int_Scalar] = _index_fill
    found[aten.index_fill.int_Tensor] = _index_fill
    found[aten.gather_backward.default] = _gather_backward
    found[aten.square.default] = _square
    found[aten.take.default] = _take
    for overload in ("default", "dim", "correction"):
        found[getattr(aten.var, overload)] = _var
        found[getattr(aten.var_mean, overload)] = _var_mean
    found[aten.isfinite.default] = _isfinite
    found[aten.hypot.default] = _hypot
    return found
