"""Tests that steps with in-place changes, and operations that are taken apart once, equal torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ebmvk.compute import functional
from ebmvk.compute.capture import capture

Step = Callable[[torch.Tensor, torch.Tensor], list[torch.Tensor]]


def whole(x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    made = x.clone()
    before = made + 1
    made.mul_(y).add_(before, alpha=2)
    return [before, made, made.clamp_(max=1)]


def other_type(x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    return [x.clone().gt_(y), torch.zeros(3, 4, dtype=torch.int32).add_((y > 0).int())]


def out_of_another(x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    made = x.clone()
    torch.mul(x, y, out=made)
    return [made + 1]


def argument(x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    x.lerp_(y, 0.25)
    return [x * y]


def view_read_before(x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    made = x.clone()
    row = made[0] * 2
    made.add_(y)
    return [row, made[1]]


def view_read_after(x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    made = x.clone()
    row = made[0]
    made.add_(y)
    return [row * 2, made]


def view_changed(x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    made = x.clone()
    made[:, 1].mul_(3)
    made.view(-1)[5:].zero_()
    return [made + y]


def parts_of_one(x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    first, second = (x + y).split(2, dim=1)
    total = torch.nn.functional.gelu(first) - torch.nn.functional.gelu(second)
    return [total, torch.nn.functional.gelu(total.repeat(1, 2)), x.var(1), y.var(1)]


def equal_in_float64(x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    """Two results of one operation, which meet in another one."""
    first, second = (torch.nn.functional.silu(part).double() for part in (x, y))
    return [(first * second - first / (second + 4)).float()]


WHOLE = [whole, other_type, out_of_another, argument, view_read_before, parts_of_one, equal_in_float64]
SEEN = [view_read_after, view_changed]


@pytest.mark.parametrize("step", [*WHOLE, *SEEN], ids=lambda step: step.__name__)
def test_graphs_without_changes_equal_the_step(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results and changed arguments are equal, also for arguments other than the trace's. Only
    changes that are visible through views need a trace of the whole graph."""
    made: list[bool] = []
    one_by_one = functional.functional

    def noted(*args: object) -> object:
        made.append(False)
        result = one_by_one(*args)  # type: ignore[arg-type]
        made[-1] = True
        return result

    monkeypatch.setattr("ebmvk.compute.capture.functional", noted)
    torch.manual_seed(0)
    graph = capture(step, [torch.randn(3, 4), torch.randn(3, 4)], others=[]).graph
    assert made == [step in WHOLE]
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    given, expected_from = (x.clone(), y.clone()), (x.clone(), y.clone())
    expected = step(*expected_from)
    for got, want in zip([*graph(*given), *given], [*expected, *expected_from], strict=True):
        # The formulas are the same, except for gelu, silu and the pairs of float32.
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    changes = [node for node in graph.graph.nodes if node.op == "call_function" and "copy_" in str(node.target)]
    assert len(changes) == (step is argument)
