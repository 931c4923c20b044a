"""Compiled functions: forward passes, alone and on the parameters of a training step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from ebmvk.compute.function import CompiledFunction, compile_function
from ebmvk.compute.step import CompiledStep, compile_step
from ebmvk.engine.recording import Recorder
from ebmvk.errors import ArgumentError

SHAPES = {"first.weight": (7, 5), "first.bias": (7,), "second.weight": (3, 7), "second.bias": (3,)}
"""Sizes that aren't multiples of any size that a device requires."""
Step = tuple[CompiledStep, Any]


def predicted(parameters: Any, inputs: Any) -> Any:
    hidden = torch.tanh(F.linear(inputs["x"], parameters["first.weight"], parameters["first.bias"]))
    return {"y": F.linear(hidden, parameters["second.weight"], parameters["second.bias"]), "hidden": hidden}


def descent(parameters: Any, state: Any, batch: Any, scalars: Any) -> Any:
    """A step of gradient descent with momentum, on half the squared error."""
    leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    loss = (predicted(leaves, batch)["y"] - batch["y"]).square().sum() / 2
    found = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    moments = {name: 0.9 * state[name] + found[name] for name in parameters}
    new = {name: value - scalars["lr"] * moments[name] for name, value in parameters.items()}
    return new, moments, {"loss": loss.detach()}


def arguments_of(seed: int) -> Any:
    chance = torch.Generator().manual_seed(seed)
    parameters = {name: torch.randn(shape, generator=chance) for name, shape in SHAPES.items()}
    batch = {"x": torch.randn(4, 5, generator=chance), "y": torch.randn(4, 3, generator=chance)}
    return parameters, {n: torch.zeros_like(v) for n, v in parameters.items()}, batch, {"lr": torch.tensor(0.05)}


def inputs_of(seed: int, rows: int = 6) -> Any:
    return {"x": torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed))}


def check(found: Any, parameters: Any, inputs: Any) -> None:
    """Compares results with float64."""
    wide = [{name: value.double() for name, value in tree.items()} for tree in (parameters, inputs)]
    wanted = predicted(*wide)
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == torch.float32
        # Two sums in a row, each of up to 7 products of numbers up to about 3.
        assert (found[name] - value).abs().max() <= 1e-5


@pytest.fixture(scope="module", params=["reference", "vulkan"])
def step(request: pytest.FixtureRequest) -> Step:
    device = None if request.param == "reference" else request.getfixturevalue("recorder")
    return compile_step(descent, backend=request.param, device=device, check=False), arguments_of(0)


@pytest.fixture(scope="module")
def forward(step: Step) -> CompiledFunction:
    """A function whose program is made before the step has run."""
    compiled, arguments = step
    compiled.start(*arguments[:2])
    compiled.ready(*arguments[2:])
    made = compile_function(predicted, of=compiled)
    made.ready(inputs_of(0))
    return made


def test_a_function_reads_the_parameters_as_a_step_left_them(step: Step, forward: CompiledFunction) -> None:
    """The function does so after a start, after steps, and after another start. Only its inputs are
    uploaded."""
    compiled, arguments = step
    for number, steps in enumerate((0, 1, 2, 0)):
        if number != 2:
            compiled.start(*arguments_of(number)[:2])
        for _ in range(steps):
            compiled.run(*arguments[2:])
        inputs = inputs_of(number)
        found = forward.run(inputs)
        check(found, compiled.read()[0], inputs)
        assert forward.cpu_ops == 0
        if forward.ran is not None:
            assert forward.ran.submissions == 1
            assert 120 <= forward.ran.bytes_up <= 256  # the aligned size of x


def test_a_step_is_not_changed_by_a_function_that_reads_its_parameters(step: Step, forward: CompiledFunction) -> None:
    compiled, arguments = step
    found = []
    for reads in (False, True):
        compiled.start(*arguments[:2])
        for number in range(2):
            compiled.run(*arguments[2:])
            if reads:
                forward.run(inputs_of(number))
        found.append(compiled.read())
    for own, other in zip(*found, strict=True):
        assert all(torch.equal(own[name], other[name]) for name in own)


def test_a_function_has_no_memory_of_its_own_for_parameters(step: Step, forward: CompiledFunction) -> None:
    compiled, arguments = step
    lent, own = compiled.ready(*arguments[2:]).runner, forward.ready(inputs_of(0)).runner
    assert own.state is lent.state


def test_a_function_alone_keeps_its_parameters(recorder: Recorder) -> None:
    """Programs of two shapes share the parameters, and `start` replaces them."""

    def double(parameters: Any, inputs: Any) -> Any:
        return parameters["a"] * 2 + inputs

    made = compile_function(double, device=recorder)
    made.start({"a": torch.tensor(3.0)})
    assert made.run(torch.ones(4)).tolist() == [7] * 4
    assert made.run(torch.ones(2, 2)).tolist() == [[7] * 2] * 2
    made.start({"a": torch.tensor(5.0)})
    assert made.run(torch.zeros(4)).tolist() == [10] * 4
    assert len(made.programs) == 2


def test_parameters_may_be_more_than_a_function_uses(step: Step, forward: CompiledFunction) -> None:
    del forward  # the step has a program
    compiled, arguments = step
    compiled.start(*arguments[:2])
    made = compile_function(lambda parameters, x: x + parameters["second.bias"], of=compiled)
    assert torch.equal(made.run(torch.zeros(3)), arguments[0]["second.bias"])
    made = compile_function(lambda parameters, inputs: inputs["x"] * parameters["first.bias"][0], of=compiled)
    with pytest.raises(ArgumentError, match=r"nothing in the step uses inputs\['y'\]"):
        made.run({"x": torch.zeros(3), "y": torch.zeros(2)})


def test_misuse_of_a_function_is_refused() -> None:
    compiled = compile_step(lambda *trees: (trees[0], trees[1], {}), backend="reference")
    shared = compile_function(predicted, of=compiled)
    with pytest.raises(ArgumentError, match="the step has no program yet"):
        shared.run(inputs_of(0))
    with pytest.raises(ArgumentError, match="uses the parameters of a training step"):
        shared.start({})
    alone = compile_function(lambda parameters, inputs: [1.0, parameters, inputs], backend="reference")
    with pytest.raises(ArgumentError, match="the function has no parameters yet"):
        alone.run(torch.zeros(2))
    alone.start(torch.zeros(2))
    with pytest.raises(ArgumentError, match=r"the function returns 1\.0, not a tensor"):
        alone.run(torch.zeros(2))
