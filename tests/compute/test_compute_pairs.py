"""float64 inside a step, on devices that have none: pairs of float32 that carry its digits."""

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
    """Columns that nearly cancel: float32 would keep one digit of the difference."""
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
"""Errors of pairs, which have 48 bits: 4e-15 of sums of products near 9, which the differences of
`scaled` divide by 1e-4; float32 would be 5,000 times as far off. `gradient` ends in float32."""


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rows", [1, 3, 37])
def test_a_graph_of_pairs_has_the_digits_of_float64(name: str, rows: int) -> None:
    """Without rounding at the end: the value minus its float32, as a float32, is the low part."""
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
    """The host computes what depends on no argument."""
    captured = graph_of(lambda x: [x * torch.arange(5, dtype=torch.float64).cos().float()], [torch.rand(5)])
    assert [
        node for node in captured.graph.graph.nodes if getattr(node.meta.get("val"), "dtype", None) == torch.float64
    ]
