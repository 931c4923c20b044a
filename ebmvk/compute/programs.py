"""The code that compiled steps and compiled functions share. It makes and keeps a program for each
set of shapes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ebmvk.compute.capture import Traced, finished, require_tensors, trace
from ebmvk.compute.compiled import Compiled as OnDevice
from ebmvk.compute.fuse import fuse
from ebmvk.compute.ir import WORD, Program
from ebmvk.compute.lower import lower
from ebmvk.compute.plan import Plan
from ebmvk.compute.program_cache import ProgramCache, key_of
from ebmvk.compute.reference import Reference
from ebmvk.compute.rewrite import Limits
from ebmvk.engine.recording import Ran, Recorder
from ebmvk.engine.select import select
from ebmvk.engine.vulkan import Vulkan
from ebmvk.errors import ArgumentError

Tree = Any
"""Tensors in dicts, lists, tuples and dataclasses that torch's pytree knows."""
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

    names: such as "parameters['head.weight']". kept: the number of arguments, from the first on,
    that are parameters and state. dtypes: torch's types. spec: the tree that the arguments form.
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
    """A step or a function at fixed shapes.

    program: its nodes after fusion. record: the tree of its other results, beside new parameters
    and state. results: the positions of the tensors in `record`. saved: True if the program was
    read from disk.
    """

    layout: Layout
    program: Program
    record: Any
    results: list[int]
    dtypes: list[torch.dtype]
    runner: Runner
    saved: bool

    def recorded(self, outputs: Mapping[int, Array]) -> Tree:
        """The record of a run, made from its results."""
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


def kept_arrays(parameters: Tree, state: Tree) -> dict[str, Array]:
    """Parameters and state as arrays, by the names that a `Layout` gives them."""
    parts = zip(PARTS, (parameters, state), strict=False)
    leaves = ((part, *found) for part, tree in parts for found in pytree.tree_flatten_with_path(tree)[0])
    return {part + pytree.keystr(path): array_of(leaf) for part, path, leaf in leaves}


def array_of(leaf: torch.Tensor) -> Array:
    """The values of a tensor, in order."""
    array: Array = leaf.detach().cpu().contiguous().numpy()
    return array


def names_of(runners: Sequence[Runner] | None) -> set[str]:
    """The arguments that have a place on the device."""
    return {name for runner in runners or () if isinstance(runner, OnDevice) for name in runner.state.entries}


class Wanted(Protocol):
    """The settings that say where a program runs; see `compile_step`."""

    backend: Backend
    device: Any
    limits: Limits | None
    recorder: Recorder | None


def place(step: Wanted) -> tuple[Recorder | None, Limits]:
    """The device to run on (None for numpy), and how large fused nodes may become there."""
    if step.backend == "reference":
        return None, step.limits or Limits()
    if step.recorder is None:
        step.recorder = opened(step.device)
    device = step.recorder.limits
    words = device.range_bytes // WORD
    return step.recorder, step.limits or Limits(tensors=min(Limits.tensors, device.bindings), block=words)


def opened(device: Any) -> Recorder:
    """A recorder of programs for a device. Raises ArgumentError if it isn't a Vulkan device.

    device: as for `compile_step`.
    """
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
    plan: Plan | None = None,
) -> Runner:
    """A program that is ready to run. like: another program, whose kept arguments it shares. alone,
    plan: see `OnDevice`."""
    if recorder is not None:
        shared = like if isinstance(like, OnDevice) else None
        state, arena = (shared.state, shared.arena) if shared else (None, None)
        return OnDevice(
            recorder, program, names=names, fed=fed, fetched=fetched, state=state, arena=arena, alone=alone, plan=plan
        )
    runner = Reference(program, names, fed, fetched)
    if like is not None:
        runner.state = like.state
    return runner


# ------------------------------------------------------------------------------------------ making


@dataclass(frozen=True)
class Source:
    """A function to compile, and how its arguments are used.

    Attributes:
        function: trees -> (tensors that replace the first arguments, tree of results).
        returns: the first words of a message about the results, such as "the record has".
        donated: the number of arguments that are replaced. spare: the number of arguments that may
            be unused.
        placed: positions of arguments whose place in memory another program has fixed already.
    """

    function: Callable[..., tuple[Sequence[torch.Tensor], Tree]]
    returns: str
    donated: int = 0
    spare: int = 0
    placed: frozenset[int] = frozenset()


