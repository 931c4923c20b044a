"""A step as a graph: traced once at fixed shapes, then made functional and taken apart.

A step is a pure function of tensors. It is refused if its graph would be wrong for another batch:
if it reads values (`.item()`, `.tolist()`, `.numpy()`, `float()`), gets numbers in place of
tensors, ignores an argument, or uses a parameter that isn't passed to it. Each new graph is run on
two other batches (one, if the graph is large), with other weights and scalars, and must agree with
the step itself.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import operator
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from weakref import WeakSet

import torch
from torch import fx
from torch.fx import traceback as fx_traceback
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from ebmvk.compute import decompose, narrow, replay
from ebmvk.compute.functional import AliasedError, Make, functional
from ebmvk.compute.graphs import lazily
from ebmvk.compute.origins import Gradients, Lines, origin_of, user_line
from ebmvk.compute.replay import OTHER_FORMULAS, SAME, Step, agree, variations
from ebmvk.errors import ArgumentError, UnsupportedOperation


@dataclass
class Captured:
    """A step's graph.

    graph: functional; its operations are those that decompose.table doesn't take apart. Changes of
    arguments are `copy_` nodes at its end. names: names of the arguments, one for each placeholder.
    donated: position of a result -> position of the argument that it replaces. key: a hash of the
    graph and its constants, equal in all processes.
    """

    graph: fx.GraphModule
    names: list[str]
    donated: dict[int, int] = field(default_factory=dict)
    key: str = ""


def capture(
    step: Step,
    examples: Sequence[torch.Tensor],
    names: Sequence[str] | None = None,
    *,
    donated: dict[int, int] | None = None,
    others: Sequence[Sequence[torch.Tensor]] | None = None,
    spare: int = 0,
) -> Captured:
    """The graph of a step at the shapes of `examples`.

    Args:
        step: a pure function; it gets the examples one by one, without gradients of their own.
        names: names of the arguments, for messages.
        donated: position of a result -> position of the argument that it replaces.
        others: sets of arguments on which the graph must agree with the step. The default is made
            from the examples: see replay.others. An empty list skips this check.
        spare: this many of the first arguments may be unused.

    Raises:
        ArgumentError: if an argument isn't a tensor, or nothing uses it.
        UnsupportedOperation: if the step looks at values, or its graph depends on the examples.
    """
    return finished(trace(step, examples, names, spare=spare), donated=donated, others=others)


@dataclass(frozen=True)
class Traced:
    """A step's own operations at the shapes of `examples`, the first half of `capture`."""

    step: Step
    examples: Sequence[torch.Tensor]
    names: list[str]
    graph: fx.GraphModule

    @property
    def key(self) -> str:
        """A hash of the graph, its constants and the lines of the step that messages name. It is
        equal in all processes. It is empty if the later stages depend on more than this: if code
        outside torch and this package defines how operations are taken apart."""
        nodes = list(self.graph.graph.nodes)
        called = [node.target for node in nodes if node.op.startswith("call")]
        known = all(own is operator.getitem or getattr(own, "namespace", "") in decompose.LIBRARIES for own in called)
        held = [getattr(self.graph, str(node.target)) for node in nodes if node.op == "get_attr"]
        if not known or not decompose.all_own() or not all(isinstance(value, torch.Tensor) for value in held):
            return ""
        digest = hashlib.sha256(graph_key(self.graph).encode())
        for node in nodes:
            digest.update(repr(node.meta.get("stack_trace")).encode())
        return digest.hexdigest()

    def agrees(self) -> None:
        """Raises UnsupportedOperation unless graph and step agree on other batches."""
        agree(self.step, [(self.graph, SAME)], variations(self.examples, 1)[0], self.names)


def trace(
    step: Step, examples: Sequence[torch.Tensor], names: Sequence[str] | None = None, *, spare: int = 0
) -> Traced:
    """The graph of a step's own operations. Arguments and errors are as for `capture`."""
    names = list(names) if names is not None else [f"argument {number}" for number in range(len(examples))]
    require_tensors(names, examples)
    with lazily():  # graphs become Python code only if they are run
        graph = _traced(step, examples)
        _check_graph(graph, names, spare)
    return Traced(step, examples, names, graph)


def finished(
    first: Traced, *, donated: dict[int, int] | None = None, others: Sequence[Sequence[torch.Tensor]] | None = None
) -> Captured:
    """The second half of `capture`."""
    with lazily():
        graph = _narrowed(_functional(first.graph, first.examples))
    for arguments in replay.others(first.graph, first.examples) if others is None else others:
        agree(first.step, [(first.graph, SAME), (graph, OTHER_FORMULAS)], arguments, first.names)
    return Captured(graph, first.names, dict(donated or {}), graph_key(graph))


