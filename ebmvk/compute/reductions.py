"""Defines reductions: the identity, and how two partial results are combined.

A partial result has one or two words. For argmax and argmin the words are a key, which is compared
as an integer, and the position. So ties go to the lower position, and NaN is the extreme, as in
torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from ebmvk.compute.ir import DType, Reduce
from ebmvk.compute.math import FUNCTIONS, is_negative, is_zero
from ebmvk.compute.ops import OPS, cast
from ebmvk.compute.values import Graph, Value, bits_of, is_nan

Parts = tuple[Value, ...]


@dataclass(frozen=True)
class Reduction:
    """parts: types of a partial result; identity: its bits before the first element.

    combine: a graph with symbols "a0", "b0" (and "a1", "b1"), and the numbers of its results.
    """

    parts: tuple[DType, ...]
    identity: tuple[int, ...]
    enter: Callable[[Value, Value], Parts]
    combine: tuple[Graph, tuple[int, ...]]


def _key(x: Value, *, largest: bool) -> Value:
    """A uint32 above 0 that grows (or falls) with x; equal for 0 and −0; the highest for NaN."""
    if x.dtype == "float32":
        bits = is_zero(x).where(x.bits().of(0), x.bits())
        key = is_negative(x).where(~bits, bits | 0x80000000)
        key = is_zero(x).where(key.of(0x80000000), key)
        key = key if largest else ~key
        return is_nan(x).where(key.of(0xFFFFFFFF), key)
    key = x.bits() ^ 0x80000000 if x.dtype == "int32" else x.bits()
    return key if largest else ~key


def _pairs(graph: Graph, dtypes: tuple[DType, ...]) -> list[tuple[Value, Value]]:
    return [(graph.symbol(f"a{k}", dtype), graph.symbol(f"b{k}", dtype)) for k, dtype in enumerate(dtypes)]


def _one(dtype: DType, name: str, identity: float) -> Reduction:
    graph = Graph()
    ((a, b),) = _pairs(graph, (dtype,))
    # Use a function of the module, because a module may need it a hundred times.
    called = dtype == "float32" and name in FUNCTIONS
    result = a.call(name, b) if called else OPS[name].build(a, b)
    return Reduction((dtype,), (bits_of(identity, dtype),), lambda x, _: (cast(x, dtype),), (graph, (result.number,)))


def _position(largest: bool) -> Reduction:
    graph = Graph()
    (key_a, key_b), (at_a, at_b) = _pairs(graph, ("uint32", "uint32"))
    better = (key_b > key_a) | (key_b.equals(key_a) & (at_b < at_a))
    results = (better.where(key_b, key_a).number, better.where(at_b, at_a).number)
    return Reduction(
        ("uint32", "uint32"), (0, 0xFFFFFFFF), lambda x, at: (_key(x, largest=largest), at), (graph, results)
    )


@cache
def reduction(kind: str, dtype: DType) -> Reduction:
    """The reduction of a kind. dtype: the type of the result; for max and min, of the elements."""
    if kind in {"argmax", "argmin"}:
        return _position(kind == "argmax")
    if kind in {"any", "all"}:
        return _one("bool", f"logical_{'or' if kind == 'any' else 'and'}", float(kind == "all"))
    if kind in {"sum", "prod"}:
        return _one(dtype, "add" if kind == "sum" else "mul", float(kind == "prod"))
    lowest, highest = {
        "float32": (float("-inf"), float("inf")),
        "int32": (-(2**31), 2**31 - 1),
        "uint32": (0, 2**32 - 1),
    }[dtype]
    return _one(dtype, "maximum" if kind == "max" else "minimum", lowest if kind == "max" else highest)


def result(kind: str, dtype: DType, parts: Parts) -> Value:
    """A reduction's value from its partial result."""
    return cast(parts[-1].as_int() if kind in {"argmax", "argmin"} else parts[0], dtype)


def reduced_type(reduce: Reduce) -> DType:
    return reduce.of.dtype if reduce.kind in {"max", "min"} else reduce.dtype
