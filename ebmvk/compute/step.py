"""Training steps of torch, compiled: the front door of the compiler."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ebmvk.compute.capture import Captured, capture, require_tensors
from ebmvk.compute.compiled import Compiled as OnDevice
from ebmvk.compute.fuse import fuse
from ebmvk.compute.ir import WORD, Program
from ebmvk.compute.lower import lower
from ebmvk.compute.reference import Reference
from ebmvk.compute.rewrite import Limits
from ebmvk.engine.recording import Ran, Recorder
from ebmvk.engine.select import select
from ebmvk.engine.vulkan import Vulkan
from ebmvk.errors import ArgumentError

Tree = Any
"""Tensors in dicts, lists, tuples and dataclasses that torch's pytree knows."""
TrainingStep = Callable[[Tree, Tree, Tree, Tree], tuple[Tree, Tree, Tree]]
"""(parameters, state, batch, scalars) -> (new parameters, new state, record)."""
Array = np.ndarray[Any, Any]
Backend = Literal["vulkan", "reference"]
PARTS = ("parameters", "state", "batch", "scalars")


class Runner(Protocol):
    """A program that is ready to run; `compiled.Compiled` on a device, `Reference` in numpy."""

    state: Any

    def write(self, arrays: Mapping[str, Array]) -> int: ...
    def read(self, names: Sequence[str] | None = None) -> dict[str, Array]: ...
    def run(self, fed: Mapping[int, Array]) -> Any: ...


@dataclass(frozen=True)
class Layout:
    """The arguments of a step or a function, one after another.

    names: such as "parameters['head.weight']". kept: how many of them are parameters and state,
    which come first. dtypes: of torch. spec: their tree.
    """

    names: list[str]
    shapes: list[tuple[int, ...]]
    dtypes: list[torch.dtype]
    kept: int
    spec: Any

    @staticmethod
    def of(arguments: Sequence[Tree], parts: Sequence[str] = PARTS) -> tuple[Layout, list[torch.Tensor]]:
        """The layout of some trees, and their leaves. parts: what the trees are called."""
        names: list[str] = []
        leaves: list[Any] = []
        kept = 0
        for part, tree in zip(parts, arguments, strict=True):
            for path, leaf in pytree.tree_flatten_with_path(tree)[0]:
                names.append(part + pytree.keystr(path))
                leaves.append(leaf)
                kept += part in {"parameters", "state"}
        require_tensors(names, leaves)
        spec = pytree.tree_flatten(tuple(arguments))[1]
        shapes = [tuple(leaf.shape) for leaf in leaves]
        return Layout(names, shapes, [leaf.dtype for leaf in leaves], kept, spec), leaves

    @property
    def key(self) -> tuple[object, ...]:
        return (str(self.spec), *zip(self.shapes, self.dtypes, strict=True))


@dataclass
class Compiled:
    """A step at fixed shapes.

    program: its nodes after fusion. captured: its graph. record: the tree of what it returns beside
    its new parameters and state; `results` are the positions of its tensors.
    """

    layout: Layout
    captured: Captured
    program: Program
    record: Any
    results: list[int]
    dtypes: list[torch.dtype]
    runner: Runner

    def recorded(self, outputs: Mapping[int, Array]) -> Tree:
        """The record of a run from its results."""
        values = [
            torch.from_numpy(np.array(outputs[position])).to(dtype)
            for position, dtype in zip(self.results, self.dtypes, strict=True)
        ]
        return pytree.tree_unflatten(values, self.record)


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts torch's operations on the host."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        self.count += 1
        return func(*args, **(kwargs or {}))