def require_tensors(names: Sequence[str], arguments: Sequence[object]) -> None:
    """Raises ArgumentError for the first argument of a step that isn't a tensor."""
    for name, argument in zip(names, arguments, strict=True):
        if not isinstance(argument, torch.Tensor):
            raise ArgumentError(
                f"{name} is {argument!r}, not a tensor",
                hint="Pass numbers that change between steps as tensors: torch.tensor(1e-3).",
                why="A number would become part of the compiled step and keep its first value.",
            )


# ----------------------------------------------------------------------------------------- tracing


@contextmanager
def tracing() -> Iterator[None]:
    """A context in which torch can trace a step.

    It empties the caches of functions before and after the trace. A tensor that was cached before
    must not enter the graph, and a tensor that is cached during the trace has no values.
    """
    _start_autograd()
    _clear_caches()
    try:
        yield
    finally:
        _clear_caches()


@functools.cache
def _start_autograd() -> None:
    """Let autograd count the devices before a tracer pretends that there are more.

    While torch's builds for CUDA trace, they show eight GPUs, even on a machine without GPUs. If
    the first backward pass runs during a trace, autograd starts a thread for each of these GPUs.
    Then forks of the process can't run backward passes any more.
    """
    with torch.enable_grad():
        torch.ones((), requires_grad=True).backward()  # type: ignore[no-untyped-call]


_KEEPS = frozenset({"torch", "sympy", "mpmath", "re", "typing", "functools", "numpy", "scipy"})
"""Packages whose caches don't hold tensors of a step."""


_SEEN: WeakSet[Any] = WeakSet()
"""Caches that earlier searches found. A search doesn't find frozen objects (gc.freeze) again."""


def _clear_caches() -> None:
    note_caches()
    for found in _SEEN:
        found.cache_clear()


def note_caches() -> None:
    """Find the caches of all functions that may hold tensors of a step.

    A cache refers to its type. Looking for such references is faster than a loop over all objects.
    """
    for found in gc.get_referrers(functools._lru_cache_wrapper):
        if type(found) is functools._lru_cache_wrapper:  # isinstance would call proxies, some of which warn
            module = getattr(found, "__module__", None) or ""
            if module.split(".")[0] not in _KEEPS and not module.startswith("ebmvk.compute"):
                _SEEN.add(found)


def _make(function: Callable[..., Any], table: decompose.Table) -> Callable[..., fx.GraphModule]:
    return make_fx(function, decomposition_table=table, tracing_mode="fake", _allow_non_fake_inputs=True)


def graph_of(step: Step, examples: Sequence[torch.Tensor], names: Sequence[str] | None = None) -> Captured:
    """The graph of a function, for tests of single operations. It isn't checked, and may contain
    constants from caches."""
    with sdpa_kernel(SDPBackend.MATH), fx_traceback.preserve_node_meta():
        first = _make(lambda *args: list(step(*args)), decompose.lists())(*examples)
    graph = _narrowed(_functional(first, examples))
    return Captured(graph, list(names or map(str, range(len(examples)))), {}, graph_key(graph))


def _traced(step: Step, examples: Sequence[torch.Tensor]) -> fx.GraphModule:
    def called(*args: torch.Tensor) -> list[torch.Tensor]:
        with Gradients():
            return list(step(*args))

    inputs = [example.detach() for example in examples]
    try:
        with tracing(), sdpa_kernel(SDPBackend.MATH), fx_traceback.preserve_node_meta(), Lines():
            graph = _make(called, decompose.lists())(*inputs)
    except (RuntimeError, TypeError, ValueError) as error:
        refused = _refused(error)
        if refused is None:
            raise
        raise refused from error
    graph.graph.eliminate_dead_code(lambda node: "copy_" in str(node.target) or node.is_impure())
    graph.recompile()
    return graph


_LOOKS = ("_local_scalar_dense", "DataDependent", ".numpy() is not supported", "data-dependent", "Could not guard",
          "DynamicOutputShape")  # fmt: skip


def _refused(error: BaseException) -> UnsupportedOperation | None:
    """The error to raise for a step that looks at values; None for any other error."""
    said = f"{type(error).__name__}: {error}"
    if not any(word in said for word in _LOOKS):
        return None
    return _look(user_line(traceback.extract_tb(error.__traceback__)))


