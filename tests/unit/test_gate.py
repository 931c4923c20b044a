"""The gate's fit has the gradient of autograd, and the optimum of a fit by autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ebmvk.memory.gate import Gate, fit_gate, mix, objective

RIDGE = 1e-4


def drawn(n: int, features: int, tiers: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight, bias, features and log probabilities."""
    g = torch.Generator().manual_seed(seed)
    shapes = ((tiers, features), (tiers,), (n, features), (n, 1 + tiers))
    weight, bias, inputs, log_p = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes)
    return weight, bias, inputs, -4 * log_p.abs()


def loss_of(weight: Tensor, bias: Tensor, inputs: Tensor, log_p: Tensor) -> Tensor:
    zero = torch.zeros(inputs.shape[1], dtype=torch.float64)
    log_weights = Gate(weight, bias, zero, zero + 1).log_weights(inputs)
    return RIDGE * weight.square().sum() - mix(log_weights, log_p).mean()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("n", "features", "tiers"), [(1, 1, 1), (7, 3, 1), (33, 5, 2), (501, 8, 3)])
def test_its_gradient_is_autograds(n: int, features: int, tiers: int, seed: int) -> None:
    weight, bias, inputs, log_p = drawn(n, features, tiers, seed)
    loss, by_weight, by_bias = objective(weight, bias, inputs, log_p, RIDGE)
    wanted = loss_of(weight.requires_grad_(), bias.requires_grad_(), inputs, log_p)
    wanted.backward()
    # float64, and sums of at most 501 terms of about 1.
    torch.testing.assert_close(loss, wanted.detach(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(by_weight, weight.grad, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(by_bias, bias.grad, rtol=1e-12, atol=1e-13)


def test_a_token_that_one_part_rules_out_has_a_gradient() -> None:
    """A probability of 0 under one part only."""
    weight, bias, inputs, log_p = drawn(9, 2, 2, 0)
    log_p[::2, 1] = -torch.inf
    _, by_weight, by_bias = objective(weight, bias, inputs, log_p, RIDGE)
    loss_of(weight.requires_grad_(), bias.requires_grad_(), inputs, log_p).backward()
    torch.testing.assert_close(by_weight, weight.grad, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(by_bias, bias.grad, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("seed", range(3))
def test_a_fit_ends_where_one_by_autograd_does(seed: int) -> None:
    _, _, features, log_p = drawn(211, 3, 2, seed)
    gate = fit_gate(features, log_p, ridge=RIDGE)
    inputs = (features - features.mean(0)) / features.std(0, correction=0)
    weight = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.full((2,), -2.2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = loss_of(weight, bias, inputs, log_p)
        loss.backward()
        return loss

    optimiser.step(closure)
    # The steps are the same up to the rounding of float64, which they amplify; a gate is float32.
    torch.testing.assert_close(gate.weight, weight.detach().float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gate.bias, bias.detach().float(), rtol=1e-4, atol=1e-5)
