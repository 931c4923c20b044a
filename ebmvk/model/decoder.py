"""Composition in a tangent space, and the decoders: a mixture of experts or a transformer block (model section 4)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmvk.config import ModelConfig
from ebmvk.model.cache import Cache
from ebmvk.model.context import Block, Scales
from ebmvk.sphere.geometry import expmap, proju, projx


def midpoint_and_log(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """p = projx(a + b) and log_p(a), for unit a, b: (..., d).

    p is the midpoint of the geodesic, so log_p(a) = (theta/2) (a-b)/|a-b| and log_p(b) = -log_p(a): one closed form
    instead of two logarithms. Where a + b vanishes p is a and no direction is shortest: the tangent vector is 0.
    """
    total, difference = a + b, a - b
    plus = (total * total).sum(-1, keepdim=True)
    minus = (difference * difference).sum(-1, keepdim=True)
    tiny = torch.finfo(a.dtype).eps ** 2
    antipodal, equal = plus <= tiny, minus <= tiny
    length = torch.where(antipodal, 1.0, plus).sqrt()
    chord = torch.where(equal, 1.0, minus).sqrt()
    p = torch.where(antipodal, a, total / length)
    # At b = a: atan2(|a-b|, |a+b|) / |a-b| -> 1/|a+b|.
    factor = torch.where(equal, 1 / length, torch.atan2(chord, length) / chord)
    return p, torch.where(antipodal, 0.0, factor * difference)


class Composition(nn.Module):
    """comp(a, b) = exp_p(net[log_p a, log_p b]), p = projx(a + b).

    The two logarithms are opposite (see `midpoint_and_log`), so the network reads the first: any first layer on the
    pair is a layer on one of them. It starts at zero, where comp(a, b) is the midpoint.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, dim // 2)
        self.outer = nn.Linear(dim // 2, dim, bias=False)
        nn.init.zeros_(self.outer.weight)
        self.gain = math.sqrt(dim)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """a, b: (..., d) unit rows -> (..., d) unit rows."""
        p, u = midpoint_and_log(a, b)
        v = self.outer(F.gelu(self.inner(u * self.gain))).to(a.dtype) / self.gain
        return projx(expmap(p, proju(p, v)))


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


@dataclass(frozen=True)
class Routing:
    """Expert choice of N rows: weights (N, A) sum to 1, experts (N, A) int64, logits (N, E) float."""

    weights: Tensor
    experts: Tensor
    logits: Tensor

    def losses(self) -> dict[str, Tensor]:
        """balance: E sum_e f_e P_e (1 when even; Fedus et al. 2021); z: mean logsumexp^2 (Zoph et al. 2022)."""
        n_experts = self.logits.shape[-1]
        share = torch.bincount(self.experts.flatten(), minlength=n_experts).to(self.logits.dtype) / self.experts.numel()
        balance = n_experts * (share * torch.softmax(self.logits, -1).mean(0)).sum()
        return {"moe_balance": balance, "moe_z": torch.logsumexp(self.logits, -1).square().mean()}


class MixtureOfExperts(nn.Module):
    """Top-A of E two-layer experts (N, input) -> (N, output), each A rows weighted by a softmax over the chosen.

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
        return Routing(torch.softmax(top.values, -1), top.indices, logits)

    def expert(self, index: int, x: Tensor) -> Tensor:
        """x: (n, input) -> (n, output) through one expert."""
        y: Tensor = self.down[index](F.relu(self.up[index](x)).square())
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
        done = torch.cat([self.expert(i, group) for i, group in enumerate(groups)])
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


class Decoder(nn.Module, ABC):
    """h-hat = projx(h + D([h; c_l; c_m; c_g])): the state as the point that is compared with the tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gain = math.sqrt(config.latent_dim)

    @abstractmethod
    def moved(self, rows: Tensor, cache: Cache | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """D of rows (B, T, 4 d) whose elements have a mean square of 1: (B, T, d), and losses of its own by name."""

    def forward(self, scales: Scales, cache: Cache | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, T, d) rows -> unit rows (B, T, d), and losses by name."""
        h = scales.state
        assert h is not None
        rows = torch.cat([h, scales.local, scales.medium, scales.global_], dim=-1)
        moved, losses = self.moved(rows * self.gain, cache)
        return projx(h + moved / self.gain), losses


class MixtureDecoder(Decoder):
    """D is a mixture of experts, position by position."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        d = config.latent_dim
        self.moe = MixtureOfExperts(4 * d, config.hidden_dim, d, config.moe_experts, config.moe_active)

    def moved(self, rows: Tensor, cache: Cache | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        del cache  # position by position
        y, routing = self.moe(rows.flatten(0, -2))
        return y.view(*rows.shape[:-1], -1), routing.losses()


class TransformerDecoder(Decoder):
    """D is a projection to d and one block as in GPT-2: attention over the global window, then two layers with GELU.

    The layers are as wide as gives D the weights of the active experts, A 5 d hidden_dim: 4 d^2 are the projection's,
    4 d^2 the attention's.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        d = config.latent_dim
        width = max(config.hidden_dim, 5 * config.moe_active * config.hidden_dim // 2 - 4 * d)
        self.inner = nn.Linear(4 * d, d, bias=False)
        self.block = Block(config, config.context_global, width, F.gelu)

    def moved(self, rows: Tensor, cache: Cache | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        y: Tensor = self.block(self.inner(rows).to(rows.dtype), cache)
        return y, {}


def build_decoder(config: ModelConfig) -> Decoder:
    """The decoder that `--decoder` names."""
    kinds = {"moe": MixtureDecoder, "transformer": TransformerDecoder}
    return kinds[config.decoder](config)
