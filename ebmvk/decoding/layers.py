"""Decides on which device a model's layers run when the model reads or writes texts."""

from __future__ import annotations

from collections.abc import Callable

from ebmvk.config.schema import Config
from ebmvk.config.where import why_read_on_host
from ebmvk.engine.device import Device
from ebmvk.engine.vulkan import Vulkan
from ebmvk.model.language import LanguageModel
from ebmvk.model.reading import Layers
from ebmvk.model.token_layers import TokenLayers


def text_layers(model: LanguageModel, config: Config, device: Device, asked: str) -> tuple[Layers | None, str | None]:
    """(layers that read texts on a Vulkan device, None), or (None, why they stay on the CPU).

    asked: the value of `--device`.
    """
    backend, why = _there(config, device, asked)
    if backend is None:
        return None, why
    from ebmvk.model.on_device import DeviceLayers  # torch's tracer takes a while to import

    return DeviceLayers.open(model, backend), None


def token_layers(
    model: LanguageModel, config: Config, device: Device, asked: str, doing: Callable[[str], None] = lambda _: None
) -> tuple[TokenLayers | None, str | None]:
    """(layers that write texts on a Vulkan device, None), or (None, why they stay on the CPU).

    asked: the value of `--device`. doing: called with a description of each slow step.
    """
    backend, why = _there(config, device, asked)
    if backend is None:
        return None, why
    from ebmvk.model.tokens_on_device import DeviceTokens

    return DeviceTokens.open(model, backend, doing), None


def _there(config: Config, device: Device, asked: str) -> tuple[Vulkan | None, str | None]:
    """(the Vulkan device that layers run on, None), or (None, the reason, if there is one)."""
    if not isinstance(device.backend, Vulkan):
        return None, None
    why = why_read_on_host(config, asked)
    return (None, why) if why else (device.backend, None)
