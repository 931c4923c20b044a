"""Lowers a functional graph of torch to a program: each operation becomes nodes of ir.py.

The lowering of an operation gets views in place of tensors. Nothing is joined here: each result is
a tensor of its own, and fuse.py makes the program small.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ebmvk.compute import expr, primitives, views
from ebmvk.compute.capture import Captured
from ebmvk.compute.ir import Call, DType, Expr, Load, Loop, Program, Reduce, Store, Tensor, View
from ebmvk.compute.origins import origin_of
from ebmvk.engine import library
from ebmvk.errors import UnsupportedOperation

Number = float | int | bool
Value = View | float | int | bool | None

DTYPES: dict[torch.dtype, DType] = {
    torch.float32: "float32",
    torch.int64: "int32",
    torch.int32: "int32",
    torch.int16: "int32",
    torch.int8: "int32",
    torch.uint8: "int32",
    torch.bool: "bool",
}
"""{type of torch: its type on the device}. Small integers don't wrap around at their own size."""

_RANK: dict[DType, int] = {"bool": 0, "int32": 1, "uint32": 1, "float32": 2}

IGNORED = frozenset({"_assert_tensor_metadata.default", "_assert_async.msg", "_assert_scalar.default"})
RANDOM = ("rand", "randn", "randint", "bernoulli", "native_dropout", "multinomial", "normal", "uniform", "randperm",
          "exponential", "rand_like", "randn_like", "dropout")  # fmt: skip


@dataclass
class Lowering:
    """A program as it grows, and the operation that is being lowered.

    node: the operation's node in the graph. name: its name in the table of primitives. target: the
    operation itself. value: its result in the graph's notes, as tensors without data.
    """

    program: Program
    node: fx.Node
    count: int = 0

    # ----------------------------------------------------------------------- the current operation

    @property
    def name(self) -> str:
        return primitives.overload(self.node.target)

    @property
    def target(self) -> Any:
        return self.node.target

    @property
    def value(self) -> Any:
        return self.node.meta["val"]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def dtype(self) -> DType:
        return self.device_type(self.value.dtype)

    def device_type(self, dtype: torch.dtype) -> DType:
        found = DTYPES.get(dtype)
        if found is None:
            raise self.unsupported(f"a tensor of {dtype}", "Use float32, integers or bool.")
        return found

    def unsupported(self, what: str, hint: str = "") -> UnsupportedOperation:
        return UnsupportedOperation(
            f"{what} can't run on the device: {origin_of(self.node)}", hint=hint or "Write this line in another way."
        )

    # ------------------------------------------------------------------------------ making tensors

    def tensor(self, shape: Sequence[int], dtype: DType) -> Tensor:
        made = Tensor(self.count, tuple(shape), dtype)
        self.count += 1
        self.program.origins[made.id] = origin_of(self.node)
        return made

    def store(self, target: View, value: Expr, shape: Sequence[int] | None = None, reduced: int = 0) -> None:
        """Fills a view. Empty views need no loop; reductions over empty axes become constants."""
        shape = tuple(shape or target.shape)
        if 0 in target.shape:
            return
        if 0 in shape:
            shape, value, reduced = target.shape, self._of_nothing(value, len(target.shape)), 0
        self.program.nodes.append(Loop(shape, reduced, (Store(target, value),)))

    def _of_nothing(self, value: Expr, rank: int) -> Expr:
        """The value with each reduction replaced by its result for no terms (0 for a sum)."""
        identities: dict[str, Number] = {"sum": 0, "prod": 1, "any": False, "all": True}

        def change(part: Expr) -> Expr | None:
            if isinstance(part, Load):
                view = part.view
                return expr.load(View(view.tensor, view.shape[:rank], view.strides[:rank], view.offset))
            if isinstance(part, Reduce):
                if part.kind not in identities:
                    raise self.unsupported(f"the {part.kind} of no elements")
                return expr.const(identities[part.kind], part.dtype)
            return None

        return expr.rewrite([value], change)[0]

    def loop(self, shape: Sequence[int], value: Expr, reduced: int = 0) -> View:
        """A new tensor that holds the value at each point of the parallel axes."""
        target = self.tensor(shape[: len(shape) - reduced], value.dtype).view()
        self.store(target, value, shape, reduced)
        return target

    def call(
        self,
        name: str,
        inputs: Sequence[View],
        results: Sequence[tuple[Sequence[int], DType]],
        constants: Sequence[tuple[str, Number]] = (),
    ) -> list[View]:
        outputs = tuple(self.tensor(shape, dtype).view() for shape, dtype in results)
        if all(0 in output.shape for output in outputs):
            return list(outputs)
        if name == "matmul" and inputs[0].shape[-1] == 0:
            for output in outputs:
                self.store(output, self._no_product(inputs, output.shape, dict(constants).get("beta", 1.0)))
            return list(outputs)
        self.program.nodes.append(Call(name, tuple(inputs), outputs, tuple(constants)))
        return list(outputs)

    def _no_product(self, inputs: Sequence[View], shape: Sequence[int], beta: Number) -> Expr:
        """The result of a product over an axis of size 0: the tensor that is added, or 0."""
        if len(inputs) < 3:
            return expr.const(0.0, "float32")
        return expr.op("mul", expr.load(views.broadcast(inputs[2], shape)), expr.const(beta, "float32"))

    # ------------------------------------------------------------------------- reading and viewing

    def promoted(self, *values: Value) -> DType:
        """The type in which values are combined."""
        kinds: list[DType] = []
        for value in values:
            if isinstance(value, View):
                kinds.append(value.tensor.dtype)
            elif value is not None:
                kinds.append("bool" if isinstance(value, bool) else "int32" if isinstance(value, int) else "float32")
        return max(kinds, key=lambda kind: _RANK[kind])

    def element(self, value: Value, shape: Sequence[int], dtype: DType | None = None) -> Expr:
        """A value broadcast to a shape and converted to a type."""
        if isinstance(value, View):
            read = expr.load(views.broadcast(value, shape))
            return expr.cast_to(read, dtype) if dtype else read
        assert value is not None
        return expr.const(self._in_range(value, dtype or self.promoted(value)), dtype or self.promoted(value))

    def _in_range(self, value: Number, dtype: DType) -> Number:
        if dtype == "int32" and not -(2**31) <= value < 2**31:
            raise self.unsupported(f"the integer {value}", "Use integers below 2**31.")
        return value

    def pointwise(self, function: Callable[..., Expr], *values: Value, dtype: DType | None = None) -> View:
        """A function of each element. Arguments are converted to `dtype`, by default the result's
        type. The function's value is converted to the result's type."""
        result = self.dtype
        parts = [self.element(value, self.shape, dtype or result) for value in values]
        return self.loop(self.shape, expr.cast_to(function(*parts), result))

    def copied(self, view: View) -> View:
        """The same elements in a new dense tensor."""
        return self.loop(view.shape, expr.load(view))

    def viewed(self, view: View, function: Callable[[torch.Tensor], object]) -> list[View]:
        """The views that torch's view operation gives, of a copy if torch can't use the strides."""
        try:
            return views.through(view, function)
        except RuntimeError:
            return views.through(self.copied(view), function)

    def reshaped(self, view: View, shape: Sequence[int]) -> View:
        shape = tuple(shape)
        if view.shape == shape:
            return view
        if 0 in shape:
            return self.tensor(shape, view.tensor.dtype).view()
        return self.viewed(view, lambda meta: meta.view(shape))[0]


