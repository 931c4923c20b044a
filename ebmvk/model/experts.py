"""A mixture of experts: each row goes through the experts that a router chose for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ebmvk.model.grouped import experts, experts_backward
from ebmvk.model.language import Counted
from ebmvk.model.layers import squared_relu


class _Mixture(torch.autograd.Function):
    """y = sum_a w_a down_e squared_relu(up_e x), where e is the a-th choice of a row and w_a its
    weight.

    x: (N, input); router: (E, input); matrices: `up` of all experts, then `down` of all. Returns y
    (N, output), weights and experts (A, N), the probabilities of the experts (E, N), and the
    logsumexp of the logits (N,).

    The gradient is in closed form: with autograd, splitting, padding and routing take as long as
    the products. In autocast, the products and the sum over choices have autocast's dtype; routing
    keeps the dtype of x.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, router: Tensor, active: int, *matrices: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        weights, chosen, p, log_z = _routed(x, router, active)
        device, dtype, half = x.device.type, x.dtype, len(matrices) // 2
        narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype
        up, down = _stacked(matrices[:half], narrow), _stacked(matrices[half:], narrow)
        y, *kept = experts(x.to(narrow), weights, chosen, up, down)
        ctx.active = active
        ctx.mark_non_differentiable(weights, chosen)
        ctx.save_for_backward(x, router, weights, chosen, p, up, down, *kept)
        return y, weights, chosen, p, log_z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, router, weights, chosen, p, *kept = ctx.saved_tensors
        of_y, _, _, of_p, of_z = grads
        grad_x, of_weights, grad_up, grad_down = experts_backward(of_y, weights, *kept)
        if ctx.active > 1:  # the weights are shares of the chosen probabilities
            of_weights = (of_weights - (of_weights * weights).sum(0)) / p.gather(0, chosen).sum(0)
        of_p = of_p.scatter_add(0, chosen, of_weights)
        of_logits = (of_p - (p * of_p).sum(0)).add_(of_z).mul_(p)
        grad_x = torch.addmm(grad_x.to(x.dtype), of_logits.t(), router)
        return grad_x, of_logits @ x, None, *grad_up.to(x.dtype), *grad_down.to(x.dtype)


