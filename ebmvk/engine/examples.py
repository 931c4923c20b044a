"""Arguments for any operation, made from its table, for tests and `ebmvk doctor`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from ebmvk.engine.api import Schedule
from ebmvk.engine.operations import TABLES, Argument

_VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "unit": lambda normal: torch.nn.functional.normalize(normal, dim=-1),
    "direction": lambda normal: 3 * normal,
    "at least 0": lambda normal: 10 * normal.abs(),
}


def arguments(name: str, sizes: Mapping[str, int], seed: int = 0) -> dict[str, Any]:
    """Random arguments by name; points are a tensor (N, d).

    Args:
        sizes: B, d, K, N and V; those that the operation doesn't have are ignored.
    """
    g = torch.Generator().manual_seed(seed)
    return {argument.name: _value(argument, sizes, g) for argument in TABLES[name].arguments}


def _value(argument: Argument, sizes: Mapping[str, int], g: torch.Generator) -> Any:
    shape = tuple(sizes[size] for size in (("N", "d") if argument.kind == "points" else argument.of))
    if argument.kind in ("tensor", "points"):
        normal = torch.randn(shape, generator=g)
        return _VALUES.get("unit" if argument.kind == "points" else argument.values, torch.clone)(normal)
    if argument.kind == "index":
        # A bound that is a number instead of a size is one on tokens. It is low, so that some occur
        # twice.
        below = min(argument.below, 4) if isinstance(argument.below, int) else sizes[argument.below.upper()]
        return torch.randint(below, shape, generator=g)
    if argument.kind == "levels":
        halves = torch.tensor([0.5, 1.0])
        return Schedule(halves, halves / 10, halves / 50, 5 * halves, (3, 2))
    if argument.kind == "int":
        largest = sizes[argument.high] if isinstance(argument.high, str) else argument.high
        # k becomes the number of candidates, n that of points, and rows is B.
        size = {"rows": "B", "d": "d"}.get(argument.name, argument.name.upper())
        wanted = sizes.get(size, int(argument.low))
        return max(int(argument.low), min(wanted, largest))
    return {"seed": 2**40 + g.initial_seed(), "counter": 0, "real": max(argument.low, 1.0), "scheme": "gbaoab"}[
        argument.kind
    ]


def tensors(result: Any) -> list[Tensor]:
    """All tensors of a result, in order."""
    if is_dataclass(result):
        return [tensor for field in fields(result) for tensor in tensors(getattr(result, field.name))]
    return [result]
