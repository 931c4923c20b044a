"""Values: the expressions that kernels are made of, as numbered nodes in one list.

Each node is an instruction of SPIR-V (`RAW`), a constant, a symbol that the kernel supplies, or a
call of a function of math.py. Equal nodes are one node, so each is computed once. The accurate
functions and the operations of ops.py are written with `Value`, which adds nodes by Python's
operators; `interpret` runs the same nodes in numpy.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ebmvk.compute.ir import DType

Array = NDArray[Any]
NUMPY: dict[str, Any] = {"float32": np.float32, "int32": np.int32, "uint32": np.uint32, "bool": np.bool_}


class Raw(NamedTuple):
    """An instruction of SPIR-V.

    number: its opcode; kind: in SPIR-V itself (core) or in GLSL.std.450 (extended).
    result: the type of the result, or None for the type of the last argument.
    numpy: computes the same in numpy.
    exact: True if a float result must be rounded before it is used, so that drivers may not fuse
        the instruction with another one.
    """

    number: int
    kind: Literal["core", "extended"]
    result: DType | None
    numpy: Callable[..., Any]
    exact: bool = False


def _fma(a: Any, b: Any, c: Any) -> Any:
    return (np.float64(a) * b + c).astype(np.float32) if np.ndim(a) else np.float32(np.float64(a) * b + c)


def _find_msb(a: Any) -> Any:
    return (np.frexp(np.asarray(a, np.float64))[1] - 1).astype(np.int32)


def _multiply_high(a: Any, b: Any) -> Any:
    return ((np.asarray(a, np.uint64) * np.asarray(b, np.uint64)) >> np.uint64(32)).astype(np.uint32)


def _divide(a: Any, b: Any) -> Any:
    """The quotient of integers, rounded towards zero; 0 if the device's result is undefined."""
    a, b = np.broadcast_arrays(a, b)
    wide = np.abs(a.astype(np.int64)) // np.maximum(np.abs(b.astype(np.int64)), 1)
    return (wide * np.sign(a.astype(np.int64)) * np.sign(b.astype(np.int64))).astype(a.dtype)


def _bits(a: Any, to: Any) -> Any:
    return np.asarray(a).view(to)


def _convert(a: Any, to: Any) -> Any:
    limits = np.iinfo(to)
    return np.clip(np.nan_to_num(np.asarray(a, np.float64)), limits.min, limits.max).astype(to)