@dataclass(kw_only=True)
class Programs:
    """Programs by the shapes of their arguments.

    Attributes:
        backend, device, check, limits: see `ebmvk.compute.step.compile_step`.
        recorder: records programs for the device; opened when the first program is made.
        ran: what the last run did on the device; None in numpy.
        cpu_ops: the number of torch's operations on the host between the run's submission and its
            end.
    """

    backend: Backend = "vulkan"
    device: Any = None
    check: bool = True
    limits: Limits | None = None
    programs: dict[tuple[object, ...], Compiled] = field(default_factory=dict)
    recorder: Recorder | None = None
    ran: Ran | None = None
    cpu_ops: int = 0

    @property
    def first(self) -> Runner | None:
        """The first program that was made; None if there isn't one yet."""
        return next((compiled.runner for compiled in self.programs.values()), None)

    def _run(self, compiled: Compiled, fed: Mapping[int, Array]) -> Tree:
        """The record of a run."""
        with Operations() as operations:
            result = compiled.runner.run(fed)
        self.cpu_ops, self.ran = operations.count, getattr(result, "ran", None)
        return compiled.recorded(result.outputs)

    def _built(
        self, source: Source, layout: Layout, leaves: list[torch.Tensor], where: Wanted, like: Runner | None,
        *, alone: bool,
    ) -> Compiled:  # fmt: skip
        """A program, read from disk if it is saved. where: its device. like, alone: see
        `runner_of`.

        Raises as `compile_step`, and OutOfMemory.
        """
        seen: dict[str, Any] = {}

        def called(*values: torch.Tensor) -> list[torch.Tensor]:
            kept, record = source.function(*pytree.tree_unflatten(list(values), layout.spec))
            results, seen["spec"] = pytree.tree_flatten(record)
            for result in results:
                if not isinstance(result, torch.Tensor):
                    raise ArgumentError(f"{source.returns} {result!r}, not a tensor", hint="Return tensors only.")
            seen["dtypes"] = [result.dtype for result in results]
            return [*kept, *results]

        first = trace(called, leaves, layout.names, spare=source.spare)
        recorder, limits = place(where)
        fed = range(layout.kept, len(leaves))
        fetched = range(source.donated, source.donated + len(seen["dtypes"]))
        shelf = _Shelf.of(recorder, first, limits, source, fed, check=self.check)
        plan = shelf.load()
        if plan is None:
            donated = {position: position for position in range(source.donated)}
            captured = finished(first, donated=donated, others=None if self.check else [])
            program = fuse(replace(lower(captured), placed=source.placed), limits)
        else:
            program = plan.program
            if self.check:
                first.agrees()
        runner = runner_of(recorder, program, layout.names, fed, fetched, like, alone, plan)
        if plan is None and isinstance(runner, OnDevice):
            shelf.store(runner.plan)
        return Compiled(layout, program, seen["spec"], [*fetched], seen["dtypes"], runner, plan is not None)


@dataclass(frozen=True)
class _Shelf:
    """The place of one program in the cache, if the program may be saved there."""

    cache: ProgramCache | None
    key: str

    @staticmethod
    def of(
        recorder: Recorder | None, first: Traced, limits: Limits, source: Source, fed: range, *, check: bool
    ) -> _Shelf:
        cache = ProgramCache.default() if recorder is not None else None
        graph = first.key if cache is not None else ""
        if recorder is None or not graph:
            return _Shelf(None, "")
        settings = {
            "limits": asdict(limits), "names": first.names, "donated": source.donated, "placed": sorted(source.placed),
            "fed": [fed.start, fed.stop], "check": check,
        }  # fmt: skip
        return _Shelf(cache, key_of(recorder, graph, **settings))

    def load(self) -> Plan | None:
        return None if self.cache is None else self.cache.load(self.key)

    def store(self, plan: Plan) -> None:
        if self.cache is not None:
            self.cache.store(self.key, plan)
