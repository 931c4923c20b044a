"""Every bad argument gives an ArgumentError with the argument and its value, on every backend."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from op_problems import Candidates, candidates, schedule
from op_table import OPERATIONS, Arguments, Op
from torch import Tensor

from ebmvk.engine import Backend, Schedule, select
from ebmvk.engine.operations import OPERATIONS as TABLE
from ebmvk.engine.reference import Reference
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
def test_candidate_lists_are_checked(backend: Backend, op: str, name: str, says: str, change: Change) -> None:
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
def test_settings_of_langevin_are_checked(backend: Backend, name: str, change: dict[str, Any]) -> None:
    p = problem()
    settings = {"v": p.v, "seed": 0, **change}
    levels = {key: settings.pop(key) for key in list(settings) if hasattr(schedule(3, 3), key)}
    s: Schedule = replace(schedule(3, 3), **levels)
    v = settings.pop("v")
    with pytest.raises(ArgumentError, match=name.replace(".", r"\.")):
        backend.langevin(p.x, v, backend.points(p.points), *p.lists, s, **settings)


@pytest.mark.parametrize("k", [0, -1, 98, True, 2.0])
def test_k_of_topk_is_checked(backend: Backend, k: Any) -> None:
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
def test_tensors_of_topk_are_checked(backend: Backend, name: str, change: dict[str, Tensor]) -> None:
    p = problem()
    arguments = {"queries": p.v, **change}
    with pytest.raises(ArgumentError, match=name):
        backend.topk(arguments.pop("queries"), backend.points(p.points), 3, **arguments)


@pytest.mark.parametrize(
    "points",
    [torch.ones(3, 4), torch.full((2, 2), torch.nan), torch.zeros(0, 4), torch.ones(4, 1), torch.ones(4)],
    ids=["not unit", "nan", "no rows", "one dimension", "vector"],
)
def test_points_are_checked(backend: Backend, points: Tensor) -> None:
    with pytest.raises(ArgumentError, match="points"):
        backend.points(points)


def test_an_update_must_keep_the_shape(backend: Backend) -> None:
    points = backend.points(torch.eye(4))
    with pytest.raises(ArgumentError, match="points has shape"):
        points.update(torch.eye(3))


def test_points_of_another_backend_are_refused() -> None:
    pytest.importorskip("ebmvk._cpu")
    cpu, reference, p = select("cpu"), select("reference"), problem()
    for a, b in ((cpu, reference), (reference, cpu)):
        with pytest.raises(ArgumentError, match="another backend"):
            a.topk(p.v, b.points(p.points), 1)


def test_native_backends_refuse_tensors_that_they_would_have_to_copy(backend: Backend) -> None:
    if backend.name == "reference":
        pytest.skip("the reference takes any dtype and layout")
    p = problem()
    points = backend.points(p.points)
    with pytest.raises(ArgumentError, match=r"x has dtype torch\.float64"):
        backend.energy_score(p.x.double(), points, *p.lists)
    with pytest.raises(ArgumentError, match="queries is not contiguous"):
        backend.topk(p.v.T.contiguous().T, points, 1)


@pytest.mark.parametrize("op", ["proju", "expmap", "logmap", "dist"])
def test_arguments_of_sphere_operations_are_checked(backend: Backend, op: str) -> None:
    p = problem()
    run = getattr(backend, op)
    with pytest.raises(ArgumentError, match="x row 0 has norm 2"):
        run(2 * p.x, p.x)
    with pytest.raises(ArgumentError, match="shape"):
        run(p.x, p.x[:2])
    with pytest.raises(ArgumentError, match="nan"):
        run(p.x, at(p.x, (1, 1), torch.nan))


def test_projx_refuses_zero_rows(backend: Backend) -> None:
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


def values_of(method: str, name: str) -> str:
    """The key `values` of operations.toml; index for ids."""
    if name.startswith("schedule."):
        return "finite" if name == "schedule.logw_shift" else "at least 0"
    (argument,) = [argument for argument in TABLE[method].arguments if argument.name == name]
    return {"index": "index", "points": "unit"}.get(argument.kind, argument.values)


Spoil = Callable[[Tensor], object]


def last(value: float) -> Spoil:
    return lambda t: at(t, tuple(size - 1 for size in t.shape), value)


def spoils(name: str, method: str, native: bool) -> dict[str, Spoil]:
    """{part of the message: how to spoil a tensor}."""
    ways: dict[str, Spoil] = {
        "shape": lambda t: t[..., None],
        "is a list": lambda t: t.tolist(),
        "is a NoneType": lambda _: None,
        "is on the meta device": lambda t: t.to("meta"),
        "has layout torch.sparse_coo": lambda t: t.to_sparse(),
    }
    values = values_of(method, name)
    if name in ("scale", "bias"):
        del ways["is a NoneType"]  # it is optional
    if native:
        ways["not contiguous"] = lambda t: t.repeat_interleave(2, dim=-1)[..., ::2]
    if values == "index":
        ways |= {"type torch.int32": lambda t: t.int(), "type torch.float32": lambda t: t.float()}
        ways |= {"holds -1, outside": last(-1), f"holds {2**40}, outside": last(2**40)}
        return {
            key.replace("is a list", "type list").replace("is a NoneType", "type NoneType"): ways[key] for key in ways
        }
    ways["dtype torch.int64"] = lambda t: t.long()
    if native:
        ways |= {"dtype torch.float64": lambda t: t.double(), "dtype torch.bfloat16": lambda t: t.bfloat16()}
    if values == "unit":
        ways |= {"has norm nan": last(torch.nan), "has norm inf": last(torch.inf), "has norm 0": torch.zeros_like}
        return ways | {"has norm 1.01": lambda t: 1.01 * t}
    ways |= {"is nan": last(torch.nan), "is inf": last(torch.inf)}
    if values != "direction":
        ways["is 1e+30"] = last(1e30)
    if values != "log weight":
        ways["is -inf"] = last(-torch.inf)
    if values == "at least 0":
        ways["is -1"] = last(-1.0)
    return ways


def tensors_of(arguments: Arguments) -> dict[str, Tensor]:
    levels = arguments.get("schedule")
    own = {f"schedule.{f.name}": getattr(levels, f.name) for f in fields(levels)} if levels else {}
    return {name: value for name, value in {**arguments, **own}.items() if isinstance(value, Tensor)}


def with_value(arguments: Arguments, name: str, value: object) -> Arguments:
    if name.startswith("schedule."):
        return {**arguments, "schedule": replace(arguments["schedule"], **{name.removeprefix("schedule."): value})}
    return {**arguments, name: value}


def refusal(backend: Backend, op: Op, arguments: Arguments, name: str, value: object) -> ArgumentError:
    good = dict(arguments)
    if "points" in good and name != "points":
        good["points"] = backend.points(good["points"])
    run = backend.points if name == "points" else getattr(backend, op.method)
    with pytest.raises(ArgumentError) as caught:
        run(**({name: value} if name == "points" else with_value(good, name, value)))
    return caught.value


@pytest.fixture(scope="session")
def backends(_vulkan: Backend | str) -> list[Backend]:
    """All backends of this machine; a refusal must read the same on each."""
    pytest.importorskip("ebmvk._cpu")
    return [select("cpu"), *([] if isinstance(_vulkan, str) else [_vulkan]), select("reference")]


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_tensor_of_every_operation_is_checked(backends: list[Backend], name: str) -> None:
    op = OPERATIONS[name]
    arguments = op.arguments()
    for tensor, value in tensors_of(arguments).items():
        for says, spoil in spoils(tensor, op.method, native=False).items():
            errors = [refusal(backend, op, arguments, tensor, spoil(value)) for backend in backends]
            for error in errors:
                assert re.match(rf"{re.escape(tensor)}\b", error.what), (tensor, says, error.what)
                assert says in error.what, (tensor, error.what)
                assert error.hint
            same = errors[:-1] if "dtype" in says else errors  # the reference accepts more dtypes
            assert len({str(error) for error in same}) == 1, (tensor, says, [str(error) for error in errors])
        for says in spoils(tensor, op.method, native=True).keys() - spoils(tensor, op.method, native=False).keys():
            spoil = spoils(tensor, op.method, native=True)[says]
            for backend in backends[:-1]:
                error = refusal(backend, op, arguments, tensor, spoil(value))
                assert tensor in error.what, (tensor, says, error.what)
                assert says in error.what, (tensor, error.what)


@pytest.mark.parametrize("name", OPERATIONS)
def test_missing_rows_are_named(backends: list[Backend], name: str) -> None:
    """The first argument determines the number of rows. Any other that has one row less is
    named."""
    op = OPERATIONS[name]
    arguments = op.arguments()
    for tensor in op.rows[1:]:
        said = {str(refusal(backend, op, arguments, tensor, arguments[tensor][:-1])) for backend in backends}
        assert len(said) == 1
        assert re.match(rf"{tensor} has shape \({len(arguments[tensor]) - 1}\b", said.pop())


NOT_INTEGERS = (None, "3", 1.5, True, -1, torch.tensor(3))
BAD_SETTINGS: dict[str, tuple[object, ...]] = {
    "k": (*NOT_INTEGERS, 0, 24),
    "n": (*NOT_INTEGERS, 0, 2**31),
    "seed": (*NOT_INTEGERS, 2**64),
    "first_step": (*NOT_INTEGERS, 2**32 - 4),
    "first_chain": (*NOT_INTEGERS, 2**32 - 4),
    "first_row": (*NOT_INTEGERS, 2**32 - 4),
    "leapfrogs": (*NOT_INTEGERS, 0, 1025),
    "temperature": (None, "1", -0.1, float("nan"), float("inf"), 1e30),
    "scheme": (None, "euler", 3),
    "schedule": (None, (1, 2)),
    "schedule.steps": ((), (1, -1, 0), (1, 1.5, 0), (2**31, 0, 0), (2**30, 2**30, 2**30)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_setting_of_every_operation_is_checked(backends: list[Backend], name: str) -> None:
    op = OPERATIONS[name]
    arguments = op.arguments()
    taken = set(inspect.signature(getattr(backends[0], op.method)).parameters) - set(tensors_of(arguments))
    taken |= {"schedule.steps"} if "schedule" in arguments else set()
    assert taken <= BAD_SETTINGS.keys()
    for setting in taken:
        for value in BAD_SETTINGS[setting]:
            errors = [refusal(backend, op, arguments, setting, value) for backend in backends]
            assert all(setting in error.what and error.hint for error in errors), errors[0].what
            assert len({str(error) for error in errors}) == 1, [str(error) for error in errors]


@pytest.mark.parametrize("name", [name for name, op in OPERATIONS.items() if "points" in op.arguments()])
def test_points_of_every_other_backend_are_refused(backends: list[Backend], name: str) -> None:
    op = OPERATIONS[name]
    arguments = op.arguments()
    others = [backend.points(arguments["points"]) for backend in [*backends, select("reference")]]
    for backend in backends:
        for points in [*others, arguments["points"], None]:
            if getattr(points, "_backend", None) is backend or (backend.name == "cpu" and points is others[0]):
                continue
            with pytest.raises(ArgumentError, match=f"points is a {type(points).__name__}"):
                getattr(backend, op.method)(**{**arguments, "points": points})


def test_an_update_is_checked_as_points_are(backends: list[Backend]) -> None:
    rows = OPERATIONS["topk"].arguments()["points"]
    for backend in backends:
        points = backend.points(rows)
        for says, spoil in {**spoils("points", "topk", native=False), "shape (22": lambda t: t[:-1]}.items():
            with pytest.raises(ArgumentError, match=r"^points") as caught:
                points.update(spoil(rows))  # type: ignore[arg-type]
            assert says in caught.value.what
        # The points are unchanged
        assert torch.equal(backend.topk(rows[:2], points, 1).ids.flatten(), torch.arange(2))


@pytest.mark.parametrize("name", OPERATIONS)
def test_arguments_may_require_gradients(backend: Backend, name: str) -> None:
    """They are treated as constants; `ebmvk.engine.autograd` differentiates."""
    op = OPERATIONS[name]
    arguments = op.arguments()
    tracked = {
        key: value.clone().requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value
        for key, value in arguments.items()
    }
    got = [tensor.detach() for tensor in op.run(backend, tracked)]
    assert all(torch.equal(a, b) for a, b in zip(got, op.run(backend, arguments), strict=True))


@pytest.mark.parametrize("name", [name for name, op in OPERATIONS.items() if len(tensors_of(op.arguments())) > 1])
def test_the_reference_needs_one_dtype(name: str) -> None:
    """Any dtype will do. The oracle has a dtype of its own and converts to it."""
    op, backend = OPERATIONS[name], select("reference")
    arguments = op.arguments()
    floats = [key for key, value in arguments.items() if isinstance(value, Tensor) and value.is_floating_point()]
    doubles = {**arguments, **{key: arguments[key].double() for key in floats}}
    assert all(t.dtype in (torch.float64, torch.int64) for t in op.run(backend, doubles))
    if op.method == "vmf_sample":  # kappa's law is always computed in float64
        return
    for key in floats:
        with pytest.raises(ArgumentError, match=r"dtype torch\.float"):
            op.run(backend, {**arguments, key: doubles[key]})
        op.run(Reference(dtype=torch.float64), {**arguments, key: doubles[key]})
