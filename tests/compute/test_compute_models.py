"""Tests that whole compiled training steps, of this package and of others, equal torch's."""

from __future__ import annotations

import foreign
import numpy as np
import pytest
import steps
import torch

from ebmvk.compute import oracle
from ebmvk.compute.capture import capture
from ebmvk.compute.fuse import fuse
from ebmvk.compute.ir import Call
from ebmvk.compute.lower import lower
from ebmvk.compute.step import compile_step
from ebmvk.errors import ArgumentError, UnsupportedOperation

WORDS, BATCH, TIME = 23, 2, 6


def _perturbed(model):
    torch.manual_seed(1)
    return {name: value.detach() + 0.02 * torch.randn_like(value) for name, value in model.named_parameters()}


def _of(make):
    """A model, its loss and a batch of random tokens."""
    torch.manual_seed(0)
    model = make(WORDS, TIME)
    torch.manual_seed(2)
    batch = {name: torch.randint(WORDS, (BATCH, TIME)) for name in ("ids", "labels")}
    if make in {foreign.gpt2, foreign.llama}:
        return model, foreign.transformers_loss, foreign.for_transformers(batch)
    return model, foreign.ids_loss, batch


MODELS = {
    "gpt2": foreign.gpt2,
    "llama": foreign.llama,
    "nanogpt": lambda words, time: steps.NanoGPT(words, 16, 1, 2, time),
    "convolutions": foreign.Convolutions,
    "recurrent": foreign.Recurrent,
    "experts": foreign.Experts,
}


FOREIGN = ("convolutions", "recurrent", "experts")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in FOREIGN else name for name in sorted(MODELS)]
)
def test_a_step_with_adamw_equals_torch_at_perturbed_weights(name):
    model, loss, batch = _of(MODELS[name])
    parameters = _perturbed(model)
    state = {kind: {key: 0.01 * torch.rand_like(value) for key, value in parameters.items()} for kind in ("m", "v")}
    step = steps.training_step(model, loss)
    arguments = (parameters, state, batch, {"lr": torch.tensor(1e-3), "step": torch.tensor(3.0)})
    flat, leaves = steps.flat(step, arguments)
    kept = 3 * len(parameters)
    captured = capture(flat, leaves, donated={i: i for i in range(kept)})
    plain = lower(captured)
    fused = fuse(plain)
    assert len(fused.nodes) < len(plain.nodes) / 3
    arrays = [leaf.numpy() for leaf in leaves]
    expected = [value.detach().numpy() for value in flat(*leaves)]
    exact = oracle.run(plain, arrays)
    for got, want, double in zip(oracle.run(fused, arrays), expected, exact, strict=True):
        # Both use the same formulas in float64, so only the order of sums may differ.
        np.testing.assert_allclose(got, double, rtol=1e-9, atol=1e-12)
        # torch computes in float32, with some hundred roundings of weights near 1.
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


@pytest.fixture(scope="module")
def nanogpt():
    """A compiled step, the step itself, and its arguments."""
    step, arguments = steps.nanogpt(width=8, layers=1, time=6)
    return compile_step(step, backend="reference"), step, arguments


def test_compile_step_trains_like_the_step_itself(nanogpt):
    compiled, step, (parameters, state, batch, scalars) = nanogpt
    compiled.start(parameters, state)
    counts = set()
    for number in range(4):
        scalars = {"lr": torch.tensor(1e-3 / (1 + number)), "step": torch.tensor(1.0 + number)}
        record = compiled.run(batch, scalars)
        counts.add(len(compiled.programs))
        parameters, state, expected = step(parameters, state, batch, scalars)
        assert float(record["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-5)
    got, moments = compiled.read()
    for name in parameters:
        # If a gradient is about 0, AdamW divides one rounding error by another, so a weight may be
        # off by lr per step.
        torch.testing.assert_close(got[name], parameters[name], rtol=0, atol=2e-3)
        torch.testing.assert_close(moments["m"][name], state["m"][name], rtol=1e-3, atol=1e-6)
    assert len(counts) == 1, "all steps ran one program"


def test_fused_nanogpt_needs_few_dispatches(nanogpt):
    compiled, _, arguments = nanogpt
    program = compiled.compile(*arguments).program
    calls = [node.name for node in program.nodes if isinstance(node, Call)]
    # There are 6 products per layer, and the head; each has two more in the backward pass.
    assert calls.count("matmul") == 3 * (6 + 1)
    assert len(program.nodes) <= 45


def test_other_shapes_get_a_program_of_their_own_and_share_the_weights(nanogpt):
    compiled, step, (parameters, state, batch, scalars) = nanogpt
    compiled.start(parameters, state)
    compiled.run(batch, scalars)
    parameters, state, _ = step(parameters, state, batch, scalars)
    last = {name: value[:1] for name, value in batch.items()}
    record = compiled.run(last, scalars)
    assert len(compiled.programs) == 2
    expected = step(parameters, state, last, scalars)[2]["loss"]
    assert float(record["loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_frozen_weights_stay_bit_for_bit():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(WORDS, 8), torch.nn.Linear(8, WORDS))
    step = steps.training_step(model, steps.language_loss)

    def frozen(parameters, state, batch, scalars):
        new, state, record = step(parameters, state, batch, scalars)
        return new | {"0.weight": parameters["0.weight"]}, state, record

    parameters = _perturbed(model)
    batch = {name: torch.randint(WORDS, (BATCH, TIME)) for name in ("tokens", "targets")}
    scalars = {"lr": torch.tensor(1e-3), "step": torch.tensor(3.0)}
    compiled = compile_step(frozen, backend="reference", check=False)
    got, _, _ = compiled(parameters, steps.zeros_like(parameters), batch, scalars)
    assert torch.equal(got["0.weight"], parameters["0.weight"])
    assert not torch.equal(got["1.weight"], parameters["1.weight"])


def test_steps_may_change_their_arguments_in_place():
    def step(parameters, state, batch, scalars):
        for value, momentum in zip(parameters.values(), state.values(), strict=True):
            momentum.mul_(0.9).add_(value * batch["x"].sum())
            value.sub_(scalars["lr"] * momentum)
        return parameters, state, {"first": parameters["a"][0]}

    def arguments():
        parameters = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
        state = {name: torch.full_like(value, 0.5) for name, value in parameters.items()}
        return parameters, state, {"x": torch.tensor([1.0, 2.0])}, {"lr": torch.tensor(0.1)}

    got = compile_step(step, backend="reference")(*arguments())
    torch.testing.assert_close(got, step(*arguments()))


def test_results_of_another_shape_than_what_they_replace_are_refused():
    def step(parameters, state, batch, scalars):
        return {"w": parameters["w"][:1] * batch}, state, {}

    with pytest.raises(ArgumentError, match=r"turns parameters\['w'\], \(3,\) torch.float32, into \(1,\)"):
        compile_step(step, backend="reference")({"w": torch.ones(3)}, {}, torch.ones(1), {})


def test_a_missing_operation_is_named_with_its_line():
    def step(parameters, state, batch, scalars):
        return parameters, state, {"det": torch.linalg.det(batch * parameters["w"])}

    with pytest.raises(UnsupportedOperation, match=r"linalg.*test_compute_models.py:\d+: return parameters, state"):
        compile_step(step, backend="reference")({"w": torch.eye(3)}, {}, torch.eye(3), {})
