"""Reads and rewrites SPIR-V modules, and makes the modules of drivers that few people have."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

HEADER = 5  # words
# Numbers of the SPIR-V specification.
EXECUTION_MODE, TYPE_ARRAY, CONSTANT, DECORATE, COPY_OBJECT, IS_NAN, SELECT = 16, 28, 43, 71, 83, 156, 169
SPEC_CONSTANTS = range(48, 53)
COMPARISONS = range(180, 192)  # in pairs: a comparison that is false for NaN, then one that is true
F_ORD_EQUAL, F_ORD_LESS_THAN = 180, 184

Instruction = tuple[int, tuple[int, ...]]


def instructions(module: bytes) -> Iterator[Instruction]:
    """The number and the operands of each instruction."""
    words = struct.unpack(f"<{len(module) // 4}I", module)
    at = HEADER
    while at < len(words):
        length = words[at] >> 16
        yield words[at] & 0xFFFF, words[at + 1 : at + length]
        at += length


def assemble(header: bytes, parts: list[Instruction]) -> bytes:
    words = [word for op, operands in parts for word in ((len(operands) + 1) << 16 | op, *operands)]
    return header[: 4 * HEADER] + struct.pack(f"<{len(words)}I", *words)


def fast_math(module: bytes) -> bytes:
    """The module as a driver may run it if it assumes, as Vulkan allows, no NaN and no -0.

    `isnan` is false, comparisons that are false for NaN become those that are true for it and vice
    versa, and `x == 0 ? 0 : x` is x.
    """
    parts = list(instructions(module))
    zeros = {ids[1] for op, ids in parts if op == CONSTANT and ids[2:] == (0,)}
    is_zero = {
        ids[1]: next(value for value in ids[2:] if value not in zeros)
        for op, ids in parts
        if op == F_ORD_EQUAL and len(zeros.intersection(ids[2:])) == 1
    }

    def change(op: int, ids: tuple[int, ...]) -> Instruction:
        if op == IS_NAN:
            kind, result, value = ids
            return F_ORD_LESS_THAN, (kind, result, value, value)
        if op in COMPARISONS:
            return op ^ 1, ids
        if op == SELECT and is_zero.get(ids[2]) == ids[4] and ids[3] in zeros:
            return COPY_OBJECT, (ids[0], ids[1], ids[4])
        return op, ids

    return assemble(module, [change(*part) for part in parts])


def write_fast_math(extension: ModuleType, folder: Path) -> None:
    """Writes all kernels for Options.modules."""
    for name, variant, storage in extension.kernels():
        module = fast_math(extension.module_of(name, variant, storage))
        (folder / f"{name}.{variant.name}.{storage.name}.spv").write_bytes(module)
