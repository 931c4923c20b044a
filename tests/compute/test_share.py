"""Tests that independent loops share a dispatch, and that each gives the same bits as alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from kernel_support import LEAST, Array, Numpy, device, op, pointwise, tensor, validate, view, vulkan  # noqa: F401
from vulkan_open import open_vulkan

from ebmvk.compute.compiled import Compiled
from ebmvk.compute.emit import fit, kernel_of_all, needs
from ebmvk.compute.ir import Batch, Call, Const, Load, Loop, Program, Reduce, Store, Tensor
from ebmvk.compute.lowering import Launch
from ebmvk.compute.share import LITTLE, MOST, PATIENCE, shared
from ebmvk.engine.recording import Recorder

LIMITS = dataclasses.replace(LEAST, bindings=32)


def rows(source: Tensor, count: int, length: int, *, columns: bool = False) -> tuple[Tensor, Loop]:
    """The sum of squares of each row, or of each column, of a matrix."""
    strides = (1, count) if columns else (length, 1)
    read = Load(view(source, (count, length), strides))
    result = tensor(count)
    return result, Loop((count, length), 1, (Store(result.view(), Reduce("sum", op("mul", read, read), "float32")),))


def some_loops(rng: np.random.Generator) -> tuple[list[Tensor], list[Loop]]:
    """Loops of all kinds, and the tensors that they read."""
    sources, loops = [], []
    for kind in rng.permutation(["rows", "columns", "points", "one"]):
        count, length = (int(size) for size in rng.integers(1, 70, 2))
        sources.append(tensor(count, length))
        if kind in {"rows", "columns"}:
            loops.append(rows(sources[-1], count, length, columns=kind == "columns")[1])
        else:
            shape = (count, length) if kind == "points" else ()
            read = Load(view(sources[-1], shape, (length, 1)[: len(shape)]))
            loops.append(pointwise(op("exp", read), shape)[1])
    return sources, loops


@pytest.mark.parametrize("seed", range(4))
def test_loops_in_one_dispatch_give_the_bits_of_each_alone(device: Numpy, seed: int, tmp_path) -> None:  # noqa: F811
    rng = np.random.default_rng(seed)
    sources, loops = some_loops(rng)
    values: dict[Tensor, Array] = {t: rng.standard_normal(t.shape).astype(np.float32) for t in sources}
    found = [needs(loop, device.limits) for loop in loops]
    together = [0]
    for number in range(1, len(loops)):
        wanted = [found[n] for n in (*together, number)]
        if fit([part for part in wanted if part is not None], device.limits):
            together.append(number)
    chosen = [loops[number] for number in together]
    assert len(chosen) > 1, "a loop without reductions fits with any other loop"
    kernel = kernel_of_all(chosen, device.limits)
    validate(kernel.spirv, tmp_path)
    results = {store.view.tensor for loop in chosen for store in loop.stores}
    words = {t: values[t].reshape(-1).view(np.uint32) for t in kernel.tensors if t in values}
    words |= {t: np.full(max(t.bytes // 4, 1), 7, np.uint32) for t in results}
    got = device.dispatch((kernel,), words, results)
    for loop in chosen:
        for result, alone in device.run(loop, values).values.items():
            assert got[result].tobytes() == alone.tobytes()


def test_a_dispatch_has_no_more_tensors_and_memory_than_the_device() -> None:
    a, b = (needs(rows(tensor(8, 2048), 8, 2048)[1], LIMITS) for _ in range(2))
    assert a is not None
    assert b is not None
    assert a.group == b.group
    assert a.shared_bytes > 0
    assert fit([a, b], dataclasses.replace(LIMITS, shared_bytes=2 * a.shared_bytes))
    assert not fit([a, b], dataclasses.replace(LIMITS, shared_bytes=2 * a.shared_bytes - 1))
    assert not fit([a, b], dataclasses.replace(LIMITS, bindings=3))
    assert not fit([a, dataclasses.replace(b, group=a.group // 2)], LIMITS)


def times_two(source: Tensor) -> tuple[Tensor, Loop]:
    return pointwise(op("mul", Load(source.view()), Const(2.0, "float32")), source.shape)


def test_a_loop_never_shares_a_dispatch_with_what_it_needs() -> None:
    first = tensor(4)
    nodes: list[Loop] = []
    made, loop = times_two(first)
    nodes.append(loop)
    for _ in range(5):
        made, loop = times_two(made)
        nodes.append(loop)
    assert shared(nodes, LIMITS) == nodes


def test_independent_loops_run_together_but_none_waits_for_long() -> None:
    early = [times_two(tensor(4))[1] for _ in range(3)]
    assert shared(early, LIMITS) == [Batch(tuple(early))]
    calls = [Call("other", (tensor(4).view(),), (tensor(4).view(),)) for _ in range(2 * PATIENCE)]
    found = shared([early[0], *calls], LIMITS)
    assert found.index(early[0]) == PATIENCE - 1
    many = [times_two(tensor(4))[1] for _ in range(2 * MOST)]
    assert [len(batch.loops) for batch in shared(many, LIMITS) if isinstance(batch, Batch)] == [MOST, MOST]


def test_a_loop_that_reads_little_shares_an_earlier_dispatch() -> None:
    """An example is a loop that writes the zeros with which a sum by index begins."""
    _, large = times_two(tensor(LITTLE))
    zeros, late = pointwise(Const(0.0, "float32"), (4,))
    needing = Call("other", (large.stores[0].view,), (tensor(4).view(),))
    last = Call("other", (zeros.view(),), (tensor(4).view(),))
    assert shared([large, needing, late, last], LIMITS) == [Batch((late, large)), needing, last]
    writer = Call("other", (tensor(4).view(),), (zeros.view(),))
    assert shared([large, needing, writer, late, last], LIMITS) == [large, needing, writer, late, last]


def test_what_a_loop_reads_is_not_overwritten_before_it_runs() -> None:
    source = tensor(4)
    _, reader = times_two(source)
    writer = Call("other", (tensor(4).view(),), (source.view(),))
    beside = times_two(tensor(4))[1]
    assert shared([reader, beside, writer], LIMITS) == [Batch((reader, beside)), writer]


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.5, 2.0)])
def test_parts_of_a_product_add_up_to_it(alpha: float, beta: float) -> None:
    """The error is at most 4 sqrt(k) roundings of the sum of sizes, as for all products."""
    rng = np.random.default_rng(3)
    a, b, c = (rng.standard_normal(shape).astype(np.float32) for shape in ((40, 1000), (1000, 24), (24,)))
    tensors = [tensor(*x.shape) for x in (a, b, c)]
    views = [t.view() for t in tensors[:2]]
    if beta:
        views.append(view(tensors[2], (40, 24), (0, 1)))
    result = tensor(40, 24)
    program = Program(inputs=tensors[: len(views)], outputs=[result.view()])
    program.leaves = [t.view() for t in program.inputs]
    program.nodes = [Call("matmul", tuple(views), (result.view(),), (("alpha", alpha), ("beta", beta)))]
    compiled = Compiled(Recorder(open_vulkan()), program, fed=range(len(views)), fetched=[0])
    names = [getattr(step.node, "name", "a loop") for step in compiled.plan.steps]
    assert names == ["matmul_parts", "a loop"], "the sums are cut into parts"
    found = compiled.run(dict(enumerate((a, b, c)[: len(views)]))).outputs[0]
    wide = [x.astype(np.float64) for x in (a, b, c)]
    exact = alpha * (wide[0] @ wide[1]) + beta * wide[2]
    limit = 4 * np.sqrt(1000) * 2.0**-24 * (abs(alpha) * (abs(wide[0]) @ abs(wide[1])) + abs(beta * wide[2]))
    assert (abs(found - exact) <= limit).all()
    again = compiled.run(dict(enumerate((a, b, c)[: len(views)]))).outputs[0]
    assert again.tobytes() == found.tobytes()


def test_zeros_of_sums_by_index_are_a_loop() -> None:
    """Rows that no index names are 0; sums of two whole numbers are exact."""
    source, index, result = tensor(5, 3), tensor(5, dtype="int32"), tensor(4, 3)
    program = Program(inputs=[source, index], outputs=[result.view()])
    program.leaves = [source.view(), index.view()]
    program.nodes = [Call("index_add", (source.view(), index.view()), (result.view(),))]
    compiled = Compiled(Recorder(open_vulkan()), program, fed=(0, 1), fetched=[0], poison=True)
    assert [type(step.node) for step in compiled.plan.steps] == [Loop, Call]
    assert all(isinstance(part, Launch) for step in compiled.plan.steps for part in step.lowered.steps), "no fills"
    rows = np.arange(15, dtype=np.float32).reshape(5, 3)
    found = compiled.run({0: rows, 1: np.array([3, 0, 3, 1, 9], np.int32)}).outputs[0]
    np.testing.assert_array_equal(found, [rows[1], rows[3], np.zeros(3), rows[0] + rows[2]])
