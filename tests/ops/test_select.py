"""--device opens what it names, or fails."""

from __future__ import annotations

import sys

import pytest
import torch

from ebmvk.engine import explain, select
from ebmvk.errors import ArgumentError, DeviceError


@pytest.mark.parametrize(
    "device", ["", "gpu", "CPU", "vulkan:", "vulkan:x", "vulkan:-1", f"vulkan:{10**20}", "cpu:0", "cuda:1"]
)
def test_unknown_names(device: str) -> None:
    with pytest.raises(ArgumentError, match="--device"):
        select(device)
    with pytest.raises(ArgumentError, match="--device"):
        explain(device)


def test_auto_says_why() -> None:
    assert explain("auto").partition(":")[0] in ("cpu", "cuda", "vulkan")
    assert "no CUDA" in explain("auto") or torch.cuda.is_available()


def test_reference_is_torch() -> None:
    assert select("reference").name == "reference"
    assert select("reference").device == "torch on cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_cuda_without_cuda() -> None:
    with pytest.raises(DeviceError, match="cuda"):
        select("cuda")


def test_cpu_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ebmvk._cpu", None)
    monkeypatch.delattr("ebmvk._cpu", raising=False)
    with pytest.raises(DeviceError, match="CPU kernels") as caught:
        select("cpu")
    assert "./run setup" in caught.value.hint


def test_importing_the_engine_loads_no_extension() -> None:
    import subprocess

    code = "import ebmvk.engine, sys; assert not any(m in sys.modules for m in ('ebmvk._cpu', 'ebmvk._vulkan'))"
    subprocess.run([sys.executable, "-c", code], check=True)
