"""Functions of torch, compiled: forward passes, with their own parameters or those of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ebmvk.compute.held import Held
from ebmvk.compute.programs import Backend, Compiled, Layout, Programs, Runner, Source, Tree, Wanted, array_of
from ebmvk.compute.rewrite import Limits
from ebmvk.errors import ArgumentError

Function = Callable[[Tree, Tree], Tree]
"""(parameters, inputs) -> results."""
PARTS = ("parameters", "inputs")


class Lender(Wanted, Protocol):
    """Something, such as a training step, with parameters on a device that functions may read."""

    def lent(self) -> tuple[Tree, Runner]:
        """See `CompiledStep.lent`."""
        ...


@dataclass
class CompiledFunction(Programs):
    """A function that runs as planned programs, one for each set of shapes.

    Call it like the function itself: (parameters, inputs) -> results. To keep the parameters on the
    device between calls, use `start` and `run`; with `of`, use `run` alone.
    """

    function: Function
    of: Lender | None = None
    _held: Held = field(default_factory=lambda: Held("function", "Call start(parameters) before run."))

    def __call__(self, parameters: Tree, inputs: Tree) -> Tree:
        self.start(parameters)
        return self.run(inputs)

    def start(self, parameters: Tree) -> None:
        """Set the parameters for the next `run`.

        Raises ArgumentError if the function reads those of a training step (`of`).
        """
        if self.of is not None:
            raise ArgumentError("this function uses the parameters of a training step", hint="Call run(inputs) only.")
        self._held.start(parameters, ())

    def run(self, inputs: Tree, making: Callable[[], None] = lambda: None) -> Tree:
        """The results for some inputs.

        making: called before a program is made for new shapes, because making it takes a while.
        """
        compiled, leaves = self._ready(inputs, making)
        fed = {position: array_of(leaves[position]) for position in range(compiled.layout.kept, len(leaves))}
        return self._run(compiled, fed)

    def ready(self, inputs: Tree, making: Callable[[], None] = lambda: None) -> Compiled:
        """The program that `run` would run, with its parameters in place. making: as for `run`."""
        return self._ready(inputs, making)[0]

    def _ready(self, inputs: Tree, making: Callable[[], None]) -> tuple[Compiled, list[torch.Tensor]]:
        parameters, like = self._parameters()
        layout, leaves = Layout.of((parameters, inputs), PARTS)
        compiled = self.programs.get(layout.key)
        if compiled is None:
            making()
            compiled = self.programs[layout.key] = self._make(layout, leaves, like)
        if self.of is None:
            self._held.write(compiled.runner)
        return compiled, leaves

    def _parameters(self) -> tuple[Tree, Runner | None]:
        """The parameters, and a program that has them on the device."""
        if self.of is not None:
            return self.of.lent()
        return self._held.trees[0], self.first

    def _make(self, layout: Layout, leaves: list[torch.Tensor], like: Runner | None) -> Compiled:
        def called(parameters: Tree, inputs: Tree) -> tuple[Sequence[torch.Tensor], Tree]:
            return (), self.function(parameters, inputs)

        source = Source(called, "the function returns", spare=layout.kept)
        return self._built(source, layout, leaves, self.of or self, like, alone=True)


def compile_function(
    function: Function, *, of: Lender | None = None, backend: Backend = "vulkan", device: Any = None,
    check: bool = True, limits: Limits | None = None,
) -> CompiledFunction:  # fmt: skip
    """A function of torch as planned programs for a device: a forward pass, without an update.

    The function is pure, and takes and returns trees of tensors: (parameters, inputs) -> results.
    It must use every input, but needn't use every parameter. Parameters stay on the device; inputs
    go there and results come back at each run.

    Args:
        function: the function.
        of: a training step. The function reads the step's parameters on the step's device, as they
            are after its last run, without a copy. The step needs a program first: run the step,
            or call its `ready`.
        backend, device, check, limits: as for `compile_step`. With `of`, only `check` matters.

    Raises:
        ArgumentError: at the first call, for arguments or results that aren't tensors, and for
            inputs that nothing uses.
        UnsupportedOperation: at the first call; names the operation and the line of the function.
    """
    return CompiledFunction(function, of, backend=backend, device=device, check=check, limits=limits)
