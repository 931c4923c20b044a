"""Tests loops that run where a product stores its results: they give the bits of two dispatches."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ebmvk.compute import expr, oracle, plan
from ebmvk.compute.compiled import Compiled
from ebmvk.compute.emit import kernel_of
from ebmvk.compute.finish import MOST, finished
from ebmvk.compute.graft import Graft
from ebmvk.compute.ir import Call, DType, Expr, Finished, Loop, Program, Store, Tensor, View
from ebmvk.engine.recording import Limits, Recorder

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def limits(recorder: Recorder) -> Limits:
    return recorder.limits


def f32(number: float) -> Expr:
    return expr.const(number, "float32")


def gelu(x: Expr) -> Expr:
    half = expr.op("mul", x, f32(0.5))
    return expr.op("mul", half, expr.op("add", expr.op("erf", expr.op("mul", x, f32(0.70710678))), f32(1.0)))


class Pair:
    """A program of a product and a loop over its result. Inputs: a, b, and `beside` of the result's
    shape."""

    def __init__(self, rows: int, inner: int, columns: int, batch: int = 1) -> None:
        shapes = (batch, rows, inner), (batch, inner, columns), (batch, rows, columns), (batch, rows, columns)
        self.a, self.b, self.beside, self.product = (Tensor(n, shape, "float32") for n, shape in enumerate(shapes, 1))
        self.call = Call("matmul", (self.a.view(), self.b.view()), (self.product.view(),))
        self.shape = shapes[-1]
        self.x = expr.load(self.product.view())
        self.y = expr.load(self.beside.view())

    def fresh(self, number: int, dtype: DType = "float32", shape: Sequence[int] = ()) -> Tensor:
        return Tensor(10 + number, tuple(shape) or self.shape, dtype)

    def program(self, loop: Loop, *more: Tensor) -> Program:
        made = Program(inputs=[self.a, self.b, self.beside], nodes=[self.call, loop])
        made.leaves = [tensor.view() for tensor in made.inputs]
        made.outputs = [store.view.tensor.view() for store in loop.stores] + [tensor.view() for tensor in more]
        return made

    def values(self, seed: int = 0) -> dict[int, Array]:
        rng = np.random.default_rng(seed)
        return {n: rng.standard_normal(t.shape).astype(np.float32) for n, t in enumerate((self.a, self.b, self.beside))}


def run(recorder: Recorder, program: Program, values: dict[int, Array], limits: Limits) -> tuple[list[Array], Compiled]:
    fed, fetched = range(len(program.leaves)), range(len(program.outputs))
    made = plan.make_plan(program, limits, fed=fed, fetched=fetched)
    compiled = Compiled(recorder, program, fed=fed, fetched=fetched, plan=made, poison=True)
    first, again = (compiled.run(values).outputs for _ in range(2))
    assert all(first[n].tobytes() == again[n].tobytes() for n in fetched), "equal runs give equal bits"
    return [first[n] for n in fetched], compiled


def check(
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    program: Program,
    values: dict[int, Array],
    limits: Limits,
) -> list[Array]:
    """The results of one dispatch, after checking that two dispatches give the same results."""
    found, compiled = run(recorder, program, values, limits)
    assert [type(step.node) for step in compiled.plan.steps] == [Finished]
    for step in compiled.plan.steps[0].lowered.steps:
        validate(step.kernel.spirv)  # type: ignore[union-attr]
    with monkeypatch.context() as patch:
        patch.setattr(plan, "finished", lambda nodes, *_: list(nodes))
        apart, other = run(recorder, program, values, limits)
    assert len(other.plan.steps) == 2
    for one, two in zip(found, apart, strict=True):
        assert one.tobytes() == two.tobytes()
    return found


def validate(spirv: bytes) -> None:
    if shutil.which("spirv-val"):
        subprocess.run(["spirv-val", "--target-env", "vulkan1.2", "-"], input=spirv, check=True)


DEVICES: dict[str, dict[str, Any]] = {
    "own": {},
    "card": {"kind": "discrete"},
    "no subgroups": {"kind": "cpu", "subgroup": 0},
}


@pytest.mark.parametrize("name", list(DEVICES))
def test_a_function_of_a_product_has_the_bits_of_two_dispatches(
    recorder: Recorder, limits: Limits, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Forward, the product is kept. Backward, only its product with another tensor is kept."""
    limits = replace(limits, **DEVICES[name])
    pair = Pair(13, 17, 11, batch=2)
    to = [pair.fresh(n) for n in range(2)]
    forward = Loop(pair.shape, 0, (Store(to[0].view(), gelu(pair.x)),))
    found = check(recorder, monkeypatch, pair.program(forward, pair.product), pair.values(), limits)
    exact = np.matmul(pair.values()[0], pair.values()[1], dtype=np.float64)
    assert np.abs(found[1] - exact).max() < 1e-5  # 17 terms of size 1: 4 sqrt(17) 2^-24 of their sum
    backward = Loop(pair.shape, 0, (Store(to[1].view(), expr.op("mul", pair.x, expr.op("sin", pair.y))),))
    check(recorder, monkeypatch, pair.program(backward), pair.values(1), limits)


