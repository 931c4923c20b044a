"""Laws of all operations: they exist on every backend, are accurate, repeat bit for bit, and don't
depend on how a batch is split."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from op_problems import nmse
from op_table import OPERATIONS, Shape, assert_close, same_bits
from torch import Tensor

from ebmvk.engine import Backend, Scheme, select
from ebmvk.engine.integrators import INTEGRATORS
from ebmvk.engine.reference import Reference
from ebmvk.errors import OutOfMemory

# One of everything; primes; around blocks of 8, 16 and 32; more rows than a tile of queries has.
SHAPES = [Shape(1, 2, 1, 1), Shape(), Shape(3, 31, 8, 17), Shape(13, 33, 9, 40), Shape(37, 65, 17, 129)]


def test_the_table_has_every_operation() -> None:
    """These tests, and those of faults, arguments and validation, run over the table."""
    operations = {name for name in vars(Backend) if not name.startswith("_")} - {"name", "device", "points", "counts"}
    assert {op.method for op in OPERATIONS.values()} == operations
    schemes = {op.settings.get("scheme", "gbaoab") for op in OPERATIONS.values() if op.method == "langevin"}
    assert schemes == set(INTEGRATORS)


@pytest.fixture(scope="module")
def exact(oracle: Reference) -> Callable[[str, Shape, int], list[Tensor]]:
    """What the oracle computes of an operation's arguments (name, shape, seed): once for all
    backends."""
    return cache(lambda name, shape, seed: OPERATIONS[name].run(oracle, OPERATIONS[name].arguments(shape, seed)))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seed", [1, 2])
def test_results_match_the_oracle(
    backend: Backend, exact: Callable[[str, Shape, int], list[Tensor]], name: str, shape: Shape, seed: int
) -> None:
    op = OPERATIONS[name]
    assert_close(op, op.run(backend, op.arguments(shape, seed)), exact(name, shape, seed))


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_same_seed_gives_the_same_bits(backend: Backend, name: str) -> None:
    op = OPERATIONS[name]
    first = op.run(backend)
    op.run(backend, op.arguments(Shape(3, 9, 2, 11), 4))  # leave other numbers in the workspace
    assert same_bits(first, op.run(backend))
    if "seed" in op.arguments():
        assert not same_bits(first, op.run(backend, {**op.arguments(), "seed": 2**40 + 2**32}))


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "accumulate"])
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_splitting_the_batch_changes_no_bit(backend: Backend, name: str, shape: Shape) -> None:
    op = OPERATIONS[name]
    arguments = op.arguments(shape, 3)
    cuts = sorted({0, 1, shape.rows // 2, shape.rows})
    parts = [op.run(backend, op.part(arguments, *ends)) for ends in itertools.pairwise(cuts)]
    for i, whole in enumerate(op.run(backend, arguments)):
        pieces = [part[i] for part in parts]
        if name == "energy_score_backward" and i == 1:  # gradients of points are sums over rows
            torch.testing.assert_close(whole, sum(pieces, torch.zeros_like(whole)), rtol=1e-4, atol=1e-4)
        elif backend.name == "reference":  # torch chooses its matrix product by shape
            torch.testing.assert_close(whole, torch.cat(pieces), rtol=1e-4, atol=1e-4)
        else:
            assert torch.equal(whole, torch.cat(pieces)), i


def test_statistics_of_parts_add_up(backend: Backend) -> None:
    op = OPERATIONS["accumulate"]
    arguments = op.arguments(SHAPES[3], 3)
    whole = backend.accumulate(**arguments)
    parts = [backend.accumulate(**op.part(arguments, *ends)) for ends in ((0, 4), (4, 13))]
    torch.testing.assert_close(whole.mass, sum((part.mass for part in parts), torch.zeros_like(whole.mass)))
    total = sum((part.resultant for part in parts), torch.zeros_like(whole.resultant))
    torch.testing.assert_close(whole.resultant, total, rtol=1e-5, atol=1e-6)
    assert float(whole.counts.sum()) == pytest.approx(sum(float(part.counts.sum()) for part in parts), rel=1e-6)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_number_of_threads_changes_no_bit(cpu_kernels: Any, name: str) -> None:
    op, backend = OPERATIONS[name], select("cpu")
    arguments, threads = op.arguments(SHAPES[4], 5), cpu_kernels.threads()
    results: list[list[Tensor]] = []
    try:
        for count in (1, 2, 5):
            cpu_kernels.set_threads(count)
            results.append(op.run(backend, arguments))
    finally:
        cpu_kernels.set_threads(threads)
    assert all(same_bits(results[0], other) for other in results[1:])


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_empty_batch_gives_empty_results(backend: Backend, oracle: Reference, name: str) -> None:
    op = OPERATIONS[name]
    arguments = op.part(op.arguments(), 0, 0)
    got, want = op.run(backend, arguments), op.run(oracle, arguments)
    assert [a.shape for a in got] == [b.shape for b in want]
    assert not any(bool(a.float().abs().sum()) for a in got)


@pytest.mark.parametrize("scheme", INTEGRATORS)
def test_counters_work_up_to_their_largest_value(backend: Backend, oracle: Reference, scheme: Scheme) -> None:
    """Steps and chains may be numbered up to 2^32 - 1."""
    op = OPERATIONS["langevin"]
    last = {"scheme": scheme, "first_step": 2**32 - 5, "first_chain": 2**32 - 5}
    arguments = {**op.arguments(), **last}
    got, want = op.run(backend, arguments), op.run(oracle, arguments)
    assert nmse(got[0], want[0]) <= 1e-9
    assert not torch.allclose(got[0], arguments["x"], atol=1e-3)


def test_more_memory_than_the_host_has_is_a_typed_error(backend: Backend) -> None:
    """The sums would take 171 TB, more than a process can address."""
    op = OPERATIONS["accumulate"]
    with pytest.raises(OutOfMemory, match="accumulate"):
        op.run(backend, {**op.arguments(Shape(1, 20_000, 1, 1)), "n": 2**31 - 1})
