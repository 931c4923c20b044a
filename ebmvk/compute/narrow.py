"""float64 in a step's graph, for devices without it: each operation on it is replaced by operations
on pairs of float32.

Functions such as expm1 have only float32's relative error; only sums in their arguments need more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from ebmvk.compute.graphs import graph_module
from ebmvk.compute.pairs import Pair, add, divide, multiply, negative, product, root_reciprocal, total, whole
from ebmvk.engine import library
from ebmvk.errors import UnsupportedOperation

# -------------------------------------------------------------------------------------- operations

Rule = Callable[..., Any]
Own = TypeVar("Own", bound=Rule)
RULES: dict[str, Rule] = {}
"""{operation of ATen: its form for pairs}. Arguments are as in the graph, but with pairs in place
of float64 tensors."""


def _rule(*names: str) -> Callable[[Own], Own]:
    def register(rule: Own) -> Own:
        for name in names:
            RULES[name] = rule
        return rule

    return register


def _pair(value: Any) -> Pair:
    """A tensor of another type as a pair. Whole numbers below 2^48 stay exact."""
    if isinstance(value, Pair):
        return value
    if value.dtype == torch.float32:
        return Pair(value)
    high = value.to(torch.float32)
    if value.dtype == torch.float64:  # a constant: the host computes both parts
        return Pair(high, (value - high.to(torch.float64)).to(torch.float32))
    if value.dtype in (torch.bool, torch.int8, torch.uint8, torch.int16):
        return Pair(high)
    return Pair(high, (value - high.to(value.dtype)).to(torch.float32))


def _both(x: Any, y: Any) -> tuple[Pair, Pair]:
    """Two operands as pairs; one of them may be a number."""
    if isinstance(x, Pair | Tensor):
        x = _pair(x)
        return x, _pair(y) if isinstance(y, Pair | Tensor) else whole(float(y), x)
    y = _pair(y)
    return whole(float(x), y), y


@_rule("add.Tensor", "add.Scalar")
def _add(x: Any, y: Any, *, alpha: float = 1) -> Pair:
    first, second = _both(x, y)
    return add(first, second if alpha == 1 else multiply(second, whole(float(alpha), second)))


@_rule("sub.Tensor", "sub.Scalar")
def _sub(x: Any, y: Any, *, alpha: float = 1) -> Pair:
    return _add(x, y, alpha=-alpha)


@_rule("rsub.Scalar", "rsub.Tensor")
def _rsub(x: Any, y: Any, *, alpha: float = 1) -> Pair:
    return _add(y, x, alpha=-alpha)


@_rule("mul.Tensor", "mul.Scalar")
def _mul(x: Any, y: Any) -> Pair:
    return multiply(*_both(x, y))


@_rule("div.Tensor", "div.Scalar")
def _div(x: Any, y: Any) -> Pair:
    return divide(*_both(x, y))


@_rule("pow.Tensor_Scalar")
def _pow(x: Pair, power: float) -> Pair:
    if power not in (2, 3):
        raise NotImplementedError
    made = multiply(x, x)
    return made if power == 2 else multiply(made, x)


RULES["neg.default"] = negative
RULES["rsqrt.default"] = root_reciprocal
RULES["reciprocal.default"] = lambda x: divide(whole(1.0, x), x)
RULES["sqrt.default"] = lambda x: multiply(x, root_reciprocal(x))


@_rule("expm1.default")
def _expm1(x: Pair) -> Pair:
    return add(Pair(torch.expm1(x.high)), Pair(x.lower * torch.exp(x.high)))


@_rule("exp.default")
def _exp(x: Pair) -> Pair:
    return Pair(torch.exp(x.high) * (1 + x.lower))


@_rule("log.default")
def _log(x: Pair) -> Pair:
    return add(Pair(torch.log(x.high)), Pair(x.lower / x.high))


def _sign(x: Any, y: Any) -> Tensor:
    """A float32 with the sign of x - y."""
    first, second = _both(x, y)
    return add(first, negative(second)).high


RULES["gt.Scalar"] = RULES["gt.Tensor"] = lambda x, y: _sign(x, y) > 0
RULES["ge.Scalar"] = RULES["ge.Tensor"] = lambda x, y: _sign(x, y) >= 0
RULES["lt.Scalar"] = RULES["lt.Tensor"] = lambda x, y: _sign(x, y) < 0
RULES["le.Scalar"] = RULES["le.Tensor"] = lambda x, y: _sign(x, y) <= 0
RULES["eq.Scalar"] = RULES["eq.Tensor"] = lambda x, y: _sign(x, y) == 0
RULES["ne.Scalar"] = RULES["ne.Tensor"] = lambda x, y: _sign(x, y) != 0


@_rule("where.self")
def _where(condition: Tensor, x: Any, y: Any) -> Pair:
    first, second = _pair(x), _pair(y)
    high = torch.where(condition, first.high, second.high)
    if first.low is None and second.low is None:
        return Pair(high)
    return Pair(high, torch.where(condition, first.lower, second.lower))


@_rule("clamp_min.default", "clamp_min.Tensor")
def _clamp_min(x: Any, y: Any) -> Pair:
    first, second = _both(x, y)
    return _where(_sign(first, second) < 0, second, first)


@_rule("clamp.default")
def _clamp(x: Pair, low: float | None = None, high: float | None = None) -> Pair:
    if low is not None:
        x = _clamp_min(x, low)
    return x if high is None else negative(_clamp_min(negative(x), -high))


@_rule("sum.dim_IntList", "sum.default")
def _sum(x: Any, dims: Sequence[int] | None = None, keepdim: bool = False, *, dtype: Any = None) -> Pair:
    del dtype
    x, rank = _pair(x), x.dim() if isinstance(x, Tensor) else x.high.dim()
    axes = sorted(axis % rank for axis in dims) if dims else list(range(rank))
    order = [axis for axis in range(rank) if axis not in axes] + axes
    made = total(x.each(lambda own: own.permute(order).flatten(rank - len(axes)) if axes else own.unsqueeze(-1)))
    for axis in axes if keepdim else ():
        made = made.each(lambda own, axis=axis: own.unsqueeze(axis))  # type: ignore[misc]
    return made


@_rule("mean.dim", "mean.default")
def _mean(x: Pair, dims: Sequence[int] | None = None, keepdim: bool = False, *, dtype: Any = None) -> Pair:
    made = _sum(x, dims, keepdim, dtype=dtype)
    return divide(made, whole(x.high.numel() / max(1, made.high.numel()), made))


@_rule("mm.default", "bmm.default")
def _mm(x: Pair, y: Pair) -> Pair:
    return product(x, y)


@_rule("_to_copy.default", "clone.default", "alias.default", "detach.default", "prims.convert_element_type.default",
       "lift_fresh_copy.default")  # fmt: skip
def _same(x: Any, dtype: torch.dtype | None = None, **_: Any) -> Any:
    if isinstance(x, Tensor):
        return _pair(x)
    if dtype in (None, torch.float64):
        return x
    # A pair's high part is its sum, rounded.
    return x.high if dtype == torch.float32 else x.high.to(dtype)


@_rule("cat.default")
def _cat(parts: Sequence[Any], dim: int = 0) -> Pair:
    pairs = [_pair(part) for part in parts]
    high = torch.cat([pair.high for pair in pairs], dim)
    if all(pair.low is None for pair in pairs):
        return Pair(high)
    return Pair(high, torch.cat([pair.lower for pair in pairs], dim))


_MOVES = frozenset({
    "view", "_unsafe_view", "reshape", "expand", "permute", "t", "transpose", "unsqueeze", "squeeze", "select",
    "slice", "index", "index_select", "gather", "diagonal", "as_strided", "constant_pad_nd", "split_with_sizes",
    "split", "unbind", "repeat", "flip", "roll", "embedding",
})  # fmt: skip
"""Operations that only move elements. They are applied to both parts of a pair."""


def _moved(x: Pair, function: Callable[[Tensor], Any]) -> Any:
    high = function(x.high)
    low = None if x.low is None else function(x.low)
    if isinstance(high, list | tuple):
        return [Pair(part, None if low is None else low[number]) for number, part in enumerate(high)]
    return Pair(high, low)


_PUTS = frozenset({"select_scatter", "slice_scatter", "diagonal_scatter", "index_copy"})
"""Operations that put a second tensor into the first. They are applied to both parts of a pair."""


def _put(target: Any, args: Sequence[Any], keywords: dict[str, Any]) -> Pair:
    """Applies an operation to both parts. Tensors of other types, such as an index, are the same
    for both."""
    floats = [_pair(arg) if isinstance(arg, Pair) or number == 0 else arg for number, arg in enumerate(args)]
    parts = [[own.high, own.lower] if isinstance(own, Pair) else [own, own] for own in floats]
    high, low = (target(*each, **keywords) for each in zip(*parts, strict=True))
    return Pair(high, low)


_LIKE = {"full_like": 1, "zeros_like": None, "ones_like": None, "new_zeros": None, "new_ones": None, "new_full": 2,
         "empty_like": None, "new_empty": None}  # fmt: skip
"""{operation that makes a tensor in the shape or type of a pair: position of the number that it is
filled with, or None}."""


def _made(target: Any, args: Sequence[Any], keywords: dict[str, Any]) -> Pair:
    like, *rest = args
    if keywords.get("dtype") not in (None, torch.float64) or not isinstance(like, Pair):
        raise NotImplementedError
    place = _LIKE[_base(target)]
    keywords = {key: own for key, own in keywords.items() if key != "dtype"}
    if place is None:
        return Pair(target(like.high, *rest, **keywords))
    value = float(args[place])
    high = float(np.float32(value))
    parts = [target(like.high, *rest[: place - 1], part, *rest[place:], **keywords) for part in (high, value - high)]
    return Pair(parts[0], parts[1] if np.isfinite(value) and value != high else None)


def _base(target: Any) -> str:
    return str(target).removeprefix("aten.").split(".")[0]


# ------------------------------------------------------------------------------------------ graphs

Make = Callable[[Callable[..., Any]], Callable[..., fx.GraphModule]]
Unsupported = Callable[[fx.Node, str], UnsupportedOperation]
_PLACES = frozenset({"device", "layout", "pin_memory", "memory_format"})


def constants(graph: fx.GraphModule) -> set[fx.Node]:
    """The nodes that don't depend on the step's arguments. The host computes them, in float64."""
    found: set[fx.Node] = set()
    for node in graph.graph.nodes:
        alone = node.op in {"call_function", "get_attr"} and all(parent in found for parent in node.all_input_nodes)
        if alone:
            found.add(node)
    return found


def wide(graph: fx.GraphModule) -> bool:
    """True if a graph computes with float64 on the device."""
    fixed = constants(graph)
    return any(node not in fixed and _is_wide(node) for node in graph.graph.nodes)


def _is_wide(node: fx.Node) -> bool:
    found = node.meta.get("val")
    every = found if isinstance(found, list | tuple) else [found]
    return any(isinstance(value, Tensor) and value.dtype == torch.float64 for value in every)


def narrowed(graph: fx.GraphModule, make: Make, unsupported: Unsupported) -> fx.GraphModule:
    """The graph with pairs in place of float64. Nodes without float64 stay the same.

    make: traces a function of tensors. unsupported: makes the error, from a node and what isn't
    supported.
    """
    fixed, made, env = constants(graph), fx.Graph(), _Values()
    known: dict[str, tuple[fx.GraphModule, Any]] = {}
    for node in graph.graph.nodes:
        if node in fixed or not (_is_wide(node) or any(env.has_pairs(parent) for parent in node.all_input_nodes)):
            env[node] = made.node_copy(node, env.__getitem__)
        elif node.op != "call_function":
            raise unsupported(node, "an argument of float64" if node.op == "placeholder" else "a result of float64")
        else:
            args, keywords = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
            try:
                env[node] = _Inlined(graph, made, node, known).put(args, keywords, make)
            except NotImplementedError as error:
                raise unsupported(node, f"{node.target} of float64") from error
    return graph_module(graph, made)


class _Values(dict[fx.Node, Any]):
    """The value of each node of the old graph: a new node, a pair of new nodes, or a list."""

    def has_pairs(self, node: fx.Node) -> bool:
        return any(isinstance(part, Pair) for part in pytree.tree_leaves(self[node]))


@dataclass(frozen=True)
class _Place:
    """Stands for an input in the key of a trace."""

    number: int


@dataclass
class _Inlined:
    """Replaces an operation by the operations of its rule. root: holds the graphs' tensors. known:
    traces of rules, with what the rules return."""

    root: fx.GraphModule
    graph: fx.Graph
    node: fx.Node
    known: dict[str, tuple[fx.GraphModule, Any]]

    def put(self, args: Any, keywords: dict[str, Any], make: Make) -> Any:
        target = self.node.target
        if not isinstance(target, torch._ops.OpOverload):  # operator.getitem
            return args[0][args[1]]
        inputs: list[fx.Node] = []
        fx.node.map_arg(_opened((args, keywords)), inputs.append)
        inputs = list(dict.fromkeys(inputs))
        values = [*(node.meta["val"] for node in inputs), *pytree.tree_leaves(self.node.meta["val"])]
        said = [(value.shape, value.stride(), value.dtype) for value in values if isinstance(value, Tensor)]
        numbers: Any = {node: _Place(place) for place, node in enumerate(inputs)}
        key = repr((str(target), _with((args, keywords), numbers), said))
        if key not in self.known:
            self.known[key] = self._traced(args, keywords, inputs, make)
        traced, shape = self.known[key]
        return _renewed(shape, iter(self._copied(traced, inputs)))

    def _traced(
        self, args: Any, keywords: dict[str, Any], inputs: Sequence[fx.Node], make: Make
    ) -> tuple[fx.GraphModule, Any]:
        """A trace of the rule, and what the rule returns."""
        shape: list[Any] = []

        def called(*tensors: Tensor) -> list[Tensor]:
            of = dict(zip(inputs, tensors, strict=True))
            given = _with((args, keywords), of)
            own = {key: value for key, value in given[1].items() if key not in _PLACES}
            result = _laid_as(_ruled(self.node.target, given[0], own), self.node.meta["val"])
            shape[:] = [result]
            return [value for value in pytree.tree_leaves(_opened(result)) if isinstance(value, Tensor)]

        # Copies of a node share one tensor without data, and the trace must distinguish them.
        return make(called)(*(node.meta["val"].detach() for node in inputs)), shape[0]

    def _copied(self, traced: fx.GraphModule, inputs: Sequence[fx.Node]) -> list[fx.Node]:
        of: dict[fx.Node, fx.Node] = {}
        places = iter(inputs)
        for inner in traced.graph.nodes:
            if inner.op == "placeholder":
                of[inner] = next(places)
            elif inner.op == "output":
                return [of[part] for part in inner.args[0]]
            else:
                copy = self.graph.node_copy(inner, of.__getitem__)
                if inner.op == "get_attr":
                    copy.target = f"_pair_{len(self.graph.nodes)}"
                    setattr(self.root, copy.target, getattr(traced, str(inner.target)))
                for key in ("stack_trace", "seq_nr"):
                    if key in self.node.meta:
                        copy.meta[key] = self.node.meta[key]
                of[inner] = copy
        raise AssertionError("a graph without an output")


def _opened(tree: Any) -> Any:
    """A tree with the parts of its pairs as lists."""
    if isinstance(tree, Pair):
        return [tree.high, tree.low]
    if isinstance(tree, dict):
        return {key: _opened(value) for key, value in tree.items()}
    return [_opened(value) for value in tree] if isinstance(tree, list | tuple) else tree


def _with(tree: Any, of: dict[fx.Node, Tensor]) -> Any:
    """A tree with tensors in place of nodes."""
    if isinstance(tree, fx.Node):
        return of[tree]
    if isinstance(tree, Pair):
        return Pair(of[tree.high], None if tree.low is None else of[tree.low])  # type: ignore[index]
    if isinstance(tree, dict):
        return {key: _with(value, of) for key, value in tree.items()}
    return [_with(value, of) for value in tree] if isinstance(tree, list | tuple) else tree


def _renewed(tree: Any, nodes: Any) -> Any:
    """The tree of a rule's result, with its tensors replaced by `nodes` in order."""
    if isinstance(tree, Tensor):
        return next(nodes)
    if isinstance(tree, Pair):
        return Pair(next(nodes), None if tree.low is None else next(nodes))
    return [_renewed(value, nodes) for value in tree] if isinstance(tree, list | tuple) else tree


