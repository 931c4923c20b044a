"""The operations of expressions. For each name, `OPS` has the types of arguments and result, and
builds the value. oracle_ops.py defines the same operations in numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ebmvk.compute import math_special  # noqa: F401  registers its functions
from ebmvk.compute.ir import DType
from ebmvk.compute.math import (
    FUNCTIONS,
    INFINITE_BITS,
    MAGNITUDE,
    div,
    is_zero,
    magnitude,
    sqrt,
    with_sign,
)
from ebmvk.compute.values import Value, fma, is_nan
from ebmvk.errors import ArgumentError

Build = Callable[..., Value]

KINDS: dict[str, tuple[DType, ...]] = {
    "f": ("float32",),
    "i": ("int32", "uint32"),
    "u": ("uint32",),
    "n": ("float32", "int32", "uint32"),
    "k": ("int32", "uint32", "bool"),
    "b": ("bool",),
    "x": ("float32", "int32", "uint32", "bool"),
    "y": ("float32", "int32", "uint32", "bool"),
    "w": ("float32", "int32", "uint32"),
}
"""Types that a letter of a signature stands for. Within a signature, the same letter stands for the
same type."""


@dataclass(frozen=True)
class Operation:
    """signature: letters of KINDS for the arguments, "->", and one for the result.
    build: makes the value from the arguments' values, and from the result's type if the name is in
    TYPED.
    """

    name: str
    signature: str
    build: Build

    def check(self, arguments: Sequence[DType], result: DType) -> None:
        """Raises ArgumentError if the types aren't those of the signature."""
        takes, gives = self.signature.split("->")
        bound: dict[str, DType] = {}
        fits = len(takes) == len(arguments)
        for letter, dtype in zip([*takes, gives], [*arguments, result], strict=False):
            fits = fits and dtype in KINDS[letter] and bound.setdefault(letter, dtype) == dtype
        if not fits:
            raise ArgumentError(
                f"operation {self.name!r} takes {self.signature}, got {', '.join(arguments)} -> {result}",
                hint="Cast the arguments first: f is float32, i int32 or uint32, b bool, n a number, x any type.",
            )


OPS: dict[str, Operation] = {}


def _add(signature: str, **builds: Build) -> None:
    for name, build in builds.items():
        OPS[name.rstrip("_")] = Operation(name.rstrip("_"), signature, build)


def operation(name: str) -> Operation:
    """The operation with this name. Raises ArgumentError if no operation has it."""
    if name not in OPS:
        raise ArgumentError(
            f"no kernel can compute the operation {name!r}",
            hint="Decompose it into operations of ebmvk.compute.ops.OPS.",
        )
    return OPS[name]


def _is_number(x: Value) -> bool:
    """True for a constant that isn't NaN."""
    node = x.graph.nodes[x.number]
    return node.op == "const" and (node.extra & MAGNITUDE) <= INFINITE_BITS


def _no_nan(result: Value, *floats: Value) -> Value:
    """A comparison's result, but false if an argument is NaN, whatever the driver assumes."""
    for x in floats:
        if not _is_number(x):
            result = result & ((x.bits() & MAGNITUDE) <= INFINITE_BITS)
    return result


def _compare(name: str) -> Build:
    def build(a: Value, b: Value) -> Value:
        result: Value = getattr(a, name)(b)
        return _no_nan(result, a, b) if a.dtype == "float32" else result

    return build


def _differs(a: Value, b: Value) -> Value:
    return ~_compare("equals")(a, b)


def _extreme(name: str) -> Build:
    """Builds the larger or smaller of two values; NaN if one of them is NaN."""

    def build(a: Value, b: Value) -> Value:
        if a.dtype != "float32":
            prefix = "S" if a.dtype == "int32" else "U"
            return a.raw(prefix + ("Max" if name == "__gt__" else "Min"), b)
        result: Value = getattr(a, name)(b).where(a, b)
        for x in (b, a):
            result = result if _is_number(x) else is_nan(x).where(x, result)
        return result

    return build


def _divide(a: Value, b: Value) -> Value:
    if a.dtype != "float32":
        return a / b
    node = b.graph.nodes[b.number]
    plain = node.op == "const" and (node.extra & MAGNITUDE) < 0x7E800000
    return a / b if plain else div(a, b)


def _floor_parts(a: Value, b: Value) -> tuple[Value, Value, Value]:
    """Quotient and remainder of a division that rounds towards zero, and whether rounding down
    would differ. OpSRem isn't used, because it is undefined for negative operands."""
    quotient = a / b
    rest = a - quotient * b
    return quotient, rest, rest.differs(0) & ((rest ^ b) < 0)


