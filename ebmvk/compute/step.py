"""Training steps of torch, compiled: the front door of the compiler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ebmvk.compute.held import Held
from ebmvk.compute.programs import (
    Array,
    Backend,
    Compiled,
    Layout,
    Programs,
    Runner,
    Source,
    Tree,
    array_of,
    names_of,
)
from ebmvk.compute.rewrite import Limits
from ebmvk.errors import ArgumentError

TrainingStep = Callable[[Tree, Tree, Tree, Tree], tuple[Tree, Tree, Tree]]
"""(parameters, state, batch, scalars) -> (new parameters, new state, record)."""


@dataclass
class CompiledStep(Programs):
    """A training step that runs as planned programs, one for each set of shapes.

    Call it like the step itself: (parameters, state, batch, scalars) -> (parameters, state,
    record). To keep parameters and state on the device between steps, use `start`, `run` and
    `read`.

    chained: the programs of all steps of a chain, which share the arguments that they keep on the
    device; see `ebmvk.compute.chain`.
    """

    step: TrainingStep
    chained: list[Runner] | None = None
    _held: Held = field(default_factory=Held)

    def __call__(self, parameters: Tree, state: Tree, batch: Tree, scalars: Tree) -> tuple[Tree, Tree, Tree]:
        self.start(parameters, state)
        record = self.run(batch, scalars)
        return *self.read(), record

    def start(self, parameters: Tree, state: Tree) -> None:
        """Set the parameters and the state for the next `run`."""
        self._held.start(parameters, state)
        self._known = {}

    def ready(self, batch: Tree, scalars: Tree, making: Callable[[], None] = lambda: None) -> Compiled:
        """The program that `run` would run, with its parameters and state in place.

        making: called before a program is made, because making it takes a while.
        """
        return self._ready(batch, scalars, making)[0]

    def run(self, batch: Tree, scalars: Tree, making: Callable[[], None] = lambda: None) -> Tree:
        """One step; returns its record. Parameters and state stay on the device.

        making: as for `ready`.
        """
        compiled, fed = self._ready(batch, scalars, making)
        return self._run(compiled, fed)

    def read(self) -> tuple[Tree, Tree]:
        """Parameters and state as they are now, on the host."""
        return self._held.read(self.first)

    def lent(self) -> tuple[Tree, Runner]:
        """For `compile_function`: the parameters, whose values may be older than the device's, and
        a program that holds the current values.

        Raises ArgumentError if the step has no parameters or no program yet.
        """
        return self._held.lent(self.first, "Call start(parameters, state), then ready(batch, scalars).")

    def compile(self, parameters: Tree, state: Tree, batch: Tree, scalars: Tree) -> Compiled:
        """The program for these shapes, made now if it doesn't exist yet."""
        return self._compiled((parameters, state, batch, scalars))[0]

    def found(
        self, batch: Tree, scalars: Tree, making: Callable[[], None] = lambda: None
    ) -> tuple[Compiled, dict[int, Array]]:
        """The program for a batch, and the arrays that it is fed, by position. Unlike `ready`, this
        doesn't put parameters and state in place."""
        trees = self._held.trees
        leaves, spec = pytree.tree_flatten((batch, scalars))
        key = (str(spec), *((getattr(leaf, "shape", None), getattr(leaf, "dtype", None)) for leaf in leaves))
        compiled = self._known.get(key)
        if compiled is None:
            compiled = self._known[key] = self._compiled((*trees, batch, scalars), making)[0]
        return compiled, {compiled.layout.kept + number: array_of(leaf) for number, leaf in enumerate(leaves)}

    _known: dict[tuple[object, ...], Compiled] = field(default_factory=dict)
    _placed: set[str] = field(default_factory=set)

    def _ready(
        self, batch: Tree, scalars: Tree, making: Callable[[], None] = lambda: None
    ) -> tuple[Compiled, dict[int, Array]]:
        compiled, fed = self.found(batch, scalars, making)
        self._held.write(compiled.runner)
        return compiled, fed

    def _compiled(
        self, arguments: Sequence[Tree], making: Callable[[], None] = lambda: None
    ) -> tuple[Compiled, list[torch.Tensor]]:
        layout, leaves = Layout.of(arguments)
        compiled = self.programs.get(layout.key)
        if compiled is None:
            making()
            compiled = self._make(layout, leaves)
            self.programs[layout.key] = compiled
        return compiled, leaves

    def _make(self, layout: Layout, leaves: list[torch.Tensor]) -> Compiled:
        def stepped(parameters: Tree, state: Tree, batch: Tree, scalars: Tree) -> tuple[list[torch.Tensor], Tree]:
            new, new_state, record = self.step(parameters, state, batch, scalars)
            return _kept_leaves((parameters, state), (new, new_state), layout), record

        others = names_of(self.chained) - self._placed  # those of other steps
        placed = frozenset(number for number, name in enumerate(layout.names) if name in others)
        source = Source(stepped, "the record has", donated=layout.kept, placed=placed)
        like = self.first if self.chained is None else next(iter(self.chained), None)
        compiled = self._built(source, layout, leaves, self, like, alone=self.chained is None)
        if self.chained is not None:
            self.chained.append(compiled.runner)
            self._placed |= names_of(self.chained) - others
        return compiled


def compile_step(
    step: TrainingStep, *, backend: Backend = "vulkan", device: Any = None, check: bool = True,
    limits: Limits | None = None,
) -> CompiledStep:  # fmt: skip
    """A training step of torch as planned programs for a device.

    The step is a pure function of trees of tensors: (parameters, state, batch, scalars) -> (new
    parameters, new state, record). It computes its gradients itself, by torch.autograd.grad or
    torch.func, and updates parameters with torch operations, in place or not. Learning rates and
    step numbers are tensors in `scalars`. Programs are made at the first call with new shapes.

    Args:
        step: the function.
        backend: "vulkan", or "reference": the same program in numpy, for tests.
        device: a `Vulkan` or a `Recorder`, or a name such as "vulkan:1"; None means "vulkan".
        check: whether each new graph is run on other batches and compared with the step.
        limits: how large fused nodes may become; None for what the device allows.

    Raises:
        ArgumentError: at the first call, for arguments that aren't tensors or that nothing uses,
            for results whose shapes differ from the arguments that they replace, and for names of
            devices that aren't Vulkan devices.
        UnsupportedOperation: at the first call; names the operation and the line of the step.
    """
    return CompiledStep(step, backend=backend, device=device, check=check, limits=limits)


def _kept_leaves(old: Tree, new: Tree, layout: Layout) -> list[torch.Tensor]:
    """The new parameters and state, in the order of the old ones."""
    before, spec = pytree.tree_flatten(old)
    after, new_spec = pytree.tree_flatten(new)
    if spec != new_spec:
        raise ArgumentError(
            "the step returns parameters and state in another structure than it got them",
            hint="Return the same dicts and lists, with new tensors in them.",
        )
    for name, one, other in zip(layout.names, before, after, strict=False):
        if not isinstance(other, torch.Tensor) or one.shape != other.shape or one.dtype != other.dtype:
            got = f"{tuple(other.shape)} {other.dtype}" if isinstance(other, torch.Tensor) else repr(other)
            raise ArgumentError(
                f"the step turns {name}, {tuple(one.shape)} {one.dtype}, into {got}",
                hint="Return a tensor of the same shape and type.",
            )
    return list(after)
