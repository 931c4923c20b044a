"""Tests chains of steps, with one wait: passes of a small regression, then an update."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ebmvk.compute.chain import Call, Chain, Link
from ebmvk.engine.recording import Recorder
from ebmvk.errors import ArgumentError, DeviceError

SHAPES = {"a": (3, 4), "b": (4,), "c": (4, 2)}
CLOSE = 1e-6  # relative L2 error: sums are taken in another order


def gradients(parameters: Any, batch: Any) -> Any:
    leaves = {name: own.detach().requires_grad_() for name, own in parameters.items()}
    error = torch.tanh(batch["x"] @ leaves["a"] + leaves["b"]) @ leaves["c"] - batch["y"]
    loss = error.square().sum()
    return loss, dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def one_pass(parameters: Any, state: Any, batch: Any, scalars: Any) -> Any:
    loss, found = gradients(parameters, batch)
    flat = torch.cat([own.flatten() for own in found.values()])
    kept = torch.where(scalars["first"], 0.0, state["sums"])
    return parameters, {"sums": kept + flat}, {"loss": loss.detach()}


def update(parameters: Any, state: Any, batch: Any, scalars: Any) -> Any:
    del batch
    new, momenta, start = {}, {}, 0
    for name, own in parameters.items():
        gradient = state["sums"][start : start + own.numel()].view(own.shape)
        start += own.numel()
        momenta[name] = state["momenta"][name] * 0.9 + gradient
        new[name] = own - scalars["lr"] * momenta[name]
    return new, {"sums": state["sums"], "momenta": momenta}, {"norm": torch.linalg.vector_norm(state["sums"])}


def start() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    generator = torch.Generator().manual_seed(3)
    parameters = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    size = sum(own.numel() for own in parameters.values())
    momenta = {name: torch.zeros_like(own) for name, own in parameters.items()}
    return parameters, {"sums": torch.full((size,), torch.nan), "momenta": momenta}


def calls(passes: int, number: int = 0) -> list[Call]:
    generator = torch.Generator().manual_seed(number)
    x, y = torch.randn(12, 3, generator=generator), torch.randn(12, 2, generator=generator)
    found = [
        Call("pass", {"x": own, "y": wanted}, {"first": torch.tensor(place == 0)})
        for place, (own, wanted) in enumerate(zip(x.chunk(passes), y.chunk(passes), strict=True))
    ]
    return [*found, Call("update", {}, {"lr": torch.tensor(1e-2)})]


def in_torch(steps: int) -> tuple[Any, Any]:
    """Parameters and momenta after steps over whole batches."""
    parameters, state = start()
    for number in range(steps):
        whole, last = calls(1, number)
        _, sums, _ = one_pass(parameters, state, whole.batch, whole.scalars)
        parameters, state, _ = update(parameters, state | sums, {}, last.scalars)
    return parameters, state["momenta"]


def difference(found: Any, wanted: Any) -> float:
    of = lambda own: torch.cat([own[name].double().flatten() for name in wanted])  # noqa: E731
    return float((of(found) - of(wanted)).norm() / of(wanted).norm())


@pytest.fixture(scope="module", params=["reference", "vulkan"])
def chain(request: pytest.FixtureRequest) -> Chain:
    device = request.getfixturevalue("recorder") if request.param == "vulkan" else None
    links = {"update": Link(update, ("sums", "momenta")), "pass": Link(one_pass, ("sums",))}
    return Chain(links, backend=request.param, device=device, check=False)


@pytest.mark.parametrize("passes", [1, 3, 12])
def test_any_number_of_passes_is_one_step_over_the_whole_batch(chain: Chain, passes: int) -> None:
    """The sums are NaN before the first step, and a step's sums must not enter the next step."""
    chain.start(*start())
    for number in range(3):
        records, _ = chain.run(calls(passes, number))
        assert set(records[-1]) == {"norm"}
        assert [set(record) for record in records[:-1]] == [{"loss"}] * passes
    parameters, state = chain.read(("momenta",))
    wanted, momenta = in_torch(3)
    assert difference(parameters, wanted) <= CLOSE
    assert difference(state["momenta"], momenta) <= CLOSE
    assert set(state) == {"momenta"}
    assert chain.cpu_ops == 0


def test_a_step_is_compiled_once_however_often_it_is_called(chain: Chain) -> None:
    chain.start(*start())
    chain.run(calls(3))
    before = {name: len(step.programs) for name, step in chain.steps.items()}
    making: list[str] = []
    chain.run([*calls(3)[:-1], *calls(3, 1)], lambda: making.append("a program"))
    assert {name: len(step.programs) for name, step in chain.steps.items()} == before
    assert making == []


def test_sums_can_be_taken_and_given_between_two_waits(chain: Chain) -> None:
    """Processes share a step in this way: the sums over all processes are given back before the
    update."""
    chain.start(*start())
    both = calls(2)
    chain.prepare(both)
    _, one = chain.run([both[0]], taken=["state['sums']"])
    _, other = chain.run([Call("pass", both[1].batch, {"first": torch.tensor(True)})], taken=["state['sums']"])
    chain.run([both[2]], given={"state['sums']": one["state['sums']"] + other["state['sums']"]})
    parameters, _ = chain.read()
    assert difference(parameters, in_torch(1)[0]) <= CLOSE


def test_programs_share_memory(recorder: Recorder, chain: Chain) -> None:
    if chain.steps["pass"].backend == "reference":
        pytest.skip("numpy has no plan")
    chain.start(*start())
    before = recorder.allocated
    chain.prepare(calls(4))
    size = sum(own.numel() for own in start()[0].values())
    assert chain.nbytes["kept"] >= 4 * 3 * size
    assert recorder.allocated - before < chain.nbytes["kept"] + 10 * 4096  # weights aren't there twice


def test_misuse_is_refused(recorder: Recorder) -> None:
    links = {"update": Link(update, ("sums", "momenta")), "pass": Link(one_pass, ("sums",))}
    fresh = Chain(links, device=recorder, check=False)
    with pytest.raises(ArgumentError, match="no parameters yet"):
        fresh.run(calls(1))
    with pytest.raises(ArgumentError, match="no parameters yet"):
        fresh.read()


def test_a_failed_run_loses_only_what_it_changes(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass changes only the sums, so weights and momenta can still be read after a failure."""
    if chain.steps["pass"].backend == "reference":
        pytest.skip("numpy doesn't fail")
    chain.start(*start())
    adding = calls(3)[:-1]
    chain.run(calls(3))
    chain.ready(adding)

    def fail(*_: Any) -> Any:
        raise DeviceError("gone", hint="-")

    sequence = list(chain._sequences.values())[-1]
    monkeypatch.setattr(sequence.recording, "run", fail)
    monkeypatch.setattr(type(sequence.recording), "intact", property(lambda _: False))
    with pytest.raises(DeviceError, match="gone"):
        chain.run(adding)
    parameters, _ = chain.read(("momenta",))
    assert set(parameters) == set(SHAPES)
    with pytest.raises(DeviceError, match="no values on the device"):
        chain.read()
