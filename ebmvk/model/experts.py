"""A mixture of experts, each row through those that a router chose for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmvk.model.layers import squared_relu
from ebmvk.ranks import batch_mean

_ROUND = 64


class _Dispatch(torch.autograd.Function):
    """Rows order % N of x (N, D), for a permutation of A N copies; the backward gathers, where autograd's scatters."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.inverse, ctx.rows = inverse, len(x)
        return x.index_select(0, order % len(x))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        copies = torch.split(grads[0].index_select(0, ctx.inverse), ctx.rows)
        total = copies[0]
        for copy in copies[1:]:
            total = total + copy
        return total, None, None


def _dispatch(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    result: Tensor = _Dispatch.apply(x, order, inverse)  # type: ignore[no-untyped-call]
    return result


def _weighted(weights: Tensor, terms: Sequence[Tensor]) -> Tensor:
    """sum_j weights[:, j] terms[j], in the order of j. weights: (N, J); terms: (N, output)."""
    total = weights[:, :1] * terms[0]
    for j, term in enumerate(terms[1:], start=1):
        total = total + weights[:, j : j + 1] * term
    return total


def _rounded_up(rows: Tensor) -> Tensor:
    """With rows of zeros to a multiple of _ROUND: oneDNN compiles a kernel for every new number of rows, which takes as
    long as several products."""
    return F.pad(rows, (0, 0, 0, -len(rows) % _ROUND))


@dataclass(frozen=True)
class Routing:
    """Expert choice of N rows: weights (N, A) that sum to 1 (for A = 1: the probability of the expert), experts (N, A)
    int64, logits (N, E) float."""

    weights: Tensor
    experts: Tensor
    logits: Tensor

    def losses(self) -> dict[str, Tensor]:
        """balance: E sum_e f_e P_e (1 when even; Fedus et al. 2021); z: mean logsumexp^2 (Zoph et al. 2022)."""
        n_experts = self.logits.shape[-1]
        chosen = torch.bincount(self.experts.flatten(), minlength=n_experts).to(self.logits.dtype)
        share = batch_mean(chosen) / self.experts.numel()
        balance = n_experts * (share * torch.softmax(self.logits, -1).mean(0)).sum()
        return {"moe_balance": balance, "moe_z": torch.logsumexp(self.logits, -1).square().mean()}


class MixtureOfExperts(nn.Module):
    """Top-A of E two-layer experts (N, input) -> (N, output), weighted by a softmax over the chosen, one alone by its
    probability (Fedus et al. 2021).

    Training sorts the rows by expert and runs each expert once on its group. Evaluation runs every expert on every row
    and weights by zero what was not chosen: a group's size depends on other tokens, and a matrix product's rounding may
    depend on the group's size, so only the dense form keeps a token's bits independent of what comes after it.
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

    def route(self, x: Tensor) -> Routing:
        """x: (N, input). Outside autocast: routing decides discretely, so it gets full precision."""
        with torch.autocast(x.device.type, enabled=False):
            logits = self.router(x)
        top = torch.topk(logits, self.active, dim=-1)
        # Over one that was chosen a softmax is 1, which would teach the router nothing.
        weights = (
            torch.softmax(logits, -1).gather(-1, top.indices) if self.active == 1 else torch.softmax(top.values, -1)
        )
        return Routing(weights, top.indices, logits)

    def expert(self, index: int, x: Tensor) -> Tensor:
        """x: (n, input) -> (n, output) through one expert."""
        y: Tensor = self.down[index](squared_relu(self.up[index](x)))
        return y

    def grouped(self, x: Tensor, routing: Routing) -> Tensor:
        """One product per expert over the rows routed to it. x: (N, input) -> (N, output)."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))  # before the copies, not after
        # Copy-major: row a N + n is the a-th choice of row n, so that the copies are slices.
        chosen = routing.experts.t().flatten()
        order = torch.argsort(chosen, stable=True)
        inverse = torch.argsort(order)
        sizes = torch.bincount(chosen, minlength=self.experts).tolist()
        groups = torch.split(_dispatch(x, order, inverse), sizes)
        done = torch.cat([self.expert(i, _rounded_up(group))[: len(group)] for i, group in enumerate(groups)])
        copies = torch.split(_dispatch(done, inverse, order), len(x))
        return _weighted(routing.weights, copies)

    def dense(self, x: Tensor, routing: Routing) -> Tensor:
        """Every expert on every row: what a row gets depends on that row alone. x: (N, input) -> (N, output)."""
        weight = torch.zeros_like(routing.logits).scatter(-1, routing.experts, routing.weights)
        return _weighted(weight, [self.expert(i, x) for i in range(self.experts)])

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        """x: (N, input) -> (N, output) and the routing, for its losses."""
        routing = self.route(x)
        return (self.grouped if self.training else self.dense)(x, routing), routing
