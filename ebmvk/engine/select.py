"""Opens the backend that `--device` names.

An automatic choice comes with its reason. An explicit choice is kept or fails; it never falls back
to another device.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import torch

from ebmvk.engine.api import Backend
from ebmvk.errors import ArgumentError, DeviceError

Kind = Literal["cpu", "cuda", "vulkan", "reference"]


@dataclass(frozen=True)
class _Choice:
    kind: Kind
    index: int | None
    reason: str


def select(device: str = "auto") -> Backend:
    """Open the backend for `device`.

    Args:
        device: auto, cpu, cuda, vulkan, vulkan:<index> or reference. auto takes CUDA if torch has
            it, else a Vulkan device that isn't a software renderer (such as lavapipe, which is for
            tests), else the CPU kernels.

    Raises:
        ArgumentError: `device` isn't one of these.
        DeviceError: the device can't be opened; the message says why.
    """
    choice = _choose(device)
    if choice.kind == "cpu":
        from ebmvk.engine.cpu import Cpu

        return Cpu()
    if choice.kind == "vulkan":
        from ebmvk.engine.vulkan import Vulkan

        return Vulkan(choice.index)
    from ebmvk.engine.reference import Reference

    if choice.kind == "cuda":
        _take_own_cuda_device()
    return Reference("cuda" if choice.kind == "cuda" else "cpu")


def _take_own_cuda_device() -> None:
    """Use cuda:LOCAL_RANK, so that each process of a machine has a CUDA device of its own."""
    number, have = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number and number >= have:
        raise DeviceError(
            f"rank {os.environ.get('RANK')} is process {number} of its machine, which has {have} CUDA devices",
            hint=f"use torchrun --nproc-per-node {have}, or --device cpu",
        )
    if "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(number)


def explain(device: str = "auto") -> str:
    """One line: what `select(device)` opens, and why.

    Raises as `select` does for a name it does not know.
    """
    choice = _choose(device)
    name = choice.kind if choice.index is None else f"{choice.kind}:{choice.index}"
    return f"{name}: {choice.reason}"


def _choose(device: str) -> _Choice:
    kind, _, number = device.partition(":")
    if device == "vulkan":
        return _Choice("vulkan", None, "asked for")
    if kind == "vulkan" and number.isdecimal() and len(number) < 10:  # larger numbers don't fit the extension's int
        return _Choice("vulkan", int(number), "asked for")
    match device:
        case "auto":
            return _automatic()
        case "cpu":
            return _Choice("cpu", None, "asked for")
        case "cuda":
            return _Choice("cuda", None, "asked for; the engine runs its torch path there")
        case "reference":
            return _Choice("reference", None, "asked for; plain torch on the CPU")
    raise ArgumentError(
        f"--device {device!r} is not known", hint="use auto, cpu, cuda, vulkan, vulkan:<index> or reference"
    )


def _automatic() -> _Choice:
    if torch.cuda.is_available():
        return _Choice("cuda", None, f"torch has CUDA ({torch.cuda.get_device_name()})")
    index, found = _vulkan_accelerator()
    if index is not None:
        return _Choice("vulkan", index, f"no CUDA; Vulkan has {found}")
    return _Choice("cpu", None, f"no CUDA; {found}")


def _vulkan_accelerator() -> tuple[int | None, str]:
    """(index, name) of the first Vulkan device that isn't of type cpu, or (None, the reason)."""
    try:
        from ebmvk.engine import vulkan_devices

        devices = vulkan_devices.devices()
    except (ImportError, DeviceError) as error:
        return None, f"no Vulkan ({str(error).splitlines()[0]})"
    for device in devices:
        if device.type != "cpu":
            return device.index, f"{device.name}"
    return None, "no Vulkan device other than a software renderer" if devices else "no Vulkan device"
