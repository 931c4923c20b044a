"""Any process of a training run but the first: it does its share of each step and of the splats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ebmvk.config.toml import from_tables
from ebmvk.data.windows import Ahead, TokenStream
from ebmvk.engine.api import Backend
from ebmvk.engine.device import Device, open_device
from ebmvk.engine.seeds import set_deterministic
from ebmvk.engine.sharded import Shards
from ebmvk.errors import NonFinite, OutOfMemory
from ebmvk.memory.while_training import observed
from ebmvk.model.build import build_model
from ebmvk.monitoring.advice import lower_rate, why_it_diverged
from ebmvk.objective.losses import Losses
from ebmvk.ranks import Handler, Ranks
from ebmvk.runs.layout import CONFIG_FILE
from ebmvk.training import finite, optim
from ebmvk.training.interruption import Interruption
from ebmvk.training.passes import Passes, attempted, batches_of
from ebmvk.training.recovery import Recovery
from ebmvk.training.reduction import MODEL, OPTIMIZER, add_up, check_same_weights
from ebmvk.training.stepping import trained_on_device

if TYPE_CHECKING:
    from ebmvk.training.device_steps import DeviceSteps


class Follower:
    """Does what the first rank tells it: open a device, enlist, take steps, compare weights."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self._shards = ranks, Shards(ranks, self._opened)
        self._device: Device
        self._on_device: DeviceSteps | None = None

    def handlers(self) -> Mapping[str, Handler]:
        """{what the first rank asks for: the function that does it}."""
        return {**self._shards.handlers(), "enlist": self.enlist, "step": self.step, "compare": self.compare}

    def _opened(self, name: str) -> Backend:
        self._device = open_device(name)
        return self._device.backend

    def enlist(self, config: dict[str, Any], tokens: int, stream: dict[str, Any], threads: int) -> None:
        """Receive what `reduction.enlist` sends.

        tokens: size of the vocabulary; stream: fields of the TokenStream.
        """
        self.config, given = from_tables(config, Path(CONFIG_FILE)), self.ranks.receive()
        set_deterministic(self.config)
        torch.set_num_threads(threads)
        train = TokenStream(tokens=given.pop("tokens").numpy(), starts=given.pop("starts").numpy(), **stream)
        self._ahead = Ahead(batches_of(self.config, train), self.config.data.num_workers)
        self.model = build_model(self.config.model, tokens)
        self.model.load_state_dict({name.removeprefix(MODEL): v for name, v in given.items() if name.startswith(MODEL)})
        self.model.to(self._device.torch).train()
        moments = {n.removeprefix(OPTIMIZER): v for n, v in given.items() if n.startswith(OPTIMIZER)}
        if trained_on_device(self._device, self.config, self.ranks.size):
            self._on_device = self._device_steps(moments)
        else:
            self.optimizer = optim.build(self.model, self.config.training)
            if moments:
                self.optimizer.load_state_dict(moments)
        self.ranks.use(self._device.torch)

    def _device_steps(self, moments: Mapping[str, torch.Tensor]) -> DeviceSteps:
        from ebmvk.training.device_steps import DeviceSteps  # torch's tracer takes a while to import

        recovery = Recovery(self.config, Path())  # only the first rank makes the errors of a run
        steps = DeviceSteps(self.config, self.model, self._device, recovery, Interruption(), self.ranks)
        if moments:
            steps.optimizer.load_state_dict(moments)
            steps.begin()
        return steps

    def step(self, step: int, batch: int) -> None:
        """Take part in a step. If something isn't finite, the weights stay as they are and the
        first rank reports it.

        step: the number of steps done before; batch: the number of the batch.

        Raises:
            NonFinite: the engine refuses a tensor in this rank's share. OutOfMemory: the share
                doesn't fit.
        """
        tokens = self._ahead.batch(batch).to(self._device.torch)
        if self._on_device is not None:
            record, why = self._on_device.attempt(tokens, step)
            if record is None:
                raise self._out_of_memory(step, why)
            return
        losses = self._losses(tokens, step)
        sample = observed(self.config, losses, tokens, self.ranks.share, step + 1)
        losses, _ = add_up(self.ranks, self.model, losses, sample, interrupted=self.ranks.interrupted)
        parts = {name: float(value) for name, value in losses.parts.items()}
        norm = self.optimizer.gradient_norm()
        if not finite.first_bad(self.model, losses.total, norm, parts, lambda: None):
            self.optimizer.step(optim.lr_at(step, self.config.training), norm)

    def _losses(self, tokens: torch.Tensor, step: int) -> Losses:
        def non_finite(bad: str) -> NonFinite:
            return NonFinite(
                f"step {step + 1}: {bad} is not finite at rank {self.ranks.rank}; the weights were not changed",
                why=why_it_diverged(self.config),
                hint=f"continue from an older checkpoint with {lower_rate(self.config)}",
            )

        self.optimizer.zero_grad()
        passes = Passes(
            *(self.model, self._device, self.config, tokens, step, self.config.training.accumulation_steps),
            *(self.ranks.share, self.ranks.total),
        )
        losses = attempted(self.model, passes, non_finite)
        if losses is None:
            raise self._out_of_memory(step)
        return losses

    def _out_of_memory(self, step: int, why: str = "") -> OutOfMemory:
        """The error to raise."""
        return OutOfMemory(
            f"step {step + 1}: rank {self.ranks.rank} ran out of memory with its share of "
            f"--batch-size {self.config.training.batch_size}",
            why=why,
            hint="continue with --resume and a smaller --batch-size, and more --accumulation-steps",
        )

    def compare(self, step: int) -> None:
        """Compare the weights of all ranks after a step."""
        if self._on_device is not None:
            self._on_device.settle()
        check_same_weights(self.ranks, self.model, step)