@dataclass
class CompiledStep:
    """A training step that runs as planned programs, one for each set of shapes.

    Call it like the step itself: (parameters, state, batch, scalars) -> (parameters, state,
    record). To keep parameters and state on the device between steps, use `start`, `run` and
    `read`.

    ran: what the last run did on the device; None in numpy. cpu_ops: torch's operations on the host
    between its submission and its end. chained: the programs of a chain of steps, which share what
    they keep; see `ebmvk.compute.chain`.
    """

    step: TrainingStep
    backend: Backend = "vulkan"
    device: Any = None
    check: bool = True
    limits: Limits | None = None
    programs: dict[tuple[object, ...], Compiled] = field(default_factory=dict)
    recorder: Recorder | None = None
    chained: list[Runner] | None = None
    ran: Ran | None = None
    cpu_ops: int = 0
    _kept: tuple[Tree, Tree] | None = None

    def __call__(self, parameters: Tree, state: Tree, batch: Tree, scalars: Tree) -> tuple[Tree, Tree, Tree]:
        self.start(parameters, state)
        record = self.run(batch, scalars)
        return *self.read(), record

    def start(self, parameters: Tree, state: Tree) -> None:
        """Set the parameters and the state for the next `run`."""
        self._kept = (parameters, state)
        self._fresh = True
        self._known = {}

    def ready(self, batch: Tree, scalars: Tree, making: Callable[[], None] = lambda: None) -> Compiled:
        """The program that `run` would run, with its parameters and state in place.

        making: called first if the program doesn't exist yet, since making it takes a while.
        """
        return self._ready(batch, scalars, making)[0]

    def run(self, batch: Tree, scalars: Tree, making: Callable[[], None] = lambda: None) -> Tree:
        """One step; returns its record. Parameters and state stay on the device.

        making: as for `ready`.
        """
        compiled, fed = self._ready(batch, scalars, making)
        with Operations() as operations:
            result = compiled.runner.run(fed)
        self.cpu_ops = operations.count
        self.ran = getattr(result, "ran", None)
        return compiled.recorded(result.outputs)

    def read(self) -> tuple[Tree, Tree]:
        """Parameters and state as they are now, on the host."""
        if self._kept is None:
            raise ArgumentError("the step has no parameters yet", hint="Call start(parameters, state) first.")
        if self._fresh or not self.programs:
            return self._kept
        compiled = next(iter(self.programs.values()))
        layout = compiled.layout
        arrays = compiled.runner.read(layout.names[: layout.kept])
        leaves = [
            torch.from_numpy(np.array(arrays[name])).to(dtype).reshape(shape)
            for name, dtype, shape in zip(layout.names, layout.dtypes, layout.shapes, strict=False)
            if name in arrays
        ]
        spec = pytree.tree_flatten(self._kept)[1]
        parameters, state = pytree.tree_unflatten(leaves, spec)
        return parameters, state

    def lent(self) -> tuple[Tree, Runner]:
        """What `compile_function` reads: the parameters, whose values may be older than the
        device's, and a program that holds them as they are now.

        Raises ArgumentError if the step has no parameters or no program yet.
        """
        if self._kept is None or not self.programs:
            raise ArgumentError(
                "the step has no program yet, so no parameters on the device to share",
                hint="Call start(parameters, state), then ready(batch, scalars).",
            )
        compiled = next(iter(self.programs.values()))
        self._write(compiled)
        return self._kept[0], compiled.runner

    def compile(self, parameters: Tree, state: Tree, batch: Tree, scalars: Tree) -> Compiled:
        """The program for these shapes, made now if it doesn't exist yet."""
        return self._compiled((parameters, state, batch, scalars))[0]

    def found(
        self, batch: Tree, scalars: Tree, making: Callable[[], None] = lambda: None
    ) -> tuple[Compiled, dict[int, Array]]:
        """The program for a batch, and the arrays that it is fed, by position. Unlike `ready` it
        doesn't put parameters and state in place."""
        if self._kept is None:
            raise ArgumentError("the step has no parameters yet", hint="Call start(parameters, state) before run.")
        leaves, spec = pytree.tree_flatten((batch, scalars))
        key = (str(spec), *((getattr(leaf, "shape", None), getattr(leaf, "dtype", None)) for leaf in leaves))
        compiled = self._known.get(key)
        if compiled is None:
            compiled = self._known[key] = self._compiled((*self._kept, batch, scalars), making)[0]
        return compiled, {compiled.layout.kept + number: array_of(leaf) for number, leaf in enumerate(leaves)}

    _fresh: bool = True
    _known: dict[tuple[object, ...], Compiled] = field(default_factory=dict)
    _placed: set[str] = field(default_factory=set)

    def _ready(
        self, batch: Tree, scalars: Tree, making: Callable[[], None] = lambda: None
    ) -> tuple[Compiled, dict[int, Array]]:
        compiled, fed = self.found(batch, scalars, making)
        self._write(compiled)
        return compiled, fed

    def _write(self, compiled: Compiled) -> None:
        """Write what `start` gave, unless that has happened."""
        if self._fresh and self._kept is not None:
            compiled.runner.write(kept_arrays(*self._kept))
            self._fresh = False

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
        seen: dict[str, Any] = {}

        def called(*values: torch.Tensor) -> list[torch.Tensor]:
            parameters, state, batch, scalars = pytree.tree_unflatten(list(values), layout.spec)
            new, new_state, record = self.step(parameters, state, batch, scalars)
            results, spec = pytree.tree_flatten(record)
            kept = _kept_leaves((parameters, state), (new, new_state), layout)
            for result in results:
                if not isinstance(result, torch.Tensor):
                    raise ArgumentError(f"the record has {result!r}, not a tensor", hint="Return tensors only.")
            seen["record"], seen["dtypes"] = spec, [result.dtype for result in results]
            return [*kept, *results]

        donated = {position: position for position in range(layout.kept)}
        varied: list[list[torch.Tensor]] | None = None if self.check else []
        captured = capture(called, leaves, layout.names, donated=donated, others=varied)
        results = list(range(layout.kept, layout.kept + len(seen["dtypes"])))
        recorder, limits = place(self)
        others = _names_of(self.chained) - self._placed  # those of other steps
        placed = frozenset(number for number, name in enumerate(layout.names) if name in others)
        program = fuse(replace(lower(captured), placed=placed), limits)
        fed = range(layout.kept, len(leaves))
        known = [made.runner for made in self.programs.values()] if self.chained is None else self.chained
        like = known[0] if known else None
        runner = runner_of(recorder, program, layout.names, fed, results, like, self.chained is None)
        if self.chained is not None:
            self.chained.append(runner)
            self._placed |= _names_of(self.chained) - others
        return Compiled(layout, captured, program, seen["record"], results, seen["dtypes"], runner)


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
        device: a `Vulkan` or a `Recorder`, or a name such as "vulkan:1"; None for the device that
            "vulkan" means.
        check: whether each new graph is run on other batches and compared with the step.
        limits: how large fused nodes may become; None for what the device allows.

    Raises:
        ArgumentError: at the first call, for arguments that aren't tensors or that nothing uses,
            for results whose shapes differ from what they replace, and for names of other devices.
        UnsupportedOperation: at the first call; names the operation and the line of the step.
    """
    return CompiledStep(step, backend, device, check, limits)


def _kept_leaves(old: Tree, new: Tree, layout: Layout) -> list[torch.Tensor]:
    """The new parameters and state, in the order of the old ones."""
    before, spec = pytree.tree_flatten(old)
    after, new_spec = pytree.tree_flatten(new)
    if spec != new_spec:
        raise ArgumentError(
            "the step returns parameters and state of another structure than it gets",
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


def kept_arrays(parameters: Tree, state: Tree) -> dict[str, Array]:
    """Parameters and state as arrays, by the names that a `Layout` gives them."""
    parts = zip(PARTS, (parameters, state), strict=False)
    leaves = ((part, *found) for part, tree in parts for found in pytree.tree_flatten_with_path(tree)[0])
    return {part + pytree.keystr(path): array_of(leaf) for part, path, leaf in leaves}


def array_of(leaf: torch.Tensor) -> Array:
    """The values of a tensor, in order."""
    array: Array = leaf.detach().cpu().contiguous().numpy()
    return array


def _names_of(runners: Sequence[Runner] | None) -> set[str]:
    """The arguments that have a place on the device."""
    return {name for runner in runners or () if isinstance(runner, OnDevice) for name in runner.state.entries}


class Wanted(Protocol):
    """Where something should run; see `compile_step`."""

    backend: Backend
    device: Any
    limits: Limits | None
    recorder: Recorder | None


def place(step: Wanted) -> tuple[Recorder | None, Limits]:
    """Where to run, and how large nodes may become there."""
    if step.backend == "reference":
        return None, step.limits or Limits()
    if step.recorder is None:
        step.recorder = opened(step.device)
    device = step.recorder.limits
    words = device.range_bytes // WORD
    return step.recorder, step.limits or Limits(tensors=min(Limits.tensors, device.bindings), block=words)


def opened(device: Any) -> Recorder:
    """A recorder for a `device` of `compile_step`. Raises ArgumentError if it isn't one."""
    if isinstance(device, Recorder):
        return device
    backend = select(device) if isinstance(device, str) else device or Vulkan()
    if not isinstance(backend, Vulkan):
        raise ArgumentError(f"device is {device!r}, not a Vulkan device", hint='Use "vulkan" or "vulkan:<index>".')
    return Recorder(backend)


def runner_of(
    recorder: Recorder | None,
    program: Program,
    names: Sequence[str],
    fed: Collection[int],
    fetched: Collection[int],
    like: Runner | None,
    alone: bool,
) -> Runner:
    """A program that is ready to run. like: another one, whose kept arguments it shares. alone: see
    `compiled.Compiled`."""
    if recorder is not None:
        shared = like if isinstance(like, OnDevice) else None
        state, arena = (shared.state, shared.arena) if shared else (None, None)
        return OnDevice(recorder, program, names=names, fed=fed, fetched=fetched, state=state, arena=arena, alone=alone)
    runner = Reference(program, names, fed, fetched)
    if like is not None:
        runner.state = like.state
    return runner
