"""Takes a traced graph apart into primitives, without in-place changes of tensors.

Most nodes are primitives already and stay as they are. One trace covers the other operations, once
for each set of shapes. Its parts replace the operations in the graph.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from ebmvk.compute import primitives
from ebmvk.compute.graphs import graph_module
from ebmvk.engine import library

Make = Callable[[Callable[..., Any]], Callable[..., fx.GraphModule]]
"""Traces a function of tensors, with decompositions and without in-place changes of tensors."""


class AliasedError(Exception):
    """The graph changes a tensor that other nodes read through views."""


def functional(graph: fx.GraphModule, make: Make) -> fx.GraphModule:
    """The graph of primitives; changed arguments are `copy_` nodes at its end.

    Raises AliasedError if it changes views, or tensors that views read afterwards.
    """
    roots = _roots(graph.graph)
    _check_views(graph.graph, roots)
    waiting = [node for node in graph.graph.nodes if _taken_apart(node)]
    shown: dict[fx.Node, Any] = {}
    known: dict[str, _Part] = {}
    parts: dict[fx.Node, tuple[_Use, _Part]] = {}
    while waiting:
        ready = _ready(waiting)
        uses = [_Use.of(graph, node, shown) for node in ready]
        known |= _traced({use.key: use for use in uses if use.key not in known}, make)
        parts |= {use.node: (use, known[use.key]) for use in uses}
        for node in filter(_is_own, ready):
            shown[node] = parts[node][1].values()
            shown |= {user: shown[node][user.args[1]] for user in node.users if user.target is operator.getitem}
        waiting = [node for node in waiting if node not in parts]
    return _Copy(graph, roots, parts).made()


def _is_own(node: fx.Node) -> bool:
    """True for operations whose decompositions may return other shapes than the operations do. Only
    their gradients read those results."""
    return node.target in library.APART


def _ready(waiting: Sequence[fx.Node]) -> list[fx.Node]:
    """The waiting nodes that don't read the result of a waiting operation for which `_is_own` is
    true."""
    own = set(filter(_is_own, waiting))
    return [
        node
        for node in waiting
        if not any((part.args[0] if part.target is operator.getitem else part) in own for part in node.all_input_nodes)
    ]


# --------------------------------------------------------------------------------- what is changed


def _is_operation(node: fx.Node) -> bool:
    return node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)


def _changed(node: fx.Node) -> fx.Node | None:
    """The argument that an operation changes."""
    if not _is_operation(node) or not node.target._schema.is_mutable:  # type: ignore[union-attr]
        return None
    schema = node.target._schema  # type: ignore[union-attr]
    written = [
        node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
        for place, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    if len(written) != 1 or not isinstance(written[0], fx.Node) or len(schema.returns) > 1:
        raise AliasedError(node)
    return written[0]


def _is_view(node: fx.Node) -> bool:
    """True if a node's result may share memory with an argument."""
    if node.target is operator.getitem:
        return _is_view(node.args[0])  # type: ignore[arg-type]
    returns = node.target._schema.returns if _is_operation(node) else ()  # type: ignore[union-attr]
    return any(value.alias_info is not None and not value.alias_info.is_write for value in returns)


