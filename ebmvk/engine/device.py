"""Opens the device that --device names: a backend of the engine and its torch device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ebmvk.engine import Backend
from ebmvk.engine.select import choose, open_choice
from ebmvk.errors import DeviceError
from ebmvk.host import process


@dataclass(frozen=True)
class Device:
    """Where things run. backend: the engine's operations; torch: the layers; reason: the backend
    and why it was chosen, for people.
    """

    backend: Backend
    torch: torch.device
    reason: str

    def told(self, why: str | None, there: str = "the layers run there, too") -> str:
        """The reason, and where the layers run if torch can't use the backend's device.

        why: what keeps the layers on the CPU; None if they run on the backend's device as programs.
        there: what to say in that case.
        """
        if self.backend.name != "vulkan":
            return self.reason
        return f"{self.reason}; {there if why is None else f'the layers run on the CPU: {why}'}"


def open_device(name: str) -> Device:
    """The engine on `name`, and torch's device: CUDA only if the engine runs its torch path there.

    Raises:
        DeviceError, ArgumentError: as `ebmvk.engine.select`.
    """
    process.spin_less()
    choice = choose(name)
    backend = open_choice(choice)
    kind = "cuda" if choice.kind == "cuda" else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"--device {name}: torch has no CUDA device", hint="use --device auto or --device cpu")
    return Device(backend, torch.device(kind), f"{choice} ({backend.device})")
