"""Runs whose steps a Vulkan device takes, against runs on the CPU from the same seed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from vulkan_open import open_vulkan

from ebmvk.compute.function import CompiledFunction, compile_function
from ebmvk.config.schema import Config, replace
from ebmvk.data.datasets import resolve
from ebmvk.data.tokenizer import Tokenizer
from ebmvk.data.tokenizer_kinds import character_tokenizer
from ebmvk.data.windows import TokenStream, encode_split
from ebmvk.engine.device import Device
from ebmvk.engine.reference import Reference
from ebmvk.errors import BatchTooLarge, DeviceLost, NonFinite, OutOfMemory
from ebmvk.model.reading import TorchLayers
from ebmvk.monitoring.monitor import Monitor
from ebmvk.runs.checkpoint import Checkpoint, load
from ebmvk.runs.folder import new_model
from ebmvk.training import choosing, device_steps
from ebmvk.training.device_programs import Programs, programs
from ebmvk.training.device_steps import DeviceSteps
from ebmvk.training.host_steps import HostSteps
from ebmvk.training.step import Step
from ebmvk.training.streams import Streams
from ebmvk.training.trainer import Trainer

SHARED: dict[str, Any] = {
    "latent_dim": 16, "n_layers": 1, "n_heads": 2, "ffn_dim": 24, "seq_length": 10, "batch_size": 2,
    "context_local": 3, "context_medium": 6, "context_global": 10, "vocab_size": 64, "tokenizer": "char",
    "steps": 4, "warmup_steps": 2, "learning_rate": 3e-3, "precision": "float32", "init": "uniform", "seed": 3,
    "eval_every": 2, "eval_tokens": 60, "save_every": 2, "sample_tokens": 0,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    # Two passes, Muon, dropout, and consolidation's sample.
    "plain": {"accumulation_steps": 2, "enable_soc": True, "soc_check_interval": 4, "dropout": 0.2},
    "tinygpt": {"optimizer": "adamw", "enable_soc": False, "dropout": 0.2, "context_local": 10, "context_medium": 10},
    # float64 inside the step.
    "infinito": {
        "optimizer": "adamw",
        "enable_soc": False,
        "dropout": 0.2,
        "memory_slots": 5,
        "lambda_phi": 0.1,
        "context_local": 10,
        "context_medium": 10,
    },
}
STEPS = 4
WEIGHTS = 2e-5
"""Of a tensor's norm: four steps whose sums are in another order, in float32."""
NATS = 1e-5
"""Per token: what is asked of an evaluation and of the next loss on another device."""


def config_of(model: str, **more: Any) -> Config:
    return replace(Config(), {**SHARED, **MODELS[model], "model": model, **more})


@pytest.fixture(scope="module")
def vulkan() -> Device:
    """A loaded machine takes minutes to compile lavapipe's kernels."""
    return Device(open_vulkan(timeout_seconds=1200.0), torch.device("cpu"), "vulkan")


@pytest.fixture(autouse=True)
def same_programs(
    monkeypatch: pytest.MonkeyPatch, made: dict[object, Programs], functions: dict[object, CompiledFunction]
) -> None:
    """Trainers of one model share programs: to compile them takes most of the time."""

    def shared(step: Step, backend: Any, *, passes: int, meet: Any = None, slots: Any = None) -> Programs:
        key = (step.config.model.model, passes == 1)
        if key not in made:
            made[key] = programs(step, backend, passes=passes, meet=meet, slots=slots)
        return made[key]

    monkeypatch.setattr(device_steps, "programs", shared)

    def shared_function(function: Any, *, of: Any) -> CompiledFunction:
        key = (id(of), function.__name__)
        if key not in functions:
            functions[key] = compile_function(function, of=of)
        return functions[key]

    monkeypatch.setattr(device_steps, "compile_function", shared_function)


@pytest.fixture(scope="module")
def functions() -> dict[object, CompiledFunction]:
    return {}