RAW: dict[str, Raw] = {
    "FAdd": Raw(129, "core", None, np.add, True),
    "FSub": Raw(131, "core", None, np.subtract, True),
    "FMul": Raw(133, "core", None, np.multiply, True),
    "FDiv": Raw(136, "core", None, np.divide, True),
    "FNegate": Raw(127, "core", None, np.negative),
    "Round": Raw(2, "extended", None, np.rint),
    "Trunc": Raw(3, "extended", None, np.trunc),
    "FAbs": Raw(4, "extended", None, np.abs),
    "Floor": Raw(8, "extended", None, np.floor),
    "Ceil": Raw(9, "extended", None, np.ceil),
    "Sqrt": Raw(31, "extended", None, np.sqrt),
    "InverseSqrt": Raw(32, "extended", None, lambda a: np.float32(1) / np.sqrt(a)),
    "Fma": Raw(50, "extended", None, _fma),
    "FindUMsb": Raw(75, "extended", "int32", _find_msb),
    "SAbs": Raw(5, "extended", None, np.abs),
    "SMin": Raw(39, "extended", None, np.minimum),
    "UMin": Raw(38, "extended", None, np.minimum),
    "SMax": Raw(42, "extended", None, np.maximum),
    "UMax": Raw(41, "extended", None, np.maximum),
    "IAdd": Raw(128, "core", None, np.add),
    "ISub": Raw(130, "core", None, np.subtract),
    "IMul": Raw(132, "core", None, np.multiply),
    "UDiv": Raw(134, "core", None, _divide),
    "SDiv": Raw(135, "core", None, _divide),
    "UMod": Raw(137, "core", None, lambda a, b: a - _divide(a, b) * b),
    "SNegate": Raw(126, "core", None, np.negative),
    "UMulHigh": Raw(151, "core", None, _multiply_high),
    "ShiftLeft": Raw(196, "core", None, np.left_shift),
    "ShiftRightLogical": Raw(194, "core", None, np.right_shift),
    "ShiftRightArithmetic": Raw(195, "core", None, np.right_shift),
    "BitwiseOr": Raw(197, "core", None, np.bitwise_or),
    "BitwiseXor": Raw(198, "core", None, np.bitwise_xor),
    "BitwiseAnd": Raw(199, "core", None, np.bitwise_and),
    "Not": Raw(200, "core", None, np.invert),
    "LogicalEqual": Raw(164, "core", "bool", np.equal),
    "LogicalNotEqual": Raw(165, "core", "bool", np.not_equal),
    "LogicalOr": Raw(166, "core", "bool", np.logical_or),
    "LogicalAnd": Raw(167, "core", "bool", np.logical_and),
    "LogicalNot": Raw(168, "core", "bool", np.logical_not),
    "Select": Raw(169, "core", None, np.where),
    "IEqual": Raw(170, "core", "bool", np.equal),
    "INotEqual": Raw(171, "core", "bool", np.not_equal),
    "UGreaterThan": Raw(172, "core", "bool", np.greater),
    "SGreaterThan": Raw(173, "core", "bool", np.greater),
    "UGreaterThanEqual": Raw(174, "core", "bool", np.greater_equal),
    "SGreaterThanEqual": Raw(175, "core", "bool", np.greater_equal),
    "ULessThan": Raw(176, "core", "bool", np.less),
    "SLessThan": Raw(177, "core", "bool", np.less),
    "ULessThanEqual": Raw(178, "core", "bool", np.less_equal),
    "SLessThanEqual": Raw(179, "core", "bool", np.less_equal),
    "FOrdEqual": Raw(180, "core", "bool", np.equal),
    "FUnordNotEqual": Raw(183, "core", "bool", np.not_equal),
    "FOrdLessThan": Raw(184, "core", "bool", np.less),
    "FOrdGreaterThan": Raw(186, "core", "bool", np.greater),
    "FOrdLessThanEqual": Raw(188, "core", "bool", np.less_equal),
    "FOrdGreaterThanEqual": Raw(190, "core", "bool", np.greater_equal),
    "ConvertFToU": Raw(109, "core", "uint32", lambda a: _convert(a, np.uint32)),
    "ConvertFToS": Raw(110, "core", "int32", lambda a: _convert(a, np.int32)),
    "ConvertSToF": Raw(111, "core", "float32", lambda a: np.asarray(a).astype(np.float32)),
    "ConvertUToF": Raw(112, "core", "float32", lambda a: np.asarray(a).astype(np.float32)),
    "BitsToFloat": Raw(124, "core", "float32", lambda a: _bits(a, np.float32)),
    "BitsToInt": Raw(124, "core", "int32", lambda a: _bits(a, np.int32)),
    "BitsToUint": Raw(124, "core", "uint32", lambda a: _bits(a, np.uint32)),
}


class Node(NamedTuple):
    """op: a name in RAW, or one of the following. "const": extra has its 32 bits. "symbol", "call":
    extra is the name. "load": extra is a binding, and the argument an address. "reduce": extra is
    (kind, type).
    """

    op: str
    args: tuple[int, ...]
    dtype: DType
    extra: Any = None


