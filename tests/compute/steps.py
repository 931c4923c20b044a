"""Small models and training steps for the tests of the compiler, written in plain torch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, time, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).split(width, dim=2)
        q, k, v = (part.view(batch, time, self.heads, width // self.heads).transpose(1, 2) for part in (q, k, v))
        scores = q @ k.transpose(-2, -1) / math.sqrt(width // self.heads)
        mask = torch.tril(torch.ones(time, time, dtype=torch.bool))
        weights = torch.softmax(scores.masked_fill(~mask, float("-inf")), -1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(batch, time, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class NanoGPT(nn.Module):
    """A plain language model: learned positions, LayerNorm, an untied head."""

    def __init__(self, words: int = 65, width: int = 16, layers: int = 2, heads: int = 2, time: int = 8) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.places = nn.Embedding(time, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def adamw(
    parameters: dict[str, torch.Tensor], gradients: dict[str, torch.Tensor], state: dict[str, Any], scalars: Any
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """AdamW of Loshchilov and Hutter with weight decay 0.1, one tensor after another."""
    beta1, beta2, eps = 0.9, 0.95, 1e-8
    lr, step = scalars["lr"], scalars["step"]
    new: dict[str, torch.Tensor] = {}
    first: dict[str, torch.Tensor] = {}
    second: dict[str, torch.Tensor] = {}
    for name, value in parameters.items():
        g = gradients[name]
        m = beta1 * state["m"][name] + (1 - beta1) * g
        v = beta2 * state["v"][name] + (1 - beta2) * g * g
        size = m / (1 - beta1**step) / (torch.sqrt(v / (1 - beta2**step)) + eps)
        new[name], first[name], second[name] = value - lr * (size + 0.1 * value), m, v
    return new, {"m": first, "v": second}


def zeros_like(parameters: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {kind: {name: torch.zeros_like(value) for name, value in parameters.items()} for kind in ("m", "v")}


def training_step(model: nn.Module, loss_of: Any, frozen: Any = ()) -> Any:
    """(parameters, state, batch, scalars) -> (parameters, state, record), by AdamW.

    frozen: names of parameters that don't change; they have no moments.
    """

    def step(parameters: Any, state: Any, batch: Any, scalars: Any) -> Any:
        leaves = {name: value.detach().requires_grad_(name not in frozen) for name, value in parameters.items()}
        loss = loss_of(lambda *a, **k: torch.func.functional_call(model, leaves, a, k), batch)
        trained = {name: value for name, value in parameters.items() if name not in frozen}
        found = torch.autograd.grad(loss, [leaves[name] for name in trained])
        with torch.no_grad():
            new, moments = adamw(trained, dict(zip(trained, found, strict=True)), state, scalars)
        return {**parameters, **new}, moments, {"loss": loss.detach()}

    return step


def language_loss(call: Any, batch: Any) -> torch.Tensor:
    logits = call(batch["tokens"])
    return F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())


def nanogpt(words: int = 65, width: int = 16, layers: int = 2, heads: int = 2, batch: int = 3, time: int = 8) -> Any:
    """A step and its arguments, at perturbed weights."""
    torch.manual_seed(0)
    model = NanoGPT(words, width, layers, heads, time)
    parameters = {n: p.detach() + 0.02 * torch.randn_like(p) for n, p in model.named_parameters()}
    data = {k: torch.randint(words, (batch, time)) for k in ("tokens", "targets")}
    scalars = {"lr": torch.tensor(1e-3), "step": torch.tensor(3.0)}
    return training_step(model, language_loss), (parameters, zeros_like(parameters), data, scalars)


def flat(step: Any, arguments: Any) -> tuple[Any, list[torch.Tensor]]:
    """The step as a function of tensors, and its arguments one by one."""
    leaves, spec = pytree.tree_flatten(arguments)

    def called(*values: torch.Tensor) -> list[torch.Tensor]:
        return pytree.tree_leaves(step(*pytree.tree_unflatten(list(values), spec)))

    return called, leaves
