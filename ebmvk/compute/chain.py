"""Runs several steps over the same parameters and state one after another, with a single wait for
the device: for example, passes over parts of a batch, and then the update."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ebmvk.compute.compiled import Compiled as OnDevice
from ebmvk.compute.held import Held
from ebmvk.compute.profile import Profile, profile
from ebmvk.compute.programs import Array, Backend, Compiled, Operations, Runner, Tree, opened
from ebmvk.compute.rewrite import Limits
from ebmvk.compute.sequence import Sequence as InSequence
from ebmvk.compute.step import CompiledStep, TrainingStep
from ebmvk.engine.recording import Ran
from ebmvk.errors import ArgumentError


@dataclass(frozen=True)
class Link:
    """One step of a chain. keeps: the entries of the state that the step gets and returns."""

    step: TrainingStep
    keeps: Collection[str]


@dataclass(frozen=True)
class Call:
    """One run of a step. step: its name in the chain."""

    step: str
    batch: Tree
    scalars: Tree


class Chain:
    """Compiled steps over the same parameters and state.

    Each step is a function (parameters, part of the state, batch, scalars) -> (parameters, part of
    the state, record). It also returns what it doesn't change. A step that is called several times
    in a run is compiled once.

    Args:
        links: the steps, by name. Arguments are placed on the device in this order, so a step that
            updates many of them together must come before steps that only read them.
        backend, device, check, limits: see `compile_step`.

    Attributes:
        ran: what the last run did on the device; None in numpy. cpu_ops: the number of torch's
            operations on the host between the run's submission and its end.
    """

    def __init__(
        self, links: Mapping[str, Link], *, backend: Backend = "vulkan", device: Any = None, check: bool = True,
        limits: Limits | None = None,
    ) -> None:  # fmt: skip
        device = opened(device) if backend == "vulkan" else None
        self.backend, self.device, self.recorder, self.limits = backend, device, device, limits
        self._keeps = {name: set(link.keeps) for name, link in links.items()}
        runners: list[Runner] = []
        self.steps = {
            name: CompiledStep(
                link.step, runners, backend=backend, device=device, check=check, limits=limits
            )
            for name, link in links.items()
        }  # fmt: skip
        self.ran: Ran | None = None
        self.cpu_ops = 0
        self._held = Held()
        self._sequences: dict[tuple[object, ...], InSequence] = {}

    def start(self, parameters: Tree, state: Mapping[str, Tree]) -> None:
        """Set the parameters and the state for the next `run`."""
        self._held.start(parameters, dict(state))
        for name, step in self.steps.items():
            step.start(parameters, {key: own for key, own in state.items() if key in self._keeps[name]})

    def prepare(self, calls: Sequence[Call], making: Callable[[], None] = lambda: None) -> list[Compiled]:
        """The programs of some calls, with parameters and state in place. The first time, prepare
        everything that later runs will call.

        making: called before a program is made, because making it takes a while.

        Raises as `compile_step`, and OutOfMemory.
        """
        return [compiled for compiled, _ in self._found(calls, making)]

    def ready(
        self, calls: Sequence[Call], making: Callable[[], None] = lambda: None, *,
        given: Sequence[str] = (), taken: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Make everything that `run` needs. given, taken: as for `run`. Raises as `prepare`."""
        programs = self.prepare(calls, making)
        if isinstance(programs[0].runner, OnDevice):
            self._sequence(programs, tuple(given), tuple(taken))

    def run(
        self, calls: Sequence[Call], making: Callable[[], None] = lambda: None, *,
        given: Mapping[str, torch.Tensor] | None = None, taken: Sequence[str] = (),
    ) -> tuple[list[Tree], dict[str, torch.Tensor]]:  # fmt: skip
        """Run steps one after another, with one wait.

        Args:
            given: values to write to kept arguments before the run, by names such as "state['x']".
            taken: names of kept arguments to bring to the host after the run.

        Returns:
            The record of each call, and the arguments taken.
        """
        found = self._found(calls, making)
        programs = [compiled for compiled, _ in found]
        arrays = {name: value.numpy() for name, value in (given or {}).items()}
        with Operations() as operations:
            outputs, brought = self._run(programs, [fed for _, fed in found], arrays, taken)
        self.cpu_ops = operations.count
        records = [compiled.recorded(own) for compiled, own in zip(programs, outputs, strict=True)]
        return records, {name: torch.from_numpy(array) for name, array in brought.items()}

    def profile(self, calls: Sequence[Call], making: Callable[[], None] = lambda: None) -> list[Profile]:
        """Measure the program of each call, as `profile.profile` does. Parameters and state stay as
        they are. Raises ArgumentError if the steps run in numpy."""
        found = []
        for compiled, fed in self._found(calls, making):
            if not isinstance(compiled.runner, OnDevice):
                raise ArgumentError("a chain in numpy has no kernels to measure", hint='Use backend="vulkan".')
            found.append(profile(compiled.runner, fed))
        return found

    def read(self, keys: Collection[str] | None = None) -> tuple[Tree, dict[str, Tree]]:
        """Parameters and state as they are now, on the host.

        keys: the entries of the state to read; all by default.
        """
        state = {key: own for key, own in self._held.trees[1].items() if keys is None or key in keys}
        return self._held.read(self._first, state)

    def lent(self) -> tuple[Tree, Runner]:
        """The parameters and a program that holds them, as `CompiledStep.lent` returns them.

        Raises ArgumentError if nothing is prepared yet.
        """
        return self._held.lent(self._first, "Call start(parameters, state), then prepare(calls).")

    @property
    def _first(self) -> Runner | None:
        return next((step.first for step in self.steps.values() if step.first is not None), None)

    @property
    def nbytes(self) -> dict[str, int]:
        """Planned bytes on the device: kept (between runs), arena (intermediate results), rest."""
        runners = [made.runner for made in self._programs() if isinstance(made.runner, OnDevice)]
        memories = {entry.memory for runner in runners for entry in runner.state.entries.values()}
        sizes = [runner.plan.nbytes for runner in runners]
        return {
            "kept": sum(memory.nbytes for memory in memories),
            "arena": max((runner.arena.nbytes for runner in runners), default=0),
            "rest": sum(own[region] for own in sizes for region in ("fed", "constants", "results")),
        }

    def _programs(self) -> list[Compiled]:
        return [made for step in self.steps.values() for made in step.programs.values()]

    def _found(self, calls: Sequence[Call], making: Callable[[], None]) -> list[tuple[Compiled, dict[int, Array]]]:
        order = list(self.steps)
        found = {}
        for at in sorted(range(len(calls)), key=lambda at: order.index(calls[at].step)):
            call = calls[at]
            found[at] = self.steps[call.step].found(call.batch, call.scalars, making)
        programs = [found[at][0] for at in range(len(calls))]
        self._held.write(programs[0].runner)
        return [found[at] for at in range(len(calls))]

    def _run(
        self, programs: Sequence[Compiled], fed: Sequence[dict[int, Array]], given: Mapping[str, Array],
        taken: Sequence[str],
    ) -> tuple[list[dict[int, Array]], dict[str, Array]]:  # fmt: skip
        if not isinstance(programs[0].runner, OnDevice):
            programs[0].runner.write(given)
            outputs = [compiled.runner.run(own).outputs for compiled, own in zip(programs, fed, strict=True)]
            return outputs, programs[0].runner.read(taken)
        sequence = self._sequence(programs, tuple(given), tuple(taken))
        results, brought, self.ran = sequence.run(fed, given)
        return results, brought

    def _sequence(self, programs: Sequence[Compiled], given: tuple[str, ...], taken: tuple[str, ...]) -> InSequence:
        key = (*map(id, programs), given, taken)
        if key not in self._sequences:
            runners = [made.runner for made in programs if isinstance(made.runner, OnDevice)]
            self._sequences[key] = InSequence(runners, given, taken)
        return self._sequences[key]
