"""Compares this package's own operations, in compiled steps, with their references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from ebmvk.compute.capture import graph_of
from ebmvk.compute.compiled import Compiled
from ebmvk.compute.lower import lower
from ebmvk.compute.step import compile_step
from ebmvk.engine import library
from ebmvk.engine.dropout import words_of
from ebmvk.engine.recording import Recorder
from ebmvk.model import grouped, integration, tiles
from ebmvk.objective import cross_entropy


def routed(rows: int, active: int, experts: int, chosen: str) -> Tensor:
    """(A, N) experts; the choices of a row are different experts."""
    if chosen == "all the same":
        return torch.arange(active)[:, None].expand(active, rows).contiguous()
    return torch.stack([torch.randperm(experts)[:active] for _ in range(rows)], 1)


@pytest.mark.parametrize("chosen", ["any", "all the same"])
@pytest.mark.parametrize(
    ("rows", "active", "experts"), [(13, 2, 4), (8, 1, 3), (1, 1, 2), (64, 3, 8), (5, 4, 4), (2, 1, 7)]
)
def test_experts_by_tiles_are_the_experts(rows: int, active: int, experts: int, chosen: str) -> None:
    """Both compute in float64, so only the order of sums differs. The number of tiles depends only
    on shapes."""
    torch.manual_seed(rows)
    x, weights, grad = (torch.randn(shape, dtype=torch.float64) for shape in ((rows, 5), (active, rows), (rows, 3)))
    up, down = (torch.randn(shape, dtype=torch.float64) for shape in ((experts, 6, 5), (experts, 3, 6)))
    every = routed(rows, active, experts, chosen)
    wanted, found = (function(x, weights, every, up, down) for function in (grouped.reference, tiles.experts))
    assert_close(found[0], wanted[0])
    assert len(found[1]) == tiles.count(active * rows, experts)
    assert len(found[2]) <= active * rows + experts * tiles.height(active * rows, experts)
    of_wanted = grouped.reference_backward(grad, weights, up, down, *wanted[1:])
    of_found = tiles.experts_backward(grad, weights, up, down, *found[1:])
    for one, other in zip(of_found, of_wanted, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 10, 11])
def test_cross_entropy_by_chunks_is_the_cross_entropy(
    chunk: int, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No tensor in it is larger than a chunk of logits, the arguments or the results."""
    monkeypatch.setattr(cross_entropy, "COMPILED_ELEMENTS", chunk * 31)
    torch.manual_seed(chunk)
    query, points, bias = (torch.randn(shape, dtype=torch.float64) for shape in ((10, 4), (31, 4), (31,)))
    targets, weights = torch.randint(31, (10,)), torch.rand(10, dtype=torch.float64) if weighted else None
    arguments = (query, points, bias, targets, weights, torch.float64)
    compiled: Any = cross_entropy._compiled
    for found, wanted in zip(compiled(*arguments), cross_entropy.reference(*arguments), strict=True):
        assert_close(found, wanted)
    given = [argument for argument in arguments[:5] if argument is not None]
    rest = arguments[len(given) :]
    graph = make_fx(lambda *tensors: compiled(*tensors, *rest), tracing_mode="fake")(*given)
    made = [node.meta["val"] for node in graph.graph.nodes if isinstance(node.meta.get("val"), Tensor)]
    assert max(value.numel() for value in made) <= max(chunk * 31, 31 * 4)


def examples(forward: Callable[..., Any]) -> dict[str, tuple[Any, ...]]:
    """{operation: arguments}. Matrices lie in memory column by column.

    forward: the forward operation of experts, whose results the gradient of experts takes.
    """
    torch.manual_seed(1)
    rows, x, grad = torch.randn(10, 4), torch.randn(9, 5), torch.randn(9, 3)
    up, down, weights = torch.randn(4, 6, 5), torch.randn(4, 3, 6), torch.rand(2, 9)
    chosen = routed(9, 2, 4, "any")
    wide = covariance(16, 4)
    halves, part = integration._halves(wide), integration._search(wide)[1]
    slope = (torch.tensor(0.3, dtype=torch.float64), wide, part)
    made = {
        "dropout": (x, words_of(3, 1, 2), 5, 99),
        "normals": (words_of(3, 1, 2), torch.arange(9), 7),
        "linear_cross_entropy": (rows, torch.randn(31, 4), torch.randn(31), torch.arange(10), None, torch.float32),
        "experts": (x, weights, chosen, up, down),
        "experts_backward": (grad, weights, up, down, *forward(x, weights, chosen, up, down)[1:]),
        "least_information": (wide,),
        "least_information_backward": slope,
        "weakest_cut": halves,
        "inverse": tuple(part.expand(2, 16, 16) for part in halves),
    }
    columns: Callable[[Any], Any] = lambda own: own.mT.contiguous().mT if own.dim() > 1 else own  # noqa: E731
    return {
        name: tuple(columns(own) if isinstance(own, Tensor) else own for own in arguments)
        for name, arguments in made.items()
    }


