"""Backends under test: each test of an operation runs on every available backend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from vulkan_open import DEMANDED, INDEX, NAME, PRETEND, guarded

from ebmvk.engine import Backend, select
from ebmvk.engine.recording import Recorder
from ebmvk.engine.reference import Reference
from ebmvk.engine.vulkan import Vulkan
from ebmvk.errors import DeviceError


@pytest.fixture(scope="session")
def oracle() -> Reference:
    return Reference(dtype=torch.float64)


@pytest.fixture(scope="session")
def cpu_kernels() -> Any:
    """The extension module, to switch instruction sets and threads."""
    return pytest.importorskip("ebmvk._cpu", reason="the CPU extension is not built")


@pytest.fixture(scope="session")
def _vulkan() -> Backend | str:
    """One device for the session, or a skip with the reason; lavapipe is fine for results."""
    try:
        return Vulkan(INDEX, options={"pretend": PRETEND}) if PRETEND else select(NAME if DEMANDED else "vulkan")
    except (ImportError, DeviceError) as error:
        if DEMANDED:
            raise
        return str(error)


@pytest.fixture(params=["reference", "cpu", "cpu-plain", "vulkan"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """cpu-plain: the loops used without Highway, or if Highway doesn't support the processor."""
    if request.param == "vulkan":
        vulkan = request.getfixturevalue("_vulkan")
        if isinstance(vulkan, str):
            pytest.skip(f"no Vulkan: {vulkan.splitlines()[0]}")
        yield vulkan
    elif request.param == "reference":
        yield select("reference")
    else:
        kernels = request.getfixturevalue("cpu_kernels")
        before = kernels.target()
        if request.param == "cpu-plain":
            kernels.use_target("plain")
        yield select("cpu")
        kernels.use_target(before)


@pytest.fixture(scope="module")
def checked() -> Iterator[Recorder]:
    """With guard bands, poison and validation, which must be silent at the end."""
    for backend in guarded():
        yield Recorder(backend)
