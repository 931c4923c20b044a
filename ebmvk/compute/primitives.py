"""The table of the operations of torch that a step may use, and what each entry claims.

A primitive has a lowering to nodes of ir.py. Everything else that a step calls is decomposed by
torch into these. The lowerings are in the modules that `load` imports; the documentation's table
of supported operations is made from `PRIMITIVES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

FLOAT = ("float32",)
NUMBERS = ("float32", "int32")
ALL = ("float32", "int32", "bool")


@dataclass(frozen=True)
class Primitive:
    """An operation that the compiler knows.

    name: as torch prints it, without "aten.". lowering: (lowering, *arguments) -> results, with
    views in place of tensors. dtypes: types that its tensors may have on the device, where torch's
    int64 is int32. limits: what torch can do and this can't; empty if nothing.
    """

    name: str
    lowering: Callable[..., Any]
    dtypes: tuple[str, ...]
    limits: str = ""


PRIMITIVES: dict[str, Primitive] = {}

_MODULES = ("pointwise", "reduce", "view", "index", "make", "product", "order", "noise")


def primitive(
    *names: str, dtypes: tuple[str, ...] = ALL, limits: str = ""
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Puts a lowering into the table under its operations' names."""

    def register(lowering: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            assert name not in PRIMITIVES, name
            PRIMITIVES[name] = Primitive(name, lowering, dtypes, limits)
        return lowering

    return register


def load() -> dict[str, Primitive]:
    """The whole table."""
    for module in _MODULES:
        import_module(f"ebmvk.compute.primitives_{module}")
    return PRIMITIVES


def overload(target: Any) -> str:
    """The name in the table of an operation in a graph."""
    return str(target).removeprefix("aten.")


__all__ = ["ALL", "FLOAT", "NUMBERS", "PRIMITIVES", "Primitive", "load", "overload", "primitive"]
