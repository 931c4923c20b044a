"""Plans as bytes that are safe to read: numbers, text, arrays, and objects of the few classes that
a plan consists of.

The type annotations of these classes are the format: a value that doesn't have the annotated type
isn't read. Nothing in the bytes is run. Objects are numbered, and each refers only to earlier
objects; equal objects are written once.
"""

from __future__ import annotations

import functools
import hashlib
import json
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union

import numpy as np

from ebmvk.compute import donate, ir, lowering, plan

CLASSES: dict[str, type] = {
    found.__name__: found
    for found in (
        ir.Tensor, ir.View, ir.Load, ir.LoadAt, ir.Const, ir.Axis, ir.Op, ir.Reduce, ir.Store, ir.Loop, ir.Call,
        ir.Batch, ir.Finished, ir.Program, lowering.Kernel, lowering.Launch, lowering.Blank, lowering.Lowered,
        donate.Settled, plan.Place, plan.Step, plan.Plan,
    )
}  # fmt: skip
MAGIC = b"ebmvk program 1\n"
_HASH = 32
_COUNT = 8
_NUMBERS = ("<f4", "<i4", "<u4", "|b1", "<i8", "<f8")


class Unreadable(ValueError):
    """The error for bytes that `pack` didn't write, or that have changed since."""


def pack(key: str, made: plan.Plan) -> bytes:
    """A plan and its key as bytes.

    Raises TypeError if the plan has something that can't be written.
    """
    writer = _Writer()
    root = writer.number(made)
    rest = json.dumps({"key": key, "sizes": writer.sizes, "root": root})
    text = f'{{"objects": [{", ".join(writer.objects)}], {rest[1:]}'.encode()
    body = len(text).to_bytes(_COUNT, "little") + text + b"".join(writer.blobs)
    return MAGIC + hashlib.sha256(body).digest() + body


def unpack(key: str, data: bytes) -> plan.Plan:
    """The plan that was packed with this key. Raises Unreadable for all other bytes."""
    start = len(MAGIC) + _HASH
    body = data[start:]
    if data[: len(MAGIC)] != MAGIC:
        raise Unreadable("it isn't a program of this version")
    if hashlib.sha256(body).digest() != data[len(MAGIC) : start]:
        raise Unreadable("it is damaged")
    size = int.from_bytes(body[:_COUNT], "little")
    try:
        said = json.loads(body[_COUNT : _COUNT + size])
        if said["key"] != key:
            raise Unreadable("it is another program's")
        reader = _Reader(body[_COUNT + size :], said["sizes"])
        for name, values in said["objects"]:
            reader.add(name, values)
        made = reader.objects[_exactly(int, said["root"])]
    except (LookupError, TypeError, ValueError) as error:
        raise error if isinstance(error, Unreadable) else Unreadable(f"it isn't a program: {error}") from error
    if not isinstance(made, plan.Plan):
        raise Unreadable("the bytes aren't a plan")
    return made


# --------------------------------------------------------------------------------------- writing


class _Writer:
    """objects: [class, values of its fields] as text, in order. blobs: arrays and bytes. sizes: the
    size of each blob."""

    def __init__(self) -> None:
        self.objects: list[str] = []
        self.blobs: list[bytes] = []
        self.sizes: list[int] = []
        self._numbers: dict[int, int] = {}  # by the object's id
        self._equal: dict[str, int] = {}  # by its text, where 1, 1.0 and True differ, as do 0.0 and -0.0
        self._blobs: dict[bytes, int] = {}
        self._alive: list[object] = []  # keeps objects alive, so that no other object gets the same id

    def number(self, thing: object) -> int:
        """The object's number. Its parts get numbers first. This uses no recursion, because
        expressions can be deep."""
        stack = [thing]
        while stack:
            top = stack[-1]
            known = id(top) in self._numbers
            waiting = [] if known else [part for part in _objects(_values(top)) if id(part) not in self._numbers]
            stack += waiting
            if not waiting:
                stack.pop()
            if not waiting and not known:
                self._add(top)
        return self._numbers[id(thing)]

    def _add(self, thing: object) -> None:
        name = type(thing).__name__
        if CLASSES.get(name) is not type(thing):
            raise TypeError(f"a {name} isn't part of a plan")
        text = json.dumps((name, [self._plain(value) for value in _values(thing)]))
        number = self._equal.setdefault(text, len(self.objects))
        if number == len(self.objects):
            self.objects.append(text)
        self._numbers[id(thing)] = number
        self._alive.append(thing)

    def _plain(self, value: Any) -> Any:
        """A value as JSON has it."""
        if isinstance(value, np.generic):
            value = value.item()
        if type(value) in {bool, int, float, str}:
            return value
        if isinstance(value, bytes):
            return self._blob(value)
        if isinstance(value, np.ndarray):
            array = np.ascontiguousarray(value)
            array = array.astype(array.dtype.newbyteorder("<"), copy=False)
            return [self._blob(array.tobytes()), array.dtype.str, list(value.shape)]
        if isinstance(value, Mapping):
            return [[self._plain(key), self._plain(own)] for key, own in value.items()]
        if isinstance(value, frozenset):
            return sorted(value)
        if isinstance(value, tuple | list):
            return [self._plain(part) for part in value]
        return self._numbers[id(value)]

    def _blob(self, data: bytes) -> int:
        number = self._blobs.setdefault(data, len(self.blobs))
        if number == len(self.blobs):
            self.blobs.append(data)
            self.sizes.append(len(data))
        return number


