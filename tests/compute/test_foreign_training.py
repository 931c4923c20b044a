"""Tests that models that this compiler wasn't written for train on a Vulkan device as in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import foreign
import pytest
import steps
import torch
from vulkan_open import open_vulkan

from ebmvk.compute.step import compile_step
from ebmvk.engine.recording import Recorder
from ebmvk.errors import ArgumentError, UnsupportedOperation

LENGTH = 16
CLOSE = 1e-5  # nats: float32 rounds a loss of 3 by 2e-7, and errors of several steps add up
WORDS = len(foreign.LETTERS)
TRANSFORMERS = {"gpt2": foreign.gpt2, "llama": foreign.llama}
FROZEN = {"gpt2": ("transformer.wte", "mlp.c_fc", "ln_1"), "llama": ("embed_tokens", "mlp.up_proj", "input_layernorm")}
"""Parts of the names of frozen weights: the embedding (GPT-2's head is the same tensor), products
and norms."""


def trained(
    recorder: Recorder,
    model: torch.nn.Module,
    loss: Any,
    batches: list[dict[str, torch.Tensor]],
    frozen: Any = (),
    check: bool = False,
) -> tuple[list[float], list[float]]:
    """Losses of the device and of torch, both in float32 and from the same start. Frozen weights
    must keep their bits. check: whether the graph is also compared with the step, which
    test_compute_capture.py tests."""
    names = {name for name, _ in model.named_parameters() if any(part in name for part in frozen)}
    step = steps.training_step(model, loss, names)
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    state = steps.zeros_like({name: value for name, value in parameters.items() if name not in names})
    compiled = compile_step(step, device=recorder, check=check)
    compiled.start(parameters, state)
    start, found, expected = parameters, [], []
    for number, batch in enumerate(batches):
        scalars = {"lr": torch.tensor(1e-3), "step": torch.tensor(number + 1.0)}
        found.append(float(compiled.run(batch, scalars)["loss"]))
        parameters, state, record = step(parameters, state, batch, scalars)
        expected.append(float(record["loss"]))
    after = compiled.read()[0]
    assert bool(names) == bool(frozen)
    assert all(torch.equal(after[name], start[name]) for name in names)
    assert not any(torch.equal(after[name], start[name]) for name in after.keys() - names)
    return found, expected


def of_transformers(
    make: Callable[..., torch.nn.Module], count: int, width: int, layers: int
) -> tuple[torch.nn.Module, list[dict[str, torch.Tensor]]]:
    torch.manual_seed(0)
    model = make(WORDS, LENGTH, width, layers, 4)
    return model, [foreign.for_transformers(batch) for batch in foreign.batches(4, LENGTH, count)]


@pytest.mark.parametrize(("name", "part"), [("gpt2", False), ("llama", True)])
def test_models_of_transformers_train_as_in_torch(recorder: Recorder, name: str, part: bool) -> None:
    model, batches = of_transformers(TRANSFORMERS[name], 3, 32, 1)
    frozen = FROZEN[name] if part else ()
    found, expected = trained(recorder, model, foreign.transformers_loss, batches, frozen)
    assert found == pytest.approx(expected, abs=CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("part", [False, True], ids=["all", "frozen in part"])
@pytest.mark.parametrize("name", sorted(TRANSFORMERS))
def test_twenty_steps_of_models_of_transformers(recorder: Recorder, name: str, part: bool) -> None:
    model, batches = of_transformers(TRANSFORMERS[name], 20, 64, 2)
    frozen = FROZEN[name] if part else ()
    found, expected = trained(recorder, model, foreign.transformers_loss, batches, frozen, check=True)
    print(f"{name}: from {found[0]:.4f} to {found[-1]:.4f}, largest difference "
          f"{max(abs(a - b) for a, b in zip(found, expected, strict=True)):.2g} nats")  # fmt: skip
    assert found == pytest.approx(expected, abs=CLOSE)
    assert found[-1] < found[0] - 0.3  # something was learned


@pytest.mark.parametrize("make", [foreign.Convolutions, foreign.Recurrent, foreign.Experts])
def test_other_models_train_as_in_torch(recorder: Recorder, make: type[torch.nn.Module]) -> None:
    torch.manual_seed(0)
    found, expected = trained(recorder, make(WORDS, 8), foreign.ids_loss, foreign.batches(3, 8, 3))
    assert found == pytest.approx(expected, abs=CLOSE)


def test_a_model_whose_shapes_depend_on_values_gets_an_error_with_its_line() -> None:
    torch.manual_seed(0)
    model = foreign.SelectedExperts(WORDS, 8)
    step = steps.training_step(model, foreign.ids_loss)
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    scalars = {"lr": torch.tensor(1e-3), "step": torch.tensor(1.0)}
    compiled = compile_step(step, backend="reference")
    with pytest.raises(UnsupportedOperation, match=r"foreign\.py:\d+: rows = \(chosen == number\)\.nonzero\(\)"):
        compiled.compile(parameters, steps.zeros_like(parameters), foreign.batches(3, 8, 1)[0], scalars)


def test_a_table_of_words_beyond_a_range_of_the_device_is_named() -> None:
    recorder = Recorder(open_vulkan(shard_bytes=1 << 20))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(5000, 64), torch.nn.Linear(64, WORDS))
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    step = steps.training_step(model, lambda call, batch: call(batch["ids"]).square().mean())
    batch = {"ids": foreign.batches(2, LENGTH, 1)[0]["ids"]}
    scalars = {"lr": torch.tensor(1e-3), "step": torch.tensor(1.0)}
    compiled = compile_step(step, device=recorder, check=False)
    told = r"parameters\['0.weight'\] \(5000, 64\) has 1280000 bytes.*can bind 1048576"
    with pytest.raises(ArgumentError, match=told):
        compiled.compile(parameters, steps.zeros_like(parameters), batch, scalars)