def _floor_divide(a: Value, b: Value) -> Value:
    if a.dtype == "uint32":
        return a / b
    quotient, _, lower = _floor_parts(a, b)
    return lower.where(quotient - 1, quotient)


def _modulo(a: Value, b: Value) -> Value:
    if a.dtype == "uint32":
        return a % b
    _, rest, lower = _floor_parts(a, b)
    return lower.where(rest + b, rest)


def _sign(x: Value) -> Value:
    if x.dtype == "float32":
        return (is_zero(x) | is_nan(x)).where(x.of(0.0), with_sign(x.of(1.0), x))
    if x.dtype == "uint32":
        return (x > 0).where(x.of(1), 0)
    return (x > 0).where(x.of(1), (x < 0).where(x.of(-1), 0))


def _absolute(x: Value) -> Value:
    if x.dtype == "float32":
        return magnitude(x)
    return x.abs() if x.dtype == "int32" else x


def cast(x: Value, dtype: DType) -> Value:
    """The number in another type. A float beyond int32, or NaN, becomes −2³¹, as on x86."""
    if x.dtype == dtype:
        return x
    if dtype == "bool":
        return is_zero(x).__invert__() if x.dtype == "float32" else x.differs(0)
    if x.dtype == "bool":
        return x.where(x.graph.const(1, dtype), x.graph.const(0, dtype))
    if dtype == "float32":
        return x.to_float()
    if x.dtype == "float32":
        signed = _no_nan(magnitude(x) < 2.0**31, x).where(x.to_int(), -(2**31))
        return signed if dtype == "int32" else (x >= 2.0**31).where(x.raw("ConvertFToU"), signed.bits())
    return bitcast(x, dtype)


def bitcast(x: Value, dtype: DType) -> Value:
    """The same 32 bits as another type."""
    return {"float32": x.as_float, "int32": x.as_int, "uint32": x.bits}[dtype]()


FUNCTIONS["maximum"], FUNCTIONS["minimum"] = _extreme("__gt__"), _extreme("__lt__")


def _function(name: str) -> Build:
    return lambda x, *others: x.call(name, *others)


_OF_TWO = ("atan2", "pow", "fmod", "remainder")
_INLINE = ("div", "sqrt", "reciprocal", "maximum", "minimum")
_add("f->f", **{name: _function(name) for name in FUNCTIONS if name not in _OF_TWO + _INLINE})
_add("ff->f", **{name: _function(name) for name in _OF_TWO})
_add(
    "f->f",
    sqrt=sqrt,
    reciprocal=lambda x: _divide(x.of(1.0), x),
    floor=lambda x: x.raw("Floor"),
    ceil=lambda x: x.raw("Ceil"),
    round=lambda x: x.raw("Round"),
    trunc=lambda x: x.raw("Trunc"),
)
_add("ff->f", copysign=lambda x, sign: with_sign(magnitude(x), sign))
_add("fff->f", fma=fma)
_add(
    "f->b",
    isnan=is_nan,
    isinf=lambda x: (x.bits() & MAGNITUDE).equals(INFINITE_BITS),
    isfinite=lambda x: (x.bits() & MAGNITUDE) < INFINITE_BITS,
)
_add("n->n", neg=lambda x: -x, abs=_absolute, sign=_sign)
_add(
    "nn->n",
    add=lambda a, b: a + b,
    sub=lambda a, b: a - b,
    mul=lambda a, b: a * b,
    div=_divide,
    maximum=_extreme("__gt__"),
    minimum=_extreme("__lt__"),
)
_add("ii->i", floordiv=_floor_divide, mod=_modulo, shl=lambda a, b: a << b, shr=lambda a, b: a >> b)
_add("kk->k", and_=lambda a, b: a & b, or_=lambda a, b: a | b, xor=lambda a, b: a ^ b)
_add("k->k", not_=lambda a: ~a)
_add("uu->u", umulhi=lambda a, b: a.raw("UMulHigh", b))
_add("xx->b", eq=_compare("equals"), ne=_differs)
_add("nn->b", lt=_compare("__lt__"), le=_compare("__le__"), gt=_compare("__gt__"), ge=_compare("__ge__"))
_add(
    "bb->b",
    logical_and=lambda a, b: a & b,
    logical_or=lambda a, b: a | b,
    logical_xor=lambda a, b: a ^ b,
)
_add("b->b", logical_not=lambda a: ~a)
_add("bxx->x", where=lambda condition, a, b: condition.where(a, b))
_add("x->y", cast=cast)
_add("n->w", bitcast=bitcast)
TYPED = frozenset({"cast", "bitcast"})
"""Operations whose `build` takes the type of the result too."""
