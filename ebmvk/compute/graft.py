"""A shipped kernel with generated code in place of its store.

The kernel must write its last binding with one instruction. This store is removed together with the
binding. The code in its place gets the value and the index that would have been stored. It runs
only when the store would have run.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ebmvk.compute.ir import DType
from ebmvk.compute.spirv import BINDING, MAGIC, Module, Op

_HEADER = 5
_NAMES = (Op.NAME, Op.DECORATE)  # instructions about a variable, which are removed with it
_ANNOTATIONS = (Op.DECORATE, Op.MEMBER_DECORATE)


@dataclass
class _Found:
    """Ids found in a module. made: ids of types, by the keys of `Module`. bindings: the variable of
    each binding. imported: the id of GLSL.std.450."""

    made: dict[tuple[object, ...], int] = field(default_factory=dict)
    bindings: dict[int, int] = field(default_factory=dict)
    imported: int = 0


class Graft(Module):
    """A module to which code is added.

    Args:
        spirv: the module of a shipped kernel.
        binding: the number of the last binding, which the kernel writes.

    Raises ValueError unless the kernel has exactly one store to this binding.
    """

    def __init__(self, spirv: bytes, binding: int) -> None:
        words = array("I", spirv)
        if words[0] != MAGIC or sys.byteorder != "little":
            raise ValueError("this isn't a SPIR-V module")
        self._words = words
        self._bound = words[3]
        self._decorations, self._globals, self._functions = [], [], []
        self._interface: list[int] = []
        self._names: dict[str, int] = {}
        self.body: list[int] = []
        found = _found(words)
        self._made = found.made
        self.extended = found.imported
        self._variable_gone = found.bindings[binding]
        self._chains = {
            words[at + 2]: words[at + size - 1]
            for at, op, size in instructions(words)
            if op == Op.ACCESS_CHAIN and words[at + 3] == self._variable_gone
        }
        stores = [at for at, op, _ in instructions(words) if op == Op.STORE and words[at + 1] in self._chains]
        if len(stores) != 1 or not self.extended:
            raise ValueError(f"binding {binding} is written by {len(stores)} instructions, not by one")
        self._at = stores[0]

    def buffer(self, binding: int, dtype: DType, *, writable: bool) -> int:
        number = super().buffer(binding, dtype, writable=writable)
        self._interface.append(number)  # from SPIR-V 1.4 on, the interface names all variables
        return number

    def replace(self, code: Callable[[int, int], None]) -> bytes:
        """The module with the store replaced. code: (index, value) -> None; emits the instructions,
        without new blocks."""
        code(self._chains[self._words[self._at + 1]], self._words[self._at + 2])
        words, result = self._words, self._words[:_HEADER]
        annotated = defined = False
        for at, op, size in instructions(words):
            if op in _ANNOTATIONS and not annotated:
                result.extend(self._decorations)
                annotated = True
            if op == Op.FUNCTION and not defined:
                result.extend(self._globals + self._functions)
                defined = True
            if at == self._at:
                result.extend(self.body)
            elif op == Op.ENTRY_POINT:
                self._entry(result, at, size)
            elif not self._goes(at, op):
                result.extend(words[at : at + size])
        result[3] = self._bound
        return result.tobytes()

    def _entry(self, result: array[int], at: int, size: int) -> None:
        kept = [word for word in self._words[at + 3 : at + size] if word != self._variable_gone]
        kept = [*self._words[at + 1 : at + 3], *kept, *self._interface]
        result.extend([len(kept) + 1 << 16 | Op.ENTRY_POINT, *kept])

    def _goes(self, at: int, op: int) -> bool:
        """True for instructions that only concern the removed variable."""
        words = self._words
        if op in _NAMES:
            return words[at + 1] == self._variable_gone
        return (op == Op.VARIABLE and words[at + 2] == self._variable_gone) or (
            op == Op.ACCESS_CHAIN and words[at + 3] == self._variable_gone
        )


def instructions(words: array[int]) -> Iterator[tuple[int, int, int]]:
    """(position, opcode, number of words) of each instruction of a module."""
    at = _HEADER
    while at < len(words):
        size = words[at] >> 16
        yield at, words[at] & 0xFFFF, size
        at += size


def _found(words: array[int]) -> _Found:
    """Finds the types, which must not be declared twice, and the variables of the bindings."""
    found = _Found()
    scalars: dict[int, str] = {}
    for at, op, size in instructions(words):
        own = words[at + 1 : at + size].tolist()
        key: tuple[object, ...] | None = None
        if op == Op.TYPE_VOID:
            key = ("void",)
        elif op == Op.TYPE_BOOL:
            key = ("bool",)
        elif op == Op.TYPE_FLOAT and own[1] == 32:
            key = ("float32",)
        elif op == Op.TYPE_INT and own[1] == 32:
            key = ("int32" if own[2] else "uint32",)
        elif op == Op.TYPE_POINTER:
            key = ("pointer", own[1], own[2])
        elif op == Op.TYPE_FUNCTION and all(scalars.get(kind) == "float32" for kind in own[1:]):
            key = ("function", len(own) - 2)
        elif op == Op.EXT_INST_IMPORT:
            found.imported = own[0]
        elif op == Op.DECORATE and own[1] == BINDING:
            found.bindings[own[2]] = own[0]
        if key is not None:
            found.made.setdefault(key, own[0])
            scalars[own[0]] = str(key[0])
    return found