def test_any_strides_types_and_places_are_those_of_two_dispatches(
    recorder: Recorder, limits: Limits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop over another shape; turned results, a bool, a repeated row. Then one that uses the
    points' own indices."""
    pair = Pair(6, 5, 8, batch=2)
    pair.call = replace(pair.call, inputs=(*pair.call.inputs, pair.beside.view()), constants=(("alpha", 0.5),))
    turned, positive, whole = pair.fresh(0, shape=(2, 8, 6)), pair.fresh(1, "bool"), pair.fresh(2)
    shape = (2, 6, 2, 4)
    dense = (48, 8, 4, 1)
    product = expr.load(View(pair.product, shape, dense, 0))
    row = expr.load(View(pair.beside, shape, (0, 0, 4, 1), 8))
    value = expr.op("add", product, row)
    loop = Loop(
        shape,
        0,
        (
            Store(View(turned, shape, (48, 1, 24, 6), 0), value),
            Store(View(positive, shape, dense, 0), expr.op("gt", product, f32(0.0))),
        ),
    )
    found = check(recorder, monkeypatch, pair.program(loop), pair.values(), limits)
    assert 0 < found[1].sum() < found[1].size, "both signs occur"
    places = [expr.cast_to(expr.axis(axis), "float32") for axis in range(3)]
    value = expr.op("add", expr.op("mul", pair.x, places[1]), expr.op("mul", places[0], places[2]))
    indexed = Loop(pair.shape, 0, (Store(whole.view(), value),))
    check(recorder, monkeypatch, pair.program(indexed), pair.values(), limits)


def test_values_that_are_not_finite_stay_at_their_points(
    recorder: Recorder, limits: Limits, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair(9, 4, 9)
    values = pair.values()
    values[0][0, 3, 2], values[1][0, 1, 5], values[2][0, 8, 8] = np.inf, np.nan, np.inf
    to = pair.fresh(0)
    loop = Loop(pair.shape, 0, (Store(to.view(), expr.op("add", gelu(pair.x), pair.y)),))
    (found,) = check(recorder, monkeypatch, pair.program(loop), values, limits)
    assert np.isnan(found[0, :, 5]).all()
    ordinary = np.ones((9, 9), bool)
    ordinary[3, :], ordinary[:, 5], ordinary[8, 8] = False, False, False
    assert np.isfinite(found[0][ordinary]).all()
    assert found[0, 8, 8] == np.inf


def test_the_oracle_runs_both(limits: Limits) -> None:
    pair = Pair(3, 4, 5)
    to = pair.fresh(0)
    (node,) = finished(
        [pair.call, Loop(pair.shape, 0, (Store(to.view(), expr.op("add", pair.x, pair.y)),))], {to.id}, limits
    )
    values = {tensor.id: value.reshape(-1).astype(np.float64) for tensor, value in zip(
        (pair.a, pair.b, pair.beside), pair.values().values(), strict=True
    )}  # fmt: skip
    oracle.run_node(node, values, np.float64)
    a, b, beside = pair.values().values()
    np.testing.assert_allclose(values[to.id].reshape(to.shape), a.astype(np.float64) @ b + beside, rtol=1e-12)


def alone(limits: Limits, pair: Pair, *nodes: Any, kept: Sequence[Tensor] = ()) -> bool:
    """True if no loop joins the product."""
    made = finished([pair.call, *nodes], {tensor.id for tensor in kept}, limits)
    return not any(isinstance(node, Finished) for node in made)


def test_only_loops_that_need_one_result_at_each_point_join(limits: Limits) -> None:
    pair = Pair(4, 3, 4)
    to = pair.fresh(0).view()
    same = Loop(pair.shape, 0, (Store(to, expr.op("neg", pair.x)),))
    assert not alone(limits, pair, same)
    turned = expr.load(View(pair.product, pair.shape, (16, 1, 4), 0))
    assert alone(limits, pair, Loop(pair.shape, 0, (Store(to, turned),)))
    assert alone(limits, pair, Loop(pair.shape, 0, (Store(to, expr.op("add", pair.x, turned)),)))
    total = Loop(pair.shape, 1, (Store(View(to.tensor, (1, 4), (4, 1), 0), expr.reduce("sum", pair.x)),))
    assert alone(limits, pair, total)
    at = expr.load_at(pair.product.view(), [expr.const(0, "int32")] * 3)
    assert alone(limits, pair, Loop(pair.shape, 0, (Store(to, expr.op("add", pair.x, at)),)))


def test_a_loop_joins_only_where_order_and_memory_allow(limits: Limits) -> None:
    pair = Pair(4, 3, 4)
    to, other = pair.fresh(0).view(), pair.fresh(1).view()
    loop = Loop(pair.shape, 0, (Store(to, expr.op("add", pair.x, pair.y)),))
    # A node between the two reads the product and writes what the loop reads.
    between = Call("scan_sum", (pair.product.view(),), (pair.beside.view(),))
    assert alone(limits, pair, between, loop)
    # A node between the two doesn't need the product, so the product moves behind this node.
    writer = Call("scan_sum", (other,), (pair.beside.view(),))
    moved = finished([pair.call, writer, loop], {to.tensor.id}, limits)
    assert [type(node) for node in moved] == [Call, Finished]
    # The loop reads what another node has written over the product.
    again = Call("scan_sum", (other,), (pair.product.view(),))
    assert alone(limits, pair, again, loop)
    # A dispatch never writes what the product still reads.
    square = Pair(4, 4, 4)
    assert alone(limits, square, Loop(square.shape, 0, (Store(square.a.view(), square.x),)))
    assert alone(limits, square, Loop(square.shape, 0, (Store(square.product.view(), expr.op("neg", square.x)),)))


def test_a_product_is_stored_only_if_it_is_needed(limits: Limits) -> None:
    pair = Pair(4, 3, 4)
    to = pair.fresh(0).view()
    loop = Loop(pair.shape, 0, (Store(to, expr.op("neg", pair.x)),))
    reader = Call("scan_sum", (pair.product.view(),), (pair.fresh(1).view(),))
    for nodes, kept, stores in (([loop], [], 1), ([loop], [pair.product], 2), ([loop, reader], [], 2)):
        made = finished([pair.call, *nodes], {tensor.id for tensor in kept}, limits)
        assert isinstance(made[0], Finished)
        assert len(made[0].loop.stores) == stores


def test_large_loops_stay_alone(limits: Limits) -> None:
    pair = Pair(4, 3, 4)
    to = pair.fresh(0).view()
    value = pair.x
    for _ in range(MOST):
        value = expr.op("mul", value, pair.y)
    assert not alone(limits, pair, Loop(pair.shape, 0, (Store(to, value),)))
    value = expr.op("mul", value, pair.y)
    assert alone(limits, pair, Loop(pair.shape, 0, (Store(to, value),)))
    small = Loop(pair.shape, 0, (Store(to, expr.op("add", pair.x, pair.y)),))
    assert not alone(replace(limits, bindings=5), pair, small)
    assert alone(replace(limits, bindings=4), pair, small)


def test_a_kernel_that_stores_twice_takes_no_other_code(limits: Limits) -> None:
    source, to = Tensor(1, (8,), "float32"), Tensor(2, (16,), "float32")
    value = expr.load(source.view())
    stores = tuple(Store(View(to, (8,), (1,), 8 * half), value) for half in range(2))
    made = kernel_of(Loop((8,), 0, stores), limits)
    binding = made.tensors.index(to)
    with pytest.raises(ValueError, match="written by 2 instructions"):
        Graft(made.spirv, binding)


def test_the_shipped_products_store_once(extension: None) -> None:
    """A compiled shader must not write results with two instructions."""
    from ebmvk.compute.finish import JOINABLE, LANES, RESULT
    from ebmvk.engine.recording import shipped

    for kernel in JOINABLE:
        Graft(shipped(kernel, kernel in LANES), RESULT)