@pytest.fixture(scope="module")
def made() -> Iterator[dict[object, Programs]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small matrices only wait for one another's threads
    yield {}
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def text() -> tuple[Tokenizer, TokenStream]:
    corpus = resolve("builtin")
    tokenizer = character_tokenizer(corpus)
    return tokenizer, encode_split(corpus, "validation", tokenizer).take(400)


class Runs:
    """Makes trainers in folders of their own."""

    def __init__(self, parent: Path, text: tuple[Tokenizer, TokenStream], vulkan: Device) -> None:
        self.parent, self.text, self.vulkan, self._made = parent, text, vulkan, 0

    def trainer(self, model: str, device: str, found: Checkpoint | None = None, **more: Any) -> Trainer:
        self._made += 1
        folder = self.parent / str(self._made)
        folder.mkdir()
        config = config_of(model, device=device, **more)
        tokenizer, stream = self.text
        where = self.vulkan if device in {"vulkan", "auto"} else Device(Reference(), torch.device("cpu"), "cpu")
        monitor = Monitor(folder, quiet=True, log_every=1, total=config.training.steps, done=found.step if found else 0)
        net = new_model(config, tokenizer, stream)
        made = Trainer(config, folder, net, tokenizer, Streams(stream, stream), where, monitor, lambda _: {})
        if found:
            made.restore(found)
        return made

    def run(self, model: str, device: str, found: Checkpoint | None = None, stop: int | None = None) -> Trainer:
        """Train to the end, or for `stop` steps."""
        made = self.trainer(model, device, found)
        assert made.run(stop) == ("finished" if stop is None else "stopped")
        return made


@pytest.fixture
def runs(tmp_path: Path, text: tuple[Tokenizer, TokenStream], vulkan: Device) -> Runs:
    return Runs(tmp_path, text, vulkan)


def saved(trainer: Trainer, step: int = STEPS) -> Checkpoint:
    return load(trainer.folder / "checkpoints" / f"step-{step}")


def rows(trainer: Trainer, event: str) -> list[dict[str, Any]]:
    lines = (trainer.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["event"] == event]


def tensors(found: Checkpoint) -> dict[str, torch.Tensor]:
    return {**found.model, **found.optimizer, **found.soc}


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-3))


@pytest.mark.parametrize(
    "model", ["plain", *(pytest.param(model, marks=pytest.mark.slow) for model in ("tinygpt", "infinito"))]
)
def test_a_device_trains_as_the_processor_does(model: str, runs: Runs) -> None:
    """The same weights, moments, losses and evaluations; the device does it alone."""
    ours, cpu = runs.run(model, "vulkan"), runs.run(model, "cpu")
    assert isinstance(ours.steps, DeviceSteps)
    assert isinstance(cpu.steps, HostSteps)
    found, wanted = saved(ours), saved(cpu)
    assert set(found.optimizer) == set(wanted.optimizer)
    for name, value in wanted.model.items():
        assert difference(found.model[name], value) <= WEIGHTS, name
    for name, value in wanted.optimizer.items():
        assert difference(found.optimizer[name], value) <= 10 * WEIGHTS, name  # of squares of gradients, too
    for own, other in zip(rows(ours, "step"), rows(cpu, "step"), strict=True):
        assert abs(own["loss"] - other["loss"]) <= NATS
        assert own["lr"] == other["lr"]
        did = own["device"]
        assert (did["cpu_ops"], did["waits"]) == (0, 1)
        assert did["submissions"] >= 1  # more if the device is so slow that its work is cut
        tokens = 2 * 4 * ours.config.training.windows_per_step * 10  # of inputs and targets
        assert 0 < did["bytes_up"] + did["bytes_down"] <= tokens + 64 * 1024
        assert did["bytes_down"] <= 512, "consolidation's sample stays on the device"
        assert did["dispatches"] > 0
        assert "device" not in other
    for event in ("eval", "end"):
        for own, other in zip(rows(ours, event), rows(cpu, event), strict=True):
            assert abs(own["validation"]["nats_per_token"] - other["validation"]["nats_per_token"]) <= NATS
    for row in rows(ours, "eval"):  # 60 tokens, in batches of two windows; no weights are copied
        did = row["device"]
        assert did["cpu_ops"] == 0
        assert did["submissions"] >= 3  # more if the device is so slow that its work is cut
        assert 0 < did["bytes_up"] + did["bytes_down"] <= 3 * (3 * 4 * 2 * 10 + 3 * 256)
    assert all("device" not in row for row in rows(cpu, "eval"))
    if ours.soc and cpu.soc:
        assert set(found.soc) == set(wanted.soc)
        mine, other = (run.soc.consolidation.store for run in (ours, cpu) if run.soc)
        assert (mine is None) == (other is None)
        for name in ("history.states", "history.tokens", "history.energies", "history.steps"):
            assert difference(found.soc[name], wanted.soc[name]) <= 1e-4, name  # as the weights
        (check,) = rows(ours, "soc")
        assert check["bytes_down"] == 4 * 4 * 40 * 17  # of 4 steps with 40 targets, d + 1 numbers each