def lower(captured: Captured) -> Program:
    """The program of a captured step, one node for each operation.

    Raises UnsupportedOperation, which names the operation and the line of the step that calls it.
    """
    table = primitives.load()
    graph = captured.graph.graph
    low = Lowering(Program(), next(iter(graph.nodes)))
    values: dict[fx.Node, Any] = {}
    constants = _Constants(captured)
    changed: dict[fx.Node, View] = {}
    for node in graph.nodes:
        low.node = node
        if node.op == "placeholder":
            values[node] = _leaf(low, captured.names)
        elif node.op == "get_attr":
            constants.known.add(node)
        elif node.op == "output":
            _outputs(low, node, values, captured, changed, constants)
        elif node.target is operator.getitem:
            _take_item(node, values, constants)
        elif node.target is torch.ops.aten.copy_.default and node.args[0].op == "placeholder":
            source = _value(low, node.args[1], values, constants)
            changed[node.args[0]] = values[node] = low.pointwise(lambda a: a, source)
        else:
            _operation(low, node, values, constants, table)
    return low.program


class _Constants:
    """Nodes that don't depend on the step's arguments. They become expressions like other nodes,
    unless the device lacks their types. Then torch computes them here, once."""

    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self.known: set[fx.Node] = set()
        self.computed: dict[fx.Node, Any] = {}

    def note(self, node: fx.Node) -> bool:
        constant = all(parent in self.known for parent in node.all_input_nodes)
        if constant:
            self.known.add(node)
        return constant

    def compute(self, node: fx.Node) -> Any:
        if node not in self.computed:
            if node.op == "get_attr":
                self.computed[node] = getattr(self.captured.graph, str(node.target))
            else:
                args, keywords = fx.node.map_arg((node.args, node.kwargs), self.compute)
                assert callable(node.target)
                with torch.no_grad():
                    self.computed[node] = node.target(*args, **keywords)
        return self.computed[node]


def _foreign(node: fx.Node) -> bool:
    """True if the node's result or an argument has a type that the device doesn't have."""
    found = [node.meta.get("val"), *(parent.meta.get("val") for parent in node.all_input_nodes)]
    return any(isinstance(value, torch.Tensor) and value.dtype not in DTYPES for value in found)


