"""Steps by torch on the host or on CUDA, alone or together with other processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor

from ebmvk.config.schema import Config
from ebmvk.engine.device import Device
from ebmvk.errors import BatchTooLarge
from ebmvk.memory.while_training import observed
from ebmvk.model.language import LanguageModel
from ebmvk.model.reading import Layers, TorchLayers
from ebmvk.objective.losses import Losses
from ebmvk.ranks import ALONE, Ranks
from ebmvk.training import finite, optim
from ebmvk.training.interruption import Interruption
from ebmvk.training.optim import Optimizer
from ebmvk.training.passes import Passes, alone, attempted
from ebmvk.training.recovery import Recovery
from ebmvk.training.reduction import add_up
from ebmvk.training.stepping import Steps, Taken


class HostSteps(Steps):
    """Forward and backward passes, then an update in place.

    interruption: passed on to the other processes, and set if one of them is interrupted.
    """

    def __init__(
        self, config: Config, model: LanguageModel, device: Device, recovery: Recovery, interruption: Interruption,
        ranks: Ranks = ALONE, optimizer: Optimizer | None = None,
    ) -> None:  # fmt: skip
        super().__init__(str(device.torch), config, model, optimizer or optim.build(model, config.training))
        self.device, self.ranks = device, ranks
        self._recovery, self._interruption = recovery, interruption

    def resized(self, config: Config) -> HostSteps:
        """The optimiser is the same, so its moments need no second copy."""
        return HostSteps(config, self.model, self.device, self._recovery, self._interruption, optimizer=self.optimizer)

    def layers(self) -> Layers:
        """See `Steps.layers`."""
        return TorchLayers(self.model, self.device.torch)

    def take(self, tokens: Tensor, step: int, batch: int) -> Taken:
        """Take a step, with the other ranks. See `Steps.take`."""
        self.ranks.tell("step", step=step, batch=batch)
        passes = self._passes(tokens, step)
        losses, sample = self._of_all_ranks(passes)
        parts = {name: float(value) for name, value in losses.parts.items()}
        norm = self.optimizer.gradient_norm()
        self._refuse_non_finite(losses.total, norm, parts, passes)
        lr = optim.lr_at(step, self.config.training)
        self.optimizer.step(lr, norm)
        return Taken(float(losses.total), parts, float(norm), lr, sample)

    def _passes(self, tokens: Tensor, step: int) -> Passes:
        return Passes(
            *(self.model, self.device, self.config, tokens, step, self.config.training.accumulation_steps),
            *(self.ranks.share, self.ranks.total),
        )

    def _of_all_ranks(self, passes: Passes) -> tuple[Losses, Tensor]:
        """The losses of a step over all ranks, and the sample of states for consolidation.
        Gradients are summed too."""
        losses = self._if_it_fits(passes)
        if losses is None:
            raise self._out_of_memory(passes)
        sample = observed(self.config, losses, passes.tokens, self.ranks.share, passes.step + 1)
        came = self._interruption.came
        losses, came = add_up(self.ranks, self.model, losses, sample, interrupted=came)
        if came:  # to any rank; never reset here, because a signal may have come meanwhile
            self._interruption.came = True
        return losses, sample

    def _out_of_memory(self, passes: Passes) -> BatchTooLarge:
        """The error to raise."""

        def fits(rows: int) -> bool:
            return self._if_it_fits(dataclasses.replace(passes, tokens=passes.tokens[:rows], batches=1)) is not None

        flags = self._recovery.flags_that_fit(self.ranks.size, fits)
        self.optimizer.zero_grad()
        return self._recovery.out_of_memory(passes.step, flags)

    def _if_it_fits(self, passes: Passes) -> Losses | None:
        self.optimizer.zero_grad()
        return attempted(self.model, passes, lambda bad: self._recovery.non_finite(bad, passes.step))

    def _refuse_non_finite(self, total: Tensor, norm: Tensor, parts: Mapping[str, float], passes: Passes) -> None:
        """Raise NonFinite with the name of the first bad tensor, before the optimiser uses it."""
        if bad := finite.first_bad(self.model, total, norm, parts, alone(passes).run):
            raise self._recovery.non_finite(bad, passes.step)
