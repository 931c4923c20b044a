"""Where the layers run that write a text."""

from __future__ import annotations

from collections.abc import Callable

from ebmvk.config.schema import Config
from ebmvk.config.where import why_read_on_host
from ebmvk.engine.device import Device
from ebmvk.engine.vulkan import Vulkan
from ebmvk.model.language import LanguageModel
from ebmvk.model.token_layers import TokenLayers


def token_layers(
    model: LanguageModel, config: Config, device: Device, asked: str, doing: Callable[[str], None] = lambda _: None
) -> tuple[TokenLayers | None, str | None]:
    """What runs a run's layers on a Vulkan device; else None, and why they stay on the CPU.

    asked: the value of `--device`. doing: told what takes long.
    """
    if not isinstance(device.backend, Vulkan):
        return None, None
    if why := why_read_on_host(config, asked):
        return None, why
    from ebmvk.model.tokens_on_device import DeviceTokens  # torch's tracer takes a while to import

    return DeviceTokens.open(model, device.backend, doing), None
