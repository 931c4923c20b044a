"""What a model looks at: attention by head, and which tokens go to which expert."""

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

TOP_TOKENS = 8  # of an expert
EXPERT_WINDOW = 256  # tokens read at once to see where they go


@dataclass(frozen=True)
class AttentionMap:
    """Of one layer on one text: weights (H, T, T), row t over what it looks at.

    In the first half of the heads, position s stands for the pair (s - 1, s): its key is that of the token before.
    """

    layer: str
    weights: Tensor

    @property
    def entropy(self) -> Tensor:
        """(H,) nats, mean over positions: 0 where a head looks at one token only."""
        information: Tensor = torch.special.xlogy(self.weights, self.weights)
        return -information.sum(-1).mean(-1)

    @property
    def distance(self) -> Tensor:
        """(H,) tokens, mean over positions of how far back a head looks."""
        place = torch.arange(self.weights.shape[-1], device=self.weights.device)
        return (self.weights * (place[:, None] - place)).sum(-1).mean(-1)


@dataclass(frozen=True)
class Specialisation:
    """Of one layer of experts: shares (V, E), of every token what went to each expert, rows sum to 1, 0 where the token
    did not come; load (E,), shares of all tokens; count (V,)."""

    layer: str
    shares: Tensor
    load: Tensor
    count: Tensor

    def top(self, k: int, least: int = 5) -> list[list[tuple[int, float]]]:
        """Of each expert, the k tokens that go there most beyond its load, of those that came `least` times: (token,
        share)."""
        lift = torch.where((self.count >= least)[:, None], self.shares - self.load, -torch.inf)
        found = lift.topk(min(k, len(lift)), dim=0)
        return [
            [(int(i), float(self.shares[i, expert])) for i, gain in zip(own, gains, strict=True) if gain > 0]
            for expert, (own, gains) in enumerate(zip(found.indices.T, found.values.T, strict=True))
        ]


@torch.no_grad()
def attention_maps(model: LanguageModel, tokens: Tensor) -> list[AttentionMap]:
    """Of every attention layer, in the order they are used. tokens: (T,) int64."""
    found: list[AttentionMap] = []

    def look(name: str, module: Attention, x: Tensor) -> None:
        found.append(AttentionMap(name, module.weights(x)[0].float().cpu()))

    with _watching(model, Attention, lambda name, module, args, _: look(name, module, args[0])):
        model(tokens[None])
    return found


@torch.no_grad()
def specialisation(model: LanguageModel, tokens: Tensor) -> list[Specialisation]:
    """Of every layer of experts, by the token that a position holds. tokens: (B, T) int64."""
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
    """Means over tokens (B, T) of what gates, by module: how strongly an external memory is written to, (1,); the load
    of experts, (E,). Empty where a model has neither."""
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
    """Calls see(name, module, arguments, result) for each forward of a module of a kind, with the model evaluating."""
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
    """JSON-able: maps with their figures on `text` (T,), and what experts specialise in.

    Weights have three digits: they are drawn, not computed with.
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
    """Rows of what experts get of every token that came, the head first: layer, id, what it says, how often it came,
    and its share of each expert. experts: of one layer at least."""
    yield ["layer", "id", "token", "count", *(f"expert {i + 1}" for i in range(len(experts[0].load)))]
    for own in experts:
        for token in own.count.nonzero()[:, 0].tolist():
            shares = [round(share, 4) for share in own.shares[token].tolist()]
            yield [own.layer, token, tokenizer.label(token), int(own.count[token]), *shares]


def specialisation_in(model: LanguageModel, tokens: Ids) -> list[Specialisation]:
    """`specialisation` by as many of the tokens (n,) as fill rows that the model reads at once."""
    length = min(len(tokens), EXPERT_WINDOW if model.reach is None else model.reach)
    rows = max(1, len(tokens) // length)
    batch = torch.from_numpy(tokens[: rows * length].astype(np.int64)).view(rows, length)
    return specialisation(model, batch.to(next(model.parameters()).device))
