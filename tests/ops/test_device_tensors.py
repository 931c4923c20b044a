"""Tensors that stay on a Vulkan device: the same bits as host arrays, lifetimes, and errors."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
import torch
from op_table import OPERATIONS, SMALL, Arguments, Op, Shape, same_bits
from torch import Tensor
from vulkan_open import guarded, open_vulkan, schedule, tangent, unit

from ebmvk.engine import select
from ebmvk.engine.device_tensor import DeviceTensor, SparseRows, read
from ebmvk.engine.vulkan import Vulkan
from ebmvk.errors import ArgumentError, DeviceLost, OutOfMemory

VARIANTS: dict[str, dict[str, Any]] = {
    "usual": {},
    "portable": {"portable": True},
    "gpu": {"pretend": "gpu"},
    "smallest": {"pretend": "smallest"},
    "shards": {"shard_bytes": 16 * 40 * 4},
    "slices": {"slice_seconds": 1e-9},  # rows of a slice begin where a kernel can't be bound
}
SHAPES = [SMALL, Shape(6, 33, 9, 40), Shape(4, 8, 4, 12)]
OUT_OF_DEVICE_MEMORY, DEVICE_LOST = -2, -4


@pytest.fixture(scope="module", params=VARIANTS)
def vulkan(request: pytest.FixtureRequest) -> Iterator[Vulkan]:
    """Core and synchronisation validation, guard bands, and poison in memory that is used again."""
    yield from guarded(**VARIANTS[request.param])


def names_of_tensors(arguments: Arguments) -> list[str]:
    return [name for name, value in arguments.items() if isinstance(value, Tensor) and name != "points"]


def moved(backend: Vulkan, arguments: Arguments, names: list[str]) -> Arguments:
    return {name: backend.tensor(value) if name in names else value for name, value in arguments.items()}


def parts(result: Any) -> list[Any]:
    if not is_dataclass(result) or isinstance(result, SparseRows):
        return [result]
    return [part for field in fields(result) for part in parts(getattr(result, field.name))]


def run(backend: Vulkan, op: Op, arguments: Arguments) -> list[Any]:
    given = dict(arguments)
    if "points" in given:
        given["points"] = backend.points(given["points"])
    return parts(getattr(backend, op.method)(**given))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tensors_give_the_bits_of_host_arrays(vulkan: Vulkan, name: str, shape: Shape) -> None:
    op = OPERATIONS[name]
    arguments = op.arguments(shape, 1)
    want = run(vulkan, op, arguments)
    assert all(isinstance(part, Tensor) for part in want)
    given = moved(vulkan, arguments, names_of_tensors(arguments))
    for _ in range(2):  # the second time, memory and recorded programs are used again
        got = run(vulkan, op, given)
        assert all(isinstance(part, DeviceTensor | SparseRows) for part in got)
        assert [tuple(part.shape) for part in got] == [tuple(part.shape) for part in want]
        assert same_bits([part.torch() for part in got], want)
        del got


@pytest.mark.parametrize(
    ("name", "moves"), [(name, move) for name, op in OPERATIONS.items() for move in names_of_tensors(op.arguments())]
)
def test_one_tensor_among_host_arrays_makes_all_results_tensors(vulkan: Vulkan, name: str, moves: str) -> None:
    op = OPERATIONS[name]
    arguments = op.arguments(SHAPES[1], 2)
    want = run(vulkan, op, arguments)
    got = run(vulkan, op, moved(vulkan, arguments, [moves]))
    assert all(isinstance(part, DeviceTensor | SparseRows) for part in got)
    assert same_bits([part.torch() for part in got], want)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_empty_batch_of_tensors_gives_empty_tensors(name: str) -> None:
    op, backend = OPERATIONS[name], open_vulkan()
    arguments = op.part(op.arguments(), 0, 0)
    got = run(backend, op, moved(backend, arguments, names_of_tensors(arguments)))
    assert [tuple(part.torch().shape) for part in got] == [tuple(part.shape) for part in run(backend, op, arguments)]


def test_results_are_arguments_of_the_next_operation() -> None:
    """A chain of operations gives the same bits on the device as through the host. Here `moved`,
    whose rows are laid out as points, also serves as weights."""
    backend = open_vulkan(validate=True, guard=True)
    mu, queries = unit(40, 7, 1), unit(5, 7, 2)
    points = backend.points(mu)

    def chain(keep: bool) -> list[Tensor]:
        x = backend.tensor(queries) if keep else queries
        found = backend.topk(x, points, 7)  # type: ignore[arg-type]
        moved = backend.expmap(x, backend.proju(x, backend.logmap(x, x)))  # type: ignore[arg-type]
        kappa = torch.full((5, 7), 3.0)
        law = (found.ids, moved, kappa, torch.zeros(5))
        now = backend.energy_score(moved, points, *law)
        end = backend.langevin(moved, now.score, points, *law, schedule(), seed=5)
        results = [found.scores, found.ids, now.energy, now.score, end.x, end.v, *vars(end.diagnostics).values()]
        return read(*results) if keep else results  # type: ignore[arg-type]

    assert same_bits(chain(keep=True), chain(keep=False))
    assert backend._engine.take_messages() == []


def test_a_tensor_says_what_it_is() -> None:
    backend = open_vulkan()
    values, ids = unit(3, 5, 1), torch.tensor([4, 0, 9])
    one, other = backend.tensor(values), backend.tensor(ids)
    assert (one.shape, one.dtype, one.device, len(one), one.dim()) == ((3, 5), torch.float32, backend.device, 3, 2)
    assert (other.shape, other.dtype, other.below) == ((3,), torch.int64, 10)
    assert repr(one) == f"DeviceTensor(shape=(3, 5), dtype=torch.float32, device={backend.device!r})"
    assert torch.equal(one.torch(), values)
    assert np.array_equal(np.asarray(other), ids.numpy())
    assert np.asarray(other, dtype=np.float64).dtype == np.float64
    assert np.array_equal(backend.tensor(values.numpy()).numpy(), values.numpy())
    one.torch().zero_()  # a copy
    assert torch.equal(one.torch(), values)
    with pytest.raises(ValueError, match="copy"):
        one.__array__(copy=False)
    large = backend.tensor(torch.arange(9_000_000))  # more than one staging buffer
    assert torch.equal(large.torch(), torch.arange(9_000_000))


def test_a_tensor_outlives_what_made_it() -> None:
    """Points, workspaces and arguments go; a failed call frees all memory that isn't in use."""
    backend = open_vulkan()
    points = backend.points(unit(9, 5, 1))
    x = backend.tensor(unit(3, 5, 2))
    found = backend.topk(x, points, 4)  # type: ignore[arg-type]
    want = backend.topk(unit(3, 5, 2), points, 4)
    del points, x
    backend._extension.inject_fault("vkQueueSubmit", 1, OUT_OF_DEVICE_MEMORY)
    with pytest.raises(OutOfMemory):
        backend.projx(unit(3, 5, 4))
    for seed in range(5):
        backend.projx(backend.tensor(unit(3, 4, seed)))  # type: ignore[arg-type]
    assert same_bits(read(found.scores, found.ids), [want.scores, want.ids])  # type: ignore[arg-type]


