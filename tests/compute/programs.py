"""Makes programs of the compiler, by hand and at random, for tests of planning and running them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from ebmvk.compute import expr
from ebmvk.compute.ir import Expr, Loop, Program, Store, Tensor, View
from ebmvk.engine.recording import Limits

Array = np.ndarray[Any, Any]
LIMITS = Limits(
    group=128, groups=65535, groups_yz=65535, shared_bytes=16384, range_bytes=1 << 27, bindings=16, push_bytes=128,
    alignment=64, subgroup=0, loop_rounds=1 << 30, kind="discrete",
)  # fmt: skip


class Builder:
    """Adds inputs and loops to a program; each loop fills a new tensor."""

    def __init__(self) -> None:
        self.program = Program()
        self._last = 0

    def tensor(self, *shape: int) -> Tensor:
        self._last += 1
        return Tensor(self._last, shape, "float32")

    def leaf(self, *shape: int) -> View:
        tensor = self.tensor(*shape)
        self.program.inputs.append(tensor)
        self.program.leaves.append(tensor.view())
        return tensor.view()

    def leaves(self, *shapes: tuple[int, ...]) -> list[View]:
        """Arguments side by side in one input."""
        offsets = [0]
        for shape in shapes:
            offsets.append(offsets[-1] + -(-int(np.prod(shape)) // 64) * 64)
        tensor = self.tensor(offsets[-1])
        self.program.inputs.append(tensor)
        made = [part(tensor, shape, offset) for shape, offset in zip(shapes, offsets, strict=False)]
        self.program.leaves.extend(made)
        return made

    def constant(self, values: Array) -> View:
        tensor = self.tensor(*values.shape)
        self.program.constants[tensor] = values
        return tensor.view()

    def loop(self, value: Expr, shape: tuple[int, ...], reduced: int = 0, into: View | None = None) -> View:
        into = self.tensor(*shape[: len(shape) - reduced]).view() if into is None else into
        self.program.nodes.append(Loop(shape, reduced, (Store(into, value),)))
        return into

    def output(self, view: View, replaces: View | None = None) -> None:
        if replaces is not None:
            self.program.donated[len(self.program.outputs)] = self.program.leaves.index(replaces)
        self.program.outputs.append(view)


def part(tensor: Tensor, shape: tuple[int, ...], offset: int) -> View:
    dense = Tensor(0, shape, tensor.dtype).view()
    return View(tensor, shape, dense.strides, offset)


def flipped(view: View) -> View:
    """The view with its axes in reverse order."""
    return View(view.tensor, view.shape[::-1], view.strides[::-1], view.offset)


def momentum(shapes: list[tuple[int, ...]], *, block: bool = False) -> Program:
    """One step of gradient descent with momentum: m = 0.9 m + w - x, then w -= rate m.

    Each weight has a loop of its own. With `block`, all weights are one block, which one loop
    updates.
    """
    build = Builder()
    weights = build.leaves(*shapes) if block else [build.leaf(*shape) for shape in shapes]
    moments = build.leaves(*shapes) if block else [build.leaf(*shape) for shape in shapes]
    targets = build.leaves(*shapes) if block else [build.leaf(*shape) for shape in shapes]
    rate = build.leaf()
    ranges = [(weights[0].tensor.view(), moments[0].tensor.view(), targets[0].tensor.view())]
    if not block:
        ranges = list(zip(weights, moments, targets, strict=True))
    new: list[tuple[View, View]] = []
    for w, m, x in ranges:
        gradient = expr.op("sub", expr.load(w), expr.load(x))
        moment = expr.op("add", expr.op("mul", expr.const(0.9, "float32"), expr.load(m)), gradient)
        far = View(rate.tensor, w.shape, (0,) * len(w.shape), 0)
        stores = [build.tensor(*w.shape).view() for _ in range(2)]
        values = [expr.op("sub", expr.load(w), expr.op("mul", expr.load(far), moment)), moment]
        build.program.nodes.append(Loop(w.shape, 0, tuple(Store(s, v) for s, v in zip(stores, values, strict=True))))
        new.append((stores[0], stores[1]))
    for i, (w, m, shape) in enumerate(zip(weights, moments, shapes, strict=True)):
        new_w, new_m = new[0 if block else i]
        build.output(part(new_w.tensor, shape, w.offset), w)
        build.output(part(new_m.tensor, shape, m.offset), m)
    return build.program


OPERATIONS = ("add", "sub", "mul", "maximum", "minimum")


def random_program(chance: random.Random) -> Program:
    """Loops over matrices, some transposed, with sums of rows.

    Some results replace arguments; some are arguments themselves.
    """
    build = Builder()
    a, b = chance.randint(1, 7), chance.randint(1, 7)
    state = [build.leaf(a, b) for _ in range(chance.randint(1, 3))]
    seen = [*state, *(build.leaf(a, b) for _ in range(2))]
    seen.append(build.constant(np.arange(a * b, dtype=np.float32).reshape(a, b)))
    rows = [build.leaf(a)]
    for _ in range(chance.randint(1, 14)):
        x, y = chance.choice(seen), chance.choice(seen)
        value = expr.op(chance.choice(OPERATIONS), expr.load(x), expr.load(y))
        match chance.randint(0, 4):
            case 0:
                total = expr.reduce("sum", value)
                rows.append(build.loop(total, (a, b), 1))
            case 1:
                row = chance.choice(rows)
                wide = View(row.tensor, (a, b), (row.strides[0], 0), row.offset)
                seen.append(build.loop(expr.op("mul", value, expr.load(wide)), (a, b)))
            case 2:
                into = flipped(build.tensor(b, a).view())
                seen.append(build.loop(value, (a, b), into=into))
            case _:
                seen.append(build.loop(value, (a, b)))
    for leaf in state:
        if chance.random() < 0.8:
            build.output(chance.choice(seen[-4:] if chance.random() < 0.7 else seen), leaf)
    for _ in range(chance.randint(0, 2)):
        build.output(chance.choice([*seen, *rows]))
    return build.program


def values_for(program: Program, seed: int) -> list[Array]:
    generator = np.random.default_rng(seed)
    return [np.asarray(generator.normal(size=leaf.shape), np.float32) for leaf in program.leaves]
