"""Operations that compute each element alone."""

from __future__ import annotations

from typing import Any

from ebmvk.compute import expr
from ebmvk.compute.ir import Expr, View
from ebmvk.compute.lower import Lowering, Number, Value
from ebmvk.compute.primitives import ALL, FLOAT, NUMBERS, primitive

UNARY = (
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal", "sin", "cos", "tan", "tanh",
    "atan", "asin", "acos", "sinh", "cosh", "sigmoid", "erf", "erfc", "erfinv", "lgamma", "digamma",
)  # fmt: skip
"""Functions of a float; integers become floats first."""
KEPT = {"neg": "neg", "abs": "abs", "sign": "sign", "sgn": "sign"}
ROUNDED = ("floor", "ceil", "trunc", "round")
COMPARED = ("eq", "ne", "lt", "le", "gt", "ge")
BITS = {"bitwise_and": "and", "bitwise_or": "or", "bitwise_xor": "xor"}


def _unary(name: str) -> None:
    @primitive(f"{name}.default")
    def lowering(low: Lowering, x: View) -> View:
        return low.pointwise(lambda a: expr.op(name, a), x, dtype="float32")


def _kept(name: str, meaning: str) -> None:
    @primitive(f"{name}.default", dtypes=NUMBERS)
    def lowering(low: Lowering, x: View) -> View:
        return low.pointwise(lambda a: expr.op(meaning, a), x)


def _rounded(name: str) -> None:
    @primitive(f"{name}.default", dtypes=NUMBERS)
    def lowering(low: Lowering, x: View) -> View:
        return low.pointwise(lambda a: expr.op(name, a), x) if x.tensor.dtype == "float32" else x


def _compared(name: str) -> None:
    @primitive(f"{name}.Tensor", f"{name}.Scalar")
    def lowering(low: Lowering, x: View, y: Value) -> View:
        kind = low.promoted(x, y)
        return low.pointwise(lambda a, b: expr.op(name, a, b), x, y, dtype="int32" if kind == "bool" else kind)


def _bits(name: str, meaning: str) -> None:
    @primitive(f"{name}.Tensor", f"{name}.Scalar", dtypes=("int32", "bool"))
    def lowering(low: Lowering, x: View, y: Value) -> View:
        logical = low.promoted(x, y) == "bool"
        symbol = {"and": "logical_and", "or": "logical_or", "xor": "logical_xor"}[meaning] if logical else meaning
        return low.pointwise(lambda a, b: expr.op(symbol, a, b), x, y)


def _logical(name: str) -> None:
    @primitive(f"{name}.default")
    def lowering(low: Lowering, x: View, y: View) -> View:
        return low.pointwise(lambda a, b: expr.op(name, a, b), x, y, dtype="bool")


for _name in UNARY:
    _unary(_name)
for _name, _meaning in KEPT.items():
    _kept(_name, _meaning)
for _name in ROUNDED:
    _rounded(_name)
for _name in COMPARED:
    _compared(_name)
for _name, _meaning in BITS.items():
    _bits(_name, _meaning)
for _name in ("logical_and", "logical_or", "logical_xor"):
    _logical(_name)


@primitive("logical_not.default")
def logical_not(low: Lowering, x: View) -> View:
    return low.pointwise(lambda a: expr.op("logical_not", a), x, dtype="bool")


@primitive("bitwise_not.default", dtypes=("int32", "bool"))
def bitwise_not(low: Lowering, x: View) -> View:
    name = "logical_not" if x.tensor.dtype == "bool" else "not"
    return low.pointwise(lambda a: expr.op(name, a), x)


@primitive("bitwise_left_shift.Tensor", "bitwise_left_shift.Tensor_Scalar", "__lshift__.Tensor", "__lshift__.Scalar",
           dtypes=("int32",))  # fmt: skip
def shift_left(low: Lowering, x: View, y: Value) -> View:
    return low.pointwise(lambda a, b: expr.op("shl", a, b), x, y)


@primitive("bitwise_right_shift.Tensor", "bitwise_right_shift.Tensor_Scalar", "__rshift__.Tensor", "__rshift__.Scalar",
           dtypes=("int32",))  # fmt: skip
