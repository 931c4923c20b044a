"""Points larger than one allocation, and updates of some of their rows."""

from __future__ import annotations

import pytest
import torch
from op_table import OPERATIONS, Shape, same_bits
from torch import Tensor
from vulkan_open import open_vulkan, unit

from ebmvk.engine import Backend, Storage
from ebmvk.errors import ArgumentError, DeviceError, OutOfMemory

ROW = 4 * 36  # bytes of a row of 33 floats
OUT_OF_DEVICE_MEMORY = -2


@pytest.mark.parametrize("name", [name for name, op in OPERATIONS.items() if "points" in op.arguments()])
def test_points_may_be_larger_than_one_allocation(name: str) -> None:
    """700 rows where 480 would fit into the largest allocation, with guard bands of 2 KiB."""
    op = OPERATIONS[name]
    arguments = op.arguments(Shape(5, 33, 9, 700))
    small = open_vulkan(validate=True, guard=True, allocation_bytes=480 * ROW + 2048)
    points = small.points(arguments["points"])
    assert points.native.shards == 2
    assert points.nbytes == 700 * ROW > small.capabilities.max_allocation
    assert same_bits(op.run(small, arguments), op.run(open_vulkan(), arguments))
    assert small._engine.damaged_guards() == ""
    assert small._engine.take_messages() == []


def test_a_row_larger_than_an_allocation_is_refused() -> None:
    with pytest.raises(ArgumentError, match="allocates at most"):
        open_vulkan(allocation_bytes=4096).points(unit(20, 1024, 1))


def best(backend: Backend, points: object, d: int) -> list[Tensor]:
    found = backend.topk(unit(7, d, 5), points, 6)  # type: ignore[arg-type]
    return [found.scores, found.ids]


@pytest.mark.parametrize("storage", ["float32", "float16"])
@pytest.mark.parametrize("first", [0, 30, 93])
def test_rows_from_a_given_one_on_are_replaced(backend: Backend, storage: Storage, first: int) -> None:
    old, new = unit(100, 33, 1), unit(7, 33, 2)
    want = old.clone()
    want[first : first + 7] = new
    points = backend.points(old, storage)
    best(backend, points, 33)
    points.update(new, first=first)
    assert same_bits(best(backend, points, 33), best(backend, backend.points(want, storage), 33))


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_rows_with_some_ids_are_replaced(backend: Backend, storage: Storage) -> None:
    old, new, ids = unit(100, 33, 1), unit(5, 33, 2), torch.tensor([99, 0, 31, 32, 64])
    want = old.clone()
    want[ids] = new
    points = backend.points(old, storage)
    points.update(new, ids=ids)
    assert same_bits(best(backend, points, 33), best(backend, backend.points(want, storage), 33))
    points.update(new[:0], ids=ids[:0])
    assert same_bits(best(backend, points, 33), best(backend, backend.points(want, storage), 33))


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_updates_reach_every_shard(storage: Storage) -> None:
    """They also reach rows on both sides of a border, and the float16 copy of float32 rows."""
    backend = open_vulkan(validate=True, guard=True, shard_bytes=32 * ROW)
    backend._engine.set_coarse(storage == "float32")
    rows = unit(150, 33, 1)
    points = backend.points(rows, storage)
    assert points.native.shards > 2
    for seed, first in enumerate((0, 20, 30, 60, 145)):
        new = unit(5 if first == 145 else 80, 33, 10 + seed)[: 150 - first]
        rows[first : first + len(new)] = new
        points.update(new, first=first)
        ids = torch.randperm(150, generator=torch.Generator().manual_seed(seed))[:70]
        rows[ids] = unit(70, 33, 20 + seed)
        points.update(unit(70, 33, 20 + seed), ids=ids)
        assert same_bits(best(backend, points, 33), best(backend, backend.points(rows, storage), 33))
    assert backend._engine.damaged_guards() == ""
    assert backend._engine.take_messages() == []


def test_updates_that_do_not_fit_are_refused(backend: Backend) -> None:
    points = backend.points(unit(10, 4, 1))
    rows, ids = unit(3, 4, 2), torch.tensor([1, 2, 1])
    for match, given in (
        ("first", {"first": 8}),
        ("first", {"first": -1}),
        ("twice", {"ids": ids}),
        ("ids", {"ids": ids + 9}),
        ("ids", {"ids": ids[:2]}),
        ("both given", {"first": 1, "ids": ids}),
    ):
        with pytest.raises(ArgumentError, match=match):
            points.update(rows, **given)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="norm"):
        points.update(2 * rows, first=1)
    assert same_bits(best(backend, points, 4), best(backend, backend.points(unit(10, 4, 1)), 4))


def test_after_a_failed_update_only_a_whole_update_helps() -> None:
    backend = open_vulkan()
    old = unit(40, 8, 1)
    points = backend.points(old)
    for given in ({"first": 3}, {"ids": torch.tensor([3, 9])}):
        backend._extension.inject_fault("vkQueueSubmit", 1, OUT_OF_DEVICE_MEMORY)
        with pytest.raises(OutOfMemory):
            points.update(unit(2, 8, 2), **given)  # type: ignore[arg-type]
        for use in (lambda: points.update(unit(2, 8, 2), first=3), lambda: best(backend, points, 8)):
            with pytest.raises(DeviceError, match="update the points again"):
                use()
        points.update(old)
        assert same_bits(best(backend, points, 8), best(backend, backend.points(old), 8))
