"""The gate that weighs the model's own law against the tiers of memory (model section 5).

It is a softmax, linear in a few features of each law, and fitted by maximum likelihood.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from ebmvk.splats.recall import entropy

LEXICAL = 2  # number of features of the lexical law; those of the tiers follow them


@dataclass(frozen=True)
class Gate:
    """log g = log softmax(0, W (features - mean) / scale + b).

    weight: (tiers, F); bias: (tiers,); mean, scale: (F,) float64 (float32 in files of earlier
    versions).
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor

    def log_weights(self, features: Tensor) -> Tensor:
        """Log weights (B, 1 + tiers), that of the lexical law first. features: (B, F)."""
        # A feature may vary by less than float32's rounding of its mean, so subtract in float64.
        inputs = (features.double() - self.mean) / self.scale
        logits = inputs.to(self.weight.dtype) @ self.weight.T + self.bias
        return log_softmax(torch.cat((torch.zeros_like(logits[:, :1]), logits), dim=1), dim=1)


def lexical_features(log_p_lex: Tensor) -> Tensor:
    """Entropy and largest entry of log p_lex (B, V): (B, LEXICAL) float32, on the CPU."""
    return torch.stack((entropy(log_p_lex.exp(), log_p_lex), log_p_lex.amax(1)), dim=1).float().cpu()


def mix(log_weights: Tensor, log_p: Tensor) -> Tensor:
    """log sum_i g_i p_i.

    log_weights: (B, 1 + tiers); log_p: (B, 1 + tiers, ...). Returns (B, ...).
    """
    return torch.logsumexp(log_weights.reshape(*log_weights.shape, *[1] * (log_p.dim() - 2)) + log_p, dim=1)


class _LBFGS(torch.optim.LBFGS):
    """torch's L-BFGS without the wrapper around the method that adds parameters. The wrapper hides
    the method from torch's compiler, but imports the compiler, which would cost a command more than
    a second.
    """

    add_param_group = getattr(torch.optim.Optimizer.add_param_group, "__wrapped__", torch.optim.LBFGS.add_param_group)


def fit_gate(features: Tensor, log_p: Tensor, ridge: float = 1e-4, rounds: int = 100) -> Gate:
    """The gate that maximises the mixture's likelihood minus ridge |weight|^2.

    Uses L-BFGS, from g = .1 for each tier.

    Args:
        features: (n, F).
        log_p: (n, 1 + tiers), of the token that followed: under the lexical law, then under each
            tier.
        rounds: most iterations of L-BFGS.
    """
    mean, scale = features.double().mean(0), features.double().std(0, correction=0).clamp_min(1e-6)
    inputs, log_p = (features.double() - mean) / scale, log_p.double()
    tiers = log_p.shape[1] - 1
    weight = torch.zeros(tiers, features.shape[1], dtype=torch.float64)
    bias = torch.full((tiers,), -2.2, dtype=torch.float64)
    optimiser = _LBFGS([weight, bias], max_iter=rounds, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        loss, weight.grad, bias.grad = objective(weight, bias, inputs, log_p, ridge)
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return Gate(weight.float(), bias.float(), mean, scale)


def objective(
    weight: Tensor, bias: Tensor, inputs: Tensor, log_p: Tensor, ridge: float
) -> tuple[Tensor, Tensor, Tensor]:
    """ridge |weight|^2 minus the mixture's mean log likelihood, and its gradients.

    The gradients are written by hand, because autograd takes several times as long for the small
    tensors of a gate. With g the weights and r = g p / sum(g p) the posterior of the parts, the
    gradient in the logits is (g - r) / n.

    Args:
        weight, bias: (tiers, F), (tiers,).
        inputs: (n, F), normalised features.
        log_p: (n, 1 + tiers).

    Returns:
        The objective, and its gradients in weight and bias.
    """
    logits = torch.addmm(bias, inputs, weight.T)
    log_weights = log_softmax(torch.cat((torch.zeros_like(logits[:, :1]), logits), dim=1), dim=1)
    joint = log_weights + log_p
    log_mixture = torch.logsumexp(joint, dim=1, keepdim=True)
    slope = (log_weights.exp() - (joint - log_mixture).exp())[:, 1:] / len(inputs)
    loss = ridge * weight.square().sum() - log_mixture.mean()
    return loss, slope.T @ inputs + 2 * ridge * weight, slope.sum(0)
