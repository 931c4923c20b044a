"""The table of all operations with small arguments, for tests that run over every operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from op_problems import candidates, nmse, schedule
from torch import Tensor

from ebmvk.engine import Backend, examples
from ebmvk.engine.integrators import INTEGRATORS
from ebmvk.engine.operations import OPERATIONS as TABLE

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """Sizes that are odd on purpose: no multiple of a vector, a subgroup or a tile."""

    rows: int = 5
    d: int = 7
    k: int = 3
    n: int = 23

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes by their names in operations.toml."""
        return {"B": self.rows, "d": self.d, "K": self.k, "N": self.n}


SMALL = Shape()


@dataclass(frozen=True)
class Op:
    """rows: arguments with one row per query, state or chain. first: the argument that numbers row
    0, if there is one."""

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
        return examples.tensors(getattr(backend, self.method)(**given))

    def part(self, arguments: Arguments, begin: int, end: int) -> Arguments:
        """The call on some of the rows."""
        cut = {name: arguments[name][begin:end].contiguous() for name in self.rows}
        first = {self.first: arguments.get(self.first, 0) + begin} if self.first else {}
        return {**arguments, **cut, **first}


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


def assert_close(op: Op, got: list[Tensor], want: list[Tensor]) -> None:
    """1e-8 is for float32 terms of backward that cancel; errors of other operations are 1e-12."""
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert a.shape == b.shape, i
        if op.method == "langevin" and i in (
            4,
            6,
        ):  # rounding errors of energies near 50, and of 1
            assert not b.numel() or float((a.double().cpu() - b).abs().max()) <= 2e-4, i
        else:
            assert (nmse(a, b) <= 1e-8) if b.is_floating_point() else torch.equal(a.cpu(), b), i


def _energy(shape: Shape, seed: int) -> Arguments:
    p = candidates(shape.rows, shape.k, shape.d, shape.n, seed=seed)
    names = ("x", "points", "ids", "logw", "kappa", "log_background")
    return {name: getattr(p, name) for name in names}


def _backward(shape: Shape, seed: int) -> Arguments:
    g = torch.Generator().manual_seed(seed)
    grads = {
        "grad_energy": torch.randn(shape.rows, generator=g),
        "grad_score": torch.randn(shape.rows, shape.d, generator=g),
    }
    return {**_energy(shape, seed), **grads}


def _langevin(shape: Shape, seed: int) -> Arguments:
    p = candidates(shape.rows, shape.k, shape.d, shape.n, seed=seed)
    return {**_energy(shape, seed), "v": p.v, "schedule": schedule(2, 0, 3), "seed": 2**40 + seed}


def _op(name: str) -> Op:
    """An operation whose arguments are made from its table."""

    def make(shape: Shape, seed: int) -> Arguments:
        return examples.arguments(name, shape.sizes, seed)

    arguments = TABLE[name].arguments
    first = [argument.name for argument in arguments if argument.kind == "counter" and argument.extent == "B"]
    rows = tuple(argument.name for argument in arguments if argument.of[:1] == ("B",))
    return Op(name, MADE_HERE.get(name, make), rows, *first)


# Operations whose arguments are special: candidates of weight 0, velocities that are tangent.
MADE_HERE = {"energy_score": _energy, "energy_score_backward": _backward, "langevin": _langevin}

OPERATIONS = {
    **{name: _op(name) for name in TABLE},
    **{
        name: replace(_op("langevin"), settings={"scheme": name, "leapfrogs": 2})
        for name in INTEGRATORS
        if name != "gbaoab"  # the default
    },
}
