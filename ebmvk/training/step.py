"""A step of training as one pure function of (parameters, state, batches, scalars).

It can be traced at fixed shapes: nothing in it looks at a value on the host. What the host prepares
for it is a `Batch` for each pass, the learning rate and the number of updates; see
`ebmvk.objective.batch`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ebmvk.config.schema import Config
from ebmvk.engine.api import Backend
from ebmvk.model.language import Context, LanguageModel
from ebmvk.objective.batch import Batch
from ebmvk.objective.losses import Losses, OverStep, losses_of
from ebmvk.training import update
from ebmvk.training.update import Tensors


class _Passes(nn.Module):
    """The passes of a step, computed while `functional_call` replaces the model's parameters."""

    def __init__(self, model: LanguageModel, backend: Backend, config: Config) -> None:
        super().__init__()
        self.model, self.backend, self.config = model, backend, config

    def forward(
        self, batches: Sequence[Batch], leaves: Tensors, whole: Tensor | None = None
    ) -> tuple[list[Losses], Tensors]:
        """The detached losses of each pass, and the sums of their gradients.

        leaves: the parameters to differentiate by. Blocks that are computed twice need the replaced
        parameters in the backward pass too. whole: see `Step.gradients`.
        """
        if whole is None and len(batches) > 1 and self.model.own_losses:
            whole = torch.stack([sums_of(self.model, batch) for batch in batches]).sum(0)
        over_step: OverStep = lambda sums: sums if whole is None else whole  # noqa: E731
        gradients: Tensors = {}
        losses = []
        for batch in batches:
            found = losses_of(self.model, batch, self.backend, self.config, over_step)
            each = torch.autograd.grad(found.total, list(leaves.values()), allow_unused=True)
            for name, own in zip(leaves, each, strict=True):
                if own is not None:
                    gradients[name] = own if name not in gradients else gradients[name] + own
            losses.append(replace(found, total=found.total.detach()))
        return losses, gradients


class _Sums(nn.Module):
    """`sums_of` while `functional_call` replaces the model's parameters."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return sums_of(self.model, batch)


def sums_of(model: LanguageModel, batch: Batch) -> Tensor:
    """(S,) float64, a pass's part of the sums that the model's own losses need."""
    context: Context = model(batch.tokens, masks=batch.masks)
    return context.sums(batch.counted).detach()


class Step:
    """The step of a model in training mode. Its parameters are arguments: those of `model` are
    neither read nor changed.

    backend: computes top-k and energies; to be traced, it has to consist of operations of torch
    (`ebmvk.engine.traceable`).
    """

    def __init__(self, model: LanguageModel, config: Config, backend: Backend) -> None:
        self._passes, self._sums, self.config = _Passes(model.train(), backend, config), _Sums(model), config
        self.own_losses = bool(model.own_losses)
        self.rules = update.rules_of(model, config.training)

    def __call__(
        self,
        parameters: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        batches: Sequence[Batch],
        scalars: Mapping[str, Tensor],
        sample: Tensor | None = None,
    ) -> tuple[Tensors, Tensors, Tensors]:
        """(new parameters, new state, record).

        Args:
            parameters: all of the model's, by name.
            state: of the optimiser, as `update.empty_state` names it.
            batches: one `Batch` for each pass.
            scalars: lr, the learning rate; count, the number of updates including this one; both
                float32 scalars.
            sample: (m,) int64, the positions that consolidation sees: their numbers among the
                targets of all batches, counted one batch after another, with padding if batches
                keep it.

        Returns:
            Parameters and state, unchanged if something isn't finite. The record has `total`, the
            loss; `part.NAME`, its parts; `norm`, of the gradients before clipping; `finite`, bool;
            and `sample` (m, d + 1), states and energies as in `memory.while_training.observed`.
        """
        losses, gradients = self.gradients(parameters, batches)
        norm = update.norm_of(gradients)
        found = Losses.sum(losses)
        finite = torch.isfinite(norm) & torch.isfinite(found.total)
        new, kept = self.updated(parameters, gradients, state, norm, finite, scalars)
        record = {"total": found.total, "norm": norm, "finite": finite}
        record |= {f"part.{name}": value for name, value in found.parts.items()}
        if sample is not None:
            record["sample"] = torch.cat((found.states, found.energies[:, None]), dim=1).index_select(0, sample)
        return new, kept, record

    def updated(
        self, parameters: Mapping[str, Tensor], gradients: Tensors, state: Mapping[str, Tensor], norm: Tensor,
        finite: Tensor, scalars: Mapping[str, Tensor],
    ) -> tuple[Tensors, Tensors]:  # fmt: skip
        """New parameters and state, or the old ones if not `finite`. norm: of the gradients."""
        training = self.config.training
        clipped = update.clipped(gradients, norm, training.grad_clip)
        new, kept = update.updated(
            *(parameters, clipped, state, self.rules),
            lr=scalars["lr"], count=scalars["count"], dtype=update.muon_dtype(training),
        )  # fmt: skip
        return update.where(finite, new, parameters), update.where(finite, kept, state)

    def gradients(
        self, parameters: Mapping[str, Tensor], batches: Sequence[Batch], whole: Tensor | None = None
    ) -> tuple[list[Losses], Tensors]:
        """The detached losses of each pass, and the sums of their gradients by parameter.

        whole: the sums of `sums` over all passes of the step; None if `batches` are all of them.
        """
        leaves = {name: parameters[name].detach().requires_grad_() for name in self.rules}
        values = {f"model.{name}": value for name, value in (dict(parameters) | leaves).items()}
        found: tuple[list[Losses], Tensors] = functional_call(self._passes, values, (batches, leaves, whole))
        return found

    def sums(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """See `sums_of`."""
        values = {f"model.{name}": value for name, value in parameters.items()}
        found: Tensor = functional_call(self._sums, values, (batch,))
        return found