def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(runs: Runs) -> None:
    whole = runs.run("plain", "vulkan")
    part = runs.run("plain", "vulkan", stop=2)
    rest = runs.run("plain", "vulkan", saved(part, 2))
    often = runs.trainer("plain", "vulkan")
    assert isinstance(often.steps, DeviceSteps)
    often.steps._slots = 1  # samples are read after each step
    often.run()
    for name, value in tensors(saved(whole)).items():
        assert torch.equal(tensors(saved(rest))[name], value), name
        assert torch.equal(tensors(saved(often))[name], value), name


@pytest.mark.parametrize(("first", "then"), [("cpu", "vulkan"), ("vulkan", "cpu")])
def test_a_checkpoint_continues_on_another_device(first: str, then: str, runs: Runs) -> None:
    found = saved(runs.run("plain", first, stop=2), 2)
    same, other = (runs.trainer("plain", device, found) for device in (first, then))
    for trainer in (same, other):
        trainer.step()
        trainer.step()
    for own, wanted in zip(rows(other, "step"), rows(same, "step"), strict=True):
        assert own["step"] == wanted["step"]
        assert abs(own["loss"] - wanted["loss"]) <= NATS


def test_an_evaluation_reads_the_weights_on_the_device(runs: Runs) -> None:
    """Before the first step, too; the host's are older. The text doesn't fill its last batch."""
    trainer = runs.trainer("plain", "vulkan")
    part = trainer.streams.validation.take(44)
    how: Any = {"context": 10, "stride": 5}
    for _ in range(2):
        steps = trainer.steps
        assert isinstance(steps, DeviceSteps)
        found = torch.cat(list(steps.layers().log_p(part, **how)))
        states = torch.cat([seen.h[0] for seen, _ in steps.layers().contexts(part, **how)])
        steps.settle()
        host = TorchLayers(trainer.model, torch.device("cpu"))
        assert (found - torch.cat(list(host.log_p(part, **how)))).abs().max() <= NATS
        assert (states - torch.cat([seen.h[0] for seen, _ in host.contexts(part, **how)])).abs().max() <= NATS
        trainer.step()
    assert steps._ahead


def test_what_is_not_finite_changes_nothing_and_is_named(runs: Runs) -> None:
    """Here it is a weight. The run's own checkpoint stays, and the weights are those before."""
    trainer = runs.run("plain", "vulkan", stop=2)
    found = saved(trainer, 2)
    found.model["bias"][5] = torch.inf
    broken = runs.trainer("plain", "vulkan", found)
    with pytest.raises(NonFinite, match="step 3: loss part 'ce', first the weight 'bias', is not finite"):
        broken.step()
    broken.steps.settle()
    for name, value in found.model.items():
        assert torch.equal(broken.model.state_dict()[name], value), name
    assert load(trainer.folder / "checkpoints" / "step-2").step == 2


def test_the_plan_is_told_before_the_first_step(runs: Runs) -> None:
    (line,) = runs.trainer("plain", "vulkan").plan()
    assert line.startswith("plan ")
    assert "kB on the device at the peak of a step" in line
    assert list(runs.trainer("plain", "cpu").plan()) == []


