"""Compares a graph with the step that it was traced from, on arguments other than the trace's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from ebmvk.errors import UnsupportedOperation

Step = Callable[..., Sequence[torch.Tensor]]
"""A function that takes tensors one by one and returns a sequence of tensors."""


def variations(examples: Sequence[torch.Tensor], count: int = 2) -> list[list[torch.Tensor]]:
    """Other arguments of the same shapes: integers in another order, floats changed by some per
    cent. Positive numbers stay positive, and zeros become positive."""
    return [[_varied(example, 1000 * seed + n) for n, example in enumerate(examples)] for seed in range(1, count + 1)]


def _varied(example: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    value = example.detach()
    if value.is_floating_point():
        factor = 1 + 0.1 * (2 * torch.rand(value.shape, generator=generator, dtype=value.dtype) - 1)
        noise = torch.rand(value.shape, generator=generator, dtype=value.dtype)
        scale = value.abs().mean() if value.numel() else 0
        moved = value * factor + 0.05 * noise * (scale or 0.1)
        return torch.where(torch.isfinite(value), moved, value)
    if value.dim() == 0:
        return value if value.dtype == torch.bool else value + seed % 3 + 1
    order = torch.randperm(value.numel(), generator=generator)
    return value.reshape(-1)[order].reshape(value.shape)


LARGE = 2**28
"""A graph whose results have at least this many elements in all is large: it is compared on one
other batch, because each takes as long as three steps in torch on the host. A second batch would
only find numbers that are equal in the trace and in the next run, but differ later. Such numbers
come from the step's Python code, so a small run of the same code finds them."""


def others(graph: fx.GraphModule, examples: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """The arguments on which a graph must agree with its step: two sets; one for a large graph."""
    results = (node.meta.get("val") for node in graph.graph.nodes)
    elements = sum(value.numel() for value in results if isinstance(value, torch.Tensor))
    return variations(examples, 2 if elements < LARGE else 1)


SAME, OTHER_FORMULAS = 3e-6, 2e-3
"""The first graph runs the step's own operations, so only the order of sums may differ. The second
graph uses other formulas for some operations."""


def agree(
    step: Step, graphs: Sequence[tuple[fx.GraphModule, float]], arguments: Sequence[torch.Tensor], names: Sequence[str]
) -> None:
    """Raises UnsupportedOperation if a graph's results differ from the step's by more than its
    tolerance."""

    def copies() -> list[torch.Tensor]:
        return [argument.detach().clone() for argument in arguments]

    eager_in = copies()
    with sdpa_kernel(SDPBackend.MATH):
        expected = [result.detach() for result in step(*eager_in)]
        for graph, tolerance in graphs:
            changed = copies()
            with torch.no_grad():
                results = graph(*changed)
            everything = zip([*expected, *eager_in], [*results, *changed], strict=True)
            for number, (want, got) in enumerate(everything):
                error = _relative(got, want)
                if not error <= tolerance:
                    what = f"result {number}" if number < len(expected) else names[number - len(expected)]
                    raise UnsupportedOperation(
                        f"the compiled step isn't the step itself: on another batch, {what} differs by {error:.2g} "
                        f"of its norm",
                        why="Some value was read while tracing and became a constant, or the step isn't a pure "
                        "function.",
                        hint="Look for numbers that depend on tensors, for random numbers and for global state.",
                    )


def _relative(got: torch.Tensor, want: torch.Tensor) -> float:
    """The norm of the difference divided by the norm of `want`. Equal infinities, and NaN in both,
    count as equal."""
    a, b = got.detach().double(), want.detach().double()
    same = (a == b) | (torch.isnan(a) & torch.isnan(b))
    difference = torch.where(same, torch.zeros_like(a), a - b).norm()
    return float(difference / torch.where(torch.isfinite(b), b, torch.zeros_like(b)).norm().clamp_min(1e-12))
