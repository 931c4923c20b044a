"""Two processes share the steps of a run on a Vulkan device: they train as one process does on the
CPU, and a run goes on with another number of processes. The processes are forks of this one with
torchrun's environment; both use the same device."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ebmvk.cli import train as training
from ebmvk.engine.select import choose
from ebmvk.training.device_steps import DeviceSteps

from .conftest import launched, need_vulkan, rows
from .test_resume import SPLATS

SMALL = (
    "--precision", "float32", "--dropout", 0, "--sample-tokens", 0, "--quiet", "--n-layers", 1, "--latent-dim", 16,
    "--save-every", 1, "--eval-every", 4, "--eval-tokens", 40,
)  # fmt: skip
WEIGHTS, NATS = 2e-5, 1e-5
"""Float32 sums in another order differ by this. WEIGHTS is absolute, as for processes on the CPU;
NATS is per token, as for one process on a device."""


@pytest.fixture
def begun(tiny: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """Flags of a new run."""
    need_vulkan()
    monkeypatch.setattr("ebmvk.report.run_page.write_report", lambda *_: None)
    return ("--config", tiny, "--dataset", text, *SMALL)


def command(run: Path, *args: object) -> Callable[[], int]:
    return lambda: training.main([str(arg) for arg in ("--run-dir", run, *args)])


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step}" / "model.safetensors")


def losses(run: Path) -> list[list[float]]:
    return [[row["loss"], *row["parts"].values(), row["grad_norm"]] for row in rows(run, "step")]


def alike(one: Path, two: Path, step: int) -> None:
    found = weights(two, step)
    for name, value in weights(one, step).items():
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=WEIGHTS, msg=lambda said, name=name: f"{name}: {said}"
        )
    for own, other in zip(losses(two), losses(one), strict=False):
        assert own == pytest.approx(other, rel=1e-4)


def test_two_processes_train_as_one_and_a_lost_one_costs_no_step(
    tmp_path: Path, begun: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process is killed in the third step; the run goes on alone, on the CPU."""
    flags = (*begun, "--model", "plain", "--batch-size", 2, "--accumulation-steps", 2, "--steps", 4, *SPLATS)
    one, two = tmp_path / "one", tmp_path / "two"
    assert command(one, *flags, "--device", "cpu")() == 0
    real = DeviceSteps.attempt

    def killed(steps: DeviceSteps, tokens: torch.Tensor, step: int) -> Any:
        if step == 2 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return real(steps, tokens, step)

    monkeypatch.setattr(DeviceSteps, "attempt", killed)
    first, second = launched(2, command(two, *flags, "--device", "vulkan"), tmp_path)
    assert (first.status, second.status) == (2, -signal.SIGKILL)
    assert "rank 1 of 2 stopped answering; the run is saved as it was after step 2\n" in first.err
    assert rows(two, "start")[0]["trained_on"] == "vulkan"
    assert [row["device"]["waits"] for row in rows(two, "step")] == [2, 2]
    alike(one, two, 2)
    assert command(two, "--resume", "--quiet", "--device", "cpu")() == 0
    assert [row["ranks"] for event in ("start", "resume") for row in rows(two, event)] == [2, 1]
    alike(one, two, 4)
    nats = [rows(run, "end")[0]["validation"]["nats_per_token"] for run in (one, two)]
    assert nats[1] == pytest.approx(nats[0], abs=NATS)


@pytest.mark.slow
@pytest.mark.parametrize("model", [("tinygpt", "--use-moe"), ("ebm", "--windows", "document")], ids=str)
def test_any_model_is_trained_by_two_processes(
    model: tuple[str, ...], tmp_path: Path, begun: tuple[object, ...]
) -> None:
    """A model's own losses need sums over the whole step, for which the host waits a third time."""
    flags = (*begun, "--model", *model, "--batch-size", 2, "--no-enable-soc", "--steps", 2)
    one, two = tmp_path / "one", tmp_path / "two"
    assert command(one, *flags, "--device", "cpu")() == 0
    found = launched(2, command(two, *flags, "--device", "vulkan"), tmp_path)
    assert [(said.status, said.err) for said in found] == [(0, "")] * 2
    assert {row["device"]["waits"] for row in rows(two, "step")} == {3}
    alike(one, two, 2)


def test_each_process_can_take_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert choose("vulkan:RANK").index == 0
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose("vulkan:RANK").index == 3
    assert choose("vulkan").index is None
