"""Tests compiled programs on the device: results as in the oracle, state that stays, failures."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from programs import Array, Builder, flipped, momentum, random_program, values_for
from vulkan_open import open_vulkan

from ebmvk.compute import expr, oracle
from ebmvk.compute.capture import graph_of
from ebmvk.compute.compiled import Cache, Compiled
from ebmvk.compute.ir import Program
from ebmvk.compute.lower import lower
from ebmvk.compute.state import State
from ebmvk.engine.recording import Recorder
from ebmvk.errors import ArgumentError, DeviceError, DeviceLost, OutOfMemory

HOST_MEMORY, LOST = -1, -4  # VkResult
TOLERANCE = 1e-5
"""Relative to the largest value of a result. Sums have at most 7 terms, so a value is rounded only
a few times."""


def prepared(compiled: Compiled, leaves: list[Array]) -> dict[int, Array]:
    """Writes the leaves that stay on the device, and returns the others."""
    compiled.write({compiled.names[i]: leaf for i, leaf in enumerate(leaves) if i not in compiled.fed})
    return {i: leaves[i] for i in compiled.fed}


def close(got: Array, want: Array) -> bool:
    size = max(1.0, float(np.abs(want).max(initial=0)))
    return bool(np.abs(got.astype(np.float64) - want).max(initial=0) <= TOLERANCE * size)


def steps(compiled: Compiled, seed: int, count: int = 3) -> list[Array]:
    """All results of some runs, and the state after them."""
    leaves = values_for(compiled.program, seed)
    prepared(compiled, leaves)
    found: list[Array] = []
    for step in range(count):
        fresh = values_for(compiled.program, seed + 100 * step)
        result = compiled.run({i: fresh[i] for i in compiled.fed})
        found += [result.outputs[i] for i in compiled.plan.fetched]
    kept = [name for i, name in enumerate(compiled.names) if i not in compiled.fed]
    return [*found, *compiled.read(kept).values()]


def oracle_steps(program: Program, fed: tuple[int, ...], seed: int, count: int = 3) -> list[Array]:
    leaves, found = values_for(program, seed), []
    for step in range(count):
        fresh = values_for(program, seed + 100 * step)
        leaves = [fresh[i] if i in fed else leaf.astype(np.float32) for i, leaf in enumerate(leaves)]
        outputs = oracle.run(program, leaves, np.float64)
        found += [output for i, output in enumerate(outputs) if i not in program.donated]
        for position, leaf in program.donated.items():
            leaves[leaf] = outputs[position]
    return [*found, *(leaf for i, leaf in enumerate(leaves) if i not in fed)]


@pytest.mark.parametrize("seed", range(12))
def test_random_programs_give_the_oracle_s_results(recorder: Recorder, seed: int) -> None:
    program = random_program(random.Random(seed))
    compiled = Compiled(recorder, program, poison=True)
    got, want = steps(compiled, seed), oracle_steps(program, compiled.fed, seed)
    assert len(got) == len(want)
    assert all(close(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("block", [False, True])
def test_sharing_memory_segments_and_poison_change_no_bit(recorder: Recorder, block: bool) -> None:
    program = momentum([(3, 5), (70,), (2, 2)], block=block)
    want = steps(Compiled(recorder, program), 1)
    for options in ({"alias": False}, {"poison": True}, {}):
        assert all(
            np.array_equal(a, b) for a, b in zip(steps(Compiled(recorder, program, **options), 1), want, strict=True)
        )
    sliced = Recorder(open_vulkan(slice_seconds=1e-9))
    assert all(np.array_equal(a, b) for a, b in zip(steps(Compiled(sliced, program), 1), want, strict=True))


def test_a_run_is_one_submission_and_moves_only_what_is_fed_and_fetched(recorder: Recorder) -> None:
    build = Builder()
    w, x, y = build.leaf(1000), build.leaf(3), build.leaf()
    wide = expr.load(w)
    build.output(build.loop(expr.op("add", wide, wide), (1000,)), w)
    build.output(build.loop(expr.op("mul", expr.load(x), expr.load(x)), (3,)))
    build.output(build.loop(expr.load(y), ()))
    compiled = Compiled(recorder, build.program)
    fed = prepared(compiled, values_for(build.program, 1))
    for _ in range(3):
        ran = compiled.run(fed).ran
        assert (ran.submissions, ran.dispatches) == (1, 1)
        assert ran.bytes_up == compiled.plan.nbytes["fed"] == 2 * recorder.alignment
        assert ran.bytes_down == compiled.plan.nbytes["results"] == 2 * recorder.alignment
    assert compiled.plan.dispatches == 1, "no loop needs another loop"


def test_planned_bytes_are_allocated_bytes(recorder: Recorder) -> None:
    program = momentum([(300, 50), (70,)])
    before = recorder.allocated
    compiled = Compiled(recorder, program)
    planned, staging = compiled.nbytes, compiled._alone.recording.staging_bytes
    bands = 6 * 4096  # guard bands, and memory in units of pages
    assert planned <= recorder.allocated - before <= planned + staging + bands
    del compiled
    assert recorder.allocated == before


def test_programs_of_other_shapes_share_their_state(recorder: Recorder) -> None:
    """Training on 5 rows, training on 2 rows, and reading the weights give the results of a single
    program."""

    def train(rows: int) -> Program:
        build = Builder()
        w, x = build.leaf(4), build.leaf(rows, 4)
        total = build.loop(expr.reduce("sum", expr.load(flipped(x))), (4, rows), 1)
        build.output(build.loop(expr.op("add", expr.load(w), expr.load(total)), (4,)), w)
        return build.program

    def look() -> Program:
        build = Builder()
        w = build.leaf(4)
        build.output(build.loop(expr.op("mul", expr.load(w), expr.load(w)), (4,)))
        return build.program

    state, want = State(recorder), np.ones(4, np.float32)
    many = Compiled(recorder, train(5), names=["w", "x"], state=state)
    few = Compiled(recorder, train(2), names=["w", "x"], state=state, arena=many.arena)
    seen = Compiled(recorder, look(), names=["w"], fed=[], state=state, arena=many.arena)
    assert few.arena is seen.arena is many.arena
    state.write({"w": want})
    for compiled, rows in ((many, 5), (few, 2), (many, 5)):
        x = np.arange(4.0 * rows, dtype=np.float32).reshape(rows, 4)
        compiled.run({1: x})
        want = want + x.sum(0)
    assert np.array_equal(seen.run({}).outputs[0], want * want)
    assert np.array_equal(state.read()["w"], want)
    with pytest.raises(ValueError, match=r"argument w is float32 \(4,\) on the device"):
        Compiled(recorder, momentum([(3,)]), names=["w", "m", "x", "rate"], state=state)


def test_single_arguments_of_a_block_and_blocks_of_the_same_order_share_it(recorder: Recorder) -> None:
    state = State(recorder)
    names = ["a", "b", "ma", "mb", "xa", "xb", "rate"]
    block = Compiled(recorder, momentum([(3, 5), (70,)], block=True), names=names, state=state)
    build = Builder()
    b = build.leaf(70)
    build.output(build.loop(expr.op("add", expr.load(b), expr.load(b)), (70,)))
    single = Compiled(recorder, build.program, names=["b"], fed=[], state=state)
    leaves = values_for(block.program, 3)
    prepared(block, leaves)
    assert np.array_equal(single.run({}).outputs[0], 2 * leaves[1])
    again = Compiled(recorder, momentum([(3, 5), (70,)], block=True), names=names, state=state)
    assert again._kept == block._kept
    with pytest.raises(ValueError, match="lie in another order"):
        Compiled(recorder, momentum([(70,), (3, 5)], block=True), names=["b", "a", *names[2:]], state=state)


def test_whole_numbers_and_bools_reach_the_device_and_return(recorder: Recorder) -> None:
    from ebmvk.compute.ir import Tensor

    program = Program()
    for number, dtype in enumerate(("int32", "bool", "uint32")):
        tensor = Tensor(number, (3,), dtype)  # type: ignore[arg-type]
        program.inputs.append(tensor)
        program.leaves.append(tensor.view())
        program.outputs.append(tensor.view())
    compiled = Compiled(recorder, program)
    fed = {0: np.array([-5, 0, 2**31 - 1]), 1: np.array([True, False, True]), 2: np.array([0, 1, 2**32 - 1])}
    outputs = compiled.run(fed).outputs
    assert [outputs[i].dtype for i in range(3)] == [np.int32, np.bool_, np.uint32]
    assert all(np.array_equal(outputs[i], fed[i]) for i in range(3))
    for leaf, value, text in (
        (0, np.array([0, 0, 2**31]), "values from 0 to 2147483648, which don't fit int32"),
        (2, np.array([-1, 0, 0]), "don't fit uint32"),
        (0, np.zeros(3, np.float32), "is float32, not int32"),
        (1, np.zeros((3, 1), np.bool_), r"has shape \(3, 1\), not \(3,\)"),
    ):
        with pytest.raises(ArgumentError, match=text):
            compiled.run({**fed, leaf: value})
    with pytest.raises(ValueError, match="expected arrays for the leaves"):
        compiled.run({0: fed[0]})


# ------------------------------------------------------------------------------------------ errors


def small(recorder: Recorder) -> tuple[Compiled, dict[int, Array]]:
    compiled = Compiled(recorder, momentum([(3, 5), (70,)]))
    return compiled, prepared(compiled, values_for(compiled.program, 2))


def test_arguments_without_values_are_named(recorder: Recorder) -> None:
    compiled = Compiled(recorder, momentum([(3, 5)]), names=["w", "m", "x", "rate"])
    leaves = values_for(compiled.program, 1)
    compiled.write({"w": leaves[0]})
    with pytest.raises(DeviceError, match="no values on the device for m"):
        compiled.run({2: leaves[2], 3: leaves[3]})
    with pytest.raises(ArgumentError, match="no argument is called q"):
        compiled.write({"q": leaves[0]})


def test_a_refused_submission_leaves_the_state_as_it_was() -> None:
    recorder = Recorder(open_vulkan())
    compiled, fed = small(recorder)
    before = compiled.read()
    recorder.backend._extension.inject_fault("vkQueueSubmit", 1, HOST_MEMORY)
    with pytest.raises(OutOfMemory):
        compiled.run(fed)
    assert all(np.array_equal(before[name], value) for name, value in compiled.read().items())
    compiled.run(fed)


def test_state_that_a_failed_run_may_have_changed_must_be_written_again() -> None:
    build = Builder()
    w = build.leaf(1000, 1000)
    value = expr.load(w)
    for _ in range(300):
        value = expr.op("add", value, expr.load(w))
    view = build.loop(value, w.shape)
    build.output(build.loop(expr.load(view), w.shape), w)
    recorder = Recorder(open_vulkan(slice_seconds=1e-9))
    compiled = Compiled(recorder, build.program)
    values = {"0": np.ones((1000, 1000), np.float32)}
    compiled.write(values)
    recorder.backend._extension.inject_fault("vkQueueSubmit", 2, HOST_MEMORY)
    with pytest.raises(OutOfMemory):
        compiled.run({})
    with pytest.raises(DeviceError, match="a run failed halfway"):
        compiled.run({})
    with pytest.raises(DeviceError, match="a run failed halfway"):
        compiled.read()
    compiled.write(values)
    compiled.run({})
    assert (compiled.read()["0"] == 301).all()


def test_a_lost_device_is_a_typed_error() -> None:
    recorder = Recorder(open_vulkan())
    compiled, fed = small(recorder)
    recorder.backend._extension.inject_fault("vkWaitForFences", 1, LOST)
    with pytest.raises(DeviceLost):
        compiled.run(fed)
    with pytest.raises(DeviceError):
        compiled.read()


def test_out_of_memory_names_the_planned_bytes_and_frees_everything() -> None:
    recorder = Recorder(open_vulkan(memory_limit=1 << 20))
    before = recorder.allocated
    with pytest.raises(OutOfMemory, match="limit"):
        Compiled(recorder, momentum([(1000, 100)]))
    assert recorder.allocated == before
    small(recorder)


def test_programs_are_compiled_once_and_the_oldest_is_dropped() -> None:
    recorder = Recorder(open_vulkan())
    cache, made = Cache(most=2), []

    def make(n: int) -> Compiled:
        made.append(n)
        return Compiled(recorder, momentum([(n,)]))

    for n in (1, 2, 1, 3, 1, 2):
        cache.get(n, lambda n=n: make(n))  # type: ignore[misc]
    assert made == [1, 2, 3, 2]
    assert len(cache) == 2


def test_other_programs_make_room_for_one_that_does_not_fit() -> None:
    recorder = Recorder(open_vulkan(memory_limit=1 << 20))
    cache = Cache()
    sizes = (40_000, 41_000)
    for n in sizes:
        cache.get(n, lambda n=n: Compiled(recorder, momentum([(n,)])))  # type: ignore[misc]
    assert len(cache) == 1
    with pytest.raises(OutOfMemory):
        cache.get(1, lambda: Compiled(recorder, momentum([(100_000,)])))


def test_results_without_elements(recorder: Recorder) -> None:
    """No node writes these results, and the other results are right."""
    x = torch.zeros(0, 3)
    program = lower(graph_of(lambda x: [x * 2, x.sum(0) + 1], [x]))
    nothing, sums = Compiled(recorder, program).run({0: x.numpy()}).outputs.values()
    assert nothing.shape == (0, 3)
    np.testing.assert_array_equal(sums, np.ones(3, np.float32))


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_product_with_a_constant_zero_keeps_nan_and_signs(recorder: Recorder, zero: float) -> None:
    """lavapipe's compiler makes any product with a constant 0 a 0."""
    x = np.array([np.nan, np.inf, -np.inf, 3, -3, 0, -0.0, 1e-45], np.float32)
    program = lower(graph_of(lambda x: [x * zero, zero * (x + 1)], [torch.from_numpy(x)]))
    with np.errstate(invalid="ignore"):
        wanted = x * np.float32(zero), np.float32(zero) * (x + 1)
    for found in (Compiled(recorder, program).run({0: x}).outputs.values(), oracle.run(program, [x])):
        for got, want in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(got, want)
            real = ~np.isnan(want)
            np.testing.assert_array_equal(np.signbit(got)[real], np.signbit(want)[real])