def test_memory_is_used_again_once_a_tensor_is_gone() -> None:
    backend = open_vulkan()
    x = backend.tensor(unit(64, 16, 1))
    for _ in range(4):  # until all programs are recorded
        x = backend.projx(x)  # type: ignore[arg-type,assignment]
    before = backend._engine.allocated
    for _ in range(20):
        x = backend.projx(x)  # type: ignore[arg-type,assignment]
    assert backend._engine.allocated == before
    assert backend._engine.idle > 0
    waiting = backend._engine.idle
    size = x.nbytes
    del x
    assert backend._engine.idle == waiting + size
    assert torch.allclose(backend.tensor(unit(64, 16, 1)).torch(), unit(64, 16, 1))


def test_tensors_keep_their_device_open() -> None:
    backend = open_vulkan()
    x = backend.tensor(unit(3, 5, 1))
    del backend
    gc.collect()
    assert torch.equal(x.torch(), unit(3, 5, 1))


def test_a_full_device_first_frees_what_no_tensor_uses() -> None:
    """Makes nine tensors of 4 MiB; the limit has space for three of them at once."""
    backend = open_vulkan(memory_limit=40 << 20)
    for rows in range(4096, 4105):
        assert backend.tensor(torch.zeros(rows, 256)).shape == (rows, 256)
    kept = []

    def fill() -> None:
        for _ in range(20):
            kept.append(backend.tensor(torch.zeros(4096, 256)))

    with pytest.raises(OutOfMemory, match="limit"):
        fill()
    assert len(kept) >= 3
    del kept[1:]
    assert not bool(backend.tensor(torch.zeros(4096, 256)).torch().any())


