"""Test 8, the project's central one: a token decoded from the state of a chain alone has the law p(v|c).

Contexts come from a trained model, or are made up. The statistic is the total variation of n tokens to p(v|c), less
what n true draws have on average (computed exactly). It may be .02. With fewer chains than the 20,000 that are
specified, noise alone would come near that, so 4.4 of its standard deviations are added to the bound then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ebmvk.certification import statistics
from ebmvk.certification.results import Check, Findings, Picture, Series, Sizes
from ebmvk.data.tokenizer import Tokenizer
from ebmvk.data.windows import TokenStream, evaluation_windows
from ebmvk.engine.api import Backend
from ebmvk.model.language import LanguageModel
from ebmvk.model.latent import LatentLaw
from ebmvk.sphere.geometry import projx

CONTEXTS = 20
BOUND, CHAINS = 0.02, 20_000
STEPS, MOST_STEPS = 200, 3200
CANDIDATES = 64
VOCABULARY = 512
"""Of made-up laws."""
TOKENS_READ = 16_384
"""Tokens of the validation text among which contexts are chosen."""
_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Contexts:
    """mu: (V, d) unit rows; log_p: (C, V); labels: a few words per context; source: where they are from.

    query (C, d) and bias (V,): by which the engine finds the candidates; None where there is no model.
    """

    mu: Tensor
    log_p: Tensor
    labels: list[str]
    source: str
    query: Tensor | None = None
    bias: Tensor | None = None

    @property
    def entropy(self) -> Tensor:
        """(C,) nats."""
        return -(self.log_p.double().exp() * self.log_p.double().clamp_min(-1e3)).sum(1)


def synthetic(d: int, seed: int, count: int = CONTEXTS) -> Contexts:
    """Zipf laws over made-up points, their exponents such that entropies are even from .1 nats to log V."""
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


@torch.no_grad()
def of_text(
    model: LanguageModel, tokenizer: Tokenizer, stream: TokenStream, context: int, count: int = CONTEXTS
) -> Contexts:
    """Contexts of a text at even quantiles of the entropy of p(v|c), from the least to the largest.

    context: the most tokens a window gives.
    """
    mu = model.embeddings()
    queries, entropies, labels = [], [], []
    for tokens, first in evaluation_windows(stream.take(TOKENS_READ + 1), context, context):
        seen = model(tokens[None, :-1].to(mu.device), mu)
        log_p = model.log_p_lex(seen, mu)[0, first:].double()
        queries.append(seen.query[0, first:])
        entropies.append(-(log_p.exp() * log_p).sum(1))
        ends = range(first + 1, len(tokens))
        labels += [(tokens, end) for end in ends]
    query, entropy = torch.cat(queries), torch.cat(entropies)
    quantiles = torch.linspace(0, len(entropy) - 1, count).round().long()
    chosen = entropy.argsort()[quantiles.to(entropy.device)].tolist()
    log_p = torch.log_softmax(F.linear(query[chosen], mu, model.bias), -1).cpu()
    said = [
        tokenizer.decode(tokens[max(0, end - 8) : end].tolist())[-24:]
        for tokens, end in map(labels.__getitem__, chosen)
    ]
    source = f"{count} contexts of {stream.name}, at even quantiles of entropy among its first {len(entropy):,}"
    return Contexts(mu.cpu(), log_p, said, source, query[chosen].cpu(), model.bias.cpu())


@dataclass(frozen=True)
class _Outcome:
    """Of one context: total variation, what true draws have on average, and their spread."""

    variation: float
    noise: float
    spread: float
    p: float

    @property
    def excess(self) -> float:
        return self.variation - self.noise


def identity(backend: Backend, contexts: Contexts, sizes: Sizes, seed: int) -> Findings:
    """Each context with 200 steps, as generation does it; where that is not enough, with twice as many until it is.

    A context that needs more passes with what it needs, and says so; one that needs more than 3,200 fails.
    """
    n = sizes.token_chains
    points = backend.points(contexts.mu.contiguous())
    checks, outcomes = [], []
    for i, label in enumerate(contexts.labels):
        law, p = _law(backend, contexts, points, i), contexts.log_p[i].double().exp()
        steps, tried = STEPS, []
        while True:
            tokens = _decoded(law, contexts.log_p[i], n, steps, seed * 1000 + i)
            outcome = _compare(tokens, p, seed)
            bound = BOUND if n >= CHAINS else BOUND + statistics.TWO_SIDED_1E5 * outcome.spread
            tried.append(f"{outcome.excess:.4f} with {steps}")
            if outcome.excess <= bound or steps >= MOST_STEPS:
                break
            steps *= 2
        outcomes.append(outcome)
        entropy = float(contexts.entropy[i])
        detail = (
            f"TV {outcome.variation:.4f}, of true draws {outcome.noise:.4f} +- {outcome.spread:.4f}; {steps} steps"
            + (f" ({', '.join(tried)})" if len(tried) > 1 else "")
            + f"; chi2 p {outcome.p:.2g}; mass outside the candidates {float(law.log_rest.exp()):.2f}; {label!r}"
        )
        name, claim = f"tokens, context {i + 1}", f"Langevin, then decoded from x alone; H = {entropy:.2f} nats"
        checks.append(Check(8, name, claim, n, outcome.excess, "excess TV", high=bound, detail=detail))
    x = contexts.entropy.tolist()
    series = [Series("TV, less that of true draws", x, [outcome.excess for outcome in outcomes], marks=True)]
    title = f"Langevin, then decode: {n:,} chains per context"
    pictures = [Picture("tokens", title, "entropy of p(v|c), nats", "total variation", series, lines={"bound": BOUND})]
    return Findings(checks, pictures)


def _law(backend: Backend, contexts: Contexts, points: object, i: int) -> LatentLaw:
    """Of one chain in context i."""
    row = contexts.log_p[i : i + 1]
    if contexts.query is None or contexts.bias is None:
        return LatentLaw.from_log_probs(backend, points, row, CANDIDATES)  # type: ignore[arg-type]
    query = contexts.query[i : i + 1]
    return LatentLaw.from_query(backend, points, contexts.bias, query, row, CANDIDATES)  # type: ignore[arg-type]


def _decoded(law: LatentLaw, log_p: Tensor, n: int, steps: int, seed: int) -> Tensor:
    """n tokens from n chains, in batches of what memory allows; numbered, so that batches change nothing."""
    batch, tokens = max(1, _AT_ONCE // len(log_p)), []
    for first in range(0, n, batch):
        rows = min(batch, n - first)
        many = LatentLaw(
            *(law.backend, law.points),
            *(tensor.expand(rows, *tensor.shape[1:]).contiguous() for tensor in (law.ids, law.logp, law.log_rest)),
        )
        sample = many.langevin(seed=seed, steps=steps, first_chain=first)
        tokens.append(many.decode(sample.x.cpu(), sample.kappa, log_p.expand(rows, -1), seed=seed, first_chain=first))
    return torch.cat(tokens)


def _compare(tokens: Tensor, p: Tensor, seed: int) -> _Outcome:
    counts, n = torch.bincount(tokens, minlength=len(p)), len(tokens)
    return _Outcome(
        statistics.total_variation(counts, p),
        statistics.expected_total_variation(p / p.sum(), n),
        statistics.total_variation_spread(p / p.sum(), n, seed=seed),
        statistics.counts_test(counts, p).p,
    )
