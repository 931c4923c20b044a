"""Muon for hidden matrices and AdamW for the rest, or AdamW alone, with their schedule (model
section 10).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ebmvk.config.schema import TrainingConfig
from ebmvk.errors import CheckpointError
from ebmvk.model.language import LanguageModel
from ebmvk.training.adamw import AdamW
from ebmvk.training.muon import Muon
from ebmvk.training.update import BETAS, EPSILON, muon_dtype, rules_of

FINAL_RATE = 0.0
# What the optimisers keep for each parameter.
MUON_SLOTS = ("momentum_buffer",)
ADAM_SLOTS = ("step", "exp_avg", "exp_avg_sq")


def lr_at(step: int, config: TrainingConfig) -> float:
    """The learning rate of a step, counted from 0: a linear warm-up, then a cosine that reaches
    zero after `steps`.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    left = max(1, config.steps - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / left)
    return config.learning_rate * (FINAL_RATE + (1 - FINAL_RATE) * (1 + math.cos(math.pi * progress)) / 2)


class Optimizer:
    """Muon and AdamW, or AdamW alone, with one `step`. Its state consists of tensors, named by
    their parameters.

    The model says how each of its parameters is moved: `LanguageModel.role`.
    """

    def __init__(self, model: LanguageModel, config: TrainingConfig) -> None:
        named, rules = {name: p for name, p in model.named_parameters() if p.requires_grad}, rules_of(model, config)
        hidden = sorted(name for name, rule in rules.items() if rule.muon)
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, rule in rules.items():
            if not rule.muon:
                groups.setdefault((rule.rate, rule.decay), []).append(named[name])
        self.names: dict[Tensor, str] = {p: name for name, p in named.items()}
        self.grad_clip = config.grad_clip
        self.adam = AdamW(
            [{"params": own, "rate": rate, "weight_decay": decay} for (rate, decay), own in sorted(groups.items())],
            lr=config.learning_rate,
            betas=BETAS,
            eps=EPSILON,
        )
        self.muon = (
            None
            if not hidden
            else Muon(
                [named[name] for name in hidden],
                lr=config.learning_rate,
                weight_decay=config.weight_decay,
                dtype=muon_dtype(config),
            )
        )
        self._kinds: list[tuple[AdamW | Muon, tuple[str, ...]]] = [
            (self.adam, ADAM_SLOTS),
            *([(self.muon, MUON_SLOTS)] if self.muon else []),
        ]

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for optimizer, _ in self._kinds:
            optimizer.zero_grad()

    def gradient_norm(self) -> Tensor:
        """The norm of all gradients together."""
        return torch.nn.utils.get_total_norm([p.grad for p in self.names if p.grad is not None])

    def step(self, lr: float, norm: Tensor) -> None:
        """Clip the gradients and update the parameters. norm: `gradient_norm()`."""
        if float(norm) > self.grad_clip:  # otherwise all gradients would be multiplied by 1
            torch.nn.utils.clip_grads_with_norm_(list(self.names), self.grad_clip, norm)
        for optimizer, _ in self._kinds:
            for group in optimizer.param_groups:
                group["lr"] = lr * group.get("rate", 1.0)
            optimizer.step()

    def state_dict(self) -> dict[str, Tensor]:
        """{'parameter/slot': tensor} of everything that a resumed run needs."""
        return {
            f"{self.names[parameter]}/{slot}": value.detach()
            for optimizer, _ in self._kinds
            for parameter, slots in optimizer.state.items()
            for slot, value in slots.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned after a step.

        Raises:
            CheckpointError: a tensor is missing or doesn't fit this model.
        """
        places = {
            f"{self.names[parameter]}/{slot}": (optimizer, parameter, slot)
            for optimizer, slots in self._kinds
            for group in optimizer.param_groups
            for parameter in group["params"]
            for slot in slots
        }
        if not isinstance(state, Mapping):
            raise _misfit("is missing")
        for key in [*places, *state]:
            # With a momentum that silently starts from zero, the run would be a different one.
            if key not in state or key not in places:
                raise _misfit(f"{key!r} {'does not belong to this model' if key in state else 'is missing'}")
            optimizer, parameter, slot = places[key]
            value = state[key]
            if not isinstance(value, Tensor) or value.dtype != torch.float32:
                raise _misfit(f"{key!r} is {getattr(value, 'dtype', value)!s}, not a float32 tensor")
            if value.shape != (() if slot == "step" else parameter.shape):
                raise _misfit(f"{key!r} has shape {tuple(value.shape)}, which does not fit the model")
            if slot in ("step", "exp_avg_sq") and bool((value < 0).any()):
                raise _misfit(f"{key!r} is negative")
            optimizer.state[parameter][slot] = value.to(parameter.device, copy=True)


def _misfit(what: str) -> CheckpointError:
    return CheckpointError(
        f"optimiser state {what}",
        why="the checkpoint was written with other settings",
        hint="resume with the settings in the run folder's config.toml, or from an older checkpoint",
    )


def build(model: LanguageModel, config: TrainingConfig) -> Optimizer:
    """The optimiser for a model."""
    return Optimizer(model, config)