def test_threads_may_share_and_drop_tensors() -> None:
    backend = open_vulkan()
    x, u = unit(17, 9, 1), unit(17, 9, 2)
    shared = backend.tensor(x)
    want = backend.dist(x, backend.projx(u))
    wrong: list[Tensor] = []

    def use() -> None:
        for _ in range(20):
            got = backend.dist(shared, backend.projx(backend.tensor(u)))  # type: ignore[arg-type]
            if not torch.equal(got.torch(), want):  # type: ignore[attr-defined]
                wrong.append(got)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_tensors_of_another_device_are_refused_by_name() -> None:
    backend, other = open_vulkan(), open_vulkan()
    x, foreign = unit(3, 5, 1), other.tensor(unit(3, 5, 2))
    with pytest.raises(ArgumentError, match=r"u is a DeviceTensor .* opened by another backend"):
        backend.proju(x, foreign)  # type: ignore[arg-type]
    for name in ("cpu", "reference"):
        with pytest.raises(ArgumentError, match="u is a DeviceTensor"):
            select(name).proju(x, foreign)  # type: ignore[arg-type]


def test_tensors_that_do_not_fit_are_refused_by_name() -> None:
    backend = open_vulkan()
    points = backend.points(unit(9, 5, 1))
    x, zeros = unit(3, 5, 2), torch.zeros(3, 2)
    law = {"logw": zeros, "kappa": zeros, "log_background": torch.zeros(3)}
    low, high = torch.zeros(3, 2, dtype=torch.int64), torch.full((3, 2), 9)
    cases = [
        ("ids may hold 9, outside", {"ids": high}),
        ("x has shape", {"ids": low, "x": unit(3, 4, 2)}),
        ("logw has dtype", {"ids": low, "logw": low}),
        ("ids has dtype", {"ids": zeros}),
    ]
    for match, changed in cases:
        arguments = {**law, "x": x, **changed}
        with pytest.raises(ArgumentError, match=match):
            backend.energy_score(points=points, **moved(backend, arguments, list(changed)))
    for bad in (torch.zeros(3, 3, 3), zeros.double(), torch.full((3,), torch.nan), low - 1, torch.zeros(3, 0), zeros.T):
        with pytest.raises(ArgumentError, match="values"):
            backend.tensor(bad)
    levels = schedule()
    device_levels = type(levels)(backend.tensor(levels.kappa_scale), *list(vars(levels).values())[1:])  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"schedule\.kappa_scale is a DeviceTensor"):
        backend.langevin(x, tangent(x, 3), points, low, *law.values(), device_levels, seed=1)


def test_a_tensor_of_a_lost_device_says_so() -> None:
    backend = open_vulkan()
    x = backend.tensor(unit(3, 5, 1))
    backend._extension.inject_fault("vkQueueSubmit", 1, DEVICE_LOST)
    for use in (lambda: backend.projx(x), x.torch, x.numpy, lambda: backend.tensor(unit(3, 5, 1))):  # type: ignore[arg-type]
        with pytest.raises(DeviceLost, match="was lost"):
            use()


def test_out_of_memory_at_every_call_leaves_tensors_intact() -> None:
    arguments = OPERATIONS["energy_score"].arguments()
    want = run(open_vulkan(), OPERATIONS["energy_score"], arguments)
    for function in ("vkCreateBuffer", "vkAllocateMemory", "vkQueueSubmit", "vkCreateCommandPool"):
        for nth in range(1, 60):
            backend = open_vulkan()
            points = backend.points(arguments["points"])
            given = {**moved(backend, arguments, names_of_tensors(arguments)), "points": points}
            before = backend._extension.calls_of(function)
            backend._extension.inject_fault(function, nth, OUT_OF_DEVICE_MEMORY)
            try:
                backend.energy_score(**given)
                struck = False
            except (OutOfMemory, DeviceLost) as error:
                struck, lost = True, isinstance(error, DeviceLost)
            backend._extension.inject_fault(function, 0, 0)
            if struck and not lost:
                got = parts(backend.energy_score(**given))
                assert same_bits([part.torch() for part in got], want), (function, nth)
            if backend._extension.calls_of(function) - before < nth:
                break
