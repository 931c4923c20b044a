"""Backends for the laws; each law runs on every backend of this machine."""

from __future__ import annotations

import os

import pytest
import torch

from ebmvk import engine
from ebmvk.engine.api import Backend
from ebmvk.engine.select import choose
from ebmvk.engine.vulkan import Vulkan
from ebmvk.errors import DeviceError


@pytest.fixture(scope="session", params=["reference", "cpu", "vulkan"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return open_backend(request.param)


@pytest.fixture(scope="session")
def cpu() -> Backend:
    return open_backend("cpu")


def open_backend(name: str) -> Backend:
    wanted = os.environ.get("EBMVK_TEST_DEVICE", "")
    demanded = name == "vulkan" and wanted.startswith("vulkan")  # then the device is required
    pretend = os.environ.get("EBMVK_TEST_PRETEND", "")
    try:
        if name == "vulkan" and pretend:
            return Vulkan(choose(wanted if demanded else name).index, options={"pretend": pretend})
        return engine.select(wanted if demanded else name)
    except DeviceError as error:
        if demanded:
            raise
        pytest.skip(f"no {name} backend here: {error.what}")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Uses one thread, because tensors are small and more threads only wait for each other."""
    torch.set_num_threads(1)
