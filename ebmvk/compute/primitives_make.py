"""Operations that make tensors of known numbers."""

from __future__ import annotations

from typing import Any

from ebmvk.compute import expr
from ebmvk.compute.ir import View
from ebmvk.compute.lower import Lowering, Number
from ebmvk.compute.primitives import ALL, NUMBERS, primitive


def _filled(low: Lowering, value: Number) -> View:
    return low.loop(low.shape, expr.const(value, low.dtype))


@primitive("full.default", "full_like.default", "new_full.default", dtypes=ALL)
def full(low: Lowering, like: Any, *rest: Any, **keywords: Any) -> View:
    del like
    value = keywords.get("fill_value", rest[-1] if rest else 0)
    if isinstance(value, View):
        return low.pointwise(lambda a: a, value)
    return _filled(low, value)


@primitive("scalar_tensor.default")
def scalar_tensor(low: Lowering, value: Number, **keywords: Any) -> View:
    del keywords
    return _filled(low, value)


@primitive(
    "empty.memory_format", "empty_like.default", "new_empty.default", "empty_strided.default",
    "new_empty_strided.default", "empty_permuted.default", "zeros.default", "zeros_like.default",
    "new_zeros.default",
)  # fmt: skip
def zeros(low: Lowering, *rest: Any, **keywords: Any) -> View:
    del rest, keywords  # elements that torch leaves undefined are 0 here
    return _filled(low, 0)


@primitive("ones.default", "ones_like.default", "new_ones.default")
def ones(low: Lowering, *rest: Any, **keywords: Any) -> View:
    del rest, keywords
    return _filled(low, 1)


@primitive("fill.Scalar", "fill.Tensor")
def fill(low: Lowering, x: View, value: Number | View) -> View:
    del x
    if isinstance(value, View):
        return low.pointwise(lambda a: a, value)
    return _filled(low, value)


@primitive("arange.start_step", dtypes=NUMBERS)
def arange(low: Lowering, start: Number, end: Number, step: Number = 1, **keywords: Any) -> View:
    del end, keywords
    number = expr.cast_to(expr.axis(0), low.dtype)
    scaled = expr.op("mul", number, expr.const(step, low.dtype))
    return low.loop(low.shape, expr.op("add", expr.const(start, low.dtype), scaled))


@primitive("arange.default", dtypes=NUMBERS)
def arange_to(low: Lowering, end: Number, **keywords: Any) -> View:
    made: View = arange(low, 0, end, 1, **keywords)
    return made


@primitive("arange.start", dtypes=NUMBERS)
def arange_from(low: Lowering, start: Number, end: Number, **keywords: Any) -> View:
    made: View = arange(low, start, end, 1, **keywords)
    return made


@primitive("iota.default")
def iota(low: Lowering, length: int, *, start: int = 0, step: int = 1, **keywords: Any) -> View:
    del keywords
    made: View = arange(low, start, start + length * step, step)
    return made
