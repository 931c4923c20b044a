"""Test 8, the project's central one: a token decoded from the state of a chain alone has the law p(v|c).

So does one that is drawn coarse to fine. Contexts come from a trained model, with its static memory in half of them if
it has one; or are made up, and then some of their laws are mixtures with a memory that the candidates know nothing of.

The statistic is the total variation of n tokens to p(v|c), less what n true draws have on average (computed exactly).
It may be .02. With fewer chains than the 20,000 that are specified, noise alone would come near that, so 4.4 of its
standard deviations are added to the bound then.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ebmvk.certification import statistics
from ebmvk.certification.results import Check, Findings, Picture, Series, Sizes
from ebmvk.data.tokenizer import Tokenizer
from ebmvk.data.windows import TokenStream, evaluation_windows
from ebmvk.engine.api import Backend, Points
from ebmvk.model.coarse import Neighbourhoods, coarse_to_fine
from ebmvk.model.language import LanguageModel, TokenLaw
from ebmvk.model.latent import LatentLaw
from ebmvk.sphere.geometry import projx
from ebmvk.splats.memory import Reader

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

    query (C, d), bias and concentrations (V,): by which the engine finds the candidates; None where there is no model.
    lexical (C, V): the law whose best tokens are the candidates then; log_p itself if None.
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
        """A part of them."""
        query, lexical = (None if rows is None else rows[which] for rows in (self.query, self.lexical))
        own = (self.log_p[which], self.labels[which])
        return Contexts(self.mu, *own, self.source, query, self.bias, self.concentrations, lexical)

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


def remembering(contexts: Contexts, seed: int) -> Contexts:
    """Some of the contexts, .7 of their laws mixed with .3 of a memory of 32 tokens; candidates as without it.

    A memory names tokens that the query is far from: most of them lie outside the candidates.
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
    """Contexts of a text at even quantiles of the entropy of p_lex(v|c), from the least to the largest.

    context: the most tokens a window gives. reader: of a memory that every second context then consults.
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
    source = f"{count} contexts of {stream.name}, at even quantiles of entropy among its first {len(entropy):,}"
    source += "; every second one with static memory" if reader else ""
    kappa = model.concentrations()
    lexical = (query[chosen].cpu(), model.bias.cpu(), None if kappa is None else kappa.cpu())
    return Contexts(mu.cpu(), log_p, said, source, *lexical)


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


@dataclass(frozen=True)
class _Route:
    """A way from laws to tokens. decoded: (context, chains, steps, seed) to tokens (n,). aside: of a context."""

    name: str
    claim: str
    decoded: Callable[[int, int, int, int], Tensor]
    aside: Callable[[int], str]


def identity(backend: Backend, contexts: Contexts, sizes: Sizes, seed: int) -> Findings:
    """Each context with 200 steps, as generation does it; where that is not enough, with twice as many until it is.

    A context that needs more passes with what it needs, and says so; one that needs more than 3,200 fails.
    """
    points = backend.points(contexts.mu.contiguous())

    def decoded(i: int, n: int, steps: int, own: int) -> Tensor:
        law = _law(backend, contexts, points, i)
        return _in_batches(lambda rows, first: _decoded(law, contexts.log_p[i], rows, steps, own, first), contexts, n)

    def aside(i: int) -> str:
        return f"mass outside the candidates {float(_law(backend, contexts, points, i).log_rest.exp()):.2f}"

    name = "tokens" if contexts.lexical is None else "tokens with memory"
    return _compared(_Route(name, "Langevin, then decoded from x alone", decoded, aside), contexts, sizes, seed)


def coarse(backend: Backend, contexts: Contexts, sizes: Sizes, seed: int, most_steps: int | None = None) -> Findings:
    """Every fifth context, coarse to fine: each level with as many steps."""
    points = backend.points(contexts.mu.contiguous())
    neighbourhoods = Neighbourhoods.of(backend, contexts.mu)
    few = contexts.some(slice(1, None, 5))

    def decoded(i: int, n: int, steps: int, own: int) -> Tensor:
        def tokens(rows: int, first: int) -> Tensor:
            log_p = few.log_p[i].expand(rows, -1).contiguous()
            how = {"seed": own, "steps": steps, "first_chain": first}
            return coarse_to_fine(backend, points, neighbourhoods, log_p, CANDIDATES, **how).tokens

        return _in_batches(tokens, few, n)

    def aside(i: int) -> str:
        best = neighbourhoods.log_probs(few.log_p[i : i + 1]).exp().topk(min(CANDIDATES, neighbourhoods.centres.n))
        return f"mass outside the candidate neighbourhoods {max(0.0, 1 - float(best.values.sum())):.2f}"

    claim = f"one of {neighbourhoods.centres.n} neighbourhoods from x, then its token from another x"
    return _compared(_Route("tokens, coarse to fine", claim, decoded, aside), few, sizes, seed, most_steps)


def coarse_made_up(backend: Backend, sizes: Sizes, seed: int) -> Findings:
    """`coarse` on one made-up law of middling entropy, without more steps where they do not suffice."""
    contexts = synthetic(sizes.token_dimension, seed, count=3)
    return coarse(backend, contexts, sizes, seed, most_steps=STEPS)


def _compared(route: _Route, contexts: Contexts, sizes: Sizes, seed: int, most_steps: int | None = None) -> Findings:
    most = MOST_STEPS if most_steps is None else most_steps
    n, checks, outcomes = sizes.token_chains, [], []
    for i, label in enumerate(contexts.labels):
        p = contexts.log_p[i].double().exp()
        steps, tried = STEPS, []
        while True:
            outcome = _compare(route.decoded(i, n, steps, seed * 1000 + i), p, seed)
            bound = BOUND if n >= CHAINS else BOUND + statistics.TWO_SIDED_1E5 * outcome.spread
            tried.append(f"{outcome.excess:.4f} with {steps}")
            if outcome.excess <= bound or steps >= most:
                break
            steps *= 2
        outcomes.append(outcome)
        entropy = float(contexts.entropy[i])
        detail = (
            f"TV {outcome.variation:.4f}, of true draws {outcome.noise:.4f} +- {outcome.spread:.4f}; {steps} steps"
            + (f" ({', '.join(tried)})" if len(tried) > 1 else "")
            + f"; chi2 p {outcome.p:.2g}; {route.aside(i)}; {label!r}"
        )
        name, claim = f"{route.name}, context {i + 1}", f"{route.claim}; H = {entropy:.2f} nats"
        checks.append(Check(8, name, claim, n, outcome.excess, "excess TV", high=bound, detail=detail))
    x = contexts.entropy.tolist()
    series = [Series("TV, less that of true draws", x, [outcome.excess for outcome in outcomes], marks=True)]
    title = f"{route.claim}: {n:,} chains per context"
    slug = route.name.replace(", ", "-").replace(" ", "-")
    pictures = [Picture(slug, title, "entropy of p(v|c), nats", "total variation", series, lines={"bound": BOUND})]
    return Findings(checks, pictures)


def _law(backend: Backend, contexts: Contexts, points: Points, i: int) -> LatentLaw:
    """Of one chain in context i."""
    row = contexts.log_p[i : i + 1]
    if contexts.lexical is not None:
        ids = contexts.lexical[i : i + 1].topk(CANDIDATES, dim=1).indices
        return LatentLaw.with_candidates(backend, points, ids, row)
    if contexts.query is None or contexts.bias is None:
        return LatentLaw.from_log_probs(backend, points, row, CANDIDATES)
    query = contexts.query[i : i + 1]
    return LatentLaw.from_query(backend, points, contexts.bias, query, row, CANDIDATES, contexts.concentrations)


def _in_batches(tokens: Callable[[int, int], Tensor], contexts: Contexts, n: int) -> Tensor:
    """n tokens of (rows, first chain), as many at once as memory allows; numbered, so that batches change nothing."""
    batch = max(1, _AT_ONCE // contexts.log_p.shape[1])
    return torch.cat([tokens(min(batch, n - first), first) for first in range(0, n, batch)])


def _decoded(law: LatentLaw, log_p: Tensor, rows: int, steps: int, seed: int, first: int) -> Tensor:
    """Tokens of `rows` chains of the law of one."""
    many = LatentLaw(
        *(law.backend, law.points),
        *(tensor.expand(rows, *tensor.shape[1:]).contiguous() for tensor in (law.ids, law.logp, law.log_rest)),
    )
    sample = many.langevin(seed=seed, steps=steps, first_chain=first)
    return many.decode(sample.x.cpu(), sample.kappa, log_p.expand(rows, -1), seed=seed, first_chain=first)


def _compare(tokens: Tensor, p: Tensor, seed: int) -> _Outcome:
    counts, n = torch.bincount(tokens, minlength=len(p)), len(tokens)
    return _Outcome(
        statistics.total_variation(counts, p),
        statistics.expected_total_variation(p / p.sum(), n),
        statistics.total_variation_spread(p / p.sum(), n, seed=seed),
        statistics.counts_test(counts, p).p,
    )
