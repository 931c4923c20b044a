"""Where the layers of a run are trained, and where they read texts: on the Vulkan device that
`--device` names, or on the CPU.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable

from ebmvk.config.schema import Config, replace

_WHY: tuple[tuple[Callable[[Config, int], bool], str], ...] = (
    (
        lambda config, ranks: config.run.device == "auto" and ranks > 1,
        "several processes can't measure which is faster; --device vulkan uses the device",
    ),
    (
        lambda config, _: config.run.device == "auto" and config.run.deterministic,
        "with --deterministic no time is measured, or runs might choose differently; --device vulkan uses the device",
    ),
    (
        lambda config, _: config.training.precision != "float32",
        "the device doesn't have {precision} yet; --precision float32 uses the device",
    ),
)
"""(condition, reason): what keeps layers on the CPU. All reasons are in this list."""


def why_on_host(config: Config, ranks: int = 1) -> str | None:
    """For a run whose engine uses a Vulkan device: the reason why its layers are trained on the CPU
    nevertheless. None if the device trains them.

    ranks: the number of processes.
    """
    for holds, why in _WHY:
        if holds(config, ranks):
            return why.format(precision=config.training.precision, ranks=ranks)
    return None


def why_read_on_host(config: Config, device: str) -> str | None:
    """For an engine that uses a Vulkan device: the reason why the layers of a finished run read or
    write a text on the CPU nevertheless. None if the device does it.

    config: of the run. device: the value of `--device`. The run's own device and precision don't
    matter: the layers compute in float32.
    """
    if device == "auto":
        return "for a short text, compiling takes longer than it saves; --device vulkan uses the device"
    return why_on_host(replace(config, {"device": device, "precision": "float32"}))


def needs_float32(config: Config) -> bool:
    """True if only `--precision` keeps the layers from the Vulkan device that a flag asks for."""
    if not config.run.device.startswith("vulkan") or config.training.precision == "float32":
        return False
    return not any(holds(config, 1) for holds, _ in _WHY[:-1])
