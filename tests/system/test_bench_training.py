"""`bench.training` runs a step in processes of its own and judges their losses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import plain_model, training, training_peers


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64")
def test_the_step_as_a_function_is_the_step_of_the_module() -> None:
    """Three steps of AdamW, torch's own and ours written as a function.

    In float64, because the gradients of the keys' biases are 0 except for rounding, which AdamW
    would turn into moves in float32.
    """
    of = plain_model.QUICK
    peer = training_peers.Torch(of)
    parameters, state, *_ = plain_model.pure_arguments(of, 1)
    step = plain_model.pure_step(plain_model.model(of))
    for number in range(1, 4):
        parameters, state, record = step(parameters, state, *plain_model.fed(of, number))
        assert float(record["loss"]) == pytest.approx(peer.step(number), abs=1e-12)  # a few float64 sums of about 3
    for name, value in peer.model.named_parameters():
        # A move is up to 1e-3; rounding of 1e-17 in a gradient of 0, over AdamW's epsilon of 1e-8.
        torch.testing.assert_close(parameters[name], value.detach(), rtol=0, atol=1e-10)


def test_torch_runs_in_a_process_and_a_missing_peer_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = training_peers.Entry(training_peers.Torch, ("gone==1.0",), ("no_such_package.inside",))
    monkeypatch.setitem(training.PEERS, "tinygrad", gone)
    path = tmp_path / "figures" / "training.json"
    training.main(["--quick", "--repeats", "2", "--peers", "torch_cpu", "tinygrad", "--json", str(path)])
    found = json.loads(path.read_text(encoding="utf-8"))
    peer = found["peers"]["torch_cpu"]
    assert len(peer["losses"]) == training.WARM + 2
    assert peer["losses"][0] == pytest.approx(training_peers.Torch(plain_model.QUICK).step(1), abs=1e-5)
    assert peer["step_seconds"] > 0
    assert peer["first_seconds"] > 0
    assert peer["operations"] > 50
    assert peer["process_bytes"] > peer["imported_bytes"] > 0
    assert peer["wrong"] is False
    assert "pip install gone==1.0" in found["peers"]["tinygrad"]["absent"]
    assert found["ratios"]["step_vs_tinygrad"] is None
    assert "tinygrad isn't installed" in capsys.readouterr().out


def test_a_failing_peer_says_why() -> None:
    process = training.Process("torch_cpu", plain_model.QUICK, limit=120)
    try:
        process.answer()
        with pytest.raises(training.PeerError, match=r"ValueError.*'nonsense'"):
            process.ask("nonsense")
    finally:
        process.close()


def test_a_slow_peer_is_ended() -> None:
    process = training.Process("torch_cpu", plain_model.QUICK, limit=0.01)
    try:
        with pytest.raises(training.PeerError, match=r"no answer in 0\.01 s"):
            process.answer()
    finally:
        process.close()


def record(losses: list[float], seconds: float, **more: Any) -> dict[str, Any]:
    run = training.Run.__new__(training.Run)
    run.name, run.absent, run.failed, run.found = "some", False, None, dict(more)
    run.seconds, run.losses = [9.0] * training.WARM + [seconds] * (len(losses) - training.WARM), losses
    return run.record([3.0] * len(losses))


@pytest.mark.parametrize("off", [2e-3, float("nan")])
def test_a_wrong_peer_gets_no_ratio(off: float) -> None:
    ours = record([3.0, 3.0, 3.0005], 1.0, dispatches=10, device_bytes=5, process_bytes=50)
    assert ours["wrong"] is False
    wrong = record([3.0, 3.0, 3.0 + off], 4.0, dispatches=40, process_bytes=100)
    assert wrong["wrong"] is True
    right = record([3.0, 3.0, 3.0], 4.0, dispatches=40, process_bytes=100)
    compared = training.ratios({"ours": ours, "torchvulkan": right, "tinygrad": wrong})
    assert compared["step_vs_torchvulkan"] == 4
    assert compared["dispatches_vs_torchvulkan"] == 4
    assert compared["step_vs_tinygrad"] is None
    assert compared["memory_vs_torchvulkan"] == 2
    assert compared["memory_is"] == "process_bytes", "the device's bytes are known for one of them only"
