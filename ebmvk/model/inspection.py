"""Looks inside a model: the attention of each head, and which tokens go to which expert."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ebmvk.data.tokenizer import Ids, Tokenizer
from ebmvk.model.experts import MixtureOfExperts, Routing
from ebmvk.model.infinito import ExternalMemory
from ebmvk.model.language import LanguageModel
from ebmvk.model.layers import Attention

TOP_TOKENS = 8  # tokens shown for each expert
EXPERT_WINDOW = 256  # tokens read at once to see which experts they go to


@dataclass(frozen=True)
class AttentionMap:
    """The attention of one layer on one text. weights: (H, T, T), row t over the positions it looks
    at.

    In the first half of the heads, position s stands for the pair (s - 1, s): it has the key of the
    token before it.
    """

    layer: str
    weights: Tensor

    @property
    def entropy(self) -> Tensor:
        """(H,) nats, mean over positions: 0 if a head always looks at a single token."""
        information: Tensor = torch.special.xlogy(self.weights, self.weights)
        return -information.sum(-1).mean(-1)

    @property
    def distance(self) -> Tensor:
        """(H,) tokens: how far back a head looks, mean over positions."""
        place = torch.arange(self.weights.shape[-1], device=self.weights.device)
        return (self.weights * (place[:, None] - place)).sum(-1).mean(-1)


@dataclass(frozen=True)
class Specialisation:
    """Where one layer of experts sent tokens.

    shares: (V, E), the share of each token that went to each expert; rows sum to 1, or are 0 if the
    token didn't occur. load: (E,), shares over all tokens. count: (V,), how often each token
    occurred.
    """

    layer: str
    shares: Tensor
    load: Tensor
    count: Tensor

    def top(self, k: int, least: int = 5) -> list[list[tuple[int, float]]]:
        """For each expert, the k tokens whose share exceeds the expert's load most, as (token,
        share).

        least: how often a token must have occurred.
        """
        lift = torch.where((self.count >= least)[:, None], self.shares - self.load, -torch.inf)
        found = lift.topk(min(k, len(lift)), dim=0)
        return [
            [(int(i), float(self.shares[i, expert])) for i, gain in zip(own, gains, strict=True) if gain > 0]
            for expert, (own, gains) in enumerate(zip(found.indices.T, found.values.T, strict=True))
        ]


@torch.no_grad()
def attention_maps(model: LanguageModel, tokens: Tensor) -> list[AttentionMap]:
    """The map of each attention layer, in the order in which the layers run. tokens: (T,) int64."""
    found: list[AttentionMap] = []

    def look(name: str, module: Attention, x: Tensor) -> None:
        found.append(AttentionMap(name, module.weights(x)[0].float().cpu()))

    with _watching(model, Attention, lambda name, module, args, _: look(name, module, args[0])):
        model(tokens[None])
    return found


@torch.no_grad()
def specialisation(model: LanguageModel, tokens: Tensor) -> list[Specialisation]:
    """Where each layer of experts sends the tokens (B, T) int64.

    Empty for a model without experts.
    """
    found: list[Specialisation] = []

    def look(name: str, module: MixtureOfExperts, routing: Routing) -> None:
        ids = tokens.flatten().to(routing.weights.device)
        given = torch.zeros(len(ids), module.experts, device=ids.device)
        given.scatter_(-1, routing.experts, routing.shares.float())
        total = torch.zeros(model.vocab_size, module.experts, device=ids.device).index_add_(0, ids, given)
        count = torch.bincount(ids, minlength=model.vocab_size)
        shares = total / count.clamp_min(1)[:, None]
        found.append(Specialisation(name, shares.cpu(), given.mean(0).cpu(), count.cpu()))

    if any(isinstance(module, MixtureOfExperts) for module in model.modules()):
        with _watching(model, MixtureOfExperts, lambda name, module, _, out: look(name, module, out[1])):
            model(tokens)
    return found


@torch.no_grad()
def gates(model: LanguageModel, tokens: Tensor) -> dict[str, list[float]]:
    """Means of gates over tokens (B, T), by name of the module.

    For an external memory: how strongly it is written to, one number. For experts: the load of
    each. Empty for a model that has neither.
    """
    found: dict[str, list[float]] = {}

    def load(name: str, module: MixtureOfExperts, routing: Routing) -> None:
        share = torch.bincount(routing.experts.flatten(), routing.shares.flatten().float(), module.experts)
        found[name] = (share / share.sum()).tolist()

    def strength(name: str, module: ExternalMemory, x: Tensor) -> None:
        found[name] = [float(module.strength(x).mean())]

    if not any(isinstance(module, MixtureOfExperts | ExternalMemory) for module in model.modules()):
        return found
    with (
        _watching(model, MixtureOfExperts, lambda name, module, _, out: load(name, module, out[1])),
        _watching(model, ExternalMemory, lambda name, module, args, _: strength(name, module, args[0])),
    ):
        model(tokens)
    return found


@contextmanager
def _watching(model: LanguageModel, kind: type[nn.Module], see: Any) -> Iterator[None]:
    """Call see(name, module, arguments, result) after each forward pass of a module of this kind.

    Meanwhile the model is in evaluation mode.
    """
    was_training = model.training
    model.eval()
    hooks = [
        module.register_forward_hook(lambda module, args, out, name=name: see(name, module, args, out))
        for name, module in model.named_modules()
        if isinstance(module, kind)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)


def record(model: LanguageModel, tokenizer: Tokenizer, text: Ids, experts: Sequence[Specialisation]) -> dict[str, Any]:
    """Attention maps on `text` (T,) with their figures, and the top tokens of each expert, for
    JSON.

    Weights have three digits: they are only drawn.
    """
    maps = attention_maps(model, torch.from_numpy(text.astype(np.int64)).to(next(model.parameters()).device))
    return {
        "tokens": [tokenizer.label(token) for token in text.tolist()],
        "attention": [
            {
                "layer": own.layer,
                "entropy": own.entropy.tolist(),
                "distance": own.distance.tolist(),
                "weights": (own.weights * 1000).round().div(1000).tolist(),
            }
            for own in maps
        ],
        "experts": [
            {
                "layer": own.layer,
                "load": own.load.tolist(),
                "top": [[(tokenizer.label(token), share) for token, share in top] for top in own.top(TOP_TOKENS)],
            }
            for own in experts
        ],
    }


def expert_table(tokenizer: Tokenizer, experts: Sequence[Specialisation]) -> Iterator[list[str | int | float]]:
    """Rows of a table, the header first: layer, id, token, how often it occurred, and its share for
    each expert. experts: at least one layer."""
    yield ["layer", "id", "token", "count", *(f"expert {i + 1}" for i in range(len(experts[0].load)))]
    for own in experts:
        for token in own.count.nonzero()[:, 0].tolist():
            shares = [round(share, 4) for share in own.shares[token].tolist()]
            yield [own.layer, token, tokenizer.label(token), int(own.count[token]), *shares]


def specialisation_in(model: LanguageModel, tokens: Ids) -> list[Specialisation]:
    """`specialisation` on the tokens (n,), cut into rows.

    Tokens left over after the last full row are ignored.
    """
    length = min(len(tokens), EXPERT_WINDOW if model.reach is None else model.reach)
    rows = max(1, len(tokens) // length)
    batch = torch.from_numpy(tokens[: rows * length].astype(np.int64)).view(rows, length)
    return specialisation(model, batch.to(next(model.parameters()).device))
