"""Samples of torch's own tests (OpInfo) as functions of tensors, for the tests of the compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ebmvk.compute import primitives

Results = list[torch.Tensor]


@dataclass(frozen=True)
class Sample:
    """A call of an operation.

    inputs: all tensors among its arguments, without gradients. wanted: positions of the inputs that
    get gradients. call: takes such inputs and returns the results that are tensors.
    """

    inputs: list[torch.Tensor]
    wanted: list[int]
    call: Callable[..., Results]

    def gradients(self, *values: torch.Tensor) -> Results:
        """Gradients of a weighted sum of the results; none if no result depends on the inputs."""
        leaves = [v.detach().requires_grad_() if n in self.wanted else v for n, v in enumerate(values)]
        results = [r for r in self.call(*leaves) if r.requires_grad]
        if not results:
            return []
        weights = [torch.cos(torch.arange(r.numel(), dtype=r.dtype)).reshape(r.shape) for r in results]
        found = torch.autograd.grad(results, [leaves[n] for n in self.wanted], weights, allow_unused=True)
        return [gradient for gradient in found if gradient is not None]


def samples(op: Any, *, gradients: bool) -> Iterator[Sample]:
    """The float32 samples of an OpInfo."""
    torch.manual_seed(0)
    # torch looks for a unittest.TestCase in all frames and their source files. This search takes
    # longer than most samples, and finds nothing here.
    with ExitStack() as patches:
        for module in ("common_utils", "opinfo.core"):
            name = f"torch.testing._internal.{module}.extract_test_fn"
            patches.enter_context(mock.patch(name, return_value=None, create=True))
        found = op.sample_inputs("cpu", torch.float32, requires_grad=gradients)
    for sample in found:
        yield _sample(op, sample)


def _sample(op: Any, sample: Any) -> Sample:
    leaves, spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
    places = [n for n, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    wanted = [number for number, n in enumerate(places) if leaves[n].requires_grad]

    def call(*values: torch.Tensor) -> Results:
        given = list(leaves)
        for n, value in zip(places, values, strict=True):
            given[n] = value.clone()  # some operations change their arguments
        first, args, options = pytree.tree_unflatten(given, spec)
        result = sample.output_process_fn_grad(op(first, *args, **options))
        return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]

    return Sample([leaves[n].detach() for n in places], wanted, call)


def together(parts: Sequence[Sample], *, gradients: bool) -> tuple[Callable[..., Results], Results]:
    """One function of the inputs of several samples, and these inputs. One trace for all is faster,
    because a trace takes longer than a run."""

    def call(*values: torch.Tensor) -> Results:
        found: Results = []
        start = 0
        for part in parts:
            own = values[start : start + len(part.inputs)]
            start += len(part.inputs)
            found += part.gradients(*own) if gradients else part.call(*own)
        return found

    return call, [value for part in parts for value in part.inputs]


def in_float64(function: Callable[..., Results], inputs: Sequence[torch.Tensor]) -> Results:
    """The function of the same numbers, in float64."""
    old = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return function(*(value.double() if value.dtype == torch.float32 else value for value in inputs))
    finally:
        torch.set_default_dtype(old)


class _Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet, _, overload = primitives.overload(func).rpartition(".")
        if not packet.endswith("__"):
            packet = packet.removesuffix("_")  # in-place operations count as the others
        self.names.add(f"{packet}.{overload}")
        return func(*args, **(kwargs or {}))


def called(parts: Sequence[Sample], *, gradients: bool) -> set[str]:
    """The operations of torch that samples call, by the names of the table of primitives."""
    function, inputs = together(parts, gradients=gradients)
    with _Calls() as calls, sdpa_kernel(SDPBackend.MATH):
        function(*inputs)
    return calls.names
