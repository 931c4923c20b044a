"""Which operations are taken apart, and into what.

torch's own decompositions take apart all that the table of primitives doesn't have. The rest is
here: lists of tensors (`torch._foreach_*`), convolutions and what torch keeps whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch._decomp import core_aten_decompositions, decomposition_table

from ebmvk.compute import primitives
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
            # A tensor of scalars (addcmul.Tensor) has one for each; a tensor of none is for all.
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
    """Decompositions of `torch._foreach_*` into the operation on each tensor."""
    table: Table = {}
    for name in _FOREACH:
        for suffix, changes in (("", False), ("_", True)):
            packet = getattr(aten, f"_foreach_{name}{suffix}", None)
            for overload in packet.overloads() if packet is not None else ():
                if "out" not in overload:
                    table[getattr(packet, overload)] = _each(name, changes=changes)
    return table


# ------------------------------------------------------------------------------------ convolutions


def _columns(
    x: torch.Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> torch.Tensor:
    """What each place of the kernel sees: (batch, channels, places of the kernel, outputs)."""
    widths = [width for size in reversed(padding) for width in (size, size)]
    padded = torch.nn.functional.pad(x, widths) if any(widths) else x
    outputs = [
        (size - gap * (k - 1) - 1) // step + 1
        for size, k, step, gap in zip(padded.shape[2:], kernel, stride, dilation, strict=True)
    ]
    seen = []
    for place in _places(kernel):
        part = padded
        for axis, (at, step, gap, count) in enumerate(zip(place, stride, dilation, outputs, strict=True)):
            part = part[(slice(None),) * (axis + 2) + (slice(at * gap, at * gap + step * (count - 1) + 1, step),)]
        seen.append(part)
    return torch.stack(seen, 2).reshape(x.shape[0], x.shape[1], len(seen), math.prod(outputs))


def _places(kernel: Sequence[int]) -> list[tuple[int, ...]]:
    places: list[tuple[int, ...]] = [()]
    for size in kernel:
        places = [(*place, at) for place in places for at in range(size)]
    return places


def convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Any:
    """A convolution as one product: the input's columns times the weights, group by group. A
    transposed one stays whole, and is then reported as missing."""
    if transposed:
        return NotImplemented
    del output_padding
    batch, kernel = x.shape[0], weight.shape[2:]
    columns = _columns(x, kernel, stride, padding, dilation)
    rows = columns.reshape(batch, groups, -1, columns.shape[-1])
    weights = weight.reshape(1, groups, weight.shape[0] // groups, -1)
    outputs = [
        (size + 2 * pad - gap * (k - 1) - 1) // step + 1
        for size, k, step, pad, gap in zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    ]
    result = torch.matmul(weights, rows).reshape(batch, weight.shape[0], *outputs)
    return result if bias is None else result + bias.reshape(1, -1, *(1 for _ in outputs))


def convolution_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> Any:
    """Gradients of `convolution` for x, weight and bias."""
    if transposed:
        return NotImplemented
    del output_padding, bias_sizes
    batch, kernel = x.shape[0], weight.shape[2:]
    flat = gradient.reshape(batch, groups, weight.shape[0] // groups, -1)
    of_x: torch.Tensor | None = None
    of_weight: torch.Tensor | None = None
    of_bias: torch.Tensor | None = None
    if output_mask[0]:
        weights = weight.reshape(1, groups, weight.shape[0] // groups, -1)
        columns = torch.matmul(weights.transpose(-1, -2), flat)
        columns = columns.reshape(batch, x.shape[1], len(_places(kernel)), *gradient.shape[2:])
        of_x = _from_columns(columns, x.shape, kernel, stride, padding, dilation)
    if output_mask[1]:
        seen = _columns(x, kernel, stride, padding, dilation)
        rows = seen.reshape(batch, groups, -1, seen.shape[-1])
        of_weight = torch.matmul(flat, rows.transpose(-1, -2)).sum(0).reshape(weight.shape)
    if output_mask[2]:
        of_bias = gradient.sum([0, *range(2, gradient.dim())])
    return of_x, of_weight, of_bias


def _from_columns(
    columns: torch.Tensor,
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> torch.Tensor:
    """The sum of what each place of the kernel gives back to the input."""
    total = None
    for number, place in enumerate(_places(kernel)):
        part = columns[:, :, number]
        for axis, (at, step, gap, pad) in enumerate(zip(place, stride, dilation, padding, strict=True)):
            part = _spread(part, axis + 2, shape[axis + 2], at * gap - pad, step)
        total = part if total is None else total + part
    assert total is not None
    return total


def _spread(part: torch.Tensor, axis: int, size: int, start: int, step: int) -> torch.Tensor:
    """A tensor of `size` along an axis that has element i of `part` at start + i * step, else 0."""
    if step > 1:
        pieces = [part.unsqueeze(axis + 1)]
        pieces += [torch.zeros_like(pieces[0])] * (step - 1)
        part = torch.cat(pieces, axis + 1).flatten(axis, axis + 1)
    before, after = start, size - start - part.shape[axis]
    if before < 0:
        part, before = part.narrow(axis, -before, part.shape[axis] + before), 0
    if after < 0:
        part, after = part.narrow(axis, 0, part.shape[axis] + after), 0
    widths = [0] * (2 * part.dim())
    widths[2 * (part.dim() - 1 - axis)] = before
    widths[2 * (part.dim() - 1 - axis) + 1] = after
    return torch.nn.functional.pad(part, widths)


# ------------------------------------------------------------------------------------------- table


def _index_fill(x: torch.Tensor, dim: int, index: torch.Tensor, value: Any) -> torch.Tensor:
    shape = list(x.shape)
    shape[dim] = index.numel()
    filled = value.expand(shape) if isinstance(value, torch.Tensor) else torch.full(shape, value, dtype=x.dtype)
    return torch.index_copy(x, dim, index, filled)


def _gather_backward(
    gradient: torch.Tensor, x: torch.Tensor, dim: int, index: torch.Tensor, sparse: bool
) -> torch.Tensor:
    del sparse
    return torch.scatter_add(torch.zeros_like(x), dim, index, gradient)


def _var_mean(
    x: torch.Tensor,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """In two passes, the mean first: a sum of squares would lose digits."""
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


def _diagonal_scatter(
    x: torch.Tensor, source: torch.Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> torch.Tensor:
    rows, columns = x.shape[dim1], x.shape[dim2]
    moved = torch.movedim(x, (dim1, dim2), (-2, -1))
    row, column = torch.arange(rows), torch.arange(columns)
    if not source.numel():
        return x.clone()
    # The place along the diagonal of row i is i, or i + offset if the diagonal begins further down.
    place = (row + min(offset, 0)).clamp(0, source.shape[-1] - 1)
    along = source.index_select(-1, place)[..., None]
    return torch.movedim(torch.where(row[:, None] + offset == column, along, moved), (-2, -1), (dim1, dim2))


def _square(x: torch.Tensor) -> torch.Tensor:
    return x * x


def _hypot(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Without overflow of the squares."""
    large = torch.maximum(x.abs(), y.abs())
    ratio = torch.minimum(x.abs(), y.abs()) / torch.where(large > 0, large, 1.0)
    return large * torch.sqrt(1 + ratio * ratio)


