"""Bad arguments: every one is an ArgumentError that names the argument and what it is, on every backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from op_problems import Candidates, candidates, schedule
from torch import Tensor

from ebmvk.engine import Backend, Schedule, select
from ebmvk.errors import ArgumentError


def at(tensor: Tensor, index: tuple[int, ...], value: float) -> Tensor:
    changed = tensor.clone()
    changed[index] = value
    return changed


Change = Callable[[Candidates], Candidates]

# The argument that must be named, a part of the message, and what makes it wrong.
BAD_LISTS: list[tuple[str, str, Change]] = [
    ("x", "shape (3, 9)", lambda p: replace(p, x=torch.ones(3, 9) / 3)),
    ("x", "shape (8,)", lambda p: replace(p, x=p.x[0])),
    ("x", "dtype torch.int64", lambda p: replace(p, x=p.x.long())),
    ("x", "norm nan", lambda p: replace(p, x=at(p.x, (1, 2), torch.nan))),
    ("x", "norm inf", lambda p: replace(p, x=at(p.x, (1, 2), torch.inf))),
    ("x", "row 2 has norm 1.01", lambda p: replace(p, x=torch.cat((p.x[:2], 1.01 * p.x[2:])))),
    ("ids", "holds 97", lambda p: replace(p, ids=at(p.ids, (0, 0), 97))),
    ("ids", "holds -1", lambda p: replace(p, ids=at(p.ids, (2, 3), -1))),
    ("ids", "int64", lambda p: replace(p, ids=p.ids.int())),
    ("ids", "shape (2, 4)", lambda p: replace(p, ids=p.ids[:2])),
    ("ids", "K = 0", lambda p: replace(p, ids=p.ids[:, :0], logw=p.logw[:, :0], kappa=p.kappa[:, :0])),
    ("logw", "shape (3, 3)", lambda p: replace(p, logw=p.logw[:, :3])),
    ("logw", "[1, 2] is nan", lambda p: replace(p, logw=at(p.logw, (1, 2), torch.nan))),
    ("logw", "is inf", lambda p: replace(p, logw=at(p.logw, (1, 2), torch.inf))),
    ("logw", "all -inf", lambda p: replace(p, logw=at(p.logw, (0,), -torch.inf))),
    ("kappa", "[0, 1] is -1", lambda p: replace(p, kappa=at(p.kappa, (0, 1), -1.0))),
    ("kappa", "is nan", lambda p: replace(p, kappa=at(p.kappa, (0, 1), torch.nan))),
    ("log_background", "shape (2,)", lambda p: replace(p, log_background=p.log_background[:2])),
    ("log_background", "is nan", lambda p: replace(p, log_background=at(p.log_background, (1,), torch.nan))),
]


def problem() -> Candidates:
    return candidates(3, 4, 8)


@pytest.mark.parametrize(("name", "says", "change"), BAD_LISTS, ids=[f"{name}: {says}" for name, says, _ in BAD_LISTS])
@pytest.mark.parametrize("op", ["energy_score", "langevin"])
def test_candidate_lists(backend: Backend, op: str, name: str, says: str, change: Change) -> None:
    good = problem()
    p = change(good)
    points = backend.points(good.points)
    run = getattr(backend, op)
    more = {"energy_score": ((), {}), "langevin": ((schedule(2),), {"seed": 0})}[op]
    state = (p.x,) if op == "energy_score" else (p.x, p.v)
    with pytest.raises(ArgumentError) as caught:
        run(*state, points, *p.lists, *more[0], **more[1])
    assert name in caught.value.what
    assert says in caught.value.what
    assert caught.value.hint


BAD_RUNS: list[tuple[str, dict[str, Any]]] = [
    ("v", {"v": torch.zeros(3, 7)}),
    ("v", {"v": torch.full((3, 8), torch.nan)}),
    ("seed", {"seed": -1}),
    ("seed", {"seed": 2**64}),
    ("first_step", {"first_step": 2**32 - 4}),
    ("first_chain", {"first_chain": -1}),
    ("temperature", {"temperature": -0.5}),
    ("temperature", {"temperature": float("nan")}),
    ("schedule.steps", {"steps": ()}),
    ("schedule.steps", {"steps": (3, -1)}),
    ("schedule.gamma", {"gamma": torch.tensor([1.0, -1.0])}),
    ("schedule.step_size", {"step_size": torch.tensor([0.1, torch.nan])}),
    ("schedule.kappa_scale", {"kappa_scale": torch.ones(3)}),
    ("schedule.logw_shift", {"logw_shift": torch.zeros(2, 2)}),
]


@pytest.mark.parametrize(("name", "change"), BAD_RUNS, ids=[f"{n} {list(c)}" for n, c in BAD_RUNS])
def test_langevin_settings(backend: Backend, name: str, change: dict[str, Any]) -> None:
    p = problem()
    settings = {"v": p.v, "seed": 0, **change}
    levels = {key: settings.pop(key) for key in list(settings) if hasattr(schedule(3, 3), key)}
    s: Schedule = replace(schedule(3, 3), **levels)
    v = settings.pop("v")
    with pytest.raises(ArgumentError, match=name.replace(".", r"\.")):
        backend.langevin(p.x, v, backend.points(p.points), *p.lists, s, **settings)


@pytest.mark.parametrize("k", [0, -1, 98, True, 2.0])
def test_topk_k(backend: Backend, k: Any) -> None:
    p = problem()
    with pytest.raises(ArgumentError, match="k is"):
        backend.topk(p.v, backend.points(p.points), k)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("queries", {"queries": torch.zeros(3, 9)}),
        ("queries", {"queries": torch.full((3, 8), torch.inf)}),
        ("scale", {"scale": torch.ones(96)}),
        ("scale", {"scale": torch.full((97,), torch.nan)}),
        ("bias", {"bias": torch.full((97,), torch.inf)}),
    ],
)
def test_topk_tensors(backend: Backend, name: str, change: dict[str, Tensor]) -> None:
    p = problem()
    arguments = {"queries": p.v, **change}
    with pytest.raises(ArgumentError, match=name):
        backend.topk(arguments.pop("queries"), backend.points(p.points), 3, **arguments)


@pytest.mark.parametrize(
    "points",
    [torch.ones(3, 4), torch.full((2, 2), torch.nan), torch.zeros(0, 4), torch.ones(4, 1), torch.ones(4)],
    ids=["not unit", "nan", "no rows", "one dimension", "vector"],
)
def test_points(backend: Backend, points: Tensor) -> None:
    with pytest.raises(ArgumentError, match="points"):
        backend.points(points)


def test_points_update_keeps_the_shape(backend: Backend) -> None:
    points = backend.points(torch.eye(4))
    with pytest.raises(ArgumentError, match="points has shape"):
        points.update(torch.eye(3))


def test_points_of_another_backend() -> None:
    pytest.importorskip("ebmvk._cpu")
    cpu, reference, p = select("cpu"), select("reference"), problem()
    for a, b in ((cpu, reference), (reference, cpu)):
        with pytest.raises(ArgumentError, match="another backend"):
            a.topk(p.v, b.points(p.points), 1)


def test_native_backends_do_not_copy_in_silence(backend: Backend) -> None:
    if backend.name == "reference":
        pytest.skip("the reference takes any dtype and layout")
    p = problem()
    points = backend.points(p.points)
    with pytest.raises(ArgumentError, match=r"x has dtype torch\.float64"):
        backend.energy_score(p.x.double(), points, *p.lists)
    with pytest.raises(ArgumentError, match="queries is not contiguous"):
        backend.topk(p.v.T.contiguous().T, points, 1)


@pytest.mark.parametrize("op", ["proju", "expmap", "logmap", "dist"])
def test_sphere(backend: Backend, op: str) -> None:
    p = problem()
    run = getattr(backend, op)
    with pytest.raises(ArgumentError, match="x row 0 has norm 2"):
        run(2 * p.x, p.x)
    with pytest.raises(ArgumentError, match="shape"):
        run(p.x, p.x[:2])
    with pytest.raises(ArgumentError, match="nan"):
        run(p.x, at(p.x, (1, 1), torch.nan))


def test_projx_of_zero(backend: Backend) -> None:
    with pytest.raises(ArgumentError, match="x row 1 is zero"):
        backend.projx(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


def test_calls_are_counted(backend: Backend) -> None:
    before = backend.counts().get("dist")
    p = problem()
    backend.dist(p.x, p.x)
    with pytest.raises(ArgumentError):
        backend.dist(2 * p.x, p.x)
    after = backend.counts()["dist"]
    assert after.calls == (before.calls if before else 0) + 1
    assert after.seconds > (before.seconds if before else 0)
