"""A mixture of experts, each row through those that a router chose for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ebmvk.model.layers import squared_relu
from ebmvk.ranks import batch_mean

_ROUND = 64
"""Groups of rows have room for a multiple of it: oneDNN compiles a kernel for every new number of rows, which takes as
long as several products."""
_MOST_EVEN = 1.125
"""Groups have equal room where that is at most so many times as much: one batched product costs less than one product
after another."""


@dataclass(frozen=True)
class _Groups:
    """Where rows stand when they are sorted by expert, in groups that have room to spare, of zeros.

    sizes: of the groups; room: how many rows each may have. source: (sum of room,) int64, which row stands in each
    place; place: (rows,) int64, where each row stands.
    """

    sizes: list[int]
    room: list[int]
    source: Tensor
    place: Tensor

    @classmethod
    def of(cls, chosen: Tensor, experts: int) -> _Groups:
        """chosen: (rows,) int64, the expert of each."""
        order, sizes = torch.argsort(chosen, stable=True), torch.bincount(chosen, minlength=experts).tolist()
        room = [-(-size // _ROUND) * _ROUND for size in sizes]
        if max(room) * experts <= _MOST_EVEN * sum(room):
            room = [max(room)] * experts
        begins = [0, *accumulate(room)][:-1]
        places = [torch.arange(b, b + n, device=chosen.device) for b, n in zip(begins, sizes, strict=True)]
        place, sorted_place = torch.empty_like(order), torch.cat(places)
        place[order] = sorted_place
        return cls(sizes, room, order.new_zeros(sum(room)).index_copy_(0, sorted_place, order), place)

    @property
    def even(self) -> bool:
        """Whether all have the same room."""
        return len(set(self.room)) == 1

    def spread(self, x: Tensor) -> Tensor:
        """Rows of x at their places; where there are more rows than in x, they are copies of it, one after another."""
        found = x.index_select(0, self.source % len(x) if len(self.place) > len(x) else self.source)
        for size, group in zip(self.sizes, torch.split(found, self.room), strict=True):
            group[size:] = 0
        return found

    def products(self, rows: Tensor, matrices: Tensor) -> Tensor:
        """Each group by its own matrix: rows (..., d), matrices (E, d, e) -> (..., e)."""
        if self.even:
            return torch.bmm(rows.view(len(matrices), self.room[0], rows.shape[1]), matrices).flatten(0, 1)
        found = rows.new_empty(len(rows), matrices.shape[2])
        for group, matrix, into in zip(
            torch.split(rows, self.room), matrices, torch.split(found, self.room), strict=True
        ):
            torch.mm(group, matrix, out=into)
        return found

    def gradients(self, grads: Tensor, rows: Tensor) -> Tensor:
        """(E, e, d), of the matrices W of `products` with W^T: grads (..., e), of the products; rows (..., d)."""
        if self.even:
            grads, rows = (part.view(len(self.room), self.room[0], part.shape[1]) for part in (grads, rows))
            return torch.bmm(grads.mT, rows)
        found = rows.new_empty(len(self.room), grads.shape[1], rows.shape[1])
        for grad, own, into in zip(torch.split(grads, self.room), torch.split(rows, self.room), found, strict=True):
            torch.mm(grad.t(), own, out=into)
        return found


class _Experts(torch.autograd.Function):
    """sum_a weights[:, a] down_e squared_relu(up_e x), e the a-th choice of each row: x (N, input), weights (N, A) ->
    (N, output).

    groups: of all first choices, then of all second ones, and so on; matrices: up of all experts, then down of all. One
    pass over all groups wherever it is not a product: what autograd makes of pieces, paddings and concatenations takes
    as long as the products. In autocast the sum over choices is of its dtype, as the products are.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, groups: _Groups, *matrices: Tensor) -> Tensor:
        half = len(matrices) // 2
        up, down = _stacked(matrices[:half], x.dtype), _stacked(matrices[half:], x.dtype)
        rows = groups.spread(x)
        positive = groups.products(rows, up.mT).relu_()
        hidden = positive.square()
        copies = groups.products(hidden, down.mT).index_select(0, groups.place)
        ctx.groups, ctx.dtype = groups, matrices[0].dtype
        weights = weights.to(x.dtype)
        ctx.save_for_backward(weights, rows, positive, hidden, copies, up, down)
        return _weighted(weights, torch.split(copies, len(x)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weights, rows, positive, hidden, copies, up, down = ctx.saved_tensors
        groups: _Groups = ctx.groups
        n = len(weights)
        given = [(grads[0] * copy).sum(-1, dtype=ctx.dtype) for copy in torch.split(copies, n)]
        grad = groups.spread(torch.cat([grads[0] * weight[:, None] for weight in weights.unbind(-1)]))
        grad_down = groups.gradients(grad, hidden)
        half = groups.products(grad, down).mul_(positive)  # of the gradient: doubled below, where there is less of it
        grad_up = groups.gradients(half, rows).to(ctx.dtype).mul_(2)
        grad_rows = groups.products(half, up).index_select(0, groups.place).mul_(2)
        grad_x = reduce(torch.add, torch.split(grad_rows, n))
        return grad_x, torch.stack(given, dim=-1), None, *grad_up, *grad_down.to(ctx.dtype)


def _stacked(matrices: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """torch.stack in another dtype, without a copy in the first one."""
    found = matrices[0].new_empty(len(matrices), *matrices[0].shape, dtype=dtype)
    for matrix, into in zip(matrices, found, strict=True):
        into.copy_(matrix)
    return found


def _weighted(weights: Tensor, terms: Sequence[Tensor]) -> Tensor:
    """sum_j weights[:, j] terms[j], in the order of j. weights: (N, J); terms: (N, output)."""
    total = weights[:, :1] * terms[0]
    for j, term in enumerate(terms[1:], start=1):
        total = total + weights[:, j : j + 1] * term
    return total


@dataclass(frozen=True)
class Routing:
    """Expert choice of N rows: weights (N, A) that sum to 1 (for A = 1: the probability of the expert), experts (N, A)
    int64, probabilities (N, E) of all experts, log_z (N,), the logsumexp of their logits."""

    weights: Tensor
    experts: Tensor
    probabilities: Tensor
    log_z: Tensor

    def losses(self) -> dict[str, Tensor]:
        """balance: E sum_e f_e P_e (1 when even; Fedus et al. 2021); z: mean logsumexp^2 (Zoph et al. 2022)."""
        n_experts = self.probabilities.shape[-1]
        chosen = torch.bincount(self.experts.flatten(), minlength=n_experts).to(self.probabilities.dtype)
        share = batch_mean(chosen) / self.experts.numel()
        balance = n_experts * (share * self.probabilities.mean(0)).sum()
        return {"moe_balance": balance, "moe_z": self.log_z.square().mean()}


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
            log_z = torch.logsumexp(logits, -1)
            p = (logits - log_z[:, None]).exp()  # torch's softmax takes four times as long over so few
        experts = torch.topk(logits, self.active, dim=-1).indices
        weights = p.gather(-1, experts)
        # Over one that was chosen a softmax is 1, which would teach the router nothing.
        if self.active > 1:
            weights = weights / weights.sum(-1, keepdim=True)
        return Routing(weights, experts, p, log_z)

    def expert(self, index: int, x: Tensor) -> Tensor:
        """x: (n, input) -> (n, output) through one expert."""
        y: Tensor = self.down[index](squared_relu(self.up[index](x)))
        return y

    def grouped(self, x: Tensor, routing: Routing) -> Tensor:
        """One product per expert over the rows routed to it. x: (N, input) -> (N, output)."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))  # before the copies, not after
        # Copy-major: row a N + n is the a-th choice of row n, so that the copies are slices.
        groups = _Groups.of(routing.experts.t().flatten(), self.experts)
        matrices = [layer.weight for layers in (self.up, self.down) for layer in layers]
        y: Tensor = _Experts.apply(x, routing.weights, groups, *matrices)  # type: ignore[no-untyped-call]
        return y

    def dense(self, x: Tensor, routing: Routing) -> Tensor:
        """Every expert on every row: what a row gets depends on that row alone. x: (N, input) -> (N, output)."""
        weight = torch.zeros_like(routing.probabilities).scatter(-1, routing.experts, routing.weights)
        return _weighted(weight, [self.expert(i, x) for i in range(self.experts)])

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        """x: (N, input) -> (N, output) and the routing, for its losses."""
        routing = self.route(x)
        return (self.grouped if self.training else self.dense)(x, routing), routing