def _isfinite(x: torch.Tensor) -> torch.Tensor:
    return torch.logical_not(torch.logical_or(torch.isnan(x), torch.isinf(x)))


def _composite(operation: torch._ops.OpOverload) -> bool:
    """True if torch writes an operation in terms of others itself; its decomposition would go down
    to `prims` instead."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(operation._name, "CompositeImplicitAutograd"))


_REGISTERED: Table = {}


def register(operation: Any, function: Callable[..., Any]) -> None:
    """Takes an operation of `torch.library` apart into `function`, written in torch, unless it is a
    primitive."""
    _REGISTERED[operation] = function
    _table.cache_clear()


def table() -> Table:
    """The decompositions in use: torch's, but not those of primitives, and ours."""
    return _table(len(library.REFERENCES))  # modules that are imported later add operations


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
    found[aten.convolution.default] = convolution
    found[aten.convolution_backward.default] = convolution_backward
    found[aten.index_fill.int_Scalar] = _index_fill
    found[aten.index_fill.int_Tensor] = _index_fill
    found[aten.gather_backward.default] = _gather_backward
    found[aten.square.default] = _square
    found[aten.diagonal_scatter.default] = _diagonal_scatter
    for overload in ("default", "dim", "correction"):
        found[getattr(aten.var, overload)] = _var
        found[getattr(aten.var_mean, overload)] = _var_mean
    found[aten.isfinite.default] = _isfinite
    found[aten.hypot.default] = _hypot
    return found
