"""Compares whole training steps on a Vulkan device with torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import steps
import torch
from torch.utils import _pytree as pytree

from ebmvk.compute.profile import PRODUCTS, Block, by, profile
from ebmvk.compute.step import CompiledStep, compile_step
from ebmvk.engine.recording import Recorder


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    """The norm of the error divided by the norm of `want`."""
    return float((got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30))


def in_float64(step: Any, arguments: Any) -> Any:
    """The step itself in float64: the oracle."""
    wide = pytree.tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, arguments)
    old = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return step(*wide)
    finally:
        torch.set_default_dtype(old)


def batch_like(batch: dict[str, torch.Tensor], words: int, seed: int) -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return {name: torch.randint(words, rows.shape, generator=chance) for name, rows in batch.items()}


@pytest.fixture(scope="module")
def nanogpt(recorder: Recorder) -> tuple[CompiledStep, Any, Any]:
    step, arguments = steps.nanogpt(layers=1)
    compiled = compile_step(step, device=recorder, check=False)  # other tests check captures
    compiled.compile(*arguments)
    return compiled, step, arguments


def test_a_language_model_trains_as_in_torch(nanogpt: tuple[CompiledStep, Any, Any]) -> None:
    """The loss, the weights and the moments agree after each of three steps."""
    compiled, step, (parameters, state, batch, scalars) = nanogpt
    compiled.start(parameters, state)
    for number in range(3):
        batch = batch_like(batch, 65, number)
        scalars = {"lr": torch.tensor(1e-3), "step": torch.tensor(number + 3.0)}
        before = compiled.read()
        record = compiled.run(batch, scalars)
        want, want_state, want_record = in_float64(step, (*before, batch, scalars))
        one, one_state, one_record = step(*before, batch, scalars)
        after, after_state = compiled.read()
        assert abs(float(record["loss"]) - float(want_record["loss"])) < 1e-5  # nats; a float32 of 4
        assert abs(float(one_record["loss"]) - float(want_record["loss"])) < 1e-5
        for name in parameters:
            # AdamW divides by the size of the gradient, so tiny gradients turn into noise. The
            # bound follows from torch's own float32 error.
            limit = max(2e-6, 4 * relative(one[name], want[name]))
            assert relative(after[name], want[name]) <= limit, name
            for moment in ("m", "v"):
                limit = max(1e-5, 4 * relative(one_state[moment][name], want_state[moment][name]))
                got = relative(after_state[moment][name], want_state[moment][name])
                assert got <= limit, (moment, name, got, limit)


def test_a_step_is_one_submission_that_moves_tokens_and_a_loss(nanogpt: tuple[CompiledStep, Any, Any]) -> None:
    compiled, _, arguments = nanogpt
    compiled.start(*arguments[:2])
    compiled.run(*arguments[2:])
    program = compiled.compile(*arguments)
    runner: Any = program.runner
    fed = {i: leaf.numpy() for i, leaf in enumerate(pytree.tree_leaves(arguments)) if i in runner.fed}
    ran = runner.run(fed).ran
    assert ran.submissions == 1
    assert ran.dispatches + ran.copies <= 60
    assert ran.bytes_up <= 4 * 2 * 3 * 8 + 4 * runner.recorder.alignment
    assert ran.bytes_down <= runner.recorder.alignment
    copies = runner.plan.settled.copies
    assert copies == [], "all weights and moments are updated in place"


@pytest.mark.parametrize("options", [{"alias": False}, {"poison": True}])
def test_memory_and_poison_change_no_bit(nanogpt: tuple[CompiledStep, Any, Any], options: dict[str, bool]) -> None:
    from ebmvk.compute.compiled import Compiled

    compiled, _, arguments = nanogpt
    program = compiled.compile(*arguments)
    first: Any = program.runner
    other = Compiled(
        first.recorder, program.program, names=first.names, fed=first.fed, fetched=program.results, **options
    )
    leaves = [leaf.numpy() for leaf in pytree.tree_leaves(arguments)]
    found = []
    for runner in (first, other):
        runner.write(
            {name: leaf for i, (name, leaf) in enumerate(zip(runner.names, leaves, strict=True)) if i not in runner.fed}
        )
        for _ in range(2):
            outputs = runner.run({i: leaves[i] for i in runner.fed}).outputs
        found.append([*outputs.values(), *runner.read(sorted(runner.state.entries)).values()])
    assert all(a.tobytes() == b.tobytes() for a, b in zip(*found, strict=True))


def test_other_shapes_share_weights(nanogpt: tuple[CompiledStep, Any, Any]) -> None:
    """The batches are a full one, then a shorter one, then a full one."""
    compiled, step, (parameters, state, batch, scalars) = nanogpt
    short = {name: rows[:2] for name, rows in batch.items()}
    compiled.start(parameters, state)
    want: Any = (parameters, state)
    for part in (batch, short, batch):
        record = compiled.run(part, scalars)
        *want, wanted = step(*want, part, scalars)
        assert abs(float(record["loss"]) - float(wanted["loss"])) < 1e-4  # after up to two steps of float32


def test_a_profile_measures_each_node_and_changes_no_bit(nanogpt: tuple[CompiledStep, Any, Any]) -> None:
    compiled, _, arguments = nanogpt
    compiled.start(*arguments[:2])
    compiled.run(*arguments[2:])
    runner: Any = compiled.compile(*arguments).runner
    fed = {i: leaf.numpy() for i, leaf in enumerate(pytree.tree_leaves(arguments)) if i in runner.fed}
    before = runner.read()
    found = profile(runner, fed, rounds=1)
    after = runner.read()
    assert all((before[name] == after[name]).all() for name in before)

    plan = runner.plan
    assert [kernel.flops for kernel in found.kernels] == [step.lowered.flops for step in plan.steps]
    assert sum(kernel.dispatches for kernel in found.kernels) + len(plan.settled.copies) == plan.dispatches
    assert all(kernel.seconds > 0 for kernel in found.kernels if kernel.dispatches)
    assert found.busy == pytest.approx(sum(kernel.seconds for kernel in found.kernels))
    groups = by(found.kernels, "kind")
    products = [kernel for kind in PRODUCTS for kernel in groups.get(kind, [])]
    forward = [kernel for kernel in products if "steps.py" in kernel.line]
    assert any("@" in kernel.line or "linear" in kernel.line for kernel in forward), [own.line for own in products]
    check_apart(found.blocks, found.nbytes["arena"], len(found.kernels))


def check_apart(blocks: Sequence[Block], arena: int, kernels: int) -> None:
    """Tensors that live at the same time don't share memory."""
    assert blocks
    for number, one in enumerate(blocks):
        assert 0 <= one.first <= one.last < kernels
        assert one.offset + one.nbytes <= arena
        for other in blocks[:number]:
            if max(one.first, other.first) <= min(one.last, other.last):
                assert one.offset + one.nbytes <= other.offset or other.offset + other.nbytes <= one.offset
