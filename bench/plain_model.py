"""A plain language model and its training step in torch: what `bench.training` gives to each peer.

Nothing here knows a device. `Plain` is an ordinary module; `adamw` and `pure_step` write the same
step as a function, for the compilers that take functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RATE, BETAS, EPSILON, DECAY = 1e-3, (0.9, 0.95), 1e-8, 0.1
"""AdamW's settings, for all peers."""


@dataclass(frozen=True)
class Sizes:
    """layers, width, heads: of the model. words: of its vocabulary. rows, tokens: of a batch."""

    layers: int = 4
    width: int = 128
    heads: int = 4
    words: int = 65
    rows: int = 12
    tokens: int = 64


QUICK = Sizes(layers=1, width=32, heads=2, words=17, rows=2, tokens=16)


class Block(nn.Module):
    """Causal attention and a GELU layer of four times the width, LayerNorm before each."""

    def __init__(self, of: Sizes) -> None:
        super().__init__()
        self.heads, self.each = of.heads, of.width // of.heads
        self.norm1 = nn.LayerNorm(of.width)
        self.qkv = nn.Linear(of.width, 3 * of.width)
        self.out = nn.Linear(of.width, of.width)
        self.norm2 = nn.LayerNorm(of.width)
        self.up = nn.Linear(of.width, 4 * of.width)
        self.down = nn.Linear(4 * of.width, of.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        rows, tokens, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).split(width, dim=2)
        q, k, v = (part.view(rows, tokens, self.heads, self.each).transpose(1, 2) for part in (q, k, v))
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.each)
        later = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).triu(1)
        weights = torch.softmax(scores.masked_fill(later, -1e9), dim=-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(rows, tokens, width))
        found: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return found


class Plain(nn.Module):
    """Learned positions, blocks, a last LayerNorm and a head of its own: ids (B, T) to logits."""

    def __init__(self, of: Sizes) -> None:
        super().__init__()
        self.words = nn.Embedding(of.words, of.width)
        self.places = nn.Parameter(0.02 * torch.randn(of.tokens, of.width))
        self.blocks = nn.ModuleList(Block(of) for _ in range(of.layers))
        self.norm = nn.LayerNorm(of.width)
        self.head = nn.Linear(of.width, of.words, bias=False)
        nn.init.normal_(self.words.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def model(of: Sizes) -> Plain:
    """The model, with the same weights in each process."""
    torch.manual_seed(0)
    return Plain(of)


def batch(of: Sizes, number: int) -> tuple[Tensor, Tensor]:
    """Ids (B, T) of step `number`, and the id after each, by a rule that can be learned."""
    chance = torch.Generator().manual_seed(1000 + number)
    ids = torch.randint(of.words, (of.rows, of.tokens), generator=chance)
    return ids, (5 * ids + 3) % of.words


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def optimiser(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=RATE, betas=BETAS, eps=EPSILON, weight_decay=DECAY)


def adamw(values: dict[str, Tensor], gradients: dict[str, Tensor], state: Any, scalars: Any) -> tuple[Any, Any]:
    """AdamW as `optimiser` does it (Loshchilov and Hutter, 2019), written as a function."""
    beta1, beta2 = BETAS
    correction1, correction2 = 1 - beta1 ** scalars["step"], 1 - beta2 ** scalars["step"]
    new: dict[str, Tensor] = {}
    first: dict[str, Tensor] = {}
    second: dict[str, Tensor] = {}
    for name, value in values.items():
        gradient = gradients[name]
        first[name] = beta1 * state["first"][name] + (1 - beta1) * gradient
        second[name] = beta2 * state["second"][name] + (1 - beta2) * gradient * gradient
        move = first[name] / correction1 / (torch.sqrt(second[name] / correction2) + EPSILON)
        new[name] = value * (1 - scalars["rate"] * DECAY) - scalars["rate"] * move
    return new, {"first": first, "second": second}


def pure_step(module: nn.Module) -> Callable[[Any, Any, Any, Any], tuple[Any, Any, Any]]:
    """(parameters, state, batch, scalars) -> (parameters, state, {"loss"}); keeps `module`."""

    def step(parameters: Any, state: Any, batch: Any, scalars: Any) -> tuple[Any, Any, Any]:
        leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        loss = loss_of(torch.func.functional_call(module, leaves, (batch["ids"],)), batch["targets"])
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        with torch.no_grad():
            new, moments = adamw(parameters, gradients, state, scalars)
        return new, moments, {"loss": loss.detach()}

    return step


def pure_arguments(of: Sizes, number: int) -> tuple[Any, Any, Any, Any]:
    """The arguments of `pure_step` at step `number` (from 1) with the weights of `model`."""
    parameters = {name: value.detach() for name, value in model(of).named_parameters()}
    state = {kind: {n: torch.zeros_like(p) for n, p in parameters.items()} for kind in ("first", "second")}
    return parameters, state, *fed(of, number)


def fed(of: Sizes, number: int) -> tuple[Any, Any]:
    """The batch and the scalars of step `number`, from 1."""
    ids, targets = batch(of, number)
    return {"ids": ids, "targets": targets}, {"rate": torch.tensor(RATE), "step": torch.tensor(float(number))}
