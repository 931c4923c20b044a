"""--device opens the requested device or raises an error."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from ebmvk.engine import explain, select, vulkan_devices
from ebmvk.engine.device import open_device
from ebmvk.engine.select import Choice, choose
from ebmvk.errors import ArgumentError, DeviceError


@pytest.mark.parametrize(
    "device", ["", "gpu", "CPU", "vulkan:", "vulkan:x", "vulkan:-1", f"vulkan:{10**20}", "cpu:0", "cuda:1"]
)
def test_unknown_devices_are_refused(device: str) -> None:
    with pytest.raises(ArgumentError, match="--device"):
        select(device)
    with pytest.raises(ArgumentError, match="--device"):
        explain(device)


def test_auto_gives_its_reason() -> None:
    assert explain("auto").partition(":")[0] in ("cpu", "cuda", "vulkan")
    assert choose("auto").kind != "cpu" or explain("auto") == "cpu: no GPU found"


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_a_machine_without_vulkan_takes_the_cpu_and_shows_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_loader() -> list[vulkan_devices.Device]:
        raise DeviceError("vk::createInstance: ErrorIncompatibleDriver", hint="install a driver")

    monkeypatch.setattr(vulkan_devices, "devices", no_loader)
    assert explain("auto") == "cpu: no GPU found"
    assert open_device("auto").reason.startswith("cpu: no GPU found (")


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_a_processor_that_offers_vulkan_is_not_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    software, gpu = (
        vulkan_devices.Device(0, "lavapipe", "cpu", "", 1),
        vulkan_devices.Device(1, "a card", "discrete", "", 1),
    )
    monkeypatch.setattr(vulkan_devices, "devices", lambda: [software])
    assert choose("auto").kind == "cpu"
    monkeypatch.setattr(vulkan_devices, "devices", lambda: [software, gpu])
    assert choose("auto") == Choice("vulkan", 1, "Vulkan found a card")


def pretended(*types: str) -> list[vulkan_devices.Device]:
    return [vulkan_devices.Device(i, f"device {i}", kind, "", 1) for i, kind in enumerate(types)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
@pytest.mark.parametrize(
    ("types", "index"),
    [
        (("integrated", "discrete"), 1),
        (("discrete", "integrated"), 0),
        (("cpu", "integrated", "discrete", "discrete"), 2),
        (("cpu", "virtual", "integrated"), 2),
        (("other", "cpu"), 0),
        (("integrated", "integrated"), 0),
    ],
    ids=str,
)
def test_a_discrete_card_comes_before_an_integrated_gpu(
    types: tuple[str, ...], index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds for `auto` and `vulkan`, in whatever order the driver lists the devices."""
    found = [SimpleNamespace(index=device.index, type=device.type, missing="") for device in pretended(*types)]
    monkeypatch.setattr(vulkan_devices, "devices", lambda: pretended(*types))
    monkeypatch.setattr(vulkan_devices, "_found", lambda: found)
    assert choose("auto").index == index
    assert vulkan_devices.choose(None) == index


def test_a_card_that_cannot_be_used_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        SimpleNamespace(index=0, type="discrete", missing="it offers Vulkan 1.0, and 1.2 is needed"),
        SimpleNamespace(index=1, type="integrated", missing=""),
        SimpleNamespace(index=2, type="cpu", missing=""),
    ]
    monkeypatch.setattr(vulkan_devices, "_found", lambda: found)
    assert vulkan_devices.choose(None) == 1


def test_reference_computes_with_torch() -> None:
    assert select("reference").name == "reference"
    assert select("reference").device == "torch on cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_cuda_is_refused_without_cuda() -> None:
    with pytest.raises(DeviceError, match="cuda"):
        select("cuda")


def test_cpu_is_refused_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ebmvk._cpu", None)
    monkeypatch.delattr("ebmvk._cpu", raising=False)
    with pytest.raises(DeviceError, match="CPU kernels") as caught:
        select("cpu")
    assert "./run setup" in caught.value.hint


def test_importing_the_engine_loads_no_extension() -> None:
    import subprocess

    code = "import ebmvk.engine, sys; assert not any(m in sys.modules for m in ('ebmvk._cpu', 'ebmvk._vulkan'))"
    subprocess.run([sys.executable, "-c", code], check=True)