def _routed(x: Tensor, router: Tensor, active: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights and numbers (A, N) of the A most probable experts of each row, all probabilities (E,
    N), and the logsumexp of the logits (N,). x: (N, input); router: (E, input).

    It runs outside autocast: routing is a discrete decision, so it gets full precision. Experts are
    the first dimension, because sums and maxima over so few numbers are fast only if these are in
    different rows of memory.
    """
    with torch.autocast(x.device.type, enabled=False):
        logits = F.linear(x, router).t().contiguous()  # router @ x.t() takes twice as long
    log_p = torch.log_softmax(logits, 0)
    log_z, p = logits[0] - log_p[0], log_p.exp()
    # Of experts with equal logits, the lower number comes first on all devices. topk leaves their
    # order open, and an untrained router makes all logits equal.
    chosen = torch.sort(logits, dim=0, descending=True, stable=True).indices[:active].contiguous()
    weights = p.gather(0, chosen)
    # A softmax over a single choice is always 1, so the router would learn nothing from it.
    return weights / weights.sum(0) if active > 1 else weights, chosen, p, log_z


def _stacked(matrices: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """torch.stack in another dtype, without a copy in the first dtype."""
    if matrices[0].dtype == dtype:
        return torch.stack(list(matrices))
    found = matrices[0].new_empty(len(matrices), *matrices[0].shape, dtype=dtype)
    for matrix, into in zip(matrices, found, strict=True):
        into.copy_(matrix)
    return found


@dataclass(frozen=True)
class Routing:
    """The experts that N rows were sent to.

    weights: (N, A) for A active experts; each row sums to 1, except for A = 1: then the weight is
    the probability of the expert. experts: (N, A) int64. probability: (E, N), of each expert.
    log_z: (N,), logsumexp of the logits. Probability and log_z have gradients. The weights get a
    gradient only through their products with the experts' outputs.
    """

    weights: Tensor
    experts: Tensor
    probability: Tensor
    log_z: Tensor

    @property
    def shares(self) -> Tensor:
        """(N, A): the weights, divided by their sum, so that they sum to 1 for A = 1 too."""
        return self.weights / self.weights.sum(-1, keepdim=True)

    @property
    def size(self) -> int:
        """Number of sums; see `OwnLoss`."""
        return 2 * len(self.probability) + 1

    def sums(self, there: Counted | None) -> Tensor:
        """Sums of the probability of each expert, of how often it was chosen, and of log_z^2; see
        `OwnLoss`."""
        p, log_z, kinds = self.probability, self.log_z, len(self.probability)
        chosen = (self.experts[..., None] == torch.arange(kinds, device=p.device)).sum(1)
        if there is not None:
            chosen, p, log_z = there.of(chosen), there.of(p, 1), there.of(log_z)
        return torch.cat([p.sum(1).double(), chosen.sum(0).double(), log_z.square().sum()[None].double()])

    def losses(self, sums: Tensor, n: Tensor | int) -> dict[str, Tensor]:
        """moe_balance: E sum_e f_e P_e, where f are the shares of choices and P the mean
        probabilities; it is 1 if both are even (Fedus et al. 2021). moe_z: mean log_z^2 (Zoph et
        al. 2022)."""
        experts = len(self.probability)
        p, chosen, square = torch.split(sums / n, [experts, experts, 1])
        balance = experts * (chosen / self.experts.shape[1] * p).sum()
        dtype = self.probability.dtype
        return {"moe_balance": balance.to(dtype), "moe_z": square[0].to(dtype)}


class MixtureOfExperts(nn.Module):
    """The A best of E two-layer experts, (N, input) -> (N, output), weighted by a softmax over the
    chosen ones. If only one is chosen, its weight is its probability (Fedus et al. 2021).

    Training sorts the rows by expert and runs each expert once on its group. Evaluation runs every
    expert on every row, with weight 0 if it wasn't chosen. The reason: the size of a group depends
    on other tokens, and the rounding of a product may depend on the size of the group. Only the
    dense form makes the bits of a token independent of the tokens after it.
    """

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, experts: int, active: int) -> None:
        super().__init__()
        self.experts, self.active = experts, active
        self.router = nn.Linear(input_dim, experts, bias=False)
        self.up = nn.ModuleList(nn.Linear(input_dim, hidden_dim, bias=False) for _ in range(experts))
        self.down = nn.ModuleList(nn.Linear(hidden_dim, output_dim, bias=False) for _ in range(experts))
        nn.init.zeros_(self.router.weight)
        for down in self.down:
            nn.init.zeros_(down.weight)  # type: ignore[arg-type]

    def expert(self, index: int, x: Tensor) -> Tensor:
        """x: (n, input) -> (n, output) through one expert."""
        y: Tensor = self.down[index](squared_relu(self.up[index](x)))
        return y

    def grouped(self, x: Tensor) -> tuple[Tensor, Routing]:
        """One product per expert, over the rows sent to it. x: (N, input) -> (N, output)."""
        matrices = [layer.weight for layers in (self.up, self.down) for layer in layers]
        y, weights, chosen, p, log_z = _Mixture.apply(x, self.router.weight, self.active, *matrices)  # type: ignore[no-untyped-call]
        return y, Routing(weights.t(), chosen.t(), p, log_z)

    def dense(self, x: Tensor) -> tuple[Tensor, Routing]:
        """Every expert on every row, so that a result depends on its row alone.

        x: (N, input) -> (N, output).
        """
        weights, chosen, p, log_z = _routed(x, self.router.weight, self.active)
        weight = torch.zeros_like(p).scatter(0, chosen, weights)
        y = reduce(torch.add, (weight[i, :, None] * self.expert(i, x) for i in range(self.experts)))
        return y, Routing(weights.detach().t(), chosen.t(), p, log_z)

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        """x: (N, input) -> (N, output), and the routing, from which the experts' losses come."""
        return (self.grouped if self.training else self.dense)(x)