def _laid_as(tree: Any, before: Any) -> Any:
    """The tree of a rule's result, with the strides of the result that it replaces. The nodes after
    it were traced with these strides, and views and `as_strided` depend on them."""
    if isinstance(tree, list | tuple):
        return [_laid_as(part, own) for part, own in zip(tree, before, strict=True)]
    if isinstance(tree, Pair):
        return tree.each(lambda part: _laid_as(part, before))
    if not isinstance(tree, Tensor) or _lies_like(tree, before):
        return tree
    # Use the order in memory of a dense result. A result with gaps or repeats allows fewer views.
    order = sorted(range(before.dim()), key=lambda axis: -before.stride(axis))
    back = [order.index(axis) for axis in range(before.dim())]
    return tree.permute(order).clone(memory_format=torch.contiguous_format).permute(back)


def _lies_like(a: Tensor, b: Tensor) -> bool:
    steps = zip(a.shape, a.stride(), b.stride(), strict=True)
    same = a.storage_offset() == b.storage_offset() and all(size == 1 or own == other for size, own, other in steps)
    return same or a.numel() == 0


def _ruled(target: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name, base = str(target).removeprefix("aten."), _base(target)
    if target in library.PAIRS:
        return _own(library.PAIRS[target], args)
    if base in _LIKE:
        return _made(target, args, kwargs)
    if base in _MOVES:
        return _moved(_pair(args[0]), lambda own: target(own, *args[1:], **kwargs))
    if base in _PUTS:
        return _put(target, args, kwargs)
    if name not in RULES:
        raise NotImplementedError
    return RULES[name](*args, **kwargs)


def _own(function: Callable[..., Any], args: Sequence[Any]) -> Any:
    """Calls a torch.library operation's form for pairs, which takes and returns (high, low)."""
    wide = [_pair(arg) if isinstance(arg, Tensor) and arg.dtype == torch.float64 else arg for arg in args]
    results = function(*((arg.high, arg.lower) if isinstance(arg, Pair) else arg for arg in wide))
    if isinstance(results, tuple) and all(isinstance(part, Tensor) for part in results) and len(results) == 2:
        return Pair(*results)
    return [Pair(*part) if isinstance(part, tuple) else part for part in results]