def _values(thing: object) -> list[Any]:
    kind: Any = type(thing)
    return [getattr(thing, name) for name in _names(kind)]


@functools.cache
def _names(kind: type) -> tuple[str, ...]:
    if not is_dataclass(kind):
        raise TypeError(f"a {kind.__name__} can't be written")
    return tuple(field.name for field in fields(kind))


def _objects(value: Any) -> Iterator[object]:
    """The objects in a value that need a number."""
    if isinstance(value, Mapping):
        for pair in value.items():
            yield from _objects(pair)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _objects(part)
    elif not isinstance(value, bool | int | float | str | bytes | frozenset | np.generic | np.ndarray):
        yield value


# --------------------------------------------------------------------------------------- reading

_Read = Callable[[Any], Any]


def _exactly(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise Unreadable(f"{value!r:.40} isn't {kind.__name__}")
    return value


class _Reader:
    """blobs: bytes of arrays and kernels, one after another. sizes: the size of each in bytes."""

    def __init__(self, blobs: bytes, sizes: list[int]) -> None:
        self.objects: list[Any] = []
        self._blobs: list[bytes] = []
        at = 0
        for size in sizes:
            if _exactly(int, size) < 0 or at + size > len(blobs):
                raise Unreadable("it is too short")
            self._blobs.append(blobs[at : at + size])
            at += size
        self._fields: dict[str, list[_Read]] = {}
        self._known: dict[Any, _Read] = {}

    def add(self, name: str, values: list[Any]) -> None:
        """Make the next object."""
        readers = self._fields.get(name)
        if readers is None:
            hints = typing.get_type_hints(CLASSES[name])
            readers = self._fields[name] = [self._of(hints[field.name]) for field in fields(CLASSES[name])]
        parts = [read(value) for read, value in zip(readers, values, strict=True)]
        self.objects.append(CLASSES[name](*parts))

    def _of(self, hint: Any) -> _Read:
        """The function that reads a value of an annotated type."""
        found = self._known.get(hint)
        if found is None:
            found = self._known[hint] = self._made(hint)
        return found

    def _made(self, hint: Any) -> _Read:
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if hint is object:
            return self._array
        if hint is bytes:
            return self._blob
        if hint in {bool, int, str}:
            return lambda value: _exactly(hint, value)
        if hint is float:
            return lambda value: value if type(value) in {int, float} else _exactly(float, value)
        if origin is Literal:
            return lambda value: _one_of(args, value)
        if origin in {Union, UnionType}:
            return self._either(args)
        if origin is tuple and args[-1:] != (...,):
            each = [self._of(part) for part in args]
            return lambda values: tuple(read(value) for read, value in zip(each, _list(values), strict=True))
        if origin in {tuple, list, frozenset}:
            read = self._of(args[0])
            return lambda values: origin(map(read, _list(values)))
        if origin in {dict, Mapping}:
            of_key, of_value = map(self._of, args)
            return lambda pairs: {of_key(key): of_value(value) for key, value in _list(pairs)}
        return self._either((hint,))

    def _either(self, kinds: tuple[Any, ...]) -> _Read:
        if all(kind in CLASSES.values() for kind in kinds):
            return lambda value: self._object(kinds, value)
        if set(kinds) <= {bool, int, float}:
            return lambda value: value if type(value) in kinds else _exactly(kinds[0], value)
        raise TypeError(f"{kinds} can't be read")

    def _object(self, kinds: tuple[type, ...], value: Any) -> Any:
        if not 0 <= _exactly(int, value) < len(self.objects) or type(self.objects[value]) not in kinds:
            raise Unreadable(f"object {value} isn't a {kinds[0].__name__}")
        return self.objects[value]

    def _blob(self, value: Any) -> bytes:
        number: int = _exactly(int, value)
        if not 0 <= number < len(self._blobs):
            raise Unreadable(f"bytes number {number} are missing")
        return self._blobs[number]

    def _array(self, value: Any) -> Any:
        blob, kind, shape = _list(value)
        sizes = [_exactly(int, size) for size in _list(shape)]
        return np.frombuffer(self._blob(blob), _one_of(_NUMBERS, kind)).reshape(sizes)


def _list(value: Any) -> list[Any]:
    found: list[Any] = _exactly(list, value)
    return found


def _one_of(allowed: tuple[Any, ...], value: Any) -> Any:
    if type(value) is not str or value not in allowed:
        raise Unreadable(f"{value!r:.40} isn't one of {allowed}")
    return value
