"""Where the layers run that read a text."""

from __future__ import annotations

from ebmvk.config.schema import Config
from ebmvk.config.where import why_read_on_host
from ebmvk.engine.device import Device
from ebmvk.engine.vulkan import Vulkan
from ebmvk.model.language import LanguageModel
from ebmvk.model.reading import Layers


def text_layers(model: LanguageModel, config: Config, device: Device, asked: str) -> tuple[Layers | None, str | None]:
    """What runs a run's layers on a Vulkan device; else None, and why they stay on the CPU.

    asked: the value of `--device`.
    """
    if not isinstance(device.backend, Vulkan):
        return None, None
    if why := why_read_on_host(config, asked):
        return None, why
    from ebmvk.model.on_device import DeviceLayers  # torch's tracer takes a while to import

    return DeviceLayers.open(model, device.backend), None
