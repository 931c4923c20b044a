"""Where the layers of a run are trained: on the Vulkan device that `--device` names, or on the CPU.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable

from ebmvk.config.schema import Config

_WHY: tuple[tuple[Callable[[Config, int], bool], str], ...] = (
    (
        lambda config, _: config.run.device == "auto",
        "nobody has measured yet which is faster; --device vulkan moves them",
    ),
    (lambda _, ranks: ranks > 1, "{ranks} processes can't share a step on Vulkan devices yet"),
    (
        lambda config, _: config.training.precision != "float32",
        "there is no {precision} on the device yet; --precision float32 moves them there",
    ),
)
"""(condition, reason): what keeps layers on the CPU. This is the only list of it."""


def why_on_host(config: Config, ranks: int = 1) -> str | None:
    """Why the layers of a run with the engine on Vulkan are trained on the CPU; None if the device
    trains them.

    ranks: the number of processes.
    """
    for holds, why in _WHY:
        if holds(config, ranks):
            return why.format(precision=config.training.precision, ranks=ranks)
    return None


def needs_float32(config: Config) -> bool:
    """True if only `--precision` keeps the layers from the Vulkan device that a flag asks for."""
    if not config.run.device.startswith("vulkan") or config.training.precision == "float32":
        return False
    return not any(holds(config, 1) for holds, _ in _WHY[:-1])