def test_results_of_operations_lie_in_row_major_order() -> None:
    """So do the results of the operations' fakes. If they differed, a graph that was traced with
    fakes would fail at its first view."""
    ways: dict[Callable[..., Any], Callable[[Any], Callable[..., Any]]] = {
        grouped.experts: lambda operation: operation,
        grouped.reference: library.reference_of,
        tiles.experts: lambda operation: library.APART.get(operation, operation),
    }
    for forward, way in ways.items():
        every = examples(forward)
        assert set(every) == set(library.REFERENCES)
        for name, arguments in every.items():
            operation = getattr(torch.ops.ebmvk, name).default
            found = way(operation)(*arguments)
            for part in found if isinstance(found, tuple) else (found,):
                assert part.is_contiguous(), name
            if forward is grouped.experts:
                torch.library.opcheck(operation, arguments, test_utils="test_faketensor")


def covariance(units: int, rank: int, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    mixed = torch.randn(100, rank, dtype=torch.float64) @ torch.randn(rank, units, dtype=torch.float64)
    return integration.correlation(mixed)


UNITS = [(16, 4), (16, 40), (5, 9), (2, 3), (3, 1)]


@pytest.mark.parametrize(("units", "rank"), UNITS)
def test_integration_in_pairs_is_that_of_float64(units: int, rank: int) -> None:
    """The cut is the same. The gradient's error is at most 1e-9 of its norm (float32: 1e-2)."""
    wide = covariance(units, rank)
    halves, grad = integration._halves(wide), torch.tensor(0.3, dtype=torch.float64)
    wanted, part = integration._search(wide)
    (high, low), found = integration._search_of_pairs(halves)
    assert torch.equal(found, part)
    assert_close(high.double() + low, wanted, rtol=1e-6, atol=1e-6)
    slope = integration._joined(*integration._slope_of_pairs(integration._halves(grad), halves, part))
    exact = integration._slope(grad, wide, part)
    assert float((slope - exact).norm() / exact.norm()) <= 1e-9


@pytest.mark.parametrize(("units", "rank"), UNITS)
def test_a_device_finds_the_weakest_cut_and_its_gradient(units: int, rank: int, recorder: Recorder) -> None:
    """Both are as in float64, for any rank of the covariance."""
    wide = covariance(units, rank, 1)
    high, low = integration._halves(wide)

    def called(high: Tensor, low: Tensor) -> list[Tensor]:
        (found, _), part = integration._search_of_pairs((high, low))
        return [found, part, *integration._slope_of_pairs((found, torch.zeros_like(found)), (high, low), part)]

    program = lower(graph_of(called, [high, low]))
    ran = Compiled(recorder, program).run({0: high.numpy(), 1: low.numpy()}).outputs
    wanted, part = integration._search(wide)
    assert abs(float(ran[0]) - float(wanted)) <= 2e-5  # nats: sums of up to 32 logarithms in float32
    assert torch.equal(torch.from_numpy(ran[1]).bool(), part)
    exact = integration._slope(torch.tensor(float(ran[0]), dtype=torch.float64), wide, part)
    slope = integration._joined(torch.from_numpy(ran[2]), torch.from_numpy(ran[3]))
    assert float((slope - exact).norm() / exact.norm()) <= 1e-9


@pytest.mark.parametrize("kinds", [1, 2, 3])
def test_parameters_with_different_rules_lie_in_blocks_of_their_own(kinds: int) -> None:
    """There are three tensors of each kind. Each kind is one loop, and no result is lost."""
    shapes = [(2, 3), (5,), (4, 1)]
    names = [f"{kind}.{n}" for kind in range(kinds) for n in range(len(shapes))]
    parameters = {name: torch.randn(shapes[int(name[-1])]) for name in names}

    def step(parameters: Any, state: Any, batch: Any, scalars: Any) -> Any:
        new = {}
        for name, value in parameters.items():
            rate = 1.0 + int(name[0])
            new[name] = value * (1 - scalars["lr"] * rate) - batch[name].exp() * scalars["lr"]
        return new, state, {"sum": sum(value.sum() for value in batch.values())}

    batch = {name: torch.randn_like(value) for name, value in parameters.items()}
    arguments = (parameters, {}, batch, {"lr": torch.tensor(0.1)})
    compiled = compile_step(step, backend="reference", check=False)
    for found, wanted in zip(compiled(*arguments)[0].values(), step(*arguments)[0].values(), strict=True):
        assert_close(found, wanted)


@pytest.mark.parametrize(("shape", "offset"), [((4, 4), 0), ((3, 5), 1), ((5, 3), -2), ((2, 3, 4), 0)])
def test_values_are_put_on_diagonals(shape: tuple[int, ...], offset: int) -> None:
    torch.manual_seed(0)
    x, dims = torch.randn(shape), (-2, -1)
    source = torch.randn_like(torch.diagonal(x, offset, *dims))
    captured = graph_of(lambda x, s: [torch.diagonal_scatter(x, s, offset, *dims)], [x, source])
    assert torch.equal(captured.graph(x, source)[0], torch.diagonal_scatter(x, source, offset, *dims))
