"""What takes the steps of a run: the host, or a Vulkan device. The trainer doesn't know which."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ebmvk.config.schema import Config
from ebmvk.config.where import why_on_host
from ebmvk.engine.device import Device
from ebmvk.errors import ConfigError
from ebmvk.model.language import LanguageModel
from ebmvk.model.reading import Layers
from ebmvk.runs import checkpoint
from ebmvk.runs.checkpoint import Checkpoint
from ebmvk.training.optim import Optimizer

if TYPE_CHECKING:
    from ebmvk.compute.profile import Profile  # torch's tracer takes a while to import


@dataclass(frozen=True)
class Taken:
    """One step that was taken.

    total: the loss. parts: its parts by name, without weights. norm: of the gradients before
    clipping. lr: learning rate. sample: (m, d + 1), as `memory.while_training.observed` returns it;
    None if a device keeps it until `Steps.samples`.
    device: what a device did, as JSON values; empty if the step ran on the host.
    """

    total: float
    parts: dict[str, float]
    norm: float
    lr: float
    sample: Tensor | None
    device: dict[str, Any] = field(default_factory=dict)


class Steps(ABC):
    """Takes steps.

    where: what trains, for metrics: "vulkan" or a device of torch. model, optimizer: the weights
    and what the optimiser keeps, on the host. After a step they may be older than those in use,
    until `settle` is called.
    """

    def __init__(self, where: str, config: Config, model: LanguageModel, optimizer: Optimizer) -> None:
        self.where = where
        self.config, self.model, self.optimizer = config, model, optimizer

    @abstractmethod
    def take(self, tokens: Tensor, step: int, batch: int) -> Taken:
        """Take a step.

        Args:
            tokens: (B, T+1) int64, all windows of the step.
            step: the number of steps done before.
            batch: the number of the batch in the text.

        Raises:
            NonFinite: a loss or a gradient isn't finite; weights and moments are as they were.
            BatchTooLarge: the batch doesn't fit; the message names one that does. RankLost,
            DeviceError: another process or the device failed.
        """

    @abstractmethod
    def resized(self, config: Config) -> Steps:
        """Takes steps with the same weights and moments, and batches of another size."""

    def settle(self) -> None:  # noqa: B027  # on the host there is nothing to do
        """Bring `model` and `optimizer` up to date. Raises DeviceError if the device lost them."""

    def samples(self) -> list[Tensor]:
        """The samples that `take` didn't return since the last call, one for each step; `settle`
        has read them."""
        return []

    @abstractmethod
    def layers(self) -> Layers:
        """What reads texts with the present weights, even if `model` has older ones."""

    def begin(self) -> None:  # noqa: B027  # on the host there is nothing to do
        """Let the next step begin with the weights and moments of `model` and `optimizer`."""

    def restore(self, found: Checkpoint) -> None:
        """Continue with the weights and moments of a checkpoint.

        Raises CheckpointError if they don't fit.
        """
        checkpoint.restore(self.model, found)
        self.optimizer.load_state_dict(found.optimizer)

    def plan(self, tokens: Tensor) -> Iterator[str]:  # noqa: ARG002
        """Lines about the memory that a step will take, for people. tokens: of any step.

        Raises BatchTooLarge as `take`.
        """
        return iter(())

    def profile(self, tokens: Tensor, step: int) -> dict[str, tuple[int, Profile]]:  # noqa: ARG002
        """Measure the kernels of a step: {program: (its runs in a step, what one run takes)}.

        Weights and moments stay as they are.

        tokens, step: as for `take`.

        Raises:
            ConfigError: the steps run on the host. DeviceError: the device has no clock, or failed.
        """
        raise ConfigError(
            f"--profile: the steps run on {self.where}, and only those of a Vulkan device can be measured",
            hint="add --device vulkan; for steps on the CPU use torch.profiler",
        )


def trained_on_device(device: Device, config: Config, ranks: int) -> bool:
    """True if a Vulkan device may take the steps. ranks: the number of processes."""
    return device.backend.name == "vulkan" and why_on_host(config, ranks) is None