def _roots(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """For each result of an operation that changes a tensor, the node that made the tensor."""
    roots: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        changed = _changed(node)
        if changed is not None:
            roots[node] = roots.get(changed, changed)
    return roots


def _check_views(graph: fx.Graph, roots: Mapping[fx.Node, fx.Node]) -> None:
    """Raises AliasedError unless only whole tensors are changed, and no view made before a change
    is read after the change."""
    places = {node: place for place, node in enumerate(graph.nodes)}
    last: dict[fx.Node, int] = {}  # a tensor that is changed -> the position of its last change
    for node, root in roots.items():
        last[root] = places[node]
        if _is_view(root) or root.op == "get_attr":
            raise AliasedError(root)
    changes = [(places[node], roots[node]) for node in roots]
    for node in graph.nodes:
        source = roots.get(node, node)
        if source in last:
            for view in _views_of(node):
                begin, end = places[view], max(map(places.__getitem__, view.users), default=0)
                if any(root is source and begin < place < end for place, root in changes):
                    raise AliasedError(view)


def _views_of(node: fx.Node) -> Iterator[fx.Node]:
    for user in node.users:
        if _is_view(user):
            yield user
            yield from _views_of(user)


# --------------------------------------------------------------------------- what is taken apart


def _taken_apart(node: fx.Node) -> bool:
    if node.op in {"placeholder", "get_attr", "output"} or node.target is operator.getitem:
        return False
    if not _is_operation(node):
        raise AliasedError(node)
    if node.target._schema.is_mutable:  # type: ignore[union-attr]
        return True
    return primitives.overload(node.target) not in primitives.load() and node.target not in library.KERNELS


@dataclass(frozen=True)
class _Use:
    """One use of an operation in the graph. inputs: its different tensors, as nodes. key: equal for
    uses that share a trace."""

    node: fx.Node
    inputs: tuple[fx.Node, ...]
    values: tuple[Tensor, ...]
    key: str

    @staticmethod
    def of(graph: fx.GraphModule, node: fx.Node, shown: Mapping[fx.Node, Any]) -> _Use:
        """shown: results that differ from the graph's notes on them, which are tensors without
        data."""
        inputs = tuple(dict.fromkeys(node.all_input_nodes))
        values = tuple(
            getattr(graph, str(part.target)) if part.op == "get_attr" else shown.get(part, part.meta.get("val"))
            for part in inputs
        )
        said = [(tuple(value.shape), value.stride(), value.dtype, value.device) for value in values]
        numbers = {part: _Number(place) for place, part in enumerate(inputs)}
        arguments = fx.node.map_arg((node.args, node.kwargs), numbers.__getitem__)  # type: ignore[arg-type]
        return _Use(node, inputs, values, repr((str(node.target), arguments, said)))

    def call(self, tensors: Sequence[Tensor]) -> Any:
        """The operation, or what it writes into the argument that it changes."""
        of = dict(zip(self.inputs, tensors, strict=True))
        args, keywords = fx.node.map_arg((self.node.args, self.node.kwargs), of.__getitem__)
        changed = _changed(self.node)
        if changed is None:
            return self.node.target(*args, **keywords)  # type: ignore[operator]
        target, own = _without_change(self.node), of[changed]
        known = {argument.name for argument in target._schema.arguments}
        left = self.node.target._schema.arguments[len(args) :]  # type: ignore[union-attr]
        usual = {part.name: part.default_value for part in left if part.has_default_value()}  # the other may have none
        given = {name: value for name, value in (usual | dict(keywords)).items() if name in known}
        return target(*args, **given).to(own.dtype)


@dataclass(frozen=True)
class _Number:
    number: int


def _without_change(node: fx.Node) -> Any:
    """The operation of the same arguments that returns its result in place of storing it."""
    target: Any = node.target
    name = target._schema.name.split("::")[1].removesuffix("_")
    packet = getattr(getattr(torch.ops, target.namespace), name, None)
    wanted = [(part.name, str(part.type)) for part in target._schema.arguments if not part.is_out]
    for overload in packet.overloads() if packet is not None else ():
        found = getattr(packet, overload)
        own = [(part.name, str(part.type)) for part in found._schema.arguments]
        if own == wanted and not found._schema.is_mutable:
            return found
    raise AliasedError(node)


@dataclass
class _Part:
    """What an operation becomes. inputs: nodes that stand for its tensors. nodes: in order.
    results: a node for each tensor, None for each other value; `spec` says how they form a tree."""

    inputs: list[fx.Node]
    nodes: list[fx.Node]
    results: list[fx.Node | None]
    spec: Any
    root: fx.GraphModule

    def values(self) -> Any:
        """The results as tensors without data."""
        leaves = [None if node is None else node.meta["val"] for node in self.results]
        return pytree.tree_unflatten(leaves, self.spec)


def _traced(uses: Mapping[str, _Use], make: Make) -> dict[str, _Part]:
    """One trace of all different operations, cut into parts."""
    specs: dict[str, Any] = {}
    kinds: dict[str, list[bool]] = {}

    def called(*tensors: Tensor) -> list[Tensor]:
        rest, results = iter(tensors), list[Tensor]()
        for key, use in uses.items():
            leaves, specs[key] = pytree.tree_flatten(use.call([next(rest) for _ in use.inputs]))
            kinds[key] = [isinstance(leaf, Tensor) for leaf in leaves]
            results.extend(leaf for leaf in leaves if isinstance(leaf, Tensor))
        return results

    if not uses:
        return {}
    # Several uses may share a tensor, and the trace must distinguish their arguments.
    traced = make(called)(*(value.detach() for use in uses.values() for value in use.values))
    nodes = list(traced.graph.nodes)
    places = {node: place for place, node in enumerate(nodes)}
    inputs = (node for node in nodes if node.op == "placeholder")
    results = iter(nodes[-1].args[0])
    parts: dict[str, _Part] = {}
    for key, use in uses.items():
        own = [next(inputs) for _ in use.inputs]
        made = [next(results) if tensor else None for tensor in kinds[key]]
        needed = sorted(_needed(made), key=places.__getitem__)
        parts[key] = _Part(own, needed, made, specs[key], traced)
    return parts


def _needed(results: Sequence[fx.Node | None]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    stack = [node for node in results if node is not None]
    while stack:
        node = stack.pop()
        if node not in found and node.op != "placeholder":
            found.add(node)
            stack.extend(node.all_input_nodes)
    return found


# ---------------------------------------------------------------------------------- the new graph


@dataclass
class _Copy:
    """The new graph as it grows. values: the new value of each node of the old graph."""

    old: fx.GraphModule
    roots: Mapping[fx.Node, fx.Node]
    parts: Mapping[fx.Node, tuple[_Use, _Part]]
    graph: fx.Graph = field(default_factory=fx.Graph)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    held: dict[fx.Node, str] = field(default_factory=dict)

    def made(self) -> fx.GraphModule:
        arguments: dict[fx.Node, fx.Node] = {}
        for node in self.old.graph.nodes:
            if node.op == "output":
                for argument, first in arguments.items():
                    if self.values[argument] is not first:
                        copy = self.graph.call_function(torch.ops.aten.copy_.default, (first, self.values[argument]))
                        copy.meta["val"] = first.meta["val"]
            if node in self.parts:
                self._put(node)
            elif node.target is operator.getitem and isinstance(self._value(node.args[0]), list | tuple):
                self.values[node] = self._value(node.args[0])[node.args[1]]
            else:
                self.values[node] = self.graph.node_copy(node, self._value)
            if node.op == "placeholder":
                arguments[node] = self.values[node]
        self.graph.eliminate_dead_code()
        return graph_module(self.old, self.graph)

    def _value(self, node: Any) -> Any:
        return self.values[self.roots.get(node, node)]

    def _put(self, node: fx.Node) -> None:
        use, part = self.parts[node]
        of = dict(zip(part.inputs, map(self._value, use.inputs), strict=True))
        for inner in part.nodes:
            copy = of[inner] = self.graph.node_copy(inner, of.__getitem__)
            if inner.op == "get_attr":
                copy.target = self._hold(inner, part.root)
            copy.meta.pop("stack_trace", None)
            copy.meta.update({key: node.meta[key] for key in ("stack_trace", "seq_nr") if key in node.meta})
        results = [None if result is None else of[result] for result in part.results]
        self.values[self.roots.get(node, node)] = pytree.tree_unflatten(results, part.spec)

    def _hold(self, node: fx.Node, root: fx.GraphModule) -> str:
        """A name in the new graph for a constant of a trace."""
        if node not in self.held:
            self.held[node] = f"_held_{len(self.held)}"
            setattr(self.old, self.held[node], getattr(root, str(node.target)))
        return self.held[node]