def shift_right(low: Lowering, x: View, y: Value) -> View:
    return low.pointwise(lambda a, b: expr.op("shr", a, b), x, y)


@primitive("isnan.default", "isinf.default", dtypes=NUMBERS)
def is_special(low: Lowering, x: View) -> View:
    name = low.name.split(".")[0]
    return low.pointwise(lambda a: expr.op(name, a), x, dtype="float32")


def _scaled(b: Expr, alpha: Number) -> Expr:
    return b if alpha == 1 else expr.op("mul", b, expr.const(alpha, b.dtype))


@primitive("add.Tensor", "add.Scalar")
def add(low: Lowering, x: Value, y: Value, alpha: Number = 1) -> View:
    if low.dtype == "bool":
        return low.pointwise(lambda a, b: expr.op("logical_or", a, b), x, y)
    return low.pointwise(lambda a, b: expr.op("add", a, _scaled(b, alpha)), x, y)


@primitive("sub.Tensor", "sub.Scalar", dtypes=NUMBERS)
def sub(low: Lowering, x: Value, y: Value, alpha: Number = 1) -> View:
    return low.pointwise(lambda a, b: expr.op("sub", a, _scaled(b, alpha)), x, y)


@primitive("rsub.Tensor", "rsub.Scalar", dtypes=NUMBERS)
def rsub(low: Lowering, x: Value, y: Value, alpha: Number = 1) -> View:
    return low.pointwise(lambda a, b: expr.op("sub", b, _scaled(a, alpha)), x, y)


@primitive("mul.Tensor", "mul.Scalar")
def mul(low: Lowering, x: Value, y: Value) -> View:
    name = "logical_and" if low.dtype == "bool" else "mul"
    return low.pointwise(lambda a, b: expr.op(name, a, b), x, y)


@primitive("div.Tensor", "div.Scalar", "div.Tensor_mode", "div.Scalar_mode", "floor_divide.default", dtypes=NUMBERS)
def div(low: Lowering, x: Value, y: Value, rounding_mode: str | None = None) -> View:
    if low.name.startswith("floor_divide"):
        rounding_mode = "floor"
    if low.dtype == "int32":
        name = "floordiv" if rounding_mode == "floor" else "div"
        return low.pointwise(lambda a, b: expr.op(name, a, b), x, y)
    if rounding_mode == "floor":
        # floor(a / b) is off by one if the quotient rounds up to a whole number.
        return low.pointwise(_floored, x, y)
    divided = low.pointwise(lambda a, b: expr.op("div", a, b), x, y)
    return low.pointwise(lambda a: expr.op("trunc", a), divided) if rounding_mode == "trunc" else divided


def _floored(a: Expr, b: Expr) -> Expr:
    """torch's floor division of floats: (a - fmod(a, b)) / b, less 1 if remainder and divisor have
    different signs, and rounded to the nearest whole number."""
    zero = expr.const(0.0, "float32")
    rest = expr.op("fmod", a, b)
    quotient = expr.op("div", expr.op("sub", a, rest), b)
    down = expr.op("logical_and", expr.op("ne", rest, zero),
                   expr.op("ne", expr.op("lt", b, zero), expr.op("lt", rest, zero)))  # fmt: skip
    quotient = expr.where(down, expr.op("sub", quotient, expr.const(1.0, "float32")), quotient)
    whole = expr.op("floor", quotient)
    nearer = expr.op("gt", expr.op("sub", quotient, whole), expr.const(0.5, "float32"))
    rounded = expr.where(nearer, expr.op("add", whole, expr.const(1.0, "float32")), whole)
    return expr.where(expr.op("eq", b, zero), expr.op("div", a, b), rounded)


@primitive("remainder.Tensor", "remainder.Scalar", "remainder.Scalar_Tensor", dtypes=NUMBERS)
def remainder(low: Lowering, x: Value, y: Value) -> View:
    name = "mod" if low.dtype == "int32" else "remainder"
    return low.pointwise(lambda a, b: expr.op(name, a, b), x, y)


