"""Contexts for test 8. Their laws p(v|c) come from a trained model or are made up."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ebmvk.data.tokenizer import Tokenizer
from ebmvk.data.windows import TokenStream, evaluation_windows
from ebmvk.memory.law import Reader
from ebmvk.model.language import LanguageModel, TokenLaw
from ebmvk.sphere.geometry import projx

CONTEXTS = 20
VOCABULARY = 512
"""Number of tokens, V, in made-up laws."""
TOKENS_READ = 16_384
"""Contexts are chosen among this many first tokens of the validation text."""


@dataclass(frozen=True)
class Contexts:
    """C contexts: their laws p(v|c), and the points of the tokens.

    mu: (V, d) unit rows; log_p: (C, V); labels: a few words per context; source: their origin.
    query (C, d), bias and concentrations (V,): the engine finds the candidates by these; None
        without a model. Without them the candidates are the most probable tokens of lexical (C, V),
        or of log_p if lexical is None.
    """

    mu: Tensor
    log_p: Tensor
    labels: list[str]
    source: str
    query: Tensor | None = None
    bias: Tensor | None = None
    concentrations: Tensor | None = None
    lexical: Tensor | None = None

    def some(self, which: slice) -> Contexts:
        """Some of the contexts."""
        query, lexical = (None if rows is None else rows[which] for rows in (self.query, self.lexical))
        own = (self.log_p[which], self.labels[which])
        return Contexts(self.mu, *own, self.source, query, self.bias, self.concentrations, lexical)

    @property
    def entropy(self) -> Tensor:
        """(C,) nats of p(v|c)."""
        return -(self.log_p.double().exp() * self.log_p.double().clamp_min(-1e3)).sum(1)


def synthetic(d: int, seed: int, count: int = CONTEXTS) -> Contexts:
    """Zipf laws over made-up points, with evenly spaced entropies from .1 nats to log V."""
    g = torch.Generator().manual_seed(seed)
    mu = projx(torch.randn(VOCABULARY, d, generator=g))
    exponents = torch.linspace(0, 8, 2001, dtype=torch.float64)
    laws = torch.log_softmax(-exponents[:, None] * torch.arange(1.0, VOCABULARY + 1).log(), 1)
    entropies = -(laws.exp() * laws).sum(1)
    wanted = torch.linspace(0.1, math.log(VOCABULARY), count, dtype=torch.float64)
    chosen = (entropies[:, None] - wanted).abs().argmin(0)
    log_p = torch.stack([laws[i][torch.randperm(VOCABULARY, generator=g)] for i in chosen]).float()
    labels = [f"Zipf, exponent {float(exponents[i]):.2f}" for i in chosen]
    source = f"made-up laws (Zipf, V = {VOCABULARY}, d = {d}): no checkpoint was given"
    return Contexts(mu, log_p, labels, source)


def remembering(contexts: Contexts, seed: int) -> Contexts:
    """Some of the contexts, with a made-up memory.

    Each law is a mixture: .7 of the context's own law and .3 of a memory of 32 tokens. The
    candidates are found with the query alone, which doesn't depend on the memory. So most of the
    memory's tokens aren't candidates.
    """
    g = torch.Generator().manual_seed(seed)
    chosen = list(range(len(contexts.labels)))[1::6]
    lexical, tokens = contexts.log_p[chosen], contexts.log_p.shape[1]
    zipf = torch.softmax(-torch.arange(1.0, 33).log(), 0)
    memory = torch.stack([torch.zeros(tokens).index_add_(0, torch.randperm(tokens, generator=g)[:32], zipf)
                          for _ in chosen])  # fmt: skip
    log_p = torch.log_softmax((0.7 * lexical.exp() + 0.3 * memory).log(), 1)
    labels = [f"{contexts.labels[i]}, with memory" for i in chosen]
    return Contexts(contexts.mu, log_p, labels, contexts.source, lexical=lexical)


@torch.no_grad()
def of_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    stream: TokenStream,
    context: int,
    reader: Reader | None = None,
    count: int = CONTEXTS,
) -> Contexts:
    """Contexts of a text at evenly spaced quantiles of the entropy of p_lex(v|c), from 0 to 1.

    context: the most tokens in a window. reader: reads a memory for every second context.
    """
    mu = model.embeddings()
    law, queries, states, entropies, labels = TokenLaw(model, mu), [], [], [], []
    for tokens, first in evaluation_windows(stream.take(TOKENS_READ + 1), context, context):
        seen = model(tokens[None, :-1].to(mu.device), mu)
        queries.append(seen.query[0, first:])
        states.append(seen.h[0, first:])
        entropies += [-(log_p.double().exp() * log_p).sum(1) for _, log_p in law.pieces(queries[-1])]
        ends = range(first + 1, len(tokens))
        labels += [(tokens, end) for end in ends]
    query, entropy = torch.cat(queries), torch.cat(entropies)
    quantiles = torch.linspace(0, len(entropy) - 1, count).round().long()
    chosen = entropy.argsort()[quantiles.to(entropy.device)].tolist()
    log_p = torch.log_softmax(F.linear(query[chosen], model.outputs(mu), model.bias), -1).cpu()
    if reader:
        log_p[1::2] = torch.log_softmax(reader.log_prob(torch.cat(states)[chosen[1::2]], log_p[1::2]), -1)
    said = [
        tokenizer.decode(tokens[max(0, end - 8) : end].tolist())[-24:]
        for tokens, end in map(labels.__getitem__, chosen)
    ]
    source = f"{count} contexts of {stream.name}, evenly spaced by quantile of entropy among its first {len(entropy):,}"
    source += "; every second one with static memory" if reader else ""
    kappa = model.concentrations()
    lexical = (query[chosen].cpu(), model.bias.cpu(), None if kappa is None else kappa.cpu())
    return Contexts(mu.cpu(), log_p, said, source, *lexical)