def _leaf(low: Lowering, names: Sequence[str]) -> View:
    tensor = low.tensor(low.shape, low.dtype)
    low.program.origins[tensor.id] = names[len(low.program.leaves)]
    low.program.inputs.append(tensor)
    low.program.leaves.append(tensor.view())
    return tensor.view()


def _value(low: Lowering, node: Any, values: dict[fx.Node, Any], constants: _Constants) -> Any:
    """The views of a node; a constant is put into the program at its first use."""
    if node not in values:
        computed = constants.compute(node)
        values[node] = _constant(low, computed)
    return values[node]


def _constant(low: Lowering, computed: Any) -> Any:
    if isinstance(computed, list | tuple):
        return tuple(_constant(low, part) for part in computed)
    if not isinstance(computed, torch.Tensor):
        return computed
    dtype = low.device_type(computed.dtype)
    if not computed.dtype.is_floating_point and computed.numel():
        for end in (int(computed.max()), int(computed.min())):
            if not -(2**31) <= end < 2**31:
                raise low.unsupported(f"a constant that holds {end}", "Use integers below 2**31.")
    if computed.numel() == 1:
        return low.loop(computed.shape, expr.const(computed.item(), dtype))
    tensor = low.tensor(computed.shape, dtype)
    numpy_types: dict[DType, str] = {"float32": "float32", "int32": "int32", "uint32": "uint32", "bool": "bool"}
    low.program.constants[tensor] = computed.detach().cpu().contiguous().numpy().astype(numpy_types[dtype])
    return tensor.view()


def _take_item(node: fx.Node, values: dict[fx.Node, Any], constants: _Constants) -> None:
    source, position = node.args
    if source in values:
        values[node] = values[source][position]  # type: ignore[index]
    else:
        constants.note(node)


def _operation(
    low: Lowering, node: fx.Node, values: dict[fx.Node, Any], constants: _Constants, table: dict[str, Any]
) -> None:
    name = primitives.overload(node.target)
    if name in IGNORED:
        values[node] = None
        return
    if constants.note(node) and (_foreign(node) or any(parent not in values for parent in node.all_input_nodes)):
        return  # computed by torch when something needs it
    entry, kernel = table.get(name), library.KERNELS.get(node.target)  # type: ignore[arg-type]
    args, keywords = fx.node.map_arg((node.args, node.kwargs), lambda part: _value(low, part, values, constants))
    keywords = {key: value for key, value in keywords.items() if key not in {"device", "layout", "pin_memory"}}
    if entry is not None:
        values[node] = entry.lowering(low, *args, **keywords)
    elif kernel:
        views: Any = args  # an operation that is a kernel takes tensors only
        values[node] = _kernel(low, kernel, views)
    else:
        raise _missing(low, name)


def _kernel(low: Lowering, name: str, args: Sequence[View]) -> Any:
    """An operation that is a kernel of its own, which reads dense tensors."""
    inputs = [view if view.dense else low.copied(view) for view in args]
    several = isinstance(low.value, list | tuple)
    results = list(low.value) if several else [low.value]
    made = low.call(name, inputs, [(tuple(result.shape), low.device_type(result.dtype)) for result in results])
    return tuple(made) if several else made[0]


def _missing(low: Lowering, name: str) -> UnsupportedOperation:
    hint = "Write this line with the operations of the table of supported operations."
    if name.split(".", maxsplit=1)[0].removesuffix("_") in RANDOM:
        hint = "Draw random numbers on the host and pass them with the batch, or derive them from a seed with Philox."
    return UnsupportedOperation(f"the operation {low.target} isn't supported: {origin_of(low.node)}", hint=hint)


def _outputs(
    low: Lowering,
    node: fx.Node,
    values: dict[fx.Node, Any],
    captured: Captured,
    changed: dict[fx.Node, View],
    constants: _Constants,
) -> None:
    """Results in order, then the arguments that the step has changed in place."""
    program = low.program
    placeholders = [other for other in node.graph.nodes if other.op == "placeholder"]
    donated = dict(captured.donated)
    results: list[View] = []
    parts = node.args[0]
    for result in parts:  # type: ignore[union-attr]
        view = _value(low, result, values, constants)
        # If the step returns an argument that it changed in place, it returns the new value.
        results.append(changed.get(result, view))  # type: ignore[arg-type]
    for placeholder, view in changed.items():
        position = placeholders.index(placeholder)
        if position not in donated.values():
            donated[len(results)] = position
        results.append(view)
    taken: set[int] = set()
    for position, result in enumerate(results):
        view = result
        leaf = donated.get(position)
        own = leaf is not None and view == program.leaves[leaf]
        lives = view.tensor in program.inputs or view.tensor in program.constants or view.tensor.id in taken
        if not own and (lives or not view.dense or math.prod(view.shape) * 4 != view.tensor.bytes):
            view = low.copied(view)
        taken.add(view.tensor.id)
        program.outputs.append(view)
    program.donated = donated