def _look(line: str) -> UnsupportedOperation:
    return UnsupportedOperation(
        f"the step looks at the values of a tensor: {line}",
        why="The step is compiled before its tensors have values, so nothing in Python may depend on them: .item(), "
        ".tolist(), .numpy(), float(), int(), if, nonzero, a mask as an index.",
        hint="Compute it with tensors (torch.where), or on the host before the step, as part of the batch.",
    )


def _depends_on_values(node: fx.Node) -> bool:
    """True if a node's result is a number read from a tensor, or its shape depends on one."""
    found = node.meta.get("val")
    for value in found if isinstance(found, list | tuple) else [found]:
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            return True
        if isinstance(value, torch.Tensor) and any(isinstance(size, torch.SymInt) for size in value.shape):
            return True
    return False


# --------------------------------------------------------------------------------------- functional


def _functional(graph: fx.GraphModule, examples: Sequence[torch.Tensor]) -> fx.GraphModule:
    """The graph without in-place changes of tensors, taken apart into primitives."""

    def make(function: Callable[..., Any]) -> Callable[..., fx.GraphModule]:
        return _make(torch.func.functionalize(function, remove="mutations"), decompose.table())

    with torch.no_grad(), fx_traceback.preserve_node_meta(), sdpa_kernel(SDPBackend.MATH):
        try:
            return functional(graph, make)
        except AliasedError:
            return _all_traced(graph, make, examples)


def _all_traced(graph: fx.GraphModule, make: Make, examples: Sequence[torch.Tensor]) -> fx.GraphModule:
    """The same as `_functional`, by a trace of the whole graph, in which torch follows all views.
    Functionalising the step itself would fail at its autograd functions, but its graph has none."""

    def called(*args: torch.Tensor) -> Any:
        return fx.Interpreter(graph).run(*args)

    made = make(called)(*(example.detach() for example in examples))
    made.graph.eliminate_dead_code()
    made.recompile()
    return made


def _narrowed(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph with each float64 value, if there are any, replaced by two float32 values."""
    if not narrow.wide(graph):
        return graph
    with torch.no_grad():
        made = narrow.narrowed(graph, lambda function: _make(function, decompose.table()), _no_float64)
    made.graph.eliminate_dead_code()
    made.recompile()
    return made


def _no_float64(node: fx.Node, what: str) -> UnsupportedOperation:
    return UnsupportedOperation(
        f"{what} can't run on the device: {origin_of(node)}",
        why="Devices needn't have float64. A step may compute with it, as pairs of float32, in sums and products only.",
        hint="Use float32, or convert with .float() before this line.",
    )


def _check_graph(graph: fx.GraphModule, names: Sequence[str], spare: int = 0) -> None:
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    for node, name in list(zip(placeholders, names, strict=True))[spare:]:
        if not node.users:
            raise ArgumentError(
                f"nothing in the step uses {name}",
                why="Either it isn't needed, or the step uses a number that was read from it before.",
                hint="Remove it, or use the tensor itself.",
            )
    for node in graph.graph.nodes:
        if _depends_on_values(node):
            raise _look(origin_of(node))
        if node.op == "get_attr":
            held = getattr(graph, str(node.target), None)
            if isinstance(held, torch.Tensor) and held.requires_grad:
                raise ArgumentError(
                    f"the step uses a parameter of shape {tuple(held.shape)} that it wasn't given: {_first_use(node)}",
                    hint="Pass every parameter in `parameters`; call modules with torch.func.functional_call.",
                )


def _first_use(node: fx.Node) -> str:
    return origin_of(next(iter(node.users))) if node.users else node.name


# --------------------------------------------------------------------------------------------- key


def graph_key(graph: fx.GraphModule) -> str:
    """A hash of operations, arguments, shapes, types and constants, but not of names."""
    digest = hashlib.sha256(torch.__version__.encode())
    numbers: dict[fx.Node, int] = {}
    for number, node in enumerate(graph.graph.nodes):
        numbers[node] = number
        args = fx.node.map_arg(
            (node.args, dict(sorted(node.kwargs.items()))), lambda n: cast("Any", _Numbered(numbers[n]))
        )
        value = node.meta.get("val")
        shapes = [
            (tuple(part.shape), str(part.dtype), tuple(part.stride()))
            for part in (value if isinstance(value, list | tuple) else [value])
            if isinstance(part, torch.Tensor)
        ]
        target = "" if node.op in {"placeholder", "get_attr"} else str(node.target)
        digest.update(repr((node.op, target, args, shapes)).encode())
        if node.op == "get_attr":
            held = getattr(graph, str(node.target)).detach().cpu().contiguous()
            digest.update(repr((tuple(held.shape), str(held.dtype))).encode())
            digest.update(held.numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Numbered:
    number: int