def test_a_batch_that_does_not_fit_is_an_error_that_names_one_that_does(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = runs.run("plain", "vulkan", stop=2)
    steps = trainer.steps
    assert isinstance(steps, DeviceSteps)
    tried = []

    def none(given: Any, *_: Any) -> None:
        windows = len(given[0]["pass"].tokens)
        tried.append((windows, len(given)))
        if windows > 1:
            raise OutOfMemory("no room for 7 bytes", hint="-")

    for name in ("run", "ready"):  # a step, then the batches that are tried
        monkeypatch.setattr(steps._programs, name, none)
    with pytest.raises(BatchTooLarge) as error:
        trainer.step()
    assert tried == [(2, 2), (1, 4)]  # windows and passes
    assert "--batch-size 1 --accumulation-steps 4: a batch of 1 has just fitted" in error.value.hint
    assert "what was learned before is saved" in error.value.what
    assert error.value.why == "no room for 7 bytes"
    assert saved(trainer, 2).step == 2


@pytest.mark.parametrize("lost", [True, False])
def test_a_device_that_fails_costs_no_more_than_the_step(
    lost: bool, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the weights are lost with it, the newest checkpoint is named."""
    trainer = runs.run("plain", "vulkan", stop=2)
    trainer.step()
    steps = trainer.steps
    assert isinstance(steps, DeviceSteps)

    def fail(*_: Any) -> Any:
        raise DeviceLost("gone", hint="-")

    monkeypatch.setattr(steps._programs, "run", fail)
    if lost:
        monkeypatch.setattr(steps._programs, "read", fail)
    with pytest.raises(DeviceLost) as error:
        trainer.step()
    assert "--resume --run-dir" in error.value.hint
    if lost:
        assert "the newest checkpoint is of step 2" in error.value.what
    else:
        assert "the run is saved as it was after step 3" in error.value.what
        assert saved(trainer, 3).step == 3


def test_more_passes_need_no_more_programs(runs: Runs, made: dict[object, Programs]) -> None:
    """The same windows as four passes of one window, after a step as two passes of two: the loss is
    that of the processor, and only the program of the smaller pass is new."""
    few, many = runs.trainer("plain", "vulkan"), {"batch_size": 1, "accumulation_steps": 4}
    few.step()
    chain = made["plain", False]._chain
    assert chain is not None
    count = {name: len(step.programs) for name, step in chain.steps.items()}
    ours, cpu = runs.trainer("plain", "vulkan", **many), runs.trainer("plain", "cpu", **many)
    for trainer in (ours, cpu):
        trainer.step()
    (own,), (wanted,), (before,) = rows(ours, "step"), rows(cpu, "step"), rows(few, "step")
    assert abs(own["loss"] - wanted["loss"]) <= NATS
    assert abs(own["loss"] - before["loss"]) <= NATS
    assert {name: len(step.programs) for name, step in chain.steps.items()} == {**count, "pass": count["pass"] + 1}
    assert own["device"]["waits"] == 1


@pytest.mark.parametrize("faster", ["vulkan", "cpu"])
def test_a_measured_choice_leaves_no_trace_in_the_run(faster: str, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here lavapipe counts as a device that `auto` takes. A run that was resumed has the same bits
    as one that named the device."""
    monkeypatch.setattr(choosing, "COMPILING", 0.0)
    monkeypatch.setattr(choosing, "SHARE", 10.0)
    real = choosing.timed

    def timed(steps: Any, take: Any) -> float:
        real(steps, take)
        return 0.5 if (steps.where == "vulkan") == (faster == "vulkan") else 1.0

    monkeypatch.setattr(choosing, "timed", timed)
    found = saved(runs.run("plain", "cpu", stop=1), 1)
    auto = runs.trainer("plain", "auto", found)
    choice = auto.choose()
    assert choice is not None
    assert (choice.where, auto.steps.where) == (faster, faster)
    auto.step()
    auto.steps.settle()
    ours = {**auto.model.state_dict(), **auto.steps.optimizer.state_dict()}
    named = runs.trainer("plain", faster, found)
    assert named.choose() is None
    named.step()
    named.steps.settle()
    for name, value in {**named.model.state_dict(), **named.steps.optimizer.state_dict()}.items():
        assert torch.equal(ours[name], value), name
