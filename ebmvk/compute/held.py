"""Parameters and state, which steps and functions keep on the device. They wait on the host until
the first program is ready."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from ebmvk.compute.programs import Runner, Tree, kept_arrays
from ebmvk.errors import ArgumentError


class Held:
    """Parameters and state of one or several steps, or of a function.

    what, hint: for the message if parameters are missing.
    """

    def __init__(self, what: str = "step", hint: str = "Call start(parameters, state) first.") -> None:
        self._what, self._hint = what, hint
        self._trees: tuple[Tree, Any] | None = None
        self._written = False

    def start(self, parameters: Tree, state: Any) -> None:
        """New values, for `write`."""
        self._trees, self._written = (parameters, state), False

    @property
    def trees(self) -> tuple[Tree, Any]:
        """Parameters and state as `start` got them. Raises ArgumentError if it wasn't called."""
        if self._trees is None:
            raise ArgumentError(f"the {self._what} has no parameters yet", hint=self._hint)
        return self._trees

    def write(self, runner: Runner) -> None:
        """Write what `start` got to the device, unless this was done before."""
        if self._trees is not None and not self._written:
            runner.write(kept_arrays(*self._trees))
            self._written = True

    def read(self, runner: Runner | None, state: Any = None) -> tuple[Tree, Any]:
        """Parameters and state as they are now, on the host.

        runner: the program; None if there isn't one. state: the part of the state to read; None for
        all.
        """
        parameters, whole = self.trees
        wanted = (parameters, whole if state is None else state)
        if runner is None or not self._written:
            return wanted
        arrays = runner.read(list(kept_arrays(*wanted)))
        leaves, spec = pytree.tree_flatten(wanted)
        values = [torch.from_numpy(own).to(leaf.dtype) for own, leaf in zip(arrays.values(), leaves, strict=True)]
        found: tuple[Tree, Any] = pytree.tree_unflatten(values, spec)
        return found

    def lent(self, runner: Runner | None, hint: str) -> tuple[Tree, Runner]:
        """Parameters, whose values may be older than the device's, and a program that holds their
        current values.

        hint: for the message. Raises ArgumentError if parameters or the program are missing.
        """
        if self._trees is None or runner is None:
            raise ArgumentError("the step has no program yet, so it can't share its parameters", hint=hint)
        self.write(runner)
        return self._trees[0], runner
