"""A builder of SPIR-V 1.3 modules (Vulkan 1.1) with one compute entry point, "main".

A module has storage buffers in set 0 (bindings 0, 1, ...), shared arrays, functions of floats, and
structured loops and selections. Specialisation constant 0 is the workgroup's size in x. The same
calls give the same bytes. The SPIR-V specification defines all numbers.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING

from ebmvk.compute.ir import DType

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC, VERSION = 0x07230203, 0x00010300
WORKGROUP, INPUT, STORAGE_BUFFER = 4, 1, 12  # storage classes
WORKGROUP_ID, LOCAL_INDEX, WORKGROUP_SIZE = 26, 29, 25  # BuiltIn
BLOCK, BUILT_IN, RESTRICT, NON_WRITABLE, NO_CONTRACTION = 2, 11, 19, 24, 42
ARRAY_STRIDE, BINDING, SET, OFFSET, SPEC_ID = 6, 33, 34, 35, 1
ACQUIRE_RELEASE_SHARED = 0x8 | 0x100
_STORED: dict[str, DType] = {"bool": "uint32"}  # a bool in memory is a word


class Op(IntEnum):
    """Numbers of instructions."""

    NAME = 5
    EXT_INST_IMPORT = 11
    EXT_INST = 12
    MEMORY_MODEL = 14
    ENTRY_POINT = 15
    EXECUTION_MODE = 16
    CAPABILITY = 17
    TYPE_VOID = 19
    TYPE_BOOL = 20
    TYPE_INT = 21
    TYPE_FLOAT = 22
    TYPE_VECTOR = 23
    TYPE_ARRAY = 28
    TYPE_RUNTIME_ARRAY = 29
    TYPE_STRUCT = 30
    TYPE_POINTER = 32
    TYPE_FUNCTION = 33
    CONSTANT_TRUE = 41
    CONSTANT_FALSE = 42
    CONSTANT = 43
    SPEC_CONSTANT = 50
    SPEC_CONSTANT_COMPOSITE = 51
    FUNCTION = 54
    FUNCTION_PARAMETER = 55
    FUNCTION_END = 56
    FUNCTION_CALL = 57
    VARIABLE = 59
    LOAD = 61
    STORE = 62
    ACCESS_CHAIN = 65
    DECORATE = 71
    MEMBER_DECORATE = 72
    COMPOSITE_EXTRACT = 81
    BITCAST = 124
    I_ADD = 128
    I_SUB = 130
    I_MUL = 132
    U_DIV = 134
    U_MOD = 137
    LOGICAL_AND = 167
    SELECT = 169
    I_EQUAL = 170
    I_NOT_EQUAL = 171
    U_LESS_THAN = 176
    U_LESS_THAN_EQUAL = 178
    SHIFT_RIGHT = 194
    BITWISE_AND = 199
    CONTROL_BARRIER = 224
    PHI = 245
    LOOP_MERGE = 246
    SELECTION_MERGE = 247
    LABEL = 248
    BRANCH = 249
    BRANCH_CONDITIONAL = 250
    RETURN = 253
    RETURN_VALUE = 254


def stored(dtype: DType) -> DType:
    """The type of a value in memory."""
    return _STORED.get(dtype, dtype)


def _text(string: str) -> list[int]:
    data = string.encode() + b"\0"
    data += b"\0" * (-len(data) % 4)
    return [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]


class Module:
    """Instructions by section. Types and constants are made once."""

    def __init__(self, group: int) -> None:
        """group: the workgroup's size in x unless it is specialised."""
        self._bound = 1
        self._decorations: list[int] = []
        self._globals: list[int] = []
        self._functions: list[int] = []
        self._made: dict[tuple[object, ...], int] = {}
        self._interface: list[int] = []
        self._names: dict[str, int] = {}
        self.body: list[int] = []
        self.extended = self.id()
        self.main = self.id()
        self._group = group
        self._group_size(group)

    def id(self) -> int:
        number = self._bound
        self._bound += 1
        return number

    # ------------------------------------------------------------------- types and constants

    def _global(self, key: tuple[object, ...], op: int, operands: Sequence[int], *, typed: bool = False) -> int:
        """An instruction among the types and constants, made once for each key. typed: the first
        operand is the result's type, and comes before the result."""
        number = self._made.get(key)
        if number is None:
            number = self._made[key] = self.id()
            words = [operands[0], number, *operands[1:]] if typed else [number, *operands]
            self._globals += [(len(words) + 1) << 16 | op, *words]
        return number

    def _decorate(self, target: int, *words: int) -> None:
        self._decorations += [(len(words) + 2) << 16 | Op.DECORATE, target, *words]

    def _decorate_member(self, target: int, *words: int) -> None:
        self._decorations += [(len(words) + 3) << 16 | Op.MEMBER_DECORATE, target, 0, *words]

    def void(self) -> int:
        return self._global(("void",), Op.TYPE_VOID, ())

    def type(self, dtype: DType) -> int:
        if dtype == "float32":
            return self._global((dtype,), Op.TYPE_FLOAT, (32,))
        if dtype == "bool":
            return self._global((dtype,), Op.TYPE_BOOL, ())
        return self._global((dtype,), Op.TYPE_INT, (32, int(dtype == "int32")))

    def pair(self) -> int:
        """The type of two uint32."""
        return self._global(("pair",), Op.TYPE_STRUCT, (self.type("uint32"),) * 2)

    def pointer(self, storage: int, to: int) -> int:
        return self._global(("pointer", storage, to), Op.TYPE_POINTER, (storage, to))

    def constant(self, dtype: DType, bits: int) -> int:
        if dtype == "bool":
            return self._global(
                (dtype, bits), Op.CONSTANT_TRUE if bits else Op.CONSTANT_FALSE, (self.type(dtype),), typed=True
            )
        return self._global((dtype, bits), Op.CONSTANT, (self.type(dtype), bits), typed=True)

    def uint(self, number: int) -> int:
        return self.constant("uint32", number)

    def _vector(self) -> int:
        return self._global(("uvec3",), Op.TYPE_VECTOR, (self.type("uint32"), 3))

    def _group_size(self, group: int) -> None:
        size = self._global(("group size",), Op.SPEC_CONSTANT, (self.type("uint32"), group), typed=True)
        self._decorate(size, SPEC_ID, 0)
        parts = (self._vector(), size, self.uint(1), self.uint(1))
        self._decorate(
            self._global(("group sizes",), Op.SPEC_CONSTANT_COMPOSITE, parts, typed=True), BUILT_IN, WORKGROUP_SIZE
        )

    # ------------------------------------------------------------------------------ variables

    def _variable(self, storage: int, to: int) -> int:
        number = self.id()
        self._globals += [4 << 16 | Op.VARIABLE, self.pointer(storage, to), number, storage]
        return number

    def built_in(self, which: int) -> int:
        """The variable of WORKGROUP_ID (three uint32) or LOCAL_INDEX (one)."""
        key = ("built in", which)
        if key not in self._made:
            kind = self._vector() if which == WORKGROUP_ID else self.type("uint32")
            self._made[key] = self._variable(INPUT, kind)
            self._decorate(self._made[key], BUILT_IN, which)
            self._interface.append(self._made[key])
        return self._made[key]

    def buffer(self, binding: int, dtype: DType, *, writable: bool) -> int:
        """A storage buffer: a struct with a runtime array of words. No other binding of the module
        may overlap its range."""
        element = self.type(stored(dtype))
        key = ("block", element)
        if key not in self._made:
            rows = self._global(("rows", element), Op.TYPE_RUNTIME_ARRAY, (element,))
            self._decorate(rows, ARRAY_STRIDE, 4)
            block = self._global(key, Op.TYPE_STRUCT, (rows,))
            self._decorate_member(block, OFFSET, 0)
            self._decorate(block, BLOCK)
        number = self._variable(STORAGE_BUFFER, self._made[key])
        self._decorate(number, SET, 0)
        self._decorate(number, BINDING, binding)
        self._decorate(number, RESTRICT)
        if not writable:
            self._decorate(number, NON_WRITABLE)
        return number

    def shared(self, dtype: DType, length: int) -> int:
        """An array in the workgroup's shared memory."""
        element = self.type(stored(dtype))
        return self._variable(
            WORKGROUP, self._global(("array", element, length), Op.TYPE_ARRAY, (element, self.uint(length)))
        )

    # --------------------------------------------------------------------------- instructions

    def emit(self, op: int, kind: int, *operands: int) -> int:
        """An instruction that has a result of a type."""
        number = self._bound
        self._bound += 1
        self.body += (len(operands) + 3 << 16 | op, kind, number, *operands)
        return number

    def extend(self, op: int, kind: int, *operands: int) -> int:
        """An instruction of GLSL.std.450."""
        return self.emit(Op.EXT_INST, kind, self.extended, op, *operands)

    def exact(self, number: int) -> None:
        """Decorates a result of float arithmetic as NoContraction, so that it is never fused."""
        self._decorations += (3 << 16 | Op.DECORATE, number, NO_CONTRACTION)

    def do(self, op: int, *operands: int) -> None:
        """An instruction without a result."""
        self.body += (len(operands) + 1 << 16 | op, *operands)

    def element(self, storage: int, variable: int, dtype: DType, index: int) -> int:
        """A pointer to an element of a buffer or a shared array."""
        kind = self.pointer(storage, self.type(stored(dtype)))
        if storage == STORAGE_BUFFER:
            return self.emit(Op.ACCESS_CHAIN, kind, variable, self.uint(0), index)
        return self.emit(Op.ACCESS_CHAIN, kind, variable, index)

    def load(self, storage: int, variable: int, dtype: DType, index: int) -> int:
        """A value from a buffer or a shared array."""
        word = self.emit(Op.LOAD, self.type(stored(dtype)), self.element(storage, variable, dtype, index))
        return self.emit(Op.I_NOT_EQUAL, self.type("bool"), word, self.uint(0)) if dtype == "bool" else word

    def store(self, storage: int, variable: int, dtype: DType, index: int, value: int) -> None:
        if dtype == "bool":
            value = self.emit(Op.SELECT, self.type("uint32"), value, self.uint(1), self.uint(0))
        self.do(Op.STORE, self.element(storage, variable, dtype, index), value)

    def barrier(self) -> None:
        """A barrier of the workgroup: each invocation waits for all others. Later reads of shared
        memory see all earlier writes."""
        workgroup = self.uint(2)
        self.do(Op.CONTROL_BARRIER, workgroup, workgroup, self.uint(ACQUIRE_RELEASE_SHARED))

    # --------------------------------------------------------------------------- control flow

    def label(self, number: int | None = None) -> int:
        """Starts a block."""
        number = self.id() if number is None else number
        self.body += (2 << 16 | Op.LABEL, number)
        self._block = number
        return number

    @contextmanager
    def when(self, condition: int) -> Iterator[None]:
        """A selection: instructions emitted inside run only if the condition holds."""
        inside, after = self.id(), self.id()
        self.do(Op.SELECTION_MERGE, after, 0)
        self.do(Op.BRANCH_CONDITIONAL, condition, inside, after)
        self.label(inside)
        yield
        self.do(Op.BRANCH, after)
        self.label(after)

    def loop(
        self,
        start: int,
        end: int,
        step: int,
        carried: Sequence[tuple[int, int]],
        body: Callable[[int, list[int]], list[int]],
    ) -> list[int]:
        """for (i = start; i < end; i += step), uint32.

        carried: (type, first value) of each value that a round passes to the next. body:
        (i, values) -> new values. Returns the last values.
        """
        before, head, test, inside, again, after = self._block, *(self.id() for _ in range(5))
        uint = self.type("uint32")
        counter, values = self.id(), [self.id() for _ in carried]
        next_counter = self.id()
        self.do(Op.BRANCH, head)
        self.label(head)
        patch = len(self.body)
        self.label(test)
        self.do(Op.BRANCH_CONDITIONAL, self.emit(Op.U_LESS_THAN, self.type("bool"), counter, end), inside, after)
        self.label(inside)
        results = body(counter, values)
        self.do(Op.BRANCH, again)
        self.label(again)
        self.body += (5 << 16 | Op.I_ADD, uint, next_counter, counter, step)
        self.do(Op.BRANCH, head)
        phis = [7 << 16 | Op.PHI, uint, counter, start, before, next_counter, again]
        for (kind, first), value, result in zip(carried, values, results, strict=True):
            phis += [7 << 16 | Op.PHI, kind, value, first, before, result, again]
        phis += [4 << 16 | Op.LOOP_MERGE, after, again, 0, 2 << 16 | Op.BRANCH, test]
        self.body[patch:patch] = phis
        self.label(after)
        return values

    # ------------------------------------------------------------------------------ functions

    def made(self, name: str) -> int | None:
        """The function of that name, or None if it hasn't been made yet."""
        return self._names.get(name)

    def function(self, name: str, arguments: int, body: Callable[[list[int]], int]) -> int:
        """A function of floats that returns a float, made once for each name."""
        if name not in self._names:
            outer, self.body = self.body, []
            real = self.type("float32")
            kind = self._global(("function", arguments), Op.TYPE_FUNCTION, (real,) * (arguments + 1))
            parameters = [self.id() for _ in range(arguments)]
            number = self.id()
            head = [5 << 16 | Op.FUNCTION, real, number, 0, kind]
            for parameter in parameters:
                head += [3 << 16 | Op.FUNCTION_PARAMETER, real, parameter]
            self.body += (2 << 16 | Op.LABEL, self.id())
            self.do(Op.RETURN_VALUE, body(parameters))
            self.do(Op.FUNCTION_END)
            self._functions += head + self.body
            self.body = outer
            self._names[name] = number
        return self._names[name]

    def finish(self) -> bytes:
        """The bytes of the module. Instructions emitted outside functions are the body of main."""
        void = self.void()
        kind = self._global(("main",), Op.TYPE_FUNCTION, (void,))
        main = [
            5 << 16 | Op.FUNCTION,
            void,
            self.main,
            0,
            kind,
            *self.body,
            1 << 16 | Op.RETURN,
            1 << 16 | Op.FUNCTION_END,
        ]
        name = _text("main")
        words = [MAGIC, VERSION, 0, self._bound, 0]
        words += [2 << 16 | Op.CAPABILITY, 1]  # capability Shader
        library = _text("GLSL.std.450")
        words += [(len(library) + 2) << 16 | Op.EXT_INST_IMPORT, self.extended, *library]
        words += [3 << 16 | Op.MEMORY_MODEL, 0, 1]  # logical addresses, GLSL450
        words += [(len(name) + len(self._interface) + 3) << 16 | Op.ENTRY_POINT, 5, self.main, *name, *self._interface]
        words += [6 << 16 | Op.EXECUTION_MODE, self.main, 17, self._group, 1, 1]  # LocalSize
        words += self._decorations + self._globals + self._functions + main
        return array("I", words).tobytes()