class Graph:
    """Nodes by number; arguments come before the nodes that use them.

    varies: for each node, whether it changes along the reduced axes. stage: for each node, the
    number of reductions, one after another, that it needs.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.varies: list[bool] = []
        self.stage: list[int] = []
        self._numbers: dict[Node, int] = {}
        self._closures: dict[tuple[int, ...], list[int]] = {}

    def add(self, node: Node) -> int:
        number = self._numbers.get(node)
        if number is not None:
            return number
        varies, stage = node.extra == "r" and node.op == "symbol", 0
        for argument in node.args:
            varies = varies or self.varies[argument]
            stage = max(stage, self.stage[argument])
        if node.op == "reduce":
            varies, stage = False, stage + 1
        number = self._numbers[node] = len(self.nodes)
        self.nodes.append(node)
        self.varies.append(varies)
        self.stage.append(stage)
        return number

    def value(self, op: str, args: tuple[int, ...], dtype: DType, extra: Any = None) -> Value:
        return Value(self, self.add(Node(op, args, dtype, extra)), dtype)

    def const(self, number: float, dtype: DType) -> Value:
        return self.value("const", (), dtype, bits_of(number, dtype))

    def symbol(self, name: str, dtype: DType = "uint32") -> Value:
        return self.value("symbol", (), dtype, name)

    def closure(self, roots: list[int]) -> list[int]:
        """The roots and all nodes that they need, in order, except nodes inside a reduction."""
        key = tuple(roots)
        if key in self._closures:
            return self._closures[key]
        seen: set[int] = set()
        todo = list(roots)
        while todo:
            number = todo.pop()
            if number not in seen:
                seen.add(number)
                if self.nodes[number].op != "reduce":
                    todo.extend(self.nodes[number].args)
        self._closures[key] = sorted(seen)
        return self._closures[key]


def bits_of(number: float, dtype: DType) -> int:
    """The 32 bits of a number as the device keeps it."""
    if dtype == "float32":
        return int(np.float64(number).astype(np.float32).view(np.uint32))
    return int(number) & 0xFFFFFFFF


def number_of(bits: int, dtype: DType) -> Any:
    """The numpy scalar that has these bits."""
    if dtype == "bool":
        return np.bool_(bits)
    return np.frombuffer(struct.pack("<I", bits), NUMPY[dtype])[0]


_COMPARE = {"lt": "LessThan", "le": "LessThanEqual", "gt": "GreaterThan", "ge": "GreaterThanEqual"}


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A node of a graph. Operators add instructions of the value's type; a Python number among the
    operands becomes a constant of that type. Comparisons of floats are the device's own. Drivers
    treat NaN differently, so test bits if NaN matters."""

    graph: Graph
    number: int
    dtype: DType

    def of(self, number: Value | float) -> Value:
        """A number as a constant of this type."""
        return number if isinstance(number, Value) else self.graph.const(number, self.dtype)

    def raw(self, op: str, *others: Value | float) -> Value:
        """An instruction on this value and others."""
        values = [self, *(self.of(other) for other in others)]
        return self.graph.value(op, tuple(v.number for v in values), RAW[op].result or values[-1].dtype)

    def _pick(self, of_float: str, signed: str, unsigned: str) -> str:
        return {"float32": of_float, "int32": signed, "uint32": unsigned}[self.dtype]

    def __add__(self, other: Value | float) -> Value:
        return self.raw(self._pick("FAdd", "IAdd", "IAdd"), other)

    def __sub__(self, other: Value | float) -> Value:
        return self.raw(self._pick("FSub", "ISub", "ISub"), other)

    def __mul__(self, other: Value | float) -> Value:
        return self.raw(self._pick("FMul", "IMul", "IMul"), other)

    def __truediv__(self, other: Value | float) -> Value:
        return self.raw(self._pick("FDiv", "SDiv", "UDiv"), other)

    def __mod__(self, other: Value | float) -> Value:
        return self.raw("UMod", other)

    def __radd__(self, other: float) -> Value:
        return self.of(other) + self

    def __rsub__(self, other: float) -> Value:
        return self.of(other) - self

    def __rmul__(self, other: float) -> Value:
        return self.of(other) * self

    def __rtruediv__(self, other: float) -> Value:
        return self.of(other) / self

    def __neg__(self) -> Value:
        return self.raw(self._pick("FNegate", "SNegate", "SNegate"))

    def _compare(self, name: str, other: Value | float) -> Value:
        return self.raw(self._pick("FOrd", "S", "U") + _COMPARE[name], other)

    def __lt__(self, other: Value | float) -> Value:
        return self._compare("lt", other)

    def __le__(self, other: Value | float) -> Value:
        return self._compare("le", other)

    def __gt__(self, other: Value | float) -> Value:
        return self._compare("gt", other)

    def __ge__(self, other: Value | float) -> Value:
        return self._compare("ge", other)

    def equals(self, other: Value | float | bool) -> Value:
        return self.raw("LogicalEqual" if self.dtype == "bool" else self._pick("FOrdEqual", "IEqual", "IEqual"), other)

    def differs(self, other: Value | float | bool) -> Value:
        name = "LogicalNotEqual" if self.dtype == "bool" else self._pick("FUnordNotEqual", "INotEqual", "INotEqual")
        return self.raw(name, other)

    def __and__(self, other: Value | float) -> Value:
        return self.raw("LogicalAnd" if self.dtype == "bool" else "BitwiseAnd", other)

    def __or__(self, other: Value | float) -> Value:
        return self.raw("LogicalOr" if self.dtype == "bool" else "BitwiseOr", other)

    def __xor__(self, other: Value | float) -> Value:
        return self.raw("LogicalNotEqual" if self.dtype == "bool" else "BitwiseXor", other)

    def __invert__(self) -> Value:
        return self.raw("LogicalNot" if self.dtype == "bool" else "Not")

    def __lshift__(self, other: Value | float) -> Value:
        return self.raw("ShiftLeft", other)

    def __rshift__(self, other: Value | float) -> Value:
        return self.raw("ShiftRightArithmetic" if self.dtype == "int32" else "ShiftRightLogical", other)

    def bits(self) -> Value:
        return self if self.dtype == "uint32" else self.raw("BitsToUint")

    def as_float(self) -> Value:
        return self if self.dtype == "float32" else self.raw("BitsToFloat")

    def as_int(self) -> Value:
        return self if self.dtype == "int32" else self.raw("BitsToInt")

    def to_float(self) -> Value:
        """The number as a float, from int32 or uint32."""
        return self.raw("ConvertSToF" if self.dtype == "int32" else "ConvertUToF")

    def to_int(self) -> Value:
        """The float rounded towards zero, as an int32, which it must fit."""
        return self.raw("ConvertFToS")

    def abs(self) -> Value:
        return self.raw(self._pick("FAbs", "SAbs", "SAbs"))

    def where(self, yes: Value, no: Value | float) -> Value:
        """yes where this bool is true, else no."""
        other = yes.of(no)
        return self.graph.value("Select", (self.number, yes.number, other.number), yes.dtype)

    def call(self, name: str, *others: Value) -> Value:
        """A function of math.py, which returns a float."""
        return self.graph.value("call", (self.number, *(v.number for v in others)), "float32", name)


