"""The forward and backward passes of one step, batch after batch; the result is that of one large
batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ebmvk.config.schema import Config
from ebmvk.data.windows import Batches, TokenStream
from ebmvk.engine.device import Device
from ebmvk.engine.seeds import step_seed
from ebmvk.errors import (
    ArgumentError,
    NonFinite,
)
from ebmvk.model.language import Context, LanguageModel
from ebmvk.monitoring.advice import is_out_of_memory
from ebmvk.objective.batch import prepare
from ebmvk.objective.losses import Losses, objective
from ebmvk.ranks import WHOLE, Share
from ebmvk.training import finite


def batches_of(config: Config, train: TokenStream) -> Batches:
    """The batches of a run's steps."""
    return Batches(
        *(train, config.training.windows_per_step, config.data.seq_length, step_seed(config.run.seed, -2)),
        stride=config.data.stride,
    )


@dataclass(frozen=True)
class Passes:
    """The passes of a step, or of one rank's share of it.

    Losses and gradients equal those of one large batch up to rounding. Random choices are the same.

    tokens: (B, T+1) of the whole step. step: counted from 0. batches: the number of batches. total:
    sums a tensor over the ranks.
    """

    model: LanguageModel
    device: Device
    config: Config
    tokens: Tensor
    step: int
    batches: int
    share: Share = WHOLE
    total: Callable[[Tensor], Tensor] = lambda own: own

    def run(self) -> Losses:
        """Returns the losses, and adds the gradients to those of the parameters."""
        over_step, found = self._over_step(), list[Losses]()
        for share in self._shares():
            with self._autocast():
                losses = self._objective(share, over_step)
            losses.total.backward()  # type: ignore[no-untyped-call]
            found.append(dataclasses.replace(losses, total=losses.total.detach()))
        return Losses.sum(found)

    def _over_step(self) -> Callable[[Tensor], Tensor]:
        if self.batches == 1 or not self.model.own_losses:
            return self.total
        sums = self.total(self._sums())
        return lambda _: sums

    def _shares(self) -> list[Share]:
        return [dataclasses.replace(self.share, batch=batch, batches=self.batches) for batch in range(self.batches)]

    def _autocast(self) -> torch.autocast:
        enabled = self.config.training.precision == "bfloat16"
        return torch.autocast(self.device.torch.type, torch.bfloat16, enabled=enabled)

    def _objective(self, share: Share, over_step: Callable[[Tensor], Tensor]) -> Losses:
        own, seed = self.config, self.config.run.seed
        return objective(
            self.model, self.tokens, self.device.backend, own, seed=seed, step=self.step, share=share,
            over_step=over_step,
        )  # fmt: skip

    def _sums(self) -> Tensor:
        """The sums over all batches that the model's own losses need before any gradient.

        They take another pass through the trunk with the same dropout masks. It builds a graph, so
        that its bits are those of the pass that is differentiated.
        """
        return torch.stack([self._sums_of(share) for share in self._shares()]).sum(0)

    def _sums_of(self, share: Share) -> Tensor:
        seed = self.config.run.seed
        own = prepare(self.model, self.tokens, self.config, seed=seed, step=self.step, share=share, draws=False)
        own = own.to(self.tokens.device)
        with self._autocast():
            context: Context = self.model(own.tokens, masks=own.masks)
        return context.sums(own.counted).detach()


def attempted(model: LanguageModel, passes: Passes, non_finite: Callable[[str], NonFinite]) -> Losses | None:
    """Run the `passes` of a rank. Returns None if memory runs out; the tensors of the passes are
    then freed.

    non_finite: takes the name of what isn't finite, and returns the error to raise.

    Raises:
        NonFinite: the engine refuses a tensor, so no loss is computed.
    """
    try:
        return passes.run()
    except ArgumentError as error:  # because of values that the model has reached
        raise non_finite(finite.origin(model, alone(passes).run) or error.what) from None
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def smaller_batches(rows: int, windows: int, ranks: int) -> Iterator[int]:
    """Batch sizes below `rows` that divide a step of `windows` windows evenly over `ranks` ranks.
    Each is at most half of the one before.
    """
    fitting = [part for part in range(1, rows) if windows % part == 0 and part % ranks == 0]
    for part in reversed(fitting):
        if part <= rows // 2:
            yield part
            rows = part


def alone(passes: Passes) -> Passes:
    """The passes of this rank alone, without communication with other ranks."""
    return dataclasses.replace(passes, total=lambda own: own)
