"""Tests float64 inside a step, on devices without float64: pairs of float32 keep its digits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from ebmvk.compute import oracle
from ebmvk.compute.capture import graph_of
from ebmvk.compute.fuse import fuse
from ebmvk.compute.lower import lower
from ebmvk.compute.narrow import wide
from ebmvk.errors import UnsupportedOperation


def covariance(x: Tensor) -> Tensor:
    """A covariance whose columns nearly cancel: float32 would keep one digit of the difference."""
    x = x.double()
    mean = x.mean(0)
    return x.T @ x / len(x) - mean[:, None] * mean


def scaled(x: Tensor) -> Tensor:
    own = covariance(x)
    scale = (own.diagonal().clamp_min(0) + 1e-12).rsqrt()
    return scale[:, None] * own * scale * (1 - 1e-4) + 1e-4 * torch.eye(len(own), dtype=torch.float64)


def gradient(x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad((scaled(x) * covariance(x)).sum(), x)[0]


def counted(x: Tensor) -> Tensor:
    """Whole numbers between 2^24 and 2^31, quotients, sums of parts."""
    big = (x[:, 0] * 5e8).long().double()
    parts = torch.cat([big, x.double().flatten(), torch.stack([big.sum(), big.mean()])])
    first, second = torch.split(parts / 7, [3, len(parts) - 3])
    return torch.where(second > 1, second, -second)[: len(first)] + first - 1 / 3


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    function.__name__: function for function in (covariance, scaled, gradient, counted)
}
CASES = {"covariance": 1e-12, "scaled": 1e-7, "gradient": 1e-7, "counted": 1e-13}
"""Allowed errors of pairs, which have 48 bits. Sums of products near 9 have errors of 4e-15, which
the differences in `scaled` divide by 1e-4. float32 would be 5,000 times as far off. `gradient` ends
in float32."""


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        pytest.param(name, rows, marks=[pytest.mark.slow] if name == "gradient" and rows < 37 else [])
        for name in CASES
        for rows in (1, 3, 37)
    ],
)
def test_a_graph_of_pairs_has_the_digits_of_float64(name: str, rows: int) -> None:
    """The results aren't rounded at the end: the low part is the value minus its float32 value."""
    torch.manual_seed(rows)
    x = 3 + 0.01 * torch.randn(max(rows, 4) if name == "counted" else rows, 3)

    def both(x: Tensor) -> list[Tensor]:
        found = FUNCTIONS[name](x).double()
        high = found.float()
        return [high, (found - high.double()).float()]

    captured = graph_of(both, [x])
    assert not wide(captured.graph)
    wanted = FUNCTIONS[name](x).double()
    program = lower(captured)
    for found in (captured.graph(x), oracle.run(fuse(program), [x.numpy()], np.float32)):
        high, low = (torch.as_tensor(part).double() for part in found)
        error = float((high.reshape(wanted.shape) + low.reshape(wanted.shape) - wanted).abs().max())
        assert error <= CASES[name] * max(1.0, float(wanted.abs().max()))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "columns": lambda x: x.T.contiguous().T,
    "every second": lambda x: x.repeat(1, 2)[:, ::2],
    "repeated": lambda x: x[:1].expand(4, -1),
}
RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "copy": lambda x: x * 1,
    "where": lambda x: torch.where(x > 3, x, x / 3),
    "parts": lambda x: torch.cat([x.T, x.T])[:, 1:],
    "type": lambda x: x,
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pairs_lie_in_memory_like_what_they_replace(rule: str, layout: str) -> None:
    """Later operations were traced with the strides of float64. The strides decide whether a view
    is possible, and as_strided counts elements in memory."""

    def called(x: Tensor) -> list[Tensor]:
        wide = RULES[rule](LAYOUTS[layout](x).double())
        narrow = wide.float()
        dense = min(narrow.stride()) == 1
        every = (narrow.numel(),)
        return [wide.flatten().float(), narrow.flatten()] + ([narrow.as_strided(every, (1,), 0)] if dense else [])

    x = 3 + torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    captured = graph_of(called, [x])
    assert not wide(captured.graph)
    wanted = called(x)
    for number, found in enumerate(captured.graph(x)):
        torch.testing.assert_close(found, wanted[number], rtol=1e-7, atol=0)
    if narrow_is_in_rows(wanted):
        for number, array in enumerate(oracle.run(lower(captured), [x.numpy()], np.float32)):
            torch.testing.assert_close(torch.as_tensor(array), wanted[number], rtol=1e-7, atol=0)


def narrow_is_in_rows(results: list[Tensor]) -> bool:
    """True if the elements lie in memory in row-major order, which as_strided needs on a device."""
    return len(results) < 3 or torch.equal(results[1], results[2])


def test_what_has_no_pairs_is_refused_by_name() -> None:
    def called(x: Tensor) -> list[Tensor]:
        return [torch.linalg.eigvalsh((x.T @ x).double()).float()]

    with pytest.raises(UnsupportedOperation, match=r"eigh.*float64"):
        graph_of(called, [torch.rand(3, 2)])
    with pytest.raises(UnsupportedOperation, match="a result of float64"):
        graph_of(lambda x: [x.double()], [torch.rand(3)])
    with pytest.raises(UnsupportedOperation, match="an argument of float64"):
        graph_of(lambda x: [x.float()], [torch.rand(3, dtype=torch.float64)])


def test_constants_stay_in_float64() -> None:
    """The host computes the nodes that don't depend on an argument."""
    captured = graph_of(lambda x: [x * torch.arange(5, dtype=torch.float64).cos().float()], [torch.rand(5)])
    assert [
        node for node in captured.graph.graph.nodes if getattr(node.meta.get("val"), "dtype", None) == torch.float64
    ]
