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
EACH_ITS_OWN = "vulkan:RANK"
"""Lets each process of a machine take a Vulkan device of its own."""


@dataclass(frozen=True)
class Choice:
    """The device that `--device` stands for, and why.

    index: the Vulkan device's number, or None for the one to prefer (`vulkan_devices.choose`).
    reason: why, as part of a sentence.
    """

    kind: Kind
    index: int | None
    reason: str

    def __str__(self) -> str:
        name = self.kind if self.index is None else f"{self.kind}:{self.index}"
        return f"{name}: {self.reason}"


def select(device: str = "auto") -> Backend:
    """Open the backend for `device`.

    Args:
        device: auto, cpu, cuda, vulkan, vulkan:<index>, vulkan:RANK or reference. vulkan:RANK is
            for processes of torchrun: each takes the device with its LOCAL_RANK as index, while
            vulkan is one device for all. auto takes CUDA if torch has it, else a Vulkan device that
            isn't a software renderer (such as lavapipe, which is for tests), else the CPU kernels.
            Both auto and vulkan take a discrete card before an integrated GPU.

    Raises:
        ArgumentError: `device` isn't one of these.
        DeviceError: the device can't be opened; the message says why.
    """
    return open_choice(choose(device))


def open_choice(choice: Choice) -> Backend:
    """Open the backend that was chosen. Raises DeviceError as `select` does."""
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
    """One line: what `select(device)` opens, and why. Raises ArgumentError for an unknown name."""
    return str(choose(device))


def choose(device: str = "auto") -> Choice:
    """What `select(device)` opens. Raises ArgumentError for an unknown name."""
    kind, _, number = device.partition(":")
    if device == EACH_ITS_OWN:
        return Choice("vulkan", int(os.environ.get("LOCAL_RANK", "0")), "asked for, by the number of the process")
    if device == "vulkan":
        return Choice("vulkan", None, "asked for")
    if kind == "vulkan" and number.isdecimal() and len(number) < 10:  # larger numbers do not fit the extension's int
        return Choice("vulkan", int(number), "asked for")
    match device:
        case "auto":
            return _automatic()
        case "cpu":
            return Choice("cpu", None, "asked for")
        case "cuda":
            return Choice("cuda", None, "asked for; the engine runs its torch path there")
        case "reference":
            return Choice("reference", None, "asked for; plain torch on the CPU")
    raise ArgumentError(
        f"--device {device!r} is not known",
        hint="use auto, cpu, cuda, vulkan, vulkan:<index>, vulkan:RANK or reference",
    )


def _automatic() -> Choice:
    if torch.cuda.is_available():
        return Choice("cuda", None, f"torch found {torch.cuda.get_device_name()}")
    try:
        from ebmvk.engine import vulkan_devices

        gpus = [device for device in vulkan_devices.devices() if device.type != "cpu"]
        gpu = min(gpus, key=vulkan_devices.preference, default=None)
    except (ImportError, DeviceError):  # no extension, loader or driver; `ebmvk doctor` tells which
        gpu = None
    if gpu is None:
        return Choice("cpu", None, "no GPU found")
    return Choice("vulkan", gpu.index, f"Vulkan found {gpu.name}")
