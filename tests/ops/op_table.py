"""The table of all operations with small arguments, for tests that run over every operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from op_problems import candidates, nmse, schedule, unit
from torch import Tensor

from ebmvk.engine import Backend
from ebmvk.engine.integrators import INTEGRATORS

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """Sizes that are odd on purpose: no multiple of a vector, a subgroup or a tile."""

    rows: int = 5
    d: int = 7
    k: int = 3
    n: int = 23


SMALL = Shape()


@dataclass(frozen=True)
class Op:
    """rows: arguments with one row per query, state or chain. first: the one that numbers row 0."""

    method: str
    make: Callable[[Shape, int], Arguments]
    rows: tuple[str, ...]
    first: str = ""
    settings: Arguments = field(default_factory=dict)

    def arguments(self, shape: Shape = SMALL, seed: int = 0) -> Arguments:
        return {**self.make(shape, seed), **self.settings}

    def run(self, backend: Backend, arguments: Arguments | None = None) -> list[Tensor]:
        """All tensors of the result; hands points to the backend."""
        given = dict(self.arguments() if arguments is None else arguments)
        if "points" in given and isinstance(given["points"], Tensor):
            given["points"] = backend.points(given["points"])
        return flatten(getattr(backend, self.method)(**given))

    def part(self, arguments: Arguments, begin: int, end: int) -> Arguments:
        """The call on some of the rows."""
        cut = {name: arguments[name][begin:end].contiguous() for name in self.rows}
        first = {self.first: arguments.get(self.first, 0) + begin} if self.first else {}
        return {**arguments, **cut, **first}


def flatten(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    assert is_dataclass(result)
    return [tensor for part in fields(result) for tensor in flatten(getattr(result, part.name))]


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


def assert_close(op: Op, got: list[Tensor], want: list[Tensor]) -> None:
    """The tolerance of float32: 1e-8 where terms of backward cancel; elsewhere errors are 1e-12."""
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert a.shape == b.shape, i
        if op.method == "langevin" and i in (
            4,
            6,
        ):  # rounding errors of energies near 50, and of 1
            assert not b.numel() or float((a.double().cpu() - b).abs().max()) <= 2e-4, i
        else:
            assert (nmse(a, b) <= 1e-8) if b.is_floating_point() else torch.equal(a.cpu(), b), i


def _rows(shape: Shape, seed: int) -> tuple[Tensor, Tensor, Tensor, torch.Generator]:
    g = torch.Generator().manual_seed(seed)
    x, y = unit(shape.rows, shape.d, generator=g), unit(shape.rows, shape.d, generator=g)
    return x, y, torch.randn(shape.rows, shape.d, generator=g), g


def _sphere(*names: str) -> Callable[[Shape, int], Arguments]:
    def make(shape: Shape, seed: int) -> Arguments:
        x, y, u, _ = _rows(shape, seed)
        return {name: {"x": x, "y": y, "u": u}[name] for name in names}

    return make


def _topk(shape: Shape, seed: int) -> Arguments:
    _, _, u, g = _rows(shape, seed)
    points = unit(shape.n, shape.d, generator=g)
    weights = {"scale": torch.rand(shape.n, generator=g), "bias": torch.randn(shape.n, generator=g)}
    return {"queries": u, "points": points, "k": min(2 * shape.k, shape.n), **weights}


def _energy(shape: Shape, seed: int) -> Arguments:
    p = candidates(shape.rows, shape.k, shape.d, shape.n, seed=seed)
    names = ("x", "points", "ids", "logw", "kappa", "log_background")
    return {name: getattr(p, name) for name in names}


def _backward(shape: Shape, seed: int) -> Arguments:
    _, _, u, g = _rows(shape, seed)
    return {**_energy(shape, seed), "grad_energy": torch.randn(shape.rows, generator=g), "grad_score": u}


def _langevin(shape: Shape, seed: int) -> Arguments:
    p = candidates(shape.rows, shape.k, shape.d, shape.n, seed=seed)
    return {**_energy(shape, seed), "v": p.v, "schedule": schedule(2, 0, 3), "seed": 2**40 + seed}


def _vmf(shape: Shape, seed: int) -> Arguments:
    x, _, _, g = _rows(shape, seed)
    return {"mu": x, "kappa": 30 * torch.rand(shape.rows, generator=g), "seed": 2**40 + seed}


def _accumulate(shape: Shape, seed: int) -> Arguments:
    x, _, _, g = _rows(shape, seed)
    ids = torch.randint(shape.n, (shape.rows, shape.k), generator=g)
    shares = torch.rand(shape.rows, shape.k, generator=g)
    tokens = torch.randint(4, (shape.rows,), generator=g)
    return {"x": x, "ids": ids, "responsibilities": shares, "tokens": tokens, "n": shape.n}


_LISTS = ("x", "ids", "logw", "kappa", "log_background")

OPERATIONS = {
    "projx": Op("projx", lambda shape, seed: {"x": 3 * _rows(shape, seed)[2]}, ("x",)),
    "proju": Op("proju", _sphere("x", "u"), ("x", "u")),
    "expmap": Op("expmap", _sphere("x", "u"), ("x", "u")),
    "logmap": Op("logmap", _sphere("x", "y"), ("x", "y")),
    "transp": Op("transp", _sphere("x", "y", "u"), ("x", "y", "u")),
    "dist": Op("dist", _sphere("x", "y"), ("x", "y")),
    "topk": Op("topk", _topk, ("queries",)),
    "energy_score": Op("energy_score", _energy, _LISTS),
    "energy_score_backward": Op("energy_score_backward", _backward, (*_LISTS, "grad_energy", "grad_score")),
    "langevin": Op("langevin", _langevin, (*_LISTS, "v"), "first_chain"),
    **{
        name: Op("langevin", _langevin, (*_LISTS, "v"), "first_chain", {"scheme": name, "leapfrogs": 2})
        for name in INTEGRATORS
        if name != "gbaoab"  # the default
    },
    "vmf_sample": Op("vmf_sample", _vmf, ("mu", "kappa"), "first_row"),
    "accumulate": Op("accumulate", _accumulate, ("x", "ids", "responsibilities", "tokens")),
}
