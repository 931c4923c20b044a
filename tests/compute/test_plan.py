"""Tests plans: no value is overwritten before its last use, and donated results end where the next
run reads them. Planned memory is simulated on the host."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from programs import LIMITS, Array, Builder, flipped, momentum, part, random_program, values_for

from ebmvk.compute import expr, oracle
from ebmvk.compute.ir import Loop, Node, Program, Store, Tensor, View
from ebmvk.compute.lowering import Fresh, Kernel, Launch, Lowered
from ebmvk.compute.plan import Plan, make_plan
from ebmvk.engine.recording import Limits
from ebmvk.errors import ArgumentError

pytestmark = pytest.mark.usefixtures("extension")


def lower(node: Node, limits: Limits, fresh: Fresh) -> Lowered:
    """One dispatch for each node, with a scratch tensor, so that scratch tensors are tested too."""
    tensors = {view.tensor: None for view in (*oracle.written(node), *oracle.read(node))}
    scratch = fresh((10,), "float32")
    return Lowered((Launch(Kernel("k", 1), (*tensors, scratch), b"", (1, 1, 1)),), (scratch,), 1e6, 1e6)


def plan_of(program: Program, **options: object) -> Plan:
    return make_plan(program, LIMITS, lower=lower, **options)  # type: ignore[arg-type]


class Simulation:
    """The plan's memory on the host. It begins as NaN, and every scratch tensor is overwritten with
    NaN by its own node."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.regions = {name: np.full(size // 4, np.nan, np.float32) for name, size in plan.nbytes.items()}
        self.values = {number: self.elements(number) for number in plan.places}
        for tensor, array in plan.program.constants.items():
            self.values[tensor.id][:] = np.asarray(array).reshape(-1)

    def elements(self, number: int) -> Array:
        place = self.plan.places[number]
        size = next((tensor.bytes // 4 for tensor in self.tensors() if tensor.id == number), 0)
        return self.regions[place.region][place.offset // 4 :][:size]

    def tensors(self) -> list[Tensor]:
        made = [tensor for step in self.plan.steps for tensor in step.lowered.scratch]
        made += [view.tensor for step in self.plan.steps for view in oracle.written(step.node)]
        return [*made, *self.plan.program.inputs, *self.plan.program.constants]

    def feed(self, leaves: list[Array], positions: set[int]) -> None:
        for number, (leaf, value) in enumerate(zip(self.plan.program.leaves, leaves, strict=True)):
            if number in positions:
                oracle.seen(self.values, leaf)[...] = value

    def run(self) -> dict[int, Array]:
        for step in self.plan.steps:
            for tensor in step.lowered.scratch:
                self.values[tensor.id][:] = np.nan
            oracle.run_node(step.node, self.values, np.float32)
        for source, target in self.plan.settled.copies:
            oracle.seen(self.values, target)[...] = oracle.seen(self.values, source)
        return {i: oracle.seen(self.values, self.plan.settled.outputs[i]).copy() for i in self.plan.fetched}


def same(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def check(program: Program, plan: Plan, seed: int) -> None:
    """Checks that three runs in a row, each on the results before it, give the oracle's bits."""
    leaves = values_for(program, seed)
    simulation = Simulation(plan)
    simulation.feed(leaves, set(range(len(leaves))))
    replaced = set(program.donated.values())
    for run in range(3):
        fresh = values_for(program, seed + 1000 * run)
        leaves = [leaf if i in replaced else fresh[i] for i, leaf in enumerate(leaves)]
        simulation.feed(leaves, set(range(len(leaves))) - replaced)
        want = oracle.run(program, leaves, np.float32)
        got = simulation.run()
        assert all(same(got[i], want[i]) for i in got)
        for position, leaf in program.donated.items():
            leaves[leaf] = want[position]
            assert same(oracle.seen(simulation.values, program.leaves[leaf]).copy(), want[position])


@pytest.mark.parametrize("seed", range(40))
def test_random_programs_keep_every_value_until_its_last_use(seed: int) -> None:
    program = random_program(random.Random(seed))
    shared, apart = plan_of(program), plan_of(program, alias=False)
    check(program, shared, seed)
    check(program, apart, seed)
    assert shared.peak_bytes <= apart.peak_bytes


def test_a_chain_needs_the_memory_of_two_links() -> None:
    build = Builder()
    view = build.leaf(1000)
    for _ in range(20):
        view = build.loop(expr.op("add", expr.load(view), expr.load(view)), (1000,))
    build.output(view)
    assert plan_of(build.program).nbytes["arena"] <= 2 * 4096 + 64
    assert plan_of(build.program, alias=False).nbytes["arena"] > 19 * 4000


@pytest.mark.parametrize("block", [False, True])
def test_weights_and_moments_are_updated_in_place(block: bool) -> None:
    program = momentum([(3, 5), (70,), (2, 2)], block=block)
    plan = plan_of(program)
    assert plan.settled.copies == []
    assert len(plan.settled.in_place) == 6
    assert plan.nbytes["arena"] == 40, "one scratch tensor after another"
    assert len(plan.steps) == 1, "in a block, or as loops that share a dispatch"
    check(program, plan, 5)


def update(*, late: bool = False, row: bool = False, fetched: bool = False, shifted: bool = False) -> Plan:
    """A plan that replaces w by w + w. The options make it hard: a later reader of w, a read along
    a row, the old value as a result, or a read of another element."""
    build = Builder()
    w = build.leaf(4, 4)
    other = flipped(w) if shifted else w
    value = expr.op("add", expr.load(w), expr.load(other))
    if row:
        value = expr.op("add", value, expr.reduce("sum", expr.load(w)))
    new = build.loop(value, (4, 4), 1 if row else 0, into=build.tensor(4, 4).view())
    if late:
        build.output(build.loop(expr.load(w), (4, 4)))
    if fetched:
        build.output(w)
    build.output(new, w)
    return plan_of(build.program)


@pytest.mark.parametrize("reason", ["late", "row", "fetched", "shifted"])
def test_a_value_that_is_still_read_is_replaced_by_a_copy(reason: str) -> None:
    assert update().settled.copies == []
    plan = update(**{reason: True})
    assert len(plan.settled.copies) == 1
    check(plan.program, plan, 7)


def test_a_neighbour_that_nothing_replaces_is_not_overwritten() -> None:
    """The new block has no value for the neighbour."""
    build = Builder()
    w, _frozen = build.leaves((8,), (8,))
    block = build.tensor(*w.tensor.shape)
    build.loop(expr.load(w.tensor.view()), block.shape, into=block.view())
    build.output(part(block, (8,), 0), w)
    plan = plan_of(build.program)
    assert len(plan.settled.copies) == 1
    check(build.program, plan, 1)


def test_arguments_that_change_places() -> None:
    build = Builder()
    a, b = build.leaf(3), build.leaf(3)
    build.output(b, a)
    build.output(a, b)
    build.output(a)
    check(build.program, plan_of(build.program), 3)


def test_a_result_that_is_its_own_argument_costs_nothing() -> None:
    build = Builder()
    a = build.leaf(3)
    build.output(a, a)
    plan = plan_of(build.program)
    assert (plan.dispatches, plan.settled.copies) == (0, [])


def test_results_that_do_not_fit_their_arguments() -> None:
    build = Builder()
    a, b = build.leaf(3), build.leaf(4)
    build.output(b, a)
    with pytest.raises(ValueError, match=r"result 0 is float32 \(4,\) and replaces argument 0"):
        plan_of(build.program)
    build.program.donated = {0: 1, 1: 1}
    build.program.outputs = [b, b]
    with pytest.raises(ValueError, match="replace the same argument"):
        plan_of(build.program)


def test_unsound_programs_are_refused() -> None:
    build = Builder()
    a, ghost = build.leaf(3), build.tensor(3)
    out = build.loop(expr.load(a), (3,))
    build.output(out)
    nodes = build.program.nodes
    for text, node in (
        ("before it is written", Loop((3,), 0, (Store(out, expr.load(ghost.view())),))),
        ("uses elements 1 to 4", Loop((3,), 0, (Store(out, expr.load(View(a.tensor, (3,), (1,), 1))),))),
    ):
        build.program.nodes = [*nodes, node]
        with pytest.raises(ValueError, match=text):
            plan_of(build.program)
    build.program.nodes = []
    with pytest.raises(ValueError, match="no node writes result 0"):
        plan_of(build.program)


def test_a_tensor_beyond_the_device_is_named() -> None:
    build = Builder()
    out = build.loop(expr.load(build.leaf(300)), (300,))
    build.output(out)
    build.program.origins[out.tensor.id] = "aten.exp.default at model.py:3"
    small = replace(LIMITS, range_bytes=1200)
    assert make_plan(build.program, small, lower=lower).peak_bytes > 0
    with pytest.raises(ArgumentError, match=r"model.py:3 \(300,\) has 1200 bytes.* can bind 1199"):
        make_plan(build.program, replace(small, range_bytes=1199), fed=[], lower=lower)


def test_segments_take_no_longer_than_a_slow_device_allows() -> None:
    build = Builder()
    view = build.leaf(10)
    for _ in range(9):
        view = build.loop(expr.load(view), (10,))
    build.output(view)

    def slow(node: Node, limits: Limits, fresh: Fresh) -> Lowered:
        return replace(lower(node, limits, fresh), flops=0.04 * 5e10)

    plan = make_plan(build.program, LIMITS, lower=slow)
    assert [(end, round(seconds, 3)) for end, seconds in plan.segments()] == [
        (1, 0.08), (3, 0.08), (5, 0.08), (7, 0.08), (8, 0.04),
    ]  # fmt: skip
