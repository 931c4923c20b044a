"""An update of the weights as a pure function of tensors, for steps that run as one program.

It computes the same update as `optim.Optimizer`, which works in place, with torch's fused kernels.
Learning rate, number of updates and norm are tensors, and nothing looks at a value on the host: if
a gradient isn't finite, everything stays as it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ebmvk.config.schema import TrainingConfig
from ebmvk.model.language import LanguageModel
from ebmvk.training.muon import MOMENTUM, orthogonalized, step_size

BETAS = (0.9, 0.95)
EPSILON = 1e-8
_CLIP_EPSILON = 1e-6  # that of torch.nn.utils.clip_grads_with_norm_

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Rule:
    """How a parameter is updated. rate: multiple of the learning rate. decay: weight decay, which
    is multiplied by the learning rate. muon: True for Muon, False for AdamW."""

    rate: float
    decay: float
    muon: bool


def rules_of(model: LanguageModel, config: TrainingConfig) -> dict[str, Rule]:
    """The rule of each parameter that is trained."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            role = model.role(name, parameter)
            muon = role.hidden and config.optimizer == "muon"
            found[name] = Rule(1.0 if muon else role.rate, config.weight_decay if role.hidden else 0.0, muon)
    return found


def muon_dtype(config: TrainingConfig) -> torch.dtype:
    """The dtype that Muon orthogonalises in."""
    return torch.bfloat16 if config.precision == "bfloat16" else torch.float32


def empty_state(parameters: Mapping[str, Tensor], rules: Mapping[str, Rule]) -> Tensors:
    """The state before the first update: zeros, named as in `Optimizer.state_dict`, which also
    has the number of updates of each parameter."""
    return {
        f"{name}/{slot}": torch.zeros_like(parameters[name], requires_grad=False)
        for name, rule in rules.items()
        for slot in (("momentum_buffer",) if rule.muon else ("exp_avg", "exp_avg_sq"))
    }


def norm_of(gradients: Mapping[str, Tensor]) -> Tensor:
    """The norm of all gradients together, a scalar."""
    each = [torch.linalg.vector_norm(own) for own in gradients.values()]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(each))
    return norm


def clipped(gradients: Mapping[str, Tensor], norm: Tensor, most: float) -> Tensors:
    """The gradients, scaled down so that their norm is at most `most`. norm: `norm_of` them."""
    factor = torch.where(norm > most, most / (norm + _CLIP_EPSILON), 1.0)
    return {name: own * factor for name, own in gradients.items()}


def updated(
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    rules: Mapping[str, Rule],
    *,
    lr: Tensor,
    count: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensors, Tensors]:
    """New parameters and new state after one update.

    gradients: of the parameters that have one; the others stay as they are. lr: learning rate.
    count: number of updates, including this one; both float32 scalars. dtype: see
    `muon_dtype`.
    """
    new, kept = dict(parameters), dict(state)
    shapes: dict[torch.Size, list[str]] = {}
    for name, rule in rules.items():
        if name in gradients and rule.muon:
            shapes.setdefault(parameters[name].shape, []).append(name)
        elif name in gradients:
            first, second = (state[f"{name}/{slot}"] for slot in ("exp_avg", "exp_avg_sq"))
            moved = adamw(parameters[name], gradients[name], first, second, lr * rule.rate, count, rule.decay)
            new[name], kept[f"{name}/exp_avg"], kept[f"{name}/exp_avg_sq"] = moved
    for shape, names in shapes.items():
        means = [torch.lerp(state[f"{n}/momentum_buffer"], gradients[n], 1 - MOMENTUM) for n in names]
        momenta = [torch.lerp(gradients[n], mean, MOMENTUM) for n, mean in zip(names, means, strict=True)]
        directions = orthogonalized(torch.stack(momenta), dtype).to(means[0].dtype) * (lr * step_size(shape))
        for name, mean, direction in zip(names, means, directions.unbind(), strict=True):
            new[name] = parameters[name] * (1 - lr * rules[name].decay) - direction
            kept[f"{name}/momentum_buffer"] = mean
    return new, kept


def adamw(
    parameter: Tensor, gradient: Tensor, first: Tensor, second: Tensor, lr: Tensor, count: Tensor, decay: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One update of AdamW (Loshchilov and Hutter 2019): the new parameter and its new moments.

    1 - beta^count is computed by expm1, because in float32 the difference would lose digits in the
    first steps.
    """
    first = torch.lerp(first, gradient, 1 - BETAS[0])
    second = second * BETAS[1] + gradient * gradient * (1 - BETAS[1])
    of_first, of_second = (-torch.expm1(count * math.log(beta)) for beta in BETAS)
    size = first / (second.sqrt() / of_second.sqrt() + EPSILON)
    return parameter * (1 - lr * decay) - size * (lr / of_first), first, second


def where(finite: Tensor, new: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> Tensors:
    """`new` if `finite` is True, else `old`. finite: bool scalar."""
    return {name: value if value is old[name] else torch.where(finite, value, old[name]) for name, value in new.items()}