def fma(a: Value, b: Value | float, c: Value | float) -> Value:
    """a·b + c, rounded once or twice, depending on the device."""
    return a.raw("Fma", b, c)


def polynomial(x: Value, *coefficients: float) -> Value:
    """Horner's rule; the coefficient of the highest power comes first."""
    result = x.of(coefficients[0])
    for coefficient in coefficients[1:]:
        result = fma(result, x, coefficient)
    return result


def is_nan(x: Value) -> Value:
    return (x.bits() & 0x7FFFFFFF) > 0x7F800000


def interpret(
    graph: Graph,
    roots: list[int],
    symbols: Mapping[str, Array],
    call: Callable[..., Array],
    *,
    fused: bool = True,
) -> list[Array]:
    """The roots' values in numpy, with float32 results rounded at each instruction.

    call: (name, *arguments) -> the value of a function. fused: whether Fma rounds once.
    """
    known: dict[int, Any] = {}
    with np.errstate(all="ignore"):
        for number in graph.closure(roots):
            node = graph.nodes[number]
            arguments = [known[a] for a in node.args]
            if node.op == "const":
                known[number] = number_of(node.extra, node.dtype)
            elif node.op == "symbol":
                known[number] = symbols[node.extra]
            elif node.op == "call":
                known[number] = call(node.extra, *arguments)
            elif node.op == "Fma" and not fused:
                known[number] = arguments[0] * arguments[1] + arguments[2]
            else:
                known[number] = RAW[node.op].numpy(*arguments)
    return [known[root] for root in roots]
