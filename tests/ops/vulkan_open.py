"""Opens the Vulkan device for tests, or skips them with a reason."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ebmvk.engine.api import Schedule
from ebmvk.engine.reference import Reference
from ebmvk.engine.vulkan import Vulkan
from ebmvk.engine.vulkan_devices import devices
from ebmvk.errors import DeviceError

ORACLE = Reference("cpu", torch.float64)


NAME = os.environ.get("EBMVK_TEST_DEVICE", "")
DEMANDED = NAME.startswith("vulkan")
"""True if EBMVK_TEST_DEVICE is vulkan or vulkan:<index>. Then tests fail without that device."""
INDEX = int(NAME.partition(":")[2]) if DEMANDED and ":" in NAME else None
PRETEND = os.environ.get("EBMVK_TEST_PRETEND", "")
"""The profile of another device (`_vulkan.profiles()`), for tests that hold on every device."""


def open_pretended(**options: bool | int | float | str) -> Vulkan:
    """The device, with the limits of the profile that EBMVK_TEST_PRETEND names if it is set."""
    return open_vulkan(pretend=PRETEND, **options)


def open_vulkan(**options: bool | int | float | str) -> Vulkan:
    try:
        if not devices() and not DEMANDED:
            pytest.skip("no Vulkan device; lavapipe will do: apt install mesa-vulkan-drivers")
        return Vulkan(INDEX, options=options)
    except DeviceError as error:
        if "VK_LAYER" in error.what:
            pytest.skip(f"{error.what}; apt install vulkan-validationlayers")
        if DEMANDED:
            raise
        pytest.skip(str(error))


def skip_own_width(width: int) -> None:
    """Skips a test that makes llvmpipe's vectors `width` bits wide in another process, if they have
    this width here: other tests cover it."""
    if open_vulkan().capabilities.subgroup_reported == width // 32:
        pytest.skip(f"{width} bits is the width in this process")


def nmse(result: Tensor, oracle: Tensor) -> float:
    """The squared error over the squared size."""
    oracle = oracle.double()
    return float(((result.double() - oracle) ** 2).sum() / (oracle**2).sum().clamp_min(1e-30))


def unit(rows: int, d: int, seed: int) -> Tensor:
    x = torch.randn(rows, d, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(x, dim=-1)


def tangent(x: Tensor, seed: int, size: float = 1.0) -> Tensor:
    u = size * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    return u - (u * x).sum(-1, keepdim=True) * x


def mixture(rows: int, k: int, n: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ids, logw, kappa, log_background; some weights are zero."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(n, (rows, k), generator=generator)
    logw = torch.randn(rows, k, generator=generator)
    logw[:, ::5] = -torch.inf
    kappa = 60 * torch.rand(rows, k, generator=generator)
    background = torch.randn(rows, generator=generator)
    return ids, logw, kappa, background


def schedule(steps: tuple[int, ...] = (4, 0, 3, 2)) -> Schedule:
    levels = len(steps)
    return Schedule(
        kappa_scale=torch.linspace(0.3, 1.2, levels),
        logw_shift=torch.linspace(-1.0, 0.5, levels),
        step_size=torch.linspace(0.03, 0.02, levels),
        gamma=torch.linspace(2.0, 9.0, levels),
        steps=steps,
    )


def guarded(**options: Any) -> Iterator[Vulkan]:
    """For fixtures: a device with guard bands, poisoned buffers and the validation layers, which
    must have nothing to report at the end.
    """
    backend = open_vulkan(validate=True, guard=True, **options)
    yield backend
    assert backend._engine.damaged_guards() == ""
    assert backend._engine.take_messages() == []
