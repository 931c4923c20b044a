"""A mixture of experts: each row goes through the experts that a router chose for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ebmvk.model.language import Counted
from ebmvk.model.layers import squared_relu

_ROUND = 8
"""A group has room for a multiple of this many rows, and of a `_PARTS`-th of the mean group size.
oneDNN compiles a kernel for each new number of rows, which takes as long as several products."""
_PARTS = 32
_MOST_EVEN = 1.03
"""If equal room for all groups takes at most this many times as much, they get it: one batched
product costs less than several products."""


@dataclass(frozen=True)
class _Groups:
    """The order of rows that are sorted by expert, in groups with spare places.

    N rows have A choices each. room: number of places of each group; R is their sum. row: (R,)
    int64, the row at each place; 0 at a spare place. place: (A N,) int64, the places of all rows
    for their first choice, then for their second choice, and so on.
    """

    room: list[int]
    row: Tensor
    place: Tensor

    @classmethod
    def of(cls, chosen: Tensor, experts: int) -> _Groups:
        """chosen: (A, N) int64, the experts of each row."""
        every, rows = chosen.flatten(), chosen.shape[1]
        order, sizes = torch.argsort(every, stable=True), torch.bincount(every, minlength=experts).tolist()
        multiple = max(1, len(every) // (_ROUND * _PARTS * experts)) * _ROUND
        room = [-(-size // multiple) * multiple for size in sizes]
        if max(room) * experts <= _MOST_EVEN * sum(room):
            room = [max(room)] * experts
        begins = [0, *accumulate(room)][:-1]
        places = torch.cat([torch.arange(b, b + n, device=order.device) for b, n in zip(begins, sizes, strict=True)])
        row = order.new_zeros(sum(room)).index_copy_(0, places, order % rows if len(chosen) > 1 else order)
        return cls(room, row, torch.empty_like(order).index_copy_(0, order, places))

    @property
    def even(self) -> bool:
        """True if all groups have the same room."""
        return len(set(self.room)) == 1

    def spread(self, x: Tensor) -> Tensor:
        """(R, d): the rows of x (N, d) at their places."""
        return x.index_select(0, self.row)

    def weighted(self, placed: Tensor, weights: Tensor) -> Tensor:
        """Multiply each place of `placed` (R, d) by the weight (A, N) of its row and choice, in the
        same memory. Spare places become 0."""
        return placed.mul_(weights.new_zeros(len(placed)).index_copy_(0, self.place, weights.flatten())[:, None])

    def collected(self, placed: Tensor, choices: int) -> Tensor:
        """(A, N, ...): the places of each row, from (R, ...)."""
        return placed.index_select(0, self.place).view(choices, -1, *placed.shape[1:])

    def products(self, rows: Tensor, matrices: Tensor) -> Tensor:
        """Each group times its own matrix: rows (R, d), matrices (E, d, e) -> (R, e)."""
        if self.even:
            return torch.bmm(rows.view(len(matrices), self.room[0], rows.shape[1]), matrices).flatten(0, 1)
        found = rows.new_empty(len(rows), matrices.shape[2])
        for group, matrix, into in zip(
            torch.split(rows, self.room), matrices, torch.split(found, self.room), strict=True
        ):
            torch.mm(group, matrix, out=into)
        return found

    def gradients(self, grads: Tensor, rows: Tensor) -> Tensor:
        """Gradients (E, e, d) of W, where `products` used W^T.

        grads: (R, e), of the products; rows: (R, d).
        """
        if self.even:
            grads, rows = (part.view(len(self.room), self.room[0], part.shape[1]) for part in (grads, rows))
            return torch.bmm(grads.mT, rows)
        found = rows.new_empty(len(self.room), grads.shape[1], rows.shape[1])
        for grad, own, into in zip(torch.split(grads, self.room), torch.split(rows, self.room), found, strict=True):
            torch.mm(grad.t(), own, out=into)
        return found


class _Mixture(torch.autograd.Function):
    """y = sum_a w_a down_e squared_relu(up_e x), where e is the a-th choice of a row and w_a its
    weight.

    x: (N, input); router: (E, input); matrices: `up` of all experts, then `down` of all. Returns y
    (N, output), weights and experts (A, N), the probabilities of the experts (E, N), and the
    logsumexp of the logits (N,).

    Everything but the products is one pass over all groups, with one gradient in closed form: with
    autograd, splitting, padding and routing take as long as the products. A spare place holds a row
    like any other; only its gradient has to be zero. In autocast, the products and the sum over
    choices have autocast's dtype; routing keeps the dtype of x.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, router: Tensor, active: int, *matrices: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        weights, chosen, p, log_z = _routed(x, router, active)
        device, dtype, half = x.device.type, x.dtype, len(matrices) // 2
        narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype
        up, down = _stacked(matrices[:half], narrow), _stacked(matrices[half:], narrow)
        groups = _Groups.of(chosen, half)
        rows = groups.spread(x.to(narrow))
        positive = groups.products(rows, up.mT).relu_()
        hidden = positive.square()
        found = groups.products(hidden, down.mT)
        ctx.groups, ctx.active = groups, active
        ctx.mark_non_differentiable(weights, chosen)
        ctx.save_for_backward(x, router, weights, chosen, p, rows, positive, hidden, found, up, down)
        y = _sum(groups.collected(found, active).mul_(weights.to(narrow)[..., None]))
        return y, weights, chosen, p, log_z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, router, weights, chosen, p, rows, positive, hidden, found, up, down = ctx.saved_tensors
        groups: _Groups = ctx.groups
        of_y, _, _, of_p, of_z = grads
        grad = groups.spread(of_y)
        of_weights = groups.collected((grad * found).sum(-1, dtype=x.dtype), ctx.active)
        grad = groups.weighted(grad, weights.to(grad.dtype))
        grad_down = groups.gradients(grad, hidden)
        # The factor 2 of the square is applied to `down`, the smallest of the factors.
        grad = groups.products(grad, 2 * down).mul_(positive)
        grad_up = groups.gradients(grad, rows)
        grad_x = _sum(groups.collected(groups.products(grad, up), ctx.active))
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
    the first dimension, because sums and maxima over so few are fast only across rows of memory.
    """
    with torch.autocast(x.device.type, enabled=False):
        logits = F.linear(x, router).t().contiguous()  # router @ x.t() takes twice as long
    log_p = torch.log_softmax(logits, 0)
    log_z, p = logits[0] - log_p[0], log_p.exp()
    chosen = torch.topk(logits, active, dim=0).indices
    weights = p.gather(0, chosen)
    # A softmax over a single choice is always 1, so the router would learn nothing.
    return weights / weights.sum(0) if active > 1 else weights, chosen, p, log_z


def _stacked(matrices: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """torch.stack in another dtype, without a copy in the first dtype."""
    found = matrices[0].new_empty(len(matrices), *matrices[0].shape, dtype=dtype)
    for matrix, into in zip(matrices, found, strict=True):
        into.copy_(matrix)
    return found


def _sum(terms: Tensor) -> Tensor:
    """The sum over the first dimension, in its order."""
    return reduce(torch.add, terms.unbind())


@dataclass(frozen=True)
class Routing:
    """The experts that N rows were sent to.

    weights: (N, A), which sum to 1 (for A = 1: the probability of the expert).
    experts: (N, A) int64. probability: (E, N), of each expert. log_z: (N,), logsumexp of the
    logits. Probability and log_z have gradients; the weights have gradients only through the
    output.
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
        """x: (N, input) -> (N, output) and the routing, for its losses."""
        return (self.grouped if self.training else self.dense)(x)
