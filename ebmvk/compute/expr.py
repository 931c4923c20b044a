"""Expressions made once: equal expressions are one object, so sharing costs nothing.

All stages before the kernels make expressions through these functions. The functions fold constants
and drop operations without effect; they never reorder floating-point arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, cast
from weakref import WeakValueDictionary

from ebmvk.compute.ir import Axis, Const, DType, Expr, Load, LoadAt, Op, Reduce, View

ReduceKind = Literal["sum", "prod", "max", "min", "any", "all", "argmax", "argmin"]

_POOL: WeakValueDictionary[tuple[object, ...], Expr] = WeakValueDictionary()

COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})
LOGICAL = frozenset({"logical_and", "logical_or", "logical_not", "logical_xor", "isnan", "isinf", "isfinite"})


def _once(key: tuple[object, ...], make: Callable[[], Expr]) -> Expr:
    # Keys name parts by id. This is safe because a pooled expression keeps its parts alive.
    found = _POOL.get(key)
    if found is None:
        found = make()
        _POOL[key] = found
    return found


def load(view: View) -> Expr:
    return _once(("load", view), lambda: Load(view))


def load_at(view: View, index: Sequence[Expr]) -> Expr:
    index = tuple(index)
    return _once(("load_at", view, *(id(part) for part in index)), lambda: LoadAt(view, index))


def const(value: float | int | bool, dtype: DType) -> Expr:
    """A constant, rounded to what the type can hold."""
    if dtype == "bool":
        value = bool(value)
    elif dtype in {"int32", "uint32"}:
        value = int(value)
    else:
        value = float(value)
    return _once(("const", dtype, repr(value)), lambda: Const(value, dtype))


def axis(number: int) -> Expr:
    return _once(("axis", number), lambda: Axis(number))


def reduce(kind: ReduceKind, of: Expr, dtype: DType | None = None) -> Expr:
    """A reduction. The type is int32 for argmax and argmin, else the type of `of`."""
    made: DType = dtype or ("int32" if kind in {"argmax", "argmin"} else of.dtype)
    return _once(("reduce", kind, made, id(of)), lambda: Reduce(kind, of, made))


def op(name: str, *args: Expr, dtype: DType | None = None) -> Expr:
    """A function of expressions. The type is that of the last argument, or bool for comparisons."""
    if dtype is None:
        dtype = "bool" if name in COMPARISONS or name in LOGICAL else args[-1].dtype
    simple = _simplified(name, args, dtype)
    if simple is not None:
        return simple
    return _once(("op", name, dtype, *(id(part) for part in args)), lambda: Op(name, args, dtype))


def cast_to(value: Expr, dtype: DType) -> Expr:
    return value if value.dtype == dtype else op("cast", value, dtype=dtype)


def where(condition: Expr, yes: Expr, no: Expr) -> Expr:
    return op("where", condition, yes, no)


_FOLD: dict[str, Callable[..., float | int | bool]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "neg": lambda a: -a,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "logical_and": lambda a, b: bool(a and b),
    "logical_or": lambda a, b: bool(a or b),
    "logical_not": lambda a: not a,
}


_NAN_BITS = 0x7FC00000


def _simplified(name: str, args: Sequence[Expr], dtype: DType) -> Expr | None:
    if all(isinstance(part, Const) for part in args):
        folded = _folded(name, [cast("Const", part).value for part in args], dtype)
        if folded is not None:
            return folded
    if name == "cast" and args[0].dtype == dtype:
        return args[0]
    if name == "where":
        return _simplified_where(args)
    if len(args) == 2:
        first, second = args
        if name == "mul" and _is(second, 1):
            return first
        if name == "mul" and _is(first, 1):
            return second
        if name == "div" and _is(second, 1):
            return first
        if name == "mul" and dtype == "float32" and (_is(first, 0) or _is(second, 0)):
            return _times_zero(*((second, first) if _is(first, 0) else (first, second)))
        if dtype == "int32":
            return _simplified_int(name, first, second)
        if dtype == "bool" and name in {"logical_and", "logical_or"}:
            return _simplified_logical(name == "logical_and", first, second)
    return None


def _folded(name: str, values: list[float | int | bool], dtype: DType) -> Expr | None:
    if name == "cast":
        value = values[0]
        if dtype in {"int32", "uint32"} and not math.isfinite(value):
            return None
        return const(value, dtype)
    fold = _FOLD.get(name)
    if fold is None:
        return None
    result = fold(*values)
    if dtype == "int32" and not -(2**31) <= result < 2**31:
        return None
    return None if dtype == "uint32" else const(result, dtype)


def _simplified_where(args: Sequence[Expr]) -> Expr | None:
    condition, yes, no = args
    if isinstance(condition, Const):
        return yes if condition.value else no
    return yes if yes is no else None


def _times_zero(x: Expr, zero: Expr) -> Expr:
    """A product with a constant 0 or -0. It is NaN where x isn't finite, and some drivers make it
    0 there."""
    signed = op("copysign", const(0.0, "float32"), x)
    if math.copysign(1.0, cast("Const", zero).value) < 0:
        signed = op("neg", signed)
    # By its bits, because a constant NaN doesn't equal itself, and programs are compared.
    nan = op("bitcast", const(_NAN_BITS, "uint32"), dtype="float32")
    return where(op("isfinite", x), signed, nan)


def _simplified_int(name: str, first: Expr, second: Expr) -> Expr | None:
    if name in {"add", "sub"} and _is(second, 0):
        return first
    if name == "add" and _is(first, 0):
        return second
    if name == "mul" and (_is(first, 0) or _is(second, 0)):
        return const(0, "int32")
    if name == "floordiv" and _is(second, 1):
        return first
    return None


def _simplified_logical(both: bool, first: Expr, second: Expr) -> Expr | None:
    for one, other in ((first, second), (second, first)):
        if isinstance(one, Const):
            return other if bool(one.value) is both else one
    return first if first is second else None


def _is(value: Expr, number: int) -> bool:
    return isinstance(value, Const) and not isinstance(value.value, bool) and value.value == number


# ------------------------------------------------------------------------------------------ walks


def children(value: Expr) -> tuple[Expr, ...]:
    if isinstance(value, Op):
        return value.args
    if isinstance(value, Reduce):
        return (value.of,)
    if isinstance(value, LoadAt):
        return value.index
    return ()


def walk(*roots: Expr) -> Iterator[Expr]:
    """Each different expression under the roots once; its parts come before it."""
    seen: set[int] = set()
    stack: list[tuple[Expr, bool]] = [(root, False) for root in reversed(roots)]
    while stack:
        value, ready = stack.pop()
        if ready:
            yield value
            continue
        if id(value) in seen:
            continue
        seen.add(id(value))
        stack.append((value, True))
        stack.extend((part, False) for part in reversed(children(value)))


def rewrite(roots: Sequence[Expr], change: Callable[[Expr], Expr | None]) -> list[Expr]:
    """The roots with `change` applied to each leaf and to each rebuilt expression. If `change`
    returns None, the expression stays."""
    done: dict[int, Expr] = {}
    for value in walk(*roots):
        replaced = change(value)
        done[id(value)] = rebuilt(value, lambda part: done[id(part)]) if replaced is None else replaced
    return [done[id(root)] for root in roots]


def rebuilt(value: Expr, part: Callable[[Expr], Expr]) -> Expr:
    """The same expression with other parts."""
    if isinstance(value, Op):
        args = [part(arg) for arg in value.args]
        same = all(a is b for a, b in zip(args, value.args, strict=True))
        return value if same else op(value.name, *args, dtype=value.dtype)
    if isinstance(value, Reduce):
        inner = part(value.of)
        return value if inner is value.of else reduce(value.kind, inner, value.dtype)
    if isinstance(value, LoadAt):
        index = [part(arg) for arg in value.index]
        same = all(a is b for a, b in zip(index, value.index, strict=True))
        return value if same else load_at(value.view, index)
    return value


def loads(*roots: Expr) -> list[Load | LoadAt]:
    return [value for value in walk(*roots) if isinstance(value, Load | LoadAt)]


def has_reduce(*roots: Expr) -> bool:
    return any(isinstance(value, Reduce) for value in walk(*roots))
