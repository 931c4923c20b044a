"""Compares steps of this package's own models on a Vulkan device with torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from model_steps import Case, Made, in_torch, make, relative
from torch.utils import _pytree as pytree

from ebmvk.compute.codec import pack, unpack
from ebmvk.engine.recording import Recorder

DEFAULT = [
    Case("tinygpt", passes=2, optimizer="muon"),
    Case("experts"),
    Case("ebm", sample=True),
]
REST = [
    Case(model, passes, optimizer, few, layers)
    for model in ("plain", "tinygpt", "minillm", "experts", "one expert", "ebm", "ebm score", "infinito")
    for passes, optimizer, few, layers in ((1, "adamw", 1 << 18, 2), (2, "muon", 0, 1))
]
GATED = [*DEFAULT, Case("infinito")]
CASES = [*DEFAULT, *(pytest.param(case, marks=pytest.mark.slow) for case in [*GATED, *REST] if case not in DEFAULT)]
STEPS = 3
FIFTY = 50


@pytest.fixture(scope="module")
def known() -> Iterator[dict[Case, Made]]:
    """Cases that are compiled already. They are freed together with the device."""
    found: dict[Case, Made] = {}
    yield found
    found.clear()


@pytest.fixture(params=CASES, ids=str)
def made(request: pytest.FixtureRequest, recorder: Recorder, known: dict[Case, Made]) -> Made:
    """A case compiled once for all tests."""
    if request.param not in known:
        known[request.param] = make(request.param, recorder)
    return known[request.param]


def test_a_model_trains_as_in_torch(made: Made) -> None:
    """From perturbed weights, it compares the record of each step, the gradients (as first moments
    after one step), and the weights after three steps."""
    compiled = made.compiled
    compiled.start(made.parameters, made.state)
    torch64: Any = (made.parameters, made.state)
    torch32 = torch64
    for number in range(STEPS):
        given = (made.batch(number), made.scalars(number))
        record = compiled.run(*given)
        *torch64, wanted = in_torch(made, (*torch64, *given), torch.float64)
        *torch32, _ = in_torch(made, (*torch32, *given), torch.float32)
        assert bool(record["finite"])
        for part in record:
            if part == "sample":
                assert relative(record[part], wanted[part]) <= 1e-4
            elif part not in {"finite", "norm"}:
                # In nats. Sums have some hundred float32 terms, and later steps start from slightly
                # different weights.
                limit = (1 if number == 0 else 3) * 1e-5 * max(1.0, abs(float(wanted[part])))
                assert abs(float(record[part]) - float(wanted[part])) <= limit, (number, part)
        assert relative(record["norm"], wanted["norm"]) <= 1e-4, number
        if number == 0:
            gradients_agree(made, compiled.read()[1], torch64[1], torch32[1])
    parameters, _ = compiled.read()
    for name, value in parameters.items():
        # AdamW and Muon turn rounding errors of small gradients into steps, so the bound follows
        # from torch's own errors.
        limit = max(2e-5, 4 * relative(torch32[0][name], torch64[0][name]))
        assert relative(value, torch64[0][name]) <= limit, name


@pytest.mark.slow
def test_gradients_agree_after_fifty_steps(made: Made, record_property: Callable[[str, Any], None]) -> None:
    """torch takes the steps, from the initial weights of the model, many of which are zeros."""
    parameters: Any = {name: value.detach() for name, value in made.net.named_parameters()}
    state: Any = made.state
    for number in range(FIFTY):
        lr = torch.tensor(made.config.training.learning_rate)
        scalars = {**made.scalars(number), "lr": lr}
        parameters, state, _ = made.stepped(parameters, state, made.batch(number), scalars)
    arguments = (parameters, made.state, made.batch(FIFTY), made.scalars(0))
    made.compiled.start(parameters, made.state)
    assert bool(made.compiled.run(*arguments[2:])["finite"])
    of_torch = [in_torch(made, arguments, dtype)[1] for dtype in (torch.float64, torch.float32)]
    gradients_agree(made, made.compiled.read()[1], *of_torch, note=record_property)


def gradients_agree(
    made: Made, state: Any, oracle: Any, torch32: Any, note: Callable[[str, Any], None] = lambda *_: None
) -> None:
    """Moments after a step from zeros are multiples of the gradients.

    note: gets each gradient's error and the error of torch's float32. Errors are relative to the
    gradient's norm, or, if this is below 1e-6 of the norm of all gradients, to the latter.
    """
    firsts = [name for name in state if name.endswith(("/exp_avg", "/momentum_buffer"))]
    whole = float(torch.stack([oracle[name].norm() for name in firsts]).norm())
    # PHI multiplies rounding errors of the covariance by its inverse.
    least = 1e-3 if made.case.model == "infinito" else 1e-5
    for name in firsts:
        size = float(oracle[name].norm())
        assert float(state[name].norm()) > 0, f"{name}: a gradient of exactly 0 shows nothing"
        if size < 1e-6 * whole:
            error = float((state[name].double() - oracle[name]).norm()) / whole
            note(f"{name} of the whole", error)
            assert error <= 1e-7, name
        else:
            error, of_torch = (relative(own[name], oracle[name]) for own in (state, torch32))
            note(name, (error, of_torch))
            assert error <= max(least, 4 * of_torch), name


def test_nothing_changes_where_a_gradient_is_not_finite(made: Made) -> None:
    """Nothing changes by a single bit, and the record notes the skipped step."""
    parameters = dict(made.parameters)
    broken = next(name for name, value in parameters.items() if value.dim() == 2)
    parameters[broken] = parameters[broken].clone()
    parameters[broken].view(-1)[3] = torch.nan
    made.compiled.start(parameters, made.state)
    record = made.compiled.run(made.batch(0), made.scalars(0))
    assert not bool(record["finite"])
    for before, after in zip((parameters, made.state), made.compiled.read(), strict=True):
        for name, value in before.items():
            assert torch.equal(value.view(torch.int32), after[name].view(torch.int32)), name


GATES = {"tinygpt": 167, "experts": 93, "ebm": 183, "infinito": 133}
"""The most dispatches, copies and fills of a step of `GATED`: today's number plus 5 %. More would
mean that some nodes are no longer fused."""
KILOBYTES = 24


def test_a_step_is_one_submission_that_moves_little(made: Made) -> None:
    arguments = made.arguments()
    made.compiled.start(*arguments[:2])
    made.compiled.run(*arguments[2:])
    runner: Any = made.compiled.compile(*arguments).runner
    leaves = pytree.tree_leaves(arguments)
    ran = runner.run({position: leaves[position].numpy() for position in runner.fed}).ran
    print("BYTES", made.case, ran.bytes_up, ran.bytes_down)
    assert ran.submissions == 1
    tokens = sum(4 * (batch.tokens.numel() + batch.targets.numel()) for batch in arguments[2]["batches"])
    assert ran.bytes_up <= tokens + 1024 * KILOBYTES
    assert ran.bytes_down <= 1024 * KILOBYTES
    copies = runner.plan.settled.copies
    assert all(target.shape == () for _, target in copies), "all but single numbers are updated in place"
    if made.case in GATED:
        assert ran.dispatches + ran.copies <= GATES[made.case.model], (ran.dispatches, ran.copies)


def test_a_program_is_read_from_disk_as_it_was_made(made: Made) -> None:
    runner: Any = made.compiled.compile(*made.arguments()).runner
    plan = runner.plan
    read = unpack("key", pack("key", plan))
    assert [step.lowered for step in read.steps] == [step.lowered for step in plan.steps]
    # Compare hashes, because == would walk shared parts of expressions again for each use.
    assert [hash(step.node) for step in read.steps] == [hash(step.node) for step in plan.steps]
    assert (read.places, read.nbytes, read.last_use) == (plan.places, plan.nbytes, plan.last_use)
    assert (read.settled.outputs, read.settled.copies) == (plan.settled.outputs, plan.settled.copies)
    assert read.program.origins == plan.program.origins
    for (one, value), (other, found) in zip(
        plan.program.constants.items(), read.program.constants.items(), strict=True
    ):
        assert one == other
        assert np.array_equal(value, found)
