"""What each operation of an expression means, in numpy: the functions that the oracle uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special

Array = np.ndarray[Any, Any]


def _pow(a: Array, b: Array) -> Array:
    return np.power(a, b)


def _sign(a: Array) -> Array:
    # torch: the sign of NaN is 0.
    return np.where(np.isnan(a), 0, np.sign(a)).astype(a.dtype) if a.dtype.kind == "f" else np.sign(a)


def _truncated(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return a / b
    divisor = np.where(b == 0, 1, b)
    quotient = np.abs(a.astype(np.int64)) // np.abs(divisor.astype(np.int64))
    return np.asarray(quotient * np.sign(a) * np.sign(divisor)).astype(a.dtype)


def _floored(a: Array, b: Array) -> Array:
    return np.floor_divide(a, np.where(b == 0, 1, b)) if a.dtype.kind != "f" else np.floor(a / b)


def _modulo(a: Array, b: Array) -> Array:
    return np.remainder(a, np.where(b == 0, 1, b)) if a.dtype.kind != "f" else np.remainder(a, b)


def _shift_right(a: Array, b: Array) -> Array:
    return np.right_shift(a, b)


def _umulhi(a: Array, b: Array) -> Array:
    return ((a.astype(np.uint64) * b.astype(np.uint64)) >> np.uint64(32)).astype(np.uint32)


def _fma(a: Array, b: Array, c: Array) -> Array:
    return (a.astype(np.float64) * b + c).astype(a.dtype)


def _sigmoid(a: Array) -> Array:
    return np.asarray(special.expit(a))


MEANING: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": _truncated,
    "neg": np.negative,
    "abs": np.abs,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log": np.log,
    "log2": np.log2,
    "log10": np.log10,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "reciprocal": lambda a: 1 / a,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "tanh": np.tanh,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "asin": np.arcsin,
    "acos": np.arccos,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "sigmoid": _sigmoid,
    "erf": special.erf,
    "erfc": special.erfc,
    "erfinv": special.erfinv,
    "lgamma": special.gammaln,
    "digamma": special.digamma,
    "pow": _pow,
    "fmod": np.fmod,
    "remainder": np.remainder,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.round,
    "trunc": np.trunc,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "sign": _sign,
    "fma": _fma,
    "copysign": np.copysign,
    "isnan": np.isnan,
    "isinf": np.isinf,
    "isfinite": np.isfinite,
    "floordiv": _floored,
    "mod": _modulo,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.bitwise_not,
    "shl": np.left_shift,
    "shr": _shift_right,
    "umulhi": _umulhi,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_not": np.logical_not,
    "logical_xor": np.logical_xor,
    "where": np.where,
}
"""{operation: its function in numpy}. Arguments have the types that the program gives them.
Dividing an integer by 0 gives an undefined number, as on a device."""


def first_of(values: Array, axes: int, *, largest: bool) -> Array:
    """Position of the largest (or smallest) element over the last axes; ties go to the first
    position, and NaN counts as the extreme."""
    rows = values.reshape(*values.shape[: values.ndim - axes], -1)
    return np.asarray((np.argmax if largest else np.argmin)(rows, axis=-1))
