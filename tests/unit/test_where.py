"""Where `--device vulkan` trains the layers of a run, and that it says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from train_support import job

from ebmvk.config.models import MODELS
from ebmvk.config.schema import Config, replace
from ebmvk.config.where import needs_float32, why_on_host, why_read_on_host
from ebmvk.engine.device import Device
from ebmvk.engine.reference import Reference
from ebmvk.ranks import ALONE
from ebmvk.training.session import _where


def asked(**values: Any) -> Config:
    return replace(Config(), {"device": "vulkan", "model": "plain", "precision": "float32", **values})


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("device", ["vulkan", "vulkan:1"])
def test_a_device_trains_every_model(model: str, device: str) -> None:
    assert why_on_host(asked(model=model, device=device)) is None


@pytest.mark.parametrize(
    ("values", "ranks", "said"),
    [
        ({"device": "auto"}, 2, "--device vulkan"),
        ({"device": "auto", "deterministic": True}, 1, "--device vulkan"),
        ({"precision": "bfloat16"}, 1, "--precision float32"),
    ],
)
def test_the_reason_for_layers_on_the_processor_is_printed(values: dict[str, Any], ranks: int, said: str) -> None:
    assert said in (why_on_host(asked(**values), ranks) or "")


@pytest.mark.parametrize("model", MODELS)
def test_a_device_reads_with_every_model(model: str) -> None:
    """Whatever trained them."""
    run = asked(model=model, device="cpu", precision="bfloat16")
    assert why_read_on_host(run, "vulkan:1") is None
    assert "--device vulkan" in (why_read_on_host(run, "auto") or "")


def test_the_line_of_the_device_says_where_layers_are_trained() -> None:
    backend = Reference()
    device = Device(backend, torch.device("cpu"), "asked for")
    assert _where(device, asked(), ALONE) == "asked for"
    backend.name = "vulkan"
    assert "the layers train there" in _where(device, asked(), ALONE)
    assert device.told(None) == "asked for; the layers run there, too"
    assert "whichever is faster" in _where(device, asked(device="auto"), ALONE)
    said = _where(device, asked(precision="bfloat16"), ALONE)
    assert "the layers run on the CPU: the device doesn't have bfloat16" in said


@pytest.mark.parametrize("native", ["float32", "bfloat16"])
def test_precision_is_float32_by_default_where_a_device_trains(native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag is obeyed, and then the layers stay on the processor."""
    monkeypatch.setattr("ebmvk.config.sizes.fast_precision", lambda: native)
    usual = ("--size", "nano", "--dataset", "builtin", "--device")
    assert job(*usual, "vulkan", "--model", "tinygpt").config.training.precision == "float32"
    assert job(*usual, "cpu", "--model", "tinygpt").config.training.precision == native
    flagged = job(*usual, "vulkan", "--model", "tinygpt", "--precision", "bfloat16").config
    assert flagged.training.precision == "bfloat16"
    assert needs_float32(flagged)