@primitive("fmod.Tensor", "fmod.Scalar", "atan2.default", "copysign.Tensor", "copysign.Scalar", dtypes=FLOAT)
def binary_float(low: Lowering, x: Value, y: Value) -> View:
    name = low.name.split(".")[0]
    return low.pointwise(lambda a, b: expr.op(name, a, b), x, y, dtype="float32")


@primitive("maximum.default", "minimum.default")
def extreme(low: Lowering, x: Value, y: Value) -> View:
    name = low.name.split(".")[0]
    if low.dtype == "bool":
        name = "logical_or" if name == "maximum" else "logical_and"
    return low.pointwise(lambda a, b: expr.op(name, a, b), x, y)


@primitive("clamp.default", "clamp.Tensor", dtypes=NUMBERS)
def clamp(low: Lowering, x: View, low_end: Value = None, high_end: Value = None, **ends: Value) -> View:
    least, most = ends.get("min", low_end), ends.get("max", high_end)
    result = x
    if least is not None:
        result = low.pointwise(lambda a, b: expr.op("maximum", a, b), result, least)
    if most is not None:
        result = low.pointwise(lambda a, b: expr.op("minimum", a, b), result, most)
    return result


@primitive("relu.default", dtypes=NUMBERS)
def relu(low: Lowering, x: View) -> View:
    return low.pointwise(lambda a: expr.op("maximum", a, expr.const(0, a.dtype)), x)


@primitive("where.self")
def where(low: Lowering, condition: View, x: Value, y: Value) -> View:
    shape, dtype = low.shape, low.dtype
    value = expr.where(
        low.element(condition, shape, "bool"), low.element(x, shape, dtype), low.element(y, shape, dtype)
    )
    return low.loop(shape, value)


def _power(a: Expr, exponent: float) -> Expr | None:
    """The power without pow, for exponents that torch's kernels also treat alone; else None. For
    example, products are exact where pow isn't."""
    if exponent == 2:
        return expr.op("mul", a, a)
    if exponent == 3:
        return expr.op("mul", expr.op("mul", a, a), a)
    if exponent == 1:
        return a
    if exponent == 0:
        return expr.const(1, a.dtype)
    named = {0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal"}.get(exponent)
    if a.dtype != "float32":
        return None
    if exponent == -2:
        return expr.op("reciprocal", expr.op("mul", a, a))
    return expr.op(named, a) if named else None


@primitive("pow.Tensor_Scalar", dtypes=NUMBERS, limits="integers: exponents 0 to 16")
def pow_scalar(low: Lowering, x: View, exponent: float) -> View:
    def value(a: Expr) -> Expr:
        known = _power(a, exponent)
        if known is not None:
            return known
        if a.dtype == "int32":
            if not 0 <= exponent <= 16:
                raise low.unsupported(f"an integer to the power {exponent}")
            product = a
            for _ in range(int(exponent) - 1):
                product = expr.op("mul", product, a)
            return product
        return expr.op("pow", a, expr.const(exponent, "float32"))

    return low.pointwise(value, x)


@primitive("pow.Tensor_Tensor", "pow.Scalar", dtypes=FLOAT)
def pow_tensor(low: Lowering, x: Value, y: Value) -> View:
    if low.dtype != "float32":
        raise low.unsupported("powers of integers")
    return low.pointwise(lambda a, b: expr.op("pow", a, b), x, y)


@primitive("_to_copy.default", "to.dtype")
def to_copy(low: Lowering, x: View, *rest: Any, **keywords: Any) -> View:
    del rest, keywords  # the result's type is known, and there is only one device
    return low.pointwise(lambda a: a, x) if x.tensor.dtype != low.dtype else x


@primitive("clone.default", "alias.default", "detach.default", "lift_fresh_copy.default", "contiguous.default",
           "lift_fresh.default", dtypes=ALL)  # fmt: skip
def same(low: Lowering, x: View, **keywords: Any) -> View:
    del low, keywords  # no node of a functional graph changes its arguments
    return x


@primitive("copy.default")
def copy(low: Lowering, x: View, y: View, non_blocking: bool = False) -> View:
    del x, non_blocking
    return low.pointwise(lambda a: a, y)
